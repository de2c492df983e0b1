"""Chunks: what goes in comes out, in the source's chroma, range, depth, shape and time."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.video.decode import decode_span, iter_span
from pipeline.video.encode import encode_chunk, plain_info, write_video
from tests.videos import inspection_of, read_number, write_source


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    peak = 65280 if a.dtype == np.uint16 else 255
    return float(10 * np.log10(peak**2 / max(1e-9, np.mean((a.astype(np.float64) - b) ** 2))))


SOURCES = {
    "420": ({"pixel_format": "yuv420p"}, "yuv420p"),
    "422": ({"pixel_format": "yuv422p"}, "yuv422p"),
    "444": ({"pixel_format": "yuv444p"}, "yuv444p"),
    "10 bits": ({"pixel_format": "yuv420p10le"}, "yuv420p10le"),
    "10 bits 422": ({"pixel_format": "yuv422p10le"}, "yuv422p10le"),
    "full range": ({"color": {"color_range": 2}}, "yuvj420p"),
    "bt709": ({"color": {"colorspace": 1, "color_primaries": 1, "color_trc": 1}}, "yuv420p"),
    "bt2020 SDR": (
        {"pixel_format": "yuv420p10le", "color": {"colorspace": 9, "color_primaries": 9, "color_trc": 14}},
        "yuv420p10le",
    ),
    "odd width": ({"codec": "ffv1", "width": 67, "height": 48}, "yuv444p"),
    "odd height": ({"codec": "ffv1", "width": 64, "height": 45}, "yuv444p"),
    "odd height 422": ({"codec": "ffv1", "width": 64, "height": 45, "pixel_format": "yuv422p"}, "yuv422p"),
    "gray": ({"codec": "ffv1", "pixel_format": "gray"}, "yuvj420p"),
    "rgb": ({"codec": "ffv1", "pixel_format": "bgr0"}, "yuv444p"),
    "narrow pixels": ({"sample_aspect": Fraction(128, 117)}, "yuv420p"),
    "portrait": ({"rotation_deg": 90, "sample_aspect": Fraction(4, 3)}, "yuv420p"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_chunk_is_like_its_source(tmp_path: Path, kind: str) -> None:
    options, pixel_format = SOURCES[kind]
    source = write_source(tmp_path / "source.mkv", num_frames=6, **options)
    if "rotation_deg" in options:
        source = write_source(tmp_path / "source.mp4", num_frames=6, **options)
    found = inspection_of(source)
    is_16bit = found.info.bit_depth > 8
    frames = decode_span(str(source), found, 0, 6, is_16bit=is_16bit)
    encode_chunk(tmp_path / "chunk.mp4", frames, found.pts, found.info, crf=1)
    again = inspection_of(tmp_path / "chunk.mp4")
    info, wanted = again.info, found.info
    assert info.pixel_format == pixel_format
    assert (info.width_px, info.height_px, info.rotation_deg) == (wanted.width_px, wanted.height_px, 0)
    assert info.sample_aspect == wanted.sample_aspect
    assert info.color_matrix == wanted.color_matrix
    assert info.color_space == wanted.color_matrix, "what was untagged is tagged with what was used"
    assert (info.color_primaries, info.color_transfer) == (wanted.color_primaries, wanted.color_transfer)
    assert info.color_range == ("tv" if wanted.chroma == "rgb" else wanted.color_range)
    decoded = decode_span(str(tmp_path / "chunk.mp4"), again, 0, 6, is_16bit=is_16bit)
    # The bar code's coloured edges lose what 4:2:0 cannot hold; the picture below it must not.
    assert _psnr(frames[:, 20:], decoded[:, 20:]) > 44
    assert [read_number(frame) for frame in decoded] == [read_number(frame) for frame in frames]


def test_ten_bits_survive(tmp_path: Path) -> None:
    """A ramp of 10-bit steps keeps its steps; eight bits would lose three of four."""
    ramp = np.repeat(np.arange(300, 364), 4)[None, :].repeat(64, axis=0)
    deep = np.stack([ramp * 64] * 3, axis=-1).astype(np.uint16)
    source = write_source(tmp_path / "s.mp4", num_frames=1, width=256, height=64, pixel_format="yuv420p10le")
    found = inspection_of(source)
    encode_chunk(tmp_path / "c.mp4", [deep], [0], found.info, crf=1)
    again = inspection_of(tmp_path / "c.mp4")
    decoded = decode_span(str(tmp_path / "c.mp4"), again, 0, 1, is_16bit=True)[0]
    assert len(np.unique(decoded[32, :, 1])) >= 55
    assert np.abs(decoded.astype(int) - deep).mean() < 64


@pytest.mark.parametrize("is_full", [False, True])
def test_the_round_trip_has_no_colour_cast(tmp_path: Path, *, is_full: bool) -> None:
    """Smooth colours through encode and decode: no channel moves by more than a fifth of a code on average."""
    yy, xx = np.mgrid[0:64, 0:64] / 63
    smooth = np.stack([60 + 120 * xx, 90 + 60 * yy, 180 - 100 * xx * yy], axis=-1)
    frame = np.round(smooth).astype(np.uint8)
    source = write_source(tmp_path / "s.mp4", num_frames=1, height=64, color={"color_range": 2 if is_full else 1})
    encode_chunk(tmp_path / "c.mp4", [frame], [0], inspection_of(source).info, crf=0)
    decoded = decode_span(str(tmp_path / "c.mp4"), inspection_of(tmp_path / "c.mp4"), 0, 1)[0]
    cast = (decoded.astype(float) - frame).mean(axis=(0, 1))
    assert np.abs(cast).max() < 0.2, cast
    assert np.abs(decoded.astype(float) - frame).max() <= 4


@pytest.mark.parametrize(
    ("time_base", "pts"),
    [
        (Fraction(1, 12800), [5120, 5632, 5700, 9000, 9001]),
        (Fraction(1, 90000), [3003, 6006, 9009]),
        (Fraction(1, 1000), [33, 67, 100]),
        (Fraction(1001, 30000), [4, 5, 6, 9]),
        (Fraction(1, 1_000_000_000), [10**9, 10**9 + 41_666_667, 10**9 + 83_333_333]),
    ],
)
def test_timestamps_are_exact_and_packets_in_order(tmp_path: Path, time_base: Fraction, pts: list[int]) -> None:
    info = inspection_of(write_source(tmp_path / "s.mp4", num_frames=1)).info
    info = type(info)(**{**info.__dict__, "time_base": (time_base.numerator, time_base.denominator)})
    frames = np.random.default_rng(0).integers(0, 255, (len(pts), 48, 64, 3), dtype=np.uint8)
    encode_chunk(tmp_path / "c.mp4", frames, pts, info)
    with av.open(str(tmp_path / "c.mp4")) as chunk:
        stream = chunk.streams.video[0]
        packets = [packet for packet in chunk.demux(stream) if packet.size]
        assert [packet.pts * stream.time_base for packet in packets] == [(tick - pts[0]) * time_base for tick in pts]
        assert all(packet.pts == packet.dts for packet in packets), "B-frames"
        assert packets[0].is_keyframe


def test_chunks_share_their_parameter_sets_and_are_deterministic(tmp_path: Path) -> None:
    source = write_source(tmp_path / "s.mp4", num_frames=30)
    found = inspection_of(source)
    headers = set()
    for start, end in [(0, 17), (17, 18), (18, 30)]:
        for turn in "ab":
            frames = iter_span(str(source), found, start, end)
            encode_chunk(tmp_path / f"{start}{turn}.mp4", frames, found.pts[start:end], found.info)
        assert (tmp_path / f"{start}a.mp4").read_bytes() == (tmp_path / f"{start}b.mp4").read_bytes()
        with av.open(str(tmp_path / f"{start}a.mp4")) as chunk:
            headers.add(chunk.streams.video[0].codec_context.extradata)
    assert len(headers) == 1


def test_another_size_is_displayed_in_the_sources_shape(tmp_path: Path) -> None:
    source = write_source(tmp_path / "s.mp4", num_frames=1, width=176, height=144, sample_aspect=Fraction(128, 117))
    info = inspection_of(source).info
    encode_chunk(tmp_path / "c.mp4", [np.zeros((64, 96, 3), np.uint8)], [0], info, size=(64, 96))
    again = inspection_of(tmp_path / "c.mp4").info
    assert (again.height_px, again.width_px) == (64, 96)
    assert again.display_aspect == info.display_aspect


def test_a_wrong_number_or_size_of_frames_leaves_nothing(tmp_path: Path) -> None:
    info = plain_info(width_px=64, height_px=48)
    good = np.zeros((48, 64, 3), np.uint8)
    for frames, pts in [([good], [0, 1]), ([good, good], [0]), ([good[:40]], [0]), ([good.astype(float)], [0])]:
        with pytest.raises(ValueError, match="chunk"):
            encode_chunk(tmp_path / "c.mp4", frames, pts, info)
    assert list(tmp_path.iterdir()) == []


def test_a_written_video_plays_its_frames_and_its_tone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    colors = rng.integers(40, 215, (45, 3))
    frames = (np.full((48, 64, 3), color, np.uint8) for color in colors)
    assert write_video(tmp_path / "v.mp4", frames, 30, audio_tone=True, crf=4) == 45
    found = inspection_of(tmp_path / "v.mp4")
    assert found.info.num_frames == 45
    assert found.info.average_rate == (30, 1)
    assert [stream.codec for stream in found.info.streams] == ["aac"]
    decoded = decode_span(str(tmp_path / "v.mp4"), found, 0, 45)
    assert np.abs(decoded.mean(axis=(1, 2)) - colors).max() < 3
    with av.open(str(tmp_path / "v.mp4")) as video:
        samples = np.concatenate([frame.to_ndarray()[0] for frame in video.decode(audio=0)])
    assert len(samples) / 48_000 == pytest.approx(1.5, abs=0.05)
    spectrum = np.abs(np.fft.rfft(samples[4800:52800]))
    assert np.argmax(spectrum) == pytest.approx(440, abs=2)


def test_write_video_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="empty"):
        write_video(tmp_path / "v.mp4", [], 30)
    with pytest.raises(ValueError, match="even sides"):
        write_video(tmp_path / "v.mp4", [np.zeros((45, 64, 3), np.uint8)], 30)
    assert list(tmp_path.iterdir()) == []
