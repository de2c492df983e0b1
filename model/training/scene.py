"""What a rendered world is made of, and how one is drawn from a seed. Knows nothing of pixels (see `raycast.py`).

Held out, so that evaluation sees what training never saw: target objects whose (colour, shape) pair satisfies
`is_heldout_pair`, the noise bank (every mottled texture, cloud and hill line), and camera heights of 1.55 to 1.75 m.
Colours of edits come from the same ranges in both splits: what is asked is to remember, not to extrapolate hues.
"""

import math
import random
from dataclasses import dataclass, replace
from typing import Literal

from model.training.camera_path import CameraPath, Point
from model.training.palette import CHROMATIC, FAMILIES, Colour

Shape = Literal["sphere", "box", "cylinder", "cone", "dome"]
TextureKind = Literal["plain", "mottled", "stripes", "checker", "tiles"]
Split = Literal["train", "heldout"]

SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "sphere": ("ball", "sphere"),
    "box": ("box", "cube"),
    "cylinder": ("cylinder", "barrel"),
    "cone": ("cone",),
}
TEXTURE_WORDS = {"plain": "", "mottled": "mottled ", "stripes": "striped ", "checker": "checkered ", "tiles": "tiled "}
NOISE_BANKS = {"train": 1, "heldout": 2}
SEGMENT_FRAMES = 17
"""Of `tiny`: what absences and lengths of worlds are counted in."""


def is_heldout_pair(colour: str, shape: str) -> bool:
    """Whether targets of this colour and shape appear only in the held-out split (7 of the 28 pairs)."""
    return (sorted(CHROMATIC).index(colour) + sorted(SHAPE_WORDS).index(shape)) % 4 == 0


@dataclass(frozen=True, kw_only=True)
class Texture:
    """A solid (three-dimensional) pattern between a colour and its darker companion.

    Attributes:
        period_m: length of one repetition.
        direction: unit vector along which stripes alternate.
        contrast: how dark the companion is, 0 to 1.
        roughness: share of multi-octave noise laid over the pattern.
        offset: where in the noise bank this texture lies.
    """

    kind: TextureKind
    period_m: float
    direction: Point
    contrast: float
    roughness: float
    offset: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Motion:
    """Swings by `amplitude` metres about the place of rest; `is_bouncing` rectifies it, as a ball bounces."""

    amplitude: Point
    period_frames: float
    phase: float
    is_bouncing: bool


@dataclass(frozen=True, kw_only=True)
class Solid:
    """A primitive scaled by `half` (half extents, metres), turned by `yaw` (plus `spin` per frame) and put at `centre`."""

    shape: Shape
    centre: Point
    half: Point
    yaw: float
    spin: float
    colour: Colour
    texture: Texture
    motion: Motion | None

    def centre_at(self, frame: int) -> Point:
        if self.motion is None:
            return self.centre
        swing = math.sin(2 * math.pi * frame / self.motion.period_frames + self.motion.phase)
        swing = abs(swing) if self.motion.is_bouncing else swing
        x, y, z = (c + a * swing for c, a in zip(self.centre, self.motion.amplitude, strict=True))
        return (x, y, z)


@dataclass(frozen=True, kw_only=True)
class Backdrop:
    """Floor and what is behind everything: sky with clouds and hills, or the walls of a room."""

    floor: Colour
    floor_texture: Texture
    is_room: bool
    far: Colour
    """Colour of the sky at the horizon, or of the walls."""
    zenith: Colour
    """Colour of the sky overhead, or of the ceiling."""
    far_texture: Texture
    """Clouds (its contrast is how much they cover), or the walls' pattern."""
    hills: Colour
    hill_height: float
    room_half_m: tuple[float, float]
    room_height_m: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    solids: tuple[Solid, ...]
    backdrop: Backdrop
    camera: CameraPath
    light: Point
    ambient: float
    noise_sigma: float
    vignette: float
    noise_bank: int


@dataclass(frozen=True, kw_only=True)
class Grade:
    """Exposure, saturation and tint of a world's camera, applied to every colour of the scene as it is drawn."""

    exposure: float
    saturation: float
    tint: Colour

    def __call__(self, colour: Colour) -> Colour:
        luma = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
        r, g, b = (
            min(1.0, self.exposure * tint * (luma + (value - luma) * self.saturation))
            for value, tint in zip(colour, self.tint, strict=True)
        )
        return (r, g, b)


def draw_grade(rng: random.Random) -> Grade:
    warmth = rng.uniform(-0.07, 0.07)
    return Grade(
        exposure=rng.uniform(0.85, 1.2),
        saturation=rng.uniform(0.72, 1.1),
        tint=(1 + warmth, 1 + rng.uniform(-0.03, 0.03), 1 - warmth),
    )


def draw_texture(rng: random.Random, kinds: tuple[TextureKind, ...], period_m: tuple[float, float]) -> Texture:
    azimuth, tilt = rng.uniform(0, 2 * math.pi), rng.choice((0.0, 0.0, rng.uniform(-1.5, 1.5)))
    return Texture(
        kind=rng.choice(kinds),
        period_m=rng.uniform(*period_m),
        direction=(math.cos(azimuth) * math.cos(tilt), math.sin(tilt), math.sin(azimuth) * math.cos(tilt)),
        contrast=rng.uniform(0.15, 0.6),
        roughness=rng.uniform(0.1, 0.8),
        offset=(rng.random(), rng.random()),
    )


