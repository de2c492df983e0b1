"""Latents to tokens and back, with a kernel of any size: the paper's dynamic tokenizers (section 3.2).

A token knows where it is: `TokenGroup` keeps tokens, their (t, y, x) positions and the frame each run of tokens came from
together, so that everything downstream (rotary embedding, merging) works on any mixture of kernels.

Positions are in units of BASE tokens (kernel 1x2x2): the base token in row i has y = i, and a coarser token stands at the
centre of the base tokens it covers (kernel 1x4x4: y = 0.5, 2.5, ...).

Padding rule: where a kernel does not divide the latent, the latent is extended at its bottom and right (and end) by
repeating its last row and column (and frame) up to the next multiple. A partly padded token keeps the position of its full
patch. `unpatchify` cuts the padding off again.

Legend: B batch, N tokens, D width, C channels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from model.types import Kernel


@dataclass(frozen=True, kw_only=True)
class FrameSpan:
    """Tokens `[start, end)` are one frame, `grid` (rows, columns) of them in raster order.

    They came from latent frame `frame` of video `video` (0 is the target, 1.. the memories); both are None after merging,
    which puts other frames there in every sample.
    """

    start: int
    end: int
    video: int | None
    frame: int | None
    grid: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class TokenGroup:
    tokens: Float[Tensor, "b n d"]
    positions: Float[Tensor, "#b n 3"]
    """(t, y, x) in base-token units."""
    spans: tuple[FrameSpan, ...]
    colours: Float[Tensor, "b n k"] | None = None
    """What memory tokens show of colours (`model.colour.ColourHead.show`); of the target's tokens zeros."""

    @property
    def num_tokens(self) -> int:
        return self.tokens.shape[1]


def grid_size(latent_shape: Sequence[int], kernel: Kernel) -> tuple[int, int, int]:
    """Tokens along (t, h, w) of a latent of this (t, h, w)."""
    t, h, w = (math.ceil(size / step) for size, step in zip(latent_shape, kernel, strict=True))
    return t, h, w


def pad_to_kernel(latents: Float[Tensor, "b c t h w"], kernel: Kernel) -> Float[Tensor, "b c t2 h2 w2"]:
    """Apply the padding rule above."""
    pad_t, pad_h, pad_w = (-size % step for size, step in zip(latents.shape[2:], kernel, strict=True))
    return F.pad(latents, (0, pad_w, 0, pad_h, 0, pad_t), mode="replicate") if pad_t or pad_h or pad_w else latents


def grid_positions(grid: tuple[int, int, int], kernel: Kernel, base: Kernel, *, start: float) -> Float[Tensor, "n 3"]:
    """Centres of a grid of patches in base-token units; `start` is the first frame's temporal position."""
    axes = [
        (torch.arange(count, dtype=torch.float32) * step + (step - unit) / 2) / unit
        for count, step, unit in zip(grid, kernel, base, strict=True)
    ]
    axes[0] = axes[0] + start
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)


def patchify(
    latents: Float[Tensor, "b c t h w"], projection: nn.Conv3d, *, base: Kernel, start: float, video: int
) -> TokenGroup:
    """Project every patch of `latents` with `projection` (kernel = stride) to one token.

    Done as a matrix product rather than a convolution: the same numbers, several times faster on a CPU.
    """
    kt, kh, kw = kernel = _kernel(projection)
    grid = grid_size(latents.shape[2:], kernel)
    patches = rearrange(
        pad_to_kernel(latents, kernel), "b c (t kt) (h kh) (w kw) -> b (t h w) (c kt kh kw)", kt=kt, kh=kh, kw=kw
    )
    tokens = F.linear(patches, projection.weight.flatten(1), projection.bias)
    per_frame = grid[1] * grid[2]
    spans = tuple(
        FrameSpan(start=i * per_frame, end=(i + 1) * per_frame, video=video, frame=i * kt, grid=(grid[1], grid[2]))
        for i in range(grid[0])
    )
    positions = grid_positions(grid, kernel, base, start=start).to(latents.device)
    return TokenGroup(tokens=tokens, positions=positions[None], spans=spans)


def unpatchify(
    patches: Float[Tensor, "b n k"], latent_shape: Sequence[int], kernel: Kernel
) -> Float[Tensor, "b c t h w"]:
    """Lay out tokens of `kt * kh * kw * c` numbers (channels last, Wan's order) as a latent of `latent_shape` (t, h, w)."""
    (kt, kh, kw), (grid_t, grid_h, grid_w) = kernel, grid_size(latent_shape, kernel)
    latents = rearrange(
        patches,
        "b (t h w) (kt kh kw c) -> b c (t kt) (h kh) (w kw)",
        t=grid_t, h=grid_h, w=grid_w, kt=kt, kh=kh, kw=kw,
    )  # fmt: skip
    t, h, w = latent_shape
    return latents[:, :, :t, :h, :w]


def concatenate(groups: Sequence[TokenGroup]) -> TokenGroup:
    """One sequence of several groups, in order; spans move along."""
    spans: list[FrameSpan] = []
    offset = 0
    for group in groups:
        spans += [replace(span, start=span.start + offset, end=span.end + offset) for span in group.spans]
        offset += group.num_tokens
    shown = [group.colours for group in groups if group.colours is not None]
    return TokenGroup(
        tokens=torch.cat([group.tokens for group in groups], dim=1),
        positions=torch.cat([group.positions for group in groups], dim=1),
        spans=tuple(spans),
        colours=None if not shown else torch.cat([colours_of(group, like=shown[0]) for group in groups], dim=1),
    )


def colours_of(group: TokenGroup, *, like: Float[Tensor, "b _ k"]) -> Float[Tensor, "b n k"]:
    return like.new_zeros(len(like), group.num_tokens, like.shape[2]) if group.colours is None else group.colours


def init_from_base(coarse: nn.Conv3d, base: nn.Conv3d) -> None:
    """Make `coarse` give the MEAN of the base tokens inside its patch: a coarse memory starts as an average of a fine one.

    Raises:
        ValueError: if the coarse kernel is not a multiple of the base kernel.
    """
    kernel, unit = _kernel(coarse), _kernel(base)
    if any(size % step for size, step in zip(kernel, unit, strict=True)):
        raise ValueError(f"kernel is {kernel}; needs a multiple of the base kernel {unit}")
    repeats = [size // step for size, step in zip(kernel, unit, strict=True)]
    with torch.no_grad():
        coarse.weight.copy_(base.weight.repeat(1, 1, *repeats) / math.prod(repeats))
        if coarse.bias is not None and base.bias is not None:
            coarse.bias.copy_(base.bias)


def _kernel(projection: nn.Conv3d) -> Kernel:
    kt, kh, kw = projection.kernel_size
    return int(kt), int(kh), int(kw)
