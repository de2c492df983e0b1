"""A look at what the network makes: per row a frame as source, edited by the network, and as it should be.

The frame is the one where most is edited.
"""

from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from model.samplers import EulerSampler
from model.training.batches import Batch, BatchSampler
from model.training.editing import Editing
from model.training.segments import VideoCodec

NUM_ROWS = 3
NUM_STEPS = 4
NUM_TRIES = 50


def grid_batch(sampler: BatchSampler, *, num_frames: int) -> Batch:
    """The batch that is looked at again and again: the first one with memories that are given, if there is one."""
    for step in range(NUM_TRIES):
        batch = sampler.batch(step, batch_size=NUM_ROWS, num_frames=num_frames)
        if batch.memory and batch.memory_sigma is None:
            return batch
    return replace(batch, memory=(), memory_sigma=None, merging=None)


@torch.no_grad()
def sample_grid(
    editing: Editing, batch: Batch, codec: VideoCodec, *, shift: float, device: torch.device
) -> Float[Tensor, "3 H W"]:
    """Edit a batch from its noise in a few Euler steps. Asks the network only through its forward, as training does."""
    batch, latent_frames = batch.to(device), batch.x_0.shape[2]
    is_velocity = editing.transformer.config.prediction_type == "velocity"

    def velocity(x_t: Tensor, timestep: Tensor, sigma: float) -> Tensor:
        # Data of zeros under noise x_t / sigma is x_t itself.
        seen = replace(
            batch, x_0=torch.zeros_like(x_t), noise=x_t / sigma, sigma=batch.sigma.new_full((len(x_t),), sigma)
        )
        predicted, *_ = editing(seen, num_range_frames=latent_frames)
        return predicted if is_velocity else (x_t - predicted) / sigma

    edited = EulerSampler(num_inference_steps=NUM_STEPS, shift=shift)(velocity, batch.noise, batch.source)
    frames = codec.group_frames * batch.mask.flatten(2).sum(2).argmax(1)
    columns = []
    for latents in (batch.source, edited, batch.x_0):
        video = codec.decode(latents)
        columns.append(video[torch.arange(len(video)), :, frames].clamp(0, 1))
    return rearrange(torch.stack(columns), "column b c h w -> c (b h) (column w)").float().cpu()
