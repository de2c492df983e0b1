"""`memory-v2v status`: what a workspace holds, and how far every edit is."""

from dataclasses import asdict, dataclass

import tyro

from jobs.console import command_error, print_json, result_stream
from pipeline.status import workspace_status
from retrieval.store import Store, StoreError


@dataclass(frozen=True, kw_only=True)
class StatusCommand:
    """Show every edit of a workspace: done, incomplete, failed or quarantined, with its segments and its output."""

    workspace: str
    """Folder or URL given to `memory-v2v edit`."""
    json: bool = False
    """Print one JSON object {"videos": [...]} on the last line of standard output."""


def main(argv: list[str]) -> int:
    command = tyro.cli(StatusCommand, args=argv, prog="memory-v2v status")
    with result_stream() as stream:
        workspace = Store(command.workspace)
        try:
            if not (workspace / "videos").names() and not (workspace / "runs").names():
                raise ValueError(f"--workspace {command.workspace}: holds no videos and no runs")
            edits = workspace_status(workspace)
        except (ValueError, StoreError) as error:
            return command_error("status", error)
        if command.json:
            print_json(stream, {"videos": [asdict(edit) for edit in edits]})
            return 0
        for edit in edits:
            detail = edit.output or (f"{edit.error_type}: {edit.error}" if edit.error_type else "")
            print(
                f"{edit.status:<11}  {edit.id}  {edit.edit_id or '-':<16}  "
                f"{edit.committed_segments}/{edit.segments} segments  {detail}",
                file=stream,
            )
    return 0
