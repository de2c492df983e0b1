"""Doors, tables, fruit, cups and macaws built of primitives. Knows their parts and colours; not where they stand nor what is edited.

A thing is made of parts in its own space: feet at the origin, y up, facing -z, metres. `placed` puts them into a scene as one.
"""

import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from model.training.camera_path import Point
from model.training.drawing import draw_texture
from model.training.palette import FAMILIES, Colour, ColourFamily
from model.training.scene import Motion, Shape, Solid, Texture, Turn

Grading = Callable[[Colour], Colour]
Parts = tuple[Solid, ...]

PLAIN = Texture(kind="plain", period_m=1.0, direction=(1.0, 0.0, 0.0), contrast=0.0, roughness=0.0, offset=(0.0, 0.0))

DARK = {
    "brown": ColourFamily(hue_deg=(12, 30), saturation=(0.5, 0.85), value=(0.22, 0.42)),
    "blue": ColourFamily(hue_deg=(205, 245), saturation=(0.5, 0.9), value=(0.22, 0.45)),
    "green": ColourFamily(hue_deg=(110, 160), saturation=(0.4, 0.8), value=(0.18, 0.38)),
    "red": ColourFamily(hue_deg=(-10, 8), saturation=(0.6, 0.9), value=(0.25, 0.45)),
}
WHITE = ColourFamily(hue_deg=(20, 260), saturation=(0.0, 0.12), value=(0.88, 1.0))
SCARLET = ColourFamily(hue_deg=(-10, 14), saturation=(0.8, 1.0), value=(0.6, 0.95))
DOOR_COLOURS = tuple(DARK)
WALL_COLOURS = ("yellow", "grey", "orange", "green", "pink")
APPLE_COLOURS = ("red", "green", "yellow")
TABLE_COLOURS = ("brown", "white", "grey", "blue")
CUP_COLOURS = ("yellow", "green", "purple", "white")


def part(
    shape: Shape,
    centre: Point,
    half: Point,
    colour: Colour,
    *,
    texture: Texture = PLAIN,
    yaw: float = 0.0,
    pitch: float = 0.0,
    roll: float = 0.0,
    opacity: float = 1.0,
    has_shadow: bool = False,
) -> Solid:
    return Solid(
        shape=shape, centre=centre, half=half, yaw=yaw, spin=0.0, colour=colour, texture=texture, motion=None,
        pitch=pitch, roll=roll, opacity=opacity, has_shadow=has_shadow,
    )  # fmt: skip


def placed(
    parts: Iterable[Solid],
    place: Point,
    *,
    heading: float = 0.0,
    motion: Motion | None = None,
    turn: Turn | None = None,
) -> Parts:
    """The parts of a thing put at `place`, turned by `heading`, moving as one."""
    sin, cos = math.sin(heading), math.cos(heading)
    done = []
    for solid in parts:
        x, y, z = solid.centre
        centre = (place[0] + x * cos + z * sin, place[1] + y, place[2] + z * cos - x * sin)
        done.append(replace(solid, centre=centre, yaw=solid.yaw + heading, motion=motion, turn=turn))
    return tuple(done)


def scaled(parts: Iterable[Solid], factor: float) -> Parts:
    def times(point: Point) -> Point:
        return (point[0] * factor, point[1] * factor, point[2] * factor)

    return tuple(replace(solid, centre=times(solid.centre), half=times(solid.half)) for solid in parts)


def recoloured(parts: Iterable[Solid], colours: Mapping[Colour, Colour]) -> Parts:
    return tuple(replace(solid, colour=colours.get(solid.colour, solid.colour)) for solid in parts)


def shade(colour: Colour, factor: float) -> Colour:
    r, g, b = (min(1.0, value * factor) for value in colour)
    return (r, g, b)


def pale(colour: tuple[float, float, float]) -> tuple[float, float, float]:
    """Of walls and clear glass: half way to white."""
    r, g, b = (0.45 * value + 0.45 for value in colour)
    return (r, g, b)


