"""How near the scheduler and executor come to the ideal, with stages that sleep instead of editing.

    python -m benchmarks.makespan --out benchmarks/results

(a) A batch with a long tail: videos of 1 to 40 segments, each one shot (a chain), on 8 workers. The ideal is the larger of
    the work per worker and the longest chain; time counts from the moment when all workers are ready.
(b) One video of 200 segments with a cut every 4, on 1 and on 8 workers. Its plan is made by `plan_segments` over source
    embeddings of shots that return to a few scenes, as the shots of a film do.

Everything is real but the sleep: the scheduler, Ray actors, the store's commits, the renders and the assemble.
"""

import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
import tyro

from benchmarks.provenance import write_report
from pipeline.events import Event, WorkerJoined
from pipeline.executor import WorkerPool, run_tasks
from pipeline.plan import plan_segments
from pipeline.scheduler import Scheduler
from pipeline.worker import StagesSpec
from retrieval.schema import Segment
from tests.stages import add_from_store, write_script

Dependencies = list[tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Options of the benchmark.

    Attributes:
        out: folder for the Markdown report.
        segment_s: what one edit sleeps.
        num_videos: of the batch.
    """

    out: Path = Path("benchmarks/results")
    segment_s: float = 0.5
    num_workers: int = 8
    num_videos: int = 40
    seeds: tuple[int, ...] = (0, 1, 2)


def long_tail(num_videos: int, seed: int) -> list[int]:
    """Lengths from 1 to 40 segments, log-uniform, one of them 40."""
    rng = random.Random(seed)
    lengths = [40, *(round(40 ** rng.random()) for _ in range(num_videos - 1))]
    rng.shuffle(lengths)
    return lengths


def film(
    seed: int, *, num_segments: int = 200, shot_segments: int = 4, num_scenes: int = 12, dim: int = 64
) -> Dependencies:
    """Dependencies of a film: every shot shows one of a few scenes, each equally often, in random order. Segments of a shot
    look much alike, shots of a scene less so."""
    rng = np.random.default_rng(seed)
    scenes = rng.standard_normal((num_scenes, dim))
    num_shots = -(-num_segments // shot_segments)
    shots = scenes[rng.permutation(np.arange(num_shots) % num_scenes)]
    shots = shots + 0.3 * rng.standard_normal(shots.shape)
    embeddings = np.repeat(shots, shot_segments, axis=0)[:num_segments]
    embeddings = embeddings + 0.15 * rng.standard_normal(embeddings.shape)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    segments = [
        Segment(
            segment=i,
            shot=i // shot_segments,
            start_frame=17 * i,
            end_frame=17 * (i + 1),
            embedding=tuple(row.tolist()),
        )
        for i, row in enumerate(embeddings)
    ]
    plan = plan_segments(segments, method="memory", top_k=3, seed=0)
    return [tuple(memory.segment for memory in row.memory) for row in plan]


def depth(dependencies: Dependencies) -> int:
    depths: list[int] = []
    for earlier in dependencies:
        depths.append(1 + max((depths[other] for other in earlier), default=0))
    return max(depths)


def makespan_s(videos: list[Dependencies], *, num_workers: int, segment_s: float) -> float:
    """Seconds from when all workers are ready to when all videos are assembled."""
    with tempfile.TemporaryDirectory(prefix="makespan-") as folder:
        ready = Path(folder) / "ready"
        ready.mkdir()
        scheduler = Scheduler(num_workers=num_workers)
        for number, dependencies in enumerate(videos):
            url = str(Path(folder) / f"v{number:03}")
            write_script(url, dependencies, sleep_s=segment_s)
            add_from_store(scheduler, f"v{number:03}", url)
        joined: list[float] = []

        def note(event: Event) -> None:
            if isinstance(event, WorkerJoined):
                joined.append(time.monotonic())

        pool = WorkerPool(
            stages=StagesSpec(
                factory="tests.stages:ScriptedStages",
                kwargs={"ready_folder": str(ready), "num_workers": num_workers},
                num_threads=None,
            ),
            num_workers=num_workers,
            num_cpus=1 / 16,
        )
        result = run_tasks(scheduler, pool, on_event=note)
        assert all(status.state == "done" for status in result.videos)
        assert len(joined) == num_workers
        return time.monotonic() - joined[-1]


def main() -> None:
    options = tyro.cli(Benchmark, description=__doc__)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    workers, segment_s = options.num_workers, options.segment_s
    batch = ["| seed | segments | longest | ideal s | measured s | over ideal |", "|---|---|---|---|---|---|"]
    for seed in options.seeds:
        lengths = long_tail(options.num_videos, seed)
        chains = [[(i - 1,) if i else () for i in range(length)] for length in lengths]
        ideal_s = max(sum(lengths) / workers, max(lengths)) * segment_s
        measured_s = makespan_s(chains, num_workers=workers, segment_s=segment_s)
        over = measured_s / ideal_s
        batch.append(f"| {seed} | {sum(lengths)} | {max(lengths)} | {ideal_s:.2f} | {measured_s:.2f} | {over:.3f} |")
        print(batch[-1], flush=True)
    single = [
        f"| seed | depth | 1 worker s | {workers} workers s | speed-up | most possible |",
        "|---|---|---|---|---|---|",
    ]
    for seed in options.seeds:
        dependencies = film(seed)
        one_s = makespan_s([dependencies], num_workers=1, segment_s=segment_s)
        many_s = makespan_s([dependencies], num_workers=workers, segment_s=segment_s)
        most = len(dependencies) / max(depth(dependencies), len(dependencies) / workers)
        single.append(
            f"| {seed} | {depth(dependencies)} | {one_s:.2f} | {many_s:.2f} | {one_s / many_s:.2f} | {most:.2f} |"
        )
        print(single[-1], flush=True)
    ray.shutdown()
    write_report(
        "makespan",
        title="Makespan with sleeping stages",
        packages=("ray",),
        out=options.out,
        lines=[
            f"A segment sleeps {segment_s:g} s. Videos of 1 to 40 segments (log-uniform, {options.num_videos} per batch), "
            f"each a chain, on {workers} workers. The ideal is the larger of work per worker and longest chain, without any "
            "time for renders, assembles, commits or Ray; measured from when all workers are ready. Target: at most 1.05.",
            "",
            *batch,
            "",
            "One video of 200 segments, a cut every 4, 12 scenes that return equally often, top-k 3, plan by `pipeline/plan.py`. "
            "The most possible is what the depth of its plan allows. Target: at least 6.",
            "",
            *single,
        ],
    )


if __name__ == "__main__":
    main()
