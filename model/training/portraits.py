"""Scenes of one person near the camera: hats, glasses, a jacket, a macaw on the shoulder."""

import random
from dataclasses import replace

from model.training.camera_path import Framing
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
from model.training.scene import Motion, Split, Turn
from model.training.staging import Staging, draw_phrase, draw_variant
from model.training.things import Grading, Parts, draw_macaw, pale, placed, recoloured, shade


def stage_person(rng: random.Random, task: StagedTask, split: Split, grade: Grading) -> Staging:
    variant = draw_variant(rng, split, HAIR_COLOURS, SHIRT_COLOURS)
    nearest, farthest = {"jacket": (1.9, 2.5), "macaw": (1.5, 1.9)}.get(task, (1.25, 1.6))
    if "glasses" in task:
        nearest, farthest = 1.0, 1.25
    distance = rng.uniform(nearest, farthest)
    blue, red = (grade(CHROMATIC[name].draw(rng)) for name in ("blue", "red"))
    person = draw_person(
        rng,
        grade,
        hair=variant[0],
        shirt=variant[1],
        jacket=blue if task == "jacket" else None,
        stature_m=rng.uniform(1.55, 1.75),
    )
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
        motion = Motion(
            amplitude=(rng.uniform(0.03, 0.1), 0.0, 0.0),
            period_frames=rng.uniform(60, 140),
            phase=rng.uniform(0, 6),
            is_bouncing=False,
        )
    return Staging(
        solids=placed(before, place, heading=heading, motion=motion, turn=turn),
        afterwards=placed(after, place, heading=heading, motion=motion, turn=turn),
        words=f"a person with {variant[0]} hair in a {variant[1]} shirt{wears}",
        instruction=draw_phrase(rng, task, place="on the person's shoulder"),
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
        return body, body + placed(draw_macaw(rng, grade, is_tail_down=True), spot, heading=rng.uniform(-0.5, 0.5)), ""
    glasses = Glasses(
        is_round=rng.random() < 0.5,
        frame=draw_frame(rng, grade),
        frame_opacity=1.0,
        lens=grade((0.8, 0.88, 0.92)),
        lens_opacity=rng.uniform(0.08, 0.2),
    )
    dark = replace(glasses, lens=draw_dark_lens(rng, grade), lens_opacity=rng.uniform(0.88, 0.98))
    if task == "sunglasses":
        return body + glasses.on(head), body + dark.on(head), " and glasses"
    tint = grade(pale(FAMILIES[rng.choice(list(FAMILIES))].draw(rng)))
    clear = replace(
        glasses, frame=tint, frame_opacity=rng.uniform(0.35, 0.6), lens=tint, lens_opacity=rng.uniform(0.08, 0.22)
    )
    tinted = replace(dark, lens_opacity=rng.uniform(0.6, 0.9))
    return body + tinted.on(head), body + clear.on(head), " and glasses"
