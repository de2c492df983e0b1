"""The other side of `probe.inspect`: decodes a whole video once, in a process of its own, and prints what it found.

`python -m pipeline.video.inspect_process URI LIFELINE_FD`. Lines of JSON on standard output: `{"size_bytes": …}` first,
`{"num_frames": …}` about once a second, at the end `{"inspection": …}` or `{"error": class, "message": …}`. The process
ends itself when the writing end of LIFELINE_FD closes, that is when its parent is gone.

No frame is kept: memory does not grow with the film's length.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from pipeline.video.color import chroma_of, color_tags, orientation_of
from pipeline.video.containers import COPIED_KINDS, choose_container
from pipeline.video.errors import (
    BadTimestamps,
    DamagedVideo,
    EmptyVideo,
    TruncatedVideo,
    UnsupportedVideo,
    VideoError,
)
from pipeline.video.info import Inspection, StreamInfo, VideoInfo
from pipeline.video.shots import ShotDetector, detection_size
from pipeline.video.source import open_source, size_of, video_stream

REPORT_EVERY_S = 1.0
LOG_LINES = 1000
MAX_SIDE_PX = 16384
"""Of an H.264 frame, by libx264."""
REORDERED_FRAMES = 16
"""A decoder holds back at most this many frames, so damage that it reports so near to the end is at the end."""
_CUT_SHORT = ("partial file", "ended prematurely")
"""What FFmpeg's demuxers log when the file is shorter than its index says."""
_DOLBY_VISION_TAGS = ("dvh1", "dvhe", "dva1", "dvav", "dav1")


def main() -> None:
    uri, lifeline = sys.argv[1], int(sys.argv[2])
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    # Decoder libraries may print: keep the answer's channel for ourselves.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        say(inspection=examine(uri, report=say).to_json())
    except VideoError as error:
        say(error=type(error).__name__, message=str(error))


def _end_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(1)


def examine(uri: str, *, report: Callable[..., None] = lambda **_: None) -> Inspection:
    """One sequential decode of the whole file.

    Args:
        report: called with `size_bytes` once and with `num_frames` about once a second.

    Raises:
        VideoError: as listed at `probe.inspect`.
    """
    size_bytes = size_of(uri)
    report(size_bytes=size_bytes)
    av.logging.set_level(av.logging.ERROR)
    with av.logging.Capture(local=False) as log, open_source(uri) as container:
        stream = video_stream(container, uri=uri)
        if stream.codec_context is None:
            raise UnsupportedVideo(f"{uri}: there is no decoder for its video stream")
        choose_container(container.streams, uri=uri)
        scan = _Scan(uri, stream)
        stream.thread_count = 1
        last_report = time.monotonic()
        try:
            for packet in container.demux(stream):
                scan.decode(packet)
                if time.monotonic() - last_report > REPORT_EVERY_S:
                    last_report = time.monotonic()
                    report(num_frames=len(scan.pts))
                if len(log) > LOG_LINES:
                    scan.read_log(log)
        except av.error.FFmpegError as error:
            scan.note_damage(f"reading stopped: {error.strerror}")
        scan.read_log(log)
        scan.check_whole()
        return scan.finish(container, size_bytes=size_bytes)


