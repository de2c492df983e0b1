"""Rays of a camera and what they meet of a scene's solids, all frames of a chunk at once. Knows nothing of edits.

Planes are `[t, h, w]` (one value per ray); `depth` is along the camera's axis, because directions keep forward length 1.
Every solid is intersected only inside the rectangle of frames, rows and columns that its bounding sphere can touch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from model.training.primitives import INTERSECT
from model.training.scene import Scene, Solid, Texture
from model.training.textures import noise, pattern


@dataclass(frozen=True, kw_only=True)
class Rays:
    """Origins `[t, 1, 1]`, directions `[t, h, w]`, and the camera's axes (rows: right, up, forward) `[t, 3, 3]`."""

    origin: tuple[Tensor, Tensor, Tensor]
    direction: tuple[Tensor, Tensor, Tensor]
    axes: Tensor
    pixel: float
    columns: tuple[float, float]
    rows: tuple[float, float]
    """First pixel's coordinate and step, in units of the focal length."""

    def crop(self, window: tuple[slice, slice, slice]) -> "Rays":
        ox, oy, oz = (plane[window[0]] for plane in self.origin)
        dx, dy, dz = (plane[window] for plane in self.direction)
        return Rays(
            origin=(ox, oy, oz),
            direction=(dx, dy, dz),
            axes=self.axes[window[0]],
            pixel=self.pixel,
            columns=self.columns,
            rows=self.rows,
        )


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A solid seen in `window`: whether and how far, its pattern's value in [0, 1] and its brightness."""

    window: tuple[slice, slice, slice]
    depth: Tensor
    colour_share: Tensor
    brightness: Tensor


def pixel_of(scene: Scene, size: tuple[int, int]) -> float:
    """Width of a pixel at distance 1."""
    return 2 * math.tan(math.radians(scene.camera.fov_deg) / 2) / math.sqrt(size[0] * size[1])


