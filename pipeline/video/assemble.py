"""The finished file: an edit's chunks one after the other, with the source's timestamps, sound and subtitles.

Nothing is decoded or encoded here. Every packet of the source's audio and subtitle streams is copied once, so there is
no cut in the sound at a segment's border; the video's timestamps come from the inspection. MP4 where it can carry the
source's streams, Matroska otherwise.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from pipeline.video.containers import (
    COPIED_KINDS,
    FORMATS,
    ContainerChoice,
    choose_container,
    describe,
    matroska_choice,
)
from pipeline.video.errors import AssemblyError
from pipeline.video.info import Inspection
from pipeline.video.matroska import MATROSKA_TICK_S, codec_delays_s, set_timestamp_scale
from pipeline.video.source import explained, open_source, reason_of

EMPTY_CUE = b"\0\0"
"""How MP4 fills the time between two subtitles; the muxer writes its own."""
_NOT_METADATA = ("major_brand", "minor_version", "compatible_brands", "encoder", "rotate")
_STATISTICS = ("DURATION", "BPS", "NUMBER_OF_", "_STATISTICS")
_MIN_MOVIE_TIMESCALE = 1000
_MAX_TIMESCALE = 2**31 - 1
_MATROSKA_STRETCH = int(Fraction(1, 1000) / MATROSKA_TICK_S)


@dataclass(frozen=True, kw_only=True)
class AssembledVideo:
    """Attributes:
    why: the reason where the container is not mp4; empty otherwise.
    notes: what of the source is not in the result or is there in another form, the inspection's notes first.
    """

    path: str
    container: str
    why: str
    num_frames: int
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Copied:
    """Where a source stream's packets go, and by how much their times are moved."""

    stream: av.stream.Stream
    shift_s: Fraction


def assemble(
    chunks: Sequence[str | Path], source_uri: str, inspection: Inspection, target: str | Path
) -> AssembledVideo:
    """Write `target` + `.mp4` or `.mkv`; it appears at once or not at all.

    The result has exactly the source's frames and timestamps (a Matroska file: within 5 µs). Payloads of audio and
    subtitles are the source's, bit for bit (AAC out of a transport stream loses its ADTS headers, as MP4 demands).
    Rotation is cleared, because the frames are upright. Title, language, chapters and dispositions are kept; data
    streams and cover pictures are not, which `notes` says. Should the video begin before zero, everything is moved
    together so that it begins at zero (noted).

    Args:
        chunks: local files of `encode_chunk`, in order; together as many frames as the source.
        target: local path without suffix.

    Raises:
        AssemblyError: the chunks do not fit together or do not add up to the source, or no container takes the result.
        UnsupportedVideo: neither container can carry the source's audio.
    """
    with explained(), open_source(source_uri) as source:
        choice = choose_container(source.streams, uri=source_uri)
    try:
        with explained():
            return _publish(chunks, source_uri, inspection, target, choice=choice)
    except (av.error.FFmpegError, ValueError) as error:
        if isinstance(error, AssemblyError) or choice.name == "mkv":
            raise AssemblyError(f"{source_uri}: {reason_of(error)}") from error
        why = f"MP4 cannot carry the source's streams ({reason_of(error)})"
    with explained(), open_source(source_uri) as source:
        choice = matroska_choice(source.streams, uri=source_uri, why=why)
    try:
        with explained():
            return _publish(chunks, source_uri, inspection, target, choice=choice)
    except (av.error.FFmpegError, ValueError) as error:
        raise AssemblyError(f"{source_uri}: {reason_of(error)}; {why}") from error


def _publish(
    chunks: Sequence[str | Path],
    source_uri: str,
    inspection: Inspection,
    target: str | Path,
    *,
    choice: ContainerChoice,
) -> AssembledVideo:
    path = Path(f"{target}.{choice.name}")
    beside = path.with_name(f".tmp-{path.name}")
    try:
        notes = _write(beside, chunks, source_uri, inspection, choice=choice)
        if choice.name == "mkv":
            set_timestamp_scale(beside, stretch=_MATROSKA_STRETCH)
        _check_written(beside, inspection)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return AssembledVideo(
        path=str(path),
        container=choice.name,
        why=choice.why,
        num_frames=inspection.info.num_frames,
        notes=(*inspection.info.notes, *notes),
    )


