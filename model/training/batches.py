"""Batches drawn from segments: which memories, under which kernels, merged or not, how noisy (paper section 4.1).

A batch is a pure function of (seed, step): which frame size, which memory layout, which videos, which segments, what noise.
So a resumed run sees exactly what an undisturbed one would have seen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from model.flow import add_noise, shift_sigma
from model.memory import BASE_KERNEL, COARSE_KERNEL, KERNELS, RELEVANT_KERNEL
from model.merging import Merging
from model.training.config import MemoryLayouts
from model.training.segments import Segments
from model.types import Kernel, MemoryBatch, MemoryRole

Layout = tuple[tuple[MemoryRole, Kernel], ...]

PREVIOUS_FINE: tuple[MemoryRole, Kernel] = ("previous", BASE_KERNEL)
PREVIOUS: tuple[MemoryRole, Kernel] = ("previous", RELEVANT_KERNEL)
RELEVANT: tuple[MemoryRole, Kernel] = ("retrieved", RELEVANT_KERNEL)
ANCHOR: tuple[MemoryRole, Kernel] = ("retrieved", BASE_KERNEL)
COARSE: tuple[MemoryRole, Kernel] = ("retrieved", COARSE_KERNEL)

LAYOUTS: tuple[tuple[float, Layout], ...] = (
    (0.08, (PREVIOUS_FINE,)),
    (0.08, (ANCHOR,)),
    (0.05, (RELEVANT,)),
    (0.08, (PREVIOUS_FINE, RELEVANT)),
    (0.10, (PREVIOUS, ANCHOR)),
    (0.08, (ANCHOR, RELEVANT)),
    (0.05, (RELEVANT, RELEVANT, RELEVANT)),
    (0.12, (ANCHOR, RELEVANT, RELEVANT)),
    (0.08, (PREVIOUS_FINE, RELEVANT, RELEVANT, RELEVANT)),
    (0.20, (PREVIOUS, ANCHOR, RELEVANT, RELEVANT)),
    (0.04, (RELEVANT, RELEVANT, COARSE)),
    (0.04, (COARSE, COARSE)),
)
"""(probability, layout) of a batch with memory. Mostly what inference gives, under anchored kernels or the paper's; the last two have the
paper's random ones (section 4.1)."""

MAX_MEMORIES = 6
"""The paper's layouts have 1 to 6 memories, half of the time all under one random kernel, else each under its own."""

MERGING_PROBABILITY = 0.5
MERGING_SHARES = (0.3, 0.7)
"""Of the memory frames (paper section 4.1: "r in [0.3, 0.7]", read as the share of frames that are merged)."""

SOURCELESS_PROBABILITY = 0.1
"""Of batches with memory whose memories come without their source half, so that what it is worth can be measured."""

OWN_PROBABILITY = 0.25
OWN_SIGMAS = (0.1, 0.5)
"""In this share of the batches with memory the network makes the memories itself, from the truth noised to such a sigma: what the
edit leaves open is still told, but with the faults of the network's own edits, which is what it will remember. At more noise its
memories misread the instruction, and it would learn to correct what it should keep."""

WHOLE_PROBABILITY = 0.2
"""In this share of the batches with memory, on the linear codec, the memories are edits that the network makes from pure noise, the later ones
remembering the first. What they change wrongly must not be taken over; what they do to the edited region is right, as the first of anything is."""

CONTRADICTION_PROBABILITY = 0.3
"""In this share of the samples whose memory shows the edit the instruction is another video's: what was done before decides, even
where it was a misreading."""

MISSED_PROBABILITY = 0.2
"""In this share of the memories that would show the edit they show the source instead, as where a small or cut-off object was not edited: that
nothing was done there is no decision to do nothing. Another memory tells what was decided, or else the instruction does."""

