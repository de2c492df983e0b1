import torch
from torch import Tensor

from model.common_colour import CommonColour


def common(*, count: int, weight: float = 1.0) -> CommonColour:
    """Of edits of four frames that the network says nothing of; half of the positions are lit twice as much."""
    light = torch.tensor([0.5, 1.5]).repeat(8).view(1, 1, 1, 4, 4).expand(count, 1, 4, 4, 4)
    return CommonColour(
        said=torch.zeros(count, 3, 4, 4, 4),
        weight=torch.full((count, 1, 4, 4, 4), weight),
        light=light,
        direction=torch.tensor([[0.0, 2.0, 0.0]]).expand(count, 3),
        hue=torch.tensor([[0.0, 0.6, 0.8]]).expand(count, 3),
    )


def changes(*, count: int) -> Tensor:
    colours = 0.1 * torch.randn(count, 3, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    return colours * common(count=count).light


def test_where_nothing_is_changed_nothing_is_read() -> None:
    nothing = common(count=2, weight=0.0)
    noise = torch.randn(2, 3, 4, 4, 4)
    assert not nothing.expected(noise, torch.full((2, 1, 1, 1, 1), 0.5), noise=0.04 * torch.eye(3)).any()


def test_clear_latents_say_all_and_pure_noise_says_nothing_and_gains_add_it_to_the_source() -> None:
    known, shown = common(count=3), changes(count=3)
    noise, wanted = 0.04 * torch.eye(3), shown.mean((2, 3, 4))
    clear = known.expected(shown, torch.zeros(3, 1, 1, 1, 1), noise=noise)
    torch.testing.assert_close(clear, wanted, rtol=0.01, atol=1e-4)
    blind = known.expected(torch.randn(shown.shape), torch.ones(3, 1, 1, 1, 1), noise=noise)
    assert not blind.any()
    # Frames may stand at different noise: those that are clear say it.
    sigma = torch.tensor([1.0, 0.0, 1.0, 1.0]).view(1, 1, 4, 1, 1).expand(3, 1, 4, 1, 1)
    mixed = known.expected((1 - sigma) * shown + sigma * torch.randn(shown.shape), sigma, noise=noise)
    torch.testing.assert_close(mixed, wanted, rtol=0.03, atol=1e-3)
    gains = known.gains(wanted).view(3, 3, 3)
    added = torch.einsum("bij,j->bi", gains, torch.tensor([0.9, 0.5, 0.9]))
    torch.testing.assert_close(added, wanted, msg="the source of light 1 along the direction gets c")
