from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from model.codec import COLOUR_MAPS, PatchCodec
from model.colour import MEMORIES, NO_CHANGE, OWN, ColourHead, map_each, mix_maps
from model.common_colour import DOUBT_OF_HUE, DOUBT_OF_LIGHTNESS
from model.memory import KERNELS, Kernel, MemoryAttention
from model.merging import Merging
from model.training.codec_fit import fit_codec
from model.training.config import Trained, TrainingConfig
from model.training.start import make_editing, starting_point
from model.transformer import MemoryTransformer3DModel
from model.types import MemoryBatch
from model.weights import load_transformer
from tests.model.networks import SMALL, random
from tests.presets import write_random_preset


def fitted() -> PatchCodec:
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand(40, 3, 1, 1, 1, generator=generator)
    return fit_codec([(colour + 0.2 * torch.rand(3, 9, 16, 16, generator=generator)).clamp(0, 1) for colour in colours])


def test_the_codecs_colour_maps_are_what_mixing_colours_does_to_what_it_holds() -> None:
    """Scaled and mixed pixels of a decoded latent, encoded again, are the maps' sum with the mixture as gains."""
    codec = fitted()
    latent = torch.randn(1, 48, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    added = torch.tensor([[-0.5, 0.2, 0.0], [0.0, 0.3, 0.1], [0.4, 0.0, -0.2]])
    video = codec.decode(latent)
    mixed = video + torch.einsum("ij,bjthw->bithw", added, video)
    wanted = codec.encode(mixed) - codec.encode(video)
    gains = added.reshape(1, COLOUR_MAPS, 1, 1, 1).expand(1, COLOUR_MAPS, 3, 4, 4)
    first, group = codec.colour_maps()
    assert torch.allclose(
        mix_maps(map_each(first[None], latent[:, :, :1]), gains[:, :, :1]), wanted[:, :, :1], atol=1e-3
    )
    assert torch.allclose(
        mix_maps(map_each(group[None], latent[:, :, 1:]), gains[:, :, 1:]), wanted[:, :, 1:], atol=1e-3
    )


def test_the_head_starts_silent_and_knows_first_frames_from_groups() -> None:
    head = ColourHead(8, 48, (1, 2, 2))
    head.set_maps(fitted())
    tokens, source = torch.randn(2, 8, 8), torch.randn(2, 48, 2, 4, 4)
    assert not head(torch.zeros_like(source), tokens, source, None, **clean(source)).sample.any()
    torch.nn.init.normal_(head.gains.weight)
    whole, inner, mixed = (
        head(torch.zeros_like(source), tokens, source, begins, **clean(source)).sample
        for begins in (None, torch.tensor([False, False]), torch.tensor([True, False]))
    )
    assert torch.equal(
        whole, head(torch.zeros_like(source), tokens, source, torch.tensor([True, True]), **clean(source)).sample
    )
    assert torch.equal(whole[:, :, 1:], inner[:, :, 1:])
    assert not torch.allclose(whole[:, :, 0], inner[:, :, 0])
    assert torch.equal(mixed[0], whole[0])
    assert torch.equal(mixed[1], inner[1])


def clean(latents: torch.Tensor) -> dict[str, torch.Tensor]:
    """What is denoised, where its noise says nothing."""
    return {"noisy": torch.zeros_like(latents), "sigma": torch.ones(1, 1, 1, 1, 1)}


def believe(head: ColourHead, expert: int) -> None:
    """Whatever is found."""
    head.choice.bias.data = torch.zeros(4, 3).index_fill_(1, torch.tensor([expert]), 200.0).flatten()


def flat(colour: list[float] | torch.Tensor, codec: PatchCodec) -> torch.Tensor:
    """Latents of 5 frames of one colour."""
    return codec.encode(torch.as_tensor(colour).view(1, 3, 1, 1, 1).expand(1, 3, 5, 16, 16))


def test_the_mean_colour_of_a_latent_is_the_same_functional_in_first_frames_and_groups() -> None:
    codec = fitted()
    latents = torch.randn(1, 48, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    means = F.avg_pool2d(codec.decode(latents)[0].transpose(0, 1), 4)
    functional = codec.mean_colour()
    found = torch.einsum("kc,cthw->tkhw", functional[:, :-1], latents[0]) + functional[:, -1, None, None]
    torch.testing.assert_close(found[0], means[0], rtol=0, atol=1e-2)
    for group in (0, 1):
        frames = means[1 + group * codec.group_frames :][: codec.group_frames]
        torch.testing.assert_close(found[1 + group], frames.mean(0), rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kernel", KERNELS)
def test_what_a_memory_shows_is_done_again_to_a_colour_that_is_lit_otherwise(kernel: Kernel) -> None:
    codec, head = fitted(), ColourHead(8, 48, (1, 2, 2))
    head.set_maps(codec)
    source, edited = [0.8, 0.2, 0.1], [0.9, 0.5, 0.7]
    memory = MemoryBatch(
        role="retrieved", kernel=kernel, latents=torch.cat([flat(edited, codec), flat(source, codec)], dim=1)
    )
    target = flat([0.5 * part for part in source], codec)
    tokens = torch.randn(1, target.shape[2] * 4, 8)
    shown = head.show(memory)
    believe(head, MEMORIES)
    found = codec.decode(
        target + head(torch.randn_like(target), tokens, target, None, shown, **clean(target)).sample
    ).mean((0, 2, 3, 4))
    torch.testing.assert_close(found, 0.5 * torch.tensor(edited), rtol=0, atol=0.01)
    believe(head, NO_CHANGE)
    assert head(torch.zeros_like(target), tokens, target, None, shown, **clean(target)).sample.abs().max() < 1e-6


@torch.no_grad()
def test_a_target_finds_the_patches_that_are_like_it_and_were_changed() -> None:
    codec, head = fitted(), ColourHead(8, 48, (1, 2, 2))
    head.set_maps(codec)
    believe(head, MEMORIES)
    before, after = ([0.7, 0.3, 0.2], [0.2, 0.3, 0.7]), ([0.9, 0.1, 0.6], [0.1, 0.8, 0.9])
    pairs = [*zip(after, before, strict=True), (before[0], before[0])]
    items = [
        MemoryBatch(role="retrieved", kernel=(1, 8, 8), latents=torch.cat([flat(part, codec) for part in pair], dim=1))
        for pair in pairs
    ]
    shown = torch.cat([head.show(item) for item in items], dim=1)
    for colour, wanted in zip(before, after, strict=True):
        source = flat([part + 0.02 for part in colour], codec)
        found = codec.decode(
            source + head(torch.randn_like(source), torch.randn(1, 12, 8), source, None, shown, **clean(source)).sample
        ).mean((0, 2, 3, 4))
        torch.testing.assert_close(found, torch.tensor(wanted), rtol=0, atol=0.08)


def test_the_judge_sees_the_changes_and_teaches_them_nothing() -> None:
    torch.manual_seed(0)
    codec, head = fitted(), ColourHead(8, 48, (1, 2, 2))
    head.set_maps(codec)
    target = flat([0.5, 0.2, 0.1], codec)
    pair = torch.cat([flat([0.1, 0.5, 0.7], codec), target], dim=1)
    shown = head.show(MemoryBatch(role="retrieved", kernel=(1, 2, 2), latents=pair))
    inputs = torch.zeros_like(target), torch.randn(1, target.shape[2] * 4, 8), target, None, shown
    before = head(*inputs, **clean(target)).logits
    for layer in (head.judge[0], head.judge[2]):
        torch.nn.init.normal_(layer.weight)
    logits = head(*inputs, **clean(target)).logits
    assert (logits - before).abs().max() > 0.1
    assert not torch.allclose(head(inputs[0] + 0.5, *inputs[1:], **clean(target)).logits, logits)
    logits.square().sum().backward()
    assert head.gains.weight.grad is None or not head.gains.weight.grad.any()
    assert head.judge[0].weight.grad.any()
    assert head.choice.weight.grad.any()


@torch.no_grad()
@pytest.mark.parametrize("sigma", [1.0, 0.9, 0.5])
def test_the_colour_is_read_from_the_noise_of_all_positions_as_far_as_it_shows_there(sigma: float) -> None:
    """Of many draws: what is left of the distance is what Bayes' rule leaves, and no draw is the mean where the truth varies."""
    codec, head = fitted(), ColourHead(8, 48, (1, 2, 2))
    head.set_maps(codec)
    believe(head, OWN)
    generator, count = torch.Generator().manual_seed(0), 400
    brown, grey = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.4, 0.4])
    along = torch.full((3, 3), 1 / 3)  # grey's own direction
    prior = DOUBT_OF_LIGHTNESS**2 * along + DOUBT_OF_HUE**2 * (torch.eye(3) - along)
    edits = grey + torch.randn(count, 3, generator=generator) @ torch.linalg.cholesky(prior).T
    source, said, truth = (
        torch.cat([flat(colour, codec) for colour in colours]) for colours in ([brown] * count, [grey] * count, edits)
    )
    noise = torch.randn(truth.shape, generator=generator)
    tokens = torch.zeros(count, source.shape[2] * 4, 8)
    noisy, sigmas = (1 - sigma) * truth + sigma * noise, torch.full((count, 1, 1, 1, 1), sigma)
    found = codec.decode(source + head(said - source, tokens, source, None, noisy=noisy, sigma=sigmas).sample)
    left = (found.mean((2, 3, 4)) - edits).square().mean().sqrt()
    linear = codec.mean_colour()[:, :-1]
    covariance = linear @ linear.T * sigma**2 / ((1 - sigma) ** 2 * source[0, 0].numel()) if sigma < 1 else None
    expected = prior if covariance is None else prior - prior @ torch.linalg.inv(prior + covariance) @ prior
    assert float(left) == pytest.approx(float((expected.trace() / 3).sqrt()), rel=0.15)
    for_each = head(said - source, tokens, source, None, noisy=noisy, sigma=sigmas.expand(-1, -1, *source.shape[2:]))
    torch.testing.assert_close(codec.decode(source + for_each.sample), found, rtol=0, atol=1e-5)
    believe(head, NO_CHANGE)
    assert not head(said - source, tokens, source, None, noisy=noisy, sigma=sigmas).sample.any()


@torch.no_grad()
@pytest.mark.parametrize("attention", get_args(MemoryAttention))
def test_colours_come_from_the_memories_that_are_left(attention: MemoryAttention) -> None:
    """The same when a memory is encoded beforehand; nothing of what is discarded."""
    torch.manual_seed(0)
    is_joint = attention == "joint"
    network = MemoryTransformer3DModel(
        **{**SMALL, "in_channels": 96, "out_channels": 48}, memory_attention=attention, has_colour_head=True,
        merging_blocks=(0,) if is_joint else (),
    ).eval()  # fmt: skip
    assert network.colour_head is not None
    network.colour_head.set_maps(fitted())
    inputs = random(2, 96, 3, 6, 10, seed=1), torch.tensor([900.0, 300.0]), random(2, 7, 16, seed=2)
    memory = [
        MemoryBatch(role="previous", kernel=(1, 2, 2), latents=random(2, 96, 3, 6, 10, seed=3)),
        MemoryBatch(role="retrieved", kernel=(1, 4, 4), latents=random(2, 96, 3, 6, 10, seed=4)),
    ]
    with_memory = network(*inputs, memory=memory).sample
    believe(network.colour_head, OWN)
    assert (network(*inputs, memory=memory).sample - with_memory).abs().max() > 1e-3
    believe(network.colour_head, MEMORIES)
    with_memory = network(*inputs, memory=memory).sample
    if not is_joint:
        encoded = [network.encode_memory(item) for item in memory]
        torch.testing.assert_close(network(*inputs, memory=encoded).sample, with_memory, rtol=0, atol=1e-5)
        assert encoded[0].colours is not None
        assert encoded[0].num_bytes > sum(tensor.nbytes for tensor in (*encoded[0].keys, *encoded[0].values))
        return
    none = network(*inputs).sample
    for share, same_as in ((0.0, with_memory), (1.0, none)):
        got = network(*inputs, memory=memory, merging=Merging(share=share, mode="discard-low")).sample
        torch.testing.assert_close(got, same_as, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("trained", "has_one"), [("all", True), ("memory", False)])
def test_a_base_without_a_head_gets_one_that_is_silent_in_pure_noise_where_it_is_trained(
    tmp_path: Path, trained: Trained, *, has_one: bool
) -> None:
    base = write_random_preset(tmp_path / "base")
    config = TrainingConfig(output=tmp_path / "run", base=str(base), train=trained)
    network = make_editing(config, starting_point(config)).transformer
    assert (network.colour_head is not None) == has_one
    seen, timestep, text = torch.randn(1, 96, 2, 4, 4), torch.tensor([1000.0]), torch.randn(1, 3, 128)
    before = load_transformer(base / "transformer")
    with torch.no_grad():
        found, wanted = (net(seen, timestep, text).sample for net in (network, before))
        torch.testing.assert_close(found, wanted, rtol=0.003 if has_one else 0, atol=1e-6)
    if has_one:
        assert network.colour_head.group.any()


def test_a_head_without_a_source_is_refused() -> None:
    with pytest.raises(ValueError, match="has_colour_head needs source latents: in_channels 8; it is 4"):
        MemoryTransformer3DModel(num_layers=1, in_channels=4, out_channels=4, has_colour_head=True)
