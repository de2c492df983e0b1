"""Training data as codec latents: segments of rendered worlds, made once and kept.

Segments follow the pipeline's own rules: they never span a cut, and a remainder is padded by repeating its last frame.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from model.codec import PatchCodec
from model.training.scene import Split
from model.training.worlds import make_world, render
from model.wan import WanCodec

VideoCodec = PatchCodec | WanCodec

WORLD_FRAMES = 102


@dataclass(frozen=True, kw_only=True)
class Segments:
    """All cached segments of one frame size. Row i of every tensor is one segment."""

    source: Float[Tensor, "n c t h w"]
    edited: Float[Tensor, "n c t h w"]
    mask: Bool[Tensor, "n t h w"]
    world: Int[Tensor, "n"]
    shot: Int[Tensor, "n"]
    """Shot number within the world; consecutive rows of one shot are consecutive segments."""
    instructions: dict[int, str]
    is_generated: Bool[Tensor, "n"] | None = None
    """Continuations that a network made (`model.training.extension`): memories, never targets. None: there are none."""

    def __len__(self) -> int:
        return len(self.world)


def render_world(
    seed: int,
    *,
    codec: VideoCodec,
    size: tuple[int, int],
    segment_frames: int,
    num_frames: int = WORLD_FRAMES,
    split: Split = "train",
) -> dict[str, Tensor | str | int]:
    """Latents of every segment of one world, split at its cuts, remainders padded by their last frame."""
    world = make_world(seed, split=split, num_frames=num_frames)
    sources: list[Tensor] = []
    edits: list[Tensor] = []
    masks, shots = [], []
    bounds = [0, *world.cuts, world.num_frames]
    for shot, (first, last) in enumerate(pairwise(bounds)):
        for start in range(first, last, segment_frames):
            frames = render(world, start, min(start + segment_frames, last), size=size)
            for latents, video in ((sources, frames.source), (edits, frames.edited)):
                latents.append(encode(codec, pixels(padded(video, segment_frames))))
            masks.append(latent_mask(padded(frames.mask, segment_frames), codec))
            shots.append(shot)
    return {
        "source": torch.stack(sources),
        "edited": torch.stack(edits),
        "mask": torch.stack(masks),
        "shot": torch.tensor(shots),
        "instruction": world.instruction,
        "seed": seed,
    }


def padded(frames: Tensor, num_frames: int) -> Tensor:
    """The last frame repeated where there are fewer."""
    return frames[torch.arange(num_frames).clamp_max(len(frames) - 1)]


def pixels(video: UInt8[Tensor, "T H W 3"]) -> Float[Tensor, "1 3 T H W"]:
    """Frames as a codec takes them, in [0, 1]."""
    return rearrange(video.float() / 255, "t h w c -> 1 c t h w")


@torch.no_grad()
def encode(codec: VideoCodec, video: Float[Tensor, "1 3 T H W"]) -> Float[Tensor, "c t h w"]:
    """Latents as they are kept."""
    return codec.encode(video)[0].bfloat16()


def latent_mask(mask: Bool[Tensor, "T H W"], codec: VideoCodec) -> Bool[Tensor, "t h w"]:
    """True where any pixel of a latent position is marked."""
    first = functional.max_pool3d(mask[None, None, :1].float(), (1, *codec.patch))
    group = functional.max_pool3d(mask[None, None, 1:].float(), (codec.group_frames, *codec.patch))
    return torch.cat([first, group], dim=2)[0, 0] > 0


def render_segments(
    seeds: Sequence[int], *, codec: VideoCodec, size: tuple[int, int], segment_frames: int,
    num_frames: int = WORLD_FRAMES, split: Split = "train", pool: Executor | None = None,
) -> Segments:  # fmt: skip
    """The worlds of `seeds` at one frame size, rendered by a pool of processes where one is given."""
    arguments = [(seed, codec, size, segment_frames, num_frames, split) for seed in seeds]
    done = pool.map(_render_one, arguments, chunksize=4) if pool else map(_render_one, arguments)
    worlds = list(tqdm(done, total=len(seeds), desc=f"worlds {size[0]}x{size[1]}", mininterval=10, disable=not pool))
    counts = torch.tensor([len(world["shot"]) for world in worlds])
    return Segments(
        source=torch.cat([world["source"] for world in worlds]),
        edited=torch.cat([world["edited"] for world in worlds]),
        mask=torch.cat([world["mask"] for world in worlds]),
        world=torch.tensor(list(seeds)).repeat_interleave(counts),
        shot=torch.cat([world["shot"] for world in worlds]),
        instructions={world["seed"]: world["instruction"] for world in worlds},
    )


def _render_one(arguments: tuple) -> dict:
    torch.set_num_threads(1)
    seed, codec, size, segment_frames, num_frames, split = arguments
    return render_world(seed, codec=codec, size=size, segment_frames=segment_frames, num_frames=num_frames, split=split)


def load_cache(
    folder: Path | None, *, codec: VideoCodec, sizes: Sequence[tuple[int, int]], num_worlds: int, first_seed: int,
    segment_frames: int, workers: int, num_frames: int = WORLD_FRAMES,
) -> list[Segments]:  # fmt: skip
    """Segments of every frame size; `num_worlds` are shared out between the sizes, the first getting twice the share.

    With a folder, what is there is read (memory-mapped) and what is missing is rendered and written, under names that tell
    the codec whose latents they are.
    """
    revision = codec_revision(codec)
    share = num_worlds // (len(sizes) + 1)
    counts = [num_worlds - share * (len(sizes) - 1)] + [share] * (len(sizes) - 1)
    firsts = [first_seed + sum(counts[:number]) for number in range(len(counts))]
    names = [
        f"worlds-{first}-{count}-{size[0]}x{size[1]}x{segment_frames}-of-{num_frames}-{revision}.pt"
        for first, count, size in zip(firsts, counts, sizes, strict=True)
    ]
    paths = [folder / name if folder else None for name in names]
    is_missing = not all(path and path.exists() for path in paths)
    starts_pool = workers > 1 and is_missing
    cache = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) if starts_pool else nullcontext() as pool:
        for path, first, count, size in zip(paths, firsts, counts, sizes, strict=True):
            if path is not None and path.exists():
                cache.append(read_segments(path))
                continue
            seeds = range(first, first + count)
            segments = render_segments(
                seeds, codec=codec, size=size, segment_frames=segment_frames, num_frames=num_frames, pool=pool
            )
            if path is not None:
                write_segments(path, segments)
            cache.append(segments)
    return cache


def read_segments(path: Path) -> Segments:
    """Segments from a file, memory-mapped."""
    return Segments(**torch.load(path, mmap=True, weights_only=True))


def write_segments(path: Path, segments: Segments) -> None:
    """The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    torch.save({name: value for name, value in vars(segments).items() if value is not None}, partial)
    partial.rename(path)


def codec_revision(codec: VideoCodec) -> str:
    """Eight hex digits that change with the codec's numbers."""
    module = codec.vae if isinstance(codec, WanCodec) else codec
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]
