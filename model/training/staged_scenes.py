"""The scene of each of the paper's eight edits, and what may stand to its other sides."""

import random

from model.training.edits import StagedTask
from model.training.palette import FAMILIES
from model.training.people import HAIR_COLOURS, SHIRT_COLOURS, draw_person
from model.training.portraits import stage_person
from model.training.scene import Split, Turn
from model.training.staging import Staging
from model.training.still_lifes import stage_door, stage_macaw_on_table, stage_orange
from model.training.things import CUP_COLOURS, TABLE_COLOURS, Grading, Parts, draw_cup, draw_table, placed


def draw_staging(rng: random.Random, task: StagedTask, split: Split, grade: Grading) -> Staging:
    """Draws a variant of its split, and what the instruction leaves open."""
    if task == "orange":
        return stage_orange(rng, task, split, grade)
    if task == "door":
        return stage_door(rng, task, split, grade)
    if task == "macaw" and rng.random() < 0.5:
        return stage_macaw_on_table(rng, task, split, grade)
    return stage_person(rng, task, split, grade)


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
