"""`memory-v2v evaluate`: how good the edits of a preset are, where the truth is known."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from jobs.console import command_error, print_json, result_stream
from jobs.edit import default_address
from model.training.scene import Split
from pipeline.progress import Progress
from pipeline.run_record import RunError
from pipeline.versions import describe_machine
from retrieval.store import StoreError


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Edit held-out rendered videos by several methods on the pipeline's own path, and measure them against the truth.

    Writes metrics.parquet, report.md, report.html, plots and filmstrips into --out. A stopped evaluation goes on where it
    was; more methods cost only their own edits. 24 videos by the three usual methods with the preset tiny, 592 segments a
    method, took 18 minutes on two shared cores, measuring included (2026-11-26): the first two rows of table-a for 32 videos
    are 13 to 18 minutes.

    A method is written METHOD[@PRESET][:kernels=anchored|dynamic|fine|coarse][:merging=off|merge-low|merge-high|discard-low|discard-high]
    [:share=0.5][:source=on|off]. METHOD is what a segment remembers: nothing (independent), the previous segment alone
    (previous), it and the --top-k most alike (memory), the latest (recent) or any (random) of the others. share is the share
    of memory frames that merging takes; source=off hides the source latents of memories from the network, also written
    memory-edited-only. Examples: memory@FOLDER, memory:kernels=fine, memory:merging=discard-low:share=0.3.
    """

    out: Path
    """Folder for everything the evaluation makes."""
    suite: Literal["long-edit"] = "long-edit"
    """long-edit: objects leave the view and return, one video in four has more than 900 frames."""
    preset: str = "tiny"
    """Model preset or folder; of several, with commas between, the first edits by all methods, the others by "memory" (as the rows
    memory@PRESET)."""
    methods: str = "independent,previous,memory"
    """Comma-separated, as above; table-a and table-b stand for the rows that compare what is remembered, and how it is tokenized.
    "do-nothing" and "truth" are always rows of the tables."""
    videos: int = 32
    tasks: str = "recolour,recolour,hat,restyle"
    """Comma-separated, taken in turn: recolour, hat, remove, reshape, restyle, and those of the paper's project page (orange, door,
    person_hat, jacket, macaw, clear_glasses, sunglasses, other_hat). The bundled weights have trained on all; the default ones are measured."""
    seed: int = 0
    """Draws the videos and the edits; any seed gives fresh, held-out worlds."""
    split: Split = "heldout"
    """Whose kinds of things the worlds have. Choose settings and weights on "train" (fresh worlds, but of the kinds that the weights
    were trained on), so that the held-out figures stay unseen."""
    top_k: int = 3
    """Earlier segments remembered beside the previous one."""
    frame_embedder: str | None = None
    """Also measure clip_f, the likeness of consecutive frames, by these image embeddings: bundled, an open_clip name
    (MODEL:PRETRAINED), or a folder."""
    dino: str | None = None
    """Also measure dino_f, the same by a DINO: ARCHITECTURE:FILE, a timm model and its weights."""
    lpips: Path | None = None
    """Also measure lpips, the learned distance from the truth: file of torchvision's AlexNet weights."""
    workers: int | None = None
    """Worker processes. Default: one per GPU, or one per CPU core where there is no GPU."""
    address: str | None = None
    """Ray: local, auto, or HOST:PORT."""
    json: bool = False
    """Print the folder and the means as one JSON object on the last line of standard output."""


def main(argv: list[str]) -> int:
    command = tyro.cli(EvaluateCommand, args=argv, prog="memory-v2v evaluate")
    from pipeline.evaluation.evaluate import Evaluation, evaluate
    from pipeline.evaluation.learned import LearnedMeasures
    from pipeline.evaluation.report import write_evaluation_report
    from pipeline.evaluation.tables import means

    began = time.time()
    with result_stream() as stream:
        try:
            evaluation = Evaluation(
                out=command.out,
                suite=command.suite,
                split=command.split,
                presets=listed(command.preset),
                methods=listed(command.methods),
                videos=command.videos,
                tasks=listed(command.tasks),
                seed=command.seed,
                top_k=command.top_k,
                learned=LearnedMeasures(clip=command.frame_embedder, dino=command.dino, lpips=command.lpips),
                workers=command.workers,
                address=command.address or default_address(),
            )
            with Progress() as progress:
                evaluated = evaluate(evaluation, progress)
            facts = f"{describe_machine()}; {time.time() - began:.0f} s in all."
            page = write_evaluation_report(evaluation, evaluated, provenance=facts)
        except (ValueError, StoreError, RunError) as error:
            return command_error("evaluate", error)
        if command.json:
            print_json(stream, {"out": str(command.out), "report": str(page), "means": means(evaluated.table)})
        else:
            print((command.out / "report.md").read_text(), file=stream)
            print(f"Open {page} in a browser.", file=stream)
    return 0


def listed(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (name.strip() for name in text.split(","))))
