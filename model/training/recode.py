"""Carry a network over to another codec: what it reads and what it says, in latents of the new one.

Both codecs are linear, so the change from one's latents to the other's is a matrix, and goes into the network's first and last layers.
Exact up to what a codec drops and what lies between a group's frames; the first frame's own channels, which every codec codes by
itself, and noise, which comes out less even, are left to training.
"""

from typing import cast

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from model.codec import PatchCodec
from model.transformer import MemoryTransformer3DModel


def recode(transformer: MemoryTransformer3DModel, before: PatchCodec, after: PatchCodec) -> None:
    """Let a network made for the codec `before` edit latents of `after`, in place.

    Raises:
        ValueError: if the codecs differ in more than their groups and directions.
    """
    for name in ("patch", "latent_channels"):
        known, new = (codec.patch if name == "patch" else codec.config[name] for codec in (before, after))
        if known != new:
            raise ValueError(f"the codec's {name} is {new}; the base has {known}, and needs the same")
    linear, constant = group_map(after, before)
    halves = transformer.config.in_channels // transformer.config.out_channels
    read, shift = torch.block_diag(*[linear] * halves), constant.repeat(halves)
    say, _ = group_map(before, after)
    with torch.no_grad():
        for embedding in (transformer.patch_embedding, *transformer.memory_patch_embedding.values()):
            weight, bias = cast(nn.Conv3d, embedding).weight, cast(Tensor, cast(nn.Conv3d, embedding).bias)
            bias += reduce(weight, "o c t h w -> o c", "sum") @ shift
            weight.copy_(torch.einsum("octhw,cd->odthw", weight, read))
        for values in (transformer.proj_out.weight, transformer.proj_out.bias):
            said = rearrange(values, "(k c) ... -> k c (...)", c=len(say))
            values.copy_((say @ said).reshape(values.shape))


def group_map(source: PatchCodec, target: PatchCodec) -> tuple[Float[Tensor, "c c"], Float[Tensor, "c"]]:
    """What a latent of a group of `source` is to `target`: linear @ latent + constant.

    A longer group shows the shorter one's frames for longer, a shorter one those that begin at its own.
    """
    shown = torch.arange(target.group_frames) * source.group_frames // target.group_frames
    pixels, mean = (
        rearrange(values, "(p f) ... -> p f ...", f=source.group_frames)[:, shown].flatten(0, 1)
        for values in (source.group_decode, source.group_decode @ source.group_mean)
    )
    linear = target.group_encode @ pixels * source.group_std / target.group_std[:, None]
    return linear, (target.group_encode @ mean - target.group_mean) / target.group_std
