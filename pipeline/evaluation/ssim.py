"""Structural similarity of frames (Wang et al. 2004): means, variances and covariance under a Gaussian window of 11 px."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d

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
    x, y = (video.permute(0, 3, 1, 2).flatten(0, 1)[:, None] for video in (frames, truth))
    places = torch.arange(WINDOW_PX, dtype=x.dtype) - (WINDOW_PX - 1) / 2
    window = torch.exp(-places.square() / (2 * SIGMA_PX**2))
    window /= window.sum()

    def blur(planes: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h2 w2"]:
        return conv2d(conv2d(planes, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))

    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x.square(), blur(y * y) - mean_y.square()
    covariance = blur(x * y) - mean_x * mean_y
    light = (2 * mean_x * mean_y + K1**2) / (mean_x.square() + mean_y.square() + K1**2)
    structure = (2 * covariance + K2**2) / (variance_x + variance_y + K2**2)
    return (light * structure).mean((1, 2, 3)).unflatten(0, (len(frames), 3)).mean(1)
