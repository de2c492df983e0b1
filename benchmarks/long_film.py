"""A long film edited from end to end by the real command: is the result exact, and what memory do driver and workers take?

    python -m benchmarks.long_film FILM.mp4 --instruction "make it look like a warm sunset" --out benchmarks/results

Resident memory of the driver and of every Ray worker process is read every half second and told for each third of the run: what
grows with the length of the film would grow from third to third. The result is compared with the source: frames, timestamps,
sound packet by packet.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import psutil
import tyro

from benchmarks.provenance import write_report
from pipeline.video.io import inspect
from tests.pipeline.video.test_assemble import payloads

SAMPLE_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Options of the benchmark.

    Attributes:
        film: the video to edit.
        workspace: kept if given; else temporary.
    """

    film: tyro.conf.Positional[Path]
    instruction: str = "make it look like a warm sunset"
    out: Path = Path("benchmarks/results")
    size: str = "source"
    workspace: Path | None = None


def role_of(process: psutil.Process, driver: int) -> str | None:
    """What a process of the run is: the driver, a worker that edits, another Ray worker (prepare), or none of ours."""
    if process.pid == driver:
        return "driver"
    command = process.cmdline()
    name = command[0] if command else ""
    if not name.startswith("ray::"):
        return None
    return "editing worker" if "_Actor" in name else "preparing worker"


def watch(process: subprocess.Popen) -> list[tuple[float, str, float]]:
    """(seconds, role, MiB) of every process of the run, sampled until it ends."""
    samples, began = [], time.monotonic()
    driver = psutil.Process(process.pid)
    while process.poll() is None:
        for member in [driver, *children_of(driver)]:
            try:
                role = role_of(member, process.pid)
                if role:
                    samples.append((time.monotonic() - began, role, member.memory_info().rss / 2**20))
            except psutil.Error:  # it has ended meanwhile
                continue
        time.sleep(SAMPLE_S)
    return samples


def children_of(driver: psutil.Process) -> list[psutil.Process]:
    try:
        return driver.children(recursive=True)
    except psutil.Error:
        return []


def compare(film: Path, output: str) -> list[str]:
    before, after = inspect(str(film)), inspect(output)
    tick_s, tick_again_s = (float(Fraction(*found.info.time_base)) for found in (before, after))
    moved = np.abs(after.pts * tick_again_s - before.pts * tick_s).max() / tick_s
    sounds = [[digest for digest, _ in packets] for packets in payloads(film).values()]
    again = [[digest for digest, _ in packets] for packets in payloads(Path(output)).values()]
    return [
        f"| frames | {before.info.num_frames:,} | {after.info.num_frames:,} |",
        f"| largest difference of a timestamp, in the source's ticks | - | {moved:.3f} |",
        f"| duration, s | {before.info.duration_s:.3f} | {after.info.duration_s:.3f} |",
        f"| sound and subtitle streams, packets | {[len(packets) for packets in sounds]} | "
        f"{'bit-identical' if sounds == again else 'DIFFERENT'} |",
    ]


def main() -> None:
    options = tyro.cli(Benchmark, description=__doc__)
    with tempfile.TemporaryDirectory(prefix="long-film-") as folder:
        workspace = options.workspace or Path(folder) / "workspace"
        command = [sys.executable, "-m", "jobs", "edit", str(options.film), "--instruction", options.instruction]
        command += ["--workspace", str(workspace), "--size", options.size, "--json"]
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "RAY_ADDRESS": ""})
        samples = watch(process)
        wall_s = time.monotonic() - began
        assert process.stdout is not None
        (video,) = json.loads(process.stdout.read().strip().splitlines()[-1])["videos"]
        if video["status"] != "done":
            sys.exit(f"{options.film}: {video['status']}: {video['error']}")
        exact = compare(options.film, video["output"])
    peaks: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for at, role, mebibytes in samples:
        third = min(2, int(3 * at / wall_s))
        peaks[role][third] = max(peaks[role][third], mebibytes)
    write_report(
        f"long_film_{options.film.stem}",
        title=f"{options.film.name}, edited from end to end",
        command=f"python -m benchmarks.long_film {options.film.name}",
        packages=("ray", "torch", "av"),
        out=options.out,
        lines=[
            f'"{options.instruction}", preset `tiny`, `--size {options.size}`: {video["segments"]} segments, '
            f"{video['generated_segments']} of them generated by this run, {wall_s:.0f} s from command to finished file.",
            "",
            "| | source | result |",
            "|---|---|---|",
            *exact,
            "",
            "Resident memory, MiB, the largest of any such process (shared pages counted in each); wanted: driver under 1,536, "
            "worker under 3,072, not growing with the film.",
            "",
            "| process | first third of the run | second | last |",
            "|---|---|---|---|",
            *(
                f"| {role} | " + " | ".join(f"{peak:.0f}" for peak in thirds) + " |"
                for role, thirds in sorted(peaks.items())
            ),
        ],
    )


if __name__ == "__main__":
    main()
