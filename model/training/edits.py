"""Edits of a scene and the instructions that ask for them. The instruction says what; how exactly is drawn and left unsaid.

Here are the edits of plain solids and of whole frames; those of people, doors, fruit and birds come with their scenes (`staging.py`).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from model.training.drawing import draw_hat
from model.training.palette import CHROMATIC, Colour
from model.training.restyle import Style, draw_style
from model.training.scene import SHAPE_WORDS, Scene, Shape, Solid

StagedTask = Literal[
    "orange", "door", "person_hat", "jacket", "macaw", "clear_glasses", "sunglasses", "other_hat"
]  # fmt: skip
"""The paper's eight, of its project page: they need scenes of their own."""
EditTask = Literal[
    "recolour", "hat", "surface", "restyle", "remove", "reshape",
    "orange", "door", "person_hat", "jacket", "macaw", "clear_glasses", "sunglasses", "other_hat",
]  # fmt: skip
STAGED_TASKS: tuple[StagedTask, ...] = get_args(StagedTask)
EDIT_TASKS: tuple[EditTask, ...] = get_args(EditTask)
TASK_SHARES: dict[EditTask, float] = {
    "recolour": 0.32,
    "hat": 0.12,
    "surface": 0.06,
    "restyle": 0.14,
    "remove": 0.06,
    "reshape": 0.06,
    **dict.fromkeys(STAGED_TASKS, 0.03),
}
"""Of worlds whose task is not given, as in training. Recolouring first: it asks for any object in any scene to be found."""

RECOLOUR_PHRASES = (
    "change the {object} to {colour}",
    "make the {object} {colour}",
    "turn the {object} {colour}",
    "recolor the {object} to {colour}",
    "paint the {object} {colour}",
)
HAT_PHRASES = ("put a hat on the {object}", "add a hat to the {object}", "give the {object} a hat")
SURFACE_PHRASES = ("make the {surface} {colour}", "change the {surface} to {colour}", "turn the {surface} {colour}")
REMOVE_PHRASES = ("remove the {object}", "take the {object} away", "delete the {object}", "erase the {object}")
RESHAPE_PHRASES = (
    "turn the {object} into a {shape}",
    "change the {object} to a {shape}",
    "replace the {object} with a {shape}",
    "make a {shape} of the {object}",
)


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What is done to a scene: the scene afterwards, and for a restyle what is then done to the picture."""

    task: EditTask
    target: int
    """Index of the solid the camera leaves and returns to."""
    afterwards: Scene
    style: Style | None = None


def draw_edit(
    rng: random.Random, task: EditTask, scene: Scene, colour: str, shape: Shape, grade: Callable[[Colour], Colour]
) -> tuple[Edit, str]:
    """The edit of a scene whose first solid is the target, and the instruction for it, which says what and not how exactly."""
    (target, *others), backdrop = scene.solids, scene.backdrop
    new_name = rng.choice([name for name in CHROMATIC if name != colour])
    new_colour = grade(CHROMATIC[new_name].draw(rng))
    thing = f"{colour} {rng.choice(SHAPE_WORDS[shape])}"
    if task == "restyle":
        style, phrase = draw_style(rng)
        return Edit(task=task, target=0, afterwards=scene, style=style), phrase
    if task == "surface":
        if rng.random() < 0.5:
            surface, changed = "floor", replace(backdrop, floor=new_colour)
        else:
            surface = "walls" if backdrop.is_room else "sky"
            r, g, b = (value * rng.uniform(0.5, 1.0) for value in new_colour)
            zenith = backdrop.zenith if backdrop.is_room else (r, g, b)
            changed = replace(backdrop, far=new_colour, zenith=zenith)
        phrase = rng.choice(SURFACE_PHRASES).format(surface=surface, colour=new_name)
        return Edit(task=task, target=0, afterwards=replace(scene, backdrop=changed)), phrase
    if task == "recolour":
        afterwards: tuple[Solid, ...] = (replace(target, colour=new_colour),)
        phrase = rng.choice(RECOLOUR_PHRASES).format(object=thing, colour=new_name)
    elif task == "hat":
        afterwards = (target, *draw_hat(rng, target, new_colour))
        phrase = rng.choice(HAT_PHRASES).format(object=thing)
    elif task == "remove":
        afterwards = ()
        phrase = rng.choice(REMOVE_PHRASES).format(object=thing)
    else:
        assert task == "reshape", task
        new_shape = rng.choice([name for name in SHAPE_WORDS if name != shape])
        afterwards = (_reshaped(rng, target, new_shape),)
        phrase = rng.choice(RESHAPE_PHRASES).format(object=thing, shape=rng.choice(SHAPE_WORDS[new_shape]))
    return Edit(task=task, target=0, afterwards=replace(scene, solids=(*afterwards, *others))), phrase


def _reshaped(rng: random.Random, solid: Solid, shape: Shape) -> Solid:
    """Another shape of its colour and pattern in its place; width and height are free."""
    width, height = solid.half[0] * rng.uniform(0.75, 1.2), solid.half[1] * rng.uniform(0.75, 1.3)
    half = (width, width, width) if shape == "sphere" else (width, height, width)
    return replace(solid, shape=shape, half=half, centre=(solid.centre[0], half[1], solid.centre[2]))
