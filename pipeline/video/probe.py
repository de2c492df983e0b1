"""`inspect`: one full decode of a video in a process of its own, under a time limit.

A file that makes the decoder crash or hang costs an error with its name on it, never the worker that asked. The child
is an ordinary child in its parent's process group, so whoever cleans up after the parent reaches it, and it ends by
itself when its parent dies. It signals nobody.
"""

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import fsspec

from pipeline.video.errors import VIDEO_ERRORS, DecoderCrashed, ProbeTimeout, UnreadableVideo
from pipeline.video.info import Inspection, VideoInfo

BASE_TIMEOUT_S = 120.0
TIMEOUT_S_PER_MIB = 20.0
"""A decode runs at 5 to 50 frames of 720p per MiB·s; 20 s per MiB is ten times what a slow core needs."""
STALL_TIMEOUT_S = 90.0
"""Longest time without a sign of life: reading over a slow network, or one very large frame."""
END_TIMEOUT_S = 10.0
"""For a child that has answered, or closed its output, to be gone."""
_ROOT = Path(__file__).resolve().parents[2]


def inspect(uri: str, *, timeout_s: float | None = None, stall_timeout_s: float = STALL_TIMEOUT_S) -> Inspection:
    """Decode the whole video once; learn its frames, their timestamps and its shots.

    Policies:
        - Timestamps are presentation timestamps as the container gives them, in ticks of `info.time_base`. Frames that
          have none, or that do not increase, are refused (`BadTimestamps` names the frame).
        - A file that ends early is refused with `TruncatedVideo` saying how many frames decode; one whose frames decode
          only with errors with `DamagedVideo`. An mp4 without its index is `UnreadableVideo`.
        - HDR (PQ, HLG, Dolby Vision) is refused (`UnsupportedVideo` says how to convert it). SDR of 10 and more bits,
          BT.2020 SDR and full range are edited.
        - A frame size or pixel format that changes on the way, sides over 16384 pixels and rotations that are not
          quarter turns are `UnsupportedVideo`.

    Args:
        uri: local path or fsspec URL. `memory://` exists in one process only and is copied to a temporary file first.
        timeout_s: limit for the whole; default 120 s + 20 s per MiB.
        stall_timeout_s: limit without progress (the child reports about once a second).

    Raises:
        VideoNotFound, UnreadableVideo, EmptyVideo, NoVideoStream, TruncatedVideo, DamagedVideo, UnsupportedVideo,
        BadTimestamps, ProbeTimeout, DecoderCrashed
        ImportError: this machine lacks a library that the decoder's process needs; no fault of the video.
    """
    if not uri.startswith("memory://"):
        return _ask_child(uri, name=uri, timeout_s=timeout_s, stall_timeout_s=stall_timeout_s)
    with tempfile.TemporaryDirectory(prefix="memory-v2v-") as folder:
        copy = str(Path(folder) / "source")
        fs, path = fsspec.core.url_to_fs(uri)
        if fs.isfile(path):
            fs.get_file(path, copy)
        found = _ask_child(copy, name=uri, timeout_s=timeout_s, stall_timeout_s=stall_timeout_s)
        info = VideoInfo.from_json({**found.info.to_json(), "uri": uri})
        return Inspection(info=info, pts=found.pts, cuts=found.cuts)


def _ask_child(uri: str, *, name: str, timeout_s: float | None, stall_timeout_s: float) -> Inspection:
    lifeline_read, lifeline_write = os.pipe()
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipeline.video.inspect_process", uri, str(lifeline_read)]
    with tempfile.TemporaryFile() as errors:
        try:
            with subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                pass_fds=(lifeline_read,),
                env=environment,
            ) as child:
                assert child.stdout is not None
                try:
                    answer = _listen(child.stdout, name=name, timeout_s=timeout_s, stall_timeout_s=stall_timeout_s)
                    child.wait(timeout=END_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    pass
                finally:
                    child.kill()
        finally:
            os.close(lifeline_read)
            os.close(lifeline_write)
        if "inspection" in answer:
            return Inspection.from_json(answer["inspection"])
        if "error" in answer:
            raise VIDEO_ERRORS[answer["error"]](answer["message"].replace(uri, name))
        errors.seek(0)
        raise _ended_without_answer(name, returncode=child.returncode, answer=answer, stderr=errors.read())


def _listen(stdout: IO[bytes], *, name: str, timeout_s: float | None, stall_timeout_s: float) -> dict[str, Any]:
    """The child's last message: its result, its error, or how far it came before it ended without either."""
    begun = last_sign = time.monotonic()
    limit_s = timeout_s if timeout_s is not None else BASE_TIMEOUT_S
    last: dict[str, Any] = {}
    rest = b""
    os.set_blocking(stdout.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while "inspection" not in last and "error" not in last:
            now = time.monotonic()
            frames = f"after {last['num_frames']} frames" if "num_frames" in last else "before its first frames"
            if now - begun > limit_s:
                raise ProbeTimeout(f"{name}: decoding it took longer than {limit_s:g} s; it was stopped {frames}")
            if now - last_sign > stall_timeout_s:
                raise ProbeTimeout(f"{name}: the decoder stood still for {stall_timeout_s:g} s {frames}")
            if not selector.select(min(begun + limit_s - now, last_sign + stall_timeout_s - now) + 0.01):
                continue
            received = os.read(stdout.fileno(), 1 << 20)
            if not received:
                return last
            last_sign = time.monotonic()
            *lines, rest = (rest + received).split(b"\n")
            for line in lines:
                last = json.loads(line)
                if "size_bytes" in last and timeout_s is None:
                    limit_s = BASE_TIMEOUT_S + TIMEOUT_S_PER_MIB * last["size_bytes"] / 2**20
    return last


def _ended_without_answer(name: str, *, returncode: int, answer: dict[str, Any], stderr: bytes) -> Exception:
    lines = [line for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    if returncode == 1 and lines and lines[-1].startswith(("ImportError", "ModuleNotFoundError")):
        return ImportError(
            f"the decoder's process cannot start: {lines[-1]} (shots are found with OpenCV, which needs the system's "
            "libGL.so.1 and libglib-2.0.so.0: packages libgl1 and libglib2.0-0 on Debian)"
        )
    if returncode == 1 and lines:
        # An exception nobody foresaw, of a filesystem as a rule (no credentials, no route).
        return UnreadableVideo(f"{name}: cannot be read: {lines[-1]}")
    frames = f" after {answer['num_frames']} frames" if "num_frames" in answer else ""
    return DecoderCrashed(f"{name}: the decoder's process ended{frames} with status {returncode} and no answer")
