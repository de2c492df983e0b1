"""Whole-frame restyles: one colour transform per pixel, with tint and strength left free. Works on any video, rendered or real.

A style keeps the picture's structure: colours move towards grey, are bent by a gamma, and are spread between a shadow and
a highlight colour.
"""

import random
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from model.training.palette import Colour, ColourFamily


@dataclass(frozen=True, kw_only=True)
class StyleFamily:
    """What one style word may mean; every edit draws its own point of these ranges."""

    phrases: tuple[str, ...]
    greyness: tuple[float, float]
    gamma: tuple[float, float]
    shadow: ColourFamily
    highlight: ColourFamily


@dataclass(frozen=True, kw_only=True)
class Style:
    """`out = shadow + (highlight - shadow) * mix(rgb, luma, greyness) ** gamma`."""

    name: str
    greyness: float
    gamma: float
    shadow: Colour
    highlight: Colour

    def __call__(self, rgb: Float[Tensor, "t 3 h w"]) -> Float[Tensor, "t 3 h w"]:
        """The restyled frames; input and output in [0, 1]."""
        rgb = rgb.clamp(0, 1)
        luma = (rgb * rgb.new_tensor((0.299, 0.587, 0.114)).view(1, 3, 1, 1)).sum(1, keepdim=True)
        toned = rgb.lerp(luma, self.greyness).clamp_(1e-4, 1).pow_(self.gamma)
        shadow = rgb.new_tensor(self.shadow).view(1, 3, 1, 1)
        highlight = rgb.new_tensor(self.highlight).view(1, 3, 1, 1)
        return shadow + (highlight - shadow) * toned


def _family(hue: tuple[float, float], saturation: tuple[float, float], value: tuple[float, float]) -> ColourFamily:
    return ColourFamily(hue_deg=hue, saturation=saturation, value=value)


STYLES: dict[str, StyleFamily] = {
    "sunset": StyleFamily(
        phrases=("make it look like sunset", "turn the scene into a sunset", "give it sunset light"),
        greyness=(0.1, 0.5),
        gamma=(0.8, 1.4),
        shadow=_family((-70, 10), (0.5, 0.9), (0.05, 0.28)),
        highlight=_family((8, 48), (0.3, 0.75), (0.9, 1.0)),
    ),
    "night": StyleFamily(
        phrases=("make it look like night", "turn day into night", "make it a night scene"),
        greyness=(0.3, 0.8),
        gamma=(1.0, 1.8),
        shadow=_family((200, 270), (0.4, 0.9), (0.02, 0.14)),
        highlight=_family((175, 265), (0.2, 0.75), (0.35, 0.7)),
    ),
    "sepia": StyleFamily(
        phrases=("make it look like an old sepia film", "turn it into an old sepia film", "give it a sepia look"),
        greyness=(1.0, 1.0),
        gamma=(0.7, 1.3),
        shadow=_family((8, 40), (0.4, 0.9), (0.05, 0.3)),
        highlight=_family((22, 52), (0.12, 0.6), (0.75, 1.0)),
    ),
    "underwater": StyleFamily(
        phrases=("make it look like underwater", "put the scene underwater", "make it an underwater scene"),
        greyness=(0.4, 0.85),
        gamma=(0.9, 1.4),
        shadow=_family((165, 235), (0.6, 1.0), (0.08, 0.35)),
        highlight=_family((135, 210), (0.25, 0.75), (0.65, 0.95)),
    ),
    "fog": StyleFamily(
        phrases=("make it foggy", "add thick fog", "make it look like a foggy morning"),
        greyness=(0.4, 0.8),
        gamma=(0.8, 1.1),
        shadow=_family((0, 360), (0.0, 0.3), (0.35, 0.65)),
        highlight=_family((0, 360), (0.0, 0.18), (0.85, 1.0)),
    ),
    "neon": StyleFamily(
        phrases=("make it look like neon light", "give it a neon look", "turn it into a neon scene"),
        greyness=(0.85, 1.0),
        gamma=(0.8, 1.3),
        shadow=_family((225, 300), (0.7, 1.0), (0.15, 0.45)),
        highlight=_family((-60, 180), (0.35, 0.8), (0.9, 1.0)),
    ),
    "faded": StyleFamily(
        phrases=("make it look like a faded photograph", "give it a faded vintage look", "make the colors faded"),
        greyness=(0.35, 0.7),
        gamma=(0.75, 1.0),
        shadow=_family((0, 360), (0.2, 0.6), (0.2, 0.42)),
        highlight=_family((0, 80), (0.08, 0.35), (0.8, 0.98)),
    ),
}


def draw_style(rng: random.Random, name: str | None = None) -> tuple[Style, str]:
    """A style with its free parameters drawn, and an instruction that asks for it (by name only, never by parameters)."""
    name = name or rng.choice(sorted(STYLES))
    family = STYLES[name]
    style = Style(
        name=name,
        greyness=rng.uniform(*family.greyness),
        gamma=rng.uniform(*family.gamma),
        shadow=family.shadow.draw(rng),
        highlight=family.highlight.draw(rng),
    )
    return style, rng.choice(family.phrases)