def _write(
    path: Path, chunks: Sequence[str | Path], source_uri: str, inspection: Inspection, *, choice: ContainerChoice
) -> tuple[str, ...]:
    info = inspection.info
    time_base = Fraction(*info.time_base)
    shift = max(0, -info.start_pts)
    is_mp4 = choice.name == "mp4"
    stretch = 1 if is_mp4 else _MATROSKA_STRETCH
    options = _mp4_options(info.time_base[1]) if is_mp4 else _matroska_options()
    with (
        open_source(source_uri) as source,
        av.open(str(chunks[0])) as first,
        av.open(str(path), "w", format=FORMATS[choice.name], options=options) as out,
    ):
        video = out.add_stream_from_template(first.streams.video[0], opaque=True)
        edited = source.streams[info.stream_index]
        video.metadata.update({key: edited.metadata[key] for key in ("language", "title") if key in edited.metadata})
        notes, streams = _add_other_streams(out, source, info.stream_index, choice=choice)
        if shift:
            notes.append(f"timestamps moved by {float(shift * time_base):g} s: the source begins before zero")
        out.metadata.update({key: value for key, value in source.metadata.items() if key not in _NOT_METADATA})
        out.set_chapters(source.chapters())
        delays = {} if is_mp4 else _codec_delays(first, source, list(streams))
        copied = {
            index: _Copied(
                stream=stream,
                # Of the delay the muxer adds in its own, here too long, units; see matroska.py.
                shift_s=shift * time_base + delays.get(index, Fraction(0)) * (1 - Fraction(1, stretch)),
            )
            for index, stream in streams.items()
        }
        for packet, stream in _interleaved(_video_packets(chunks, inspection, shift=shift), video, source, copied):
            packet.stream = stream
            packet.time_base = _tick(packet) * stretch
            out.mux_one(packet)
    return tuple(notes)


def _add_other_streams(
    out: av.container.OutputContainer,
    source: av.container.InputContainer,
    edited_index: int,
    *,
    choice: ContainerChoice,
) -> tuple[list[str], dict[int, av.stream.Stream]]:
    """Notes on what is not kept, and the output stream of every source stream whose packets are copied."""
    notes = []
    streams: dict[int, av.stream.Stream] = {}
    for stream in source.streams:
        if stream.index == edited_index:
            continue
        # Fonts that subtitles refer to live in Matroska's attachments.
        is_font = stream.type == "attachment" and choice.name == "mkv"
        if (stream.type not in COPIED_KINDS and not is_font) or stream.index in choice.dropped:
            notes.append(f"{describe(stream)} of the source is not kept")
            continue
        copy = out.add_stream_from_template(stream, opaque=True)
        copy.metadata.update({k: v for k, v in stream.metadata.items() if not k.startswith(_STATISTICS)})
        copy.disposition = stream.disposition
        if not is_font:
            streams[stream.index] = copy
    return notes, streams