class _Scan:
    """What one pass over the frames gathers."""

    def __init__(self, uri: str, stream: av.VideoStream) -> None:
        self.uri = uri
        self.stream = stream
        self.pts: list[int] = []
        self.last_duration = 0
        self.damage = ""
        self.damaged_frame = 0
        self.is_cut_short = False
        self.first_frame: dict[str, Any] = {}
        self._shape: tuple[int, int, str] = (0, 0, "")
        self._shots = ShotDetector()
        self._reformatter = VideoReformatter()

    def decode(self, packet: av.Packet) -> None:
        if packet.is_corrupt:
            self.note_damage("its packet is incomplete")
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            self.note_damage(str(error.strerror))
            return
        for frame in frames:
            self._add(frame)

    def read_log(self, log: list[tuple[int, str, str]]) -> None:
        """Look for what the demuxer only logs, and forget the rest."""
        self.is_cut_short |= any(phrase in message for _, _, message in log for phrase in _CUT_SHORT)
        log.clear()

    def note_damage(self, what: str) -> None:
        if not self.damage:
            self.damaged_frame = len(self.pts)
            self.damage = f"frame {self.damaged_frame} or one near it does not decode ({what})"

    def _add(self, frame: av.VideoFrame) -> None:
        index = len(self.pts)
        if frame.is_corrupt:
            self.note_damage("decoding it met errors")
        shape = (frame.width, frame.height, frame.format.name)
        if not index:
            self._check_first(frame)
            self._shape = shape
        elif shape != self._shape:
            raise UnsupportedVideo(f"{self.uri}: frame {index} is {shape}, the frames before it {self._shape}")
        if frame.pts is None:
            raise BadTimestamps(f"{self.uri}: frame {index} has no timestamp; remux the file to give it some")
        if index and frame.pts <= self.pts[-1]:
            raise BadTimestamps(
                f"{self.uri}: timestamps do not increase: frame {index} is at {frame.pts}, "
                f"frame {index - 1} at {self.pts[-1]} (ticks of {self.stream.time_base} s)"
            )
        self.pts.append(frame.pts)
        self.last_duration = frame.duration or 0
        width, height = detection_size(frame.width, frame.height)
        small = self._reformatter.reformat(
            frame, width=width, height=height, format="bgr24", interpolation=Interpolation.AREA, threads=1
        )
        self._shots.add(np.ascontiguousarray(small.to_ndarray()))

    def _check_first(self, frame: av.VideoFrame) -> None:
        if max(frame.width, frame.height) > MAX_SIDE_PX:
            raise UnsupportedVideo(
                f"{self.uri}: frames are {frame.width}x{frame.height}; the H.264 encoder takes up to {MAX_SIDE_PX} a side"
            )
        tag = self.stream.codec_context.codec_tag
        if tag in _DOLBY_VISION_TAGS:
            raise UnsupportedVideo(
                f"{self.uri}: Dolby Vision ({tag}) is HDR video, which is not edited; convert it to SDR"
            )
        rotation_deg, is_mirrored = orientation_of(frame, uri=self.uri)
        ratio = self.stream.sample_aspect_ratio or Fraction(1)
        aspect = (ratio.numerator, ratio.denominator)
        is_turned = rotation_deg in (90, 270)
        self.first_frame = {
            "width_px": frame.height if is_turned else frame.width,
            "height_px": frame.width if is_turned else frame.height,
            "rotation_deg": rotation_deg,
            "is_mirrored": is_mirrored,
            "sample_aspect": (aspect[1], aspect[0]) if is_turned else aspect,
            "pixel_format": frame.format.name,
            "bit_depth": max(component.bits for component in frame.format.components),
            "chroma": chroma_of(frame.format),
            "is_interlaced": frame.interlaced_frame,
            "notes": _notes(frame),
            **color_tags(frame, uri=self.uri),
        }

    def check_whole(self) -> None:
        """Nothing is silently shorter: a file that does not decode to its end, without errors, is refused."""
        num_frames = len(self.pts)
        context = self.stream.codec_context
        if not num_frames and 0 in (context.width, context.height):
            raise UnsupportedVideo(f"{self.uri}: its frames are {context.width}x{context.height}; needs 1x1 or more")
        if not self.is_cut_short and self.damage and num_frames - self.damaged_frame <= REORDERED_FRAMES < num_frames:
            raise TruncatedVideo(
                f"{self.uri}: its end is damaged or missing: {self.damage}; {num_frames} decode in all"
            )
        if self.is_cut_short:
            raise TruncatedVideo(
                f"{self.uri}: the file ends early; {num_frames} frames decode"
                + (f" of {self.stream.frames}" if self.stream.frames > num_frames else "")
            )
        if self.damage:
            raise DamagedVideo(f"{self.uri}: {self.damage}; {num_frames} frames decode in all")
        if not num_frames:
            raise EmptyVideo(f"{self.uri}: its video stream ({context.width}x{context.height}) holds no frame")

    def finish(self, container: av.container.InputContainer, *, size_bytes: int) -> Inspection:
        pts = np.asarray(self.pts, dtype=np.int64)
        time_base = self.stream.time_base
        assert time_base is not None
        duration = int(pts[-1] - pts[0]) + self._last_frame_ticks(np.diff(pts), time_base)
        rate = (Fraction(len(pts)) / (duration * time_base)).limit_denominator(100_000)
        return Inspection(
            info=VideoInfo(
                uri=self.uri,
                size_bytes=size_bytes,
                container=container.format.name,
                codec=self.stream.codec_context.name,
                stream_index=self.stream.index,
                time_base=(time_base.numerator, time_base.denominator),
                average_rate=(rate.numerator, rate.denominator),
                num_frames=len(pts),
                start_pts=int(pts[0]),
                duration_ticks=duration,
                streams=_other_streams(container, self.stream),
                **self.first_frame,
            ),
            pts=pts,
            cuts=self._shots.cuts,
        )

    def _last_frame_ticks(self, steps: np.ndarray, time_base: Fraction) -> int:
        """How long the last frame is shown: what the file says, else as long as the others, else by the header's rate."""
        if self.last_duration:
            return self.last_duration
        if len(steps):
            return int(np.median(steps))
        rate = self.stream.average_rate
        return max(1, round(1 / (rate * time_base))) if rate else 1


def _notes(frame: av.VideoFrame) -> tuple[str, ...]:
    notes = []
    bits = frame.format.components[0].bits
    if frame.interlaced_frame:
        notes.append("interlaced: frames are edited as they are stored, both fields woven together")
    if bits > 10:
        notes.append(f"{bits}-bit source: the result has 10 bits, the encoder's most")
    if any(component.is_alpha for component in frame.format.components):
        notes.append("transparency is not kept")
    return tuple(notes)


def _other_streams(container: av.container.InputContainer, edited: av.VideoStream) -> tuple[StreamInfo, ...]:
    return tuple(
        StreamInfo(
            index=stream.index,
            kind=stream.type,
            codec=stream.codec_context.name if stream.codec_context else "unknown",
            language=stream.metadata.get("language", ""),
            title=stream.metadata.get("title", ""),
            is_copied=stream.type in COPIED_KINDS,
        )
        for stream in container.streams
        if stream.index != edited.index
    )


if __name__ == "__main__":
    main()
