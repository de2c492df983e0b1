import pytest
import torch
from torch import nn

from model.memory import KERNELS
from model.patchify import (
    concatenate,
    grid_positions,
    grid_size,
    init_from_base,
    pad_to_kernel,
    patchify,
    unpatchify,
)

BASE = (1, 2, 2)


def identity_projection(channels: int, kernel: tuple[int, int, int]) -> nn.Conv3d:
    """A patch embedding that only lays the patch out: (c kt kh kw)."""
    width = channels * kernel[0] * kernel[1] * kernel[2]
    projection = nn.Conv3d(channels, width, kernel, stride=kernel)
    with torch.no_grad():
        projection.weight.copy_(torch.eye(width).view(width, channels, *kernel))
        projection.bias.zero_()
    return projection


@pytest.mark.parametrize("kernel", [*KERNELS, (2, 4, 4)])
@pytest.mark.parametrize("shape", [(5, 16, 16), (5, 10, 24), (3, 7, 9)])
@torch.no_grad()
def test_there_and_back_at_every_kernel_and_size(kernel: tuple, shape: tuple) -> None:
    latents = torch.randn(2, 3, *shape)
    group = patchify(latents, identity_projection(3, kernel), base=BASE, start=0, video=0)
    grid = grid_size(shape, kernel)
    assert group.num_tokens == grid[0] * grid[1] * grid[2] == group.positions.shape[1] == group.spans[-1].end
    # Tokens are (c, patch); Wan's output order is (patch, c).
    back = group.tokens.unflatten(2, (3, -1)).transpose(2, 3).flatten(2)
    torch.testing.assert_close(unpatchify(back, shape, kernel), latents)


@torch.no_grad()
def test_it_is_the_convolution() -> None:
    projection = nn.Conv3d(4, 6, (1, 4, 4), stride=(1, 4, 4))
    latents = torch.randn(1, 4, 3, 8, 12)
    expected = projection(latents).flatten(2).transpose(1, 2)
    group = patchify(latents, projection, base=BASE, start=0, video=0)
    torch.testing.assert_close(group.tokens, expected, rtol=1e-5, atol=1e-5)


def test_padding_repeats_the_last_row_and_column() -> None:
    latents = torch.arange(6.0).view(1, 1, 1, 2, 3)
    padded = pad_to_kernel(latents, (1, 4, 4))
    assert padded.shape == (1, 1, 1, 4, 4)
    assert padded[0, 0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]
    assert pad_to_kernel(latents, (1, 2, 3)) is latents


@pytest.mark.parametrize("kernel", [(1, 4, 4), (1, 8, 8), (2, 4, 2)])
def test_a_coarse_token_stands_at_the_centre_of_the_base_tokens_it_covers(kernel: tuple) -> None:
    shape = (4, 16, 24)
    fine = grid_positions(grid_size(shape, BASE), BASE, BASE, start=0).view(*grid_size(shape, BASE), 3)
    coarse = grid_positions(grid_size(shape, kernel), kernel, BASE, start=0)
    steps = [k // b for k, b in zip(kernel, BASE, strict=True)]
    means = nn.functional.avg_pool3d(fine.permute(3, 0, 1, 2)[None], steps, steps)[0].permute(1, 2, 3, 0)
    torch.testing.assert_close(coarse, means.reshape(-1, 3))


@torch.no_grad()
def test_a_coarse_kernel_starts_as_the_mean_of_the_base_tokens() -> None:
    base, coarse = nn.Conv3d(3, 8, BASE, stride=BASE), nn.Conv3d(3, 8, (1, 8, 8), stride=(1, 8, 8))
    init_from_base(coarse, base)
    latents = torch.randn(1, 3, 2, 16, 8)
    fine = patchify(latents, base, base=BASE, start=0, video=0).tokens.view(1, 2, 2, 4, 1, 4, 8)
    got = patchify(latents, coarse, base=BASE, start=0, video=0).tokens
    torch.testing.assert_close(got, fine.mean((3, 5)).reshape(1, 4, 8), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="multiple of the base kernel"):
        init_from_base(nn.Conv3d(3, 8, (1, 3, 3)), base)


@torch.no_grad()
def test_concatenation_keeps_spans_on_their_tokens() -> None:
    one = patchify(torch.zeros(1, 1, 2, 4, 4), identity_projection(1, BASE), base=BASE, start=0, video=0)
    two = patchify(torch.ones(1, 1, 3, 4, 4), identity_projection(1, (1, 4, 4)), base=BASE, start=7, video=1)
    both = concatenate(
        [one, patchify(torch.ones(1, 1, 2, 4, 4), identity_projection(1, BASE), base=BASE, start=5, video=1)]
    )
    assert [(s.video, s.frame) for s in both.spans] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for span in both.spans:
        assert bool((both.tokens[:, span.start : span.end] == span.video).all())
        assert both.positions[0, span.start, 0] == (span.frame if span.video == 0 else 5 + span.frame)
    assert [s.frame for s in two.spans] == [0, 1, 2]
    assert two.positions[0, :, 0].tolist() == [7, 8, 9]
