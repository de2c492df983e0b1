"""Adaptive token merging: which frames, what becomes of their tokens and positions, and what the network makes of it."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model.merging import FrameCompressor, Merging, responsiveness, thin
from model.patchify import FrameSpan, TokenGroup, concatenate, grid_positions
from model.transformer import MemoryTransformer3DModel, merging_blocks
from model.types import MemoryBatch
from tests.model.networks import SMALL, random


def video(number: int, grid: tuple[int, int], *, frames: int, batch: int = 2, width: int = 4) -> TokenGroup:
    size = grid[0] * grid[1]
    return TokenGroup(
        tokens=random(batch, frames * size, width, seed=number),
        positions=grid_positions((frames, *grid), (1, 2, 2), (1, 2, 2), start=3 * number)[None],
        spans=tuple(
            FrameSpan(start=i * size, end=(i + 1) * size, video=number, frame=i, grid=grid) for i in range(frames)
        ),
    )


def test_responsiveness_is_its_definition() -> None:
    query, key = random(2, 5, 3, 8, seed=0), random(2, 12, 3, 8, seed=1)
    frames = [(0, 2), (2, 6), (6, 12)]
    got = responsiveness(query, key, frames)
    for sample in range(2):
        heads = []
        for head in range(3):
            best = [0.0] * 3
            for token in range(5):
                logits = [
                    float(query[sample, token, head] @ key[sample, a:b, head].mean(0)) / math.sqrt(8) for a, b in frames
                ]
                total = sum(math.exp(value) for value in logits)
                best = [max(old, math.exp(value) / total) for old, value in zip(best, logits, strict=True)]
            heads.append(best)
        torch.testing.assert_close(got[sample], torch.tensor(heads).mean(0))


def test_a_frame_that_nobody_asks_for_responds_least() -> None:
    query = torch.zeros(1, 2, 1, 4)
    query[0, 0, 0, 0] = query[0, 1, 0, 1] = 8.0
    key = torch.eye(4)[None, :, None]
    scores = responsiveness(query, key, [(0, 1), (1, 2), (2, 3)])
    assert scores[0, 2] < 0.02
    assert min(scores[0, :2]) > 0.9


@pytest.mark.parametrize("mode", ["merge-low", "merge-high", "discard-low", "discard-high"])
@torch.no_grad()
def test_every_sample_thins_its_own_frames_and_shapes_are_fixed(mode: str) -> None:
    group = concatenate([video(0, (2, 2), frames=2), video(1, (4, 6), frames=4), video(2, (3, 1), frames=2)])
    scores = torch.tensor([[0.1, 0.9, 0.2, 0.8, 0.5, 0.4], [0.9, 0.1, 0.8, 0.2, 0.4, 0.5]])
    thinned = thin(group, scores, Merging(share=0.5, mode=mode), FrameCompressor(4))
    is_low, is_merged = mode.endswith("low"), mode.startswith("merge")
    sizes = [span.end - span.start for span in thinned.spans]
    assert sizes == ([4, 4, 24, 24, 6, 6, 3, 2] if is_merged else [4, 4, 24, 24, 3])
    assert thinned.num_tokens == sum(sizes) == thinned.positions.shape[1]
    assert torch.equal(thinned.tokens[:, :8], group.tokens[:, :8])
    fine, coarse = group.tokens[:, 8:104].view(2, 4, 24, 4), group.tokens[:, 104:].view(2, 2, 3, 4)
    places = group.positions[0, 8:104].view(4, 24, 3)
    for sample, (low, high) in enumerate((([0, 2], [1, 3]), ([1, 3], [0, 2]))):
        chosen, kept = (low, high) if is_low else (high, low)
        assert torch.equal(thinned.tokens[sample, 8:56], fine[sample, kept].flatten(0, 1))
        assert torch.equal(thinned.positions[sample, 8:56], places[kept].flatten(0, 1))
        if is_merged:
            means = fine[sample, chosen].view(2, 2, 2, 3, 2, 4).mean((2, 4)).reshape(12, 4)
            torch.testing.assert_close(thinned.tokens[sample, 56:68], means)
            where = places[chosen].view(2, 2, 2, 3, 2, 3).mean((2, 4)).reshape(12, 3)
            torch.testing.assert_close(thinned.positions[sample, 56:68], where)
            # Three rows of one: the last row is merged with itself.
            last = coarse[sample, {(0, True): 1, (0, False): 0, (1, True): 0, (1, False): 1}[sample, is_low]]
            torch.testing.assert_close(thinned.tokens[sample, 71:], torch.stack([last[:2].mean(0), last[2]]))


@pytest.fixture(scope="module")
def network() -> MemoryTransformer3DModel:
    torch.manual_seed(0)
    return MemoryTransformer3DModel(**SMALL, merging_blocks=(1, 2)).eval()


def inputs(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    return random(batch, 12, 3, 6, 10, seed=2), torch.tensor([900.0, 300.0])[:batch], random(batch, 7, 16, seed=3)


def memories(batch: int = 2) -> list[MemoryBatch]:
    return [
        MemoryBatch(role="previous", kernel=(1, 2, 2), latents=random(batch, 12, 3, 6, 10, seed=10)),
        MemoryBatch(role="retrieved", kernel=(1, 4, 4), latents=random(batch, 12, 3, 6, 10, seed=11)),
    ]


@torch.no_grad()
def test_merging_nothing_changes_nothing_and_merging_changes_something(network: MemoryTransformer3DModel) -> None:
    plain = network(*inputs(), memory=memories()).sample
    none = network(*inputs(), memory=memories(), merging=Merging(share=0.0)).sample
    torch.testing.assert_close(none, plain, rtol=0, atol=1e-6)
    results = [
        network(*inputs(), memory=memories(), merging=Merging(share=0.67, mode=mode)).sample
        for mode in ("merge-low", "merge-high", "discard-low", "discard-high")
    ]
    for number, result in enumerate([plain, *results]):
        for other in results[number:]:
            assert (result - other).abs().max() > 1e-4


@torch.no_grad()
def test_samples_do_not_mix_and_the_order_of_memories_does_not_matter(network: MemoryTransformer3DModel) -> None:
    merging = Merging(share=0.5)
    both = network(*inputs(), memory=memories(), merging=merging).sample
    first = network(
        *(x[:1] for x in inputs()),
        memory=[MemoryBatch(role=m.role, kernel=m.kernel, latents=m.latents[:1]) for m in memories()],
        merging=merging,
    ).sample
    torch.testing.assert_close(both[:1], first, rtol=0, atol=1e-5)
    swapped = network(*inputs(), memory=memories()[::-1], merging=merging).sample
    torch.testing.assert_close(swapped, both, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_target_at_several_timesteps_merges_as_at_one(network: MemoryTransformer3DModel) -> None:
    latents, timestep, text = inputs()
    per_token = timestep[:, None].repeat(1, 3 * 3 * 5)
    per_token[:, 15:] += 1e-3
    merging = Merging(share=0.67)
    got = network(latents, per_token, text, memory=memories(), merging=merging).sample
    expected = network(latents, timestep, text, memory=memories(), merging=merging).sample
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_discarding_all_before_the_first_block_is_having_no_memory() -> None:
    torch.manual_seed(0)
    network = MemoryTransformer3DModel(**SMALL, merging_blocks=(0,)).eval()
    gone = network(*inputs(), memory=memories(), merging=Merging(share=1.0, mode="discard-low")).sample
    torch.testing.assert_close(gone, network(*inputs()).sample, rtol=0, atol=1e-5)


def test_the_compressors_learn_and_the_memory_behind_them(network: MemoryTransformer3DModel) -> None:
    network.zero_grad()
    network(*inputs(), memory=memories(), merging=Merging(share=0.67)).sample.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    for name in (
        "memory_compressors.1.conv.weight",
        "memory_compressors.2.conv.bias",
        "memory_patch_embedding.1x4x4.weight",
    ):
        gradient = gradients[name]
        assert gradient is not None
        assert gradient.abs().max() > 0


def test_merging_saves_what_its_tokens_cost(network: MemoryTransformer3DModel) -> None:
    def flops(share: float) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(*inputs(), memory=memories(), merging=Merging(share=share))
        return counter.get_total_flops()

    assert flops(1.0) < flops(0.67) < flops(0.34) < flops(0.0)


def test_the_papers_blocks_and_wrong_uses() -> None:
    assert merging_blocks(30) == (10, 20)
    assert merging_blocks(6) == (2, 4)
    with pytest.raises(ValueError, match=r"share is 1\.5; needs 0 to 1"):
        Merging(share=1.5)
    with pytest.raises(ValueError, match="mode is 'drop'; needs one of merge-low"):
        Merging(share=0.5, mode="drop")
    with pytest.raises(ValueError, match="isolated memory is computed once"):
        MemoryTransformer3DModel(**SMALL, merging_blocks=(1,), memory_attention="isolated")
    with pytest.raises(ValueError, match="needs 0 to 2"):
        MemoryTransformer3DModel(**SMALL, merging_blocks=(3,))
    with pytest.raises(ValueError, match="this network has no merging_blocks"):
        MemoryTransformer3DModel(**SMALL)(*inputs(), memory=memories(), merging=Merging(share=0.5))
