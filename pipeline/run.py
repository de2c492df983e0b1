"""The edit run: manifest rows in, edited videos out. The one place where all parts meet; it computes nothing itself.

    identify sources -> [skip what is finished] -> prepare (Ray Data) -> freeze plans -> execute -> results, report

Everything it knows between two steps is in the workspace, so a run that dies is continued by the same command. Ray is
started only if there is something to do. The driver imports neither torch nor a decoder.
"""

import statistics
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from model.presets import Preset, resolve_preset
from pipeline.ledger import AttemptLedger
from pipeline.manifest import ManifestRow
from pipeline.plan import SLACK, PlanFigures, format_plan_table, freeze_plan, plan_figures, plan_segments
from pipeline.prepared import SHOT_DETECTION, PreparedVideo, load_prepared
from pipeline.progress import Progress
from pipeline.ray_session import default_workers, ray_resources, ray_session
from pipeline.report import write_report
from pipeline.run_record import EditRun, Failure, RunError, RunOutcome, Status, VideoOutcome, finish_run, start_run
from pipeline.scheduler import Scheduler, VideoPlan
from pipeline.source import SourceError, SourceIdentity, identify_sources
from pipeline.spec import EditSpec, Retrieval, SegmentGeometry, Turn, prepare_id
from pipeline.tasks import TaskKind
from pipeline.watch import Watch
from retrieval.commits import committed_segments
from retrieval.embed import embedder_revision
from retrieval.schema import PlannedSegment
from retrieval.store import Store


@dataclass
class VideoEdit:
    """One video on its way through the run."""

    row: ManifestRow
    preset: Preset
    folder: Store
    identity: SourceIdentity | None = None
    prepared_id: str = ""
    prepared: PreparedVideo | None = None
    spec: EditSpec | None = None
    store: Store | None = None
    plan: list[PlannedSegment] = field(default_factory=list)
    generated: int = 0
    outcome: VideoOutcome | None = None


def run_edit(run: EditRun, progress: Progress) -> RunOutcome:
    """Do everything `run` asks for, and write down what became of it.

    Failures of videos are data in the outcome; nothing is raised for them.

    Raises:
        ValueError: for an unknown preset, or memory settings that its network cannot do.
        StoreError: if the workspace cannot be written.
        RunError: if Ray cannot be started, or no worker can be built.
    """
    started = time.time()
    run_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
    workspace = Store(run.workspace)
    presets = {name: resolve_preset(name) for name in {row.preset for row in run.rows}}
    for preset in presets.values():
        preset.check_memory(run.memory)
    workspace.check_writable()
    timeline: list[dict[str, Any]] = []
    edits = [VideoEdit(row=row, preset=presets[row.preset], folder=workspace / "videos" / row.id) for row in run.rows]
    revision = embedder_revision(run.embedder)
    progress.stage(f"look at {len(edits)} source{'s' * (len(edits) != 1)}")
    failures = identify(edits, workspace, revision)
    skip_finished(edits, run, revision)

    table = None
    if open_edits(edits):
        with ray_session(run.address, num_workers=run.workers):
            failures += prepare(edits, run, progress)
            skip_finished(edits, run, revision)
            if run.dry_run:
                table = dry_run(edits, run, workspace)
            elif open_edits(edits):
                start_run(workspace, run_id, run, started)
                failures += execute(edits, run, progress, timeline)
    outcomes = tuple(edit.outcome for edit in edits if edit.outcome is not None)
    assert len(outcomes) == len(edits), "every video has an outcome"
    if run.dry_run:
        return RunOutcome(run_id=run_id, workspace=run.workspace, videos=outcomes, plan_table=table)
    finish_run(workspace, run_id, run, started, outcomes, failures, timeline)
    report = write_report(workspace, run_id)
    return RunOutcome(run_id=run_id, workspace=run.workspace, videos=outcomes, report=report)


def open_edits(edits: Sequence[VideoEdit]) -> list[VideoEdit]:
    return [edit for edit in edits if edit.outcome is None]


def identify(edits: Sequence[VideoEdit], workspace: Store, revision: str) -> list[Failure]:
    """Content identity of every source; a missing or unreadable one fails its video here."""
    failures = []
    identities = identify_sources(workspace, {edit.row.id: edit.row.source for edit in edits})
    for edit in edits:
        identity = identities[edit.row.id]
        if isinstance(identity, SourceError):
            failure = Failure(
                video=edit.row.id, stage="source", error_type=type(identity).__name__, message=str(identity), attempts=1
            )
            failures.append(fail(edit, failure))
            continue
        edit.identity = identity
        edit.prepared_id = prepare_id(
            identity.sha256, geometry=edit.preset.geometry, shots=SHOT_DETECTION, embedder_revision=revision
        )
        edit.prepared = load_prepared(edit.folder / "prepared" / edit.prepared_id)
    return failures


