"""`ColourHead`: what an edit adds, as a change of the source's own colours: the network's own change, or one that a memory shows.

A linear codec's latents of a recoloured patch are a linear map of the source's. So beside its free output the network says, for every
latent position, how much of each of nine such maps (from one of R, G, B to one of R, G, B) is added. What moves, shines or is
textured inside the patch stays as it is in the source.

A memory shows what an earlier edit did: the gains that turn the colour of a patch of its source into that of its edit. The target looks
for patches whose source is like its own and takes their gains over as they are; a colour that goes through a network's normalised
activations arrives changed. A gate, at every latent position, decides between this and all that the network says itself. Likeness begins
as that of colours: from nothing the network learns none, since the gate closes first (docs/decisions.md, 2026-11-26).

Only for `PatchCodec`; published Wan networks have no such head. Ours; a pointer network's copying (Vinyals et al., 2015) is the idea's source.

Legend: B batch, N tokens, D width, C channels of a latent.
"""

from math import prod

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from model.codec import COLOUR_MAPS, PatchCodec
from model.patchify import pad_to_kernel, unpatchify
from model.types import ColourChoice, Kernel, MemoryBatch

RECALL_WIDTH = 16
"""Of the learned part of queries and keys."""
SHARPNESS, PULL = 100.0, 80.0
"""At the start: what the squared distance of two colours in [0, 1] takes from their likeness, and what the length of a change adds to it; the
network multiplies both at every latent position."""
DARK = 3e-3
"""Added to the squared length of a source's colour: what happens to a colour much darker says nothing of others."""
GATE_START, GATE_CHANGE, GATE_DISTANCE = -1.0, 10.0, -100.0
"""At the start: the gate's bias, and what the length of the change that was found and the squared distance of its source's colour add; the
network multiplies the last two."""


