"""`ColourHead`: what an edit adds, as a change of the source's own colours.

A linear codec's latents of a recoloured patch are a linear map of the source's. So beside its free output the network says, for every
latent position, how much of each of nine such maps (from one of R, G, B to one of R, G, B) is added. What moves, shines or is
textured inside the patch stays as it is in the source. Only for `PatchCodec`; published Wan networks have no such head.

Legend: C channels of a latent.
"""

from math import prod

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from model.codec import COLOUR_MAPS, PatchCodec
from model.patchify import unpatchify
from model.types import Kernel


class ColourHead(nn.Module):
    """Starts silent. The maps are the codec's (`set_maps`), kept with the weights and not trained."""

    first: Tensor
    group: Tensor

    def __init__(self, width: int, channels: int, patch: Kernel) -> None:
        super().__init__()
        self.patch = patch
        self.gains = nn.Linear(width, COLOUR_MAPS * prod(patch))
        nn.init.zeros_(self.gains.weight)
        nn.init.zeros_(self.gains.bias)
        for name in ("first", "group"):
            self.register_buffer(name, torch.zeros(COLOUR_MAPS, channels, channels + 1))

    def set_maps(self, codec: PatchCodec) -> None:
        """Take the maps of the codec whose latents the network edits."""
        for name, maps in zip(("first", "group"), codec.colour_maps(), strict=True):
            self.get_buffer(name).copy_(maps)

    def forward(
        self, tokens: Float[Tensor, "b n d"], source: Float[Tensor, "b c t h w"], begins: Bool[Tensor, "b"] | None
    ) -> Float[Tensor, "b c t h w"]:
        """What is added to the source.

        Args:
            tokens: the last ones, of the target.
            begins: whether the target begins with its segment's first frame, which the codec encodes by itself; None: it does.
        """
        gains = unpatchify(self.gains(tokens), source.shape[2:], self.patch)
        start = apply_maps(self.first, gains[:, :, :1], source[:, :, :1])
        if begins is not None:
            inner = apply_maps(self.group, gains[:, :, :1], source[:, :, :1])
            start = torch.where(begins.view(-1, 1, 1, 1, 1), start, inner)
        return torch.cat([start, apply_maps(self.group, gains[:, :, 1:], source[:, :, 1:])], dim=2)


def apply_maps(
    maps: Float[Tensor, "k c c1"], gains: Float[Tensor, "b k t h w"], source: Float[Tensor, "b c t h w"]
) -> Float[Tensor, "b c t h w"]:
    """The sum of the maps of every position, each as strong as its gain there."""
    linear, constant = maps[..., :-1].type_as(source), maps[..., -1].type_as(source)
    mapped = torch.einsum("kcd,bdthw->bkcthw", linear, source) + constant[None, :, :, None, None, None]
    return (mapped * gains[:, :, None]).sum(1)
