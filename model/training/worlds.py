"""Rendered worlds: paired source and edited video of simple 3-D scenes, made from a seed. The training data and the truth.

A world's target leaves the view and returns; what the edit leaves open (the tone within the named colour, the hat's shape,
the strength of a style) is drawn once per world, so only memory of an earlier segment can tell it. Split "heldout" shares
with "train" neither targets (pairs of colour and shape, or of two colours), nor textures, nor camera heights (`scene.py` says
exactly which).

`scene.py` says what a scene is made of, `edits.py` what may be done to it, `staging.py` what the scenes of people, doors and
tables are, `rendering.py` makes the pixels.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from model.training.camera_path import Framing, draw_camera
from model.training.drawing import draw_backdrop, draw_grade, draw_places, draw_solid, unit
from model.training.edits import EDIT_TASKS, STAGED_TASKS, TASK_SHARES, Edit, EditTask, draw_edit
from model.training.palette import CHROMATIC, FAMILIES
from model.training.rendering import WorldFrames, edited_attribute, render_scene
from model.training.scene import (
    NOISE_BANKS,
    SEGMENT_FRAMES,
    SHAPE_WORDS,
    TEXTURE_WORDS,
    Scene,
    Shape,
    Solid,
    Split,
    is_heldout_pair,
)
from model.training.staged_scenes import draw_bystander, draw_staging

__all__ = [
    "SEGMENT_FRAMES",
    "EditTask",
    "World",
    "WorldFrames",
    "demo_world",
    "edited_attribute",
    "make_world",
    "render",
    "render_frames",
]


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
    """One phrase for each solid of the scene, in its order; empty for the further parts of a thing."""
    backdrop_words: str

    @property
    def task(self) -> EditTask:
        return self.edit.task

    @property
    def caption(self) -> str:
        """Everything that stands in the source's scene, whether or not the camera sees it."""
        return f"{', '.join(filter(None, self.solid_words))} on {self.backdrop_words}"

    def caption_at(self, frame: int) -> str:
        """What the camera sees of it in `frame` (centres within a square image; what hides what is not asked)."""
        camera, pose = self.scene.camera, self.scene.camera.pose(frame)
        reach = math.tan(math.radians(camera.fov_deg) / 2)
        seen = []
        for solid, words in zip(self.scene.solids, self.solid_words, strict=True):
            if not words:
                continue
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


