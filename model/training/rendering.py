"""Frames of a scene before and after an edit, with what differs and where the camera is.

An edit is a second scene, the one afterwards. Solids that are equal in both are cast and painted once, and solids that differ in
nothing but colour or opacity are cast once. Knows nothing of what an edit is called.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional

from model.training.backdrop import BackdropHit, cast_backdrop, cast_shadows, paint_backdrop
from model.training.edits import Edit
from model.training.raycast import Hit, Rays, camera_axes, camera_matrices, camera_rays, cast_solid, paint_solid
from model.training.scene import Scene, Solid
from model.training.textures import camera_noise

MAX_CHUNK_RAYS = 140_000
"""Planes of one chunk: about half a megabyte each, so that they stay in the cache."""
MIN_SHADOW = 2 / 255
"""Less of a difference in the floor's brightness is no difference."""

BACKDROP, SHARED, CHANGED = 0, 1, 2
"""What a ray meets first."""


@dataclass(frozen=True, kw_only=True)
class WorldFrames:
    """Source and edited video of one span, and what is known of them.

    Attributes:
        mask: pixels that the edit changes.
        target: pixels of what is edited, before or after: the mask without shadows; of a restyle the solid that is followed.
        depth: metres along the camera's axis to the nearest surface of the source that is not seen through (of a pixel's rays the
            nearest); `primitives.FAR_M` where there is only sky.
        c2w: camera to world, OpenCV axes, metres: x right, y down, z forward (the scene's y negated).
        intrinsics: in pixels; the centre of the top left pixel is (0.5, 0.5).
    """

    source: UInt8[Tensor, "t h w 3"]
    edited: UInt8[Tensor, "t h w 3"]
    mask: Bool[Tensor, "t h w"]
    target: Bool[Tensor, "t h w"]
    depth: Float[Tensor, "t h w"]
    c2w: Float[Tensor, "t 4 4"]
    intrinsics: Float[Tensor, "t 3 3"]


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
        stand = camera_axes(scene, chunk, device)
        bands = [
            _render_band(scene, edit, chunk, stand, size, (top, min(size[0], top + num_rows)), supersample)
            for top in range(0, size[0], num_rows)
        ]
        source, edited, *known = (torch.cat(part, dim=-2) for part in zip(*bands, strict=True))
        cameras = camera_matrices(scene, stand, size)
        chunks.append((*_develop(scene, edit, chunk, size, source, edited), *known, *cameras))
    source, edited, mask, target, depth, c2w, intrinsics = (torch.cat(part) for part in zip(*chunks, strict=True))
    return WorldFrames(
        source=source, edited=edited, mask=mask, target=target, depth=depth, c2w=c2w, intrinsics=intrinsics
    )


@dataclass(kw_only=True)
class _View:
    """What is seen so far of one scene: colours `[3, t, h, w]`, and by `[t, h, w]` how far and of which kind it is."""

    rgb: Tensor
    depth: Tensor
    owner: Tensor
    is_altered: Tensor | None = None
    """Where something changed is seen through."""

    def copy(self) -> "_View":
        return _View(rgb=self.rgb.clone(), depth=self.depth.clone(), owner=self.owner.clone())

    def put(self, solid: Solid, hit: Hit | None, owner: int) -> None:
        """Lay a solid over it, where it is nearer."""
        if hit is None:
            return
        is_front = hit.depth < self.depth[hit.window]
        everywhere = (slice(None), *hit.window)
        rgb, paint = self.rgb[everywhere], paint_solid(hit, solid.colour, solid.texture)
        if solid.opacity < 1:
            paint = rgb.lerp(paint, solid.opacity)
            if owner == CHANGED:
                if self.is_altered is None:
                    self.is_altered = torch.zeros_like(self.owner, dtype=torch.bool)
                self.is_altered[hit.window] |= is_front
        else:
            self.depth[hit.window] = torch.where(is_front, hit.depth, self.depth[hit.window])
            self.owner[hit.window] = self.owner[hit.window].masked_fill(is_front, owner)
        self.rgb[everywhere] = torch.where(is_front, paint, rgb)

    def is_changed(self) -> Tensor:
        changed = self.owner == CHANGED
        return changed if self.is_altered is None else changed | self.is_altered


