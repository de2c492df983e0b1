"""Where a published number comes from: date, commit, hardware, versions, seeds; and the file it is written to."""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from pipeline.versions import describe_machine


def hardware() -> str:
    """As part of a file name."""
    return f"{os.cpu_count()}-core-{platform.machine()}"


def provenance(*, command: str, packages: tuple[str, ...] = ("ray",)) -> str:
    names = ", ".join(f"{name} {version(name)}" for name in packages)
    load = os.getloadavg()[0]
    return f"{describe_machine()}, {names}; load average at the end {load:.1f}. Made by `{command}`."


def write_report(
    what: str,
    *,
    title: str,
    lines: Sequence[str],
    packages: tuple[str, ...],
    out: Path,
    command: str | None = None,
    machine: str | None = None,
) -> Path:
    """A Markdown report `<what>_<machine>_<date>.md`: title, where it comes from (`python -m benchmarks.WHAT` unless told), and `lines`."""
    comes_from = provenance(command=command or f"python -m benchmarks.{what}", packages=packages)
    path = out / f"{what}_{machine or hardware()}_{datetime.now(UTC):%Y-%m-%d}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([f"# {title}", "", comes_from, "", *lines, ""]))
    print(path)
    return path
