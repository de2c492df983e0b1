"""What preparing a video leaves: its probe and its table of segments. Light: a run that finds all done imports no Ray Data."""

from dataclasses import dataclass
from functools import cached_property

from pipeline.spec import ShotDetection
from pipeline.video.info import VideoInfo
from retrieval.schema import Segment, segments_from_table
from retrieval.store import Store

SHOT_DETECTION = ShotDetection(
    detector="scenedetect-adaptive", threshold=3.0, min_content_change=15.0, min_shot_frames=15, width_px=256
)
"""What pipeline/video/shots.py does, written here because importing it loads a decoder; a test holds them together."""


@dataclass(frozen=True, kw_only=True)
class PreparedVideo:
    """A prepared folder, read when asked for."""

    prepared_url: str

    @cached_property
    def info(self) -> VideoInfo:
        return VideoInfo.from_json(Store(self.prepared_url).read_json("video.json"))

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        return tuple(segments_from_table(Store(self.prepared_url).read_table("segments.parquet")))


def load_prepared(store: Store) -> PreparedVideo | None:
    """The prepared video in this folder, or None if it is not (wholly) prepared."""
    return PreparedVideo(prepared_url=store.url) if store.exists("segments.parquet") else None
