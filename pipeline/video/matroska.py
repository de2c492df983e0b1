"""Finer timestamps in Matroska files than FFmpeg's muxer can write. Knows only the file format (RFC 9559), no PyAV.

The muxer counts in milliseconds (TimestampScale 1 000 000 ns), which would move the frames of most sources by several
ticks. So it is given all times `stretch` times too long, and afterwards the file is told that its units were that much
shorter: TimestampScale, the only statement of the unit, is rewritten, and with it the DURATION tags, which are text.
CodecDelay is in nanoseconds and therefore right, but the muxer has moved its track by as many of the long units;
`codec_delays_s` lets the caller make up for it.
"""

import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import IO

MATROSKA_TICK_S = Fraction(1, 100_000)
"""Blocks state their time in 16 bits relative to their cluster, so 10 µs units leave clusters of 0.3 s."""
_MUXER_SCALE_NS = 1_000_000

_SEGMENT, _INFO, _TRACKS, _TAGS = 0x18538067, 0x1549A966, 0x1654AE6B, 0x1254C367
_TIMESTAMP_SCALE, _TRACK_ENTRY, _CODEC_DELAY = 0x2AD7B1, 0xAE, 0x56AA
_TAG, _SIMPLE_TAG, _TAG_NAME, _TAG_STRING = 0x7373, 0x67C8, 0x45A3, 0x4487


def set_timestamp_scale(path: Path, *, stretch: int) -> None:
    """Make the units of a finished file `stretch` times shorter; `stretch` divides 1 000 000.

    Raises:
        ValueError: not a Matroska file as FFmpeg's muxer writes it.
    """
    assert _MUXER_SCALE_NS % stretch == 0
    with path.open("r+b") as file:
        end = path.stat().st_size
        segment = next((start, stop) for key, start, stop in _elements(file, 0, end) if key == _SEGMENT)
        is_set = False
        for key, start, stop in _elements(file, *segment):
            if key == _INFO:
                for inner, value, value_end in _elements(file, start, stop):
                    if inner == _TIMESTAMP_SCALE and _read(file, value, value_end) == _uint(_MUXER_SCALE_NS, 3):
                        _write(file, value, _uint(_MUXER_SCALE_NS // stretch, 3))
                        is_set = True
            elif key == _TAGS:
                for value, value_end in _duration_tags(file, start, stop):
                    _write(file, value, _shorter(_read(file, value, value_end), stretch))
        if not is_set:
            raise ValueError(f"{path}: has no TimestampScale of {_MUXER_SCALE_NS}")


def codec_delays_s(file: IO[bytes], size_bytes: int) -> list[Fraction]:
    """CodecDelay of every track in seconds, from a file that holds at least its tracks' header."""
    delays = []
    segment = next((start, stop) for key, start, stop in _elements(file, 0, size_bytes) if key == _SEGMENT)
    for key, start, stop in _elements(file, *segment):
        if key != _TRACKS:
            continue
        for entry, entry_start, entry_stop in _elements(file, start, stop):
            if entry == _TRACK_ENTRY:
                found = [(v, e) for k, v, e in _elements(file, entry_start, entry_stop) if k == _CODEC_DELAY]
                delay_ns = int.from_bytes(_read(file, *found[0]), "big") if found else 0
                delays.append(Fraction(delay_ns, 10**9))
    return delays


def _elements(file: IO[bytes], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(id, first byte of the value, byte after it) of the elements between two offsets, on one level."""
    while start < stop:
        file.seek(start)
        head = file.read(12)
        if len(head) < 2 or not head[0]:
            return
        id_bytes = 9 - head[0].bit_length()
        key = int.from_bytes(head[:id_bytes], "big")
        size_bytes = 9 - head[id_bytes].bit_length()
        coded = int.from_bytes(head[id_bytes : id_bytes + size_bytes], "big")
        size = coded & ((1 << (7 * size_bytes)) - 1)
        value = start + id_bytes + size_bytes
        is_unknown = size == (1 << (7 * size_bytes)) - 1
        value_end = stop if is_unknown else min(value + size, stop)
        yield key, value, value_end
        start = value_end


def _duration_tags(file: IO[bytes], start: int, stop: int) -> Iterator[tuple[int, int]]:
    for key, tag, tag_end in _elements(file, start, stop):
        if key != _TAG:
            continue
        for inner, simple, simple_end in _elements(file, tag, tag_end):
            if inner != _SIMPLE_TAG:
                continue
            parts = {k: (v, e) for k, v, e in _elements(file, simple, simple_end)}
            if _TAG_STRING in parts and _read(file, *parts[_TAG_NAME]) == b"DURATION":
                yield parts[_TAG_STRING]


def _shorter(text: bytes, stretch: int) -> bytes:
    """`HH:MM:SS.nnnnnnnnn` divided by `stretch`, in the same number of bytes."""
    hours, minutes, seconds = text.rstrip(b"\0").decode().split(":")
    total = (Fraction(hours) * 3600 + Fraction(minutes) * 60 + Fraction(seconds)) / stretch
    whole, rest = divmod(total, 60)
    shorter = f"{int(whole) // 60:02d}:{int(whole) % 60:02d}:{float(rest):012.9f}"
    return shorter.encode().ljust(len(text), b"\0")


def _uint(value: int, size: int) -> bytes:
    return struct.pack(">Q", value)[-size:]


def _read(file: IO[bytes], start: int, stop: int) -> bytes:
    file.seek(start)
    return file.read(stop - start)


def _write(file: IO[bytes], start: int, data: bytes) -> None:
    file.seek(start)
    file.write(data)
