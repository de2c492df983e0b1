"""Floor, sky, hills and walls by ray casting. Knows the scene's backdrop and its solids' shadows; not the solids themselves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.training.primitives import FAR_M
from model.training.raycast import Rays, window_of
from model.training.scene import Backdrop, Scene
from model.training.textures import noise, pattern


@dataclass(frozen=True, kw_only=True)
class BackdropHit:
    """Everything of a backdrop that does not depend on its colours, so that it can be painted twice."""

    depth: Tensor
    is_floor: Tensor
    floor_share: Tensor
    floor_brightness: Tensor
    place: tuple[Tensor, Tensor]
    """Where on the floor: x and z."""
    haze: Tensor
    far_share: Tensor
    far_brightness: Tensor
    height: Tensor
    """Sky: 0 at the horizon to 1 overhead. Room: 1 on the ceiling."""
    is_hill: Tensor | None


def cast_backdrop(scene: Scene, rays: Rays, frames: Sequence[int]) -> BackdropHit:
    backdrop = scene.backdrop
    (ox, oy, oz), (dx, dy, dz) = rays.origin, rays.direction
    slope = torch.where(dy.abs() < 1e-5, 1e-5, dy)
    if backdrop.is_room:
        wall_x = (dx.sign() * backdrop.room_half_m[0] - ox) / torch.where(dx.abs() < 1e-5, 1e-5, dx)
        wall_z = (dz.sign() * backdrop.room_half_m[1] - oz) / torch.where(dz.abs() < 1e-5, 1e-5, dz)
        wall = torch.minimum(wall_x.abs_(), wall_z.abs_())
        level = (torch.where(dy < 0, 0.0, backdrop.room_height_m) - oy) / slope
        is_floor = (dy < 0) & (level < wall)
        is_ceiling = (dy > 0) & (level < wall)
        depth = torch.minimum(wall, level.masked_fill(~(is_floor | is_ceiling), FAR_M))
        x, z = ox + depth * dx, oz + depth * dz
        wall_v = oy + depth * dy
        is_wall = ~is_floor
        along = torch.where(wall_x < wall_z, z, x + 31.7)
        tex_x, tex_z = torch.where(is_wall, along, x), torch.where(is_wall, wall_v, z)
        tex_scale, slant = torch.full_like(depth, 0.035), torch.full_like(depth, 0.7)
        height = is_ceiling.float()
        far_brightness = torch.where(wall_x < wall_z, 0.92, 1.0) * (0.85 + 0.05 * wall_v.clamp(0, 4))
        haze = torch.zeros_like(depth)
        is_hill = None
    else:
        is_floor = dy < -1e-3
        plane = torch.where(is_floor, -oy, 60.0) / torch.where(is_floor, slope, slope.clamp(min=0.04))
        depth = torch.where(is_floor, plane, FAR_M)
        tex_x, tex_z = ox + plane * dx, oz + plane * dz
        tex_scale = torch.where(is_floor, 0.035, 0.05 / backdrop.far_texture.period_m)
        slant = (-dy).clamp(min=0.05)
        flat = (dx * dx + dz * dz).sqrt_()
        rise = (dy / flat).clamp_(min=0)
        height = (rise * 1.6).clamp_(max=1)
        far_brightness = torch.ones_like(depth)
        haze = 1 - torch.exp(plane.clamp(max=500) * (-1 / 80.0))
        is_hill = None
        if backdrop.hill_height > 0:
            azimuth = torch.atan2(dx, dz) / (2 * math.pi)
            ridge = noise(scene.noise_bank, azimuth, torch.full_like(azimuth, backdrop.far_texture.offset[1]))
            is_hill = ~is_floor & (rise < (ridge - 0.25) * backdrop.hill_height)
    floor, far = backdrop.floor_texture, backdrop.far_texture
    offset_u = torch.where(is_floor, floor.offset[0], far.offset[0])
    grain = noise(scene.noise_bank, tex_x * tex_scale + offset_u, tex_z * tex_scale + floor.offset[1])
    footprint = depth * rays.pixel / slant
    zero = torch.zeros(1, device=depth.device).expand_as(depth)
    if floor.kind == "checker":
        zero = zero + floor.period_m / 4
    floor_share = pattern(floor, tex_x, zero, tex_z, footprint, grain)
    if backdrop.is_room:
        far_share = pattern(far, tex_x, zero, tex_z, footprint, grain)
    else:
        far_share = ((grain - 0.42) * 5).clamp_(0, 1) * (rise * 6).clamp_(max=1) * far.contrast
    return BackdropHit(
        depth=depth,
        is_floor=is_floor,
        floor_share=floor_share,
        floor_brightness=cast_shadows(scene, rays, frames, (tex_x, tex_z)),
        place=(tex_x, tex_z),
        haze=haze,
        far_share=far_share,
        far_brightness=far_brightness,
        height=height,
        is_hill=is_hill,
    )


def cast_shadows(scene: Scene, rays: Rays, frames: Sequence[int], place: tuple[Tensor, Tensor]) -> Tensor:
    """Brightness of the floor: soft blobs under the solids, stretched away from the light."""
    x, z = place
    brightness = torch.ones_like(x)
    lx, ly, lz = scene.light
    for solid in scene.solids:
        if not solid.has_shadow:
            continue
        reach = solid.half[1] * min(1.2, 0.8 / max(ly, 0.2))
        feet = [solid.centre_at(frame) for frame in frames]
        ground = torch.tensor([(cx - lx * reach, 0.0, cz - lz * reach) for cx, _, cz in feet], device=x.device)
        radius = 1.25 * max(solid.half[0], solid.half[2])
        window = window_of(rays, ground, 2.2 * radius)
        if window is None:
            continue
        lift = [1 / (1 + max(0.0, cy - solid.half[1]) * 1.5) for _, cy, _ in feet]
        depth = 0.55 * (1 - 0.6 * scene.ambient) * torch.tensor(lift, device=x.device)[window[0], None, None]
        gx, gz = x[window] - ground[window[0], 0, None, None], z[window] - ground[window[0], 2, None, None]
        blob = ((gx * gx + gz * gz) * (-1 / (radius * radius))).clamp_(min=-30).exp_()  # denormals are slow
        brightness[window].mul_(1 - depth * blob)
    return brightness


def paint_backdrop(hit: BackdropHit, backdrop: Backdrop) -> Tensor:
    """`[3, t, h, w]` of the backdrop in the colours of `backdrop`."""
    planes = []
    for floor, far, zenith, hills in zip(backdrop.floor, backdrop.far, backdrop.zenith, backdrop.hills, strict=True):
        dark = floor * (1 - backdrop.floor_texture.contrast)
        ground = (dark + (floor - dark) * hit.floor_share) * hit.floor_brightness
        if backdrop.is_room:
            dark = far * (1 - 0.6 * backdrop.far_texture.contrast)
            behind = (dark + (far - dark) * hit.far_share) * hit.far_brightness
            behind = torch.where(hit.height > 0, zenith * 0.9, behind)
        else:
            sky = far + (zenith - far) * hit.height
            behind = sky + (0.5 + 0.5 * far - sky) * hit.far_share
            if hit.is_hill is not None:
                behind = torch.where(hit.is_hill, 0.65 * hills + 0.35 * far, behind)
            ground = ground + (far - ground) * hit.haze
        planes.append(torch.where(hit.is_floor, ground, behind))
    return torch.stack(planes)