class ColourHead(nn.Module):
    """Starts silent where there is no memory. The maps are the codec's (`set_maps`), kept with the weights and not trained."""

    first: Tensor
    group: Tensor
    mean_colour: Tensor

    def __init__(self, width: int, channels: int, patch: Kernel) -> None:
        super().__init__()
        self.patch = patch
        self.gains = nn.Linear(width, COLOUR_MAPS * prod(patch))
        self.gate = nn.Linear(width, prod(patch))
        self.query = nn.Linear(width, RECALL_WIDTH * prod(patch))
        self.key = nn.Sequential(nn.Linear(width, RECALL_WIDTH), nn.SiLU(), nn.Linear(RECALL_WIDTH, RECALL_WIDTH))
        self.weights = nn.Linear(width, 4 * prod(patch))
        for layer, bias in ((self.gains, 0.0), (self.gate, GATE_START), (self.query, 0.0), (self.weights, 0.0)):
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, bias)
        for name in ("first", "group"):
            self.register_buffer(name, torch.zeros(COLOUR_MAPS, channels, channels + 1))
        self.register_buffer("mean_colour", torch.zeros(3, channels + 1))

    def set_maps(self, codec: PatchCodec) -> None:
        """Take the maps of the codec whose latents the network edits."""
        self.mean_colour.copy_(codec.mean_colour())
        for name, maps in zip(("first", "group"), codec.colour_maps(), strict=True):
            self.get_buffer(name).copy_(maps)

    def show(self, tokens: Float[Tensor, "b n d"], memory: MemoryBatch) -> Float[Tensor, "b n k"]:
        """What every patch of a memory shows a target, at the position that changed most: a key to find it by, and the gains that its edit was.

        The gains turn the colour of the source there into that of the edit, and a darker or lighter one as light would.

        Args:
            tokens: the memory's, as they enter the network.
        """
        kt, kh, kw = memory.kernel
        edited, source = (
            rearrange(
                pad_to_kernel(self.colours(part), memory.kernel),
                "b c (t kt) (h kh) (w kw) -> b (t h w) (kt kh kw) c", kt=kt, kh=kh, kw=kw,
            )
            for part in memory.latents.float().chunk(2, dim=1)
        )  # fmt: skip
        most = (edited - source).square().sum(-1).argmax(-1)[..., None, None].expand(-1, -1, 1, 3)
        edited, source = (part.gather(2, most)[:, :, 0] for part in (edited, source))
        change, length = edited - source, source.square().sum(-1, keepdim=True)
        gains = change[..., :, None] * (source / (length + DARK))[..., None, :]
        size = change.norm(dim=-1, keepdim=True)
        return torch.cat([self.key(tokens).float(), size, length, source, size, gains.flatten(2)], dim=-1)

    def recall(
        self, tokens: Float[Tensor, "b n d"], source: Float[Tensor, "b c t h w"], shown: Float[Tensor, "b m k"]
    ) -> tuple[Float[Tensor, "b 9 t h w"], Float[Tensor, "b 1 t h w"]]:
        """For every latent position the gains of the patches like it, and the logits of their share."""
        shape, colours = source.shape[2:], self.colours(source.float())
        query, gate, weights = (
            unpatchify(layer(tokens), shape, self.patch).float() for layer in (self.query, self.gate, self.weights)
        )
        starts = weights.new_tensor([PULL, SHARPNESS, GATE_CHANGE, GATE_DISTANCE]).view(1, -1, 1, 1, 1)
        pull, sharpness, by_change, by_distance = (starts * weights.exp()).split(1, dim=1)
        # Less the squared distance of the colours, but for what is the same of all patches.
        wanted = torch.cat([query / RECALL_WIDTH**0.5, pull, -sharpness, 2 * sharpness * colours], dim=1)
        # Likeness is a small difference of large numbers: too small for bfloat16.
        with torch.autocast(shown.device.type, enabled=False):
            found = F.scaled_dot_product_attention(
                wanted.flatten(2).transpose(1, 2),
                shown[..., : RECALL_WIDTH + 5],
                shown[..., RECALL_WIDTH + 2 :],
                scale=1.0,
            )
        seen, change, gains = found.transpose(1, 2).unflatten(2, shape).split([3, 1, COLOUR_MAPS], dim=1)
        distance = (seen - colours).square().sum(1, keepdim=True)
        return gains, gate + by_change * change + by_distance * distance

    def colours(self, latents: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b 3 t h w"]:
        """Mean RGB, in [0, 1], of what every latent position decodes to."""
        linear, constant = self.mean_colour.float().tensor_split([latents.shape[1]], dim=1)
        with torch.autocast(latents.device.type, enabled=False):
            return torch.einsum("kc,bcthw->bkthw", linear, latents) + constant[:, :, None, None]

    def forward(
        self,
        sample: Float[Tensor, "b c t h w"],
        tokens: Float[Tensor, "b n d"],
        source: Float[Tensor, "b c t h w"],
        begins: Bool[Tensor, "b"] | None,
        shown: Float[Tensor, "b m k"] | None = None,
    ) -> tuple[Float[Tensor, "b c t h w"], ColourChoice | None]:
        """The network's whole output: with no memory its own, else what was chosen of that and of what memories show.

        Args:
            sample: its free output, to which the change of colours is added.
            tokens: the last ones, of the target.
            begins: whether the target begins with its segment's first frame, which the codec encodes by itself; None: it does.
            shown: by all memories (`show`).
        """
        shape = source.shape[2:]
        own = sample + self.change(unpatchify(self.gains(tokens), shape, self.patch), source, begins)
        if shown is None:
            return own, None
        gains, logits = self.recall(tokens, source, shown)
        choice = ColourChoice(own=own.float(), recalled=self.change(gains, source, begins).float(), logits=logits)
        return choice.sample, choice

    def change(
        self, gains: Float[Tensor, "b 9 t h w"], source: Float[Tensor, "b c t h w"], begins: Bool[Tensor, "b"] | None
    ) -> Float[Tensor, "b c t h w"]:
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
