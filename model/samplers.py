"""From noise to data along the flow that a network predicts: our Euler steps, or a scheduler of diffusers.

A sampler asks `velocity(x_t, timestep, sigma)` at every step; who answers, and what the network's output means, it does not
know. Deterministic: a result depends on noise and source alone, so schedulers that draw noise of their own are refused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import diffusers
import torch
from jaxtyping import Float
from torch import Tensor

from model.checkpoints import read_json
from model.flow import NUM_TRAIN_TIMESTEPS, shift_sigma

Velocity = Callable[[Float[Tensor, "b c t h w"], Float[Tensor, "b"], float], Float[Tensor, "b c t h w"]]

SCHEDULERS = ("UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler")


class Sampler(Protocol):
    def __call__(
        self, velocity: Velocity, noise: Float[Tensor, "b c t h w"], source: Float[Tensor, "b c t h w"]
    ) -> Float[Tensor, "b c t h w"]:
        """Clean latents; `source` is where a sampler starts that keeps some of it."""
        ...


def sigma_schedule(num_inference_steps: int, *, shift: float) -> list[float]:
    """`num_inference_steps + 1` sigmas from 1 to 0.

    Raises:
        ValueError: for fewer than one step.
    """
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps is {num_inference_steps}; needs at least 1")
    return shift_sigma(torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64), shift).tolist()


@dataclass(frozen=True, kw_only=True)
class EulerSampler:
    """Euler steps from pure noise at sigma 1 to sigma 0."""

    num_inference_steps: int
    shift: float

    def __call__(
        self, velocity: Velocity, noise: Float[Tensor, "b c t h w"], source: Float[Tensor, "b c t h w"]
    ) -> Float[Tensor, "b c t h w"]:
        x_t = noise
        for sigma, next_sigma in pairwise(sigma_schedule(self.num_inference_steps, shift=self.shift)):
            timestep = torch.full((len(noise),), sigma, device=noise.device) * NUM_TRAIN_TIMESTEPS
            x_t = x_t + (next_sigma - sigma) * velocity(x_t, timestep, sigma)
        return x_t


@dataclass(frozen=True, kw_only=True)
class SchedulerSampler:
    """The steps of a diffusers scheduler, as diffusers' Wan pipelines take them.

    Attributes:
        strength: 1 starts from pure noise; less, from the source with the noise of that share of the steps (SDEdit, as in
            diffusers' `WanVideoToVideoPipeline`).
    """

    scheduler: Any
    num_inference_steps: int
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps is {self.num_inference_steps}; needs at least 1")
        if int(self.num_inference_steps * self.strength) < 1 or self.strength > 1:
            raise ValueError(f"strength is {self.strength}; needs at most 1, and a step of {self.num_inference_steps}")

    def __call__(
        self, velocity: Velocity, noise: Float[Tensor, "b c t h w"], source: Float[Tensor, "b c t h w"]
    ) -> Float[Tensor, "b c t h w"]:
        self.scheduler.set_timesteps(self.num_inference_steps, device=noise.device)
        begin = self.num_inference_steps - int(self.num_inference_steps * self.strength)
        timesteps, sigmas = self.scheduler.timesteps[begin:], self.scheduler.sigmas[begin:]
        x_t = noise
        if begin:
            add_noise = getattr(self.scheduler, "add_noise", None)
            start = timesteps[:1].expand(len(noise))
            x_t = add_noise(source, noise, start) if add_noise else self.scheduler.scale_noise(source, start, noise)
        for timestep, sigma in zip(timesteps, sigmas[: len(timesteps)].tolist(), strict=True):
            predicted = velocity(x_t, timestep.expand(len(noise)), sigma)
            x_t = self.scheduler.step(predicted, timestep, x_t, return_dict=False)[0]
        return x_t


def load_scheduler(folder: Path, *, shift: float | None = None) -> Any:
    """A pipeline's scheduler; `shift` stands instead of its own.

    Raises:
        ValueError: for a scheduler that is not of a flow, draws noise, or is not one of `SCHEDULERS`.
    """
    config: Mapping[str, Any] = read_json(folder / "scheduler_config.json")
    name = config.get("_class_name")
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler is {name}; needs one of {', '.join(SCHEDULERS)}")
    is_euler = name == "FlowMatchEulerDiscreteScheduler"
    if not is_euler and not (config.get("use_flow_sigmas") and config.get("prediction_type") == "flow_prediction"):
        raise ValueError(
            f"scheduler {name} is not of a flow; needs use_flow_sigmas and prediction_type flow_prediction"
        )
    if config.get("stochastic_sampling") or str(config.get("algorithm_type", "")).startswith("sde"):
        raise ValueError(f"scheduler {name} draws noise at every step; needs a deterministic one")
    changes = {} if shift is None else {"shift" if is_euler else "flow_shift": shift}
    return getattr(diffusers, name).from_config({**config, **changes})
