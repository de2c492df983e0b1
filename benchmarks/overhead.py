"""What Ray and the store add to a segment, when editing itself takes no time.

    python -m benchmarks.overhead --out benchmarks/results

One worker, one video (a chain of segments that also remember three earlier ones), latents of the tiny preset's size. The edit
stage reads its memories from the `LatentStore` as the real one does, makes two tensors and commits them; the render stage
does nothing. What is left is the scheduler, the call to the actor and back, and the store.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import tyro

from benchmarks.provenance import provenance, write_result
from pipeline.events import Event, WorkerJoined
from pipeline.executor import WorkerPool, run_tasks
from pipeline.scheduler import Scheduler, VideoPlan
from pipeline.tasks import Task
from pipeline.worker import StagesSpec


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Options of the benchmark.

    Attributes:
        out: folder for the Markdown report.
        shape: of a latent, [C, T, H, W]; the tiny preset's by default.
    """

    out: Path = Path("benchmarks/results")
    shape: tuple[int, int, int, int] = (48, 5, 16, 16)
    num_segments: int = 400
    rounds: int = 3


class CommittingStages:
    """Commits latents that nobody had to compute."""

    def __init__(self, *, shape: tuple[int, ...]) -> None:
        import torch

        self.shape = shape
        self.generator = torch.Generator().manual_seed(0)
        self.stores: dict[str, Any] = {}

    def run(self, task: Task) -> dict[str, Any]:
        import torch

        from retrieval.latents import LatentStore
        from retrieval.store import Store

        if task.kind != "edit":
            return {}
        store = self.stores.setdefault(task.edit_url, LatentStore(Store(task.edit_url) / "latents"))
        tensors = {
            name: torch.randn(self.shape, generator=self.generator).to(torch.bfloat16) for name in ("edited", "source")
        }
        began = time.perf_counter()
        for memory in memories(task.index):
            store.get(memory, names=("edited", "source"))
        read = time.perf_counter()
        store.put(task.index, tensors, meta={"seed": task.index}, record={"worker": "benchmark"})
        return {"read_s": read - began, "put_s": time.perf_counter() - read}

    def prefetch(self, task: Task) -> None:
        pass


def memories(index: int) -> tuple[int, ...]:
    return tuple(sorted({index - 1, index // 2, index // 3} - {index, -1}))


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """Milliseconds per segment. `stage` is the edit task by the worker's clock; `dispatch` is all that is not in it."""

    wall: float
    stage: float
    read: float
    put: float

    @property
    def dispatch(self) -> float:
        return self.wall - self.stage


def measure(options: Benchmark) -> Overhead:
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        count = options.num_segments
        scheduler = Scheduler()
        plan = VideoPlan(
            video="v",
            edit_url=f"{folder}/v",
            dependencies=tuple(memories(index) for index in range(count)),
            costs=(1.0,) * count,
        )
        scheduler.add_video(plan)
        joined: list[float] = []

        def note(event: Event) -> None:
            if isinstance(event, WorkerJoined):
                joined.append(time.perf_counter())

        pool = WorkerPool(
            stages=StagesSpec(factory="benchmarks.overhead:CommittingStages", kwargs={"shape": options.shape}),
            num_workers=1,
        )
        result = run_tasks(scheduler, pool, on_event=note)
        wall_s = time.perf_counter() - joined[0]
        edits = [record for record in result.finished if record.task.kind == "edit"]
        assert len(edits) == count
        return Overhead(
            wall=1000 * wall_s / count,
            stage=1000 * statistics.fmean(record.ended_at - record.started_at for record in edits),
            read=1000 * statistics.fmean(record.summary["read_s"] for record in edits),
            put=1000 * statistics.fmean(record.summary["put_s"] for record in edits),
        )


def main() -> None:
    options = tyro.cli(Benchmark, description=__doc__)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    rows = []
    for number in range(options.rounds):
        found = measure(options)
        rows.append(
            f"| {number} | {found.wall:.2f} | {found.dispatch:.2f} | {found.stage:.2f} | {found.read:.2f} | {found.put:.2f} |"
        )
        print(rows[-1], flush=True)
    ray.shutdown()
    text = "\n".join(
        [
            "# What Ray and the store add to a segment",
            "",
            provenance(command="python -m benchmarks.overhead", packages=("ray", "torch", "pyarrow")),
            "",
            f"{options.num_segments} segments, one worker, two latents of {list(options.shape)} bfloat16 per segment, local "
            "disk. Milliseconds per segment: `wall` is the whole run from when the worker is ready, with one edit and one "
            "(empty) render task per segment and the assemble; `dispatch` is wall less the edit stage: scheduler, two actor "
            "calls and answers; `edit stage` holds making the random tensors, reading up to three memories and the commit "
            "(Parquet file and commit record, both flushed to disk). Target: wall at most 5 ms.",
            "",
            "| round | wall | dispatch | edit stage | read memories | put and commit |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
    write_result("overhead", text, out=options.out)


if __name__ == "__main__":
    main()
