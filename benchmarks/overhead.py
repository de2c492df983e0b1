"""What Ray and the store add to a segment, when editing itself takes no time.

    python -m benchmarks.overhead --out benchmarks/results

One worker, one video (a chain of segments that also remember three earlier ones), latents of the tiny preset's size. The edit
stage reads its memories from the `LatentStore` as the real one does and commits two tensors; the render stage
does nothing. What is left is the scheduler, the call to the actor and back, and the store. Once on the local disk and once in
memory (`/dev/shm`, where flushing is free), because a flush takes what the disk takes.
"""

import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import tyro

from benchmarks.provenance import write_report
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
    shape: tuple[int, int, int, int] = (48, 9, 16, 16)
    num_segments: int = 400
    rounds: int = 3
    folders: tuple[Path, ...] = (Path(tempfile.gettempdir()), Path("/dev/shm"))


class CommittingStages:
    """Commits latents that nobody had to compute."""

    def __init__(self, *, shape: tuple[int, ...]) -> None:
        import torch

        generator = torch.Generator().manual_seed(0)
        self.tensors = {
            name: torch.randn(shape, generator=generator).to(torch.bfloat16) for name in ("edited", "source")
        }
        self.stores: dict[str, Any] = {}
        self.flush_s = 0.0
        flush = os.fsync

        def timed(descriptor: int) -> None:
            began = time.perf_counter()
            flush(descriptor)
            self.flush_s += time.perf_counter() - began

        os.fsync = timed

    def run(self, task: Task) -> dict[str, Any]:
        from retrieval.latents import LatentStore
        from retrieval.store import Store

        if task.kind != "edit":
            return {}
        store = self.stores.setdefault(task.edit_url, LatentStore(Store(task.edit_url) / "latents"))
        began = time.perf_counter()
        for memory in memories(task.index):
            store.get(memory, names=("edited", "source"))
        read, self.flush_s = time.perf_counter(), 0.0
        store.put(task.index, self.tensors, meta={"seed": task.index}, record={"worker": "benchmark"})
        return {
            "read_s": read - began,
            "put_s": time.perf_counter() - read,
            "flush_s": self.flush_s,
            "cpu_s": time.process_time(),
        }

    def prefetch(self, task: Task) -> None:
        pass


def memories(index: int) -> tuple[int, ...]:
    return tuple(sorted({index - 1, index // 2, index // 3} - {index, -1}))


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """Milliseconds per segment. `stage` is the edit task by the worker's clock; `dispatch` is all that is not in it;
    `driver_cpu` and `worker_cpu` are processor time of all threads of the two processes."""

    wall: float
    stage: float
    read: float
    put: float
    flush: float
    driver_cpu: float
    worker_cpu: float

    @property
    def dispatch(self) -> float:
        return self.wall - self.stage


def measure(options: Benchmark, parent: Path) -> Overhead:
    with tempfile.TemporaryDirectory(prefix="overhead-", dir=parent) as folder:
        count = options.num_segments
        scheduler = Scheduler()
        plan = VideoPlan(
            video="v",
            edit_url=f"{folder}/v",
            dependencies=tuple(memories(index) for index in range(count)),
            costs=(1.0,) * count,
        )
        scheduler.add_video(plan)
        joined: list[tuple[float, float]] = []

        def note(event: Event) -> None:
            if isinstance(event, WorkerJoined):
                joined.append((time.perf_counter(), time.process_time()))

        pool = WorkerPool(
            stages=StagesSpec(factory="benchmarks.overhead:CommittingStages", kwargs={"shape": options.shape}),
            num_workers=1,
        )
        result = run_tasks(scheduler, pool, on_event=note)
        wall_s, driver_s = time.perf_counter() - joined[0][0], time.process_time() - joined[0][1]
        edits = [record for record in result.finished if record.task.kind == "edit"]
        assert len(edits) == count
        return Overhead(
            wall=1000 * wall_s / count,
            stage=1000 * statistics.fmean(record.ended_at - record.started_at for record in edits),
            read=1000 * statistics.fmean(record.summary["read_s"] for record in edits),
            put=1000 * statistics.fmean(record.summary["put_s"] for record in edits),
            flush=1000 * statistics.fmean(record.summary["flush_s"] for record in edits),
            driver_cpu=1000 * driver_s / count,
            worker_cpu=1000 * (edits[-1].summary["cpu_s"] - edits[0].summary["cpu_s"]) / (count - 1),
        )


def main() -> None:
    options = tyro.cli(Benchmark, description=__doc__)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    rows = []
    for folder in options.folders:
        for _ in range(options.rounds):
            found = measure(options, folder)
            cells = (
                found.wall,
                found.dispatch,
                found.stage,
                found.read,
                found.put,
                found.flush,
                found.driver_cpu,
                found.worker_cpu,
            )
            rows.append(f"| {folder} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
            print(rows[-1], flush=True)
    ray.shutdown()
    write_report(
        "overhead",
        title="What Ray and the store add to a segment",
        packages=("ray", "torch", "pyarrow"),
        out=options.out,
        lines=[
            f"{options.num_segments} segments, one worker, two latents of {list(options.shape)} bfloat16 per "
            "segment. Milliseconds per segment: `wall` is the whole run from when the worker is ready, with one edit and one "
            "(empty) render task per segment and the assemble; `dispatch` is wall less the edit stage: scheduler, two actor "
            "calls and answers; `edit stage` holds reading up to three memories and the commit "
            "(a Parquet file, flushed to disk, and the note how it came to be; `of that flushing` is the time in fsync); `CPU` is processor time of all threads of a process, steadier "
            "than wall on a shared machine. Target: wall at most 5 ms.",
            "",
            "| folder | wall | dispatch | edit stage | read memories | put and commit | of that flushing | driver CPU | worker CPU |",
            "|---|---|---|---|---|---|---|---|---|",
            *rows,
        ],
    )


if __name__ == "__main__":
    main()