def camera_axes(scene: Scene, frames: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Right, up and forward (rows) `[t, 3, 3]` and positions `[t, 3]`."""
    poses = [scene.camera.pose(frame) for frame in frames]
    axes = []
    for pose in poses:
        sy, cy, sp, cp = math.sin(pose.yaw), math.cos(pose.yaw), math.sin(pose.pitch), math.cos(pose.pitch)
        axes.append(((cy, 0.0, -sy), (-sy * sp, cp, -cy * sp), (sy * cp, sp, cy * cp)))
    return torch.tensor(axes, device=device), torch.tensor([pose.position for pose in poses], device=device)


def camera_matrices(
    scene: Scene, stand: tuple[Tensor, Tensor], size: tuple[int, int]
) -> tuple[Float[Tensor, "t 4 4"], Float[Tensor, "t 3 3"]]:
    """`c2w` and `intrinsics` of `camera_axes` at `size` (h, w), OpenCV axes: camera and world have x right, y DOWN, z forward.

    The scene's own y points up; here it is negated, so that rotations are proper. Metres; the centre of the pixel in column j and
    row i is (j + 0.5, i + 0.5).
    """
    axes, position = stand
    c2w = torch.eye(4, device=axes.device).repeat(len(axes), 1, 1)
    c2w[:, :3, :3] = axes.transpose(1, 2) * axes.new_tensor([1, -1, 1])
    c2w[:, :3, 3] = position
    c2w[:, 1] *= -1
    focal = 1 / pixel_of(scene, size)
    camera = torch.tensor([[focal, 0, size[1] / 2], [0, focal, size[0] / 2], [0, 0, 1]], device=axes.device)
    return c2w, camera.repeat(len(axes), 1, 1)


def camera_rays(scene: Scene, stand: tuple[Tensor, Tensor], size: tuple[int, int], rows: tuple[int, int]) -> Rays:
    """Rays from `camera_axes` through rows `[rows[0], rows[1])` of an image of `size` (h, w)."""
    height, width = size
    pixel = pixel_of(scene, size)
    (axes_t, position), device = stand, stand[0].device
    first_x, first_y = pixel * (0.5 - width / 2), pixel * (height / 2 - 0.5 - rows[0])
    x = torch.arange(width, device=device) * pixel + first_x
    y = torch.arange(rows[1] - rows[0], device=device) * -pixel + first_y
    dx, dy, dz = (
        (axes_t[:, 2, i, None] + y * axes_t[:, 1, i, None])[:, :, None] + (x * axes_t[:, 0, i, None])[:, None, :]
        for i in range(3)
    )
    ox, oy, oz = (position[:, i, None, None] for i in range(3))
    return Rays(
        origin=(ox, oy, oz),
        direction=(dx, dy, dz),
        axes=axes_t,
        pixel=pixel,
        columns=(first_x, pixel),
        rows=(first_y, -pixel),
    )


def window_of(rays: Rays, centres: Tensor, radius: float) -> tuple[slice, slice, slice] | None:
    """Frames, rows and columns that spheres at `centres` [t, 3] can touch; None if nowhere."""
    offset = centres - torch.cat([plane[:, 0] for plane in rays.origin], dim=1)
    across, up, depth = torch.einsum("tij,tj->it", rays.axes, offset).tolist()
    height, width = rays.direction[0].shape[1:]
    boxes = []
    for frame, (x, y, z) in enumerate(zip(across, up, depth, strict=True)):
        if z <= -radius:
            continue
        if z - radius < 0.05:
            boxes.append((frame, 0, height, 0, width))
            continue
        near, far = 1 / (z - radius), 1 / (z + radius)
        left = (x - radius) * (near if x < radius else far)
        right = (x + radius) * (near if x > -radius else far)
        low = (y - radius) * (near if y < radius else far)
        high = (y + radius) * (near if y > -radius else far)
        c0 = max(0, math.floor((left - rays.columns[0]) / rays.columns[1]))
        c1 = min(width, math.ceil((right - rays.columns[0]) / rays.columns[1]) + 1)
        r0 = max(0, math.floor((high - rays.rows[0]) / rays.rows[1]))
        r1 = min(height, math.ceil((low - rays.rows[0]) / rays.rows[1]) + 1)
        if c0 < c1 and r0 < r1:
            boxes.append((frame, r0, r1, c0, c1))
    if not boxes:
        return None
    frames, tops, bottoms, lefts, rights = zip(*boxes, strict=True)
    return (
        slice(frames[0], frames[-1] + 1),
        slice(min(tops), max(bottoms)),
        slice(min(lefts), max(rights)),
    )


def cast_solid(scene: Scene, solid: Solid, rays: Rays, frames: Sequence[int]) -> Hit | None:
    """Where `solid` would be seen if it stood alone; depth is FAR_M where it is missed."""
    centres = torch.tensor([solid.centre_at(frame) for frame in frames], device=rays.axes.device)
    window = window_of(rays, centres, math.hypot(*solid.half))
    if window is None:
        return None
    rays = rays.crop(window)
    yaws = torch.tensor([solid.yaw_at(frame) for frame in frames], device=centres.device)[window[0]]
    cos, sin = yaws.cos()[:, None, None], yaws.sin()[:, None, None]
    centre = centres[window[0]]
    ox, oy, oz = (rays.origin[i] - centre[:, i, None, None] for i in range(3))
    dx, dy, dz = rays.direction
    hx, hy, hz = solid.half
    if solid.pitch or solid.roll:
        ox, oz, dx, dz = ox * cos - oz * sin, ox * sin + oz * cos, dx * cos - dz * sin, dx * sin + dz * cos
        (ox, oy, oz), (dx, dy, dz) = _upright(solid, ox, oy, oz), _upright(solid, dx, dy, dz)
        ox, oz, dx, dy, dz = ox / hx, oz / hz, dx / hx, dy / hy, dz / hz
    else:
        ox, oz = (ox * cos - oz * sin) / hx, (ox * sin + oz * cos) / hz
        dx, dy, dz = dx * (cos / hx) - dz * (sin / hx), dy / hy, dx * (sin / hz) + dz * (cos / hz)
    oy = oy / hy
    depth, nx, ny, nz = INTERSECT[solid.shape](ox, oy, oz, dx, dy, dz)
    near = depth.clamp(max=1e3)
    px, py, pz = (ox + near * dx) * hx, (oy + near * dy) * hy, (oz + near * dz) * hz
    texture = solid.texture
    grain = None
    if texture.kind == "mottled" or texture.roughness > 0.4:
        grain = noise(
            scene.noise_bank,
            (px + 0.6 * pz) * 0.11 + texture.offset[0],
            (py + 0.35 * pz - 0.2 * px) * 0.11 + texture.offset[1],
        )
    share = (
        torch.ones_like(px)
        if texture.kind == "plain" and grain is None
        else pattern(texture, px, py, pz, near * rays.pixel, grain)
    )
    nx, ny, nz = nx / hx, ny / hy, nz / hz
    if solid.pitch or solid.roll:
        nx, ny, nz = _tilted(solid, nx, ny, nz)
    nx, nz = nx * cos + nz * sin, nz * cos - nx * sin
    length = (nx * nx + ny * ny + nz * nz).clamp_(min=1e-12).rsqrt_()
    lx, ly, lz = scene.light
    lambert = ((nx * lx + ny * ly + nz * lz) * length).clamp_(min=0)
    brightness = scene.ambient * (0.8 + 0.2 * ny * length) + (1.05 - scene.ambient) * lambert
    return Hit(window=window, depth=depth, colour_share=share, brightness=brightness)


def _upright(solid: Solid, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From the space that is only yawed into the solid's own: pitch undone, then roll."""
    sin, cos = math.sin(solid.pitch), math.cos(solid.pitch)
    y, z = y * cos + z * sin, z * cos - y * sin
    sin, cos = math.sin(solid.roll), math.cos(solid.roll)
    return x * cos + y * sin, y * cos - x * sin, z


def _tilted(solid: Solid, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Back: roll, then pitch."""
    sin, cos = math.sin(solid.roll), math.cos(solid.roll)
    x, y = x * cos - y * sin, x * sin + y * cos
    sin, cos = math.sin(solid.pitch), math.cos(solid.pitch)
    return x, y * cos - z * sin, y * sin + z * cos


def paint_solid(hit: Hit, colour: Sequence[float], texture: Texture) -> Tensor:
    """`[3, t, h, w]` of a solid's window in `colour`."""
    shade = (1 - texture.contrast * (1 - hit.colour_share)) * hit.brightness
    return torch.stack([shade * value for value in colour])
