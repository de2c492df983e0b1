"""Segments tile the video exactly and never span a cut."""

import numpy as np
import pytest

from model.geometry import Geometry
from pipeline.video.split import split_shots

WAN = Geometry(segment_frames=17, min_frames=17, frame_multiple=4, sizes=((64, 64),))


def test_segments_are_greedy_and_the_remainder_stays_its_own() -> None:
    segments = split_shots(60, [20], WAN)
    assert [(s.segment, s.shot, s.start_frame, s.end_frame) for s in segments] == [
        (0, 0, 0, 17),
        (1, 0, 17, 20),
        (2, 1, 20, 37),
        (3, 1, 37, 54),
        (4, 1, 54, 60),
    ]


def test_any_video_is_tiled_exactly() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        num_frames = int(rng.integers(1, 400))
        num_cuts = int(rng.integers(0, min(num_frames, 12)))
        cuts = sorted(rng.choice(np.arange(1, num_frames), num_cuts, replace=False).tolist()) if num_cuts else []
        multiple = int(rng.choice([1, 4, 8]))
        geometry = Geometry(
            segment_frames=multiple * int(rng.integers(0, 21)) + 1,
            min_frames=1,
            frame_multiple=multiple,
            sizes=((8, 8),),
        )
        segments = split_shots(num_frames, cuts, geometry)
        assert [segment.segment for segment in segments] == list(range(len(segments)))
        tiled = [frame for segment in segments for frame in range(segment.start_frame, segment.end_frame)]
        assert tiled == list(range(num_frames))
        shot_of = np.searchsorted(cuts, np.arange(num_frames), side="right")
        for segment in segments:
            assert set(shot_of[segment.start_frame : segment.end_frame]) == {segment.shot}
            assert geometry.padded_frames(segment.num_frames) >= segment.num_frames
            ends_shot = segment.end_frame in (*cuts, num_frames)
            assert segment.num_frames == geometry.segment_frames or ends_shot


@pytest.mark.parametrize("cuts", [[5, 5], [7, 3], [0], [10], [-1]])
def test_wrong_cuts_are_refused(cuts: list[int]) -> None:
    with pytest.raises(ValueError, match=r"need increasing frames inside \(0, 10\)"):
        split_shots(10, cuts, WAN)


def test_no_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="num_frames is 0"):
        split_shots(0, [], WAN)
