"""Exact frames of a source: `[start, end)` by index, whatever the container's seeking is worth.

A span is found by its timestamp: seek to the key frame at or before it, decode forward, and check every frame's
timestamp against the inspection's. Where that does not fit (program streams, broken indices, open GOPs), the file is
decoded from its beginning instead; the frames are the same, only later.
"""

from collections.abc import Iterator

import av
import numpy as np
from jaxtyping import UInt8, UInt16

from pipeline.video.color import RgbReader
from pipeline.video.errors import DamagedVideo
from pipeline.video.info import Inspection
from pipeline.video.source import open_source, video_stream

_SEEK_ATTEMPTS = 3


class _SeekMissed(Exception):
    """The demuxer did not lead to the frame that was asked for."""


def decode_span(
    uri: str,
    inspection: Inspection,
    start: int,
    end: int,
    *,
    size: tuple[int, int] | None = None,
    is_16bit: bool = False,
) -> UInt8[np.ndarray, "T H W 3"] | UInt16[np.ndarray, "T H W 3"]:
    """The frames `[start, end)` as upright RGB; see `iter_span`."""
    height, width = size or (inspection.info.height_px, inspection.info.width_px)
    frames = np.empty((end - start, height, width, 3), dtype=np.uint16 if is_16bit else np.uint8)
    for index, frame in enumerate(iter_span(uri, inspection, start, end, size=size, is_16bit=is_16bit)):
        frames[index] = frame
    return frames


def iter_span(
    uri: str,
    inspection: Inspection,
    start: int,
    end: int,
    *,
    size: tuple[int, int] | None = None,
    is_16bit: bool = False,
) -> Iterator[UInt8[np.ndarray, "H W 3"] | UInt16[np.ndarray, "H W 3"]]:
    """The frames `[start, end)` one at a time, upright RGB in the source's primaries and transfer (`color.py`).

    Args:
        size: (height_px, width_px) to resize to by area; the source's own size by default.
        is_16bit: uint16 frames in units of 1/256 of an 8-bit code instead of uint8.

    Raises:
        ValueError: a span outside the video.
        DamagedVideo: the file no longer holds what `inspect` found.
    """
    if not 0 <= start < end <= inspection.info.num_frames:
        raise ValueError(f"span is [{start}, {end}); needs 0 <= start < end <= {inspection.info.num_frames}")
    reader = RgbReader(inspection.info, size=size, is_16bit=is_16bit)
    done = start
    if start:
        try:
            for frame in _frames_from_seek(uri, inspection, start, end):
                yield reader.read(frame)
                done += 1
            return
        except _SeekMissed:
            pass
    for frame in _frames_from_beginning(uri, inspection, done, end):
        yield reader.read(frame)


def _frames_from_seek(uri: str, inspection: Inspection, start: int, end: int) -> Iterator[av.VideoFrame]:
    wanted = inspection.pts[start:end].tolist()
    with open_source(uri) as container:
        stream = video_stream(container, uri=uri, index=inspection.info.stream_index)
        stream.thread_count = 1
        target = wanted[0]
        for _ in range(_SEEK_ATTEMPTS):
            try:
                container.seek(target, stream=stream, backward=True)
            except av.error.FFmpegError as error:
                raise _SeekMissed from error
            packets = container.demux(stream)
            first = next(packets)
            # A key frame shown after the target would leave the target to be decoded without what it refers to.
            if first.size and first.is_keyframe and first.pts is not None and first.pts <= wanted[0]:
                break
            earlier = first.dts if first.dts is not None else target
            target = min(earlier, target) - max(1, inspection.info.duration_ticks // inspection.info.num_frames)
        else:
            raise _SeekMissed
        position = 0
        for packet in _chain(first, packets):
            try:
                frames = packet.decode()
            except av.error.FFmpegError as error:
                raise _SeekMissed from error
            for frame in frames:
                if not position and (frame.pts is None or frame.pts < wanted[0]):
                    continue
                if frame.pts != wanted[position] or frame.is_corrupt:
                    raise _SeekMissed
                yield frame
                position += 1
                if position == len(wanted):
                    return
    raise _SeekMissed


def _chain(first: av.Packet, rest: Iterator[av.Packet]) -> Iterator[av.Packet]:
    yield first
    yield from rest


def _frames_from_beginning(uri: str, inspection: Inspection, start: int, end: int) -> Iterator[av.VideoFrame]:
    index = 0
    with open_source(uri) as container:
        stream = video_stream(container, uri=uri, index=inspection.info.stream_index)
        stream.thread_count = 1
        try:
            for frame in container.decode(stream):
                if frame.pts != inspection.pts[index]:
                    break
                if index >= start:
                    yield frame
                index += 1
                if index == end:
                    return
        except av.error.FFmpegError as error:
            raise DamagedVideo(f"{uri}: frame {index} does not decode: {error.strerror}") from error
    raise DamagedVideo(f"{uri}: frame {index} is not the one that was inspected; the file has changed since")
