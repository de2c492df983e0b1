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
from torch import Tensor

from benchmarks.provenance import provenance, write_result
from model.codec import PatchCodec
from model.presets import resolve_preset
from model.training.codec_fit import fit_codec, noise_videos, world_videos
from model.training.start import CODEC_SEED
from model.training.worlds import edited_attribute, make_world, render
from model.weights import load_codec
from pipeline.evaluation.suite import (
    ABSENCE_SEGMENTS,
    MIN_VISIBLE_SHARE,
    PRESENCE_FRAMES,
    SEGMENT_FRAMES,
    SHORT_SEGMENTS,
    returns,
    visits,
)

FIRST_SEED = 3_000_000


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Options of the benchmark.

    Attributes:
        out: folder for the Markdown report.
        presets: whose codecs are measured.
        videos: how many.
        num_codec_worlds: a codec is fitted on.
    """

    out: Path = Path("benchmarks/results")
    presets: tuple[str, ...] = ("tiny",)
    videos: int = 12
    num_codec_worlds: int = 80
    size: tuple[int, int] = (64, 64)


@dataclass(frozen=True, kw_only=True)
class Video:
    """Edited frames in [0, 1] and target of every segment that shows it."""

    edited: list[Tensor]
    target: list[Tensor]
    mask: list[Tensor]


def draw_videos(count: int, size: tuple[int, int]) -> list[Video]:
    """Recolouring videos of 14 segments whose object leaves and returns, as in the suite "long-edit"."""
    found: list[Video] = []
    seed = FIRST_SEED
    while len(found) < count:
        frames = SHORT_SEGMENTS * SEGMENT_FRAMES
        world = make_world(
            seed, split="train", num_frames=frames, task="recolour",
            absence_segments=ABSENCE_SEGMENTS[SHORT_SEGMENTS], presence_frames=PRESENCE_FRAMES[SHORT_SEGMENTS],
        )  # fmt: skip
        seed += 1
        truth = render(world, 0, frames, size=size)
        seen = visits(truth.target)
        if not returns(seen):
            continue
        edited, target, mask = (part.split(SEGMENT_FRAMES) for part in (truth.edited, truth.target, truth.mask))
        found.append(
            Video(
                edited=[edited[i].float() / 255 for i in seen],
                target=[target[i] for i in seen],
                mask=[mask[i] for i in seen],
            )
        )
    return found


def coded(codec: PatchCodec, frames: Tensor) -> Tensor:
    video = rearrange(frames, "t h w c -> 1 c t h w")
    return rearrange(codec.decode(codec.encode(video))[0], "c t h w -> t h w c").clamp(0, 1)


def floor(videos: Sequence[Video], codec: PatchCodec | None) -> tuple[float, float]:
    """Mean distance from the first segment, and mean absolute error in the edited region; without a codec those of the truth."""
    distances, errors = [], []
    for video in videos:
        looks = []
        for frames, target, mask in zip(video.edited, video.target, video.mask, strict=True):
            after = frames if codec is None else coded(codec, frames)
            looks.append(edited_attribute(after, target))
            if float(mask.float().mean()) > MIN_VISIBLE_SHARE:
                errors.append(float((after - frames).abs()[mask].mean()))
        distances.append(statistics.fmean(float(torch.linalg.vector_norm(look - looks[0])) for look in looks[1:]))
    return statistics.fmean(distances), statistics.fmean(errors)


def main() -> None:
    options = tyro.cli(Benchmark, description=__doc__)
    videos = draw_videos(options.videos, options.size)
    worlds = list(world_videos(options.num_codec_worlds, seed=CODEC_SEED, size=options.size))
    noise = list(noise_videos(options.num_codec_worlds // 2, seed=0, size=options.size))
    codecs: dict[str, PatchCodec | None] = {"the truth, not coded": None}
    codecs |= {f"of `{name}`": load_codec(resolve_preset(name).components["codec"]) for name in options.presets}
    codecs |= {
        f"fitted, groups of {frames}": fit_codec([*worlds, *noise], group_frames=frames, num_shared=24)
        for frames in (4, 2)
    }
    rows = []
    for name, codec in codecs.items():
        distance, error = floor(videos, codec)
        rows.append(f"| {name} | {distance:.4f} | {error:.4f} |")
        print(rows[-1], flush=True)
    text = "\n".join(
        [
            "# What a codec leaves of the truth",
            "",
            provenance(command="python -m benchmarks.codec_floor", packages=("torch",)),
            "",
            f"{options.videos} recolouring videos of {SHORT_SEGMENTS} segments at {options.size[0]}x{options.size[1]} px, train split, from seed "
            f"{FIRST_SEED}; fitted on {len(worlds)} videos of worlds and {len(noise)} of noise, as `train` does. Distance: RGB, "
            "of the object's mean colour from that in the first segment that shows it. Error: mean absolute difference in the edited region.",
            "",
            "| codec | distance | error |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )
    write_result("codec_floor", text, out=options.out)


if __name__ == "__main__":
    main()