def draw_door(rng: random.Random, colour: Colour) -> Parts:
    """The leaf (first), its panels, frame and knob; 0.06 m before the wall's face, which is z = 0."""
    width, height = rng.uniform(0.42, 0.52), rng.uniform(0.98, 1.1)
    texture = replace(draw_texture(rng, ("plain", "mottled", "stripes"), (0.15, 0.3)), contrast=rng.uniform(0.1, 0.25))
    trim = FAMILIES[rng.choice(("brown", "grey", "white"))].draw(rng)
    metal = (0.85, 0.7, 0.3) if rng.random() < 0.5 else (0.75, 0.76, 0.8)
    side = rng.choice((-1, 1))
    parts = [part("box", (0, height, -0.01), (width, height, 0.04), colour, texture=texture)]
    for x in (-1, 1):
        for y, tall in ((0.55, 0.36), (1.45, 0.4)):
            panel = (width * 0.34, height * tall, 0.02)
            parts.append(
                part("box", (x * width * 0.48, height * y, -0.05), panel, shade(colour, 0.78), texture=texture)
            )
        parts.append(part("box", (x * (width + 0.06), height + 0.03, -0.03), (0.06, height + 0.03, 0.08), trim))
    parts.append(part("box", (0, 2 * height + 0.06, -0.03), (width + 0.12, 0.06, 0.08), trim))
    parts.append(part("sphere", (side * width * 0.84, height * 0.98, -0.11), (0.05, 0.05, 0.05), metal))
    parts.append(part("box", (side * width * 0.84, height * 0.98, -0.055), (0.04, 0.11, 0.01), shade(metal, 0.8)))
    return tuple(parts)


def draw_table(rng: random.Random, colour: Colour, *, half: tuple[float, float], height_m: float) -> Parts:
    """The top (first), round or square, and four legs."""
    texture = draw_texture(rng, ("plain", "mottled", "stripes"), (0.2, 0.5))
    shape: Shape = rng.choice(("box", "cylinder"))
    inset, leg = 0.86 if shape == "box" else 0.62, height_m / 2 - 0.03
    parts = [part(shape, (0, height_m - 0.03, 0), (half[0], 0.03, half[1]), colour, texture=texture, has_shadow=True)]
    for x in (-1, 1):
        for z in (-1, 1):
            spot = (x * half[0] * inset, leg, z * half[1] * inset)
            parts.append(part("cylinder", spot, (0.035, leg, 0.035), shade(colour, 0.7)))
    return tuple(parts)


def draw_apple(rng: random.Random, colour: Colour) -> Parts:
    """The fruit (first), a stalk and mostly a leaf."""
    radius = rng.uniform(0.1, 0.13)
    texture = replace(draw_texture(rng, ("plain", "mottled"), (0.1, 0.3)), contrast=0.25)
    parts = [
        part("sphere", (0, radius * 0.9, 0), (radius, radius * 0.92, radius), colour, texture=texture),
        part("cylinder", (0.006, radius * 2.05, 0), (0.011, radius * 0.38, 0.011), (0.3, 0.18, 0.08), roll=rng.uniform(-0.4, 0.4)),
    ]  # fmt: skip
    if rng.random() < 0.8:
        side = rng.choice((-1, 1))
        parts.append(
            part("sphere", (side * radius * 0.42, radius * 2.1, 0), (radius * 0.4, radius * 0.09, radius * 0.2), (0.25, 0.5, 0.15), roll=side * 0.4)
        )  # fmt: skip
    return tuple(parts)


