"""What is known of a video after one full decode. Plain records with a JSON round trip; imports no PyAV.

Sizes are UPRIGHT: after the container's rotation, as `decode_span` gives the frames. Everything is what the decoder
delivered, not what the header promises.
"""

from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

FULL_RANGE = "pc"
LIMITED_RANGE = "tv"


@dataclass(frozen=True, kw_only=True)
class StreamInfo:
    """A stream of the source other than the edited one.

    Attributes:
        is_copied: audio and subtitles go into the result unchanged; data streams and cover pictures do not.
    """

    index: int
    kind: str
    codec: str
    language: str = ""
    title: str = ""
    is_copied: bool = True


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """The edited video stream and its surroundings.

    Attributes:
        width_px, height_px: upright size of a decoded frame.
        rotation_deg: clockwise turn that makes the stored frames upright: 0, 90, 180 or 270.
        is_mirrored: the turned frames are then flipped left to right.
        sample_aspect: width : height of an upright pixel.
        chroma: "420", "422", "444", "other" (410, 411, 440), "gray" or "rgb".
        color_*: the file's tags by FFmpeg's names; "unknown" where it has none.
        color_matrix: the matrix that is used: the tag, or BT.601/BT.709 by size where there is none.
        time_base: seconds per tick of every timestamp here, as (num, den).
        average_rate: frames per second over the whole file, as (num, den).
        num_frames: frames that really decode.
        start_pts: timestamp of the first frame.
        duration_ticks: from the first frame's start to the last frame's end.
    """

    uri: str
    size_bytes: int
    container: str
    codec: str
    stream_index: int
    width_px: int
    height_px: int
    rotation_deg: int = 0
    is_mirrored: bool = False
    sample_aspect: tuple[int, int] = (1, 1)
    pixel_format: str
    bit_depth: int
    chroma: str
    color_range: str
    color_primaries: str
    color_transfer: str
    color_space: str
    color_matrix: str
    is_interlaced: bool = False
    time_base: tuple[int, int]
    average_rate: tuple[int, int]
    num_frames: int
    start_pts: int
    duration_ticks: int
    streams: tuple[StreamInfo, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def duration_s(self) -> float:
        return self.duration_ticks * self.time_base[0] / self.time_base[1]

    @property
    def fps(self) -> float:
        return self.average_rate[0] / self.average_rate[1]

    @property
    def display_width(self) -> float:
        """Width in units of the height's pixels: what a viewer sees, non-square pixels included."""
        return self.width_px * self.sample_aspect[0] / self.sample_aspect[1]

    @property
    def display_height(self) -> float:
        return float(self.height_px)

    @property
    def display_aspect(self) -> Fraction:
        return Fraction(self.width_px, self.height_px) * Fraction(*self.sample_aspect)

    def to_json(self) -> dict[str, Any]:
        """A value for `json.dump`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "VideoInfo":
        pairs = {name: tuple(value[name]) for name in ("sample_aspect", "time_base", "average_rate", "notes")}
        streams = tuple(StreamInfo(**stream) for stream in value["streams"])
        return cls(**{**value, **pairs, "streams": streams})


@dataclass(frozen=True, kw_only=True, eq=False)
class Inspection:
    """Everything the pipeline needs to know of a source before it edits it.

    Attributes:
        pts: int64 `[num_frames]`, strictly increasing, in ticks of `info.time_base`.
        cuts: first frame of every shot after the first, increasing.
    """

    info: VideoInfo
    pts: np.ndarray
    cuts: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "pts", np.asarray(self.pts, dtype=np.int64))
        object.__setattr__(self, "cuts", tuple(int(cut) for cut in self.cuts))
        if self.pts.shape != (self.info.num_frames,):
            raise ValueError(f"pts has shape {self.pts.shape}; needs ({self.info.num_frames},) as num_frames says")

    def to_json(self) -> dict[str, Any]:
        return {"info": self.info.to_json(), "pts": self.pts.tolist(), "cuts": list(self.cuts)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Inspection":
        return cls(info=VideoInfo.from_json(value["info"]), pts=np.asarray(value["pts"]), cuts=tuple(value["cuts"]))
