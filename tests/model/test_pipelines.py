"""Whole diffusers pipelines as editors: the same latents as diffusers' own, and what our settings add to them."""

import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import LucyEditPipeline, WanVideoToVideoPipeline
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoints import SAMPLED_BYTES, file_digest
from model.editor import MemoryEditor, make_sampler
from model.presets import HUB_PRESETS, load_editor, resolve_preset
from model.samplers import load_scheduler
from model.types import EditRequest, MemoryVideo
from tests.model.networks import random
from tests.pipelines import NUM_FRAMES, SIZE, STEPS, lucy, text_to_video

INSTRUCTION = "Change the &quot;red ball&quot;  to a  blue cube"


@pytest.fixture(scope="module")
def lucy_pipeline(tmp_path_factory: pytest.TempPathFactory) -> tuple[LucyEditPipeline, Path]:
    folder = tmp_path_factory.mktemp("lucy")
    return lucy(folder), folder


@pytest.fixture(scope="module")
def frames() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (NUM_FRAMES, *SIZE, 3), dtype=torch.uint8, generator=generator)


def theirs(pipeline: object, frames: Tensor, *, output_type: str = "latent", **settings: object) -> Tensor:
    images = [Image.fromarray(np.asarray(frame)) for frame in frames]
    size = {"height": SIZE[0], "width": SIZE[1], "num_inference_steps": STEPS}
    size |= {"num_frames": NUM_FRAMES} if isinstance(pipeline, LucyEditPipeline) else {}
    generator = torch.Generator().manual_seed(11)
    result = pipeline(
        prompt=INSTRUCTION, video=images, generator=generator, output_type=output_type, **size, **settings
    ).frames[0]
    return result if output_type == "latent" else torch.from_numpy(np.asarray(result))


def edit(editor: MemoryEditor, frames: Tensor, *, memory: tuple[MemoryVideo, ...] = (), **sampler: object) -> Tensor:
    preset = replace(editor.preset, sampler={**editor.preset.sampler, **sampler})
    request = EditRequest(instruction=INSTRUCTION, source=editor.encode(frames), memory=memory, seed=11)
    return replace(editor, preset=preset, sampler=make_sampler(preset)).edit(request).latent


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_lucy_edits_as_in_diffusers(lucy_pipeline: tuple, frames: Tensor, guidance_scale: float) -> None:
    pipeline, folder = lucy_pipeline
    editor = load_editor(folder)
    negative = "blurry"
    got = edit(editor, frames, guidance_scale=guidance_scale, negative_prompt=negative)
    settings = {"guidance_scale": guidance_scale, "negative_prompt": negative}
    torch.testing.assert_close(got, theirs(pipeline, frames, **settings), rtol=0, atol=1e-4)
    assert (got - editor.encode(frames)).abs().mean() > 0.1
    if guidance_scale > 1:
        decoded = theirs(pipeline, frames, output_type="np", **settings)
        torch.testing.assert_close(editor.decode(got), decoded, rtol=0, atol=1e-4)
        assert (got - edit(editor, frames, guidance_scale=1.0)).abs().max() > 1e-3


def test_two_transformers_share_the_work_as_in_diffusers(tmp_path: Path, frames: Tensor) -> None:
    pipeline = lucy(tmp_path, is_two_stage=True)
    editor = load_editor(tmp_path)
    memory = (
        MemoryVideo(
            role="previous", kernel=(1, 2, 2), edited=random(4, 3, 4, 6, seed=1), source=random(4, 3, 4, 6, seed=2)
        ),
    )
    assert len(editor.networks) == 2
    got = edit(editor, frames, guidance_scale=2.0, guidance_scale_2=4.0)
    expected = theirs(pipeline, frames, guidance_scale=2.0, guidance_scale_2=4.0)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    alone = replace(editor, networks=editor.networks[:1])
    assert (edit(alone, frames, guidance_scale=2.0) - got).abs().max() > 1e-3
    assert (edit(editor, frames, guidance_scale=2.0, guidance_scale_2=4.0, memory=memory) - got).abs().max() > 1e-4


