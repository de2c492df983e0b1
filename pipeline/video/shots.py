"""Where the shots of a film begin, by PySceneDetect, one small frame at a time as the decoder delivers them.

AdaptiveDetector compares each frame's change in hue, saturation and brightness with its neighbours' (two to either
side), so that a fast pan or a shaking camera is no cut. A cut is a frame whose change is 3 times its neighbours' mean
and at least 15 (of 255). Both are PySceneDetect's own defaults, as is the shortest shot of 15 frames: two cuts nearer
than that are one. Slow dissolves and cuts in the last two frames are not found.
"""

from collections.abc import Iterable

import numpy as np
from scenedetect import AdaptiveDetector, FrameTimecode

DETECTION_WIDTH_PX = 256
ADAPTIVE_THRESHOLD = 3.0
MIN_CONTENT_CHANGE = 15.0
MIN_SHOT_FRAMES = 15
_NOMINAL_FPS = 25.0
"""Shots are counted in frames here; the detector wants a rate for its timecodes and never uses it."""


class ShotDetector:
    """Feed frames in order; read `cuts` at the end."""

    def __init__(self) -> None:
        self._detector = AdaptiveDetector(
            adaptive_threshold=ADAPTIVE_THRESHOLD,
            min_content_val=MIN_CONTENT_CHANGE,
            min_scene_len=MIN_SHOT_FRAMES,
        )
        self._num_frames = 0
        self._cuts: set[int] = set()

    def add(self, frame_bgr: np.ndarray) -> None:
        """The next frame, uint8 `[h, w, 3]` BGR, every frame of one size."""
        self._keep(self._detector.process_frame(FrameTimecode(self._num_frames, _NOMINAL_FPS), frame_bgr))
        self._num_frames += 1

    @property
    def cuts(self) -> tuple[int, ...]:
        """First frame of every shot after the first."""
        if self._num_frames:
            self._keep(self._detector.post_process(FrameTimecode(self._num_frames - 1, _NOMINAL_FPS)))
        return tuple(sorted(cut for cut in self._cuts if 0 < cut < self._num_frames))

    def _keep(self, cuts: Iterable[FrameTimecode]) -> None:
        self._cuts.update(cut.frame_num for cut in cuts)


def detection_size(width_px: int, height_px: int) -> tuple[int, int]:
    """(width, height) at which cuts are looked for: at most 256 columns, aspect kept, no side under 1."""
    scale = min(1.0, DETECTION_WIDTH_PX / max(width_px, height_px))
    return max(1, round(width_px * scale)), max(1, round(height_px * scale))
