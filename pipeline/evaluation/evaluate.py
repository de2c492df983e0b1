"""The evaluation run: a suite's videos edited by every method on the pipeline's own path, measured, written down.

    draw the suite -> one edit run per row of `variants.py` (Ray, one workspace) -> measure every video -> metrics.parquet, report

Edits that are done are skipped by the pipeline itself, so an evaluation that was stopped goes on where it was, and a further
method costs only its own edits. Computes no measure itself.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import pyarrow as pa

from model.presets import resolve_preset
from model.training.scene import Split
from pipeline.evaluation.learned import LearnedMeasures
from pipeline.evaluation.suite import ALLOWED_TASKS, TASKS, SuiteVideo, draw_suite
from pipeline.evaluation.variants import Variant, read_variants
from pipeline.manifest import ManifestRow
from pipeline.progress import Progress
from pipeline.ray_session import default_workers, ray_session
from pipeline.run import run_edit
from pipeline.run_record import EditRun, RunError, VideoOutcome
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
    presets: tuple[str, ...] = ("tiny",)
    methods: tuple[str, ...] = ("independent", "previous", "memory")
    videos: int = 32
    tasks: tuple[str, ...] = TASKS
    seed: int = 0
    suite: Literal["long-edit"] = "long-edit"
    split: Split = "heldout"
    top_k: int = 3
    learned: LearnedMeasures = field(default_factory=LearnedMeasures)
    workers: int | None = None
    address: str = "local"
    variants: tuple[Variant, ...] = field(init=False)

    def __post_init__(self) -> None:
        if self.suite != "long-edit":
            raise ValueError(f"--suite is {self.suite!r}; needs long-edit")
        if self.videos < 1:
            raise ValueError(f"--videos is {self.videos}; needs at least 1")
        if self.split not in ("heldout", "train"):
            raise ValueError(f"--split is {self.split!r}; needs heldout or train")
        unknown = [task for task in self.tasks if task not in ALLOWED_TASKS]
        if unknown or not self.tasks:
            asked = repr(unknown[0]) if unknown else "no task"
            raise ValueError(f"--tasks has {asked}; needs some of {', '.join(ALLOWED_TASKS)}")
        if not self.presets:
            raise ValueError("--preset is empty; needs at least one")
        object.__setattr__(self, "variants", read_variants(self.methods, self.presets))


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What came of it.

    Attributes:
        table: what is also in `out/metrics.parquet`.
        edits: row of the tables -> video -> URL of its edit.
        generated: row of the tables -> (segments that were generated this time, seconds that its edit run took).
    """

    suite: list[SuiteVideo]
    table: pa.Table
    edits: dict[str, dict[str, str]]
    generated: dict[str, tuple[int, float]]


def evaluate(evaluation: Evaluation, progress: Progress) -> Evaluated:
    """Do it.

    Raises:
        ValueError: for an unknown preset, presets that cannot be compared, or memory settings that one cannot do.
        RunError: if an edit failed; its message says which and why.
    """
    size = common_size(evaluation.variants)
    evaluation.learned.check()
    progress.stage(f"render {evaluation.videos} videos of the {evaluation.split} split")
    edits: dict[str, dict[str, str]] = {}
    generated: dict[str, tuple[int, float]] = {}
    with ray_session(evaluation.address, num_workers=evaluation.workers):
        workers = evaluation.workers or default_workers()
        suite = draw_suite(
            evaluation.out / "videos",
            videos=evaluation.videos,
            seed=evaluation.seed,
            size=size,
            workers=workers,
            tasks=evaluation.tasks,
            split=evaluation.split,
        )
        for variant in evaluation.variants:
            progress.begin(f"method {variant.name}")
            began = time.time()
            outcomes = edit_suite(evaluation, suite, variant, progress)
            edits[variant.name] = {video.id: video.edit_url for video in outcomes}
            generated[variant.name] = sum(video.generated_segments for video in outcomes), time.time() - began
    progress.stage(f"measure {len(suite)} videos")
    table = measure_suite(evaluation, suite, edits, workers=workers)
    Store(str(evaluation.out.absolute())).write_table(METRICS_NAME, table)
    return Evaluated(suite=suite, table=table, edits=edits, generated=generated)


def common_size(variants: Sequence[Variant]) -> tuple[int, int]:
    """The size to render at, after a look at whether all presets can do what is asked of them."""
    presets = {variant.preset: resolve_preset(variant.preset) for variant in variants}
    for variant in variants:
        presets[variant.preset].check_memory(variant.settings)
    lengths = {name: preset.geometry.segment_frames for name, preset in presets.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"--preset has segments of {lengths} frames; needs presets of one length")
    first, *others = (preset.geometry.sizes for preset in presets.values())
    sizes = [size for size in first if all(size in sizes for sizes in others)]
    if not sizes:
        raise ValueError(f"--preset has {', '.join(presets)}, which have no frame size in common")
    return PREFERRED_SIZE if PREFERRED_SIZE in sizes else sizes[0]


def edit_suite(
    evaluation: Evaluation, suite: Sequence[SuiteVideo], variant: Variant, progress: Progress
) -> tuple[VideoOutcome, ...]:
    """One edit run."""
    rows = tuple(
        ManifestRow(
            line=line,
            source=str(Path(video.path).absolute()),
            instruction=video.instruction,
            id=video.id,
            seed=evaluation.seed,
            preset=variant.preset,
        )
        for line, video in enumerate(suite, start=1)
    )
    run = EditRun(
        workspace=str((evaluation.out / "workspace").absolute()),
        rows=rows,
        size="model",
        method=variant.method,
        memory=variant.settings,
        top_k=evaluation.top_k,
        workers=evaluation.workers,
        address=evaluation.address,
    )
    outcome = run_edit(run, progress)
    failed = [video for video in outcome.videos if video.status not in ("done", "skipped")]
    if failed:
        raise RunError(
            f"{len(failed)} of {len(suite)} edits by {variant.name} failed; {failed[0].id}: {failed[0].error}"
        )
    return outcome.videos


def measure_suite(
    evaluation: Evaluation, suite: Sequence[SuiteVideo], edits: dict[str, dict[str, str]], *, workers: int
) -> pa.Table:
    tasks = [
        (video, {name: urls[video.id] for name, urls in edits.items()}, evaluation.seed, evaluation.learned)
        for video in suite
    ]
    with ProcessPoolExecutor(max(1, workers), mp_context=get_context("spawn")) as pool:
        rows = [row for found in pool.map(_measure, tasks) for row in found]
    return pa.Table.from_pylist(rows, schema=METRICS_SCHEMA)


def _measure(task: tuple[SuiteVideo, dict[str, str], int, LearnedMeasures]) -> list[dict]:
    from pipeline.evaluation.measures import measure_video

    video, edits, seed, learned = task
    return [asdict(row) for row in measure_video(video, edits, seed=seed, learned=learned)]
