"""`ColourHead`: what an edit adds, as a change of the source's own colours, the network's own or one that a memory shows.

A linear codec's latents of a recoloured patch are a linear map of the source's. So beside its free output the network says, for every
latent position, how much of each of nine such maps (from one of R, G, B to one of R, G, B) is added. What moves, shines or is
textured inside the patch stays as it is in the source.

A memory shows what an earlier edit did to its source: from the colour of a patch before and after follow the gains that turn one
into the other. Target tokens look for the memory's patches that are like them, and take their gains over as they are: a colour that
has to go through a network's normalised activations arrives changed. A gate, for every latent position, decides between these
gains and the network's own. Only for `PatchCodec`; published Wan networks have no such head.

Legend: C channels of a latent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from model.codec import COLOUR_MAPS, PatchCodec
from model.patchify import pad_to_kernel, unpatchify
from model.types import Kernel, MemoryBatch, RecalledColours

RECALL_WIDTH = 64
"""Of queries and keys."""
DARKEST = 3e-3
"""Squared length of a colour below which its change says little about others."""


class ColourHead(nn.Module):
    """Starts silent but for memories. The maps are the codec's (`set_maps`), kept with the weights and not trained."""

    first: Tensor
    group: Tensor

    def __init__(self, width: int, channels: int, patch: Kernel) -> None:
        super().__init__()
        self.patch = patch
        self.gains = nn.Linear(width, COLOUR_MAPS * prod(patch))
        self.query = nn.Linear(width, RECALL_WIDTH)
        self.key = nn.Sequential(nn.Linear(width, RECALL_WIDTH), nn.SiLU(), nn.Linear(RECALL_WIDTH, RECALL_WIDTH))
        self.gate = nn.Linear(width, prod(patch))
        nn.init.zeros_(self.gains.weight)
        nn.init.zeros_(self.gains.bias)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, -2.0)
        for name in ("first", "group"):
            self.register_buffer(name, torch.zeros(COLOUR_MAPS, channels, channels + 1))
            self.register_buffer(f"{name}_black", torch.zeros(COLOUR_MAPS, channels))
            self.register_buffer(f"{name}_colour", torch.zeros(3, channels + 1))

    def set_maps(self, codec: PatchCodec) -> None:
        """Take the maps of the codec whose latents the network edits."""
        grey, black = codec.colour_maps(), codec.colour_maps(about=0.0)
        for name, maps, others, colour in zip(("first", "group"), grey, black, codec.mean_colours(), strict=True):
            self.get_buffer(name).copy_(maps)
            self.get_buffer(f"{name}_black").copy_(others[..., -1] - maps[..., -1])
            self.get_buffer(f"{name}_colour").copy_(colour)

    def recall(self, tokens: Float[Tensor, "b n d"], memory: MemoryBatch) -> RecalledColours:
        """What a memory's edit did to its source's colours, patch by patch.

        Args:
            tokens: of the memory, as they enter the network.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            gains = self.shown_gains(memory)
        return RecalledColours(keys=self.key(tokens), gains=gains)

    def shown_gains(self, memory: MemoryBatch) -> Float[Tensor, "b n 9"]:
        """Those that turn the mean colour of every patch's source into that of its edit, as light would: black stays black."""
        colours = []
        for latents in memory.latents.chunk(2, dim=1):
            first = mean_colour(self.first_colour, latents[:, :, :1])
            if memory.begins is not None:
                inner = mean_colour(self.group_colour, latents[:, :, :1])
                first = torch.where(memory.begins.view(-1, 1, 1, 1, 1), first, inner)
            colour = torch.cat([first, mean_colour(self.group_colour, latents[:, :, 1:])], dim=2)
            kt, kh, kw = memory.kernel
            patches = rearrange(
                pad_to_kernel(colour, memory.kernel), "b c (t kt) (h kh) (w kw) -> b (t h w) (kt kh kw) c", kt=kt, kh=kh, kw=kw
            )
            colours.append(patches.mean(2))
        edited, source = colours
        length = source.square().sum(-1, keepdim=True) + DARKEST
        return ((edited - source)[..., :, None] * (source / length)[..., None, :]).flatten(2)

    def forward(
        self,
        tokens: Float[Tensor, "b n d"],
        source: Float[Tensor, "b c t h w"],
        begins: Bool[Tensor, "b"] | None,
        recalled: Sequence[RecalledColours] = (),
    ) -> Float[Tensor, "b c t h w"]:
        """What is added to the source.

        Args:
            tokens: the last ones, of the target.
            begins: whether the target begins with its segment's first frame, which the codec encodes by itself; None: it does.
            recalled: what every memory shows.
        """
        gains = unpatchify(self.gains(tokens), source.shape[2:], self.patch)
        taken = torch.zeros_like(gains)
        if recalled:
            keys, values = (torch.cat([getattr(item, name) for item in recalled], dim=1) for name in ("keys", "gains"))
            found = F.scaled_dot_product_attention(self.query(tokens).type_as(values), keys.type_as(values), values)
            found = unpatchify(repeat(found, "b n k -> b n (p k)", p=prod(self.patch)), source.shape[2:], self.patch)
            share = unpatchify(self.gate(tokens), source.shape[2:], self.patch).sigmoid()
            taken = found * share
            gains = gains * (1 - share) + taken
        start = self.change(gains[:, :, :1], taken[:, :, :1], source[:, :, :1], is_first=True)
        if begins is not None:
            inner = self.change(gains[:, :, :1], taken[:, :, :1], source[:, :, :1], is_first=False)
            start = torch.where(begins.view(-1, 1, 1, 1, 1), start, inner)
        return torch.cat([start, self.change(gains[:, :, 1:], taken[:, :, 1:], source[:, :, 1:], is_first=False)], dim=2)

    def change(self, gains, taken, source, *, is_first):
        maps, black = (self.first, self.first_black) if is_first else (self.group, self.group_black)
        return apply_maps(maps, gains, source) + torch.einsum("kc,bkthw->bcthw", black.type_as(source), taken.type_as(source))


def mean_colour(functional: Float[Tensor, "3 c1"], latents: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b 3 t h w"]:
    """Mean RGB of what every latent position decodes to."""
    linear, constant = functional[:, :-1].float(), functional[:, -1].float()
    return torch.einsum("kc,bcthw->bkthw", linear, latents.float()) + constant[:, None, None, None]


def apply_maps(
    maps: Float[Tensor, "k c c1"], gains: Float[Tensor, "b k t h w"], source: Float[Tensor, "b c t h w"]
) -> Float[Tensor, "b c t h w"]:
    """The sum of the maps of every position, each as strong as its gain there."""
    linear, constant = maps[..., :-1].type_as(source), maps[..., -1].type_as(source)
    mapped = torch.einsum("kcd,bdthw->bkcthw", linear, source) + constant[None, :, :, None, None, None]
    return (mapped * gains[:, :, None]).sum(1)
