import math

import torch
from torch import Tensor

from model.common_colour import CommonColour


def common(deviation: float, *, count: int, weight: float = 1.0) -> CommonColour:
    """Of edits of four frames that the network says nothing of; half of the positions are lit twice as much."""
    light = torch.tensor([0.5, 1.5]).repeat(8).view(1, 1, 1, 4, 4).expand(count, 1, 4, 4, 4)
    return CommonColour(
        said=torch.zeros(count, 3, 4, 4, 4, requires_grad=True),
        weight=torch.full((count, 1, 4, 4, 4), weight),
        light=light,
        direction=torch.tensor([[0.0, 2.0, 0.0]]).expand(count, 3),
        deviation=torch.full((count, 1), deviation, requires_grad=True),
    )


def changes(*, count: int) -> Tensor:
    colours = 0.1 * torch.randn(count, 3, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    return colours * common(0.1, count=count).light


def test_the_doubt_that_surprises_least_is_how_far_the_truth_is_and_nothing_else_learns_by_it() -> None:
    count = 500
    doubts = (0.07, 0.1, 0.14)
    found = {doubt: common(doubt, count=count).surprise(changes(count=count)).item() for doubt in doubts}
    assert min(found, key=found.__getitem__) == 0.1
    assert math.isclose(found[0.1], 3 * math.log(0.1 / 0.01) + 1.5, abs_tol=0.15)
    known = common(0.07, count=count)
    known.surprise(changes(count=count)).backward()
    assert known.said.grad is None
    assert known.deviation.grad is not None
    assert (known.deviation.grad.sum() < 0).all(), "more doubt surprises less"


def test_where_nothing_is_changed_nothing_is_learned_or_read() -> None:
    nothing = common(0.1, count=2, weight=0.0)
    assert not nothing.surprise(changes(count=2)).any()
    noise = torch.randn(2, 3, 4, 4, 4)
    assert not nothing.expected(noise, torch.full((2, 1, 1, 1, 1), 0.5), noise=0.04 * torch.eye(3)).any()


def test_clear_latents_say_all_and_pure_noise_says_nothing_and_gains_add_it_to_the_source() -> None:
    known, shown = common(0.1, count=3), changes(count=3)
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
