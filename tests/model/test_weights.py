"""Checkpoints into our network: diffusers' folders whole and in shards, the original names, LoRA files; and what loading takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.original_keys import RENAMES
from model.presets import LoRA
from model.transformer import MemoryTransformer3DModel
from model.types import MemoryBatch
from model.weights import load_codec, load_transformer
from tests.model.networks import SMALL, random


def wan(**changes: object) -> WanTransformer3DModel:
    torch.manual_seed(0)
    return WanTransformer3DModel(patch_size=(1, 2, 2), **SMALL | changes)


def outputs(network: torch.nn.Module, *, channels: int, dtype: torch.dtype = torch.float32, **memory: object) -> Tensor:
    latents, text = random(1, channels, 3, 6, 8, seed=1).to(dtype), random(1, 7, 16, seed=2).to(dtype)
    with torch.no_grad():
        return network(latents, torch.tensor([700.0]), text, **memory).sample


@pytest.mark.parametrize("in_channels", [6, 12])
def test_any_wan_folder_loads_whole(tmp_path: Path, in_channels: int) -> None:
    """Text to video (in = out) and editing (in = 2 out); every key is used, and memory starts from the base."""
    theirs = wan(in_channels=in_channels).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ours = MemoryTransformer3DModel.from_pretrained(tmp_path)
    state = ours.state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(state.pop(name), tensor), name
    assert all(name.startswith("memory_patch_embedding.") for name in state)
    assert not any(parameter.is_meta for parameter in ours.parameters())
    base = ours.patch_embedding.weight
    assert torch.equal(ours.memory_patch_embedding["1x2x2"].weight, base)
    torch.testing.assert_close(ours.memory_patch_embedding["1x8x8"].weight[..., 2:4, 4:6], base / 16)
    torch.testing.assert_close(
        outputs(ours, channels=in_channels), outputs(theirs, channels=in_channels), rtol=0, atol=1e-5
    )


def test_islands_stay_in_float32(tmp_path: Path) -> None:
    wan().save_pretrained(tmp_path)
    ours = MemoryTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    kept = {name for name, parameter in ours.named_parameters() if parameter.dtype == torch.float32}
    assert kept == {
        name for name in ours.state_dict() if any(p in name for p in ("time_embedder", "scale_shift", "norm2"))
    }
    assert ours.dtype == torch.bfloat16
    memory = [MemoryBatch(role="previous", kernel=(1, 4, 4), latents=random(1, 12, 3, 6, 8, seed=3).bfloat16())]
    got = outputs(ours, channels=12, dtype=torch.bfloat16, memory=memory)
    assert got.dtype == torch.bfloat16
    plain = outputs(
        MemoryTransformer3DModel.from_pretrained(tmp_path), channels=12, memory=[as_float(m) for m in memory]
    )
    torch.testing.assert_close(got.float(), plain, rtol=0, atol=0.05)


def as_float(item: MemoryBatch) -> MemoryBatch:
    return MemoryBatch(role=item.role, kernel=item.kernel, latents=item.latents.float())


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    wan().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(file)

    def problem(changed: dict[str, Tensor]) -> str:
        save_file(changed, file)
        with pytest.raises(ValueError, match="weights in ") as error:
            load_transformer(tmp_path)
        return str(error.value)

    assert "missing ['proj_out.bias'], unknown []" in problem({k: v for k, v in state.items() if k != "proj_out.bias"})
    assert "unknown ['blocks.0.cam_encoder.weight']" in problem(state | {"blocks.0.cam_encoder.weight": torch.zeros(2)})
    assert "proj_out.bias is (3,); needs (24,)" in problem(state | {"proj_out.bias": torch.zeros(3)})
    half = {"memory_patch_embedding.1x2x2.bias": torch.zeros(64)}
    assert "have ['memory_patch_embedding.1x2x2.bias'] only" in problem(state | half)
    file.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="cannot be read"):
        load_transformer(tmp_path)
    with pytest.raises(ValueError, match="cannot be read"):
        load_codec(Path(__file__).parent / "weights")


def test_merging_starts_from_means_on_a_base_without_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ours = MemoryTransformer3DModel(**SMALL)
    ours.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"merging_blocks": [1, 2]}))
    loaded = load_transformer(tmp_path)
    assert bool((loaded.memory_compressors["2"].conv.weight == 0.25).all())
    assert not loaded.memory_compressors["1"].conv.bias.any()


ORIGINAL_NAMES = {
    "time_embedding.0.": "condition_embedder.time_embedder.linear_1.",
    "time_embedding.2.": "condition_embedder.time_embedder.linear_2.",
    "text_embedding.0.": "condition_embedder.text_embedder.linear_1.",
    "text_embedding.2.": "condition_embedder.text_embedder.linear_2.",
    "time_projection.1.": "condition_embedder.time_proj.",
    "img_emb.proj.0.": "condition_embedder.image_embedder.norm1.",
    "img_emb.proj.1.": "condition_embedder.image_embedder.ff.net.0.proj.",
    "img_emb.proj.3.": "condition_embedder.image_embedder.ff.net.2.",
    "img_emb.proj.4.": "condition_embedder.image_embedder.norm2.",
    "self_attn.q.": "attn1.to_q.",
    "self_attn.k.": "attn1.to_k.",
    "self_attn.v.": "attn1.to_v.",
    "self_attn.o.": "attn1.to_out.0.",
    "self_attn.norm": "attn1.norm",
    "cross_attn.q.": "attn2.to_q.",
    "cross_attn.k.": "attn2.to_k.",
    "cross_attn.v.": "attn2.to_v.",
    "cross_attn.o.": "attn2.to_out.0.",
    "cross_attn.k_img.": "attn2.add_k_proj.",
    "cross_attn.v_img.": "attn2.add_v_proj.",
    "cross_attn.norm_k_img.": "attn2.norm_added_k.",
    "cross_attn.norm": "attn2.norm",
    "ffn.0.": "ffn.net.0.proj.",
    "ffn.2.": "ffn.net.2.",
    "norm3.": "norm2.",
    "head.head.": "proj_out.",
}


def original_name(name: str) -> str:
    """diffusers' name of a parameter to Wan's, by a table of the test's own."""
    for original, theirs in ORIGINAL_NAMES.items():
        if theirs in name:
            return name.replace(theirs, original)
    if name == "scale_shift_table":
        return "head.modulation"
    return name.replace("scale_shift_table", "modulation")


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_original_names_load_like_diffusers_converter(tmp_path: Path, suffix: str) -> None:
    theirs = wan(attention_head_dim=128, image_dim=20, added_kv_proj_dim=256).eval()
    # Only used where an image is seen, and not in the original.
    state = {name: tensor for name, tensor in theirs.state_dict().items() if "norm_added_q" not in name}
    original = {original_name(name): tensor for name, tensor in state.items()}
    assert not set(original) & {name for name in state if not name.startswith("patch_embedding")}
    converted = convert_wan_transformer_to_diffusers(dict(original))
    assert set(converted) == set(state)
    file = tmp_path / f"step{suffix}"
    prefixed = {f"model.diffusion_model.{name}": tensor for name, tensor in original.items()}
    save_file(prefixed, file) if suffix == ".safetensors" else torch.save({"state_dict": original}, file)
    loaded = load_transformer(file)
    for name, tensor in converted.items():
        assert torch.equal(loaded.get_parameter(name), tensor), name
    for name in (
        "num_layers",
        "ffn_dim",
        "text_dim",
        "in_channels",
        "out_channels",
        "num_attention_heads",
        "image_dim",
    ):
        assert loaded.config[name] == theirs.config[name], name
    assert len({pattern.pattern for pattern, _ in RENAMES}) == len(RENAMES)