UNTOLD_PROBABILITY = 0.2
"""Of the samples with memory, at least: the target shows what is to be edited and no memory tells how. They are of segments that do not show it, or
else show the source. Six segments of a world mostly all show it, so chance alone makes one sample in twenty such, and memory that tells nothing comes to mean that nothing
is to be done; in films what is to be edited comes into view after many segments without it."""

MIXING_PROBABILITY = 0.75
STRENGTHS, MOST_MIXED = (0.3, 1.15), 0.5
"""In this share of the samples whose memory shows the edit, memory and target are changed by such a part of the edit, its colours mixed
by up to so much: a network's own edits are paler and muddier than any truth, and one that has seen only truths makes every
next one fuller and purer, and drifts. Of the linear codec only, whose latents of a part of a change are that part."""

VISIBLE_PROBABILITY, VISIBLE_ALONE_PROBABILITY = 0.4, 0.9
"""In this share of the draws a segment is one that shows the edit; otherwise any. The second is of targets without memory: by them instructions
are learned."""
MIN_VISIBLE = 0.004
"""A segment shows the edit if it changes at least this share of its pixels."""


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
    begins: Bool[Tensor, "videos b"]
    """Whether the frames begin with their segment's first one: those of the target, then of every memory."""
    memory: tuple[MemoryBatch, ...]
    merging: Merging | None
    """How memory frames are thinned in this batch."""
    memory_sigma: Float[Tensor, "b"] | None
    """Where given, the edited half of every memory is noised to this sigma, for the network to denoise before it is shown."""
    is_whole: bool = False
    """Whether that sigma is 1: memories are whole edits of the network's own."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        if device.type == "cpu":
            return self
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        memory = tuple(replace(item, latents=item.latents.to(device)) for item in self.memory)
        return replace(self, memory=memory, **tensors)

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
                begins=self.begins[:, part],
                memory=tuple(replace(item, latents=item.latents[part]) for item in self.memory),
                merging=self.merging,
                memory_sigma=None if self.memory_sigma is None else self.memory_sigma[part],
                is_whole=self.is_whole,
            )
            for part in (slice(start, start + size) for start in range(0, len(self.instructions), size))
        ]


class _Pool:
    """Segments by size: which of their frames show the edit, their rows by video, and how many memories one can have."""

    def __init__(self, cache: Sequence[Segments]) -> None:
        self.segments = [segments for segments in cache if len(segments)]
        self.visible = [segments.mask.float().mean((2, 3)) >= MIN_VISIBLE for segments in self.segments]
        self.rows = [_rows_by_world(segments) for segments in self.segments]
        self.most_memories = [
            {
                needs_previous: max(
                    (len(rows) - 1 for rows in worlds if _targets(rows, segments, needs_previous=needs_previous)),
                    default=0,
                )
                for needs_previous in (False, True)
            }
            for segments, worlds in zip(self.segments, self.rows, strict=True)
        ]

    def can_fill(self, number: int, layout: Layout) -> bool:
        """Whether any video of a size has the memories of a layout."""
        return len(layout) <= self.most_memories[number][_needs_previous(layout)]


class _Drawn(Dataset[Batch]):
    """A run's batches, as torch's data loader wants them."""

    def __init__(self, sampler: "BatchSampler", stages: Sequence[tuple[int, int, int]]) -> None:
        self.sampler, self.stages = sampler, stages

    def __len__(self) -> int:
        return len(self.stages)

    def __getitem__(self, index: int) -> Batch:
        step, num_frames, batch_size = self.stages[index]
        return self.sampler.batch(step, batch_size=batch_size, num_frames=num_frames)


class BatchSampler:
    """Draws batch number `step`, always the same one.

    Args:
        short: what batches without memory come from, by size. Of worlds, those of one segment: only there must the instruction be
            read, and reading is learned from many scenes, not from many views of one.
        memoryless: share of the batches that have no memory.
        memory_noise: strongest noise put on memory latents, so that the drift of generated memories is no surprise.
        shift: sigmas are uniform, then shifted towards noise by this (`flow.shift_sigma`).
        is_merging: half of the batches with memory have some of its frames merged.
        colour_maps: of the codec, where it is linear (`PatchCodec.colour_maps`).
        layouts: which memories under which kernels: mostly as edits have them, or as the paper draws them.
    """

    def __init__(
        self,
        cache: Sequence[Segments],
        short: Sequence[Segments],
        *,
        seed: int,
        memory_noise: float,
        shift: float,
        memoryless: float,
        is_merging: bool = False,
        colour_maps: tuple[Tensor, Tensor] | None = None,
        layouts: MemoryLayouts = "edits",
    ) -> None:
        self.pools = {True: _Pool(cache), False: _Pool(short)}
        self.seed, self.is_merging, self.memoryless, self.layouts = seed, is_merging, memoryless, layouts
        self.memory_noise, self.shift, self.colour_maps = memory_noise, shift, colour_maps

    def batch(self, step: int, *, batch_size: int, num_frames: int) -> Batch:
        """Batch `step`, from every segment a run of `num_frames` latent frames (fewer than all early in training)."""
        generator = torch.Generator().manual_seed(batch_seed(self.seed, step))
        has_memory = float(torch.rand((), generator=generator)) >= self.memoryless
        pool = self.pools[has_memory]
        weights = torch.tensor([float(len(segments)) for segments in pool.segments])
        number = int(torch.multinomial(weights, 1, generator=generator))
        segments, visible, rows = pool.segments[number], pool.visible[number], pool.rows[number]
        layout = self._draw_layout(pool, number, generator) if has_memory else ()

        drawn: list[tuple[int, list[int]]] = []
        untold: list[bool] = []
        order = torch.randperm(len(rows), generator=generator).tolist()
        while len(drawn) < batch_size:
            for index in order:
                is_untold = bool(layout) and float(torch.rand((), generator=generator)) < UNTOLD_PROBABILITY
                chosen = _draw_segments(rows[index], segments, visible.any(1), layout, generator, is_untold=is_untold)
                if chosen is not None:
                    drawn.append(chosen)
                    untold.append(is_untold)
                if len(drawn) == batch_size:
                    break

        def cut(chosen: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            """Source, edited and mask of a run of frames of every chosen segment, one that shows the edit if it can, and whether
            the run begins the segment."""
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
                torch.tensor([run.start == 0 for _, run in runs]),
            )

        is_shown = torch.tensor(
            [[bool(visible[row].any()) for row in memories] for _, memories in drawn], dtype=torch.bool
        )
        missed = torch.rand(is_shown.shape, generator=generator) < MISSED_PROBABILITY
        missed |= torch.tensor(untold)[:, None]
        told = (is_shown & ~missed).any(1).tolist()
        mixing = draw_mixing(told, generator) if self.colour_maps is not None and any(told) else None

        def mixed(source: Tensor, edited: Tensor, starts: Tensor) -> Tensor:
            if mixing is None or self.colour_maps is None:
                return edited
            return source + mix(edited - source, mixing, self.colour_maps, starts)

        source, x_0, mask, starts = cut([target for target, _ in drawn])
        x_0 = mixed(source, x_0, starts)
        memory, begins = [], [starts]
        is_sourceless = bool(layout) and float(torch.rand((), generator=generator)) < SOURCELESS_PROBABILITY
        for place, (role, kernel) in enumerate(layout):
            clean_source, edited, _, starts = cut([memories[place] for _, memories in drawn])
            begins.append(starts)
            edited = mixed(clean_source, edited, starts)
            edited = torch.where(missed[:, place].view(-1, 1, 1, 1, 1), clean_source, edited)
            # Only the edited half is ever generated; the source half is always exact.
            level = self.memory_noise * torch.rand(len(edited), 1, 1, 1, 1, generator=generator)
            edited = edited + level * torch.randn(edited.shape, generator=generator)
            if is_sourceless:
                clean_source = torch.zeros_like(clean_source)
            memory.append(MemoryBatch(role=role, kernel=kernel, latents=torch.cat([edited, clean_source], dim=1)))
        instructions = [segments.instructions[int(segments.world[target])] for target, _ in drawn]
        noise = torch.randn(x_0.shape, generator=generator)
        sigma = shift_sigma(torch.rand(len(drawn), generator=generator), self.shift)
        merging = None
        if self.is_merging and memory and float(torch.rand((), generator=generator)) < MERGING_PROBABILITY:
            low, high = MERGING_SHARES
            merging = Merging(share=low + (high - low) * float(torch.rand((), generator=generator)))
        memory_sigma, is_whole = None, False
        own = float(torch.rand((), generator=generator)) if memory and not is_sourceless else 1.0
        if own < OWN_PROBABILITY:
            low, high = OWN_SIGMAS
            memory_sigma = low + (high - low) * torch.rand(len(drawn), generator=generator)
        elif own < OWN_PROBABILITY + WHOLE_PROBABILITY and self.colour_maps is not None:
            is_whole, memory_sigma = True, torch.ones(len(drawn))
        if memory_sigma is not None:
            for place, item in enumerate(memory):
                edited, clean_source = item.latents.chunk(2, dim=1)
                noised = add_noise(edited, torch.randn(edited.shape, generator=generator), memory_sigma)
                memory[place] = replace(item, latents=torch.cat([noised, clean_source], dim=1))
        elif memory:
            instructions = contradict(instructions, told, generator)
        return Batch(
            instructions=instructions,
            source=source,
            x_0=x_0,
            noise=noise,
            sigma=sigma,
            mask=mask,
            begins=torch.stack(begins),
            memory=tuple(memory),
            merging=merging,
            memory_sigma=memory_sigma,
            is_whole=is_whole,
        )

    def stream(self, stages: Sequence[tuple[int, int, int]], *, workers: int = 0) -> Iterator[Batch]:
        """Batch after batch, as (step, latent frames, batch size) say; drawn ahead where there are workers."""
        loader = DataLoader(
            _Drawn(self, stages), batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None
        )
        return iter(loader)

    def _draw_layout(self, pool: _Pool, number: int, generator: torch.Generator) -> Layout:
        """A layout that the videos of this size can fill; none where no video has two segments."""
        if self.layouts == "edits":
            shares = torch.tensor([p * pool.can_fill(number, layout) for p, layout in LAYOUTS])
            return LAYOUTS[int(torch.multinomial(shares, 1, generator=generator))][1] if shares.any() else ()
        has_previous = bool(torch.rand((), generator=generator) < 0.5) and pool.can_fill(number, (PREVIOUS_FINE,))
        most = min(MAX_MEMORIES, pool.most_memories[number][has_previous])
        count = int(torch.randint(1, most + 1, (), generator=generator)) if most else 0
        kernels = torch.randint(len(KERNELS), (count,), generator=generator).tolist()
        if bool(torch.rand((), generator=generator) < 0.5):
            kernels = kernels[:1] * count
        roles: list[MemoryRole] = ["previous" if has_previous and not place else "retrieved" for place in range(count)]
        return tuple((role, KERNELS[kernel]) for role, kernel in zip(roles, kernels, strict=True))


def draw_mixing(may: Sequence[bool], generator: torch.Generator) -> Float[Tensor, "b 3 3"]:
    """What becomes of every sample's change of colours: nothing else, or where it may a part of it, mixed with its own channels swapped."""
    (low, high), count = STRENGTHS, len(may)
    strength, share = torch.rand(2, count, 1, 1, generator=generator)
    swapped = torch.stack([torch.eye(3)[torch.randperm(3, generator=generator)] for _ in range(count)])
    mixing = (low + (high - low) * strength) * torch.lerp(torch.eye(3), swapped, MOST_MIXED * share)
    is_mixed = torch.tensor(may) & (torch.rand(count, generator=generator) < MIXING_PROBABILITY)
    return torch.where(is_mixed[:, None, None], mixing, torch.eye(3))


