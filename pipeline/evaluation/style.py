"""What an edit does to colours everywhere, as an affine map from source to edited colour: the style of a segment.

Two segments show different things, so their colours cannot be compared; the maps can, by what they make of the same pixels. Of
the suite's restyles, which are bent by a gamma, the maps of two segments of the truth differ by 0.001 to 0.007.
"""

import torch
from jaxtyping import Float
from torch import Tensor

RIDGE = 1e-4
"""Squared RGB: along colours that a segment hardly has (under a standard deviation of 0.01) its map stays the identity."""


def fit_style(source: Float[Tensor, "t h w 3"], edited: Float[Tensor, "t h w 3"]) -> Float[Tensor, "4 3"]:
    """Least squares over all pixels, drawn to the identity by `RIDGE`; the last row is the offset."""
    pixels = source.reshape(-1, 3).double()
    change = edited.reshape(-1, 3).double() - pixels
    mean, shift = pixels.mean(0), change.mean(0)
    centred = pixels - mean
    covariance = centred.T @ centred / len(pixels) + RIDGE * torch.eye(3, dtype=torch.float64)
    slope = torch.linalg.solve(covariance, centred.T @ (change - shift) / len(pixels))
    return torch.cat([slope + torch.eye(3, dtype=torch.float64), (shift - mean @ slope)[None]]).float()


def style_distance(
    style: Float[Tensor, "4 3"], other: Float[Tensor, "4 3"], source: Float[Tensor, "t h w 3"]
) -> Float[Tensor, ""]:
    """Mean RGB distance between what two styles make of the same pixels."""
    difference = style - other
    return torch.linalg.vector_norm(source @ difference[:3] + difference[3], dim=-1).mean()
