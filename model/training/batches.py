"""Training data: rendered worlds as codec latents, made once, and the batches drawn from them.

A batch is a pure function of (seed, step): which frame size, which memory layout, which worlds, which segments, what noise.
So a resumed run sees exactly what an undisturbed one would have seen. Segments follow the pipeline's own rules: they never
span a cut, and a remainder is padded by repeating its last frame.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from model.codec import PatchCodec
from model.flow import add_noise, shift_sigma
from model.memory import BASE_KERNEL, COARSE_KERNEL, RELEVANT_KERNEL
from model.merging import Merging
from model.training.scene import Split
from model.training.worlds import make_world, render
from model.types import Kernel, MemoryBatch, MemoryRole

Layout = tuple[tuple[MemoryRole, Kernel], ...]

PREVIOUS: tuple[MemoryRole, Kernel] = ("previous", BASE_KERNEL)
RELEVANT: tuple[MemoryRole, Kernel] = ("retrieved", RELEVANT_KERNEL)
FINE: tuple[MemoryRole, Kernel] = ("retrieved", BASE_KERNEL)
COARSE: tuple[MemoryRole, Kernel] = ("retrieved", COARSE_KERNEL)

LAYOUTS: tuple[tuple[float, Layout], ...] = (
    (0.07, (PREVIOUS,)),
    (0.16, (RELEVANT,)),
    (0.21, (PREVIOUS, RELEVANT)),
    (0.10, (RELEVANT, RELEVANT)),
    (0.12, (RELEVANT, RELEVANT, RELEVANT)),
    (0.10, (PREVIOUS, RELEVANT, RELEVANT)),
    (0.12, (PREVIOUS, RELEVANT, RELEVANT, RELEVANT)),
    (0.04, (RELEVANT, RELEVANT, COARSE)),
    (0.04, (COARSE, COARSE)),
    (0.04, (FINE,)),
)
"""(probability, layout) of a batch with memory. Mostly what inference gives; the last three are the paper's random kernels
(section 4.1)."""


MERGING_PROBABILITY = 0.5
MERGING_SHARES = (0.3, 0.7)
"""Of the memory frames (paper section 4.1: "r in [0.3, 0.7]", read as the share of frames that are merged)."""

SOURCELESS_PROBABILITY = 0.1
"""Of batches with memory whose memories come without their source half, so that what it is worth can be measured."""

OWN_PROBABILITY = 0.4
OWN_SIGMAS = (0.4, 0.95)
"""In this share of the batches with memory the network makes the memories itself, from the truth noised to such a sigma: what the
edit leaves open is still told, but with the faults of the network's own edits, which is what it will remember."""

WORLD_FRAMES = 102

MIN_VISIBLE = 0.004
"""A segment shows the edit if it changes at least this share of its pixels."""


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

    def __len__(self) -> int:
        return len(self.world)


