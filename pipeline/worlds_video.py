"""Writes the demo's long rendered video, and its truth. Knows worlds and the door to PyAV.

Rendering runs in processes of its own, one thread each: many small tensor operations gain nothing from threads, and the
caller never has to load torch.
"""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from pipeline.video.io import write_video

DEMO_SIZE = (272, 480)
DEMO_FPS = 25
FRAMES_PER_TASK = 17


def write_demo_world(path: Path, *, truth_path: Path | None = None, size: tuple[int, int] = DEMO_SIZE) -> str:
    """Render the demo's world (`model.training.worlds.demo_world`) with sound, and return its instruction.

    Args:
        path: mp4 to write.
        truth_path: where to write the edited video as the world defines it; not written where it is not given.
        size: (height_px, width_px), both even.
    """
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        instruction, num_frames = pool.submit(_describe_demo).result()
        starts = range(0, num_frames, FRAMES_PER_TASK)
        spans = [(start, min(start + FRAMES_PER_TASK, num_frames)) for start in starts]
        if truth_path is not None:
            edited = pool.map(_render_demo, [(span, size, True) for span in spans])
            write_video(truth_path, _frames_of(edited), DEMO_FPS)
        source = pool.map(_render_demo, [(span, size, False) for span in spans])
        write_video(path, _frames_of(source), DEMO_FPS, audio_tone=True)
    return instruction


def _frames_of(parts: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    for part in parts:
        yield from part


def _describe_demo() -> tuple[str, int]:
    from model.training.worlds import demo_world

    world = demo_world()
    return world.instruction, world.num_frames


def _render_demo(task: tuple[tuple[int, int], tuple[int, int], bool]) -> np.ndarray:
    import torch

    from model.training.worlds import demo_world, render

    torch.set_num_threads(1)
    (start, end), size, is_edited = task
    frames = render(demo_world(), start, end, size=size)
    return (frames.edited if is_edited else frames.source).numpy()
