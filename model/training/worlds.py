"""Rendered worlds: paired source and edited video of simple 3-D scenes, made from a seed. The training data and the truth.

A world's target leaves the view and returns; what the edit leaves open (the tone within the named colour, the hat's shape,
the strength of a style) is drawn once per world, so only memory of an earlier segment can tell it. Split "heldout" shares
with "train" neither targets (colour and shape pair), nor textures, nor camera heights (`scene.py` says exactly which).

Draws scenes and decides edits; `scene.py` holds what a scene is made of, `raycast.py` makes pixels.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor
from torch.nn import functional

from model.training.camera_path import Point
from model.training.palette import CHROMATIC, FAMILIES, Colour
from model.training.raycast import (
    camera_noise,
    camera_rays,
    cast_backdrop,
    cast_solid,
    paint_backdrop,
    paint_solid,
)
from model.training.restyle import Style, draw_style
from model.training.scene import (
    NOISE_BANKS,
    SHAPE_WORDS,
    TEXTURE_WORDS,
    Backdrop,
    Scene,
    Shape,
    Solid,
    Split,
    draw_backdrop,
    draw_camera,
    draw_grade,
    draw_hat,
    draw_solid,
    is_heldout_pair,
)

EditTask = Literal["recolour", "hat", "surface", "restyle"]
TASK_SHARES: dict[EditTask, float] = {"recolour": 0.40, "hat": 0.20, "surface": 0.15, "restyle": 0.25}
SEGMENT_FRAMES = 17
MAX_CHUNK_RAYS = 140_000

RECOLOUR_PHRASES = (
    "change the {object} to {colour}",
    "make the {object} {colour}",
    "turn the {object} {colour}",
    "recolor the {object} to {colour}",
    "paint the {object} {colour}",
)
HAT_PHRASES = ("put a hat on the {object}", "add a hat to the {object}", "give the {object} a hat")
SURFACE_PHRASES = ("make the {surface} {colour}", "change the {surface} to {colour}", "turn the {surface} {colour}")


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What is done to a scene. Exactly one of the last four is set, according to `task`."""

    task: EditTask
    target: int
    """Index of the solid the camera leaves and returns to; the one edited by "recolour" and "hat"."""
    colour: Colour | None = None
    hat: tuple[Solid, ...] = ()
    backdrop: Backdrop | None = None
    style: Style | None = None


@dataclass(frozen=True, kw_only=True)
class World:
    """A video that exists as a description; `render` makes any part of it at any size."""

    seed: int
    split: Split
    num_frames: int
    instruction: str
    scene: Scene
    edit: Edit
    solid_words: tuple[str, ...]
    """One phrase for each solid of the scene, in its order."""
    backdrop_words: str

    @property
    def task(self) -> EditTask:
        return self.edit.task

    @property
    def caption(self) -> str:
        """Everything that stands in the source's scene, whether or not the camera sees it."""
        return f"{', '.join(self.solid_words)} on {self.backdrop_words}"

    def caption_at(self, frame: int) -> str:
        """What the camera sees of it in `frame` (centres within a square image; what hides what is not asked)."""
        camera, pose = self.scene.camera, self.scene.camera.pose(frame)
        reach = math.tan(math.radians(camera.fov_deg) / 2)
        seen = []
        for solid, words in zip(self.scene.solids, self.solid_words, strict=True):
            x, _, z = (a - b for a, b in zip(solid.centre_at(frame), pose.position, strict=True))
            ahead = x * math.sin(pose.yaw) + z * math.cos(pose.yaw)
            across = x * math.cos(pose.yaw) - z * math.sin(pose.yaw)
            if ahead > 0.3 and abs(across) < reach * ahead:
                seen.append((ahead, words))
        return f"{', '.join(words for _, words in sorted(seen)) or 'nothing'} on {self.backdrop_words}"

    @property
    def cuts(self) -> list[int]:
        """First frame of every shot after the first."""
        return [frame for frame in self.scene.camera.cuts if frame < self.num_frames]


@dataclass(frozen=True, kw_only=True)
class WorldFrames:
    """Source and edited video of one span; `mask` marks the pixels that the edit changes."""

    source: UInt8[Tensor, "t h w 3"]
    edited: UInt8[Tensor, "t h w 3"]
    mask: Bool[Tensor, "t h w"]


