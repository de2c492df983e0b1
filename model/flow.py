"""Rectified flow: the path from data to noise, what the network's output means on it, and the sampler.

`x_t = (1 - sigma) * x_0 + sigma * noise`; `velocity = noise - x_0 = (x_t - x_0) / sigma`. Pure arithmetic on tensors: knows
no network, no codec, no memory. A network that predicts anything else is turned into one that predicts x_0 here.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

PredictionType = Literal["velocity", "source_residual"]

NUM_TRAIN_TIMESTEPS = 1000
"""Wan's networks see `sigma * 1000`."""


def add_noise(
    x_0: Float[Tensor, "b c t h w"], noise: Float[Tensor, "b c t h w"], sigma: Float[Tensor, "b"]
) -> Float[Tensor, "b c t h w"]:
    """x_t at one sigma per sample."""
    sigma = sigma.view(-1, 1, 1, 1, 1)
    return (1 - sigma) * x_0 + sigma * noise


def predicted_x_0(
    output: Float[Tensor, "b c t h w"],
    x_t: Float[Tensor, "b c t h w"],
    sigma: Float[Tensor, "b"],
    *,
    source: Float[Tensor, "b c t h w"],
    prediction_type: str,
) -> Float[Tensor, "b c t h w"]:
    """The clean latents that the network's output stands for.

    "velocity": the output is noise - x_0. "source_residual": the output is what the edit adds to the source, so a network
    that says nothing leaves the video as it is.

    Raises:
        ValueError: for another prediction type.
    """
    if prediction_type == "velocity":
        return x_t - sigma.view(-1, 1, 1, 1, 1) * output
    if prediction_type == "source_residual":
        return source + output
    raise ValueError(f"prediction_type is {prediction_type!r}; needs one of {get_args(PredictionType)}")


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Move sigmas towards noise (SD3, section 5.3.2); shift 1 changes nothing."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sigma_schedule(num_inference_steps: int, *, shift: float) -> list[float]:
    """`num_inference_steps + 1` sigmas from 1 to 0.

    Raises:
        ValueError: for fewer than one step.
    """
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps is {num_inference_steps}; needs at least 1")
    return shift_sigma(torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64), shift).tolist()


def sample(
    predict_x_0: Callable[[Float[Tensor, "b c t h w"], float], Float[Tensor, "b c t h w"]],
    noise: Float[Tensor, "b c t h w"],
    sigmas: Sequence[float],
) -> Float[Tensor, "b c t h w"]:
    """Euler steps along the flow, from `noise` at `sigmas[0]` to data at `sigmas[-1]`."""
    x_t = noise
    for sigma, next_sigma in pairwise(sigmas):
        velocity = (x_t - predict_x_0(x_t, sigma)) / sigma
        x_t = x_t + (next_sigma - sigma) * velocity
    return x_t
