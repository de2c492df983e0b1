"""Presets with random weights: as small and fast as can be, with what the bundled one may lack."""

import shutil
from pathlib import Path

import torch

from model.presets import resolve_preset, write_preset_file
from model.transformer import MemoryAttention, MemoryTransformer3DModel


def write_random_preset(
    folder: Path, *, memory_attention: MemoryAttention = "joint", merging_blocks: tuple[int, ...] = (), seed: int = 0
) -> Path:
    """A preset folder: codec, text encoder and frame sizes of `tiny`, a transformer of three random layers, two steps."""
    tiny = resolve_preset("tiny")
    for component in ("codec", "text_encoder"):
        shutil.copytree(tiny.path / component, folder / component)
    torch.manual_seed(seed)
    transformer = MemoryTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=32,
        ffn_dim=64,
        num_layers=3,
        text_dim=128,
        freq_dim=32,
        in_channels=96,
        out_channels=48,
        prediction_type="source_residual",
        memory_attention=memory_attention,
        merging_blocks=merging_blocks,
    )
    transformer.save_pretrained(folder / "transformer")
    write_preset_file(
        folder,
        name=folder.name,
        geometry=tiny.geometry,
        sampler={"num_inference_steps": 2, "guidance_scale": 1.0, "shift": 5.0},
        max_instruction_tokens=tiny.max_instruction_tokens,
    )
    return folder
