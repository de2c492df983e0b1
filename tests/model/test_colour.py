from pathlib import Path

import pytest
import torch

from model.codec import COLOUR_MAPS, PatchCodec
from model.colour import ColourHead, apply_maps
from model.training.codec_fit import fit_codec
from model.training.config import Trained, TrainingConfig
from model.training.start import make_editing, starting_point
from model.transformer import MemoryTransformer3DModel
from model.weights import load_transformer
from tests.presets import write_random_preset


def fitted() -> PatchCodec:
    generator = torch.Generator().manual_seed(0)
    return fit_codec([torch.rand(3, 9, 16, 16, generator=generator) for _ in range(40)])


def test_the_codecs_colour_maps_are_what_mixing_colours_does_to_what_it_holds() -> None:
    """Scaled and mixed pixels of a decoded latent, encoded again, are the maps' sum with the mixture as gains."""
    codec = fitted()
    latent = torch.randn(1, 48, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    added = torch.tensor([[-0.5, 0.2, 0.0], [0.0, 0.3, 0.1], [0.4, 0.0, -0.2]])
    video = codec.decode(latent)
    mixed = video + torch.einsum("ij,bjthw->bithw", added, video - 0.5)
    wanted = codec.encode(mixed) - codec.encode(video)
    gains = added.reshape(1, COLOUR_MAPS, 1, 1, 1).expand(1, COLOUR_MAPS, 3, 4, 4)
    first, group = codec.colour_maps()
    assert torch.allclose(apply_maps(first, gains[:, :, :1], latent[:, :, :1]), wanted[:, :, :1], atol=1e-3)
    assert torch.allclose(apply_maps(group, gains[:, :, 1:], latent[:, :, 1:]), wanted[:, :, 1:], atol=1e-3)


def test_the_head_starts_silent_and_knows_first_frames_from_groups() -> None:
    head = ColourHead(8, 48, (1, 2, 2))
    head.set_maps(fitted())
    tokens, source = torch.randn(2, 8, 8), torch.randn(2, 48, 2, 4, 4)
    assert not head(tokens, source, None).any()
    torch.nn.init.normal_(head.gains.weight)
    whole, inner, mixed = (
        head(tokens, source, begins) for begins in (None, torch.tensor([False, False]), torch.tensor([True, False]))
    )
    assert torch.equal(whole, head(tokens, source, torch.tensor([True, True])))
    assert torch.equal(whole[:, :, 1:], inner[:, :, 1:])
    assert not torch.allclose(whole[:, :, 0], inner[:, :, 0])
    assert torch.equal(mixed[0], whole[0])
    assert torch.equal(mixed[1], inner[1])


@pytest.mark.parametrize(("trained", "has_one"), [("all", True), ("memory", False)])
def test_a_base_without_a_head_gets_a_silent_one_where_it_is_trained(
    tmp_path: Path, trained: Trained, *, has_one: bool
) -> None:
    base = write_random_preset(tmp_path / "base")
    config = TrainingConfig(output=tmp_path / "run", base=str(base), train=trained)
    network = make_editing(config, starting_point(config)).transformer
    assert (network.colour_head is not None) == has_one
    seen, timestep, text = torch.randn(1, 96, 2, 4, 4), torch.tensor([500.0]), torch.randn(1, 3, 128)
    before = load_transformer(base / "transformer")
    with torch.no_grad():
        assert torch.equal(network(seen, timestep, text).sample, before(seen, timestep, text).sample)
    if has_one:
        assert network.colour_head.group.any()


def test_a_head_without_a_source_is_refused() -> None:
    with pytest.raises(ValueError, match="has_colour_head needs source latents: in_channels 8; it is 4"):
        MemoryTransformer3DModel(num_layers=1, in_channels=4, out_channels=4, has_colour_head=True)
