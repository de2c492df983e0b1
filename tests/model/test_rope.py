import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

from model.patchify import grid_positions
from model.rope import axis_dims, rotary_embedding


def test_a_dense_grid_gives_diffusers_embedding() -> None:
    for head_dim in (32, 128):
        theirs = WanRotaryPosEmbed(head_dim, (1, 2, 2), 1024)(torch.zeros(1, 4, 5, 10, 24))
        positions = grid_positions((5, 5, 12), (1, 2, 2), (1, 2, 2), start=0)[None]
        for got, expected in zip(rotary_embedding(positions, head_dim), theirs, strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_only_distance_matters() -> None:
    """The product of two rotated vectors depends on the difference of their positions, fractions included."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(32, generator=generator).double() for _ in range(2))

    def product(shift: float) -> float:
        positions = torch.tensor([[[1.5, 2.0, 3.25], [4.0, 0.5, 1.0]]]) + shift
        cosine, sine = rotary_embedding(positions, 32)
        rotated = []
        for vector, cos, sin in zip((query, key), cosine[0, :, 0].double(), sine[0, :, 0].double(), strict=True):
            even, odd = vector[0::2], vector[1::2]
            rotated.append(torch.stack([even * cos[::2] - odd * sin[::2], even * sin[::2] + odd * cos[::2]]))
        return float((rotated[0] * rotated[1]).sum())

    assert abs(product(0) - product(11)) < 1e-4
    assert abs(product(0) - float((query * key).sum())) > 1e-3
    assert sum(axis_dims(128)) == 128
