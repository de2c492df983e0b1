"""How fast, how long and by which optimizer: pure functions of the step and the options."""

import math

import torch
from torch import nn

from model.training.config import TrainingConfig


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then a cosine down to a twentieth."""
    warm = min(1.0, (step + 1) / config.warmup_steps)
    progress = min(1.0, step / config.steps)
    return config.learning_rate * warm * (0.525 + 0.475 * math.cos(math.pi * progress))


def stage_at(step: int, config: TrainingConfig) -> tuple[int, int]:
    """Latent frames and batch size of a step."""
    for steps, num_frames, batch_size in config.stages:
        if step < steps:
            return num_frames, batch_size
        step -= steps
    return config.stages[-1][1:]


def make_optimizers(editing: nn.Module, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for all else (embeddings, norms, modulation, input and output, adapters).

    Muon makes every matrix orthogonal, a third of a step on one core: one Muon per shard, to be stepped at the same time.
    """
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in editing.named_parameters():
        if not parameter.requires_grad:
            continue
        is_inner = parameter.ndim == 2 and ("blocks." in name or ".block." in name)
        is_matrix = is_inner and "relative" not in name and "lora_" not in name
        (matrices if is_matrix else rest).append(parameter)
    matrices.sort(key=lambda matrix: matrix.numel(), reverse=True)
    shares = [matrices[shard :: config.num_shards] for shard in range(config.num_shards)]
    return [
        *(
            torch.optim.Muon(
                share, lr=config.learning_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
            for share in shares
            if share
        ),
        torch.optim.AdamW(rest, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay),
    ]