def _render_band(
    scene: Scene,
    edit: Edit,
    frames: Sequence[int],
    stand: tuple[Tensor, Tensor],
    size: tuple[int, int],
    rows: tuple[int, int],
    supersample: int,
) -> tuple[Tensor, ...]:
    """Rows of a chunk before the camera's noise: source and edited `[t, 3, h, w]`; mask, target and depth `[t, h, w]`."""
    fine_size = (size[0] * supersample, size[1] * supersample)
    rays = camera_rays(scene, stand, fine_size, (rows[0] * supersample, rows[1] * supersample))
    behind = cast_backdrop(scene, rays, frames)
    shared = set(scene.solids) & set(edit.afterwards.solids)
    if edit.style is not None:
        shared -= {scene.solids[edit.target]}  # it is followed, so it is told apart
    source = _View(
        rgb=paint_backdrop(behind, scene.backdrop),
        depth=behind.depth,
        owner=torch.full(behind.depth.shape, BACKDROP, dtype=torch.int8, device=rays.axes.device),
    )
    for solid in scene.solids:
        if solid in shared and solid.opacity == 1:
            source.put(solid, cast_solid(scene, solid, rays, frames), SHARED)
    edited, backdrop_change = source, None
    views = [(source, scene.solids)]
    if edit.style is None:
        edited = source.copy()
        backdrop_change = _change_backdrop(scene, edit.afterwards, behind, edited, rays, frames)
        views.append((edited, edit.afterwards.solids))
    hits: dict[Solid, Hit | None] = {}
    for view, solids in views:
        # What is seen through comes last: it needs what is behind it.
        for solid in sorted(solids, key=lambda solid: solid.opacity < 1):
            if solid in shared and solid.opacity == 1:
                continue
            form = replace(solid, colour=(0.0, 0.0, 0.0), opacity=1.0)
            if form not in hits:
                hits[form] = cast_solid(scene, form, rays, frames)
            view.put(solid, hits[form], SHARED if solid in shared else CHANGED)
    target = edited.is_changed() if edited is source else source.is_changed() | edited.is_changed()
    mask = target
    if edit.style is not None:
        mask = torch.ones_like(target)
    elif backdrop_change is not None:
        mask = target | backdrop_change
        target = mask if edit.afterwards.backdrop != scene.backdrop else target
    before, after, depth = source.rgb.transpose(0, 1), edited.rgb.transpose(0, 1), source.depth
    if supersample > 1:
        before, after = (functional.avg_pool2d(planes, supersample) for planes in (before, after))
        mask, target = (functional.max_pool2d(marked.float(), supersample) > 0 for marked in (mask, target))
        depth = -functional.max_pool2d(-depth, supersample)
    return before, after, mask, target, depth


def _change_backdrop(
    before: Scene, after: Scene, behind: BackdropHit, edited: _View, rays: Rays, frames: Sequence[int]
) -> Tensor | None:
    """Repaint the backdrop where its colours or the shadows on it change; says where it is seen to."""
    changed = None
    if after.backdrop != before.backdrop:
        changed = behind.is_floor
        if after.backdrop.floor == before.backdrop.floor:
            changed = ~behind.is_floor
            changed &= ~behind.is_hill if behind.is_hill is not None else True
            changed &= (behind.height == 0) if before.backdrop.is_room else True
    if _shadow_casters(after) != _shadow_casters(before):
        brightness = cast_shadows(after, rays, frames, behind.place)
        is_other = behind.is_floor & ((brightness - behind.floor_brightness).abs() > MIN_SHADOW)
        behind = replace(behind, floor_brightness=brightness)
        changed = is_other if changed is None else changed | is_other
    if changed is None:
        return None
    changed = changed & (edited.owner == BACKDROP)
    edited.rgb = torch.where(changed, paint_backdrop(behind, after.backdrop), edited.rgb)
    return changed


def _shadow_casters(scene: Scene) -> list[tuple]:
    return [(solid.centre, solid.half, solid.motion, solid.turn) for solid in scene.solids if solid.has_shadow]


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
