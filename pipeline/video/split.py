"""Shots into segments: what one generation sees. Pure arithmetic; knows no files."""

from collections.abc import Sequence
from itertools import pairwise

from model.geometry import Geometry
from retrieval.schema import Segment


def split_shots(num_frames: int, cuts: Sequence[int], geometry: Geometry) -> list[Segment]:
    """Segments that tile `[0, num_frames)` exactly and never span a cut.

    Every shot is cut into segments of `geometry.segment_frames`; what remains at its end is a shorter segment of its
    own, which is padded for the editor by repeating its last frame (`model/geometry.py`), so that no output frame is
    dropped or duplicated.

    Args:
        cuts: first frame of every shot after the first, strictly increasing, inside `(0, num_frames)`.

    Raises:
        ValueError: no frames, or cuts that are not increasing or outside the video.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; needs at least 1")
    bounds = [0, *cuts, num_frames]
    for before, after in pairwise(bounds):
        if after <= before:
            raise ValueError(f"cuts are {list(cuts)}; need increasing frames inside (0, {num_frames})")
    segments: list[Segment] = []
    for shot, (shot_start, shot_end) in enumerate(pairwise(bounds)):
        for start in range(shot_start, shot_end, geometry.segment_frames):
            end = min(start + geometry.segment_frames, shot_end)
            segments.append(Segment(segment=len(segments), shot=shot, start_frame=int(start), end_frame=int(end)))
    return segments
