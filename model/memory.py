"""How an edit's memories stand in the sequence: relevance decides a memory's patch kernel, its role its temporal positions.

Torch-free arithmetic, because the driver freezes kernels in the plan. Source: Memory-V2V (arXiv 2601.16296) section 3.2
(kernels) and appendix E (positions). The paper leaves open which kernel the previous segment of a long video gets: under "dynamic" kernels
the finest, as it is the continuation the target must join. Ours, "anchored", gives the finest to the most relevant of the retrieved ones
(docs/decisions.md, 2026-11-26). `MemorySettings` is what an edit may choose; its other defaults are the paper's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

MemoryRole = Literal["previous", "retrieved"]
MemoryAttention = Literal["joint", "isolated"]
Kernel = tuple[int, int, int]

BASE_KERNEL: Kernel = (1, 2, 2)
RELEVANT_KERNEL: Kernel = (1, 4, 4)
COARSE_KERNEL: Kernel = (1, 8, 8)
KERNELS: tuple[Kernel, ...] = (BASE_KERNEL, RELEVANT_KERNEL, COARSE_KERNEL)

NUM_RELEVANT = 3
"""How many of the retrieved get `RELEVANT_KERNEL` (paper section 4.1)."""

MemoryPositions = Literal["ranges", "reversed", "shared"]
KernelChoice = Literal["anchored", "dynamic", "fine", "coarse"]
MergingMode = Literal["merge-low", "merge-high", "discard-low", "discard-high"]
MergingChoice = Literal["off", "merge-low", "merge-high", "discard-low", "discard-high"]
DEFAULT_MERGING_SHARE = 0.5
"""The paper's study takes half of the frames (section 3.3)."""


@dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """What an edit does with its memories, whichever they are; part of its identity.

    Attributes:
        kernels: "anchored" (the finest for the most relevant of the retrieved, coarser ones for the others and for the previous segment), "dynamic" (the
            paper's: the finest for the previous segment), or the finest or the coarsest for all.
        merging: which frames are merged or discarded inside the network, by the target's responsiveness to them; None is
            what the preset says.
        merging_share: of the memory frames, at every merging block; half where merging is given without it.
        has_source: whether the network sees the source latents of a memory beside the edited ones.
    """

    kernels: KernelChoice = "anchored"
    merging: MergingChoice | None = None
    merging_share: float | None = None
    has_source: bool = True

    def __post_init__(self) -> None:
        if self.kernels not in get_args(KernelChoice):
            raise ValueError(f"kernels is {self.kernels!r}; needs one of {', '.join(get_args(KernelChoice))}")
        if self.merging is not None and self.merging not in get_args(MergingChoice):
            raise ValueError(f"merging is {self.merging!r}; needs one of {', '.join(get_args(MergingChoice))}")
        if self.merging_share is None:
            return
        if self.merging is None:
            raise ValueError(f"merging_share is {self.merging_share}; needs merging to be given with it")
        if self.merging == "off" and self.merging_share:
            raise ValueError(f"merging_share is {self.merging_share} and merging is off; needs one of the other modes")
        if self.merging != "off" and not 0 < self.merging_share <= 1:
            raise ValueError(f"merging_share is {self.merging_share}; needs above 0, to 1")

    def resolved(self, sampler: Mapping[str, Any]) -> "MemorySettings":
        """With nothing left open: a preset whose `sampler` has a `merging_share` merges that share unless told otherwise."""
        merging, share = self.merging, self.merging_share
        if merging is None:
            share = float(sampler.get("merging_share", 0.0))
            merging = "merge-low" if share else "off"
        if share is None:
            share = 0.0 if merging == "off" else DEFAULT_MERGING_SHARE
        return MemorySettings(kernels=self.kernels, merging=merging, merging_share=share, has_source=self.has_source)


def memory_kernel(
    role: MemoryRole, rank: int = 0, *, kernels: KernelChoice = "dynamic", is_anchored: bool = False
) -> Kernel:
    """Kernel of a memory.

    Args:
        rank: counts the RETRIEVED memories from 0, most relevant first; 0 for the previous segment.
        is_anchored: whether there is a retrieved one to be the anchor; the previous segment stands in for it where there is none.

    Raises:
        ValueError: for a role that is neither "previous" nor "retrieved".
    """
    if role not in get_args(MemoryRole):
        raise ValueError(f'memory role is {role!r}; needs "previous" or "retrieved"')
    if kernels in ("fine", "coarse"):
        return BASE_KERNEL if kernels == "fine" else COARSE_KERNEL
    if rank == 0 and role == ("retrieved" if kernels == "anchored" and is_anchored else "previous"):
        return BASE_KERNEL
    return RELEVANT_KERNEL if rank < NUM_RELEVANT else COARSE_KERNEL


def temporal_start(role: MemoryRole, num_frames: int, *, positions: MemoryPositions = "ranges") -> int:
    """First temporal position of a memory beside a target of `num_frames` latent frames.

    The target holds 0..T-1, the previous segment T..2T-1, and all other memories share 2T..3T-1 (appendix E): they are a
    set, not a sequence, so a memory means the same whenever it was made. "reversed" are the same ranges, filled from behind:
    what is trained with continuations AFTER the target finds its nearest frame first, and at inference, where memories lie
    before the target, the nearest is the last. "shared" is one range for everything, target included (the ablation).
    """
    if positions == "shared":
        return 0
    return num_frames if role == "previous" else 2 * num_frames


def kernel_name(kernel: Kernel) -> str:
    """`(1, 4, 4)` -> `1x4x4`."""
    return "x".join(map(str, kernel))
