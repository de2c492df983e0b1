"""One file of every kind that cannot be edited, and the error that says so."""

from fractions import Fraction
from pathlib import Path

from pipeline.video.errors import (
    BadTimestamps,
    DamagedVideo,
    EmptyVideo,
    NoVideoStream,
    TruncatedVideo,
    UnreadableVideo,
    UnsupportedVideo,
    VideoNotFound,
)
from tests.videos import (
    corrupt_file,
    cut_file,
    real_video,
    remux,
    write_audio_only,
    write_source,
    write_with_packet_times,
    write_without_frames,
    write_without_size,
)


def text_file(folder: Path) -> Path:
    path = folder / "notes.mp4"
    path.write_text("this is no video\n" * 100)
    return path


def empty_file(folder: Path) -> Path:
    path = folder / "empty.mp4"
    path.touch()
    return path


def directory(folder: Path) -> Path:
    path = folder / "folder.mp4"
    path.mkdir()
    return path


def cut_without_index(folder: Path) -> Path:
    return cut_file(write_source(folder / "whole.mp4"), folder / "cut.mp4", share=0.6)


def cut_with_index(folder: Path) -> Path:
    options = {"movflags": "+faststart"}
    return cut_file(write_source(folder / "whole.mp4", container_options=options), folder / "cut.mp4", share=0.6)


def cut_matroska(folder: Path) -> Path:
    return cut_file(write_source(folder / "whole.mkv"), folder / "cut.mkv", share=0.6)


def cut_stream(folder: Path) -> Path:
    return cut_file(remux(real_video("bikes.mp4"), folder / "whole.ts"), folder / "cut.ts", share=0.3)


def noise_inside(folder: Path) -> Path:
    return corrupt_file(real_video("bikes.mp4"), folder / "noise.mp4")


def size_changes(folder: Path) -> Path:
    path = folder / "sizes.ts"
    data = b""
    for index, width in enumerate((64, 96)):
        part = write_source(folder / f"{index}.ts", width=width, pts=[90000 * (index + 1) + 3600 * i for i in range(5)])
        data += part.read_bytes()
    path.write_bytes(data)
    return path


def hdr(folder: Path, *, transfer: int = 16) -> Path:
    color = {"color_trc": transfer, "color_primaries": 9, "colorspace": 9}
    return write_source(folder / "hdr.mp4", pixel_format="yuv420p10le", color=color)


def hybrid_log_gamma(folder: Path) -> Path:
    return hdr(folder, transfer=18)


def odd_matrix(folder: Path) -> Path:
    return write_source(folder / "ycgco.mp4", color={"colorspace": 8})


def too_wide(folder: Path) -> Path:
    return write_source(folder / "wide.mkv", width=16386, height=16, codec="ffv1", num_frames=1)


def goes_back(folder: Path) -> Path:
    return write_with_packet_times(folder / "back.mkv", [0, 40, 120, 80, 160])


def stands_still(folder: Path) -> Path:
    return write_with_packet_times(folder / "still.mkv", [0, 40, 40, 80])


def without_times(folder: Path) -> Path:
    return write_source(folder / "raw.h264", container="h264")


def sound_without_container(folder: Path) -> Path:
    time_base = Fraction(1, 1000)
    return write_source(folder / "v.asf", codec="mpeg4", audio=["wmav2"], time_base=time_base, step=40)


BAD_FILES = [
    (empty_file, EmptyVideo, "0 bytes"),
    (text_file, UnreadableVideo, "not a video file"),
    (directory, UnreadableVideo, "directory"),
    (lambda folder: folder / "missing.mp4", VideoNotFound, "no such file"),
    (cut_without_index, UnreadableVideo, "moov"),
    (cut_with_index, TruncatedVideo, r"\d+ frames decode of 20"),
    (cut_matroska, TruncatedVideo, r"\d+ frames decode"),
    (cut_stream, TruncatedVideo, "end is damaged or missing"),
    (noise_inside, DamagedVideo, r"frame \d+ .* 250 frames decode in all"),
    (lambda folder: write_audio_only(folder / "a.m4a"), NoVideoStream, "it has: audio"),
    (lambda folder: write_without_frames(folder / "none.mkv"), EmptyVideo, "holds no frame"),
    (lambda folder: write_without_frames(folder / "none.mp4"), NoVideoStream, "no video stream"),
    (lambda folder: write_without_size(folder / "zero.avi"), UnsupportedVideo, "0x0"),
    (too_wide, UnsupportedVideo, "16386x16.*16384"),
    (size_changes, UnsupportedVideo, "frame 5 is"),
    (hdr, UnsupportedVideo, "HDR.*PQ.*tone-map"),
    (hybrid_log_gamma, UnsupportedVideo, "HDR.*HLG"),
    (sound_without_container, UnsupportedVideo, "neither MP4 nor Matroska can carry audio stream 1"),
    (odd_matrix, UnsupportedVideo, "colour matrix 8"),
    (goes_back, BadTimestamps, "frame 3 is at 80, frame 2 at 120"),
    (stands_still, BadTimestamps, "frame 2 is at 40"),
    (without_times, BadTimestamps, "frame 0 has no timestamp"),
]
