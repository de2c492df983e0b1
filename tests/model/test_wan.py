"""Wan's VAE behind our interface, where two threads share it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from diffusers import LucyEditPipeline

from model.wan import WanCodec
from tests.pipelines import lucy


def test_two_threads_get_what_one_gets(tmp_path: Path) -> None:
    """A worker encodes the next segment's source while it decodes this one's edit."""
    lucy(tmp_path / "lucy")
    codec = WanCodec(LucyEditPipeline.from_pretrained(tmp_path / "lucy").vae)
    videos = list(torch.rand(8, 1, 3, 9, 32, 48))
    encode, decode = torch.inference_mode()(codec.encode), torch.inference_mode()(codec.decode)
    latents = [encode(video) for video in videos]
    frames = [decode(latent) for latent in latents]
    with ThreadPoolExecutor(4) as pool:
        encoding = [pool.submit(encode, video) for video in videos]
        decoding = [pool.submit(decode, latent) for latent in latents]
    for tasks, wanted in ((encoding, latents), (decoding, frames)):
        assert all(torch.equal(task.result(), one) for task, one in zip(tasks, wanted, strict=True))
