"""Weights into networks: folders in diffusers' layout (one file or shards), and single files with Wan's original names.

The network is built without storage and filled tensor by tensor, straight on its device, so the host holds hardly more than
the weights themselves. Strict: a tensor that is missing or left over is an error that names it. The one exception is what
Memory-V2V adds to a published Wan checkpoint, which then starts from the base (`init_memory`).
diffusers' own `from_pretrained` wants `accelerate` for this.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from model.checkpoints import read_json, weight_files
from model.codec import PatchCodec
from model.lora import LoRAMerger, read_lora
from model.original_keys import config_of, diffusers_name, is_original
from model.presets import LoRA
from model.transformer import MemoryTransformer3DModel

MEMORY_MODULES = ("memory_patch_embedding", "memory_compressors")
PICKLES = (".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    shape: tuple[int, ...]
    read: Callable[[str], Tensor]
    """Given the device."""


def load_transformer(
    path: Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu", lora: Sequence[LoRA] = ()
) -> MemoryTransformer3DModel:
    """A transformer ready to run, from a folder or a single file; a plain Wan checkpoint will do.

    Args:
        dtype: of all but the islands that diffusers keeps in float32.
        lora: merged in, one after the other.

    Raises:
        ValueError: if tensors are missing or unknown, or a LoRA file does not fit.
    """
    stored = stored_tensors([path] if path.is_file() else weight_files(path))
    if is_original(stored):
        stored = {diffusers_name(name): tensor for name, tensor in stored.items()}
        config = config_of({name: tensor.shape for name, tensor in stored.items()})
    else:
        config = read_json(path / "config.json")
    with torch.device("meta"):
        transformer = MemoryTransformer3DModel.from_config(config)
    mergers = [read_lora(item) for item in lora]
    missing = fill(transformer, stored, path, dtype=dtype, device=device, mergers=mergers, may_lack=MEMORY_MODULES)
    for merger in mergers:
        merger.check_used()
    lacking = sorted({".".join(name.split(".")[:2]) for name in missing})
    halves = [name for name in stored if name.startswith(tuple(f"{module}." for module in lacking))]
    if halves:
        raise ValueError(f"weights in {path} do not fit: {lacking} have {halves} only")
    transformer.init_memory(transformer.get_submodule(name) for name in lacking)
    return transformer.eval()


def load_codec(folder: Path, *, device: str = "cpu") -> PatchCodec:
    """A codec ready to run.

    Raises:
        ValueError: if tensors are missing or unknown.
    """
    return load_component(PatchCodec, folder, device=device)


def load_vae(folder: Path, *, device: str = "cpu") -> AutoencoderKLWan:
    """Wan's VAE in float32, ready to run.

    Raises:
        ValueError: if tensors are missing or unknown.
    """
    return load_component(AutoencoderKLWan, folder, device=device)


def load_component(component: Any, folder: Path, *, device: str = "cpu") -> Any:
    with torch.device("meta"):
        module = component.from_config(read_json(folder / "config.json"))
    fill(module, stored_tensors(weight_files(folder)), folder, device=device)
    return module.eval()


def stored_tensors(files: Sequence[Path]) -> dict[str, Stored]:
    """Everything in safetensors files or in pickles of tensors, unread.

    Raises:
        ValueError: if a file is not there or cannot be read.
    """
    found: dict[str, Stored] = {}
    for file in files:
        try:
            found |= dict(pickled(file) if file.suffix in PICKLES else safe(file))
        except (OSError, SafetensorError, RuntimeError, EOFError, UnpicklingError) as error:
            raise ValueError(f"weights {file} cannot be read: {type(error).__name__}: {error}") from error
    return found


def safe(file: Path) -> Iterator[tuple[str, Stored]]:
    def read(name: str, device: str) -> Tensor:
        # Opened anew for every tensor: what was mapped of the others is given back.
        with safe_open(file, framework="pt", device=device) as opened:
            return opened.get_tensor(name)

    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118 - not a mapping
            yield name, Stored(tuple(opened.get_slice(name).get_shape()), partial(read, name))


def pickled(file: Path) -> Iterator[tuple[str, Stored]]:
    state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    for name, tensor in state.get("state_dict", state).items():
        yield name, Stored(tuple(tensor.shape), tensor.to)


def fill(
    module: nn.Module,
    stored: Mapping[str, Stored],
    source: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    mergers: Sequence[LoRAMerger] = (),
    may_lack: Sequence[str] = (),
) -> list[str]:
    """Give a module without storage its tensors; returns the names that were not stored, all under `may_lack`.

    Those have storage without content then.

    Raises:
        ValueError: if tensors are missing, unknown or of another shape.
    """
    wanted = module.state_dict()
    ignored = tuple(getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ())
    missing = [name for name in wanted if name not in stored]
    lost = [name for name in missing if not name.startswith(tuple(may_lack) or ("\0",))]
    unknown = [name for name in stored if name not in wanted and not any(part in name for part in ignored)]
    if lost or unknown:
        raise ValueError(f"weights in {source} do not fit: missing {lost[:5]}, unknown {unknown[:5]}")
    state: dict[str, Tensor] = {}
    for name, place in wanted.items():
        kept = torch.float32 if is_island(module, name) else dtype
        kept = kept if place.is_floating_point() else place.dtype
        if name not in stored:
            state[name] = torch.empty(place.shape, dtype=kept, device=device)
            continue
        if stored[name].shape != tuple(place.shape):
            raise ValueError(f"weights in {source}: {name} is {stored[name].shape}; needs {tuple(place.shape)}")
        tensor = stored[name].read(device)
        for merge in mergers:
            tensor = merge(name, tensor)
        state[name] = tensor.to(kept)
    module.load_state_dict(state, assign=True)
    return missing


def is_island(module: nn.Module, name: str) -> bool:
    """Whether diffusers keeps this parameter in float32, whatever the rest is in."""
    islands = getattr(module, "_keep_in_fp32_modules", None) or ()
    return any(part in islands for part in name.split("."))
