"""`memory-v2v evaluate`: how good the edits of a preset are, where the truth is known."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from jobs.console import command_error, print_json, result_stream
from jobs.edit import default_address
from pipeline.progress import Progress
from pipeline.run_record import RunError
from pipeline.versions import describe_machine
from retrieval.store import StoreError


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Edit held-out rendered videos by several methods on the pipeline's own path, and measure them against the truth.

    Writes metrics.parquet, report.md, report.html, plots and filmstrips into --out. A stopped evaluation goes on where it
    was; more methods cost only their own edits. About 0.7 s a segment on two cores: 768 segments a method with 32 videos.
    """

    out: Path
    """Folder for everything the evaluation makes."""
    suite: Literal["long-edit"] = "long-edit"
    """long-edit: objects leave the view and return, one video in four has more than 900 frames."""
    preset: str = "tiny"
    """Model preset or folder."""
    methods: str = "independent,previous,memory"
    """Comma-separated: independent, previous, recent, random, memory. "do-nothing" and "truth" are always rows of the tables."""
    videos: int = 32
    seed: int = 0
    """Draws the videos and the edits; any seed gives fresh, held-out worlds."""
    top_k: int = 3
    """Earlier segments remembered beside the previous one."""
    workers: int | None = None
    """Worker processes. Default: one per GPU, or one per CPU core where there is no GPU."""
    address: str | None = None
    """Ray: local, auto, or HOST:PORT."""
    json: bool = False
    """Print the folder and the means as one JSON object on the last line of standard output."""


def main(argv: list[str]) -> int:
    command = tyro.cli(EvaluateCommand, args=argv, prog="memory-v2v evaluate")
    from pipeline.evaluation.evaluate import Evaluation, evaluate
    from pipeline.evaluation.report import write_evaluation_report
    from pipeline.evaluation.tables import METRICS, per_video

    began = time.time()
    with result_stream() as stream:
        try:
            evaluation = Evaluation(
                out=command.out,
                suite=command.suite,
                preset=command.preset,
                methods=tuple(filter(None, (name.strip() for name in command.methods.split(",")))),
                videos=command.videos,
                seed=command.seed,
                top_k=command.top_k,
                workers=command.workers,
                address=command.address or default_address(),
            )
            with Progress() as progress:
                suite, table, edits = evaluate(evaluation, progress)
            facts = f"{describe_machine()}; {time.time() - began:.0f} s in all."
            page = write_evaluation_report(evaluation, suite, table, edits, provenance=facts)
        except (ValueError, StoreError, RunError) as error:
            return command_error("evaluate", error)
        if command.json:
            means = {
                metric: {
                    method: sum(values.values()) / len(values) for method, values in per_video(table, metric).items()
                }
                for metric in METRICS
            }
            print_json(stream, {"out": str(command.out), "report": str(page), "means": means})
        else:
            print((command.out / "report.md").read_text(), file=stream)
            print(f"Open {page} in a browser.", file=stream)
    return 0