def draw_solid(
    rng: random.Random,
    shape: Shape,
    colour: Colour,
    place: tuple[float, float],
    *,
    size_m: tuple[float, float] = (0.45, 0.8),
    can_move: bool = True,
) -> Solid:
    """A solid standing on the floor at `place` (x, z)."""
    size = rng.uniform(*size_m)
    stretch = 1.0 if shape == "sphere" else rng.uniform(0.75, 1.35)
    half = (size, size * stretch, size if shape != "box" else size * rng.uniform(0.75, 1.25))
    motion = None
    if can_move and rng.random() < 0.3:
        heading, is_bouncing = rng.uniform(0, 2 * math.pi), rng.random() < 0.4
        reach = rng.uniform(0.2, 0.6)
        motion = Motion(
            amplitude=(0.0, reach, 0.0) if is_bouncing else (reach * math.cos(heading), 0.0, reach * math.sin(heading)),
            period_frames=rng.uniform(30, 110),
            phase=rng.uniform(0, 2 * math.pi),
            is_bouncing=is_bouncing,
        )
    return Solid(
        shape=shape,
        centre=(place[0], half[1], place[1]),
        half=half,
        yaw=rng.uniform(0, math.pi),
        spin=rng.uniform(-0.04, 0.04) if can_move and rng.random() < 0.2 else 0.0,
        colour=colour,
        texture=draw_texture(rng, ("plain", "mottled", "mottled", "stripes", "checker"), (0.3, 0.8)),
        motion=motion,
    )


def draw_hat(rng: random.Random, wearer: Solid, colour: Colour) -> tuple[Solid, ...]:
    """A cone, a top hat or a dome on top of `wearer`, moving with it. Shape, size and place of the brim are free."""
    width = min(wearer.half[0], wearer.half[2]) * rng.uniform(0.55, 0.85)
    height = wearer.half[0] * rng.uniform(0.45, 0.8)
    base = wearer.centre[1] + wearer.half[1] * (0.82 if wearer.shape == "sphere" else 1.0)
    texture = draw_texture(rng, ("plain", "mottled", "stripes"), (0.2, 0.5))

    def piece(shape: Shape, half: Point, centre_y: float) -> Solid:
        centre = (wearer.centre[0], centre_y, wearer.centre[2])
        return replace(wearer, shape=shape, half=half, centre=centre, colour=colour, texture=texture)

    kind = rng.choice(("cone", "top hat", "dome"))
    if kind == "cone":
        return (piece("cone", (width, height, width), base + height),)
    if kind == "dome":
        return (piece("dome", (width, height * 1.3, width), base),)
    brim = piece("cylinder", (width * 1.35, 0.05, width * 1.35), base + 0.05)
    return brim, piece("cylinder", (width * 0.8, height * 0.8, width * 0.8), base + 0.1 + height * 0.8)


def draw_backdrop(rng: random.Random, grade: Grade) -> tuple[Backdrop, str]:
    """A backdrop and its description for the caption."""
    is_room = rng.random() < 0.4
    floor_name = rng.choice(("grey", "brown", "green", "white", "brown", "grey", "blue", "orange", "red", "yellow"))
    floor = grade(_muted(FAMILIES[floor_name].draw(rng), rng))
    floor_texture = draw_texture(rng, ("mottled", "mottled", "stripes", "checker", "tiles"), (0.7, 2.4))
    floor_words = f"a {floor_name} {TEXTURE_WORDS[floor_texture.kind]}floor"
    if is_room:
        far_name = rng.choice(("white", "grey", "brown", "blue", "green", "yellow", "orange", "pink", "purple"))
        far = grade(_muted(FAMILIES[far_name].draw(rng), rng))
        far_texture = draw_texture(rng, ("plain", "mottled", "stripes", "checker", "tiles"), (0.5, 1.8))
        zenith = grade(_muted(FAMILIES["white"].draw(rng), rng))
        words = f"{floor_words} in a room with {far_name} {TEXTURE_WORDS[far_texture.kind]}walls"
    else:
        far_name = rng.choice(("blue", "blue", "blue", "grey", "orange", "pink"))
        far = grade(_muted(FAMILIES[far_name].draw(rng), rng, towards=0.9))
        zenith = grade(FAMILIES[far_name].draw(rng))
        far_texture = replace(draw_texture(rng, ("mottled",), (9.0, 24.0)), contrast=rng.uniform(0.0, 0.9))
        words = f"{floor_words} under a {far_name} {'cloudy ' if far_texture.contrast > 0.45 else ''}sky"
    backdrop = Backdrop(
        floor=floor,
        floor_texture=floor_texture,
        is_room=is_room,
        far=far,
        zenith=zenith,
        far_texture=far_texture,
        hills=grade(_muted(FAMILIES[rng.choice(("green", "brown", "grey", "blue", "purple"))].draw(rng), rng)),
        hill_height=rng.choice((0.0, rng.uniform(0.1, 0.3), rng.uniform(0.1, 0.3))),
        room_half_m=(rng.uniform(6.5, 9.5), rng.uniform(6.5, 9.5)),
        room_height_m=rng.uniform(3.0, 4.5),
    )
    return backdrop, words


def _muted(colour: Colour, rng: random.Random, *, towards: float | None = None) -> Colour:
    """Large surfaces are rarely as saturated as things: mixed with grey of about their own brightness."""
    grey = max(colour) * 0.85 if towards is None else towards
    share = rng.uniform(0.35, 0.75)
    r, g, b = (value + (grey - value) * share for value in colour)
    return (r, g, b)
