"""The finished preset folder: averaged weights, adapters merged. Appears whole or not at all."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import T5EncoderModel

from model.codec import PatchCodec
from model.presets import PRESET_FILE, write_preset_file
from model.training.config import TrainingConfig
from model.training.editing import Editing
from model.training.parallel import Workers, whole
from model.training.start import Start
from model.transformer import MemoryTransformer3DModel
from model.weights import is_island


def write_preset(
    config: TrainingConfig, start: Start, editing: Editing, average: Sequence[Tensor], workers: Workers
) -> Path:
    """Preset folder with the averaged weights, stored as bfloat16. All workers take part, the first one writes.

    A published pipeline's other parts are not copied: the folder names its base.
    """
    folder = config.output / "preset"
    trained = [parameter for parameter in editing.parameters() if parameter.requires_grad]
    smooth = {id(parameter): value for parameter, value in zip(trained, whole(list(average)), strict=True)}
    state = whole(dict(editing.state_dict()))
    # A parameter with two names (embeddings) has two entries.
    names = editing.named_parameters(remove_duplicate=False)
    state |= {name: smooth[id(parameter)] for name, parameter in names if id(parameter) in smooth}
    if workers.is_first:
        partial = config.output / "preset.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        write_parts(partial, config, start, editing, merged(state))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    workers.wait()
    return folder


def write_parts(folder: Path, config: TrainingConfig, start: Start, editing: Editing, state: dict[str, Tensor]) -> None:
    is_pipeline = start.base is not None and "vae" in start.base.components
    with torch.device("meta"):
        transformer = MemoryTransformer3DModel.from_config(editing.transformer.config)
    prefix = "transformer."
    weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    transformer.load_state_dict(
        {
            name: value if is_pipeline and is_island(transformer, name) else value.bfloat16()
            for name, value in weights.items()
        },
        assign=True,
    )
    transformer.save_pretrained(folder / "transformer")
    if is_pipeline:
        assert start.base is not None
        assert config.base is not None
        path = Path(config.base)
        document = {
            "base": str(path.absolute()) if path.is_dir() else config.base,
            "name": start.name,
            "geometry": asdict(start.geometry),
            "sampler": dict(start.sampler),
        }
        (folder / PRESET_FILE).write_text(json.dumps(document, indent=2) + "\n")
        return
    assert editing.text_encoder is not None
    assert isinstance(start.codec, PatchCodec)
    encoder: Any = T5EncoderModel(editing.text_encoder.encoder.config)
    encoder.to(torch.bfloat16)
    prefix = "text_encoder.encoder."
    encoder.load_state_dict(
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    )
    encoder.save_pretrained(folder / "text_encoder")
    start.codec.save_pretrained(folder / "codec")
    write_preset_file(
        folder, name=start.name, geometry=start.geometry, max_instruction_tokens=start.max_instruction_tokens,
        sampler=start.sampler,
    )  # fmt: skip


def merged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under their own names, each with its adapter added (rank and alpha are the same, so the scale is 1)."""
    weights = {name: value for name, value in state.items() if "lora_" not in name}
    for name in list(weights):
        if ".base_layer." in name:
            plain = name.replace(".base_layer.", ".")
            weights[plain] = weights.pop(name)
            module = plain.removesuffix(".weight")
            if plain.endswith(".weight"):
                up, down = (state[f"{module}.lora_{half}.default.weight"] for half in "BA")
                weights[plain] = weights[plain] + up @ down
    return weights
