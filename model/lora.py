"""LoRA files, merged into the weights while they are loaded: W + scale * alpha / rank * B A.

Reads diffusers' layout (with the alpha and rank that its files carry), PEFT's, and that of the original Wan names with `alpha`
scalars and plain differences of weights and biases (`diff`, `diff_b`). Merged, it costs nothing at a step and holds for
encoded memories too. Strict: a tensor that finds no place is an error that names it.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.original_keys import diffusers_name
from model.presets import LoRA

PART = re.compile(
    r"^(?P<module>.+)\.(?:(?P<factor>lora_A|lora_B|lora_down|lora_up)(?:\.default)?\.(?P<kind>weight|bias)"
    r"|(?P<other>alpha|diff|diff_b))$"
)
COMPONENT = re.compile(r"^(?:base_model\.model\.)?(?:(?P<component>transformer(?:_2)?)\.)?")


@dataclass
class Update:
    """What is added to one parameter."""

    down: Tensor | None = None
    up: Tensor | None = None
    plain: Tensor | None = None
    alpha: float | None = None

    def of(self, weight: Tensor, scale: float) -> Tensor:
        """In float32, in the parameter's own shape."""
        if self.plain is not None:
            return scale * self.plain.to(weight.device, torch.float32).reshape(weight.shape)
        assert self.down is not None
        assert self.up is not None
        down, up = (factor.to(weight.device, torch.float32) for factor in (self.down, self.up))
        rank = down.shape[0]
        return scale * (self.alpha or rank) / rank * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)


@dataclass
class LoRAMerger:
    """Adds what a LoRA file says to parameters as they come; knows at the end whether all of it was used."""

    path: Path
    scale: float
    updates: dict[str, list[Update]]
    used: set[str] = field(default_factory=set)

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """The parameter with the file's updates, in float32 where there are any."""
        for update in self.updates.get(name, ()):
            weight = weight.float() + update.of(weight, self.scale)
            self.used.add(name)
        return weight

    def check_used(self) -> None:
        """Raises ValueError if the file speaks of parameters the network does not have."""
        unused = sorted(set(self.updates) - self.used)
        if unused:
            raise ValueError(f"LoRA {self.path} does not fit: {len(unused)} unknown parameters, {unused[:5]}")


def read_lora(lora: LoRA) -> LoRAMerger:
    """The updates of a file by parameter name.

    Raises:
        ValueError: if it is no LoRA file, or holds something that is not understood.
    """
    factors: dict[str, Update] = {}
    try:
        with safe_open(lora.path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            alpha = shared_alpha(file.metadata() or {}, lora.component)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"LoRA {lora.path} cannot be read: {error}") from error
    plain: dict[str, list[Update]] = {}
    for key, tensor in tensors.items():
        prefix = COMPONENT.match(key)
        assert prefix is not None
        if (prefix["component"] or lora.component) != lora.component:
            continue
        part = PART.match(key[prefix.end() :])
        if part is None:
            raise ValueError(
                f"LoRA {lora.path} has {key}; needs lora_A, lora_B, lora_down, lora_up, alpha, diff or diff_b"
            )
        weight = diffusers_name(f"{part['module']}.weight")
        bias = f"{weight.removesuffix('weight')}bias"
        if part["other"] == "diff":
            plain.setdefault(weight, []).append(Update(plain=tensor))
        elif part["other"] == "diff_b" or part["kind"] == "bias":
            plain.setdefault(bias, []).append(Update(plain=tensor))
        else:
            update = factors.setdefault(weight, Update(alpha=alpha))
            if part["other"] == "alpha":
                update.alpha = float(tensor)
            elif part["factor"] in ("lora_A", "lora_down"):
                update.down = tensor
            else:
                update.up = tensor
    halves = [name for name, update in factors.items() if update.down is None or update.up is None]
    if halves or not tensors:
        raise ValueError(f"LoRA {lora.path} has one factor only of {halves[:5]}")
    for name, update in factors.items():
        plain.setdefault(name, []).append(update)
    return LoRAMerger(path=lora.path, scale=lora.scale, updates=plain)


def shared_alpha(metadata: dict[str, str], component: str) -> float | None:
    """The `lora_alpha` diffusers writes into a file's header; None leaves the update as it is.

    Raises:
        ValueError: for settings under which the update would be another one.
    """
    settings: dict[str, Any] = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    settings = {name.removeprefix(f"{component}."): value for name, value in settings.items()}
    strange = [name for name in ("use_dora", "use_rslora", "alpha_pattern") if settings.get(name)]
    if strange:
        raise ValueError(f"LoRA has {', '.join(strange)}; needs plain LoRA with one alpha")
    return settings.get("lora_alpha")
