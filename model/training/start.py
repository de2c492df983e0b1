"""Where training starts: from nothing (a codec is fitted, a small network made), or from a preset with all its parts (or all but its codec)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from model.checkpoints import read_json
from model.codec import PatchCodec
from model.editor import sees_source
from model.geometry import Geometry
from model.presets import Preset, resolve_preset
from model.samplers import EulerSampler
from model.text_encoder import ByteTextEncoder
from model.training.codec_fit import fit_codec, fitting_videos
from model.training.config import TrainingConfig
from model.training.editing import Editing, choose_trained
from model.training.precision import recompute
from model.training.recode import recode
from model.training.segments import VideoCodec
from model.transformer import MemoryTransformer3DModel, merging_blocks
from model.wan import WanCodec, WanTextEncoder
from model.weights import load_codec, load_transformer

NETWORK_SIZES = {
    "num_layers": "num_layers",
    "num_heads": "num_attention_heads",
    "head_dim": "attention_head_dim",
    "ffn_dim": "ffn_dim",
    "text_width": "text_dim",
}
"""Options of a new network, and what the network's own configuration calls them."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """Everything of the preset to be made but the network that is trained.

    Attributes:
        base: the preset it starts from.
        latent_frames: of a whole segment.
    """

    base: Preset | None
    codec: VideoCodec
    name: str
    geometry: Geometry
    sampler: Mapping[str, Any]
    max_instruction_tokens: int

    @property
    def latent_frames(self) -> int:
        return (self.geometry.segment_frames - 1) // self.codec.group_frames + 1


def starting_point(config: TrainingConfig, *, device: str = "cpu") -> Start:
    """Codec, geometry and sampler: the base's, where the options leave them at their defaults.

    Raises:
        ValueError: if the base is not there, cannot be trained, or does not fit the options.
    """
    base = None if config.base is None else resolve_preset(config.base)
    if base is not None:
        check_base(config, base)
    codec = prepare_codec(config, base, device=device)
    steps, shift = config.num_inference_steps, config.inference_shift
    new = Start(
        base=base,
        codec=codec,
        name="tiny",
        geometry=Geometry(
            segment_frames=config.segment_frames,
            min_frames=config.segment_frames,
            frame_multiple=codec.group_frames,
            sizes=config.sizes,
        ),
        sampler={"num_inference_steps": steps, "guidance_scale": 1.0, "shift": shift},
        max_instruction_tokens=config.max_instruction_tokens,
    )
    if base is None:
        return new
    geometry, sampler = base.geometry, dict(base.sampler)
    if config.codec == "fitted":
        geometry = replace(geometry, frame_multiple=codec.group_frames)
    if config.given("sizes"):
        geometry = replace(geometry, sizes=config.sizes)
    if config.given("segment_frames"):
        geometry = replace(geometry, segment_frames=config.segment_frames, min_frames=config.segment_frames)
    if config.given("num_inference_steps"):
        sampler["num_inference_steps"] = steps
    if config.given("inference_shift"):
        sampler["shift"] = shift
    max_tokens = (
        config.max_instruction_tokens if config.given("max_instruction_tokens") else base.max_instruction_tokens
    )
    return replace(new, name=base.name, geometry=geometry, sampler=sampler, max_instruction_tokens=max_tokens)


def check_base(config: TrainingConfig, base: Preset) -> None:
    """Raises ValueError for a preset with two transformers, with LoRA files, or of another size than the options say."""
    if "transformer_2" in base.components:
        raise ValueError(f"base {base.name!r} has two transformers; training takes one")
    if base.lora:
        raise ValueError(
            f"base {base.name!r} has LoRA files, which would be added again to the result; needs a base without"
        )
    if config.codec == "fitted" and "codec" not in base.components:
        raise ValueError(f"codec is 'fitted'; base {base.name!r} is not on the linear codec, and needs its own VAE")
    folder = base.components["transformer"]
    own = read_json(folder / "config.json") if folder.is_dir() else {}
    for option, name in NETWORK_SIZES.items():
        if config.given(option) and getattr(config, option) != own.get(name):
            raise ValueError(
                f"{option} is {getattr(config, option)}; base {base.name!r} has {own.get(name)}, leave it out"
            )


def prepare_codec(config: TrainingConfig, base: Preset | None, *, device: str = "cpu") -> VideoCodec:
    """The base's codec or VAE, or a fitted one: kept beside the checkpoint, so that a resumed run has the same."""
    if base is not None and "vae" in base.components:
        return WanCodec.from_pretrained(base.components["vae"], device=device, is_tiled=base.is_vae_tiled)
    folder = config.output / "codec"
    if (folder / "config.json").exists():
        return load_codec(folder)
    if base is not None and config.codec == "base":
        codec = load_codec(base.components["codec"])
    else:
        codec = fit_codec(fitting_videos(config.num_codec_worlds, seed=config.seed, size=config.sizes[0]))
    codec.save_pretrained(folder)
    return codec


