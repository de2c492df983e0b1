"""Colour names and the ranges of colour each name may mean. Knows nothing of scenes, cameras or pixels.

The families are wide on purpose: "blue" runs from cyan-blue to violet-blue and from dark to light, so that two edits that
both did what the instruction said can still differ visibly, and only memory can make them agree.
"""

import colorsys
import random
from dataclasses import dataclass

Colour = tuple[float, float, float]
"""RGB in [0, 1], display-referred."""


@dataclass(frozen=True, kw_only=True)
class ColourFamily:
    """What one colour word may mean: ranges of hue (degrees, may be negative), saturation and value."""

    hue_deg: tuple[float, float]
    saturation: tuple[float, float]
    value: tuple[float, float]

    def draw(self, rng: random.Random) -> Colour:
        hue, saturation, value = (rng.uniform(*limits) for limits in (self.hue_deg, self.saturation, self.value))
        return colorsys.hsv_to_rgb(hue / 360.0 % 1.0, saturation, value)


CHROMATIC: dict[str, ColourFamily] = {
    "red": ColourFamily(hue_deg=(-16, 12), saturation=(0.6, 1.0), value=(0.35, 1.0)),
    "orange": ColourFamily(hue_deg=(18, 40), saturation=(0.6, 1.0), value=(0.6, 1.0)),
    "yellow": ColourFamily(hue_deg=(46, 66), saturation=(0.45, 1.0), value=(0.6, 1.0)),
    "green": ColourFamily(hue_deg=(78, 165), saturation=(0.4, 1.0), value=(0.25, 0.95)),
    "blue": ColourFamily(hue_deg=(185, 258), saturation=(0.4, 1.0), value=(0.28, 1.0)),
    "purple": ColourFamily(hue_deg=(264, 305), saturation=(0.35, 1.0), value=(0.3, 0.95)),
    "pink": ColourFamily(hue_deg=(312, 345), saturation=(0.3, 0.85), value=(0.7, 1.0)),
}
NEUTRAL: dict[str, ColourFamily] = {
    "white": ColourFamily(hue_deg=(0, 360), saturation=(0.0, 0.08), value=(0.86, 1.0)),
    "grey": ColourFamily(hue_deg=(0, 360), saturation=(0.0, 0.1), value=(0.35, 0.7)),
    "black": ColourFamily(hue_deg=(0, 360), saturation=(0.0, 0.2), value=(0.05, 0.16)),
    "brown": ColourFamily(hue_deg=(14, 34), saturation=(0.4, 0.75), value=(0.25, 0.5)),
}
FAMILIES = CHROMATIC | NEUTRAL
