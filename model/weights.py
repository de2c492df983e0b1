"""Weights from a component's folder in diffusers' layout: `config.json` beside `diffusion_pytorch_model*.safetensors`.

Strict: a tensor that is missing or left over is an error that names it. The one exception is what Memory-V2V adds to a
published Wan checkpoint, the memories' patch embeddings, which then start as averages of the base embedding.
diffusers' own `from_pretrained` does the same job but wants `accelerate` for a model with float32 islands.
"""

from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from model.codec import PatchCodec
from model.patchify import init_from_base
from model.transformer import MemoryTransformer3DModel

MEMORY_PREFIX = "memory_patch_embedding."


def load_transformer(folder: Path, *, dtype: torch.dtype = torch.float32) -> MemoryTransformer3DModel:
    """A transformer ready to run; `folder` may hold a plain Wan checkpoint.

    Raises:
        ValueError: if tensors are missing or unknown.
    """
    transformer = MemoryTransformer3DModel.from_config(MemoryTransformer3DModel.load_config(folder))
    missing = load_strictly(transformer, folder, may_lack=MEMORY_PREFIX)
    if missing:
        for embedding in transformer.memory_patch_embedding.children():
            init_from_base(cast(nn.Conv3d, embedding), transformer.patch_embedding)
    return (transformer if dtype == torch.float32 else transformer.to(dtype)).eval()


def load_codec(folder: Path) -> PatchCodec:
    """A codec ready to run.

    Raises:
        ValueError: if tensors are missing or unknown.
    """
    codec = PatchCodec.from_config(PatchCodec.load_config(folder))
    load_strictly(codec, folder)
    return codec.eval()


def load_strictly(module: nn.Module, folder: Path, *, may_lack: str | None = None) -> list[str]:
    """Fill `module` from every safetensors file of `folder`; returns the names it lacked, all under `may_lack`.

    Raises:
        ValueError: if tensors are missing or unknown.
    """
    state: dict[str, Tensor] = {}
    for file in sorted(folder.glob("diffusion_pytorch_model*.safetensors")):
        state |= load_file(file)
    missing, unknown = module.load_state_dict(state, strict=False)
    lost = [name for name in missing if may_lack is None or not name.startswith(may_lack)]
    if lost or unknown:
        raise ValueError(f"weights in {folder} do not fit: missing {lost[:5]}, unknown {unknown[:5]}")
    return list(missing)