@pytest.mark.parametrize("layout", ["diffusers", "peft", "original"])
def test_lora_is_merged(tmp_path: Path, layout: str) -> None:
    """W + scale * alpha / rank * B A, whatever the names; alpha from the header, from tensors, or equal to the rank."""
    wan().save_pretrained(tmp_path)
    plain = load_transformer(tmp_path)
    rank, alpha, scale = 2, (4.0 if layout != "peft" else 2.0), 0.5
    modules = (
        "blocks.0.attn1.to_q",
        "blocks.1.attn2.to_out.0",
        "blocks.2.ffn.net.0.proj",
        "condition_embedder.time_proj",
    )
    factors = {}
    for seed, module in enumerate(modules):
        rows, columns = plain.get_parameter(f"{module}.weight").shape
        factors[module] = (random(rank, columns, seed=seed), random(rows, rank, seed=seed + 10))
    tensors: dict[str, Tensor] = {}
    metadata = {}
    for module, (down, up) in factors.items():
        if layout == "original":
            name = "diffusion_model." + original_name(module + ".").removesuffix(".")
            tensors |= {
                f"{name}.lora_down.weight": down,
                f"{name}.lora_up.weight": up,
                f"{name}.alpha": torch.tensor(alpha),
            }
        else:
            prefix = "transformer." if layout == "diffusers" else "base_model.model."
            tensors |= {f"{prefix}{module}.lora_A.weight": down, f"{prefix}{module}.lora_B.weight": up}
    if layout == "original":
        tensors["diffusion_model.head.head.diff_b"] = torch.ones(24)
    if layout == "diffusers":
        metadata["lora_adapter_metadata"] = json.dumps({"transformer.r": rank, "transformer.lora_alpha": alpha})
        tensors["transformer_2.blocks.0.attn1.to_q.lora_A.weight"] = torch.ones(2, 64)
    file = tmp_path / "style.safetensors"
    save_file(tensors, file, metadata=metadata)
    merged = load_transformer(tmp_path, lora=[LoRA(path=file, scale=scale)])
    for name, weight in merged.named_parameters():
        expected = plain.get_parameter(name)
        module = name.removesuffix(".weight")
        if module in factors and name.endswith(".weight"):
            down, up = factors[module]
            expected = expected + scale * alpha / rank * up @ down
        if name == "proj_out.bias" and layout == "original":
            expected = expected + scale
        torch.testing.assert_close(weight, expected, msg=name)


