"""`memory-v2v retry-failed`: what failed or was quarantined is tried again, with the settings of the run it failed in."""

from dataclasses import dataclass, replace
from typing import Any

import tyro

from jobs.console import command_error, print_json, result_stream
from jobs.edit import workspace_url
from pipeline.progress import Progress
from pipeline.run import run_edit
from pipeline.run_record import RunError, forget_attempts, load_run
from pipeline.status import failed_videos
from retrieval.store import Store, StoreError


@dataclass(frozen=True, kw_only=True)
class RetryCommand:
    """Try again every video whose newest outcome is failed or quarantined. Committed segments are kept.

    Exit status: 0 all done (or nothing to retry), 1 some failed again, 2 the workspace is wrong.
    """

    workspace: str
    """Folder or URL given to `memory-v2v edit`."""
    workers: int | None = None
    """Worker processes; default as in the run that failed."""
    address: str | None = None
    """Ray; default as in the run that failed."""
    json: bool = False
    """Print the result as one JSON object on the last line of standard output."""


def main(argv: list[str]) -> int:
    command = tyro.cli(RetryCommand, args=argv, prog="memory-v2v retry-failed")
    workspace = Store(workspace_url(command.workspace))
    outcomes = []
    with result_stream() as stream:
        try:
            if not (workspace / "runs").names():
                raise ValueError(f"--workspace {command.workspace}: holds no runs")
            for run_id, videos in failed_videos(workspace).items():
                run = load_run(workspace, run_id)
                given: dict[str, Any] = {"workers": command.workers, "address": command.address}
                run = replace(
                    run,
                    workspace=workspace.url,
                    rows=tuple(row for row in run.rows if row.id in videos),
                    **{name: value for name, value in given.items() if value is not None},
                )
                forget_attempts(workspace, run_id, videos)
                with Progress() as progress:
                    outcomes.append(run_edit(run, progress))
        except (ValueError, StoreError, RunError) as error:
            return command_error("retry-failed", error)
        if command.json:
            videos_json = [video for outcome in outcomes for video in outcome.to_json()["videos"]]
            print_json(stream, {"run_id": outcomes[-1].run_id if outcomes else None, "videos": videos_json})
        else:
            print("\n".join(outcome.summary() for outcome in outcomes) or "nothing failed", file=stream)
    return max((outcome.exit_status for outcome in outcomes), default=0)
