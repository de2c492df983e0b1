import pytest
import torch
from torch import Tensor

from model.codec import PatchCodec
from model.training.codec_fit import fit_codec, noise_videos, principal_directions, psnr, world_videos
from model.weights import load_codec


@pytest.fixture(scope="module")
def codec() -> PatchCodec:
    size = (48, 64)
    return fit_codec([*world_videos(6, seed=900, size=size), *noise_videos(6, seed=0, size=size)])


@pytest.fixture(scope="module")
def film() -> Tensor:
    return next(noise_videos(1, seed=99, size=(40, 96)))


def test_round_trip_of_a_film_it_never_saw(codec: PatchCodec, film: Tensor) -> None:
    latents = codec.encode(film[None])
    assert latents.shape == (1, 48, 9, 10, 24)
    assert codec.decode(latents).shape == (1, 3, 17, 40, 96)
    assert psnr(codec, film) > 28


def test_the_first_frame_is_exact(codec: PatchCodec, film: Tensor) -> None:
    decoded = codec.decode(codec.encode(film[None]))
    torch.testing.assert_close(decoded[0, :, 0], film[:, 0], rtol=0, atol=1e-5)
    alone = codec.encode(film[None, :, :1])
    torch.testing.assert_close(codec.decode(alone)[0], film[:, :1], rtol=0, atol=1e-5)


def test_shared_channels_mean_the_same_in_every_latent_frame(codec: PatchCodec, film: Tensor) -> None:
    still = film[None, :, :1].expand(-1, -1, 9, -1, -1)
    latents = codec.encode(still)[0, : codec.config.num_shared]
    torch.testing.assert_close(latents[:, 1:], latents[:, :1].expand(-1, 4, -1, -1), rtol=1e-3, atol=1e-3)


def test_decoding_is_affine_and_does_not_clamp(codec: PatchCodec, film: Tensor) -> None:
    one, other = codec.encode(film[None]), codec.encode(1 - film[None])
    middle = codec.decode((one + other) / 2)
    torch.testing.assert_close(middle, (codec.decode(one) + codec.decode(other)) / 2, rtol=0, atol=1e-4)
    assert float(codec.decode(one * 4).max()) > 1


def test_latents_are_normalised(codec: PatchCodec) -> None:
    videos = torch.stack([*world_videos(6, seed=900, size=(48, 64)), *noise_videos(6, seed=0, size=(48, 64))])
    latents = codec.encode(videos)[:, :, 1:].transpose(0, 1).flatten(1)
    assert float(latents[codec.config.num_shared :].mean(1).abs().max()) < 0.02
    torch.testing.assert_close(latents[codec.config.num_shared :].std(1), torch.ones(24), rtol=0.01, atol=0)


def test_saved_codec_is_the_same(codec: PatchCodec, film: Tensor, tmp_path) -> None:
    codec.save_pretrained(tmp_path)
    again = load_codec(tmp_path)
    assert torch.equal(again.encode(film[None]), codec.encode(film[None]))


@pytest.mark.parametrize(
    ("shape", "message"), [((3, 16, 64, 64), "16 frames; the codec needs 2n"), ((3, 17, 64, 66), "64x66 px")]
)
def test_illegal_geometry_is_named(codec: PatchCodec, shape: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codec.encode(torch.zeros(1, *shape))


def test_principal_directions_find_a_known_subspace() -> None:
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(12, 12, generator=generator).double())
    rows = torch.randn(4000, 12, generator=generator).double() * torch.tensor([5.0, 3.0, 1.0] + [0.01] * 9) @ basis.T
    found = principal_directions(rows, 3)
    torch.testing.assert_close((found @ basis[:, :3]).abs(), torch.eye(3).double(), rtol=0, atol=0.05)
