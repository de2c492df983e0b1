"""`ColourHead`: what an edit adds, as a change of the source's own colours: the network's own change, or one that a memory shows.

A linear codec's latents of a recoloured patch are a linear map of the source's. So beside its free output the network says, for every
latent position, how much of each of nine such maps (from one of R, G, B to one of R, G, B) is added. What moves, shines or is
textured inside the patch stays as it is in the source.

A memory shows what an earlier edit did: the gains that turn the colour of a patch of its source into that of its edit. The target looks
for patches that changed, those whose source is like its own before others, and takes their gains over as they are; a colour that
goes through a network's normalised activations arrives changed. At every latent position the network then chooses between what it
says itself, no change, and what memories show. Nothing of the looking is learned: it gave way to what is right of the background,
which the choice is for (docs/decisions.md, 2026-11-26).

What the network says is then brought nearer to the one colour that the noise holds (`model.common_colour`): edits vary as what they
were learned from does.

Only for `PatchCodec`; published Wan networks have no such head. Ours; a pointer network's copying (Vinyals et al., 2015) is the idea's source.

Legend: B batch, N tokens, D width, C channels of a latent.
"""

from math import prod
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from model.codec import COLOUR_MAPS, PatchCodec
from model.common_colour import DARK, common_colour
from model.patchify import pad_to_kernel, unpatchify
from model.types import CHOICE_SURENESS, ColourChoice, Kernel, MemoryBatch

SHARPNESS, PULL = 200.0, 6.0
"""What the squared distance of two colours in [0, 1] takes from their likeness, and what the logarithm of a change's length adds to it: patches count
as the sixth power of their change, so that what did not change says nothing and the strongest change does not speak for all."""
LEAST_CHANGE = 0.02
EXPERTS = 3
OWN, NO_CHANGE, MEMORIES = range(EXPERTS)
"""The network's own change, none, and what memories show."""
STARTS = (0.0, -6.0, -1.0)
"""Their logits before anything is learned."""
TRUST_CHANGE, TRUST_DISTANCE = 10.0, -100.0
"""What the length of the change that was found, and the squared distance of its source's colour, add to the logit of what memories show."""


EVIDENCE, JUDGE_WIDTH = 14, 64
"""What a position's choice is judged by besides: the logits so far, the colour there, how the network and how memories would change it,
how much what was found had changed and how unlike it was."""
SCALES = (0.3, 3.0, 10.0, 100.0)
"""Of logits, colours, changes and squared distances: each to about 1."""


