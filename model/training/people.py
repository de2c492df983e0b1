"""People built of primitives, what they wear on their heads and noses, and their jackets. Parts as in `things.py`.

Heads are a little too large, as in drawings for children: what is edited is mostly there, and frames are small.
"""

import random
from dataclasses import dataclass
from typing import Literal, get_args

from model.training.camera_path import Point
from model.training.drawing import draw_texture
from model.training.palette import CHROMATIC, FAMILIES, NEUTRAL, Colour, ColourFamily
from model.training.scene import Shape, Solid
from model.training.things import Grading, Parts, part, shade

HAIR = {
    "black": (0.07, 0.06, 0.06),
    "brown": (0.3, 0.18, 0.09),
    "blond": (0.86, 0.7, 0.36),
    "red": (0.62, 0.24, 0.08),
    "grey": (0.6, 0.6, 0.6),
}
HAIR_COLOURS = tuple(HAIR)
SHIRT_COLOURS = ("white", "green", "yellow", "purple", "grey", "orange")
SKIN: tuple[Colour, ...] = (
    (0.96, 0.8, 0.68),
    (0.87, 0.67, 0.52),
    (0.7, 0.49, 0.34),
    (0.5, 0.33, 0.22),
    (0.36, 0.24, 0.17),
)

HatKind = Literal["cap", "cowboy hat", "top hat", "party hat", "beanie"]
HAT_KINDS: tuple[HatKind, ...] = get_args(HatKind)
HEAD_HALF: Point = (0.135, 0.172, 0.14)


@dataclass(frozen=True, kw_only=True)
class Person:
    """Someone's parts, the head first, in the person's own space.

    Attributes:
        head: centre of the head.
        shoulder: where something may sit, on the right; mirrored on the left.
    """

    parts: Parts
    head: Point
    shoulder: Point


def draw_person(
    rng: random.Random, grade: Grading, *, hair: str, shirt: str, jacket: Colour | None = None, stature_m: float
) -> Person:
    """A person in a shirt, or in an open jacket over it."""
    skin, hair_colour = grade(rng.choice(SKIN)), grade(HAIR[hair])
    shirt_colour = grade(FAMILIES[shirt].draw(rng))
    trousers = grade(FAMILIES[rng.choice(("blue", "grey", "black", "brown"))].draw(rng))
    cloth = draw_texture(rng, ("plain", "plain", "mottled", "stripes"), (0.08, 0.2))
    sleeve = shirt_colour if jacket is None else jacket
    y = stature_m - HEAD_HALF[1]
    top, hip = y - 0.2, stature_m * 0.47
    middle, tall = (top + hip) / 2, (top - hip) / 2
    parts = [
        part("sphere", (0, y, 0), HEAD_HALF, skin),
        part("cylinder", (0, y - 0.19, 0.01), (0.06, 0.07, 0.06), shade(skin, 0.92)),
        part("cylinder", (0, middle, 0), (0.215, tall, 0.125), shirt_colour, texture=cloth, has_shadow=True),
        part("dome", (0, top - 0.002, 0), (0.215, 0.06, 0.125), shirt_colour, texture=cloth),
    ]
    if jacket is not None:
        for side in (-1, 1):
            parts += [
                part("cylinder", (side * 0.14, middle - 0.03, 0), (0.1, tall + 0.03, 0.15), jacket),
                part("dome", (side * 0.14, top - 0.002, 0), (0.1, 0.07, 0.15), jacket),
                part(
                    "box", (side * 0.075, top - 0.05, -0.12), (0.022, 0.1, 0.012), shade(jacket, 0.75), roll=side * 0.35
                ),
            ]
    for side in (-1, 1):
        parts += [
            part(
                "cylinder", (side * 0.275, top - 0.25, 0), (0.058, 0.26, 0.062), sleeve, texture=cloth, roll=side * 0.1
            ),
            part("sphere", (side * 0.245, top - 0.025, 0), (0.075, 0.07, 0.075), sleeve, texture=cloth),
            part("sphere", (side * 0.305, top - 0.54, 0), (0.045, 0.065, 0.05), skin),
            part("cylinder", (side * 0.1, hip / 2, 0), (0.09, hip / 2, 0.095), trousers, has_shadow=True),
            part("box", (side * 0.1, 0.04, -0.05), (0.08, 0.04, 0.14), (0.12, 0.1, 0.1)),
        ]
    parts += _face(y, skin, hair_colour, rng)
    reach = rng.choice((0.12, 0.17, 0.27))
    parts += [
        part("dome", (0, y + 0.05, 0.012), (0.146, 0.138, 0.15), hair_colour),
        part("sphere", (0, y + 0.09 - reach, 0.06), (0.15, reach, 0.105), hair_colour),
    ]
    return Person(parts=tuple(parts), head=(0, y, 0), shoulder=(0.26, top + 0.045, 0.0))


