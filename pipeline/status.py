"""What a workspace holds: every edit of every video, how far it is, and how it ended in the newest run that named it.

Reads only; needs neither Ray nor the models. `failed_videos` is what `retry-failed` works on.
"""

from dataclasses import dataclass
from typing import Any

from retrieval.commits import committed_segments
from retrieval.store import Store


@dataclass(frozen=True, kw_only=True)
class EditStatus:
    """One edit of one video. `status` is done, incomplete, failed or quarantined."""

    id: str
    source: str
    edit_id: str
    instruction: str
    status: str
    segments: int
    committed_segments: int
    output: str | None
    error_type: str | None
    error: str | None


def latest_outcomes(workspace: Store) -> dict[str, dict[str, Any]]:
    """Video id -> its row in the newest finished run that names it, with that run's id as `run_id`."""
    outcomes: dict[str, dict[str, Any]] = {}
    runs = workspace / "runs"
    for run_id in runs.names():
        if (runs / run_id).exists("results.parquet"):
            for row in (runs / run_id).read_table("results.parquet").to_pylist():
                outcomes[row["id"]] = {**row, "run_id": run_id}
    return outcomes


def workspace_status(workspace: Store) -> list[EditStatus]:
    """Every edit, in order of video and edit id; a video that failed before it had an edit comes with an empty edit id."""
    outcomes = latest_outcomes(workspace)
    found = []
    videos = workspace / "videos"
    for video in sorted({*videos.names(), *outcomes}):
        newest = outcomes.get(video, {})
        source = (videos / video).read_json("source.json")["uri"] if (videos / video).exists("source.json") else ""
        edits = videos / video / "edits"
        edit_ids = [name for name in edits.names() if (edits / name).exists("spec.json")]
        for edit_id in edit_ids:
            edit = edits / edit_id
            spec = edit.read_json("spec.json")["spec"]
            record = edit.read_json("record.json") if edit.exists("record.json") else None
            is_newest = newest.get("edit_id") == edit_id
            ended = newest["status"] if is_newest and newest["status"] in ("failed", "quarantined") else "incomplete"
            found.append(
                EditStatus(
                    id=video,
                    source=source,
                    edit_id=edit_id,
                    instruction=spec["turns"][-1]["instruction"],
                    status="done" if record else ended,
                    segments=edit.read_table("plan.parquet").num_rows if edit.exists("plan.parquet") else 0,
                    committed_segments=len(committed_segments(edit / "latents")),
                    output=edit.url_of(record["output"]) if record else None,
                    error_type=newest["error_type"] if is_newest and not record else None,
                    error=newest["error"] if is_newest and not record else None,
                )
            )
        if not edit_ids and newest.get("status") == "failed":
            found.append(
                EditStatus(
                    id=video,
                    source=source or newest["source"],
                    edit_id="",
                    instruction="",
                    status="failed",
                    segments=0,
                    committed_segments=0,
                    output=None,
                    error_type=newest["error_type"],
                    error=newest["error"],
                )
            )
    return found


def failed_videos(workspace: Store) -> dict[str, list[str]]:
    """Run id -> ids of the videos whose newest outcome, failed or quarantined, is in that run."""
    failed: dict[str, list[str]] = {}
    for video, outcome in latest_outcomes(workspace).items():
        if outcome["status"] in ("failed", "quarantined"):
            failed.setdefault(outcome["run_id"], []).append(video)
    return failed
