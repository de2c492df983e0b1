"""What a run is asked to do, what became of it, and how both are written down in `runs/<run_id>/` (docs/data.md).

Plain records and tables; does nothing. `load_run` reads back what an earlier run was asked, for `retry-failed`.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pyarrow as pa

from model.memory import MemorySettings
from pipeline.ledger import AttemptLedger
from pipeline.manifest import ManifestRow
from pipeline.plan import Method
from pipeline.versions import package_versions
from retrieval.store import Store

Status = Literal["done", "skipped", "failed", "quarantined", "planned"]

RESULT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("status", pa.string()),
        ("edit_id", pa.string()),
        ("edit_url", pa.string()),
        ("output", pa.string()),
        ("segments", pa.int32()),
        ("generated_segments", pa.int32()),
        ("error_type", pa.string()),
        ("error", pa.string()),
        ("seconds", pa.float64()),
    ]
)

FAILURE_SCHEMA = pa.schema(
    [
        ("video", pa.string()),
        ("stage", pa.string()),
        ("start_frame", pa.int64()),
        ("end_frame", pa.int64()),
        ("error_type", pa.string()),
        ("message", pa.string()),
        ("attempts", pa.int32()),
    ]
)

TIMELINE_SCHEMA = pa.schema(
    [
        ("video", pa.string()),
        ("kind", pa.string()),
        ("segment", pa.int32()),
        ("worker", pa.string()),
        ("node", pa.string()),
        ("started_at", pa.float64()),
        ("finished_at", pa.float64()),
    ]
)


class RunError(RuntimeError):
    """The run as a whole cannot go on: the message says why. What was committed stays."""


@dataclass(frozen=True, kw_only=True)
class EditRun:
    """Everything a run is asked to do. `editor_factory` is "module:callable", for editors that are no preset."""

    workspace: str
    rows: tuple[ManifestRow, ...]
    size: Literal["source", "model"] = "source"
    top_k: int = 3
    method: Method = "memory"
    memory: MemorySettings = field(default_factory=MemorySettings)
    max_attempts: int = 3
    max_parallel_per_video: int | None = None
    workers: int | None = None
    address: str = "local"
    embedder: str = "bundled"
    dry_run: bool = False
    editor_factory: str = "model.presets:load_editor"

    def __post_init__(self) -> None:
        for name, least in (("top_k", 0), ("max_attempts", 1), ("workers", 1), ("max_parallel_per_video", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; needs at least {least}")


@dataclass(frozen=True, kw_only=True)
class VideoOutcome:
    """What became of one video; a row of `results.parquet` and an element of the JSON result."""

    id: str
    source: str
    status: Status
    edit_id: str = ""
    edit_url: str = ""
    output: str | None = None
    segments: int = 0
    generated_segments: int = 0
    error_type: str | None = None
    error: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A row of `failures.parquet`. The span is in frames of the source, None where the failure is of the whole video."""

    video: str
    stage: str
    start_frame: int | None = None
    end_frame: int | None = None
    error_type: str
    message: str
    attempts: int


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    run_id: str
    workspace: str
    videos: tuple[VideoOutcome, ...]
    report: str | None = None
    plan_table: str | None = None

    @property
    def exit_status(self) -> int:
        return int(any(video.status in ("failed", "quarantined") for video in self.videos))

    def to_json(self) -> dict[str, Any]:
        names = ("id", "source", "status", "output", "segments", "generated_segments", "error_type", "error")
        return {
            "run_id": self.run_id,
            "videos": [{name: getattr(video, name) for name in names} for video in self.videos],
        }

    def summary(self) -> str:
        lines = [self.plan_table] if self.plan_table else []
        for video in self.videos:
            text = {
                "done": f"{video.output} ({video.generated_segments} of {video.segments} segments generated)",
                "skipped": f"nothing to do, finished before: {video.output}",
                "planned": f"{video.segments} segments planned",
            }.get(video.status, f"{video.error_type}: {video.error}")
            lines.append(f"{video.status:<11}  {video.id}  {text}")
        if self.report:
            lines.append(f"report       {self.report}")
        return "\n".join(lines)


def load_run(workspace: Store, run_id: str) -> EditRun:
    """The settings of an earlier run of this workspace."""
    command = (workspace / "runs" / run_id).read_json("run.json")["command"]
    rows = tuple(ManifestRow(**row) for row in command["rows"])
    return EditRun(**{**command, "rows": rows, "memory": MemorySettings(**command.get("memory", {}))})


def forget_attempts(workspace: Store, run_id: str, videos: Collection[str]) -> None:
    """Clear what is charged to the edits of these videos in that run; `failures.parquet` keeps what happened."""
    for row in (workspace / "runs" / run_id).read_table("results.parquet").to_pylist():
        if row["id"] in videos and row["edit_id"]:
            AttemptLedger(workspace / "videos" / row["id"] / "edits" / row["edit_id"] / "attempts").clear()


def start_run(workspace: Store, run_id: str, run: EditRun, started: float) -> None:
    (workspace / "runs" / run_id).write_json("run.json", run_record(run_id, run, started, finished=None))


def finish_run(
    workspace: Store,
    run_id: str,
    run: EditRun,
    started: float,
    outcomes: Sequence[VideoOutcome],
    failures: Sequence[Failure],
    timeline: list[dict[str, Any]],
) -> None:
    """Everything of the run; `run.json` with its end comes last."""
    folder = workspace / "runs" / run_id
    folder.write_table("results.parquet", pa.Table.from_pylist([asdict(row) for row in outcomes], schema=RESULT_SCHEMA))
    folder.write_table(
        "failures.parquet", pa.Table.from_pylist([asdict(row) for row in failures], schema=FAILURE_SCHEMA)
    )
    folder.write_table("timeline.parquet", pa.Table.from_pylist(timeline, schema=TIMELINE_SCHEMA))
    folder.write_json("run.json", run_record(run_id, run, started, finished=time.time()))


def run_record(run_id: str, run: EditRun, started: float, *, finished: float | None) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "command": asdict(run),
        "started_at": started,
        "finished_at": finished,
        "versions": package_versions(),
    }