def make_world(
    seed: int,
    *,
    split: Split,
    num_frames: int = 102,
    task: EditTask | None = None,
    absence_segments: tuple[float, float] = (1, 3),
    presence_frames: tuple[int, int] = (14, 36),
    has_cuts: bool | None = None,
) -> World:
    """Draw a world.

    Args:
        seed: the same seed, split and arguments give the same world, on every machine.
        split: "train" or "heldout"; they share no target, texture or camera height.
        num_frames: length of the video.
        task: the kind of edit; drawn by `TASK_SHARES` where it is not given.
        absence_segments: shortest and longest absence of the target, in segments of 17 frames (up to 60 and more).
        presence_frames: shortest and longest visit to the target.
        has_cuts: whether the camera also cuts to a second place and back; drawn (one in four) where it is not given.

    Raises:
        ValueError: if `split` is unknown or `num_frames` is below 1.
    """
    if split not in NOISE_BANKS:
        raise ValueError(f"split is {split!r}; needs one of {', '.join(NOISE_BANKS)}")
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; needs at least 1")
    rng = random.Random(f"{split}:{seed}")
    drawn_task = rng.choices(list(TASK_SHARES), list(TASK_SHARES.values()))[0]
    drawn_cuts = rng.random() < 0.25
    task = task or drawn_task
    has_cuts = drawn_cuts if has_cuts is None else has_cuts
    grade = draw_grade(rng)
    backdrop, backdrop_words = draw_backdrop(rng, grade)

    shapes: tuple[Shape, ...] = (
        ("sphere", "box", "cylinder") if task == "hat" else ("sphere", "box", "cylinder", "cone")
    )
    pairs = [(c, s) for c in CHROMATIC for s in shapes if is_heldout_pair(c, s) == (split == "heldout")]
    target_colour, target_shape = rng.choice(pairs)
    distance = rng.uniform(3.2, 4.6)
    target = draw_solid(
        rng, target_shape, grade(CHROMATIC[target_colour].draw(rng)), (0.0, distance), size_m=(0.55, 0.85)
    )
    elsewhere = (rng.choice((-1, 1)) * rng.uniform(3.0, 4.5), 0.0, -rng.uniform(3.0, 4.5)) if has_cuts else None
    if elsewhere is not None and not backdrop.is_room:
        elsewhere = (elsewhere[0] * 6, 0.0, elsewhere[2] * 6)
    solids, names = [target], [(target_colour, target_shape)]
    for place in _places(rng, distance, elsewhere):
        shape: Shape = rng.choice(("sphere", "box", "cylinder", "cone"))
        colour_name = rng.choice([c for c in FAMILIES if (c, shape) not in names and c != target_colour])
        names.append((colour_name, shape))
        if backdrop.is_room:
            limits = [half - 1.0 for half in backdrop.room_half_m]
            place = (max(-limits[0], min(limits[0], place[0])), max(-limits[1], min(limits[1], place[1])))
        solids.append(draw_solid(rng, shape, grade(FAMILIES[colour_name].draw(rng)), place))

    height_m = (
        rng.uniform(1.55, 1.75) if split == "heldout" else rng.choice((rng.uniform(1.1, 1.5), rng.uniform(1.8, 2.3)))
    )
    camera = draw_camera(
        rng,
        target.centre,
        elsewhere,
        num_frames=num_frames,
        absence_frames=(round(absence_segments[0] * SEGMENT_FRAMES), round(absence_segments[1] * SEGMENT_FRAMES)),
        presence_frames=presence_frames,
        starts_in_view=rng.random() < 0.9,
        height_m=height_m,
        roam_m=rng.uniform(0.2, 0.9),
        raise_view_m=0.55 if task == "hat" else 0.0,
    )
    light_x, light_z = rng.uniform(-0.7, 0.7), rng.uniform(-0.9, 0.3)
    scene = Scene(
        solids=tuple(solids),
        backdrop=backdrop,
        camera=camera,
        light=_unit((light_x, rng.uniform(0.6, 1.2), light_z)),
        ambient=rng.uniform(0.4, 0.65),
        noise_sigma=rng.choice((0.0, rng.uniform(0.003, 0.02))),
        vignette=rng.choice((0.0, rng.uniform(0.05, 0.3))),
        noise_bank=NOISE_BANKS[split],
    )
    words = tuple(
        f"a {colour} {TEXTURE_WORDS[solid.texture.kind]}{rng.choice(SHAPE_WORDS[shape])}"
        for solid, (colour, shape) in zip(solids, names, strict=True)
    )
    edit, instruction = _draw_edit(rng, task, scene, target_colour, target_shape, grade)
    return World(
        seed=seed,
        split=split,
        num_frames=num_frames,
        instruction=instruction,
        scene=scene,
        edit=edit,
        solid_words=words,
        backdrop_words=backdrop_words,
    )


def _places(rng: random.Random, distance: float, elsewhere: Point | None) -> list[tuple[float, float]]:
    """Where the other solids stand (x, z): beside the target, to the other sides, and in the second place."""
    places = [(rng.choice((-1, 1)) * rng.uniform(1.7, 2.6), distance + rng.uniform(-0.6, 1.6))]
    for azimuth in (2.0, 3.14, 4.28):
        if rng.random() < 0.8:
            angle, reach = azimuth + rng.uniform(-0.4, 0.4), rng.uniform(3.0, 5.0)
            places.append((reach * math.sin(angle), reach * math.cos(angle)))
    if elsewhere is not None:
        away = math.atan2(elsewhere[0], elsewhere[2])
        angle, reach = away + rng.uniform(-0.6, 0.6), rng.uniform(2.5, 4.0)
        places.append((elsewhere[0] + reach * math.sin(angle), elsewhere[2] + reach * math.cos(angle)))
    return places