def make_editing(config: TrainingConfig, start: Start, *, device: str = "cpu") -> Editing:
    """The network as training finds it, what is not trained frozen.

    Raises:
        ValueError: if the base does not have what the options ask for.
    """
    torch.manual_seed(config.seed)
    # A head that is not trained stays silent: a base without one gets none then.
    has_colour_head = isinstance(start.codec, PatchCodec) and config.train == "all"
    if start.base is None:
        editing = new_editing(config, has_colour_head=has_colour_head)
    else:
        editing = base_editing(config, start.base, has_colour_head=has_colour_head, device=device)
        if config.codec == "fitted":
            assert isinstance(start.codec, PatchCodec)
            recode(editing.transformer, load_codec(start.base.components["codec"]), start.codec)
    if editing.transformer.colour_head is not None:
        assert isinstance(start.codec, PatchCodec)
        editing.transformer.colour_head.set_maps(start.codec)
    if config.gradient_checkpointing:
        checkpointing = recompute(config.precision, torch.device(device).type)
        editing.transformer.enable_gradient_checkpointing(checkpointing)
    editing.sampler = EulerSampler(
        num_inference_steps=start.sampler.get("num_inference_steps", config.num_inference_steps),
        shift=start.sampler.get("shift", config.inference_shift),
    )
    choose_trained(editing, config.train, lora_rank=config.lora_rank)
    return editing.to(device)


def new_editing(config: TrainingConfig, *, has_colour_head: bool) -> Editing:
    """A small network that has learned nothing, and so leaves the video as it is."""
    transformer = MemoryTransformer3DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.num_layers,
        text_dim=config.text_width,
        prediction_type="source_residual",
        memory_attention=config.memory_attention or "joint",
        memory_positions=config.memory_positions or "ranges",
        merging_blocks=merging_blocks(config.num_layers) if config.merging else (),
        has_colour_head=has_colour_head,
    )
    text_encoder = ByteTextEncoder(
        width=config.text_width, num_layers=config.text_layers, ffn_dim=4 * config.text_width
    )
    with torch.no_grad():
        transformer.proj_out.weight.zero_()
        transformer.proj_out.bias.zero_()
    return Editing(transformer, text_encoder)


def base_editing(config: TrainingConfig, base: Preset, *, has_colour_head: bool, device: str = "cpu") -> Editing:
    """A preset's network; a colour head, and compressors of memory frames where `merging` asks for them, are new where it has none."""
    loaded = load_transformer(base.components["transformer"])
    names = ("memory_attention", "memory_positions", "merging_blocks", "has_colour_head")
    before = {name: loaded.config[name] for name in names}
    attention = config.memory_attention or before["memory_attention"]
    # Isolated memory has nothing to merge: a joint base's compressors are left behind.
    kept = before["merging_blocks"] if attention == "joint" else ()
    wanted = {
        "memory_attention": attention,
        "memory_positions": config.memory_positions or before["memory_positions"],
        "merging_blocks": kept or (merging_blocks(loaded.config.num_layers) if config.merging else ()),
        "has_colour_head": before["has_colour_head"] or (has_colour_head and sees_source(loaded)),
    }
    if wanted != before:
        settings = {**loaded.config, **wanted}
        # Else diffusers would make anew what was a default in the base.
        settings.pop("_use_default_values", None)
        transformer = MemoryTransformer3DModel.from_config(settings)
        # Compressors start as means, a colour head silent; everything else is the base's.
        transformer.load_state_dict(loaded.state_dict(), strict=False)
        loaded = transformer
    text_encoder: ByteTextEncoder | WanTextEncoder
    if "tokenizer" in base.components:
        text_encoder = WanTextEncoder.from_pretrained(
            base.components["text_encoder"], base.components["tokenizer"], max_tokens=base.max_instruction_tokens,
            dtype=getattr(torch, base.precision), device=device,
        )  # fmt: skip
    else:
        text_encoder = ByteTextEncoder.from_pretrained(base.components["text_encoder"])
    # Training mode as in a new network; neither has dropout.
    return Editing(loaded.train(), text_encoder)
