"""Runs the real command line in a process of its own, as a user or another tool would."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.latents import LatentStore
from retrieval.store import Store

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Answer:
    """What a command left: exit status, the JSON object on the last line of standard output, and standard error."""

    status: int
    result: Any
    stdout: str
    stderr: str

    @property
    def by_id(self) -> dict[str, Any]:
        return {video["id"]: video for video in self.result["videos"]}


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "RAY_ADDRESS": ""},
    )


def memory_v2v(*arguments: str | Path, timeout_s: float = 480) -> Answer:
    process = start(*arguments)
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    lines = stdout.strip().splitlines()
    result = json.loads(lines[-1]) if "--json" in arguments and lines else None
    return Answer(process.returncode, result, stdout, stderr)


def latent_bytes(workspace: Path) -> dict[str, bytes]:
    """Every committed latent file of a workspace, by its path below `videos/`."""
    videos = workspace / "videos"
    return {str(path.relative_to(videos)): path.read_bytes() for path in sorted(videos.rglob("latents/*.parquet"))}


def edit_store(workspace: Path, video: str) -> Store:
    (folder,) = (workspace / "videos" / video / "edits").iterdir()
    return Store(str(folder))


def committed(workspace: Path) -> dict[str, int]:
    """Latent file -> its modification time in ns, of everything committed so far."""
    return {
        str(path.relative_to(workspace)): path.stat().st_mtime_ns
        for path in workspace.glob("videos/*/edits/*/latents/segment-*.parquet")
    }


def latents_of(workspace: Path, video: str) -> LatentStore:
    return LatentStore(edit_store(workspace, video) / "latents")


def moving_frames(num_frames: int, *, height: int, width: int, seed: int) -> list[np.ndarray]:
    """A textured background, its own for every seed, that a bright square crosses."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(20, 200, (height // 8, width // 8, 3), dtype=np.uint8)
    background = coarse.repeat(8, axis=0).repeat(8, axis=1)
    frames = []
    for number in range(num_frames):
        frame = background.copy()
        left = (3 * number) % (width - 16)
        frame[height // 2 - 8 : height // 2 + 8, left : left + 16] = (250, 60, 40)
        frames.append(frame)
    return frames