def test_lora_that_does_not_fit_is_named(tmp_path: Path) -> None:
    wan().save_pretrained(tmp_path)
    file = tmp_path / "style.safetensors"

    def problem(tensors: dict[str, Tensor], **metadata: str) -> str:
        save_file(tensors, file, metadata=metadata)
        with pytest.raises(ValueError, match="LoRA ") as error:
            load_transformer(tmp_path, lora=[LoRA(path=file)])
        return str(error.value)

    pair = {"lora_A.weight": torch.ones(2, 64), "lora_B.weight": torch.ones(64, 2)}
    assert "1 unknown parameters" in problem({f"blocks.7.attn1.to_q.{part}": t for part, t in pair.items()})
    assert "one factor only" in problem({"blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, 64)})
    assert "has blocks.0.attn1.to_q.hada" in problem({"blocks.0.attn1.to_q.hada": torch.ones(2, 64)})
    fits = {f"blocks.0.attn1.to_q.{part}": t for part, t in pair.items()}
    assert "use_dora" in problem(fits, lora_adapter_metadata=json.dumps({"transformer.use_dora": True}))
    file.write_text("nonsense")
    with pytest.raises(ValueError, match="cannot be read"):
        load_transformer(tmp_path, lora=[LoRA(path=file)])


PEAK = """
import sys, torch
from pathlib import Path
from model.weights import load_transformer
def resident(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
for dtype in (torch.bfloat16, torch.float32):
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    network = load_transformer(Path(sys.argv[1]), dtype=dtype)
    total = sum(float(parameter.detach().sum()) for parameter in network.parameters())
    print(resident("VmHWM") - before, sum(parameter.nbytes for parameter in network.parameters()), total)
    del network
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_holds_hardly_more_than_the_weights(tmp_path: Path) -> None:
    """130 MB in four shards of bfloat16: as they are, and cast (where a shard's mapped pages would count)."""
    config = SMALL | {"num_attention_heads": 8, "attention_head_dim": 96, "ffn_dim": 3072, "num_layers": 7}
    wan(**config).to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="40MB")
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) > 3
    assert sum(file.stat().st_size for file in files) > 120_000_000
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, timeout=280, check=True
    )
    as_stored, cast = (tuple(map(float, line.split())) for line in done.stdout.splitlines())
    assert cast[1] > 1.9 * as_stored[1]
    for peak, num_bytes, total in (as_stored, cast):
        assert total != 0
        assert peak < 1.2 * num_bytes, (peak, num_bytes)
