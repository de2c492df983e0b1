"""What a run tells while it goes: metrics.jsonl, TensorBoard, and a line on the screen. Only the first of several workers tells."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from model.training.batches import Batch

METRICS_FILE = "metrics.jsonl"
NOISY = 0.8
"""The choice a memory makes is a choice made near sigma 1: only there does it show in the error."""


class Log:
    """Of a run that starts at `step`: what was told of later steps, before it was killed, is taken back.

    Args:
        recent: what was noted but not told before; it belongs to the checkpoint.
    """

    def __init__(self, folder: Path, *, step: int, num_steps: int, recent: dict[str, list[float]]) -> None:
        self.first_step, self.num_steps, self.recent = step, num_steps, recent
        self.started = time.monotonic()
        path = folder / METRICS_FILE
        rows = path.read_text().splitlines(keepends=True) if path.exists() else []
        path.write_text("".join(row for row in rows if row.endswith("\n") and json.loads(row)["step"] <= step))
        self.file = path.open("a")
        self.board = SummaryWriter(folder / "tensorboard", purge_step=step + 1 if step else None)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.file.close()
        self.board.close()

    def tell(self, step: int, figures: Mapping[str, float]) -> None:
        """Means since the last time, and these figures."""
        per_step = (time.monotonic() - self.started) / (step - self.first_step)
        told = {key: sum(values) / len(values) for key, values in self.recent.items() if values}
        told |= {**figures, "step_s": per_step}
        self.recent.clear()
        for key, value in told.items():
            self.board.add_scalar(key, value, step)
        self.file.write(json.dumps({"step": step, **told}) + "\n")
        self.file.flush()
        print(
            f"step {step}/{self.num_steps}  loss {told['loss']:.4f}  edited region at high noise: "
            f"with memory {told.get('edited_with_memory', math.nan):.3f}, "
            f"without {told.get('edited_without_memory', math.nan):.3f}  "
            f"{per_step:.2f} s/step  {(self.num_steps - step) * per_step / 60:.0f} min left",
            flush=True,
        )

    def show(self, step: int, picture: Tensor) -> None:
        """A picture `[3, H, W]` in TensorBoard."""
        self.board.add_image("source, edited, truth", picture, step)


def note(recent: dict[str, list[float]], batch: Batch, *, loss: float, edited: Tensor) -> None:
    """Remember a step's figures until they are told."""
    recent.setdefault("loss", []).append(loss)
    noisy = batch.sigma > NOISY
    if bool(torch.any(noisy)):
        key = "edited_with_memory" if batch.memory else "edited_without_memory"
        recent.setdefault(key, []).append(float(edited[noisy].mean()))