def test_text_to_video_edits_what_noise_leaves_of_the_source(tmp_path: Path, frames: Tensor) -> None:
    """A network that does not see the source: SDEdit, as in diffusers; a memory is its edited latents only."""
    pipeline: WanVideoToVideoPipeline = text_to_video(tmp_path)
    editor = load_editor(tmp_path)
    assert editor.preset.sampler["strength"] == 0.8
    got = edit(editor, frames, strength=0.5)
    torch.testing.assert_close(got, theirs(pipeline, frames, strength=0.5, guidance_scale=3.0), rtol=0, atol=1e-4)
    edited, source = random(4, 3, 4, 6, seed=1), random(4, 3, 4, 6, seed=2)

    def with_memory(edited: Tensor, source: Tensor) -> Tensor:
        memory = (MemoryVideo(role="retrieved", kernel=(1, 4, 4), edited=edited, source=source),)
        return edit(editor, frames, memory=memory, strength=0.5)

    first = with_memory(edited, source)
    assert (first - got).abs().max() > 1e-4
    assert torch.equal(with_memory(edited, source + 1), first)
    assert not torch.equal(with_memory(edited + 1, source), first)
    document = json.loads((tmp_path / "preset.json").read_text())
    document["sampler"]["strength"] = 1
    (tmp_path / "preset.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="strength is 1; needs 0 to 1"):
        resolve_preset(tmp_path)


def derived(folder: Path, base: Path, **document: object) -> Path:
    folder.mkdir()
    (folder / "preset.json").write_text(json.dumps({"base": str(base), **document}))
    return folder


def test_a_preset_on_another_changes_settings_and_adds_lora(
    lucy_pipeline: tuple, frames: Tensor, tmp_path: Path
) -> None:
    _, base = lucy_pipeline
    shape = {"lora_A.weight": torch.full((2, 32), 0.3), "lora_B.weight": torch.full((32, 2), 0.3)}
    lora = tmp_path / "style.safetensors"
    save_file({f"transformer.blocks.0.attn1.to_v.{name}": tensor for name, tensor in shape.items()}, lora)
    folder = derived(
        tmp_path / "mine", base, sampler={"guidance_scale": 1.0}, lora=[{"path": "../style.safetensors", "scale": 0.5}],
        attention_backend="_native_math", is_vae_tiled=True,
    )  # fmt: skip
    plain, preset = resolve_preset(base), resolve_preset(folder)
    assert (preset.name, preset.sampler["num_inference_steps"], preset.sampler["guidance_scale"]) == (
        "mine",
        STEPS,
        1.0,
    )
    assert preset.weights_revision != plain.weights_revision
    editor = load_editor(folder)
    assert editor.codec.vae.use_tiling
    moved = editor.transformer.blocks[0].attn1.to_v.weight - load_editor(base).transformer.blocks[0].attn1.to_v.weight
    torch.testing.assert_close(moved, torch.full((32, 32), 0.09))
    assert (edit(editor, frames) - edit(load_editor(base), frames, guidance_scale=1.0)).abs().max() > 1e-3
    save_file(load_file(lora) | {"transformer.blocks.0.attn1.to_v.alpha": torch.tensor(1.0)}, lora)
    assert resolve_preset(folder).weights_revision != preset.weights_revision


def test_a_presets_own_network_stands_instead_of_the_bases(lucy_pipeline: tuple, tmp_path: Path) -> None:
    """What finetuning writes: a transformer and a preset.json; text encoder and VAE stay where they are."""
    _, base = lucy_pipeline
    folder = derived(tmp_path / "tuned", base)
    network = load_editor(base).transformer
    with torch.no_grad():
        network.proj_out.bias += 1
    network.save_pretrained(folder / "transformer")
    editor = load_editor(folder)
    assert torch.equal(editor.transformer.proj_out.bias, network.proj_out.bias)
    assert editor.preset.components["vae"] == base / "vae"
    assert editor.weights_revision != resolve_preset(base).weights_revision


@pytest.mark.parametrize("backend", ["_native_math", "_native_flash"])
def test_attention_backends_reach_every_attention(
    lucy_pipeline: tuple, frames: Tensor, tmp_path: Path, backend: str
) -> None:
    _, base = lucy_pipeline
    memory = (
        MemoryVideo(
            role="previous", kernel=(1, 2, 2), edited=random(4, 3, 4, 6, seed=1), source=random(4, 3, 4, 6, seed=2)
        ),
    )
    other = load_editor(derived(tmp_path / "other", base, attention_backend=backend))
    processors = [
        processor for block in other.transformer.blocks for processor in (block.attn1.processor, block.attn2.processor)
    ]
    assert {processor._attention_backend.value for processor in processors} == {backend}
    assert all(block.attn1.processor._attention_backend is None for block in load_editor(base).transformer.blocks)
    assert _AttentionBackendRegistry.get_active_backend()[0].value == "native"
    torch.testing.assert_close(
        edit(other, frames, memory=memory), edit(load_editor(base), frames, memory=memory), rtol=0, atol=1e-4
    )
    with pytest.raises(ValueError, match="must be one of"):
        load_editor(derived(tmp_path / "wrong", base, attention_backend="flashy"))


def test_instructions_are_counted_by_the_pipelines_own_tokenizer(lucy_pipeline: tuple) -> None:
    preset = resolve_preset(lucy_pipeline[1])
    preset.check_instruction("é" * 255)
    preset.check_instruction("x" * 255 + "   &amp;" * 128)
    with pytest.raises(ValueError, match="has 300 characters, 601 tokens; preset 'small' takes at most 512"):
        preset.check_instruction("é" * 300)


def test_what_a_folder_lacks_is_named(lucy_pipeline: tuple, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(lucy_pipeline[1], folder)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}})
    )
    missing = (
        "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "tokenizer/tokenizer.json",
    )
    with pytest.raises(ValueError, match=re.escape(f"lacks {', '.join(missing)}")):
        resolve_preset(folder)
    shutil.copytree(lucy_pipeline[1], folder, dirs_exist_ok=True)
    (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").unlink()
    for name, content, message in (
        ("preset.json", {"smapler": {}}, "preset.json has smapler; needs some of"),
        ("preset.json", {"precision": "int4"}, "precision is 'int4'"),
        ("preset.json", {"geometry": {"segment_frames": 9, "min_frames": 9, "frame_multiple": 4, "sizes": [[40, 48]]}},
         r"sizes \[\(40, 48\)\] do not fit; need multiples of 16x16"),
        ("preset.json", {"lora": [{"path": "gone.safetensors"}]}, "gone.safetensors: no such file"),
        ("preset.json", {"base": "."}, "base is the preset itself"),
        ("transformer/config.json", {"in_channels": 9, "out_channels": 4}, "takes 9 channels; needs 4"),
    ):  # fmt: skip
        shutil.copytree(lucy_pipeline[1], folder, dirs_exist_ok=True)
        (folder / name).write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            resolve_preset(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "EulerDiscreteScheduler"}, "scheduler is EulerDiscreteScheduler; needs one of"),
        ({"use_flow_sigmas": False}, "is not of a flow"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "stochastic_sampling": True}, "draws noise"),
    ],
)
def test_schedulers_that_would_not_fit_are_refused(
    lucy_pipeline: tuple, tmp_path: Path, changes: dict, message: str
) -> None:
    config = json.loads((lucy_pipeline[1] / "scheduler" / "scheduler_config.json").read_text())
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=message):
        load_scheduler(tmp_path)


