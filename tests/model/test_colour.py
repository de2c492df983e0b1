import torch

from model.codec import COLOUR_MAPS, PatchCodec
from model.colour import ColourHead, apply_maps
from model.training.codec_fit import fit_codec


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