def make_world(
    seed: int,
    *,
    split: Split,
    num_frames: int = 102,
    task: EditTask | None = None,
    absence_segments: tuple[float, float] = (1, 3),
    presence_frames: tuple[int, int] = (14, 36),
    has_cuts: bool | None = None,
    starts_in_view: bool | None = None,
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
        starts_in_view: whether the video begins with a visit to the target; drawn (nine in ten) where it is not given.

    Raises:
        ValueError: if `split` or `task` is unknown or `num_frames` is below 1.
    """
    if split not in NOISE_BANKS:
        raise ValueError(f"split is {split!r}; needs one of {', '.join(NOISE_BANKS)}")
    if task is not None and task not in EDIT_TASKS:
        raise ValueError(f"task is {task!r}; needs one of {', '.join(EDIT_TASKS)}")
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; needs at least 1")
    rng = random.Random(f"{split}:{seed}")
    drawn_task = rng.choices(list(TASK_SHARES), list(TASK_SHARES.values()))[0]
    drawn_cuts = rng.random() < 0.25
    task = task or drawn_task
    has_cuts = drawn_cuts if has_cuts is None else has_cuts
    grade = draw_grade(rng)
    backdrop, backdrop_words = draw_backdrop(rng, grade)

    staging = draw_staging(rng, task, split, grade) if task in STAGED_TASKS else None
    colour = ""
    shape: Shape = "sphere"
    solids: list[Solid] = []
    names: list[tuple[str, Shape] | str] = []
    if staging is None:
        shapes: tuple[Shape, ...] = (
            ("sphere", "box", "cylinder") if task == "hat" else ("sphere", "box", "cylinder", "cone")
        )
        pairs = [(c, s) for c in CHROMATIC for s in shapes if is_heldout_pair(c, s) == (split == "heldout")]
        colour, shape = rng.choice(pairs)
        distance = rng.uniform(3.2, 4.6)
        solids.append(draw_solid(rng, shape, grade(CHROMATIC[colour].draw(rng)), (0.0, distance), size_m=(0.55, 0.85)))
        names.append((colour, shape))
        focus, framing, low_m, high_m = solids[0].centre, Framing(), (1.1, 1.5), (1.8, 2.3)
    else:
        distance, focus, framing = staging.distance_m, staging.focus, staging.framing
        low_m, high_m = staging.low_m, staging.high_m
        solids += staging.solids
        names += [staging.words, *[""] * (len(solids) - 1)]
    elsewhere = (rng.choice((-1, 1)) * rng.uniform(3.0, 4.5), 0.0, -rng.uniform(3.0, 4.5)) if has_cuts else None
    if elsewhere is not None and not backdrop.is_room:
        elsewhere = (elsewhere[0] * 6, 0.0, elsewhere[2] * 6)
    for number, place in enumerate(draw_places(rng, distance, elsewhere)):
        if staging is not None and number == 0 and not staging.has_neighbour:
            continue
        if backdrop.is_room:
            limits = [half - 1.0 for half in backdrop.room_half_m]
            place = (max(-limits[0], min(limits[0], place[0])), max(-limits[1], min(limits[1], place[1])))
        if staging is not None and number > 0 and rng.random() < 0.5:
            parts, phrase = draw_bystander(rng, grade, place, is_person=not staging.is_of_people)
            solids += parts
            names += [phrase, *[""] * (len(parts) - 1)]
            continue
        other: Shape = rng.choice(("sphere", "box", "cylinder", "cone"))
        other_colour = rng.choice([c for c in FAMILIES if (c, other) not in names and c != colour])
        names.append((other_colour, other))
        solids.append(draw_solid(rng, other, grade(FAMILIES[other_colour].draw(rng)), place))

    height_m = (
        rng.uniform(1.55, 1.75) if split == "heldout" else rng.choice((rng.uniform(*low_m), rng.uniform(*high_m)))
    )
    drawn_start = rng.random() < 0.9
    camera = draw_camera(
        rng,
        focus,
        elsewhere,
        num_frames=num_frames,
        absence_frames=(round(absence_segments[0] * SEGMENT_FRAMES), round(absence_segments[1] * SEGMENT_FRAMES)),
        presence_frames=presence_frames,
        starts_in_view=drawn_start if starts_in_view is None else starts_in_view,
        height_m=height_m,
        raise_view_m=0.55 if task == "hat" else 0.0,
        framing=framing,
    )
    # Faces and doors look at the camera, so their light does not come from behind.
    light_x, light_z = rng.uniform(-0.7, 0.7), rng.uniform(-0.9, 0.3 if staging is None else -0.4)
    scene = Scene(
        solids=tuple(solids),
        backdrop=backdrop,
        camera=camera,
        light=unit((light_x, rng.uniform(0.6, 1.2), light_z)),
        ambient=rng.uniform(0.4, 0.65) if staging is None else rng.uniform(0.5, 0.7),
        noise_sigma=rng.choice((0.0, rng.uniform(0.003, 0.02))),
        vignette=rng.choice((0.0, rng.uniform(0.05, 0.3))),
        noise_bank=NOISE_BANKS[split],
    )
    words = tuple(
        name
        if isinstance(name, str)
        else f"a {name[0]} {TEXTURE_WORDS[solid.texture.kind]}{rng.choice(SHAPE_WORDS[name[1]])}"
        for solid, name in zip(solids, names, strict=True)
    )
    if staging is None:
        edit, instruction = draw_edit(rng, task, scene, colour, shape, grade)
    else:
        afterwards = (*staging.afterwards, *solids[len(staging.solids) :])
        edit, instruction = Edit(task=task, target=0, afterwards=replace(scene, solids=afterwards)), staging.instruction
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
    """Any choice of a world's frames: see `render_scene`."""
    return render_scene(world.scene, world.edit, frames, size=size, device=device, supersample=supersample)


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