def draw_orange(rng: random.Random, grade: Grading, *, radius: float) -> Parts:
    """The fruit (first) with the peel's grain and the small green star at its top. Hue, size and grain are free."""
    hue = ColourFamily(hue_deg=(20, 40), saturation=(0.8, 1.0), value=(0.75, 1.0))
    size = radius * rng.uniform(0.9, 1.15)
    texture = replace(
        draw_texture(rng, ("mottled",), (0.1, 0.3)), contrast=rng.uniform(0.2, 0.45), roughness=rng.uniform(0.4, 0.8)
    )
    return (
        part("sphere", (0, size * 0.97, 0), (size, size * 0.97, size), grade(hue.draw(rng)), texture=texture),
        part("sphere", (0, size * 1.93, 0), (size * 0.13, size * 0.06, size * 0.13), (0.22, 0.35, 0.1)),
    )


def draw_cup(rng: random.Random, colour: Colour) -> Parts:
    """A mug (first) with its dark inside and a handle."""
    radius, height = rng.uniform(0.07, 0.09), rng.uniform(0.08, 0.11)
    side = rng.choice((-1, 1))
    return (
        part("cylinder", (0, height, 0), (radius, height, radius), colour, texture=draw_texture(rng, ("plain", "stripes"), (0.06, 0.12))),
        part("cylinder", (0, height * 2, 0), (radius * 0.86, 0.003, radius * 0.86), shade(colour, 0.25)),
        part("ring", (side * radius * 1.25, height, 0), (radius * 0.6, height * 0.65, 0.01), shade(colour, 0.85)),
    )  # fmt: skip


def draw_macaw(rng: random.Random, grade: Grading, *, is_tail_down: bool) -> Parts:
    """A scarlet macaw, feet at the origin, its tail hanging down or lying behind it on what it stands on. The reds, the blue, how far the yellow band reaches and the grain are free."""
    red, blue = grade(SCARLET.draw(rng)), grade(FAMILIES["blue"].draw(rng))
    yellow, band = grade(FAMILIES["yellow"].draw(rng)), rng.uniform(0.03, 0.06)
    feathers = draw_texture(rng, ("plain", "mottled", "stripes"), (0.03, 0.08))
    black, white, ivory = (0.05, 0.05, 0.05), grade((0.95, 0.93, 0.9)), grade((0.9, 0.82, 0.65))
    lean = 0.3
    parts = [
        part("sphere", (0, 0.15, 0.01), (0.075, 0.14, 0.07), red, texture=feathers, pitch=lean),
        part("sphere", (0, 0.3, -0.035), (0.065, 0.065, 0.065), red, texture=feathers),
        part("cone", (0, 0.278, -0.112), (0.03, 0.046, 0.026), ivory, pitch=-2.3),
        part("sphere", (0, 0.258, -0.092), (0.02, 0.022, 0.018), black),
    ]
    if is_tail_down:
        parts.append(part("sphere", (0, -0.1, 0.11), (0.032, 0.19, 0.02), red, texture=feathers, pitch=-0.2))
        parts.append(part("sphere", (0.014, -0.16, 0.13), (0.022, 0.17, 0.016), blue, pitch=-0.2))
    else:
        parts.append(part("sphere", (0, 0.05, 0.18), (0.034, 0.17, 0.022), red, texture=feathers, pitch=1.45))
        parts.append(part("sphere", (0.016, 0.04, 0.25), (0.024, 0.16, 0.018), blue, pitch=1.5))
    for side in (-1, 1):
        parts += [
            part("sphere", (side * 0.034, 0.296, -0.07), (0.032, 0.034, 0.03), white),
            part("sphere", (side * 0.042, 0.305, -0.093), (0.013, 0.013, 0.011), black),
            part("sphere", (side * 0.068, 0.19, 0.02), (0.026, 0.085, 0.055), red, texture=feathers, pitch=lean),
            part("sphere", (side * 0.074, 0.14, 0.036), (0.026, band, 0.052), yellow, pitch=lean),
            part("sphere", (side * 0.074, 0.075, 0.055), (0.025, 0.075, 0.046), blue, texture=feathers, pitch=lean),
            part("box", (side * 0.03, 0.015, -0.03), (0.014, 0.02, 0.03), (0.25, 0.25, 0.27)),
        ]
    return scaled(parts, rng.uniform(1.1, 1.3))