def test_shift_stands_instead_of_the_schedulers_own(lucy_pipeline: tuple) -> None:
    folder = lucy_pipeline[1] / "scheduler"
    assert load_scheduler(folder).config.flow_shift == 5.0
    assert load_scheduler(folder, shift=2.0).config.flow_shift == 2.0


def test_published_presets_come_from_the_hubs_cache_or_say_what_to_fetch(
    lucy_pipeline: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    started = time.monotonic()
    for name in (*HUB_PRESETS, *HUB_PRESETS.values()):
        with pytest.raises(
            ValueError, match=r"is not on this machine. It needs model_index.json, transformer/.*`hf download"
        ):
            resolve_preset(name)
    assert time.monotonic() - started < 10
    snapshot = tmp_path / "models--decart-ai--Lucy-Edit-Dev" / "snapshots" / "0123abcd"
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text("0123abcd")
    shutil.copytree(lucy_pipeline[1], snapshot)
    (snapshot / "preset.json").unlink()
    preset = resolve_preset("lucy-edit-5b")
    assert (preset.name, preset.path, preset.precision) == ("lucy-edit-5b", snapshot, "bfloat16")
    assert (480, 832) in preset.geometry.sizes
    assert preset.geometry.segment_frames == 81
    assert resolve_preset("decart-ai/Lucy-Edit-Dev").weights_revision == preset.weights_revision
    (snapshot / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks text_encoder/model.safetensors.*hf download decart-ai"):
        resolve_preset("lucy-edit-5b")


def test_large_weights_are_identified_by_samples_of_every_tensor(tmp_path: Path) -> None:
    big, small = torch.zeros(SAMPLED_BYTES // 4 + 1000), torch.zeros(3, 5)

    def digest(**tensors: Tensor) -> bytes:
        file = tmp_path / "model.safetensors"
        save_file(tensors, file)
        return file_digest.__wrapped__(file, file.stat().st_size, 0)

    variants = ({"big": big + 1, "small": small}, {"big": big, "small": small + 1}, {"big": big, "other": small})
    digests = [digest(big=big, small=small), *(digest(**tensors) for tensors in variants)]
    assert len(set(digests)) == len(digests)
    assert digest(big=big, small=small) == digests[0]
