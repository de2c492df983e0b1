"""Rectified flow: the path from data to noise, and what the network's output means on it.

`x_t = (1 - sigma) * x_0 + sigma * noise`; `velocity = noise - x_0 = (x_t - x_0) / sigma`. Pure arithmetic on tensors: knows
no network, no codec, no memory, no sampler (`model.samplers`).
"""

from typing import Literal, get_args

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


def predicted_velocity(
    output: Float[Tensor, "b c t h w"],
    x_t: Float[Tensor, "b c t h w"],
    sigma: float,
    *,
    source: Float[Tensor, "b c t h w"],
    prediction_type: str,
) -> Float[Tensor, "b c t h w"]:
    """The velocity that the network's output stands for.

    Raises:
        ValueError: for another prediction type.
    """
    if prediction_type == "velocity":
        return output
    sigmas = output.new_full((len(output),), sigma)
    return (x_t - predicted_x_0(output, x_t, sigmas, source=source, prediction_type=prediction_type)) / sigma


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Move sigmas towards noise (SD3, section 5.3.2); shift 1 changes nothing."""
    return shift * sigma / (1 + (shift - 1) * sigma)