@dataclass(frozen=True, kw_only=True)
class Batch:
    instructions: list[str]
    source: Float[Tensor, "b c t h w"]
    x_0: Float[Tensor, "b c t h w"]
    """The edited latents: what is to be learned."""
    noise: Float[Tensor, "b c t h w"]
    sigma: Float[Tensor, "b"]
    mask: Bool[Tensor, "b t h w"]
    """Where the edit changes the picture."""
    memory: tuple[MemoryBatch, ...]
    merging: Merging | None
    """How memory frames are thinned in this batch."""
    memory_sigma: Float[Tensor, "b"] | None
    """Where given, the edited half of every memory is noised to this sigma, for the network to denoise before it is shown."""

    def shards(self, count: int) -> list["Batch"]:
        """Equal parts of the batch, in order."""
        size = -(-len(self.instructions) // count)
        return [
            Batch(
                instructions=self.instructions[part],
                source=self.source[part],
                x_0=self.x_0[part],
                noise=self.noise[part],
                sigma=self.sigma[part],
                mask=self.mask[part],
                memory=tuple(replace(item, latents=item.latents[part]) for item in self.memory),
                merging=self.merging,
                memory_sigma=None if self.memory_sigma is None else self.memory_sigma[part],
            )
            for part in (slice(start, start + size) for start in range(0, len(self.instructions), size))
        ]


def render_world(
    seed: int,
    *,
    codec: PatchCodec,
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
            index = torch.arange(segment_frames).clamp_max(len(frames.source) - 1)
            for latents, video in ((sources, frames.source), (edits, frames.edited)):
                pixels = rearrange(video[index].float() / 255, "t h w c -> 1 c t h w")
                latents.append(codec.encode(pixels)[0].bfloat16())
            masks.append(latent_mask(frames.mask[index], codec))
            shots.append(shot)
    return {
        "source": torch.stack(sources),
        "edited": torch.stack(edits),
        "mask": torch.stack(masks),
        "shot": torch.tensor(shots),
        "instruction": world.instruction,
        "seed": seed,
    }


def latent_mask(mask: Bool[Tensor, "T H W"], codec: PatchCodec) -> Bool[Tensor, "t h w"]:
    """True where any pixel of a latent position is marked."""
    patch, frames = tuple(codec.config.patch), codec.config.group_frames
    first = functional.max_pool3d(mask[None, None, :1].float(), (1, *patch))
    group = functional.max_pool3d(mask[None, None, 1:].float(), (frames, *patch))
    return torch.cat([first, group], dim=2)[0, 0] > 0


def render_segments(
    seeds: Sequence[int], *, codec: PatchCodec, size: tuple[int, int], segment_frames: int,
    num_frames: int = WORLD_FRAMES, split: Split = "train", workers: int = 1,
) -> Segments:  # fmt: skip
    """The worlds of `seeds` at one frame size."""
    arguments = [(seed, codec, size, segment_frames, num_frames, split) for seed in seeds]
    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            done = pool.map(_render_one, arguments, chunksize=4)
            worlds = list(tqdm(done, total=len(seeds), desc=f"worlds {size[0]}x{size[1]}", mininterval=10))
    else:
        worlds = [_render_one(item) for item in arguments]
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
    folder: Path | None, *, codec: PatchCodec, sizes: Sequence[tuple[int, int]], num_worlds: int, first_seed: int,
    segment_frames: int, workers: int, num_frames: int = WORLD_FRAMES,
) -> list[Segments]:  # fmt: skip
    """Segments of every frame size; `num_worlds` are shared out between the sizes, the first getting twice the share.

    With a folder, what is there is read (memory-mapped) and what is missing is rendered and written, under names that tell
    the codec whose latents they are.
    """
    revision = codec_revision(codec)
    share = num_worlds // (len(sizes) + 1)
    counts = [num_worlds - share * (len(sizes) - 1)] + [share] * (len(sizes) - 1)
    cache, seed = [], first_seed
    for size, count in zip(sizes, counts, strict=True):
        name = f"worlds-{seed}-{count}-{size[0]}x{size[1]}x{segment_frames}-of-{num_frames}-{revision}.pt"
        path = folder / name if folder else None
        if path is not None and path.exists():
            segments = Segments(**torch.load(path, mmap=True, weights_only=True))
        else:
            segments = render_segments(
                range(seed, seed + count),
                codec=codec,
                size=size,
                segment_frames=segment_frames,
                num_frames=num_frames,
                workers=workers,
            )
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_suffix(f".{os.getpid()}.partial")
                torch.save(vars(segments), partial)
                partial.rename(path)
        cache.append(segments)
        seed += count
    return cache


def codec_revision(codec: PatchCodec) -> str:
    """Eight hex digits that change with the codec's numbers."""
    digest = hashlib.sha256()
    for name, value in sorted(codec.state_dict().items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


@dataclass(frozen=True, kw_only=True)
class _Pool:
    """Segments by size, which of their frames show the edit, and their rows by world."""

    segments: Sequence[Segments]
    visible: list[Bool[Tensor, "n t"]]
    rows: list[list[list[int]]]

    @classmethod
    def of(cls, cache: Sequence[Segments]) -> "_Pool":
        visible = [segments.mask.float().mean((2, 3)) >= MIN_VISIBLE for segments in cache]
        return cls(segments=cache, visible=visible, rows=[_rows_by_world(segments) for segments in cache])


class BatchSampler:
    """Draws batch number `step`, always the same one.

    Args:
        short: worlds of one segment, by size; batches without memory come from them: only there must the instruction be read, and
            reading is learned from many scenes, not from many views of one.
        memoryless: share of the batches that have no memory.
        memory_noise: strongest noise put on memory latents, so that the drift of generated memories is no surprise.
        shift: sigmas are uniform, then shifted towards noise by this (`flow.shift_sigma`).
        is_merging: half of the batches with memory have some of its frames merged.
    """

    def __init__(
        self,
        cache: Sequence[Segments],
        short: Sequence[Segments],
        *,
        seed: int,
        memory_noise: float,
        shift: float,
        memoryless: float = 0.25,
        is_merging: bool = False,
    ) -> None:
        self.pools = {True: _Pool.of(cache), False: _Pool.of(short)}
        self.seed, self.is_merging, self.memoryless = seed, is_merging, memoryless
        self.memory_noise, self.shift = memory_noise, shift

    def batch(self, step: int, *, batch_size: int, num_frames: int) -> Batch:
        """Batch `step`, from every segment a run of `num_frames` latent frames (fewer than all early in training)."""
        generator = torch.Generator().manual_seed(batch_seed(self.seed, step))
        has_memory = float(torch.rand((), generator=generator)) >= self.memoryless
        pool = self.pools[has_memory]
        weights = torch.tensor([float(len(segments)) for segments in pool.segments])
        number = int(torch.multinomial(weights, 1, generator=generator))
        segments, visible, rows = pool.segments[number], pool.visible[number], pool.rows[number]
        layout: Layout = ()
        if has_memory:
            layout = LAYOUTS[int(torch.multinomial(torch.tensor([p for p, _ in LAYOUTS]), 1, generator=generator))][1]

        drawn: list[tuple[int, list[int]]] = []
        order = torch.randperm(len(rows), generator=generator).tolist()
        for index in order * (1 + batch_size // len(order)):
            chosen = _draw_segments(rows[index], segments, visible.any(1), layout, generator)
            drawn += [chosen] if chosen is not None else []
            if len(drawn) == batch_size:
                break

        def cut(chosen: list[int]) -> tuple[Tensor, Tensor, Tensor]:
            """Source, edited and mask of a run of frames of every chosen segment, one that shows the edit if it can."""
            last = segments.mask.shape[1] - num_frames
            runs = []
            for row in chosen:
                shows = visible[row].float().unfold(0, num_frames, 1).amax(1) + 0.02
                start = int(torch.multinomial(shows, 1, generator=generator)) if last else 0
                runs.append((row, slice(start, start + num_frames)))
            return (
                torch.stack([segments.source[row, :, run] for row, run in runs]).float(),
                torch.stack([segments.edited[row, :, run] for row, run in runs]).float(),
                torch.stack([segments.mask[row, run] for row, run in runs]),
            )

        source, x_0, mask = cut([target for target, _ in drawn])
        memory = []
        is_sourceless = bool(layout) and float(torch.rand((), generator=generator)) < SOURCELESS_PROBABILITY
        for place, (role, kernel) in enumerate(layout):
            clean_source, edited, _ = cut([memories[place] for _, memories in drawn])
            # Only the edited half is ever generated; the source half is always exact.
            level = self.memory_noise * torch.rand(len(edited), 1, 1, 1, 1, generator=generator)
            edited = edited + level * torch.randn(edited.shape, generator=generator)
            if is_sourceless:
                clean_source = torch.zeros_like(clean_source)
            memory.append(MemoryBatch(role=role, kernel=kernel, latents=torch.cat([edited, clean_source], dim=1)))
        noise = torch.randn(x_0.shape, generator=generator)
        sigma = shift_sigma(torch.rand(len(drawn), generator=generator), self.shift)
        merging = None
        if self.is_merging and memory and float(torch.rand((), generator=generator)) < MERGING_PROBABILITY:
            low, high = MERGING_SHARES
            merging = Merging(share=low + (high - low) * float(torch.rand((), generator=generator)))
        memory_sigma = None
        if memory and not is_sourceless and float(torch.rand((), generator=generator)) < OWN_PROBABILITY:
            low, high = OWN_SIGMAS
            memory_sigma = low + (high - low) * torch.rand(len(drawn), generator=generator)
            for place, item in enumerate(memory):
                edited, clean_source = item.latents.chunk(2, dim=1)
                noised = add_noise(edited, torch.randn(edited.shape, generator=generator), memory_sigma)
                memory[place] = replace(item, latents=torch.cat([noised, clean_source], dim=1))
        return Batch(
            instructions=[segments.instructions[int(segments.world[target])] for target, _ in drawn],
            source=source,
            x_0=x_0,
            noise=noise,
            sigma=sigma,
            mask=mask,
            memory=tuple(memory),
            merging=merging,
            memory_sigma=memory_sigma,
        )


def batch_seed(seed: int, step: int) -> int:
    """Seed of one batch. Run 0 counts its steps; torch's CPU generator reads no more than 32 bits of a seed."""
    return (seed * 2_654_435_761 + step) % 2**32


def _rows_by_world(segments: Segments) -> list[list[int]]:
    rows: dict[int, list[int]] = {}
    for row, world in enumerate(segments.world.tolist()):
        rows.setdefault(world, []).append(row)
    return list(rows.values())


def _draw_segments(
    rows: list[int], segments: Segments, visible: Bool[Tensor, "n"], layout: Layout, generator: torch.Generator
) -> tuple[int, list[int]] | None:
    """A target and one memory per place of the layout, all of one world; None where the world cannot fill the layout.

    Nine targets in ten show the edit, and three memories in four, where there are any: that is what memory is for.
    """

    def pick(candidates: list[int], share_visible: float) -> int:
        wants_visible = float(torch.rand((), generator=generator)) < share_visible
        preferred = [row for row in candidates if bool(visible[row])] if wants_visible else []
        pool = preferred or candidates
        return pool[int(torch.randint(len(pool), (), generator=generator))]

    needs_previous = any(role == "previous" for role, _ in layout)
    candidates = [
        row for row in rows if not needs_previous or (row - 1 in rows and segments.shot[row - 1] == segments.shot[row])
    ]
    if not candidates or len(rows) <= len(layout):
        return None
    target = pick(candidates, 0.9)
    left = [row for row in rows if row != target]
    chosen = []
    for role, _ in layout:
        row = target - 1 if role == "previous" else pick(left, 0.75)
        left = [other for other in left if other != row]
        if not left:
            left = [other for other in rows if other != target]
        chosen.append(row)
    return target, chosen
