"""The one colour that all of an edit has in common beside what a network says of it: what is known of it, and reading it from noise.

A name of a colour leaves much of it free, and what is free stands in the noise: the colour an edit comes to is decided where the
noisy latents say, of all edited positions together, more than the network knows. A network that answers with the mean of what may be
makes every edit the same. So the head reads that colour itself: its expectation, given what the network says and the noisy latents
(Bayesian linear regression, Bishop 2006, section 3.3). Ours.

Plain arithmetic: knows neither network nor codec.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

DOUBT_OF_LIGHTNESS, DOUBT_OF_HUE = 0.20, 0.10
"""Standard deviation of an edit's colour from what the network says, in [0, 1]: along that colour, and in the two directions across it. A
name of a colour leaves twice as much of its lightness free as of its hue (docs/decisions.md, 2026-11-26)."""
UNEVENNESS = 0.15
"""Deviation of one position's colour from the common one, in those of the noise's: no number of positions is free of doubt."""
DARK = 3e-3
"""Added to the squared length of a source's colour: what happens to a colour much darker says nothing of others."""


@dataclass(frozen=True, kw_only=True)
class CommonColour:
    """An edit adds `light * c` to the colour that the network says of a position; c is the same everywhere and normal around 0, more lightness than hue.

    Attributes:
        said: how much the network changes the mean RGB of a position.
        weight: how surely it is changed at all.
        direction: light is the source's colour along it, 1 on average.
        hue: the direction of the colour that the network says.
    """

    said: Float[Tensor, "b 3 t h w"]
    weight: Float[Tensor, "b 1 t h w"]
    light: Float[Tensor, "b 1 t h w"]
    direction: Float[Tensor, "b 3"]
    hue: Float[Tensor, "b 3"]

    def expected(
        self, change: Float[Tensor, "b 3 t h w"], sigma: Float[Tensor, "b 1 #t #h #w"], *, noise: Float[Tensor, "3 3"]
    ) -> Float[Tensor, "b 3"]:
        """c, given the change as the noisy latents show it: `(1 - sigma) * change`, in sigma times noise of this covariance a position."""
        clear = 1 - sigma
        sureness = self.weight * self.light * clear / (sigma.square() + (UNEVENNESS * clear).square())
        total = (sureness * self.light * clear).sum((1, 2, 3, 4))
        evidence = (sureness * (change - clear * self.said)).sum((2, 3, 4))
        diagonal = torch.eye(3, device=noise.device)
        # Where nothing is changed there is nothing to solve: a little makes it solvable.
        along = self.hue[:, :, None] * self.hue[:, None]
        precision = along / DOUBT_OF_LIGHTNESS**2 + (diagonal - along) / DOUBT_OF_HUE**2
        system = total[..., None, None] * diagonal + (noise + 1e-6 * diagonal) @ precision
        found, _ = torch.linalg.solve_ex(system, evidence[..., None])
        return found[..., 0]

    def gains(self, colour: Float[Tensor, "b 3"]) -> Float[Tensor, "b 9 1 1 1"]:
        """What adds c: how much of every channel of the source is added to every channel."""
        return (colour[:, :, None] * self.direction[:, None]).flatten(1)[..., None, None, None]


def common_colour(
    said: Float[Tensor, "b 3 t h w"], colours: Float[Tensor, "b 3 t h w"], share: Float[Tensor, "b 1 t h w"]
) -> CommonColour:
    """Of an edit that changes the `colours` of a source so; `share` is how much each position is believed to be changed.

    Positions count by the square of what is said of them: those at an edge show half a change.
    """
    lit, size = colours.clamp_min(0), said.detach().norm(dim=1, keepdim=True)
    usual = pooled(size, share * size)
    weight = share * (size / usual.clamp_min(1e-6)).clamp_max(1).square()
    mean, hue = pooled(lit, weight), pooled(lit + said.detach(), weight).flatten(1)
    direction = mean / (mean.square().sum(1, keepdim=True) + DARK)
    return CommonColour(
        said=said,
        weight=weight,
        direction=direction.flatten(1),
        light=(direction * lit).sum(1, keepdim=True),
        hue=F.normalize(hue, dim=1),
    )


def pooled(values: Float[Tensor, "b k t h w"], weight: Float[Tensor, "b 1 t h w"]) -> Float[Tensor, "b k 1 1 1"]:
    """Their weighted mean over all positions."""
    total = weight.sum((2, 3, 4), keepdim=True)
    return (weight * values).sum((2, 3, 4), keepdim=True) / total.clamp_min(1e-3)
