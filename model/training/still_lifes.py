"""Scenes without people: a door in its wall, an apple on a table, a macaw beside a cup."""

import random
from dataclasses import replace

from model.training.camera_path import Framing
from model.training.drawing import draw_texture
from model.training.edits import StagedTask
from model.training.palette import CHROMATIC, FAMILIES
from model.training.scene import Motion, Split
from model.training.staging import Staging, draw_phrase, draw_variant
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
    pale,
    part,
    placed,
    recoloured,
    scaled,
    shade,
)


def stage_door(rng: random.Random, task: StagedTask, split: Split, grade: Grading) -> Staging:
    variant = draw_variant(rng, split, DOOR_COLOURS, WALL_COLOURS)
    distance = rng.uniform(3.2, 4.2)
    dark, white = grade(DARK[variant[0]].draw(rng)), grade(WHITE.draw(rng))
    wall_colour = grade(pale(FAMILIES[variant[1]].draw(rng)))
    texture = replace(draw_texture(rng, ("plain", "mottled", "stripes", "checker"), (0.4, 1.2)), contrast=0.3)
    wall = part("box", (rng.uniform(-0.6, 0.6), 1.35, 0.08), (3.2, 1.35, 0.08), wall_colour, texture=texture)
    door = draw_door(rng, dark)
    after = recoloured(door, {dark: white, shade(dark, 0.78): shade(white, rng.uniform(0.75, 0.9))})
    place, heading = (0.0, 0.0, distance), rng.uniform(-0.25, 0.25)
    return Staging(
        solids=placed((*door, wall), place, heading=heading),
        afterwards=placed((*after, wall), place, heading=heading),
        words=f"a dark {variant[0]} door in a {variant[1]} wall",
        instruction=draw_phrase(rng, task),
        variant=variant,
        focus=(0.0, 1.0, distance),
        framing=Framing(fov_deg=(50, 64), drift_m=(0.1, 0.35), aim_x_m=0.5, aim_y=(0.85, 1.15)),
        distance_m=distance,
        has_neighbour=False,
    )


def stage_orange(rng: random.Random, task: StagedTask, split: Split, grade: Grading) -> Staging:
    variant = draw_variant(rng, split, APPLE_COLOURS, TABLE_COLOURS)
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
        motion = Motion(
            amplitude=(0.0, 0.0, reach), period_frames=rng.uniform(40, 110), phase=rng.uniform(0, 6), is_bouncing=False
        )
    return Staging(
        solids=placed(apple, spot, heading=heading, motion=motion) + beside + table,
        afterwards=placed(orange, spot, heading=heading, motion=motion) + beside + table,
        words=f"a {variant[0]} apple on a {variant[1]} table",
        instruction=draw_phrase(rng, task),
        variant=variant,
        focus=(0.0, height + 0.1, distance),
        framing=Framing(fov_deg=(38, 48), drift_m=(0.05, 0.15), aim_x_m=0.15, aim_y=(0.95, 1.1), roam_m=(0.1, 0.35)),
        distance_m=distance,
    )


def stage_macaw_on_table(rng: random.Random, task: StagedTask, split: Split, grade: Grading) -> Staging:
    variant = draw_variant(rng, split, TABLE_COLOURS, CUP_COLOURS)
    distance = rng.uniform(1.6, 2.0)
    table, height = _table(rng, grade, variant[0], distance)
    side = rng.choice((-1, 1))
    cup = placed(
        draw_cup(rng, grade(FAMILIES[variant[1]].draw(rng))), (side * rng.uniform(0.25, 0.35), height, distance - 0.1)
    )
    macaw = placed(
        scaled(draw_macaw(rng, grade, is_tail_down=False), 1.25),
        (-side * rng.uniform(0.0, 0.15), height, distance),
        heading=rng.uniform(-0.7, 0.7),
    )
    return Staging(
        solids=table + cup,
        afterwards=table + cup + macaw,
        words=f"a {variant[0]} table with a {variant[1]} cup",
        instruction=draw_phrase(rng, task, place="on the table"),
        variant=variant,
        focus=(0.0, height + 0.15, distance),
        framing=Framing(fov_deg=(42, 52), drift_m=(0.05, 0.2), aim_x_m=0.2, aim_y=(0.95, 1.12), roam_m=(0.1, 0.35)),
        distance_m=distance,
    )


def _table(rng: random.Random, grade: Grading, colour: str, distance: float) -> tuple[Parts, float]:
    height = rng.uniform(0.7, 0.85)
    parts = draw_table(
        rng, grade(FAMILIES[colour].draw(rng)), half=(rng.uniform(0.55, 0.75), rng.uniform(0.4, 0.5)), height_m=height
    )
    return placed(parts, (0.0, 0.0, distance), heading=rng.uniform(-0.2, 0.2)), height
