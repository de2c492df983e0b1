from dataclasses import replace

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from model.memory import KERNELS
from model.transformer import MemoryTransformer3DModel, timestep_runs
from model.types import MemoryBatch
from tests.model.networks import SMALL, random


@pytest.fixture(scope="module")
def pair() -> tuple[WanTransformer3DModel, MemoryTransformer3DModel]:
    """diffusers' network and ours with the same random weights."""
    torch.manual_seed(0)
    theirs = WanTransformer3DModel(patch_size=(1, 2, 2), **SMALL).eval()
    ours = MemoryTransformer3DModel(**SMALL).eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("memory_patch_embedding.") for name in missing)
    return theirs, ours


def inputs(seed: int, *, batch: int = 2, size: tuple[int, int] = (6, 8)) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, 12, 3, *size, generator=generator),
        torch.rand(batch, generator=generator) * 1000,
        torch.randn(batch, 7, 16, generator=generator),
    )


@torch.no_grad()
@pytest.mark.parametrize("size", [(6, 8), (2, 10)])
def test_without_memory_it_is_diffusers_wan(pair: tuple, size: tuple[int, int]) -> None:
    theirs, ours = pair
    latents, timestep, text = inputs(1, size=size)
    torch.testing.assert_close(
        ours(latents, timestep, text).sample, theirs(latents, timestep, text).sample, rtol=0, atol=1e-5
    )


@torch.no_grad()
@pytest.mark.parametrize("kind", ["alike", "first frame clean", "any"])
def test_timesteps_per_token_are_as_in_diffusers(pair: tuple, kind: str) -> None:
    """Wan2.2-5B's interface: alike for every token (LucyEdit), by frames (an image that is given), or anything."""
    theirs, ours = pair
    latents, timestep, text = inputs(11)
    per_token = timestep[:, None].repeat(1, 3 * 3 * 4)
    if kind == "first frame clean":
        per_token[:, : 3 * 4] = 0
    if kind == "any":
        per_token = per_token * torch.rand(per_token.shape).round(decimals=1)
    expected = theirs(latents, per_token, text).sample
    torch.testing.assert_close(ours(latents, per_token, text).sample, expected, rtol=0, atol=1e-5)
    num_runs = {"alike": 1, "first frame clean": 2}.get(kind)
    runs, lengths = timestep_runs(per_token, 36)
    assert sum(lengths) == 36
    assert runs.shape[1] == len(lengths) == (num_runs or len(lengths))
    if kind == "alike":
        assert torch.equal(ours(latents, per_token, text).sample, ours(latents, timestep, text).sample)
    memory = [MemoryBatch(role="previous", kernel=(1, 4, 4), latents=latents)]
    assert (ours(latents, per_token, text, memory=memory).sample - expected).abs().max() > 1e-4
    with pytest.raises(ValueError, match=r"timestep has shape \(2, 35\); needs one per sample, or one for each of 36"):
        ours(latents, per_token[:, 1:], text)


@torch.no_grad()
def test_two_timesteps_in_one_sequence_equal_diffusers_one_timestep_per_token(pair: tuple) -> None:
    """A memory in the base kernel, in the previous segment's range, is what diffusers sees as a video of 2T frames whose
    second half stands at timestep 0."""
    theirs, ours = pair
    target, timestep, text = inputs(2)
    memory, _, _ = inputs(3)
    ours.memory_patch_embedding["1x2x2"].load_state_dict(ours.patch_embedding.state_dict())
    got = ours(target, timestep, text, memory=[MemoryBatch(role="previous", kernel=(1, 2, 2), latents=memory)]).sample
    num_tokens = 3 * 3 * 4
    per_token = torch.cat([timestep[:, None].expand(-1, num_tokens), torch.zeros(2, num_tokens)], dim=1)
    # diffusers numbers the frames of one long video; so are our ranges: the target's 0..T-1, then T..2T-1.
    expected = theirs(torch.cat([target, memory], dim=2), per_token, text).sample[:, :, :3]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_padding_of_texts_changes_nothing(pair: tuple) -> None:
    _, ours = pair
    latents, timestep, text = inputs(4)
    padded = torch.cat([text, torch.full((2, 5, 16), 9.0)], dim=1)
    mask = torch.arange(12)[None].expand(2, -1) < 7
    memory = [MemoryBatch(role="retrieved", kernel=(1, 8, 8), latents=latents)]
    expected = ours(latents, timestep, text, memory=memory).sample
    torch.testing.assert_close(
        ours(latents, timestep, padded, encoder_attention_mask=mask, memory=memory).sample, expected, rtol=0, atol=1e-5
    )


