"""Where a published number comes from: date, commit, hardware, versions, seeds; and the file it is written to."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path


def hardware() -> str:
    """As part of a file name."""
    return f"{os.cpu_count()}-core-{platform.machine()}"


def provenance(*, command: str, packages: tuple[str, ...] = ("ray",)) -> str:
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    names = ", ".join(f"{name} {version(name)}" for name in packages)
    load = os.getloadavg()[0]
    return (
        f"Commit {commit.stdout.strip()}, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores {cpu_model()}, "
        f"Python {platform.python_version()}, {names}; load average at the end {load:.1f}. Made by `{command}`."
    )


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write_result(what: str, text: str, *, out: Path) -> Path:
    """Write `<what>_<hardware>_<date>.md`."""
    path = out / f"{what}_{hardware()}_{datetime.now(UTC):%Y-%m-%d}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(path)
    return path
