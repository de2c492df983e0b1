"""What a rendered world is made of. Knows nothing of how one is drawn (`drawing.py`), nor of pixels (`raycast.py`).

Held out, so that evaluation sees what training never saw:

    target objects   solids whose (colour, shape) pair satisfies `is_heldout_pair`; in staged scenes (`staging.py`) those whose
                     two drawn names satisfy `is_heldout_variant`: a person's hair and shirt, a door's and its wall's colour,
                     an apple's and its table's colour, a table's and its cup's colour. Things that are not the target are free.
    textures         the noise bank (every mottled texture, cloud and hill line)
    camera paths     heights of 1.55 to 1.75 m

Colours of edits come from the same ranges in both splits: what is asked is to remember, not to extrapolate hues.
"""

import math
from dataclasses import dataclass
from typing import Literal

from model.training.camera_path import CameraPath, Point
from model.training.palette import CHROMATIC, Colour

Shape = Literal["sphere", "box", "cylinder", "cone", "dome", "ring", "frame"]
TextureKind = Literal["plain", "mottled", "stripes", "checker", "tiles"]
Split = Literal["train", "heldout"]

SHAPE_WORDS: dict[Shape, tuple[str, ...]] = {
    "sphere": ("ball", "sphere"),
    "box": ("box", "cube"),
    "cylinder": ("cylinder", "barrel"),
    "cone": ("cone",),
}
TEXTURE_WORDS = {"plain": "", "mottled": "mottled ", "stripes": "striped ", "checker": "checkered ", "tiles": "tiled "}
NOISE_BANKS = {"train": 1, "heldout": 2}
SEGMENT_FRAMES = 17
"""Of `tiny`: what absences and lengths of worlds are counted in."""


def is_heldout_pair(colour: str, shape: Shape) -> bool:
    """Whether targets of this colour and shape appear only in the held-out split (7 of the 28 pairs)."""
    return (sorted(CHROMATIC).index(colour) + sorted(SHAPE_WORDS).index(shape)) % 4 == 0


def is_heldout_variant(first: int, second: int) -> bool:
    """Whether a thing whose two names are these of their lists appears as a target only in the held-out split (a quarter)."""
    return (first + second) % 4 == 0


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
class Turn:
    """Swings the yaw by `amplitude_rad` about the vertical line through `axis` (x, z), so that the parts of a thing turn as one."""

    axis: tuple[float, float]
    amplitude_rad: float
    period_frames: float
    phase: float

    def angle_at(self, frame: int) -> float:
        return self.amplitude_rad * math.sin(2 * math.pi * frame / self.period_frames + self.phase)


@dataclass(frozen=True, kw_only=True)
class Solid:
    """A primitive scaled by `half` (half extents, metres), turned by `yaw` (plus `spin` per frame) and put at `centre`.

    Attributes:
        roll: before anything else, about its own z axis; radians, as all angles.
        pitch: after the roll, about the x axis: its top goes towards +z.
        opacity: below 1 it is seen through, and neither depth nor what lies behind knows of it.
        has_shadow: whether it darkens the floor.
    """

    shape: Shape
    centre: Point
    half: Point
    yaw: float
    spin: float
    colour: Colour
    texture: Texture
    motion: Motion | None
    pitch: float = 0.0
    roll: float = 0.0
    turn: Turn | None = None
    opacity: float = 1.0
    has_shadow: bool = True

    def yaw_at(self, frame: int) -> float:
        yaw = self.yaw + self.spin * frame
        return yaw if self.turn is None else yaw + self.turn.angle_at(frame)

    def centre_at(self, frame: int) -> Point:
        x, y, z = self.centre
        if self.turn is not None:
            (axis_x, axis_z), angle = self.turn.axis, self.turn.angle_at(frame)
            x, z = x - axis_x, z - axis_z
            sin, cos = math.sin(angle), math.cos(angle)
            x, z = axis_x + x * cos + z * sin, axis_z + z * cos - x * sin
        if self.motion is None:
            return (x, y, z)
        swing = math.sin(2 * math.pi * frame / self.motion.period_frames + self.motion.phase)
        swing = abs(swing) if self.motion.is_bouncing else swing
        x, y, z = (c + a * swing for c, a in zip((x, y, z), self.motion.amplitude, strict=True))
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