def _mp4_options(denominator: int) -> dict[str, str]:
    # Edit lists (a late start) count in the movie's time scale: let it be a multiple of the video's.
    movie_timescale = denominator * -(-_MIN_MOVIE_TIMESCALE // denominator)
    return {
        "movflags": "+faststart",
        "video_track_timescale": str(denominator),
        "movie_timescale": str(min(movie_timescale, _MAX_TIMESCALE)),
    }


def _matroska_options() -> dict[str, str]:
    return {
        "avoid_negative_ts": "disabled",
        "cluster_time_limit": "30000",
        "write_crc32": "0",
        "max_interleave_delta": str(10_000_000 * _MATROSKA_STRETCH),
    }


def _codec_delays(
    first: av.container.InputContainer, source: av.container.InputContainer, indices: list[int]
) -> dict[int, Fraction]:
    """The CodecDelay that Matroska's muxer will state for each copied stream, from a header written to memory."""
    header = io.BytesIO()
    with av.open(header, "w", format="matroska") as trial:
        trial.add_stream_from_template(first.streams.video[0], opaque=True)
        for index in indices:
            trial.add_stream_from_template(source.streams[index], opaque=True)
        trial.start_encoding()
    delays = codec_delays_s(header, len(header.getvalue()))
    return dict(zip(indices, delays[1:], strict=True))


def _tick(packet: av.Packet) -> Fraction:
    assert packet.time_base is not None
    return packet.time_base


def _time_s(packet: av.Packet) -> Fraction:
    assert packet.dts is not None
    return packet.dts * _tick(packet)


def _interleaved(
    video_packets: Iterator[av.Packet],
    video: av.stream.Stream,
    source: av.container.InputContainer,
    copied: dict[int, _Copied],
) -> Iterator[tuple[av.Packet, av.stream.Stream]]:
    """All packets with their output streams, in order of time."""
    others = _other_packets(source, copied)
    waiting = next(others, None)
    for packet in video_packets:
        while waiting is not None and _time_s(waiting) <= _time_s(packet):
            yield waiting, copied[waiting.stream_index].stream
            waiting = next(others, None)
        yield packet, video
    while waiting is not None:
        yield waiting, copied[waiting.stream_index].stream
        waiting = next(others, None)


def _video_packets(chunks: Sequence[str | Path], inspection: Inspection, *, shift: int) -> Iterator[av.Packet]:
    """The chunks' packets with the source's timestamps; checks that they belong together and add up."""
    info = inspection.info
    pts = (inspection.pts + shift).tolist()
    ends = [*pts[1:], pts[0] + info.duration_ticks]
    time_base = Fraction(*info.time_base)
    index = 0
    parameter_sets: bytes | None = None
    for path in chunks:
        with av.open(str(path)) as chunk:
            stream = chunk.streams.video[0]
            parameter_sets = parameter_sets or stream.codec_context.extradata
            if stream.codec_context.extradata != parameter_sets:
                raise AssemblyError(f"chunk {path} was encoded with other settings than the first")
            chunk_start = index
            for packet in chunk.demux(stream):
                if not packet.size:
                    continue
                if index == len(pts):
                    raise AssemblyError(f"chunk {path} goes beyond the source's {len(pts)} frames")
                if index == chunk_start and not packet.is_keyframe:
                    raise AssemblyError(f"chunk {path} does not begin with a key frame")
                if _time_s(packet) != (pts[index] - pts[chunk_start]) * time_base or packet.pts != packet.dts:
                    raise AssemblyError(f"chunk {path} has other timestamps than the source from frame {index} on")
                packet.time_base = time_base
                packet.pts = packet.dts = pts[index]
                packet.duration = ends[index] - pts[index]
                index += 1
                yield packet
    if index != len(pts):
        raise AssemblyError(f"the chunks hold {index} frames; needs {len(pts)}")


def _other_packets(source: av.container.InputContainer, copied: dict[int, _Copied]) -> Iterator[av.Packet]:
    """Everything that is copied, as the source has it interleaved."""
    if not copied:
        return
    for packet in source.demux([source.streams[index] for index in copied]):
        if packet.dts is None:
            packet.dts = packet.pts
        if packet.dts is None or (packet.stream.codec.name == "mov_text" and bytes(packet) == EMPTY_CUE):
            continue
        ticks = round(copied[packet.stream_index].shift_s / _tick(packet))
        packet.dts += ticks
        if packet.pts is not None:
            packet.pts += ticks
        yield packet


def _check_written(path: Path, inspection: Inspection) -> None:
    """Read the file back, packets only: as many frames as the source, each within one tick of its place."""
    info = inspection.info
    tick_s = float(Fraction(*info.time_base))
    with av.open(str(path)) as written:
        stream = written.streams.video[0]
        times = [
            packet.pts * _tick(packet) for packet in written.demux(stream) if packet.size and packet.pts is not None
        ]
    if len(times) != info.num_frames:
        raise AssemblyError(f"the written file has {len(times)} frames; needs {info.num_frames}")
    wanted = (inspection.pts + max(0, -info.start_pts)) * tick_s
    off = np.abs(np.array(times, dtype=np.float64) - wanted)
    worst = int(np.argmax(off))
    if off[worst] >= max(tick_s, float(MATROSKA_TICK_S)):
        raise AssemblyError(f"frame {worst} is at {float(times[worst]):.6f} s; needs {wanted[worst]:.6f} s")