def specify(edits: Sequence[VideoEdit], run: EditRun, revision: str) -> None:
    """The spec of every prepared video, and with it the folder of its edit."""
    for edit in open_edits(edits):
        if edit.prepared is None or edit.spec is not None:
            continue
        assert edit.identity is not None
        info = edit.prepared.info
        size = edit.preset.geometry.size_for(info.display_width, info.display_height)
        edit.spec = EditSpec(
            source_sha256=edit.identity.sha256,
            turns=(Turn(instruction=edit.row.instruction),),
            preset=edit.preset.name,
            weights_revision=edit.preset.weights_revision,
            sampler=edit.preset.sampler,
            seed=edit.row.seed,
            geometry=SegmentGeometry.of(edit.preset.geometry, size=size),
            retrieval=Retrieval(method=run.method, top_k=run.top_k, slack=SLACK, embedder_revision=revision),
            memory=run.memory.resolved(edit.preset.sampler),
            shots=SHOT_DETECTION,
        )
        edit.store = edit.folder / "edits" / edit.spec.edit_id


def skip_finished(edits: Sequence[VideoEdit], run: EditRun, revision: str) -> None:
    """A finished edit of the same spec and size has nothing left to do."""
    specify(edits, run, revision)
    for edit in open_edits(edits):
        if edit.store is None or edit.spec is None or not edit.store.exists("record.json"):
            continue
        record = edit.store.read_json("record.json")
        if record["size"] != run.size or not edit.store.exists(record["output"]):
            continue
        edit.outcome = outcome(
            edit,
            status="skipped",
            output=edit.store.url_of(record["output"]),
            segments=len(record["segments"]),
        )


def prepare(edits: Sequence[VideoEdit], run: EditRun, progress: Progress) -> list[Failure]:
    """Probe, cut and embed what is not prepared yet."""
    from pipeline.prepare import PrepareJob, prepare_videos

    wanted = {edit.row.id: edit for edit in open_edits(edits) if edit.prepared is None}
    if not wanted:
        return []
    progress.stage(f"prepare: {len(wanted)} video{'s' * (len(wanted) != 1)}")
    jobs = [
        PrepareJob(
            video=edit.row.id,
            uri=edit.row.source,
            prepared_url=f"{edit.folder.url}/prepared/{edit.prepared_id}",
            geometry=edit.preset.geometry,
        )
        for edit in wanted.values()
    ]
    result = prepare_videos(jobs, embedder=run.embedder, num_workers=run.workers, on_event=progress.note)
    failures = [fail(wanted[failure.video], Failure(**asdict(failure), attempts=1)) for failure in result.failures]
    for video, prepared in result.prepared.items():
        wanted[video].prepared = prepared
    return failures


def dry_run(edits: Sequence[VideoEdit], run: EditRun, workspace: Store) -> str:
    """The plan of the whole manifest as text; writes nothing."""
    rows: list[tuple[str, PlanFigures]] = []
    for edit in open_edits(edits):
        plan = planned(edit, run)
        assert edit.store is not None
        committed = committed_segments(edit.store / "latents")
        seconds = measured_seconds_per_segment(workspace, edit)
        rows.append((edit.row.id, plan_figures(plan, seconds_per_segment=seconds, committed=committed)))
        edit.outcome = outcome(edit, status="planned", segments=len(plan))
    return format_plan_table(rows, num_workers=run.workers or default_workers()) if rows else "nothing left to plan"


def planned(edit: VideoEdit, run: EditRun) -> list[PlannedSegment]:
    assert edit.prepared is not None
    return plan_segments(
        edit.prepared.segments, method=run.method, top_k=run.top_k, seed=edit.row.seed, kernels=run.memory.kernels
    )


def measured_seconds_per_segment(workspace: Store, edit: VideoEdit) -> float | None:
    """Median time of a segment in a finished edit of this workspace by the same weights, or None."""
    assert edit.spec is not None
    videos = workspace / "videos"
    for video in [edit.row.id, *videos.names()]:
        edits = videos / video / "edits"
        for edit_id in edits.names():
            if not (edits / edit_id).exists("record.json"):
                continue
            record = (edits / edit_id).read_json("record.json")
            seconds = [sum(row["timings"].values()) for row in record["segments"] if "timings" in row]
            if seconds and record["spec"]["weights_revision"] == edit.spec.weights_revision:
                return statistics.median(seconds)
    return None