def _unit(vector: Point) -> Point:
    length = math.hypot(*vector)
    return (vector[0] / length, vector[1] / length, vector[2] / length)


def _draw_edit(
    rng: random.Random, task: EditTask, scene: Scene, colour: str, shape: str, grade: Callable[[Colour], Colour]
) -> tuple[Edit, str]:
    """The edit and the instruction for it, which says what and not how exactly."""
    target, backdrop = scene.solids[0], scene.backdrop
    new_name = rng.choice([name for name in CHROMATIC if name != colour])
    new_colour = grade(CHROMATIC[new_name].draw(rng))
    thing = f"{colour} {rng.choice(SHAPE_WORDS[shape])}"
    if task == "recolour":
        return Edit(task=task, target=0, colour=new_colour), rng.choice(RECOLOUR_PHRASES).format(
            object=thing, colour=new_name
        )
    if task == "hat":
        hat = draw_hat(rng, target, new_colour)
        return Edit(task=task, target=0, hat=hat), rng.choice(HAT_PHRASES).format(object=thing)
    if task == "surface":
        if rng.random() < 0.5:
            surface, changed = "floor", replace(backdrop, floor=new_colour)
        else:
            surface = "walls" if backdrop.is_room else "sky"
            r, g, b = (value * rng.uniform(0.5, 1.0) for value in new_colour)
            zenith = backdrop.zenith if backdrop.is_room else (r, g, b)
            changed = replace(backdrop, far=new_colour, zenith=zenith)
        phrase = rng.choice(SURFACE_PHRASES).format(surface=surface, colour=new_name)
        return Edit(task=task, target=0, backdrop=changed), phrase
    style, phrase = draw_style(rng)
    return Edit(task=task, target=0, style=style), phrase


def render(
    world: World,
    start: int,
    end: int,
    *,
    size: tuple[int, int],
    device: torch.device | str = "cpu",
    supersample: int = 1,
) -> WorldFrames:
    """Frames `[start, end)` of a world: see `render_frames`.

    Raises:
        ValueError: if the span is empty or does not lie within the world.
    """
    if not 0 <= start < end <= world.num_frames:
        raise ValueError(f"span is [{start}, {end}); needs 0 <= start < end <= {world.num_frames}")
    return render_frames(world, range(start, end), size=size, device=device, supersample=supersample)


def render_frames(
    world: World,
    frames: Sequence[int],
    *,
    size: tuple[int, int],
    device: torch.device | str = "cpu",
    supersample: int = 1,
) -> WorldFrames:
    """The given frames of a world, source and edited and what differs, at `size` (height_px, width_px).

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
            _render_band(world, chunk, size, (top, min(size[0], top + num_rows)), supersample, device)
            for top in range(0, size[0], num_rows)
        ]
        source, edited, mask = (torch.cat(part, dim=-2) for part in zip(*bands, strict=True))
        chunks.append((*_develop(world, chunk, size, source, edited), mask))
    source, edited, mask = (torch.cat(part) for part in zip(*chunks, strict=True))
    return WorldFrames(source=source, edited=edited, mask=mask)


def _render_band(
    world: World,
    frames: Sequence[int],
    size: tuple[int, int],
    rows: tuple[int, int],
    supersample: int,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of a chunk before the camera's noise: source and edited `[t, 3, h, w]`, mask `[t, h, w]`."""
    scene, edit = world.scene, world.edit
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
    world: World, frames: Sequence[int], size: tuple[int, int], source: Tensor, edited: Tensor
) -> tuple[Tensor, Tensor]:
    """Vignette, sensor noise and, where the edit is one, the style; then 8 bits. Equal in both outside the edit."""
    scene = world.scene
    y = torch.linspace(-1, 1, size[0], device=source.device)[:, None]
    x = torch.linspace(-1, 1, size[1], device=source.device)
    shade = 1 - scene.vignette * 0.5 * (x * x + y * y)
    noise = camera_noise(scene, frames, size, source.device) if scene.noise_sigma > 0 else 0.0
    source = source * shade + noise
    edited = world.edit.style(source) if world.edit.style is not None else edited * shade + noise
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


def demo_world() -> World:
    """A held-out world of 918 frames: a red ball, edited to pink, is away for more than 300 frames, twice, among cuts."""
    return make_world(
        353,
        split="heldout",
        num_frames=54 * SEGMENT_FRAMES,
        task="recolour",
        absence_segments=(19, 22),
        presence_frames=(60, 80),
        has_cuts=True,
    )
