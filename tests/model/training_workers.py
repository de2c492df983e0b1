"""Several training workers on one machine, as torchrun would start them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from model.training.config import TrainingConfig

ROOT = Path(__file__).parents[2]


def train_in_processes(config: TrainingConfig, *, count: int, options: Path) -> None:
    """Run `python -m model.training` in `count` processes; raises if any fails."""
    options.write_text(json.dumps(config.to_json()))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "model.training", str(options)],
            cwd=ROOT,
            env={**os.environ, **common, "PYTHONPATH": str(ROOT), "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        ends = [(process.communicate(timeout=120)[1], process.returncode) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(status for _, status in ends), "\n".join(text for text, _ in ends)


def losses(output: Path) -> dict[int, float]:
    """What a run logged, by step."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert len({row["step"] for row in rows}) == len(rows)
    return {row["step"]: row["loss"] for row in rows}
