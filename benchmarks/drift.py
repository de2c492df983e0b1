"""How much a segment makes of what it remembers: the gain that, above one, makes chains of segments drift.

    python -m benchmarks.drift --presets tiny --out benchmarks/results

Of rendered recolouring videos (train split, seeds that no training uses) the second segment that shows the object is edited with the first one as its
memory: the TRUTH of it, or half of the truth's change. Gain: the part of that change which the edit makes, measured on the object's mean
colour. A network that copies has 1 at both; one that has learned what a whole edit looks like has more at half, and every segment of a chain
is then edited more fully than the one before.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from benchmarks.provenance import write_report
from benchmarks.recolouring import described, draw_videos
from model.memory import BASE_KERNEL
from model.presets import load_editor
from model.training.worlds import edited_attribute
from model.types import Editor, EditRequest, MemoryVideo
from pipeline.evaluation.suite import SEGMENT_FRAMES, Truth, visits

STRENGTHS = (0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Options of the benchmark.

    Attributes:
        out: folder for the Markdown report.
        presets: names or folders, on the linear codec.
        videos: how many.
        size: height and width of all of them, in px.
    """

    out: Path = Path("benchmarks/results")
    presets: tuple[str, ...] = ("tiny",)
    videos: int = 12
    size: tuple[int, int] = (64, 64)


def edit_after_truth(
    editor: Editor, instruction: str, truth: Truth, *, strength: float, seed: int
) -> tuple[float, float]:
    """Gain, and the distance (RGB) of the object's mean colour from what memory said it would be."""
    before, now = visits(truth.target)[:2]
    remembered, part = (slice(n * SEGMENT_FRAMES, (n + 1) * SEGMENT_FRAMES) for n in (before, now))
    source, edited = editor.encode(truth.source[remembered]), editor.encode(truth.edited[remembered])
    memory = MemoryVideo(
        role="previous" if now == before + 1 else "retrieved", kernel=BASE_KERNEL,
        edited=torch.lerp(source, edited, strength), source=source,
    )  # fmt: skip
    request = EditRequest(
        instruction=instruction, source=editor.encode(truth.source[part]), memory=(memory,), seed=seed
    )
    frames = editor.decode(editor.edit(request).latent).clamp(0, 1)
    start, end = (
        edited_attribute(video[part].float() / 255, truth.target[part]) for video in (truth.source, truth.edited)
    )
    wanted, made = strength * (end - start), edited_attribute(frames, truth.target[part]) - start
    return float(made @ wanted / (wanted @ wanted)), float(torch.linalg.vector_norm(made - wanted))


def rows_of(preset: str, videos: Sequence[tuple[str, Truth]]) -> list[str]:
    editor = load_editor(preset)
    rows = []
    for strength in STRENGTHS:
        found = [
            edit_after_truth(editor, instruction, truth, strength=strength, seed=seed)
            for seed, (instruction, truth) in enumerate(videos)
        ]
        gain, distance = (statistics.fmean(values) for values in zip(*found, strict=True))
        rows.append(f"| {preset} ({editor.weights_revision[:8]}) | {strength} | {gain:.3f} | {distance:.3f} |")
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    options = tyro.cli(Benchmark, description=__doc__)
    videos = draw_videos(options.videos, options.size)
    rows = [row for preset in options.presets for row in rows_of(preset, videos)]
    write_report(
        "drift",
        title="How much a segment makes of what it remembers",
        packages=("torch",),
        out=options.out,
        lines=[
            f"{described(options.videos, options.size)} Memory: the first segment that shows the object, edited by such a part of the truth's change. Gain: the part of it that the "
            "next one makes. Distance: RGB, of the object's mean colour from what memory said.",
            "",
            "| weights | part | gain | distance |",
            "|---|---|---|---|",
            *rows,
        ],
    )


if __name__ == "__main__":
    main()
