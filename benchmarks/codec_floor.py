"""What a codec leaves of the truth: how consistent can an edit be that a network drew without a fault?

    python -m benchmarks.codec_floor --presets tiny --out benchmarks/results

The truth of rendered recolouring videos (train split, seeds that no training uses) is coded and decoded, and measured as an edit is: distance
of the object's colour from the first segment that shows it. Codecs of presets, and codecs fitted now as `memory-v2v train` fits them.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from einops import rearrange

from benchmarks.provenance import write_report
from benchmarks.recolouring import described, draw_videos
from model.codec import PatchCodec
from model.presets import resolve_preset
from model.training.codec_fit import fit_codec, fitting_videos
from model.training.segments import pixels
from model.training.worlds import edited_attribute
from model.weights import load_codec
from pipeline.evaluation.suite import MIN_VISIBLE_SHARE, SEGMENT_FRAMES, Truth, visits


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Options of the benchmark.

    Attributes:
        out: folder for the Markdown report.
        presets: whose codecs are measured.
        videos: how many.
        num_codec_worlds: a codec is fitted on.
        size: height and width of all of them, in px.
    """

    out: Path = Path("benchmarks/results")
    presets: tuple[str, ...] = ("tiny",)
    videos: int = 12
    num_codec_worlds: int = 80
    size: tuple[int, int] = (64, 64)


def floor(truths: Sequence[Truth], codec: PatchCodec | None) -> tuple[float, float]:
    """Mean distance from the first segment, and mean absolute error in the edited region; without a codec those of the truth."""
    distances, errors = [], []
    for truth in truths:
        looks = []
        for number in visits(truth.target):
            part = slice(number * SEGMENT_FRAMES, (number + 1) * SEGMENT_FRAMES)
            video, mask = pixels(truth.edited[part]), truth.mask[part]
            coded = video if codec is None else codec.decode(codec.encode(video)).clamp(0, 1)
            frames, after = (rearrange(item, "1 c t h w -> t h w c") for item in (video, coded))
            looks.append(edited_attribute(after, truth.target[part]))
            if float(mask.float().mean()) > MIN_VISIBLE_SHARE:
                errors.append(float((after - frames).abs()[mask].mean()))
        distances.append(statistics.fmean(float(torch.linalg.vector_norm(look - looks[0])) for look in looks[1:]))
    return statistics.fmean(distances), statistics.fmean(errors)


def main() -> None:
    options = tyro.cli(Benchmark, description=__doc__)
    truths = [truth for _, truth in draw_videos(options.videos, options.size)]
    fitting = fitting_videos(options.num_codec_worlds, seed=0, size=options.size)
    codecs: dict[str, PatchCodec | None] = {"the truth, not coded": None}
    codecs |= {f"of `{name}`": load_codec(resolve_preset(name).components["codec"]) for name in options.presets}
    codecs |= {f"fitted, groups of {frames}": fit_codec(fitting, group_frames=frames) for frames in (4, 2)}
    rows = []
    for name, codec in codecs.items():
        distance, error = floor(truths, codec)
        rows.append(f"| {name} | {distance:.4f} | {error:.4f} |")
        print(rows[-1], flush=True)
    write_report(
        "codec_floor",
        title="What a codec leaves of the truth",
        packages=("torch",),
        out=options.out,
        lines=[
            f"{described(options.videos, options.size)} Codecs fitted on {options.num_codec_worlds} worlds and noise, as `train` does. "
            "Distance: RGB, of the object's mean colour from that in the first segment that shows it. Error: mean absolute difference in the edited region.",
            "",
            "| codec | distance | error |",
            "|---|---|---|",
            *rows,
        ],
    )


if __name__ == "__main__":
    main()
