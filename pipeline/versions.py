"""What made a result: versions, written into every record and run; and the machine, beside every published figure."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RECORDED_PACKAGES = ("memory-v2v", "torch", "diffusers", "ray", "av", "open_clip_torch", "faiss-cpu", "pyarrow")


def package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def describe_machine() -> str:
    """Commit, date, processor and Python, as a clause."""
    return (
        f"Commit {commit() or 'unknown'}, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores {cpu_model()}, "
        f"Python {platform.python_version()}"
    )


def commit() -> str:
    """Of the checkout this file is in; empty where there is none."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.machine()
