"""`memory-v2v edit`: long videos in, consistently edited long videos out."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Literal

import tyro

from jobs.console import command_error, print_json, result_stream
from model.memory import KernelChoice, MemorySettings, MergingChoice
from pipeline.manifest import ManifestRow, load_manifest, rows_from_sources
from pipeline.plan import Method
from pipeline.progress import Progress
from pipeline.run import run_edit
from pipeline.run_record import EditRun, RunError
from retrieval.store import StoreError


@dataclass(frozen=True, kw_only=True)
class EditCommand:
    """Edit long videos by instruction, consistently from the first segment to the last.

    Either name sources and one --instruction, or give a --manifest (JSONL, CSV or Parquet; columns source, instruction and
    optionally id, seed, preset). A run may be stopped or killed at any moment: the same command goes on where it was.
    Exit status: 0 all done, 1 some videos failed, 2 the command or the manifest is wrong.
    """

    source: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Videos to edit: paths or URLs (s3://, gs://, https://)."""
    workspace: str
    """Folder or URL that holds everything the run makes; made if it is not there."""
    instruction: str | None = None
    """What to do to the sources, e.g. "change the red ball to blue"."""
    manifest: str | None = None
    """Table of videos, instead of SOURCE and --instruction."""
    preset: str = "tiny"
    """Model preset or folder; a manifest row may name its own."""
    seed: int = 0
    """Seed of the edit; a manifest row may name its own."""
    workers: int | None = None
    """Worker processes. Default: one per GPU, or one per CPU core where there is no GPU."""
    address: str | None = None
    """Ray: local (a private one), auto (the running cluster), or HOST:PORT. Default: auto inside a Ray job, else local."""
    size: Literal["source", "model"] = "source"
    """source carries the edit up to the source's resolution; model writes the editor's own frames."""
    top_k: int = 3
    """Earlier segments retrieved for each segment, beside the previous one."""
    method: Method = "memory"
    """What a segment remembers: the previous and the most alike segments (memory), nothing, the previous alone, or the previous
    and the latest (recent) or any others (random)."""
    kernels: KernelChoice = "anchored"
    """How finely memories are tokenized: finest the most relevant of the retrieved (anchored), or the previous segment (dynamic, the
    paper's), the others by relevance; or all as finely or as coarsely as can be."""
    merging: MergingChoice | None = None
    """Which memory frames are merged or discarded inside the network, by how little (low) or how much (high) the target
    responds to them; off: none. Default: as the preset says."""
    merging_share: float | None = None
    """Share of the memory frames that --merging takes at each of its blocks. Default: 0.5."""
    max_attempts: int = 3
    """Attempts at a segment before its video is quarantined."""
    max_parallel_per_video: int | None = None
    """Segments of one video edited at a time; 1 is the paper's strictly sequential order. Default: no limit."""
    embedder: str = "bundled"
    """What compares source segments: bundled, an open_clip name (MODEL:PRETRAINED), or a folder."""
    dry_run: bool = False
    """Prepare and print the plan (segments, dependency depth, expected time); generate nothing."""
    json: bool = False
    """Print the result as one JSON object on the last line of standard output."""


def manifest_rows(command: EditCommand) -> list[ManifestRow]:
    if command.manifest and (command.source or command.instruction is not None):
        raise ValueError("--manifest stands instead of SOURCE and --instruction; give one or the other")
    if command.manifest:
        return load_manifest(command.manifest, preset=command.preset, seed=command.seed)
    if not command.source:
        raise ValueError("nothing to edit: name at least one SOURCE with --instruction, or give --manifest")
    if command.instruction is None:
        raise ValueError("--instruction is missing: say what to do to the sources")
    return rows_from_sources(command.source, command.instruction, preset=command.preset, seed=command.seed)


def workspace_url(workspace: str) -> str:
    """Workers may run in another folder: a local workspace is named by its absolute path."""
    return workspace if "://" in workspace else str(Path(workspace).absolute())


def default_address() -> str:
    """A job submitted to a cluster finds it in RAY_ADDRESS; otherwise a private Ray is started."""
    return "auto" if os.environ.get("RAY_ADDRESS") else "local"


def main(argv: list[str]) -> int:
    command = tyro.cli(EditCommand, args=argv, prog="memory-v2v edit")
    with result_stream() as stream:
        try:
            run = EditRun(
                workspace=workspace_url(command.workspace),
                rows=tuple(manifest_rows(command)),
                size=command.size,
                top_k=command.top_k,
                method=command.method,
                memory=MemorySettings(
                    kernels=command.kernels, merging=command.merging, merging_share=command.merging_share
                ),
                max_attempts=command.max_attempts,
                max_parallel_per_video=command.max_parallel_per_video,
                workers=command.workers,
                address=command.address or default_address(),
                embedder=command.embedder,
                dry_run=command.dry_run,
            )
        except ValueError as error:
            return command_error("edit", error)
        return report_run(run, stream, is_json=command.json)


def report_run(run: EditRun, stream: IO[str], *, is_json: bool) -> int:
    """Do the run, print what became of it, give the exit status."""
    try:
        with Progress() as progress:
            outcome = run_edit(run, progress)
    except (ValueError, StoreError, RunError) as error:
        return command_error("edit", error)
    if is_json:
        print_json(stream, outcome.to_json())
    else:
        print(outcome.summary(), file=stream)
    return outcome.exit_status
