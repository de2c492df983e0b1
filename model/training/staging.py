"""The scenes of the paper's eight edits (its project page): who or what is before the camera, before and after, and how near.

Every staging draws a variant of its split (`scene.is_heldout_variant`), and what its instruction leaves open.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from model.training.camera_path import Framing, Point
from model.training.drawing import draw_texture
from model.training.edits import StagedTask
from model.training.palette import CHROMATIC, FAMILIES
from model.training.people import (
    HAIR_COLOURS,
    HAT_KINDS,
    SHIRT_COLOURS,
    Glasses,
    Person,
    draw_dark_lens,
    draw_frame,
    draw_person,
    draw_person_hat,
)
from model.training.scene import Motion, Split, Turn, is_heldout_variant
from model.training.things import (
    APPLE_COLOURS,
    CUP_COLOURS,
    DARK,
    DOOR_COLOURS,
    TABLE_COLOURS,
    WALL_COLOURS,
    WHITE,
    Grading,
    Parts,
    draw_apple,
    draw_cup,
    draw_door,
    draw_macaw,
    draw_orange,
    draw_table,
    part,
    placed,
    recoloured,
    scaled,
    shade,
)

PHRASES: dict[StagedTask, tuple[str, ...]] = {
    "orange": ("turn the apple into an orange", "change the apple to an orange", "replace the apple with an orange"),
    "door": ("make the dark door white", "change the dark door to white", "paint the door white"),
    "person_hat": ("put a hat on the person", "add a hat to the person", "give the person a hat"),
    "jacket": ("change the blue jacket to red", "make the blue jacket red", "turn the jacket red"),
    "macaw": ("add a scarlet macaw {place}", "put a scarlet macaw {place}", "let a scarlet macaw sit {place}"),
    "clear_glasses": (
        "change the glasses to transparent glasses",
        "make the glasses transparent",
        "replace the glasses with clear ones",
    ),
    "sunglasses": (
        "change the glasses to sunglasses",
        "turn the glasses into sunglasses",
        "replace the glasses with sunglasses",
    ),
    "other_hat": ("change the hat to another hat", "replace the hat with another one", "give the person a different hat"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Staging:
    """What a scene is about: its solids before and after the edit, the first one (before) being where captions see it.

    Attributes:
        variant: the two names of which the held-out split has its own pairs.
        focus: what the camera returns to.
        low_m, high_m: camera heights of the train split, to both sides of the held-out ones.
        has_neighbour: whether something may stand beside it.
        is_of_people: what stands elsewhere is then no person, so that "the person" is one.
    """

    solids: Parts
    afterwards: Parts
    words: str
    instruction: str
    variant: tuple[str, str]
    focus: Point
    framing: Framing
    distance_m: float
    low_m: tuple[float, float] = (1.1, 1.5)
    high_m: tuple[float, float] = (1.8, 2.3)
    has_neighbour: bool = True
    is_of_people: bool = False


def draw_staging(rng: random.Random, task: StagedTask, split: Split, grade: Grading) -> Staging:
    return _STAGINGS[task](rng, task, split, grade)


def _draw_variant(rng: random.Random, split: Split, first: Sequence[str], second: Sequence[str]) -> tuple[str, str]:
    pairs = [
        (one, other)
        for i, one in enumerate(first)
        for j, other in enumerate(second)
        if is_heldout_variant(i, j) == (split == "heldout")
    ]
    return rng.choice(pairs)


def _phrase(rng: random.Random, task: StagedTask, *, place: str = "") -> str:
    return rng.choice(PHRASES[task]).format(place=place)


def _stage_door(rng: random.Random, task: StagedTask, split: Split, grade: Grading) -> Staging:
    variant = _draw_variant(rng, split, DOOR_COLOURS, WALL_COLOURS)
    distance = rng.uniform(3.2, 4.2)
    dark, white = grade(DARK[variant[0]].draw(rng)), grade(WHITE.draw(rng))
    wall_colour = grade(_pale(FAMILIES[variant[1]].draw(rng)))
    texture = replace(draw_texture(rng, ("plain", "mottled", "stripes", "checker"), (0.4, 1.2)), contrast=0.3)
    wall = part("box", (rng.uniform(-0.6, 0.6), 1.35, 0.08), (3.2, 1.35, 0.08), wall_colour, texture=texture)
    door = draw_door(rng, dark)
    after = recoloured(door, {dark: white, shade(dark, 0.78): shade(white, rng.uniform(0.75, 0.9))})
    place, heading = (0.0, 0.0, distance), rng.uniform(-0.25, 0.25)
    return Staging(
        solids=placed((*door, wall), place, heading=heading),
        afterwards=placed((*after, wall), place, heading=heading),
        words=f"a dark {variant[0]} door in a {variant[1]} wall",
        instruction=_phrase(rng, task),
        variant=variant,
        focus=(0.0, 1.0, distance),
        framing=Framing(fov_deg=(50, 64), drift_m=(0.1, 0.35), aim_x_m=0.5, aim_y=(0.85, 1.15)),
        distance_m=distance,
        has_neighbour=False,
    )


def _pale(colour: tuple[float, float, float]) -> tuple[float, float, float]:
    r, g, b = (0.45 * value + 0.45 for value in colour)
    return (r, g, b)


def _stage_orange(rng: random.Random, task: StagedTask, split: Split, grade: Grading) -> Staging:
    variant = _draw_variant(rng, split, APPLE_COLOURS, TABLE_COLOURS)
    distance = rng.uniform(1.25, 1.6)
    apple = draw_apple(rng, grade(CHROMATIC[variant[0]].draw(rng)))
    orange = draw_orange(rng, grade, radius=apple[0].half[0])
    table, height = _table(rng, grade, variant[1], distance)
    side = rng.choice((-1, 1))
    beside = placed(
        draw_cup(rng, grade(FAMILIES[rng.choice(CUP_COLOURS)].draw(rng))),
        (side * rng.uniform(0.28, 0.36), height, distance + rng.uniform(-0.05, 0.1)),
    )
    spot, heading = (0.0, height, distance), rng.uniform(-0.8, 0.8)
    motion = None
    if rng.random() < 0.4:
        reach = rng.uniform(0.03, 0.1)
        motion = Motion(amplitude=(0.0, 0.0, reach), period_frames=rng.uniform(40, 110), phase=rng.uniform(0, 6), is_bouncing=False)  # fmt: skip
    return Staging(
        solids=placed(apple, spot, heading=heading, motion=motion) + beside + table,
        afterwards=placed(orange, spot, heading=heading, motion=motion) + beside + table,
        words=f"a {variant[0]} apple on a {variant[1]} table",
        instruction=_phrase(rng, task),
        variant=variant,
        focus=(0.0, height + 0.1, distance),
        framing=Framing(fov_deg=(38, 48), drift_m=(0.05, 0.15), aim_x_m=0.15, aim_y=(0.95, 1.1), roam_m=(0.1, 0.35)),
        distance_m=distance,
    )


def _table(rng: random.Random, grade: Grading, colour: str, distance: float) -> tuple[Parts, float]:
    height = rng.uniform(0.7, 0.85)
    parts = draw_table(rng, grade(FAMILIES[colour].draw(rng)), half=(rng.uniform(0.55, 0.75), rng.uniform(0.4, 0.5)), height_m=height)  # fmt: skip
    return placed(parts, (0.0, 0.0, distance), heading=rng.uniform(-0.2, 0.2)), height


def _stage_person(rng: random.Random, task: StagedTask, split: Split, grade: Grading) -> Staging:
    variant = _draw_variant(rng, split, HAIR_COLOURS, SHIRT_COLOURS)
    nearest, farthest = {"jacket": (1.9, 2.5), "macaw": (1.5, 1.9)}.get(task, (1.25, 1.6))
    if "glasses" in task:
        nearest, farthest = 1.0, 1.25
    distance = rng.uniform(nearest, farthest)
    blue, red = (grade(CHROMATIC[name].draw(rng)) for name in ("blue", "red"))
    person = draw_person(
        rng, grade, hair=variant[0], shirt=variant[1], jacket=blue if task == "jacket" else None, stature_m=rng.uniform(1.55, 1.75)
    )  # fmt: skip
    before, after, wears = _worn(rng, task, grade, person)
    height = person.head[1]
    focus_y, aim_x = height, 0.12
    if task == "jacket":
        focus_y, aim_x = height * 0.82, 0.25
        before = person.parts
        after = recoloured(before, {blue: red, shade(blue, 0.75): shade(red, 0.75)})
        wears = " and a blue jacket"
    elif task in ("person_hat", "other_hat", "macaw"):
        focus_y = height + 0.08
    place = (rng.uniform(-0.08, 0.08), 0.0, distance)
    heading = rng.uniform(-0.35, 0.35)
    turn = Turn(
        axis=(place[0], place[2]),
        amplitude_rad=rng.uniform(0.05, 0.4),
        period_frames=rng.uniform(60, 160),
        phase=rng.uniform(0, 6),
    )
    motion = None
    if rng.random() < 0.5:
        motion = Motion(amplitude=(rng.uniform(0.03, 0.1), 0.0, 0.0), period_frames=rng.uniform(60, 140), phase=rng.uniform(0, 6), is_bouncing=False)  # fmt: skip
    return Staging(
        solids=placed(before, place, heading=heading, motion=motion, turn=turn),
        afterwards=placed(after, place, heading=heading, motion=motion, turn=turn),
        words=f"a person with {variant[0]} hair in a {variant[1]} shirt{wears}",
        instruction=_phrase(rng, task, place="on the person's shoulder"),
        variant=variant,
        focus=(0.0, focus_y, distance),
        framing=Framing(
            fov_deg=(38, 46), drift_m=(0.04, 0.14), aim_x_m=aim_x, aim_y=(0.97, 1.03), aim_z_m=0.05, roam_m=(0.08, 0.25)
        ),
        distance_m=distance,
        low_m=(1.2, 1.5),
        high_m=(1.8, 1.95),
        is_of_people=True,
    )


def _worn(rng: random.Random, task: StagedTask, grade: Grading, person: Person) -> tuple[Parts, Parts, str]:
    """All parts before and after, and what the caption adds."""
    body, head = person.parts, person.head
    kind, other_kind = rng.sample(HAT_KINDS, 2)
    hat, other_hat = (draw_person_hat(rng, grade, head, name) for name in (kind, other_kind))
    if task == "person_hat":
        return body, body + hat, ""
    if task == "other_hat":
        return body + hat, body + other_hat, f" and a {kind}"
    if task == "macaw":
        side = rng.choice((-1, 1))
        spot = (side * person.shoulder[0], person.shoulder[1], person.shoulder[2])
        return body, body + placed(draw_macaw(rng, grade), spot, heading=rng.uniform(-0.5, 0.5)), ""
    glasses = Glasses(
        is_round=rng.random() < 0.5, frame=draw_frame(rng, grade), frame_opacity=1.0, lens=grade((0.8, 0.88, 0.92)), lens_opacity=rng.uniform(0.08, 0.2)
    )  # fmt: skip
    dark = replace(glasses, lens=draw_dark_lens(rng, grade), lens_opacity=rng.uniform(0.88, 0.98))
    if task == "sunglasses":
        return body + glasses.on(head), body + dark.on(head), " and glasses"
    pale = grade(_pale(FAMILIES[rng.choice(list(FAMILIES))].draw(rng)))
    clear = replace(glasses, frame=pale, frame_opacity=rng.uniform(0.35, 0.6), lens=pale, lens_opacity=rng.uniform(0.08, 0.22))  # fmt: skip
    tinted = replace(dark, lens_opacity=rng.uniform(0.6, 0.9))
    return body + tinted.on(head), body + clear.on(head), " and glasses"


def _stage_macaw(rng: random.Random, task: StagedTask, split: Split, grade: Grading) -> Staging:
    """On someone's shoulder, or on a table with a cup."""
    if rng.random() < 0.5:
        return _stage_person(rng, task, split, grade)
    variant = _draw_variant(rng, split, TABLE_COLOURS, CUP_COLOURS)
    distance = rng.uniform(1.6, 2.0)
    table, height = _table(rng, grade, variant[0], distance)
    side = rng.choice((-1, 1))
    cup = placed(draw_cup(rng, grade(FAMILIES[variant[1]].draw(rng))), (side * rng.uniform(0.25, 0.35), height, distance - 0.1))  # fmt: skip
    macaw = placed(scaled(draw_macaw(rng, grade), 1.25), (-side * rng.uniform(0.0, 0.15), height, distance), heading=rng.uniform(-0.7, 0.7))  # fmt: skip
    return Staging(
        solids=table + cup,
        afterwards=table + cup + macaw,
        words=f"a {variant[0]} table with a {variant[1]} cup",
        instruction=_phrase(rng, task, place="on the table"),
        variant=variant,
        focus=(0.0, height + 0.15, distance),
        framing=Framing(fov_deg=(42, 52), drift_m=(0.05, 0.2), aim_x_m=0.2, aim_y=(0.95, 1.12), roam_m=(0.1, 0.35)),
        distance_m=distance,
    )


