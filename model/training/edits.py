"""Edits of a scene and the instructions that ask for them. The instruction says what; how exactly is drawn and left unsaid."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from model.training.palette import CHROMATIC, Colour
from model.training.restyle import Style, draw_style
from model.training.scene import SHAPE_WORDS, Backdrop, Scene, Solid, draw_hat

EditTask = Literal["recolour", "hat", "surface", "restyle"]
TASK_SHARES: dict[EditTask, float] = {"recolour": 0.40, "hat": 0.20, "surface": 0.15, "restyle": 0.25}

RECOLOUR_PHRASES = (
    "change the {object} to {colour}",
    "make the {object} {colour}",
    "turn the {object} {colour}",
    "recolor the {object} to {colour}",
    "paint the {object} {colour}",
)
HAT_PHRASES = ("put a hat on the {object}", "add a hat to the {object}", "give the {object} a hat")
SURFACE_PHRASES = ("make the {surface} {colour}", "change the {surface} to {colour}", "turn the {surface} {colour}")


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What is done to a scene. Exactly one of the last four is set, according to `task`."""

    task: EditTask
    target: int
    """Index of the solid the camera leaves and returns to; the one edited by "recolour" and "hat"."""
    colour: Colour | None = None
    hat: tuple[Solid, ...] = ()
    backdrop: Backdrop | None = None
    style: Style | None = None


def draw_edit(
    rng: random.Random, task: EditTask, scene: Scene, colour: str, shape: str, grade: Callable[[Colour], Colour]
) -> tuple[Edit, str]:
    """The edit and the instruction for it, which says what and not how exactly."""
    target, backdrop = scene.solids[0], scene.backdrop
    new_name = rng.choice([name for name in CHROMATIC if name != colour])
    new_colour = grade(CHROMATIC[new_name].draw(rng))
    thing = f"{colour} {rng.choice(SHAPE_WORDS[shape])}"
    if task == "recolour":
        return Edit(task=task, target=0, colour=new_colour), rng.choice(RECOLOUR_PHRASES).format(
            object=thing, colour=new_name
        )
    if task == "hat":
        hat = draw_hat(rng, target, new_colour)
        return Edit(task=task, target=0, hat=hat), rng.choice(HAT_PHRASES).format(object=thing)
    if task == "surface":
        if rng.random() < 0.5:
            surface, changed = "floor", replace(backdrop, floor=new_colour)
        else:
            surface = "walls" if backdrop.is_room else "sky"
            r, g, b = (value * rng.uniform(0.5, 1.0) for value in new_colour)
            zenith = backdrop.zenith if backdrop.is_room else (r, g, b)
            changed = replace(backdrop, far=new_colour, zenith=zenith)
        phrase = rng.choice(SURFACE_PHRASES).format(surface=surface, colour=new_name)
        return Edit(task=task, target=0, backdrop=changed), phrase
    style, phrase = draw_style(rng)
    return Edit(task=task, target=0, style=style), phrase