def _face(y: float, skin: Colour, hair: Colour, rng: random.Random) -> Parts:
    iris = rng.choice(((0.2, 0.12, 0.07), (0.15, 0.3, 0.5), (0.12, 0.3, 0.15)))
    parts = [
        part("sphere", (0, y - 0.04, -0.138), (0.02, 0.036, 0.03), shade(skin, 0.93)),
        part("sphere", (0, y - 0.1, -0.108), (0.048, 0.012, 0.016), (0.66, 0.22, 0.2)),
    ]
    for side in (-1, 1):
        parts += [
            part("sphere", (side * 0.055, y + 0.008, -0.122), (0.028, 0.021, 0.014), (0.95, 0.95, 0.95)),
            part("sphere", (side * 0.055, y + 0.008, -0.134), (0.013, 0.014, 0.007), iris),
            part("box", (side * 0.055, y + 0.045, -0.128), (0.032, 0.007, 0.01), shade(hair, 0.8), roll=side * 0.1),
            part("sphere", (side * 0.137, y - 0.01, 0.01), (0.02, 0.036, 0.026), shade(skin, 0.95)),
        ]
    return tuple(parts)


@dataclass(frozen=True, kw_only=True)
class Glasses:
    """How glasses are made: `frame_opacity` and `lens_opacity` tell clear ones from dark ones."""

    is_round: bool
    frame: Colour
    frame_opacity: float
    lens: Colour
    lens_opacity: float

    def on(self, head: Point) -> Parts:
        """On the nose of someone whose head is there; the rims first."""
        y, z = head[1] + 0.004, -0.163

        def piece(shape: Shape, centre: Point, half: Point) -> Solid:
            return part(shape, centre, half, self.frame, opacity=self.frame_opacity)

        rim: Shape = "ring" if self.is_round else "frame"
        parts = [piece(rim, (side * 0.063, y, z), (0.061, 0.052 if self.is_round else 0.045, 0.01)) for side in (-1, 1)]
        parts.append(piece("box", (0, y + 0.014, z), (0.014, 0.008, 0.006)))
        parts += [piece("box", (side * 0.131, y + 0.018, z + 0.09), (0.006, 0.01, 0.09)) for side in (-1, 1)]
        glass: Shape = "sphere" if self.is_round else "box"
        half = (0.048, 0.041, 0.003) if self.is_round else (0.047, 0.035, 0.003)
        for side in (-1, 1):
            parts.append(part(glass, (side * 0.063, y, z + 0.004), half, self.lens, opacity=self.lens_opacity))
        return tuple(parts)


def draw_frame(rng: random.Random, grade: Grading) -> Colour:
    """Of spectacles: dark or strong, so that they stand out from a face."""
    return shade(grade(FAMILIES[rng.choice(("black", "black", "blue", "red", "brown"))].draw(rng)), 0.6)


def draw_dark_lens(rng: random.Random, grade: Grading) -> Colour:
    """The tint of sunglasses: nearly black, brown, green, blue or purple."""
    tint = ColourFamily(hue_deg=(0, 360), saturation=(0.2, 0.9), value=(0.04, 0.3))
    return grade(tint.draw(rng))


def draw_person_hat(rng: random.Random, grade: Grading, head: Point, kind: HatKind) -> Parts:
    """A hat of a kind for a head that is there. Colour, band, grain and size are free."""
    colour = grade(rng.choice((CHROMATIC[rng.choice(list(CHROMATIC))], NEUTRAL["brown"], NEUTRAL["black"])).draw(rng))
    band = grade(FAMILIES[rng.choice(list(FAMILIES))].draw(rng))
    texture = draw_texture(rng, ("plain", "mottled", "stripes"), (0.08, 0.2))
    tall, y = rng.uniform(0.85, 1.25), head[1] + 0.075

    def piece(shape: Shape, up: float, half: Point, *, ahead: float = 0.0, is_band: bool = False) -> Parts:
        tint = band if is_band else colour
        return (part(shape, (0, y + up, 0.01 - ahead), half, tint, texture=texture),)

    if kind == "cap":
        return piece("dome", 0, (0.156, 0.14 * tall, 0.16)) + piece(
            "cylinder", 0.012, (0.12, 0.01, 0.12), ahead=0.14, is_band=True
        )
    if kind == "beanie":
        height = 0.16 * tall
        return (
            piece("dome", 0, (0.157, height, 0.162))
            + piece("cylinder", 0.0, (0.162, 0.03, 0.166), is_band=True)
            + piece("sphere", height + 0.02, (0.045, 0.045, 0.045), is_band=True)
        )
    if kind == "party hat":
        return piece("cone", 0.03 + 0.2 * tall, (0.14, 0.2 * tall, 0.14)) + piece(
            "sphere", 0.03 + 0.4 * tall, (0.035, 0.035, 0.035), is_band=True
        )
    brim, crown = (0.29, 0.085 * tall) if kind == "cowboy hat" else (0.215, 0.14 * tall)
    return (
        piece("cylinder", 0.012, (brim, 0.012, brim * 0.85))
        + piece("cylinder", 0.02 + crown, (0.152, crown, 0.156))
        + piece("cylinder", 0.045, (0.156, 0.022, 0.16), is_band=True)
    )
