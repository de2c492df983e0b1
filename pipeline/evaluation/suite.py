"""The suite "long-edit": held-out rendered videos whose object leaves the view and returns, as files the pipeline edits.

Every video is a world of the "heldout" split (or of "train", to choose settings by), drawn from the suite's seed; one in four has
more than 900 frames, and half begin with the object away, so that no rule can rely on the first segments to show it. What its
edit leaves open (the tone within the named colour, the hat's shape, the style's tint) only memory can keep. A world is
rendered once, and its truth kept beside the video. Knows nothing of edits or measures.
"""

import json
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.training.scene import SEGMENT_FRAMES
from pipeline.video.io import write_video

if TYPE_CHECKING:
    from torch import Tensor

    from model.training.scene import Split
    from model.training.worlds import World

TASKS = ("recolour", "recolour", "hat", "restyle")
"""Of a suite that names none; they are taken in turn."""
OBJECT_TASKS = (
    "recolour", "hat", "remove", "reshape",
    "orange", "door", "person_hat", "jacket", "macaw", "clear_glasses", "sunglasses", "other_hat",
)  # fmt: skip
WHOLE_FRAME_TASKS = ("restyle",)
"""Those that change every pixel; the others change an object."""
ALLOWED_TASKS = (*OBJECT_TASKS, *WHOLE_FRAME_TASKS)
"""Of the world's tasks all but "surface": a floor hardly ever leaves the view, and what is never away does not return."""
SHORT_SEGMENTS, LONG_SEGMENTS = 14, 54
"""Of `SEGMENT_FRAMES`: 238 and 918 frames."""
LONG_EVERY = 4
ABSENCE_SEGMENTS = {SHORT_SEGMENTS: (3.5, 5.0), LONG_SEGMENTS: (8.0, 20.0)}
PRESENCE_FRAMES = {SHORT_SEGMENTS: (20, 40), LONG_SEGMENTS: (30, 60)}
FPS = 25
CRF = 8
"""Nearly lossless: what is measured is the editor, not the source's encoding."""
MIN_VISIBLE_SHARE = 0.01
"""Of a segment's pixels: less of the target is not looked at."""
MIN_ABSENCE = 3
"""Segments without the target that make a return."""
SEEDS_PER_VIDEO = 1000


