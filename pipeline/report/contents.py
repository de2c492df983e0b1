"""What a workspace says about one run: its videos, their plans and records, its failures, and who worked when.

Reads tables and JSON only; pictures are `media.py`'s. A video whose files cannot be read is told as such and does not
cost the others their report.
"""

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from pipeline.tasks import TaskKind
from retrieval.commits import committed_segments
from retrieval.schema import PlannedSegment, plan_from_table
from retrieval.store import Store


@dataclass(frozen=True, kw_only=True)
class WorkedTask:
    """A row of `timeline.parquet`: a task that a worker finished in this run. `video` counts the rows of the results."""

    worker: str
    node: str
    kind: TaskKind
    video: int
    segment: int
    started_s: float
    finished_s: float


@dataclass(frozen=True, kw_only=True)
class VideoContents:
    """One row of `results.parquet` with what its edit's folder holds.

    Attributes:
        row: the row.
        folder: the edit's folder below the workspace; None if the video never came to an edit.
        instruction: of the last turn; "" if unknown.
        spec: the edit's identity; empty if unknown.
        record: content of `record.json`; empty while the edit is not assembled.
        plan: frozen plan; empty if there is none.
        committed: segments whose latents are committed.
        num_charged: failed attempts charged to its tasks since they were last cleared.
        problem: why the folder could not be read; "" if it could.
    """

    row: Mapping[str, Any]
    folder: str | None = None
    instruction: str = ""
    spec: Mapping[str, Any]
    record: Mapping[str, Any]
    plan: tuple[PlannedSegment, ...] = ()
    committed: frozenset[int] = frozenset()
    num_charged: int = 0
    problem: str = ""

    @property
    def id(self) -> str:
        return str(self.row["id"])

    @property
    def num_frames(self) -> int:
        """Frames of the video as far as known: of the record, else where the plan ends."""
        return int(self.record.get("num_frames") or (self.plan[-1].end_frame if self.plan else 0))

    @property
    def fps(self) -> float | None:
        return float(self.record["fps"]) if self.record.get("fps") else None

    @property
    def output_link(self) -> str | None:
        """The finished file, relative to the report."""
        if not self.row["output"] or self.folder is None:
            return None
        return "../../" + quote(f"{self.folder}/{posixpath.basename(str(self.row['output']))}")


@dataclass(frozen=True, kw_only=True)
class RunContents:
    """A run. `finished_s` is None while it goes on; times are unix seconds."""

    run_id: str
    run: Mapping[str, Any]
    started_s: float
    finished_s: float | None
    videos: tuple[VideoContents, ...]
    failures: tuple[Mapping[str, Any], ...]
    tasks: tuple[WorkedTask, ...]


def gather(workspace: Store, run_id: str) -> RunContents:
    folder = workspace / "runs" / run_id
    run = folder.read_json("run.json")
    rows = folder.read_table("results.parquet").to_pylist()
    with ThreadPoolExecutor(max_workers=8) as pool:  # waiting for an object store
        videos = tuple(pool.map(lambda row: read_video(workspace, row), rows))
    return RunContents(
        run_id=run_id,
        run=run,
        started_s=run["started_at"],
        finished_s=run.get("finished_at"),
        videos=videos,
        failures=tuple(optional_rows(folder, "failures.parquet")),
        tasks=worked_tasks(optional_rows(folder, "timeline.parquet"), [video.id for video in videos]),
    )


def optional_rows(folder: Store, name: str) -> list[dict[str, Any]]:
    return folder.read_table(name).to_pylist() if folder.exists(name) else []


def read_video(workspace: Store, row: Mapping[str, Any]) -> VideoContents:
    folder = edit_folder(row)
    if folder is None:
        return VideoContents(row=row, spec={}, record={})
    try:
        edit = workspace / folder
        spec = edit.read_json("spec.json")["spec"] if edit.exists("spec.json") else {}
        record = edit.read_json("record.json") if edit.exists("record.json") else {}
        plan = plan_from_table(edit.read_table("plan.parquet")) if edit.exists("plan.parquet") else []
        committed = committed_segments(edit / "latents")
        num_charged = len((edit / "attempts").names(".json"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return VideoContents(row=row, folder=folder, spec={}, record={}, problem=f"{type(error).__name__}: {error}")
    return VideoContents(
        row=row,
        folder=folder,
        instruction=str(spec["turns"][-1]["instruction"]) if spec else "",
        spec=spec,
        record=record,
        plan=tuple(sorted(plan, key=lambda segment: segment.segment)),
        committed=frozenset(committed),
        num_charged=num_charged,
    )


def edit_folder(row: Mapping[str, Any]) -> str | None:
    """The edit's folder below the workspace, also after the whole workspace was moved: the last four parts of its URL."""
    if row.get("edit_url"):
        parts = str(row["edit_url"]).rstrip("/").split("/")[-4:]
        if len(parts) == 4 and (parts[0], parts[2]) == ("videos", "edits"):
            return "/".join(parts)
    return f"videos/{row['id']}/edits/{row['edit_id']}" if row.get("edit_id") else None


def worked_tasks(rows: Iterable[Mapping[str, Any]], videos: Sequence[str]) -> tuple[WorkedTask, ...]:
    """In order of their start."""
    number_of = {video: number for number, video in enumerate(videos)}
    tasks = (
        WorkedTask(
            worker=str(row["worker"]),
            node=str(row["node"] or ""),
            kind=row["kind"],
            video=number_of[row["video"]],
            segment=row["segment"],
            started_s=row["started_at"],
            finished_s=row["finished_at"],
        )
        for row in rows
    )
    return tuple(sorted(tasks, key=lambda task: (task.started_s, task.worker)))