_STAGINGS: dict[StagedTask, Callable[[random.Random, StagedTask, Split, Grading], Staging]] = {
    "orange": _stage_orange,
    "door": _stage_door,
    "macaw": _stage_macaw,
    **dict.fromkeys(("person_hat", "jacket", "clear_glasses", "sunglasses", "other_hat"), _stage_person),
}


def draw_bystander(
    rng: random.Random, grade: Grading, place: tuple[float, float], *, is_person: bool
) -> tuple[Parts, str]:
    """Someone, or a table with a cup, to the other sides."""
    heading = rng.uniform(-3.1, 3.1)
    spot = (place[0], 0.0, place[1])
    if is_person:
        hair, shirt = rng.choice(HAIR_COLOURS), rng.choice(SHIRT_COLOURS)
        person = draw_person(rng, grade, hair=hair, shirt=shirt, stature_m=rng.uniform(1.5, 1.8))
        turn = Turn(
            axis=place, amplitude_rad=rng.uniform(0.2, 1.0), period_frames=rng.uniform(60, 160), phase=rng.uniform(0, 6)
        )
        words = f"a person with {hair} hair in a {shirt} shirt"
        return placed(person.parts, spot, heading=heading, turn=turn), words
    colour, cup = rng.choice(TABLE_COLOURS), rng.choice(CUP_COLOURS)
    height = rng.uniform(0.65, 0.85)
    table = draw_table(rng, grade(FAMILIES[colour].draw(rng)), half=(0.6, 0.45), height_m=height)
    mug = placed(draw_cup(rng, grade(FAMILIES[cup].draw(rng))), (0.0, height, 0.0))
    return placed((*table, *mug), spot, heading=heading), f"a {colour} table with a {cup} cup"
