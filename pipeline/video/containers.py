"""Which container can carry the edited video and the source's other streams."""

import io
from collections.abc import Iterable
from dataclasses import dataclass

import av

from pipeline.video.errors import UnsupportedVideo

COPIED_KINDS = ("audio", "subtitle")
FORMATS = {"mp4": "mp4", "mkv": "matroska"}
"""Suffix -> FFmpeg's name."""


@dataclass(frozen=True, kw_only=True)
class ContainerChoice:
    """Attributes:
    name: "mp4" or "mkv".
    why: the reason where it is not mp4.
    dropped: indices of subtitle streams that neither container can carry.
    """

    name: str
    why: str = ""
    dropped: tuple[int, ...] = ()


def choose_container(streams: Iterable[av.stream.Stream], *, uri: str) -> ContainerChoice:
    """MP4 if it can carry every audio and subtitle stream, Matroska otherwise.

    Raises:
        UnsupportedVideo: an audio stream that neither can carry.
    """
    copied = [stream for stream in streams if stream.type in COPIED_KINDS]
    unfit = [stream for stream in copied if not _fits("mp4", stream)]
    if not unfit:
        return ContainerChoice(name="mp4")
    why = "MP4 cannot carry " + ", ".join(describe(stream) for stream in unfit)
    return matroska_choice(copied, uri=uri, why=why)


def matroska_choice(streams: Iterable[av.stream.Stream], *, uri: str, why: str) -> ContainerChoice:
    dropped = [stream for stream in streams if stream.type in COPIED_KINDS and not _fits("mkv", stream)]
    for stream in dropped:
        if stream.type == "audio":
            raise UnsupportedVideo(f"{uri}: neither MP4 nor Matroska can carry {describe(stream)}; convert its sound")
    return ContainerChoice(name="mkv", why=why, dropped=tuple(stream.index for stream in dropped))


def describe(stream: av.stream.Stream) -> str:
    codec = stream.codec_context.name if stream.codec_context else "unknown codec"
    return f"{stream.type} stream {stream.index} ({codec})"


def _fits(name: str, stream: av.stream.Stream) -> bool:
    """Whether the muxer knows the codec. A header it then refuses is found when the file is written."""
    if stream.codec_context is None:
        return False
    container = av.open(io.BytesIO(), "w", format=FORMATS[name])
    try:
        container.add_stream_from_template(stream, opaque=True)
    except ValueError:
        return False
    return True
