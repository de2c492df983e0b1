"""Adaptive token merging: the memory frames that the target responds to least go on as fewer tokens (paper section 3.3).

Responsiveness of a memory frame: its mean key against all target queries, softmax over the frames, the maximum over the
queries, the mean over heads. The frames with the lowest are compressed by a learnable convolution over 2x2 tokens. How many is
fixed beforehand, for every token grid apart, so that shapes are static and the same for every sample; which ones is not.

What the paper leaves open (the axis of the softmax, heads, the convolution, the schedule of the ratio) is decided in
docs/decisions.md. Knows nothing of blocks or attention beyond queries and keys.

Legend: B batch, N tokens, F memory frames, H heads, D head dimension, K width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from model.memory import MemorySettings, MergingMode
from model.patchify import FrameSpan, TokenGroup


@dataclass(frozen=True, kw_only=True)
class Merging:
    """How memory frames are thinned at every merging block.

    Attributes:
        share: of the memory frames of every token grid, rounded; in [0, 1].
        mode: which end of responsiveness, and whether its frames are merged or discarded. All but "merge-low" are the
            paper's ablations.
    """

    share: float
    mode: MergingMode = "merge-low"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share}; needs 0 to 1")
        if self.mode not in get_args(MergingMode):
            raise ValueError(f"mode is {self.mode!r}; needs one of {', '.join(get_args(MergingMode))}")

    @classmethod
    def of(cls, settings: MemorySettings) -> "Merging | None":
        """What resolved settings ask for; None where it is nothing."""
        if settings.merging == "off":
            return None
        assert settings.merging is not None, "resolved"
        assert settings.merging_share is not None, "resolved"
        return cls(share=settings.merging_share, mode=settings.merging)


class FrameCompressor(nn.Module):
    """2x2 neighbouring tokens of a frame to one, each channel by itself; starts as their mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, kernel_size=2, stride=2, groups=width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.conv.weight, 0.25)
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)

    def forward(self, tokens: Float[Tensor, "b f n k"], grid: tuple[int, int]) -> Float[Tensor, "b f m k"]:
        frames = rearrange(tokens, "b f (h w) k -> (b f) k h w", h=grid[0])
        merged = self.conv(pad_to_even(frames))
        return rearrange(merged, "(b f) k h w -> b f (h w) k", b=len(tokens))


def pad_to_even(frames: Float[Tensor, "n k h w"]) -> Float[Tensor, "n k h2 w2"]:
    """Repeat the last row or column where there is an odd one."""
    height, width = frames.shape[-2:]
    return F.pad(frames, (0, width % 2, 0, height % 2), mode="replicate") if height % 2 or width % 2 else frames


def merged_positions(positions: Float[Tensor, "b f n p"], grid: tuple[int, int]) -> Float[Tensor, "b f m p"]:
    """Mean position of the tokens that are merged, and mean of what else is told of them."""
    frames = rearrange(positions, "b f (h w) p -> (b f) p h w", h=grid[0])
    return rearrange(F.avg_pool2d(pad_to_even(frames), 2), "(b f) p h w -> b f (h w) p", b=len(positions))


def responsiveness(
    query: Float[Tensor, "b n h d"], key: Float[Tensor, "b m h d"], frames: Sequence[tuple[int, int]]
) -> Float[Tensor, "b f"]:
    """How strongly the most interested target token looks at each memory frame, against the other frames.

    Args:
        query: of the target tokens.
        key: of the memory tokens.
        frames: [start, end) of every memory frame within `key`.
    """
    frame_keys = torch.stack([key[:, start:end].mean(1) for start, end in frames], dim=1)
    logits = torch.einsum("bnhd,bfhd->bhnf", query.float(), frame_keys.float()) / math.sqrt(query.shape[-1])
    return logits.softmax(-1).amax(2).mean(1)


def thin(
    group: TokenGroup, scores: Float[Tensor, "b f"], merging: Merging, compressor: FrameCompressor | None
) -> TokenGroup:
    """Merge or discard memory frames. The target's tokens stay in front, untouched.

    Args:
        group: target and memory tokens; `scores` has one column per memory span, in order.
        compressor: needed by the modes that merge.
    """
    batch = len(group.tokens)
    target = [span for span in group.spans if span.video == 0]
    memory = [span for span in group.spans if span.video != 0]
    tokens, spans = [group.tokens[:, : target[-1].end]], list(target)
    # Colours are thinned as positions are: what is merged shows a mean.
    places = group.positions.expand(batch, -1, -1)
    places = places if group.colours is None else torch.cat([places, group.colours], dim=-1)
    kept_places = [places[:, : target[-1].end]]

    def append(part: Float[Tensor, "b f n k"], at: Float[Tensor, "b f n p"], grid: tuple[int, int]) -> None:
        for _ in range(part.shape[1]):
            start = spans[-1].end
            spans.append(FrameSpan(start=start, end=start + part.shape[2], video=None, frame=None, grid=grid))
        tokens.append(part.flatten(1, 2))
        kept_places.append(at.flatten(1, 2))

    for grid in dict.fromkeys(span.grid for span in memory):
        numbers = [number for number, span in enumerate(memory) if span.grid == grid]
        parts = torch.stack([group.tokens[:, memory[i].start : memory[i].end] for i in numbers], dim=1)
        at = torch.stack([places[:, memory[i].start : memory[i].end] for i in numbers], dim=1)
        order = scores[:, numbers].argsort(dim=1, descending=merging.mode.endswith("high"), stable=True)
        count = round(merging.share * len(numbers))
        thinned, kept = order[:, :count].sort(dim=1).values, order[:, count:].sort(dim=1).values
        if kept.shape[1]:
            append(take(parts, kept), take(at, kept), grid)
        if count and merging.mode.startswith("merge"):
            assert compressor is not None
            half = (-(-grid[0] // 2), -(-grid[1] // 2))
            append(compressor(take(parts, thinned), grid), merged_positions(take(at, thinned), grid), half)
    positions, colours = torch.cat(kept_places, dim=1).tensor_split([3], dim=-1)
    return TokenGroup(
        tokens=torch.cat(tokens, dim=1),
        positions=positions,
        spans=tuple(spans),
        colours=None if group.colours is None else colours,
    )


def take(frames: Float[Tensor, "b f n k"], index: Int[Tensor, "b m"]) -> Float[Tensor, "b m n k"]:
    """Of every sample its own frames."""
    return frames.gather(1, index[:, :, None, None].expand(-1, -1, *frames.shape[2:]))
