"""Structural similarity of frames (Wang et al. 2004): means, variances and covariance under a Gaussian window of 11 px."""

import torch
from jaxtyping import Float
from torch import Tensor

WINDOW_PX = 11
SIGMA_PX = 1.5
K1, K2 = 0.01, 0.03


def ssim(frames: Float[Tensor, "t h w 3"], truth: Float[Tensor, "t h w 3"]) -> Float[Tensor, "t"]:
    """Mean over the places where the window fits and over the channels, of frames in [0, 1]. 1 is equal.

    Raises:
        ValueError: if a frame is smaller than the window.
    """
    height, width = frames.shape[1:3]
    if min(height, width) < WINDOW_PX:
        raise ValueError(f"frames are {height}x{width} px; ssim needs at least {WINDOW_PX} px a side")
    x, y = (video.permute(0, 3, 1, 2) for video in (frames, truth))
    down, across = averaging(height), averaging(width).T

    def blur(planes: Float[Tensor, "t 3 h w"]) -> Float[Tensor, "t 3 h2 w2"]:
        return down @ planes @ across

    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x.square(), blur(y * y) - mean_y.square()
    covariance = blur(x * y) - mean_x * mean_y
    light = (2 * mean_x * mean_y + K1**2) / (mean_x.square() + mean_y.square() + K1**2)
    structure = (2 * covariance + K2**2) / (variance_x + variance_y + K2**2)
    return (light * structure).mean((1, 2, 3))


def averaging(length: int) -> Float[Tensor, "m n"]:
    """The window at every place of a row of `length` where it fits, as a matrix: at these sizes far faster than a convolution."""
    places = torch.arange(length)[None] - torch.arange(length - WINDOW_PX + 1)[:, None]
    window = torch.exp(-(places - (WINDOW_PX - 1) / 2).square() / (2 * SIGMA_PX**2))
    window[(places < 0) | (places >= WINDOW_PX)] = 0
    return window / window.sum(1, keepdim=True)