@torch.no_grad()
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_memory_reaches_the_target_and_their_order_does_not_matter(pair: tuple, kernel: tuple) -> None:
    _, ours = pair
    latents, timestep, text = inputs(5, size=(10, 12))
    one, other = (
        MemoryBatch(role="retrieved", kernel=kernel, latents=inputs(seed, size=(10, 12))[0]) for seed in (6, 7)
    )
    alone = ours(latents, timestep, text, memory=[one]).sample
    both = ours(latents, timestep, text, memory=[one, other]).sample
    assert (alone - ours(latents, timestep, text).sample).abs().max() > 1e-4
    assert (both - alone).abs().max() > 1e-4
    torch.testing.assert_close(ours(latents, timestep, text, memory=[other, one]).sample, both, rtol=0, atol=1e-5)


def test_the_role_of_a_memory_is_its_place_in_time(pair: tuple) -> None:
    _, ours = pair
    latents, _, _ = inputs(8)
    group = ours.tokenize(
        latents,
        [
            MemoryBatch(role="retrieved", kernel=(1, 4, 4), latents=latents),
            MemoryBatch(role="previous", kernel=(1, 2, 2), latents=latents),
            MemoryBatch(role="retrieved", kernel=(1, 8, 8), latents=latents),
        ],
        num_range_frames=3,
    )
    times = {}
    for span in group.spans:
        times.setdefault(span.video, []).append(group.positions[0, span.start : span.end, 0].unique().tolist())
    assert times == {
        0: [[0], [1], [2]],
        1: [[6], [7], [8]],
        2: [[3], [4], [5]],
        3: [[6], [7], [8]],
    }
    assert [span.start for span in group.spans[1:]] == [span.end for span in group.spans[:-1]]
    assert group.spans[-1].end == group.num_tokens


def test_reversed_positions_count_from_behind(pair: tuple) -> None:
    """A memory played backwards under reversed positions is the memory: its frames stand where they stood."""
    _, network = pair
    backwards = MemoryTransformer3DModel(**SMALL, memory_positions="reversed").eval()
    backwards.load_state_dict(network.state_dict())
    latents, text = random(1, 12, 3, 6, 8, seed=1), random(1, 5, 16, seed=2)
    item = MemoryBatch(role="previous", kernel=(1, 4, 4), latents=random(1, 12, 3, 6, 8, seed=3))
    flipped = replace(item, latents=item.latents.flip(2))
    timestep = torch.tensor([300.0])
    with torch.no_grad():
        forwards = network(latents, timestep, text, memory=[item]).sample
        same = backwards(latents, timestep, text, memory=[flipped]).sample
        other = backwards(latents, timestep, text, memory=[item]).sample
    torch.testing.assert_close(same, forwards, atol=1e-5, rtol=0)
    assert (other - forwards).abs().max() > 1e-4


def test_in_one_shared_range_a_role_means_nothing(pair: tuple) -> None:
    shared = MemoryTransformer3DModel(**SMALL, memory_positions="shared").eval()
    shared.load_state_dict(pair[1].state_dict())
    latents, text = random(1, 12, 3, 6, 8, seed=1), random(1, 5, 16, seed=2)
    item = MemoryBatch(role="previous", kernel=(1, 4, 4), latents=random(1, 12, 3, 6, 8, seed=3))
    timestep = torch.tensor([300.0])
    with torch.no_grad():
        one, other = (
            shared(latents, timestep, text, memory=[replace(item, role=role)]).sample
            for role in ("previous", "retrieved")
        )
    assert torch.equal(one, other)
    with pytest.raises(ValueError, match="memory_positions is 'mirrored'; needs one of ranges, reversed, shared"):
        MemoryTransformer3DModel(**SMALL, memory_positions="mirrored")


def test_unknown_memory_kernel_is_named(pair: tuple) -> None:
    latents, timestep, text = inputs(9)
    with pytest.raises(ValueError, match="1x3x3; needs one of"):
        pair[1](latents, timestep, text, memory=[MemoryBatch(role="retrieved", kernel=(1, 3, 3), latents=latents)])


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(1)
    model = MemoryTransformer3DModel(**SMALL)
    latents, timestep, text = inputs(10)
    memory = [MemoryBatch(role="retrieved", kernel=kernel, latents=latents) for kernel in KERNELS]
    model(latents, timestep, text, memory=memory).sample.square().mean().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert not silent, silent
    assert isinstance(model.memory_patch_embedding["1x4x4"], nn.Conv3d)