def execute(
    edits: Sequence[VideoEdit], run: EditRun, progress: Progress, timeline: list[dict[str, Any]]
) -> list[Failure]:
    """Generate, render and assemble all open edits; returns the failures of those that were quarantined."""
    from pipeline.executor import StagesSpec, WorkerPool, WorkersUnavailable, run_tasks

    num_workers = run.workers or default_workers()
    by_video = {edit.row.id: edit for edit in open_edits(edits)}
    progress.stage(f"edit: {len(by_video)} video{'s' * (len(by_video) != 1)} on {num_workers} workers")
    scheduler = Scheduler(
        max_attempts=run.max_attempts, max_parallel_per_video=run.max_parallel_per_video, num_workers=num_workers
    )
    for edit in by_video.values():
        enter(edit, run, scheduler, progress)
    watch = Watch(progress=progress, num_workers=num_workers, timeline=timeline)
    stages = StagesSpec(
        factory="pipeline.stages:EditStages", kwargs={"size": run.size, "editor_factory": run.editor_factory}
    )
    pool = WorkerPool(stages=stages, num_workers=num_workers, num_gpus=1.0 if ray_resources().get("GPU") else 0.0)
    started = time.time()
    try:
        result = run_tasks(scheduler, pool, on_event=watch)
    except WorkersUnavailable as error:
        raise RunError(str(error)) from error
    failures = []
    for status in result.videos:
        edit = by_video[status.video]
        edit.generated = watch.generated[status.video]
        seconds = time.time() - started
        if status.failure is None:
            assert edit.store is not None
            output = edit.store.url_of(edit.store.read_json("record.json")["output"])
            edit.outcome = outcome(edit, status="done", output=output, seconds=seconds)
            continue
        assert status.failed_task is not None
        task = status.failed_task
        segment = edit.plan[task.index] if task.kind != "assemble" else None
        failure = Failure(
            video=status.video,
            stage=task.kind,
            start_frame=segment.start_frame if segment else None,
            end_frame=segment.end_frame if segment else None,
            error_type=status.failure.error_type,
            message=status.failure.message,
            attempts=status.attempts,
        )
        failures.append(failure)
        edit.outcome = outcome(
            edit, status="quarantined", error_type=failure.error_type, error=failure.message, seconds=seconds
        )
    return failures


def enter(edit: VideoEdit, run: EditRun, scheduler: Scheduler, progress: Progress) -> None:
    """Write the edit's spec and frozen plan, and give the scheduler what is left to do of it."""
    assert edit.spec is not None
    assert edit.store is not None
    edit.plan = freeze_plan(edit.store, planned(edit, run))
    # The spec decides the folder's name; beside it stands how to load the editor and where the prepared tables are.
    edit.store.write_json(
        "spec.json", {"spec": edit.spec.to_json(), "preset": edit.row.preset, "prepared": edit.prepared_id}
    )
    committed = committed_segments(edit.store / "latents")
    suffix = f".{run.size}.mp4"
    chunks = {int(name[len("segment-") : -len(suffix)]) for name in (edit.store / "chunks").names(suffix)}
    done: set[tuple[TaskKind, int]] = {("edit", index) for index in committed}
    done |= {("render", index) for index in chunks & committed}
    scheduler.add_video(
        VideoPlan(
            video=edit.row.id,
            edit_url=edit.store.url,
            dependencies=tuple(tuple(memory.segment for memory in row.memory) for row in edit.plan),
            costs=(1.0,) * len(edit.plan),
        ),
        done=done,
        failures=AttemptLedger(edit.store / "attempts").failures(video=edit.row.id, edit_url=edit.store.url),
    )
    progress.video_planned(edit.row.id, len(edit.plan), len(committed))


def outcome(edit: VideoEdit, *, status: Status, **values: Any) -> VideoOutcome:
    return VideoOutcome(
        id=edit.row.id,
        source=edit.row.source,
        status=status,
        edit_id=edit.spec.edit_id if edit.spec else "",
        edit_url=edit.store.url if edit.store else "",
        **{"segments": len(edit.plan), "generated_segments": edit.generated, **values},
    )


def fail(edit: VideoEdit, failure: Failure) -> Failure:
    """End a video before it has segments to edit."""
    edit.outcome = outcome(edit, status="failed", error_type=failure.error_type, error=failure.message)
    return failure
