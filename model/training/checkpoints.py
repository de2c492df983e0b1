"""Stop and go on exactly: one file with all that changes in training. It appears whole or not at all.

Tensors are kept whole, so a run may go on with another number of workers. What is frozen is not kept: the base has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.training.parallel import Workers, like, whole


@dataclass(kw_only=True)
class State:
    """All that a step changes.

    Attributes:
        parameters: those that are trained.
        average: their exponential moving average.
        step: steps done.
        recent: what is not logged yet.
    """

    parameters: Sequence[nn.Parameter]
    optimizers: Sequence[torch.optim.Optimizer]
    average: list[Tensor]
    step: int = 0
    recent: dict[str, list[float]] = field(default_factory=dict)


def save_checkpoint(path: Path, state: State, workers: Workers) -> None:
    """All workers take part, the first one writes."""
    document = {
        "parameters": whole([parameter.detach() for parameter in state.parameters]),
        "optimizers": [whole(optimizer.state_dict()) for optimizer in state.optimizers],
        "average": whole(state.average),
        "step": state.step,
        "recent": state.recent,
    }
    if workers.is_first:
        partial = path.with_suffix(".partial")
        torch.save(document, partial)
        partial.rename(path)
    workers.wait()


def load_checkpoint(path: Path, state: State) -> None:
    """Bring a fresh state to where the file is.

    Raises:
        ValueError: if the file is of another network.
    """
    document: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    saved = document["parameters"]
    if [tensor.shape for tensor in saved] != [parameter.shape for parameter in state.parameters]:
        raise ValueError(f"checkpoint {path} is of another network; needs the same options as the run that wrote it")
    with torch.no_grad():
        for parameter, average, value, smooth in zip(
            state.parameters, state.average, saved, document["average"], strict=True
        ):
            parameter.copy_(like(value, parameter))
            average.copy_(like(smooth, average))
    for optimizer, values in zip(state.optimizers, document["optimizers"], strict=True):
        mine = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for number, entry in values["state"].items():
            for name, value in entry.items():
                if isinstance(value, Tensor) and value.shape == mine[number].shape:
                    entry[name] = like(value, mine[number])
        optimizer.load_state_dict(values)
    state.step, state.recent = document["step"], document["recent"]