@dataclass(frozen=True, kw_only=True)
class SuiteVideo:
    """One video of the suite; `world_seed` and the rest redraw its world.

    Attributes:
        size: (height_px, width_px) it was rendered at.
        split: of its world; "train" has the kinds of things that weights were trained on, in worlds that they were not.
        starts_in_view: whether it begins with the object, and not with an absence.
    """

    id: str
    world_seed: int
    task: str
    num_segments: int
    size: tuple[int, int]
    instruction: str
    path: str
    split: "Split" = "heldout"
    starts_in_view: bool = True

    @property
    def num_frames(self) -> int:
        return self.num_segments * SEGMENT_FRAMES

    @property
    def truth_path(self) -> Path:
        return Path(self.path).with_suffix(".truth.npz")


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is known of a span of frames: source and edited uint8 [t, h, w, 3], masks [t, h, w]. `mask` is where the edit
    changes the picture, `target` the object that is followed (see `WorldFrames`)."""

    source: "Tensor"
    edited: "Tensor"
    mask: "Tensor"
    target: "Tensor"


def draw_suite(
    folder: Path,
    *,
    videos: int,
    seed: int,
    size: tuple[int, int],
    workers: int,
    tasks: Sequence[str] = TASKS,
    split: "Split" = "heldout",
) -> list[SuiteVideo]:
    """Render what is not there yet, into `folder`; the same arguments give the same videos.

    Every round of `len(tasks)` videos takes each of `tasks` once and begins one further on, so that every task gets long videos.
    Those whose number has an odd count of set bits begin with the object away: half, and half of the long ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    asked = []
    for number in range(videos):
        task = tasks[(number + number // len(tasks)) % len(tasks)]
        starts_in_view = number.bit_count() % 2 == 0
        parts = (
            "" if split == "heldout" else split,
            f"s{seed}-v{number:03d}",
            "" if tuple(tasks) == TASKS else task,
            "" if starts_in_view else "away",
            f"{size[0]}x{size[1]}",
        )
        name = "-".join(filter(None, parts))
        video = SuiteVideo(
            id=name,
            world_seed=SEEDS_PER_VIDEO * (1000 * (seed + 1) + number),
            task=task,
            num_segments=LONG_SEGMENTS if number % LONG_EVERY == LONG_EVERY - 1 else SHORT_SEGMENTS,
            size=size,
            instruction="",
            path=str(folder / f"{name}.mp4"),
            split=split,
            starts_in_view=starts_in_view,
        )
        asked.append(video)
    with ProcessPoolExecutor(max(1, workers), mp_context=get_context("spawn")) as pool:
        return list(pool.map(_draw_video, asked))


def _draw_video(video: SuiteVideo) -> SuiteVideo:
    """Of the first world from `world_seed` on that will do."""
    import torch

    torch.set_num_threads(1)
    description = Path(video.path).with_suffix(".json")
    if description.exists() and video.truth_path.exists():  # the description is written last
        found = json.loads(description.read_text())
        return SuiteVideo(**{**found, "size": tuple(found["size"])})
    description.unlink(missing_ok=True)
    video, truth = find_world(video)
    video = replace(video, instruction=world_of(video).instruction)
    write_video(Path(video.path), iter(truth.source.numpy()), FPS, crf=CRF)
    keep_truth(video, truth)
    description.write_text(json.dumps(asdict(video)))
    return video


def find_world(video: SuiteVideo) -> tuple[SuiteVideo, Truth]:
    """The video with the first seed from its `world_seed` on whose world's target leaves and returns, and its truth.

    Raises:
        RuntimeError: if none of `SEEDS_PER_VIDEO` has one.
    """
    first = video.world_seed
    for world_seed in range(first, first + SEEDS_PER_VIDEO):
        found = replace(video, world_seed=world_seed)
        truth = truth_of(found, 0, found.num_frames)
        if returns(visits(truth.target)):
            return found, truth
    raise RuntimeError(f"none of {SEEDS_PER_VIDEO} worlds from seed {first} has a target that leaves and returns")


def keep_truth(video: SuiteVideo, truth: Truth) -> None:
    mask, target = (np.packbits(pixels.numpy()) for pixels in (truth.mask, truth.target))
    np.savez(video.truth_path, source=truth.source.numpy(), edited=truth.edited.numpy(), mask=mask, target=target)


def load_truth(video: SuiteVideo) -> Truth:
    """Of all frames, as it was rendered when the suite was drawn."""
    import torch

    shape = (video.num_frames, *video.size)
    with np.load(video.truth_path) as found:
        masks = {
            name: torch.from_numpy(np.unpackbits(found[name], count=math.prod(shape)).reshape(shape)).bool()
            for name in ("mask", "target")
        }
        return Truth(source=torch.from_numpy(found["source"]), edited=torch.from_numpy(found["edited"]), **masks)


def world_of(video: SuiteVideo) -> "World":
    from model.training.worlds import make_world

    return make_world(
        video.world_seed,
        split=video.split,
        num_frames=video.num_frames,
        task=video.task,  # type: ignore[arg-type]
        absence_segments=ABSENCE_SEGMENTS[video.num_segments],
        presence_frames=PRESENCE_FRAMES[video.num_segments],
        starts_in_view=video.starts_in_view,
    )


def truth_of(video: SuiteVideo, start: int, end: int) -> Truth:
    """Truth of frames `[start, end)`, rendered."""
    from model.training.worlds import render

    frames = render(world_of(video), start, end, size=video.size)
    return Truth(source=frames.source, edited=frames.edited, mask=frames.mask, target=frames.target)


def visits(target: "Tensor") -> list[int]:
    """Runs of `SEGMENT_FRAMES` frames, whatever the cuts, that see the target."""
    return [
        number
        for number, part in enumerate(target.split(SEGMENT_FRAMES))
        if float(part.float().mean()) > MIN_VISIBLE_SHARE
    ]


def returns(seen: Sequence[int]) -> list[int]:
    """Those of the visited segments before which the target was away for `MIN_ABSENCE` or more."""
    return [after for before, after in pairwise(seen) if after - before > MIN_ABSENCE]
