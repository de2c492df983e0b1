"""Pixels of a scene by analytic ray casting, all frames of a chunk at once. Knows scenes; knows nothing of edits' wording.

Planes are `[t, h, w]` (one value per ray); `depth` is along the camera's axis, because directions keep forward length 1.
Every solid is intersected only inside the rectangle of frames, rows and columns that its bounding sphere can touch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from model.training.scene import Backdrop, Scene, Solid, Texture

FAR_M = 1e4
FLOOR, BEHIND = -1, -2
"""Ids of what a ray hits when it is no solid: the floor, or sky, hills and walls."""
BANK_SIZE = 512
CAMERA_NOISE_VALUES = 1 << 20


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


def camera_rays(
    scene: Scene, frames: Sequence[int], size: tuple[int, int], rows: tuple[int, int], device: torch.device
) -> Rays:
    """Rays of `frames` through rows `[rows[0], rows[1])` of an image of `size` (h, w)."""
    height, width = size
    poses = [scene.camera.pose(frame) for frame in frames]
    pixel = 2 * math.tan(math.radians(scene.camera.fov_deg) / 2) / math.sqrt(height * width)
    axes = []
    for pose in poses:
        sy, cy, sp, cp = math.sin(pose.yaw), math.cos(pose.yaw), math.sin(pose.pitch), math.cos(pose.pitch)
        axes.append(((cy, 0.0, -sy), (-sy * sp, cp, -cy * sp), (sy * cp, sp, cy * cp)))
    axes_t = torch.tensor(axes, device=device)
    position = torch.tensor([pose.position for pose in poses], device=device)
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


def _noise(bank: int, u: Tensor, v: Tensor) -> Tensor:
    """The noise bank at (u, v), where 1 is one tile."""
    table = noise_bank(bank, u.device)
    grid = torch.stack((u - u.floor(), v - v.floor()), dim=-1).mul_(2).sub_(1)
    shape = u.shape
    return functional.grid_sample(
        table, grid.view(1, -1, shape[-1], 2), mode="bilinear", padding_mode="border", align_corners=True
    ).view(shape)


def _pattern(texture: Texture, x: Tensor, y: Tensor, z: Tensor, footprint: Tensor, noise: Tensor | None) -> Tensor:
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
    if noise is not None:
        fade = (0.35 * sharpness).clamp_(max=1)
        weight = 1.0 if texture.kind == "mottled" else texture.roughness
        share = share + (noise - 0.5) * (2.0 * weight) * fade
    return share.clamp_(0, 1)


def _window(rays: Rays, centres: Tensor, radius: float) -> tuple[slice, slice, slice] | None:
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
    window = _window(rays, centres, math.hypot(*solid.half))
    if window is None:
        return None
    rays = rays.crop(window)
    yaws = torch.tensor([solid.yaw + solid.spin * frame for frame in frames], device=centres.device)[window[0]]
    cos, sin = yaws.cos()[:, None, None], yaws.sin()[:, None, None]
    centre = centres[window[0]]
    ox, oy, oz = (rays.origin[i] - centre[:, i, None, None] for i in range(3))
    dx, dy, dz = rays.direction
    hx, hy, hz = solid.half
    ox, oz = (ox * cos - oz * sin) / hx, (ox * sin + oz * cos) / hz
    oy = oy / hy
    dx, dy, dz = dx * (cos / hx) - dz * (sin / hx), dy / hy, dx * (sin / hz) + dz * (cos / hz)
    depth, nx, ny, nz = _INTERSECT[solid.shape](ox, oy, oz, dx, dy, dz)
    near = depth.clamp(max=1e3)
    px, py, pz = (ox + near * dx) * hx, (oy + near * dy) * hy, (oz + near * dz) * hz
    texture = solid.texture
    noise = None
    if texture.kind == "mottled" or texture.roughness > 0.4:
        noise = _noise(
            scene.noise_bank,
            (px + 0.6 * pz) * 0.11 + texture.offset[0],
            (py + 0.35 * pz - 0.2 * px) * 0.11 + texture.offset[1],
        )
    share = (
        torch.ones_like(px)
        if texture.kind == "plain" and noise is None
        else _pattern(texture, px, py, pz, near * rays.pixel, noise)
    )
    nx, ny, nz = nx / hx, ny / hy, nz / hz
    nx, nz = nx * cos + nz * sin, nz * cos - nx * sin
    length = (nx * nx + ny * ny + nz * nz).clamp_(min=1e-12).rsqrt_()
    lx, ly, lz = scene.light
    lambert = ((nx * lx + ny * ly + nz * lz) * length).clamp_(min=0)
    brightness = scene.ambient * (0.8 + 0.2 * ny * length) + (1.05 - scene.ambient) * lambert
    return Hit(window=window, depth=depth, colour_share=share, brightness=brightness)


def _sphere(ox: Tensor, oy: Tensor, oz: Tensor, dx: Tensor, dy: Tensor, dz: Tensor) -> tuple[Tensor, ...]:
    a = dx * dx + dy * dy + dz * dz
    b = ox * dx + oy * dy + oz * dz
    disc = b * b - a * (ox * ox + oy * oy + oz * oz - 1)
    t = (-b - disc.clamp(min=0).sqrt_()) / a
    t = t.masked_fill((disc < 0) | (t < 1e-3), FAR_M)
    return t, ox + t * dx, oy + t * dy, oz + t * dz


def _dome(ox: Tensor, oy: Tensor, oz: Tensor, dx: Tensor, dy: Tensor, dz: Tensor) -> tuple[Tensor, ...]:
    t, nx, ny, nz = _sphere(ox, oy, oz, dx, dy, dz)
    return t.masked_fill(ny < 0, FAR_M), nx, ny, nz


def _box(ox: Tensor, oy: Tensor, oz: Tensor, dx: Tensor, dy: Tensor, dz: Tensor) -> tuple[Tensor, ...]:
    nears, fars = [], []
    for o, d in ((ox, dx), (oy, dy), (oz, dz)):
        inverse = 1 / torch.where(d.abs() < 1e-6, 1e-6, d)
        middle, reach = -o * inverse, inverse.abs()
        nears.append(middle - reach)
        fars.append(middle + reach)
    near = torch.maximum(torch.maximum(nears[0], nears[1]), nears[2])
    far = torch.minimum(torch.minimum(fars[0], fars[1]), fars[2])
    nx, ny, nz = (torch.where(own == near, -d.sign(), 0.0) for own, d in zip(nears, (dx, dy, dz), strict=True))
    return near.masked_fill((near > far) | (near < 1e-3), FAR_M), nx, ny, nz


def _cylinder(ox: Tensor, oy: Tensor, oz: Tensor, dx: Tensor, dy: Tensor, dz: Tensor) -> tuple[Tensor, ...]:
    a = (dx * dx + dz * dz).clamp_(min=1e-9)
    b = ox * dx + oz * dz
    disc = b * b - a * (ox * ox + oz * oz - 1)
    side = (-b - disc.clamp(min=0).sqrt_()) / a
    side = side.masked_fill((disc < 0) | (side < 1e-3) | ((oy + side * dy).abs() > 1), FAR_M)
    facing = -dy.sign()
    cap = (facing - oy) / torch.where(dy.abs() < 1e-6, 1e-6, dy)
    x, z = ox + cap * dx, oz + cap * dz
    cap = cap.masked_fill((cap < 1e-3) | (x * x + z * z > 1), FAR_M)
    is_cap = cap < side
    t = torch.where(is_cap, cap, side)
    return (
        t,
        torch.where(is_cap, 0.0, ox + t * dx),
        torch.where(is_cap, facing, 0.0),
        torch.where(is_cap, 0.0, oz + t * dz),
    )


def _cone(ox: Tensor, oy: Tensor, oz: Tensor, dx: Tensor, dy: Tensor, dz: Tensor) -> tuple[Tensor, ...]:
    drop = 1 - oy
    a = dx * dx + dz * dz - 0.25 * dy * dy
    a = torch.where(a.abs() < 1e-6, 1e-6, a)
    b = ox * dx + oz * dz + 0.25 * drop * dy
    disc = b * b - a * (ox * ox + oz * oz - 0.25 * drop * drop)
    root = disc.clamp(min=0).sqrt_()
    best = torch.full_like(a, FAR_M)
    for t in ((-b - root) / a, (-b + root) / a):
        is_valid = (disc >= 0) & (t > 1e-3) & ((oy + t * dy).abs() <= 1)
        best = torch.where(is_valid & (t < best), t, best)
    return best, ox + best * dx, 0.25 * (drop - best * dy), oz + best * dz


_INTERSECT = {"sphere": _sphere, "dome": _dome, "box": _box, "cylinder": _cylinder, "cone": _cone}


@dataclass(frozen=True, kw_only=True)
class BackdropHit:
    """Everything of a backdrop that does not depend on its colours, so that it can be painted twice."""

    depth: Tensor
    is_floor: Tensor
    floor_share: Tensor
    floor_brightness: Tensor
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
            ridge = _noise(scene.noise_bank, azimuth, torch.full_like(azimuth, backdrop.far_texture.offset[1]))
            is_hill = ~is_floor & (rise < (ridge - 0.25) * backdrop.hill_height)
    floor, far = backdrop.floor_texture, backdrop.far_texture
    offset_u = torch.where(is_floor, floor.offset[0], far.offset[0])
    noise = _noise(scene.noise_bank, tex_x * tex_scale + offset_u, tex_z * tex_scale + floor.offset[1])
    footprint = depth * rays.pixel / slant
    zero = torch.zeros(1, device=depth.device).expand_as(depth)
    if floor.kind == "checker":
        zero = zero + floor.period_m / 4
    floor_share = _pattern(floor, tex_x, zero, tex_z, footprint, noise)
    if backdrop.is_room:
        far_share = _pattern(far, tex_x, zero, tex_z, footprint, noise)
    else:
        far_share = ((noise - 0.42) * 5).clamp_(0, 1) * (rise * 6).clamp_(max=1) * far.contrast
    return BackdropHit(
        depth=depth,
        is_floor=is_floor,
        floor_share=floor_share,
        floor_brightness=_shadows(scene, rays, frames, tex_x, tex_z),
        haze=haze,
        far_share=far_share,
        far_brightness=far_brightness,
        height=height,
        is_hill=is_hill,
    )


def _shadows(scene: Scene, rays: Rays, frames: Sequence[int], x: Tensor, z: Tensor) -> Tensor:
    """Brightness of the floor: soft blobs under the solids, stretched away from the light."""
    brightness = torch.ones_like(x)
    lx, ly, lz = scene.light
    for solid in scene.solids:
        reach = solid.half[1] * min(1.2, 0.8 / max(ly, 0.2))
        feet = [solid.centre_at(frame) for frame in frames]
        ground = torch.tensor([(cx - lx * reach, 0.0, cz - lz * reach) for cx, _, cz in feet], device=x.device)
        radius = 1.25 * max(solid.half[0], solid.half[2])
        window = _window(rays, ground, 2.2 * radius)
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


def paint_solid(hit: Hit, colour: Sequence[float], texture: Texture) -> Tensor:
    """`[3, t, h, w]` of a solid's window in `colour`."""
    shade = (1 - texture.contrast * (1 - hit.colour_share)) * hit.brightness
    return torch.stack([shade * value for value in colour])
