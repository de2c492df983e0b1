"""A network carried over to another codec reads the same pictures and says the same change."""

import pytest
import torch

from model.codec import PatchCodec
from model.training.codec_fit import fit_codec, noise_videos
from model.training.recode import group_map, recode
from model.transformer import MemoryTransformer3DModel
from model.types import MemoryBatch


def codec(group_frames: int) -> PatchCodec:
    return fit_codec(noise_videos(6, seed=group_frames, size=(32, 32)), group_frames=group_frames)


def network(channels: int = 48) -> MemoryTransformer3DModel:
    torch.manual_seed(0)
    return MemoryTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=2 * channels, out_channels=channels, text_dim=8,
        ffn_dim=32, num_layers=1, prediction_type="source_residual",
    ).eval()  # fmt: skip


def still(codec: PatchCodec, value: float, group: int) -> torch.Tensor:
    """Latents [c, h, w] of a group of a video at rest: half of it brighter by `value`."""
    video = torch.full((1, 3, 1 + 2 * codec.group_frames, 16, 16), 0.4)
    video[..., 8:] += value
    return codec.encode(video)[0, :, 1 + group]


def test_a_group_at_rest_is_the_same_to_both() -> None:
    four, two = codec(4), codec(2)
    for source, target in ((four, two), (two, four)):
        linear, constant = group_map(source, target)
        for value in (0.1, 0.3):
            said = torch.einsum("cd,dhw->chw", linear, still(source, value, 1)) + constant[:, None, None]
            assert torch.allclose(said, still(target, value, 1), atol=0.05)  # what shared channels drop


def test_a_carried_network_answers_as_before() -> None:
    four, two = codec(4), codec(2)
    before, after = network(), network()
    after.load_state_dict(before.state_dict())
    recode(after, four, two)

    def answer(net: MemoryTransformer3DModel, of: PatchCodec) -> torch.Tensor:
        source, edited = (still(of, value, 1)[None, :, None] for value in (0.1, 0.3))
        latents = torch.cat([edited, source], dim=1)
        memory = [MemoryBatch(role="retrieved", kernel=(1, 4, 4), latents=latents)]
        with torch.no_grad():
            return net(latents, torch.tensor([500.0]), torch.ones(1, 3, 8), memory=memory).sample

    wanted, carried, left = (
        of.decode(torch.cat([torch.zeros_like(said), said], dim=2)) - of.decode(torch.zeros(1, 48, 2, 4, 4))
        for of, said in ((four, answer(before, four)), (two, answer(after, two)), (two, answer(before, two)))
    )
    wanted = wanted[:, :, 1::2]
    errors = [float((found[:, :, 1:] - wanted).norm() / wanted.norm()) for found in (carried, left)]
    assert errors[0] < 0.1 < 1 < errors[1]


def test_codecs_of_other_patches_are_refused() -> None:
    other = PatchCodec(latent_channels=48, patch=(8, 8), group_frames=4)
    with pytest.raises(ValueError, match=r"codec's patch is \(4, 4\); the base has \(8, 8\)"):
        recode(network(), other, codec(2))