def mix(
    change: Float[Tensor, "b c t h w"],
    mixing: Float[Tensor, "b 3 3"],
    colour_maps: tuple[Float[Tensor, "9 c c1"], Float[Tensor, "9 c c1"]],
    begins: Bool[Tensor, "b"],
) -> Float[Tensor, "b c t h w"]:
    """A change of latents with its colours mixed: every new colour is such a sum of the old ones."""
    first, group = (torch.einsum("bk,kcd->bcd", mixing.flatten(1), maps[..., :-1]) for maps in colour_maps)
    start = torch.where(begins[:, None, None], first, group)
    parts = (start, change[:, :, :1]), (group, change[:, :, 1:])
    return torch.cat([torch.einsum("bcd,bdthw->bcthw", maps, part) for maps, part in parts], dim=2)


def contradict(instructions: Sequence[str], may: Sequence[bool], generator: torch.Generator) -> list[str]:
    """Some of them, where they may, changed for another one of the same batch."""
    is_changed = (torch.rand(len(may), generator=generator) < CONTRADICTION_PROBABILITY).tolist()
    others = torch.randint(len(may), (len(may),), generator=generator).tolist()
    return [
        instructions[other] if allowed and changed else instruction
        for instruction, allowed, changed, other in zip(instructions, may, is_changed, others, strict=True)
    ]


