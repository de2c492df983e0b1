"""Procedural patterns, multi-octave noise and the camera's own noise. Knows textures; not what wears them."""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from model.training.scene import Scene, Texture

BANK_SIZE = 512
CAMERA_NOISE_VALUES = 1 << 20


@lru_cache(maxsize=8)
def noise_bank(bank: int, device: torch.device) -> Tensor:
    """Tileable multi-octave noise `[1, 1, 513, 513]` about 0 to 1 (last row and column repeat the first)."""
    generator = torch.Generator().manual_seed(9000 + bank)
    total = torch.zeros(1, 1, BANK_SIZE, BANK_SIZE)
    for octave in range(3, 9):
        cells = 2**octave
        grid = functional.pad(torch.rand(1, 1, cells, cells, generator=generator), (2, 2, 2, 2), mode="circular")
        scale = BANK_SIZE // cells
        smooth = functional.interpolate(grid, scale_factor=scale, mode="bicubic", align_corners=False)
        total += (smooth[:, :, 2 * scale : -2 * scale, 2 * scale : -2 * scale] - 0.5) * 0.62 ** (octave - 3)
    total = (0.5 + total / (6 * total.std())).clamp(0, 1)
    return functional.pad(total, (0, 1, 0, 1), mode="circular").to(device)


@lru_cache(maxsize=4)
def _camera_noise(device: torch.device) -> Tensor:
    return torch.randn(CAMERA_NOISE_VALUES, generator=torch.Generator().manual_seed(77)).to(device)


def camera_noise(scene: Scene, frames: Sequence[int], size: tuple[int, int], device: torch.device) -> Tensor:
    """Sensor noise `[t, 3, h, w]`, the same for a frame however the video is cut into chunks."""
    count = 3 * size[0] * size[1]
    bank = _camera_noise(device)
    bank = bank.repeat(-(-(count + CAMERA_NOISE_VALUES) // CAMERA_NOISE_VALUES))
    starts = [(frame * 7919 + scene.noise_bank * 104_729) * 613 % CAMERA_NOISE_VALUES for frame in frames]
    return torch.stack([bank[start : start + count] for start in starts]).view(-1, 3, *size) * scene.noise_sigma


def noise(bank: int, u: Tensor, v: Tensor) -> Tensor:
    """The noise bank at (u, v), where 1 is one tile."""
    table = noise_bank(bank, u.device)
    grid = torch.stack((u - u.floor(), v - v.floor()), dim=-1).mul_(2).sub_(1)
    shape = u.shape
    return functional.grid_sample(
        table, grid.view(1, -1, shape[-1], 2), mode="bilinear", padding_mode="border", align_corners=True
    ).view(shape)


def pattern(texture: Texture, x: Tensor, y: Tensor, z: Tensor, footprint: Tensor, grain: Tensor | None) -> Tensor:
    """Share of the bright colour, 0 to 1. Edges are as wide as the pixel's `footprint` (metres), so far ones fade."""
    wave = 2 * math.pi / texture.period_m
    sharpness = (footprint * (1.5 * wave)).clamp_(min=0.05).reciprocal_()
    if texture.kind == "stripes":
        a, b, c = (component * wave for component in texture.direction)
        share = ((a * x + b * y + c * z).sin_() * sharpness).clamp_(-1, 1) * 0.5 + 0.5
    elif texture.kind == "checker":
        share = ((x * wave).sin_() * (y * wave + 0.7).sin_() * (z * wave).sin_() * 3 * sharpness).clamp_(-1, 1)
        share = share * 0.5 + 0.5
    elif texture.kind == "tiles":
        lines = torch.maximum((x * (wave / 2)).cos_().abs_(), (z * (wave / 2)).cos_().abs_())
        share = 1 - ((lines - 0.97) * 12 * sharpness.clamp(max=3)).clamp_(0, 1)
    else:
        share = torch.full_like(x, 0.6)
    if grain is not None:
        fade = (0.35 * sharpness).clamp_(max=1)
        weight = 1.0 if texture.kind == "mottled" else texture.roughness
        share = share + (grain - 0.5) * (2.0 * weight) * fade
    return share.clamp_(0, 1)
