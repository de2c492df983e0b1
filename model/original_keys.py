"""Wan's own parameter names, as its authors and most single-file checkpoints have them, to diffusers' names.

One table for whole checkpoints and LoRA files; what it does not know stays as it is, and whoever loads names it. A checkpoint
without a config.json is described by its shapes. Parity with diffusers' converter: tests/model/test_weights.py.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

PREFIX = re.compile(r"^(model\.)?diffusion_model\.")
RENAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^time_embedding\.0\.", "condition_embedder.time_embedder.linear_1."),
        (r"^time_embedding\.2\.", "condition_embedder.time_embedder.linear_2."),
        (r"^text_embedding\.0\.", "condition_embedder.text_embedder.linear_1."),
        (r"^text_embedding\.2\.", "condition_embedder.text_embedder.linear_2."),
        (r"^time_projection\.1\.", "condition_embedder.time_proj."),
        (r"^img_emb\.proj\.0\.", "condition_embedder.image_embedder.norm1."),
        (r"^img_emb\.proj\.1\.", "condition_embedder.image_embedder.ff.net.0.proj."),
        (r"^img_emb\.proj\.3\.", "condition_embedder.image_embedder.ff.net.2."),
        (r"^img_emb\.proj\.4\.", "condition_embedder.image_embedder.norm2."),
        (r"^head\.modulation$", "scale_shift_table"),
        (r"^head\.head\.", "proj_out."),
        (r"^(blocks\.\d+)\.self_attn\.", r"\1.attn1."),
        (r"^(blocks\.\d+)\.cross_attn\.", r"\1.attn2."),
        (r"^(blocks\.\d+\.attn[12])\.([qkv])\.", r"\1.to_\2."),
        (r"^(blocks\.\d+\.attn[12])\.o\.", r"\1.to_out.0."),
        (r"^(blocks\.\d+\.attn2)\.([kv])_img\.", r"\1.add_\2_proj."),
        (r"^(blocks\.\d+\.attn2)\.norm_k_img\.", r"\1.norm_added_k."),
        (r"^(blocks\.\d+)\.ffn\.0\.", r"\1.ffn.net.0.proj."),
        (r"^(blocks\.\d+)\.ffn\.2\.", r"\1.ffn.net.2."),
        (r"^(blocks\.\d+)\.norm3\.", r"\1.norm2."),
        (r"^(blocks\.\d+)\.modulation$", r"\1.scale_shift_table"),
    )
)

WAN_HEAD_DIM = 128


def is_original(names: Iterable[str]) -> bool:
    return any(".self_attn." in name for name in names)


def diffusers_name(name: str) -> str:
    """The name of a parameter in diffusers' Wan; of anything else, the name without its prefix."""
    name = PREFIX.sub("", name)
    for pattern, replacement in RENAMES:
        name = pattern.sub(replacement, name)
    return name


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The configuration of a network whose parameters, under diffusers' names, have these shapes.

    Raises:
        ValueError: if a parameter that every Wan network has is not there.
    """
    try:
        width, in_channels, *patch = shapes["patch_embedding.weight"]
        config: dict[str, Any] = {
            "patch_size": tuple(patch),
            "num_attention_heads": width // WAN_HEAD_DIM,
            "attention_head_dim": WAN_HEAD_DIM,
            "in_channels": in_channels,
            "out_channels": shapes["proj_out.weight"][0] // math.prod(patch),
            "text_dim": shapes["condition_embedder.text_embedder.linear_1.weight"][1],
            "freq_dim": shapes["condition_embedder.time_embedder.linear_1.weight"][1],
            "ffn_dim": shapes["blocks.0.ffn.net.0.proj.weight"][0],
            "num_layers": 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
            "cross_attn_norm": "blocks.0.norm2.weight" in shapes,
        }
    except (KeyError, ValueError) as error:
        raise ValueError(f"checkpoint is no Wan network: {error}") from error
    image = shapes.get("condition_embedder.image_embedder.norm1.weight")
    if image is not None:
        config |= {"image_dim": image[0], "added_kv_proj_dim": width}
    return config