def batch_seed(seed: int, step: int) -> int:
    """Seed of one batch. Run 0 counts its steps; torch's CPU generator reads no more than 32 bits of a seed."""
    return (seed * 2_654_435_761 + step) % 2**32


def _rows_by_world(segments: Segments) -> list[list[int]]:
    rows: dict[int, list[int]] = {}
    for row, world in enumerate(segments.world.tolist()):
        rows.setdefault(world, []).append(row)
    return list(rows.values())


def _needs_previous(layout: Layout) -> bool:
    return any(role == "previous" for role, _ in layout)


def _targets(rows: list[int], segments: Segments, *, needs_previous: bool) -> list[int]:
    """Rows of a video that may be edited: never generated ones, with a segment before them in their shot where needed."""
    generated = segments.is_generated
    return [
        row
        for row in rows
        if (generated is None or not generated[row])
        and (not needs_previous or (row - 1 in rows and segments.shot[row - 1] == segments.shot[row]))
    ]


def _draw_segments(
    rows: list[int],
    segments: Segments,
    visible: Bool[Tensor, "n"],
    layout: Layout,
    generator: torch.Generator,
    *,
    is_untold: bool,
) -> tuple[int, list[int]] | None:
    """A target and one memory per place of the layout, all of one world; None where the world cannot fill the layout.

    With memory two in five of them are chosen among those that show the edit, the others among all: a film is edited where nothing is to be
    done, too, by segments that remember where something was. Of an untold sample the target is one that shows it, the memories if they can be ones that do not.
    """

    def pick(candidates: list[int], *, shows: bool) -> int:
        is_choosy = float(torch.rand((), generator=generator)) < share
        preferred = [row for row in candidates if bool(visible[row]) == shows] if is_choosy else []
        pool = preferred or candidates
        return pool[int(torch.randint(len(pool), (), generator=generator))]

    candidates = _targets(rows, segments, needs_previous=_needs_previous(layout))
    if not candidates or len(rows) <= len(layout):
        return None
    share = 1.0 if is_untold else VISIBLE_PROBABILITY if layout else VISIBLE_ALONE_PROBABILITY
    target = pick(candidates, shows=True)
    left = [row for row in rows if row != target]
    chosen = []
    for role, _ in layout:
        row = target - 1 if role == "previous" else pick(left, shows=not is_untold)
        left = [other for other in left if other != row]
        if not left:
            left = [other for other in rows if other != target]
        chosen.append(row)
    return target, chosen