class ColourHead(nn.Module):
    """Starts silent where there is no memory. The maps are the codec's (`set_maps`), kept with the weights and not trained."""

    first: Tensor
    group: Tensor
    mean_colour: Tensor

    def __init__(self, width: int, channels: int, patch: Kernel) -> None:
        super().__init__()
        self.patch = patch
        self.gains = nn.Linear(width, COLOUR_MAPS * prod(patch))
        self.choice = nn.Linear(width, EXPERTS * prod(patch))
        nn.init.zeros_(self.gains.weight)
        nn.init.zeros_(self.gains.bias)
        nn.init.zeros_(self.choice.weight)
        self.judge = nn.Sequential(nn.Linear(EVIDENCE, JUDGE_WIDTH), nn.SiLU(), nn.Linear(JUDGE_WIDTH, EXPERTS))
        judged = cast(nn.Linear, self.judge[-1])
        nn.init.zeros_(judged.weight)
        nn.init.zeros_(judged.bias)
        with torch.no_grad():
            self.choice.bias.copy_(torch.tensor(STARTS).repeat(prod(patch)))
        for name in ("first", "group"):
            self.register_buffer(name, torch.zeros(COLOUR_MAPS, channels, channels + 1))
        self.register_buffer("mean_colour", torch.zeros(3, channels + 1))

    def set_maps(self, codec: PatchCodec) -> None:
        """Take the maps of the codec whose latents the network edits."""
        self.mean_colour.copy_(codec.mean_colour())
        for name, maps in zip(("first", "group"), codec.colour_maps(), strict=True):
            self.get_buffer(name).copy_(maps)

    def show(self, memory: MemoryBatch) -> Float[Tensor, "b n 15"]:
        """What every patch of a memory shows, at the position that changed most: what it is found by, from which colour, how much, and the gains.

        These turn the colour of the source there into that of the edit, and a darker or lighter one as light would.
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
        return torch.cat([(size + LEAST_CHANGE).log(), length, source, size, gains.flatten(2)], dim=-1)

    def recall(
        self, colours: Float[Tensor, "b 3 t h w"], shown: Float[Tensor, "b m 15"]
    ) -> tuple[Float[Tensor, "b 9 t h w"], Float[Tensor, "b 1 t h w"], Float[Tensor, "b 1 t h w"]]:
        """For every latent position the gains of the patches that changed and are like it, how much these changed, and how unlike they are."""
        one = torch.ones_like(colours[:, :1])
        # Less the squared distance of the colours, but for what is the same of all patches.
        wanted = torch.cat([PULL * one, -SHARPNESS * one, 2 * SHARPNESS * colours], dim=1).flatten(2).transpose(1, 2)
        keys, values = shown[..., :5], shown[..., 2:]
        # One head, and keys as wide as values: else torch takes an attention that is twenty times slower.
        width = values.shape[-1] - keys.shape[-1]
        wanted, keys = (F.pad(part, (0, width)) for part in (wanted, keys))
        # Likeness is a small difference of large numbers: too small for bfloat16.
        with torch.autocast(shown.device.type, enabled=False):
            found = F.scaled_dot_product_attention(wanted[:, None], keys[:, None], values[:, None], scale=1.0)
        seen, change, gains = (
            found[:, 0].transpose(1, 2).unflatten(2, colours.shape[2:]).split([3, 1, COLOUR_MAPS], dim=1)
        )
        distance = (seen - colours).square().sum(1, keepdim=True)
        return gains, change, distance

    def colours(self, latents: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b 3 t h w"]:
        """Mean RGB, in [0, 1], of what every latent position decodes to."""
        return self.colour_change(latents) + self.mean_colour[:, -1:, None, None].float()

    def colour_change(self, change: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b 3 t h w"]:
        """The same of what is added to latents."""
        with torch.autocast(change.device.type, enabled=False):
            return torch.einsum("kc,bcthw->bkthw", self.mean_colour[:, :-1].float(), change)

    def forward(
        self,
        sample: Float[Tensor, "b c t h w"],
        tokens: Float[Tensor, "b n d"],
        source: Float[Tensor, "b c t h w"],
        begins: Bool[Tensor, "b"] | None,
        shown: Float[Tensor, "b m k"] | None = None,
        *,
        noisy: Float[Tensor, "b c t h w"],
        sigma: Float[Tensor, "b 1 #t #h #w"],
    ) -> ColourChoice:
        """What may be added to the source, and which of it.

        Args:
            noisy, sigma: the latents that are denoised, and their noise.
            sample: the network's free output, to which its own change of colours is added.
            tokens: the last ones, of the target.
            begins: whether the target begins with its segment's first frame, which the codec encodes by itself; None: it does.
            shown: by all memories (`show`).
        """
        shape = source.shape[2:]
        mapped = self.mapped(source, begins)
        own = (sample + mix_maps(mapped, unpatchify(self.gains(tokens), shape, self.patch))).float()
        logits = unpatchify(self.choice(tokens), shape, self.patch).float()
        changes, colours = [own, torch.zeros_like(own)], self.colours(source.float())
        change = distance = torch.zeros_like(logits[:, :1])
        if shown is not None:
            gains, change, distance = self.recall(colours, shown)
            changes.append(mix_maps(mapped, gains).float())
            logits = torch.cat(
                [logits[:, :-1], logits[:, -1:] + TRUST_CHANGE * change + TRUST_DISTANCE * distance], dim=1
            )
        said = self.colour_change(own)
        logits = (logits + self.judged(logits, colours, said, changes[-1], change, distance))[:, : len(changes)]
        share = 1 - (CHOICE_SURENESS * logits.detach()).softmax(1)[:, NO_CHANGE, None]
        with torch.autocast(source.device.type, enabled=False):
            common = common_colour(said, colours, share)
            shown_by_noise = self.colour_change(noisy.float() - (1 - sigma) * source.float())
            linear = self.mean_colour[:, :-1].float()
            gains = common.gains(common.expected(shown_by_noise, sigma, noise=linear @ linear.T))
        changes[OWN] = own + common.weight * mix_maps(mapped, gains).float()
        return ColourChoice(changes=torch.stack(changes, dim=1), logits=logits)

    def judged(
        self,
        logits: Float[Tensor, "b e t h w"],
        colours: Float[Tensor, "b 3 t h w"],
        said: Float[Tensor, "b 3 t h w"],
        found: Tensor,
        change: Tensor,
        distance: Tensor,
    ) -> Float[Tensor, "b e t h w"]:
        """What is added to the logits, by all that is known of a position. Of changes it learns nothing but whether to make them."""
        of_logits, of_colours, of_changes, of_distance = SCALES
        evidence = [
            of_logits * logits,
            of_colours * colours,
            of_changes * said.detach(),
            of_changes * self.colour_change(found),
            of_changes * change,
            (of_distance * distance).clamp_max(10),
        ]
        return self.judge(torch.cat(evidence, dim=1).movedim(1, -1)).movedim(-1, 1)

    def mapped(
        self, source: Float[Tensor, "b c t h w"], begins: Bool[Tensor, "b"] | None
    ) -> Float[Tensor, "b 9 c t h w"]:
        """What every map makes of the source."""
        start = self.first[None] if begins is None else torch.where(begins.view(-1, 1, 1, 1), self.first, self.group)
        first = map_each(start, source[:, :, :1])
        if source.shape[2] == 1:
            return first
        return torch.cat([first, map_each(self.group[None], source[:, :, 1:])], dim=3)


def map_each(maps: Float[Tensor, "#b k c c1"], source: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b k c t h w"]:
    """What every map makes of every position."""
    linear, constant = maps[..., :-1].type_as(source), maps[..., -1].type_as(source)
    return torch.einsum("bkcd,bdthw->bkcthw", linear, source) + constant[..., None, None, None]


def mix_maps(mapped: Float[Tensor, "b k c t h w"], gains: Float[Tensor, "b k #t #h #w"]) -> Float[Tensor, "b c t h w"]:
    """The sum of what the maps make of the source, each as strong as its gain at the position."""
    return (mapped * gains[:, :, None]).sum(1)
