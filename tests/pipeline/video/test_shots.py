"""Shots: hard cuts are found where they are, motion and flashes are none."""

import numpy as np

from pipeline.video.shots import MIN_SHOT_FRAMES, ShotDetector, detection_size
from tests.videos import inspection_of, real_video


def _detect(frames: list[np.ndarray]) -> tuple[int, ...]:
    detector = ShotDetector()
    for frame in frames:
        detector.add(frame)
    return detector.cuts


def _scene(seed: int, *, num_frames: int, pan_px: int = 1) -> list[np.ndarray]:
    """Smooth coloured patches, panned."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 40, 3)).astype(np.uint8)
    wide = coarse.repeat(16, axis=0).repeat(16, axis=1)
    return [wide[:, pan_px * index : pan_px * index + 160] for index in range(num_frames)]


def test_cuts_are_where_the_picture_changes() -> None:
    frames = _scene(0, num_frames=40) + _scene(1, num_frames=25) + _scene(2, num_frames=60)
    assert _detect(frames) == (40, 65)


def test_motion_and_a_single_flash_are_no_cuts() -> None:
    frames = _scene(3, num_frames=60, pan_px=4)
    assert _detect(frames) == ()
    assert len(_detect([*frames[:30], np.full_like(frames[0], 255), *frames[31:]])) <= 1


def test_shots_are_at_least_the_shortest() -> None:
    frames = [frame for seed in range(12) for frame in _scene(seed, num_frames=6)]
    bounds = [0, *_detect(frames), len(frames)]
    assert min(np.diff(bounds[:-1])) >= MIN_SHOT_FRAMES


def test_no_frames_and_one_frame_have_no_cut() -> None:
    assert _detect([]) == ()
    assert _detect(_scene(0, num_frames=1)) == ()


def test_the_street_video_has_its_five_cuts() -> None:
    """Checked by eye on the frames either side of each."""
    assert inspection_of(real_video("bikes.mp4")).cuts == (30, 76, 137, 187, 242)


def test_the_detection_size_keeps_the_aspect() -> None:
    assert detection_size(1920, 1080) == (256, 144)
    assert detection_size(1080, 1920) == (144, 256)
    assert detection_size(64, 48) == (64, 48)
    assert detection_size(16384, 16) == (256, 1)
