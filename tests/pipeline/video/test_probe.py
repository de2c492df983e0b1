"""`inspect`: every kind of bad file gets its own error; a crashing, hanging or orphaned decoder harms nobody."""

import os
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import fsspec
import numpy as np
import psutil
import pytest

from pipeline.video.errors import (
    BadTimestamps,
    DecoderCrashed,
    NoVideoStream,
    ProbeTimeout,
    VideoError,
    VideoNotFound,
)
from pipeline.video.info import Inspection, VideoInfo
from pipeline.video.inspect_process import examine
from pipeline.video.probe import inspect
from tests.bad_videos import BAD_FILES, goes_back
from tests.videos import (
    inspection_of,
    real_video,
    write_audio_only,
    write_source,
)


def test_a_real_video_is_told_exactly() -> None:
    found = inspect(str(real_video("carphone_pristine.mp4")))
    info = found.info
    assert (info.width_px, info.height_px, info.num_frames) == (176, 144, 120)
    assert info.sample_aspect == (128, 117)
    assert info.average_rate == (30000, 1001)
    assert (info.chroma, info.bit_depth, info.color_range, info.color_matrix) == ("420", 8, "tv", "smpte170m")
    assert info.duration_s == pytest.approx(120 * 1001 / 30000)
    assert np.array_equal(found.pts, np.arange(120) * 1001)
    assert found.cuts == ()


def test_the_process_answers_as_the_function_does(tmp_path: Path) -> None:
    path = write_source(tmp_path / "v.mp4", audio=["aac"], metadata={"title": "ä"})
    here, there = inspection_of(path), inspect(str(path))
    assert there.info == here.info
    assert np.array_equal(there.pts, here.pts)


def test_json_there_and_back(tmp_path: Path) -> None:
    found = inspection_of(
        write_source(tmp_path / "v.mp4", audio=["aac"], sample_aspect=Fraction(4, 3), rotation_deg=90)
    )
    assert VideoInfo.from_json(found.info.to_json()) == found.info
    again = Inspection.from_json(found.to_json())
    assert again.info == found.info
    assert again.cuts == found.cuts
    assert np.array_equal(again.pts, found.pts)


@pytest.mark.parametrize(("make", "error", "message"), BAD_FILES)
def test_a_bad_file_has_its_own_error(tmp_path: Path, make, error: type[VideoError], message: str) -> None:
    path = make(tmp_path)
    with pytest.raises(error, match=message) as caught:
        examine(str(path))
    assert type(caught.value) is error
    assert path.name in str(caught.value)


def test_the_error_crosses_the_process_boundary(tmp_path: Path) -> None:
    path = goes_back(tmp_path)
    with pytest.raises(BadTimestamps, match=r"back\.mkv: .*frame 3 is at 80, frame 2 at 120"):
        inspect(str(path))


def test_cover_art_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(write_audio_only(tmp_path / "a.mp4"))) as inp, av.open(str(path), "w") as out:
        copy = out.add_stream_from_template(inp.streams.audio[0], opaque=True)
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        for packet in inp.demux(inp.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = copy
                out.mux_one(packet)
        out.mux(cover.encode(av.VideoFrame(64, 48, "yuvj420p")))
        out.mux(cover.encode())
    with pytest.raises(NoVideoStream):
        inspect(str(path))


def test_memory_files_go_through_a_copy(tmp_path: Path) -> None:
    path = write_source(tmp_path / "v.mp4", num_frames=3)
    with fsspec.open("memory://clips/v.mp4", "wb") as file:
        file.write(path.read_bytes())
    found = inspect("memory://clips/v.mp4")
    assert found.info.uri == "memory://clips/v.mp4"
    assert found.info.num_frames == 3
    with pytest.raises(VideoNotFound, match=r"memory://clips/none\.mp4"):
        inspect("memory://clips/none.mp4")


def test_a_missing_system_library_is_not_blamed_on_the_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scenedetect.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ImportError, match=r"decoder's process cannot start: ImportError: libGL\.so\.1.*libgl1"):
        inspect(str(write_source(tmp_path / "v.mp4", num_frames=1)))


def _long_video(folder: Path) -> Path:
    """20 times bigbuckbunny: seconds of decoding."""
    path = folder / "long.mp4"
    with av.open(str(real_video("bigbuckbunny.mp4"))) as inp, av.open(str(path), "w") as out:
        stream = inp.streams.video[0]
        copy = out.add_stream_from_template(stream, opaque=True)
        packets = [packet for packet in inp.demux(stream) if packet.size]
        payloads = [(bytes(packet), packet.pts, packet.dts, packet.is_keyframe) for packet in packets]
        for turn in range(20):
            for data, pts, dts, is_keyframe in payloads:
                packet = av.Packet(data)
                packet.stream, packet.time_base = copy, stream.time_base
                packet.pts, packet.dts = pts + turn * 67584, dts + turn * 67584
                packet.is_keyframe = is_keyframe
                out.mux_one(packet)
    return path


def _decoder_of(parent: psutil.Process, *, is_decoding: bool) -> psutil.Process:
    """The child process that decodes for `parent`, as soon as there is one (and it has worked for a while)."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in parent.children():
            is_decoder = "pipeline.video.inspect_process" in child.cmdline()
            if is_decoder and (not is_decoding or child.cpu_times().user > 0.5):
                return child
        time.sleep(0.005)
    raise AssertionError("no decoder was started")


@pytest.mark.parametrize(
    ("number", "error", "message"),
    [
        (signal.SIGSEGV, DecoderCrashed, "status -11"),
        (signal.SIGSTOP, ProbeTimeout, "stood still for 4 s"),
    ],
)
def test_a_crashing_or_hanging_decoder_is_an_error(
    tmp_path: Path, number: int, error: type[VideoError], message: str
) -> None:
    path = _long_video(tmp_path)
    sent: list[int] = []

    def kill() -> None:
        child = _decoder_of(psutil.Process(), is_decoding=number == signal.SIGSEGV)
        child.send_signal(number)
        sent.append(child.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(error, match=message):
        inspect(str(path), stall_timeout_s=4 if number == signal.SIGSTOP else 60)
    killer.join()
    assert not psutil.pid_exists(sent[0])


def test_a_slow_decode_meets_its_limit(tmp_path: Path) -> None:
    with pytest.raises(ProbeTimeout, match=r"longer than 0\.5 s"):
        inspect(str(_long_video(tmp_path)), timeout_s=0.5)
    assert not any("inspect_process" in " ".join(child.cmdline()) for child in psutil.Process().children())


def test_the_decoder_ends_with_its_parent(tmp_path: Path) -> None:
    path = _long_video(tmp_path)
    code = f"from pipeline.video.probe import inspect; inspect({str(path)!r})"
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    child = _decoder_of(psutil.Process(parent.pid), is_decoding=True)
    parent.kill()
    parent.wait()
    used_s = child.cpu_times().user
    try:
        while child.is_running():
            now_s = child.cpu_times().user
            assert now_s < used_s + 1, "it should end when its parent does; the whole film takes it several seconds"
            time.sleep(0.01)
    except psutil.NoSuchProcess:
        pass
