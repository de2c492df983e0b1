"""Find the directions of a `PatchCodec`: principal components of pixel patches, in closed form and in seconds.

Fitted mostly on rendered worlds (source and edited) and partly on moving 1/f noise, whose spectrum is that of photographs, so
that the codec is not tied to rendered edges.
"""

import math
from collections.abc import Iterable, Iterator

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from model.codec import PatchCodec
from model.training.worlds import make_world, render

Video = Float[Tensor, "3 T H W"]

CODEC_SEED = 1_000_000
"""Worlds the codec is fitted on: none of those the network is trained on."""


def world_videos(num_worlds: int, *, seed: int, size: tuple[int, int], num_frames: int = 17) -> Iterator[Video]:
    """Source and edited frames of training worlds, in [0, 1]."""
    for index in range(num_worlds):
        world = make_world(seed + index, split="train")
        start = (index * num_frames) % (world.num_frames - num_frames)
        frames = render(world, start, start + num_frames, size=size)
        for video in (frames.source, frames.edited):
            yield rearrange(video.float() / 255, "t h w c -> c t h w")


def fitting_videos(num_worlds: int, *, seed: int, size: tuple[int, int]) -> list[Video]:
    """What a codec is fitted on: two videos of each world, and half as many of noise as worlds (drawn from `seed`)."""
    return [
        *world_videos(num_worlds, seed=CODEC_SEED, size=size),
        *noise_videos(-(-num_worlds // 2), seed=seed, size=size),
    ]


def noise_videos(num_videos: int, *, seed: int, size: tuple[int, int], num_frames: int = 17) -> Iterator[Video]:
    """Two 1/f fields drifting against each other; correlated RGB as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    side = 2 * max(height, width)
    radius = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None]).clamp_min(1 / side)
    mix = torch.tensor([[0.57, 0.7, 0.4], [0.57, 0.0, -0.8], [0.57, -0.7, 0.4]]) * torch.tensor([1.0, 0.35, 0.15])
    frames = torch.arange(num_frames)[:, None, None]
    for _ in range(num_videos):
        video = torch.zeros(3, num_frames, height, width)
        for _ in range(2):
            spectrum = torch.fft.rfft2(torch.randn(3, side, side, generator=generator)) / radius
            field = torch.fft.irfft2(spectrum, s=(side, side))
            field = torch.einsum("rc,chw->rhw", mix, field / field.std())
            speed = torch.randn(2, generator=generator) * 1.2
            rows = (torch.arange(height)[None, :, None] + (frames * speed[0]).round().long()) % side
            columns = (torch.arange(width)[None, None] + (frames * speed[1]).round().long()) % side
            video += field[:, rows, columns]
        yield (0.5 + 0.13 * video).clamp(0, 1)


def fit_codec(
    videos: Iterable[Video], *, patch: tuple[int, int] = (4, 4), group_frames: int = 2, latent_channels: int = 48,
    num_shared: int = 24,
) -> PatchCodec:  # fmt: skip
    """Fit all directions and normalisation constants on `videos` (values in [0, 1]; 1 frame and groups of `group_frames`)."""
    (ph, pw), kt, channels = patch, group_frames, latent_channels
    first_patches, group_patches = [], []
    for video in videos:
        centred = video.double() - 0.5
        first_patches.append(rearrange(centred[:, :1], "c t (h p) (w q) -> (t h w) (p q c)", p=ph, q=pw))
        groups = rearrange(centred[:, 1:], "c (t f) (h p) (w q) -> (t h w) (p q c) f", p=ph, q=pw, f=kt)
        group_patches.append(groups)
    first, group = torch.cat(first_patches), torch.cat(group_patches)
    still = group.mean(-1)

    spatial = principal_directions(torch.cat([first, still]), min(channels, first.shape[1]))
    shared = spatial[:num_shared]
    # Shared rows average over the frames of a group, so their inverse repeats: both are exact on a still group.
    shared_encode = shared.repeat_interleave(kt, dim=1) / kt
    flat = group.flatten(1)
    residual = flat - (flat @ shared_encode.T) @ (shared_encode * kt)
    motion = principal_directions(residual, channels - num_shared)

    codec = PatchCodec(latent_channels=channels, patch=patch, group_frames=kt, num_shared=num_shared)
    codec.first_encode.copy_(spatial)
    codec.first_decode.copy_(spatial.T)
    codec.group_encode.copy_(torch.cat([shared_encode, motion]))
    codec.group_decode.copy_(torch.cat([shared_encode * kt, motion]).T)
    first_latents, group_latents = first @ codec.first_encode.double().T, flat @ codec.group_encode.double().T
    both = torch.cat([first_latents[:, :num_shared], group_latents[:, :num_shared]])
    for name, latents in (("first", first_latents), ("group", group_latents)):
        values = [(both.mean(0), both.std(0)), (latents[:, num_shared:].mean(0), latents[:, num_shared:].std(0))]
        getattr(codec, f"{name}_mean").copy_(torch.cat([mean for mean, _ in values]))
        getattr(codec, f"{name}_std").copy_(torch.cat([std for _, std in values]).clamp_min(1e-4))
    return codec


def principal_directions(rows: Float[Tensor, "n d"], count: int) -> Float[Tensor, "k d"]:
    """Orthonormal directions of most energy (about 0, not about the mean), strongest first, signs fixed."""
    _, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    directions = vectors.flip(1).T[:count]
    signs = directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
    return directions * signs


def psnr(codec: PatchCodec, video: Float[Tensor, "3 T H W"]) -> float:
    """Peak signal-to-noise ratio of one round trip, in dB."""
    decoded = codec.decode(codec.encode(video[None]))[0].clamp(0, 1)
    return -10 * math.log10(float((decoded - video).square().mean()) + 1e-12)
