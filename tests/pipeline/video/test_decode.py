"""Exact frames: by index in every container, upright, in the right colours."""

import itertools
from fractions import Fraction
from pathlib import Path

import fsspec
import numpy as np
import pytest

from pipeline.video.decode import decode_span, iter_span
from pipeline.video.errors import DamagedVideo
from tests.videos import (
    inspection_of,
    numbered_frame,
    planar_frame,
    read_number,
    real_video,
    remux,
    write_source,
)

KINDS = {
    "b-frames": ("v.mp4", {"b_frames": 3}),
    "matroska": ("v.mkv", {"b_frames": 2, "time_base": Fraction(1, 1000), "step": 40}),
    "late-start": ("v.mp4", {"pts": [12800 + 512 * index for index in range(40)]}),
    "edit-list": ("v.mp4", {"pts": [-1024 + 512 * index for index in range(42)]}),
    "variable-rate": ("v.mp4", {"pts": np.cumsum(np.random.default_rng(1).integers(1, 900, 40)).tolist()}),
    "transport-stream": ("v.ts", {"time_base": Fraction(1, 90000), "step": 3600, "b_frames": 2}),
    "program-stream": (
        "v.mpg",
        {"codec": "mpeg2video", "container": "mpeg", "time_base": Fraction(1, 25), "step": 1, "b_frames": 2},
    ),
    "avi": ("v.avi", {"codec": "mpeg4", "time_base": Fraction(1, 25), "step": 1}),
    "vp9": ("v.webm", {"codec": "libvpx-vp9", "codec_options": {"crf": "10", "b": "0", "cpu-used": "8"}}),
    "prores": ("v.mov", {"codec": "prores_ks", "pixel_format": "yuv422p10le"}),
    "one-key-frame": ("v.mp4", {"gop_frames": 1000, "b_frames": 1}),
    "open-gop": (
        "v.mp4",
        {"gop_frames": 8, "b_frames": 3, "codec_options": {"qp": "0", "x264-params": "open-gop=1:b-adapt=0"}},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_spans_hold_exactly_their_frames(tmp_path: Path, kind: str) -> None:
    name, options = KINDS[kind]
    path = write_source(tmp_path / name, **{"num_frames": 40, **options})
    found = inspection_of(path)
    assert found.info.num_frames == 40
    first = 2 if kind == "edit-list" else 0
    whole = decode_span(str(path), found, 0, 40)
    assert [read_number(frame) for frame in whole] == list(range(first, first + 40))
    for start, end in [(0, 1), (1, 2), (7, 20), (11, 13), (12, 24), (23, 40), (39, 40)]:
        assert np.array_equal(decode_span(str(path), found, start, end), whole[start:end]), (start, end)


@pytest.mark.parametrize("name", ["bikes.mp4", "carphone_pristine.mp4"])
def test_spans_of_real_videos_equal_the_sequential_decode(name: str) -> None:
    path = real_video(name)
    found = inspection_of(path)
    num_frames = found.info.num_frames
    whole = decode_span(str(path), found, 0, num_frames)
    rng = np.random.default_rng(0)
    for _ in range(12):
        start = int(rng.integers(0, num_frames - 1))
        end = int(rng.integers(start + 1, min(start + 40, num_frames) + 1))
        assert np.array_equal(decode_span(str(path), found, start, end), whole[start:end]), (start, end)


def test_a_span_outside_the_video_is_refused(tmp_path: Path) -> None:
    path = write_source(tmp_path / "v.mp4", num_frames=5)
    found = inspection_of(path)
    for start, end in [(-1, 2), (3, 3), (4, 6)]:
        with pytest.raises(ValueError, match=rf"span is \[{start}, {end}\)"):
            decode_span(str(path), found, start, end)


def test_a_file_that_changed_since_is_noticed(tmp_path: Path) -> None:
    path = write_source(tmp_path / "v.mp4", num_frames=10)
    found = inspection_of(path)
    write_source(path, num_frames=10, step=500)
    with pytest.raises(DamagedVideo, match="frame 1 is not the one that was inspected"):
        decode_span(str(path), found, 0, 10)
    with pytest.raises(DamagedVideo, match="changed since"):
        decode_span(str(path), found, 5, 10)


def test_spans_are_read_through_fsspec(tmp_path: Path) -> None:
    path = write_source(tmp_path / "v.mp4", num_frames=30)
    with fsspec.open("memory://decode/v.mp4", "wb") as file:
        file.write(path.read_bytes())
    found = inspection_of(path)
    assert [read_number(frame) for frame in iter_span("memory://decode/v.mp4", found, 13, 17)] == [13, 14, 15, 16]


@pytest.mark.parametrize(("rotation_deg", "is_mirrored"), itertools.product((0, 90, 180, 270), (False, True)))
def test_frames_come_upright(tmp_path: Path, rotation_deg: int, *, is_mirrored: bool) -> None:
    plain = decode_span(str(path := write_source(tmp_path / "plain.mp4", num_frames=2)), inspection_of(path), 0, 2)
    turned = write_source(
        tmp_path / "turned.mp4",
        num_frames=2,
        rotation_deg=rotation_deg,
        is_mirrored=is_mirrored,
        sample_aspect=Fraction(4, 3),
    )
    found = inspection_of(turned)
    assert (found.info.rotation_deg, found.info.is_mirrored) == (rotation_deg, is_mirrored)
    expected = np.rot90(plain, k=-rotation_deg // 90, axes=(1, 2))
    expected = expected[:, :, ::-1] if is_mirrored else expected
    frames = decode_span(str(turned), found, 0, 2)
    assert np.array_equal(frames, expected)
    assert frames.shape[1:3] == (found.info.height_px, found.info.width_px)
    assert found.info.sample_aspect == ((3, 4) if rotation_deg in (90, 270) else (4, 3))
    small = decode_span(str(turned), found, 1, 2, size=(20, 30))
    assert small.shape == (1, 20, 30, 3)


def test_area_resize_keeps_the_mean_of_every_block(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    luma = rng.integers(20, 230, (48, 64))
    path = write_source(
        tmp_path / "v.mkv",
        codec="ffv1",
        num_frames=1,
        pixel_format="yuv444p",
        frame=lambda _: planar_frame([luma, 128, 128], width=64, height=48, pixel_format="yuv444p"),
    )
    found = inspection_of(path)
    whole = decode_span(str(path), found, 0, 1)[0].astype(float)
    small = decode_span(str(path), found, 0, 1, size=(12, 16))[0]
    blocks = whole.reshape(12, 4, 16, 4, 3).mean(axis=(1, 3))
    assert np.abs(blocks - small).max() <= 1.01


LUMA_WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}
"""Kr and Kb of ITU-R BT.709, BT.601 (both), SMPTE 240M and BT.2020, by AVColorSpace."""


def exact_rgb(yuv: tuple[int, int, int], *, space: int, is_full: bool, bits: int, peak: float = 255) -> np.ndarray:
    """The standards' formula, in units of 8-bit codes, clipped."""
    scale = 2 ** (bits - 8)
    if is_full:
        y, cb, cr = yuv[0] / (2**bits - 1), *((value - 128 * scale) / (2**bits - 1) for value in yuv[1:])
    else:
        y, cb, cr = (yuv[0] / scale - 16) / 219, *((value / scale - 128) / 224 for value in yuv[1:])
    red_weight, blue_weight = LUMA_WEIGHTS[space]
    red, blue = y + 2 * (1 - red_weight) * cr, y + 2 * (1 - blue_weight) * cb
    green = (y - red_weight * red - blue_weight * blue) / (1 - red_weight - blue_weight)
    return np.clip(255 * np.array([red, green, blue]), 0, peak)


COLORS = [
    (60, 90, 240),
    (120, 100, 140),
    (180, 160, 90),
    (200, 128, 128),
    (235, 128, 128),
    (16, 128, 128),
    (90, 200, 60),
]


@pytest.mark.parametrize("space", sorted(LUMA_WEIGHTS))
@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p10le"])
def test_colours_follow_the_standards(tmp_path: Path, space: int, pixel_format: str, *, is_full: bool) -> None:
    bits = 10 if "10" in pixel_format else 8
    colors = [tuple(value * 2 ** (bits - 8) + (bits - 8) for value in color) for color in COLORS]
    path = write_source(
        tmp_path / "v.mp4",
        num_frames=len(colors),
        width=16,
        height=16,
        pixel_format=pixel_format,
        color={"colorspace": space, "color_range": 2 if is_full else 1},
        frame=lambda index: planar_frame(colors[index], width=16, height=16, pixel_format=pixel_format),
    )
    found = inspection_of(path)
    assert (found.info.color_range, found.info.bit_depth) == ("pc" if is_full else "tv", bits)
    # 16-bit frames keep what a limited-range source has above white.
    expected, deep_expected = (
        np.stack([exact_rgb(color, space=space, is_full=is_full, bits=bits, peak=peak) for color in colors])
        for peak in (255, 65535 / 256)
    )
    # swscale takes 10-bit full range for 8-bit times 4, which is up to 0.75 codes off, once per term.
    tolerance = 1.3 if is_full and bits > 8 else 0.52
    rgb = decode_span(str(path), found, 0, len(colors))[:, 8, 8]
    assert np.abs(rgb - expected).max() <= tolerance
    deep = decode_span(str(path), found, 0, len(colors), is_16bit=True)[:, 8, 8] / 256
    assert np.abs(deep - deep_expected).max() <= tolerance


@pytest.mark.parametrize(
    ("width", "height", "matrix"), [(1024, 576, "smpte170m"), (1280, 16, "bt709"), (16, 578, "bt709")]
)
def test_untagged_matrices_go_by_size(tmp_path: Path, width: int, height: int, matrix: str) -> None:
    path = write_source(tmp_path / "v.mp4", num_frames=1, width=width, height=height)
    found = inspection_of(path)
    assert (found.info.color_space, found.info.color_matrix) == ("unknown", matrix)


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format", "chroma"),
    [("v.mkv", "ffv1", "bgr0", "rgb"), ("v.mkv", "ffv1", "gray", "gray"), ("v.mov", "mjpeg", "yuvj422p", "422")],
)
def test_unusual_pixels_are_right(tmp_path: Path, name: str, codec: str, pixel_format: str, chroma: str) -> None:
    path = write_source(tmp_path / name, codec=codec, pixel_format=pixel_format, num_frames=3)
    found = inspection_of(path)
    assert (found.info.chroma, found.info.color_range) == (chroma, "pc")
    frame = decode_span(str(path), found, 2, 3)[0]
    assert read_number(frame) == 2
    if chroma == "rgb":
        wanted = numbered_frame(2, width=64, height=48, pixel_format="rgb24").to_ndarray()
        assert np.array_equal(frame, wanted)
    if chroma == "gray":
        wanted = np.frombuffer(numbered_frame(2, width=64, height=48, pixel_format="gray").planes[0], np.uint8)
        assert np.array_equal(frame, wanted.reshape(48, 64, 1).repeat(3, axis=2))


def test_odd_sizes_and_subsampling(tmp_path: Path) -> None:
    path = write_source(tmp_path / "v.mkv", codec="ffv1", width=67, height=45, num_frames=3)
    found = inspection_of(path)
    frames = decode_span(str(path), found, 0, 3)
    assert frames.shape == (3, 45, 67, 3)
    assert [read_number(frame) for frame in frames] == [0, 1, 2]


def test_a_frame_beside_the_transport_stream_of_a_real_video(tmp_path: Path) -> None:
    """The same pictures in a container that seeks by guessing."""
    source = real_video("bikes.mp4")
    stream = remux(source, tmp_path / "bikes.ts")
    in_mp4, in_ts = inspection_of(source), inspection_of(stream)
    assert in_ts.info.num_frames == in_mp4.info.num_frames
    for start in (0, 1, 99, 200):
        wanted = decode_span(str(source), in_mp4, start, start + 3)
        assert np.array_equal(decode_span(str(stream), in_ts, start, start + 3), wanted), start
