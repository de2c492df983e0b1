"""How what a scene is made of is drawn from a random stream: the camera's grade, textures, solids and their hats, backdrops.

The order of the draws is part of what a seed means: bundled weights and tests were made with it.
"""

import math
import random
from dataclasses import dataclass, replace

from model.training.camera_path import Point
from model.training.palette import FAMILIES, Colour
from model.training.scene import (
    TEXTURE_WORDS,
    Backdrop,
    Motion,
    Shape,
    Solid,
    Texture,
    TextureKind,
)


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
        return replace(wearer, shape=shape, half=half, centre=centre, colour=colour, texture=texture, has_shadow=False)

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


def draw_places(rng: random.Random, distance: float, elsewhere: Point | None) -> list[tuple[float, float]]:
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


def unit(vector: Point) -> Point:
    length = math.hypot(*vector)
    return (vector[0] / length, vector[1] / length, vector[2] / length)
