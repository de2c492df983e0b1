"""What a staged scene is: who or what is before the camera, before and after one of the paper's eight edits, and how near.

The instructions of these edits stand here; the scenes themselves in `portraits.py` and `still_lifes.py`.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from model.training.camera_path import Framing, Point
from model.training.edits import StagedTask
from model.training.scene import Split, is_heldout_variant
from model.training.things import Parts

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
    "other_hat": (
        "change the hat to another hat",
        "replace the hat with another one",
        "give the person a different hat",
    ),
}


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


def draw_variant(rng: random.Random, split: Split, first: Sequence[str], second: Sequence[str]) -> tuple[str, str]:
    """Two names, of the pairs that are the split's own."""
    pairs = [
        (one, other)
        for i, one in enumerate(first)
        for j, other in enumerate(second)
        if is_heldout_variant(i, j) == (split == "heldout")
    ]
    return rng.choice(pairs)


def draw_phrase(rng: random.Random, task: StagedTask, *, place: str = "") -> str:
    return rng.choice(PHRASES[task]).format(place=place)
