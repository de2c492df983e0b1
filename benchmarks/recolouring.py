"""The videos that `codec_floor` and `drift` look at: recolouring worlds of the train split, from seeds that no training uses."""

from dataclasses import replace

from pipeline.evaluation.suite import SHORT_SEGMENTS, SuiteVideo, Truth, find_world, world_of

FIRST_SEED = 3_000_000


def draw_videos(count: int, size: tuple[int, int]) -> list[tuple[str, Truth]]:
    """Instruction and truth of videos whose object leaves and returns, as in the suite "long-edit"."""
    found: list[tuple[str, Truth]] = []
    video = SuiteVideo(
        id="", world_seed=FIRST_SEED - 1, task="recolour", num_segments=SHORT_SEGMENTS, size=size, instruction="", path="", split="train"
    )  # fmt: skip
    while len(found) < count:
        video, truth = find_world(replace(video, world_seed=video.world_seed + 1))
        found.append((world_of(video).instruction, truth))
    return found


def described(count: int, size: tuple[int, int]) -> str:
    """The videos, in a sentence of a report."""
    return f"{count} recolouring videos of {SHORT_SEGMENTS} segments at {size[0]}x{size[1]} px, train split, from seed {FIRST_SEED}."
