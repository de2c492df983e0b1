"""The evaluation run: a suite's videos edited by every method on the pipeline's own path, measured, written down.

    draw the suite -> one edit run per method (Ray, one workspace) -> measure every video -> metrics.parquet, report

Edits that are done are skipped by the pipeline itself, so an evaluation that was stopped goes on where it was, and a further
method costs only its own edits. Computes no measure itself.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa

from model.presets import resolve_preset
from pipeline.evaluation.suite import SuiteVideo, draw_suite
from pipeline.manifest import ManifestRow
from pipeline.plan import Method
from pipeline.progress import Progress
from pipeline.ray_session import default_workers, ray_session
from pipeline.run import run_edit
from pipeline.run_record import EditRun, RunError
from retrieval.store import Store

METRICS_SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("seed", pa.int64()),
        ("video", pa.string()),
        ("segment", pa.int32()),
        ("gap", pa.int32()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
)
METRICS_NAME = "metrics.parquet"
PREFERRED_SIZE = (64, 64)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is evaluated. `out` is a local folder; `seed` draws the worlds and the edits."""

    out: Path
    preset: str = "tiny"
    methods: tuple[str, ...] = ("independent", "previous", "memory")
    videos: int = 32
    seed: int = 0
    suite: Literal["long-edit"] = "long-edit"
    top_k: int = 3
    workers: int | None = None
    address: str = "local"

    def __post_init__(self) -> None:
        if self.suite != "long-edit":
            raise ValueError(f"--suite is {self.suite!r}; needs long-edit")
        if self.videos < 1:
            raise ValueError(f"--videos is {self.videos}; needs at least 1")
        allowed = get_args(Method)
        for method in self.methods:
            if method not in allowed:
                raise ValueError(f"--methods has {method!r}; needs some of {', '.join(allowed)}")
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"--methods is {','.join(self.methods)!r}; needs each method once, and at least one")


def evaluate(
    evaluation: Evaluation, progress: Progress
) -> tuple[list[SuiteVideo], pa.Table, dict[str, dict[str, str]]]:
    """Do it; the suite's videos, the table that is also in `out/metrics.parquet`, and method -> video -> URL of its edit.

    Raises:
        ValueError: for an unknown preset.
        RunError: if an edit failed; its message says which and why.
    """
    sizes = resolve_preset(evaluation.preset).geometry.sizes
    size = PREFERRED_SIZE if PREFERRED_SIZE in sizes else sizes[0]
    progress.stage(f"render {evaluation.videos} held-out videos")
    with ray_session(evaluation.address, num_workers=evaluation.workers):
        workers = evaluation.workers or default_workers()
        suite = draw_suite(
            evaluation.out / "videos", videos=evaluation.videos, seed=evaluation.seed, size=size, workers=workers
        )
        edits = {}
        for method in evaluation.methods:
            progress.stage(f"method {method}")
            edits[method] = edit_suite(evaluation, suite, method, progress)
    progress.stage(f"measure {len(suite)} videos")
    table = measure_suite(evaluation, suite, edits, workers=workers)
    Store(str(evaluation.out.absolute())).write_table(METRICS_NAME, table)
    return suite, table, edits


def edit_suite(evaluation: Evaluation, suite: Sequence[SuiteVideo], method: str, progress: Progress) -> dict[str, str]:
    """One edit run; video -> URL of its edit."""
    rows = tuple(
        ManifestRow(
            line=line,
            source=str(Path(video.path).absolute()),
            instruction=video.instruction,
            id=video.id,
            seed=evaluation.seed,
            preset=evaluation.preset,
        )
        for line, video in enumerate(suite, start=1)
    )
    run = EditRun(
        workspace=str((evaluation.out / "workspace").absolute()),
        rows=rows,
        size="model",
        method=method,  # type: ignore[arg-type]
        top_k=evaluation.top_k,
        workers=evaluation.workers,
        address=evaluation.address,
    )
    outcome = run_edit(run, progress)
    failed = [video for video in outcome.videos if video.status not in ("done", "skipped")]
    if failed:
        raise RunError(f"{len(failed)} of {len(suite)} edits failed; {failed[0].id}: {failed[0].error}")
    return {video.id: video.edit_url for video in outcome.videos}


def measure_suite(
    evaluation: Evaluation, suite: Sequence[SuiteVideo], edits: dict[str, dict[str, str]], *, workers: int
) -> pa.Table:
    tasks = [(video, {method: edits[method][video.id] for method in edits}, evaluation.seed) for video in suite]
    with ProcessPoolExecutor(max(1, workers), mp_context=get_context("spawn")) as pool:
        rows = [row for found in pool.map(_measure, tasks) for row in found]
    return pa.Table.from_pylist(rows, schema=METRICS_SCHEMA)


def _measure(task: tuple[SuiteVideo, dict[str, str], int]) -> list[dict]:
    from pipeline.evaluation.measures import measure_video

    video, edits, seed = task
    return [asdict(row) for row in measure_video(video, edits, seed=seed)]
