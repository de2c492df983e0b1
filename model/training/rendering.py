"""Frames of a scene before and after an edit, with what differs. Shares every intersection between the two."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor
from torch.nn import functional

from model.training.backdrop import cast_backdrop, paint_backdrop
from model.training.edits import Edit
from model.training.raycast import camera_rays, cast_solid, paint_solid
from model.training.scene import Scene
from model.training.textures import camera_noise

MAX_CHUNK_RAYS = 140_000
"""Planes of one chunk: about half a megabyte each, so that they stay in the cache."""


@dataclass(frozen=True, kw_only=True)
class WorldFrames:
    """Source and edited video of one span; `mask` marks the pixels that the edit changes."""

    source: UInt8[Tensor, "t h w 3"]
    edited: UInt8[Tensor, "t h w 3"]
    mask: Bool[Tensor, "t h w"]


def render_scene(
    scene: Scene,
    edit: Edit,
    frames: Sequence[int],
    *,
    size: tuple[int, int],
    device: torch.device | str = "cpu",
    supersample: int = 1,
) -> WorldFrames:
    """The given frames of a scene, source and edited and what differs, at `size` (height_px, width_px).

    Many or large frames are rendered in chunks, so memory stays bounded; a frame does not depend on the chunk it is in.

    Args:
        supersample: rays per pixel along each axis; 2 gives smooth edges at four times the cost.
    """
    device = torch.device(device)
    rays_per_row = size[1] * supersample**2
    num_rows = max(1, min(size[0], MAX_CHUNK_RAYS // rays_per_row))
    num_frames = max(1, MAX_CHUNK_RAYS // (rays_per_row * size[0]))
    chunks = []
    for first in range(0, len(frames), num_frames):
        chunk = frames[first : first + num_frames]
        bands = [
            _render_band(scene, edit, chunk, size, (top, min(size[0], top + num_rows)), supersample, device)
            for top in range(0, size[0], num_rows)
        ]
        source, edited, mask = (torch.cat(part, dim=-2) for part in zip(*bands, strict=True))
        chunks.append((*_develop(scene, edit, chunk, size, source, edited), mask))
    source, edited, mask = (torch.cat(part) for part in zip(*chunks, strict=True))
    return WorldFrames(source=source, edited=edited, mask=mask)


def _render_band(
    scene: Scene,
    edit: Edit,
    frames: Sequence[int],
    size: tuple[int, int],
    rows: tuple[int, int],
    supersample: int,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of a chunk before the camera's noise: source and edited `[t, 3, h, w]`, mask `[t, h, w]`."""
    fine_size = (size[0] * supersample, size[1] * supersample)
    rays = camera_rays(scene, frames, fine_size, (rows[0] * supersample, rows[1] * supersample), device)
    behind = cast_backdrop(scene, rays, frames)
    source = paint_backdrop(behind, scene.backdrop)
    depth = behind.depth
    owner = torch.full(depth.shape, -1, dtype=torch.int8, device=device)
    target_hit = None
    for index, solid in enumerate(scene.solids):
        hit = cast_solid(scene, solid, rays, frames)
        if hit is None:
            continue
        is_front = hit.depth < depth[hit.window]
        depth[hit.window] = torch.where(is_front, hit.depth, depth[hit.window])
        owner[hit.window] = owner[hit.window].masked_fill(is_front, index)
        everywhere = (slice(None), *hit.window)
        source[everywhere] = torch.where(is_front, paint_solid(hit, solid.colour, solid.texture), source[everywhere])
        if index == edit.target:
            target_hit = hit

    edited = source.clone()
    mask = torch.zeros(depth.shape, dtype=torch.bool, device=device)
    if edit.colour is not None and target_hit is not None:
        everywhere = (slice(None), *target_hit.window)
        texture = scene.solids[edit.target].texture
        mask[target_hit.window] = owner[target_hit.window] == edit.target
        repainted = paint_solid(target_hit, edit.colour, texture)
        edited[everywhere] = torch.where(mask[target_hit.window], repainted, edited[everywhere])
    for piece in edit.hat:
        hit = cast_solid(scene, piece, rays, frames)
        if hit is None:
            continue
        is_front = hit.depth < depth[hit.window]
        depth[hit.window] = torch.where(is_front, hit.depth, depth[hit.window])
        mask[hit.window] |= is_front
        everywhere = (slice(None), *hit.window)
        edited[everywhere] = torch.where(is_front, paint_solid(hit, piece.colour, piece.texture), edited[everywhere])
    if edit.backdrop is not None:
        is_changed = behind.is_floor
        if edit.backdrop.floor == scene.backdrop.floor:
            is_changed = ~behind.is_floor
            is_changed &= ~behind.is_hill if behind.is_hill is not None else True
            is_changed &= (behind.height == 0) if scene.backdrop.is_room else True
        mask = is_changed & (owner < 0)
        edited = torch.where(mask, paint_backdrop(behind, edit.backdrop), edited)
    if edit.style is not None:
        mask = torch.ones_like(mask)
    source, edited = source.transpose(0, 1), edited.transpose(0, 1)
    if supersample > 1:
        source, edited = (functional.avg_pool2d(planes, supersample) for planes in (source, edited))
        mask = functional.max_pool2d(mask.float(), supersample) > 0
    return source, edited, mask


def _develop(
    scene: Scene, edit: Edit, frames: Sequence[int], size: tuple[int, int], source: Tensor, edited: Tensor
) -> tuple[Tensor, Tensor]:
    """Vignette, sensor noise and, where the edit is one, the style; then 8 bits. Equal in both outside the edit."""
    y = torch.linspace(-1, 1, size[0], device=source.device)[:, None]
    x = torch.linspace(-1, 1, size[1], device=source.device)
    shade = 1 - scene.vignette * 0.5 * (x * x + y * y)
    noise = camera_noise(scene, frames, size, source.device) if scene.noise_sigma > 0 else 0.0
    source = source * shade + noise
    edited = edit.style(source) if edit.style is not None else edited * shade + noise
    eight_bit = [(rgb * 255).round_().clamp_(0, 255).to(torch.uint8) for rgb in (source, edited)]
    return eight_bit[0].permute(0, 2, 3, 1).contiguous(), eight_bit[1].permute(0, 2, 3, 1).contiguous()


def edited_attribute(frames: Tensor, mask: Tensor) -> Tensor:
    """Mean colour `[3]` in [0, 1] of `frames` (uint8 or float in [0, 1], [t, h, w, 3]) over the edited pixels.

    The mask's rim, where object and background mix, is left out unless nothing else remains.

    Raises:
        ValueError: if no pixel is marked.
    """
    if not bool(mask.any()):
        raise ValueError("mask marks no pixel; needs at least one")
    inner = functional.max_pool2d((~mask).float()[:, None], 3, stride=1, padding=1)[:, 0] == 0
    chosen = inner if int(inner.sum()) >= 4 else mask
    values = frames[chosen].float()
    return values.mean(0) / 255 if frames.dtype == torch.uint8 else values.mean(0)
