"""Isolated memory: computed once equals computed at every step under the mask that says what "isolated" means."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import Tensor

from model.attention import project, rotate
from model.memory import MemoryPositions, temporal_start
from model.patchify import concatenate, patchify, unpatchify
from model.rope import rotary_embedding
from model.transformer import MemoryTransformer3DModel
from model.types import EncodedMemory, MemoryBatch
from tests.model.networks import SMALL, random


@pytest.fixture(scope="module")
def network() -> MemoryTransformer3DModel:
    torch.manual_seed(0)
    return MemoryTransformer3DModel(**SMALL, memory_attention="isolated").eval()


def memories(batch: int = 2) -> list[MemoryBatch]:
    """All kernels, of which the coarser two do not divide 6 x 10: their grids are padded."""
    return [
        MemoryBatch(role="previous", kernel=(1, 2, 2), latents=random(batch, 12, 3, 6, 10, seed=10)),
        MemoryBatch(role="retrieved", kernel=(1, 4, 4), latents=random(batch, 12, 3, 6, 10, seed=11)),
        MemoryBatch(role="retrieved", kernel=(1, 8, 8), latents=random(batch, 12, 3, 6, 10, seed=12)),
    ]


def masked_forward(
    network: MemoryTransformer3DModel, latents: Tensor, timestep: Tensor, text: Tensor, memory: list[MemoryBatch],
    *, sees_target: bool = False,
) -> Tensor:  # fmt: skip
    """The definition: all tokens in one sequence through every block, at every step, and a mask. A target token sees all; a
    memory token sees its own video, reads no text and stands at timestep 0."""
    groups = [patchify(latents, network.patch_embedding, base=(1, 2, 2), start=0, video=0)]
    for video, item in enumerate(memory, start=1):
        start = temporal_start(item.role, latents.shape[2], positions=network.config.memory_positions)
        groups.append(network.patchify_memory(item, start=start, video=video))
    group = concatenate(groups)
    video = torch.cat([torch.full((span.end - span.start,), span.video) for span in group.spans])
    is_target = video == 0
    mask = (video[:, None] == video[None, :]) | is_target[:, None]
    if sees_target:
        mask[-1, 0] = True
    rotary_emb = rotary_embedding(group.positions, network.config.attention_head_dim)
    temb, at_t, text, _ = network.condition_embedder(timestep, text)
    _, at_0, _, _ = network.condition_embedder(torch.zeros_like(timestep), torch.zeros(len(timestep), 1, 16))
    per_token = torch.where(is_target[None, :, None, None], *(m.unflatten(1, (6, -1))[:, None] for m in (at_t, at_0)))
    x = group.tokens
    for block in network.blocks:
        shift, scale, gate, c_shift, c_scale, c_gate = (block.scale_shift_table[None] + per_token).unbind(2)
        query, key, value = project(block.attn1, block.norm1(x) * (1 + scale) + shift)
        q, k, v = (part.transpose(1, 2) for part in (rotate(query, rotary_emb), rotate(key, rotary_emb), value))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = x + block.attn1.to_out[0](attended) * gate
        x = x + torch.where(is_target[None, :, None], block.attn2(block.norm2(x), text, None, None), 0.0)
        x = x + block.ffn(block.norm3(x) * (1 + c_scale) + c_shift) * c_gate
    x = x[:, is_target]
    shift, scale = (network.scale_shift_table + temb[:, None]).chunk(2, dim=1)
    x = network.norm_out(x) * (1 + scale) + shift
    return unpatchify(network.proj_out(x), latents.shape[2:], (1, 2, 2))


@torch.no_grad()
@pytest.mark.parametrize("positions", get_args(MemoryPositions))
def test_encoded_once_equals_recomputed_at_each_of_ten_steps(network: MemoryTransformer3DModel, positions: str) -> None:
    weights = network.state_dict()
    network = MemoryTransformer3DModel(**SMALL, memory_attention="isolated", memory_positions=positions).eval()
    network.load_state_dict(weights)
    memory, text = memories(), random(2, 7, 16, seed=1)
    encoded = [network.encode_memory(item) for item in memory]
    for step in range(10):
        latents = random(2, 12, 3, 6, 10, seed=100 + step)
        timestep = torch.tensor([1000.0, 950.0]) - 90 * step
        wanted = masked_forward(network, latents, timestep, text, memory)
        torch.testing.assert_close(network(latents, timestep, text, memory=memory).sample, wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(network(latents, timestep, text, memory=encoded).sample, wanted, rtol=0, atol=1e-5)
        leaky = masked_forward(network, latents, timestep, text, memory, sees_target=True)
        assert (leaky - wanted).abs().max() > 1e-4, "this test would not notice a memory token that sees a target token"


@torch.no_grad()
def test_an_encoded_memory_depends_on_nothing_but_itself(network: MemoryTransformer3DModel) -> None:
    """One place for one memory: batch neighbours, order and role change nothing."""
    first, second, _ = memories()
    alone = network.encode_memory(replace(first, latents=first.latents[:1]))
    for got, wanted in zip(
        alone.keys + alone.values, (lambda e: e.keys + e.values)(network.encode_memory(first)), strict=True
    ):
        torch.testing.assert_close(got, wanted[:1], rtol=0, atol=1e-6)
    latents, timestep, text = random(2, 12, 3, 6, 10, seed=2), torch.tensor([900.0, 300.0]), random(2, 7, 16, seed=3)
    encoded = [network.encode_memory(item) for item in (first, second)]
    swapped = network(latents, timestep, text, memory=encoded[::-1]).sample
    torch.testing.assert_close(swapped, network(latents, timestep, text, memory=encoded).sample, rtol=0, atol=1e-5)
    moved = [replace(encoded[0], role="retrieved"), encoded[1]]
    wanted = masked_forward(network, latents, timestep, text, [replace(first, role="retrieved"), second])
    torch.testing.assert_close(network(latents, timestep, text, memory=moved).sample, wanted, rtol=0, atol=1e-5)
    assert (wanted - swapped).abs().max() > 1e-4, "the role must matter"


@torch.no_grad()
def test_without_memory_it_is_diffusers_wan(network: MemoryTransformer3DModel) -> None:
    theirs = WanTransformer3DModel(patch_size=(1, 2, 2), **SMALL).eval()
    theirs.load_state_dict({name: value for name, value in network.state_dict().items() if "memory" not in name})
    latents, timestep, text = random(2, 12, 3, 6, 10, seed=4), torch.tensor([900.0, 300.0]), random(2, 7, 16, seed=5)
    torch.testing.assert_close(
        network(latents, timestep, text).sample, theirs(latents, timestep, text).sample, rtol=0, atol=1e-5
    )


def test_gradients_reach_the_memory_also_through_checkpoints(network: MemoryTransformer3DModel) -> None:
    latents, timestep, text = random(1, 12, 3, 6, 10, seed=6), torch.tensor([500.0]), random(1, 7, 16, seed=7)

    def gradients() -> dict[str, Tensor]:
        network.zero_grad()
        network(latents, timestep, text, memory=memories(1)).sample.square().mean().backward()
        return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}

    plain = gradients()
    network.train().enable_gradient_checkpointing()
    again = gradients()
    network.eval().disable_gradient_checkpointing()
    assert plain.keys() == again.keys()
    assert any(name.startswith("memory_patch_embedding.1x8x8") for name in plain)
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, rtol=1e-4, atol=1e-7)


@torch.no_grad()
def test_wrong_uses_are_refused(network: MemoryTransformer3DModel) -> None:
    with pytest.raises(ValueError, match="memory_attention is 'both'; needs one of joint, isolated"):
        MemoryTransformer3DModel(**SMALL, memory_attention="both")
    encoded = network.encode_memory(memories()[0])
    assert isinstance(encoded, EncodedMemory)
    assert encoded.num_bytes == 2 * 3 * 2 * (3 * 3 * 5) * 64 * 4
    joint = MemoryTransformer3DModel(**SMALL)
    with pytest.raises(ValueError, match="memory is encoded"):
        joint(random(2, 12, 3, 6, 10, seed=0), torch.zeros(2), random(2, 7, 16, seed=0), memory=[encoded])
