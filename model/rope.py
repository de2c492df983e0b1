"""Rotary position embedding as a function of explicit token positions.

diffusers' `WanRotaryPosEmbed` reads positions off the shape of a dense video. Here every token carries its own (t, y, x), in
units of base tokens and possibly fractional, so that memory tokens stand in their own temporal range, coarse tokens at the
centre of what they cover, and merged tokens anywhere. For a dense grid the result equals diffusers'.

Legend: B batch, N tokens, D head dimension.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """How Wan splits a head between t, y and x."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def rotary_embedding(
    positions: Float[Tensor, "b n 3"], head_dim: int, *, theta: float = 10_000.0
) -> tuple[Float[Tensor, "b n 1 d"], Float[Tensor, "b n 1 d"]]:
    """Cosine and sine per token, in the interleaved layout that diffusers' Wan attention expects."""
    angles = []
    for axis, dim in enumerate(axis_dims(head_dim)):
        exponent = torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim
        angles.append(positions[..., axis, None].double() * theta**-exponent)
    angles_BND = torch.cat(angles, dim=-1).repeat_interleave(2, dim=-1).unsqueeze(2)
    return angles_BND.cos().float(), angles_BND.sin().float()
