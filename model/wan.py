"""Wan's VAE and text encoder behind the interfaces of `PatchCodec` and `ByteTextEncoder`, used as diffusers' pipelines use them.

Source latents are the mode of the posterior, normalised per channel by the VAE's own mean and standard deviation. A text is
512 features, zero behind its end, and is attended to as a whole.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForTextEncoding, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from model.prompts import clean_prompt
from model.weights import load_vae

KEPT_PROMPTS = 16
"""Features of recent prompts that are kept: all segments of a video have the same."""


class WanCodec:
    """Videos to normalised latents and back, one at a time: diffusers' VAE keeps the last frames of every layer in itself while
    it works, and the prefetch of a next segment runs beside the task of this one.

    Args:
        is_tiled: work on overlapping tiles of 256 px: less memory, seams blended.
    """

    def __init__(self, vae: AutoencoderKLWan, *, is_tiled: bool = False) -> None:
        self.vae = vae
        self._lock = threading.Lock()
        if is_tiled:
            vae.enable_tiling()
        self.mean, self.std = (
            torch.tensor(values, device=vae.device, dtype=torch.float32).view(1, -1, 1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )

    @classmethod
    def from_pretrained(cls, folder: Path, *, device: str = "cpu", is_tiled: bool = False) -> "WanCodec":
        return cls(load_vae(folder, device=device), is_tiled=is_tiled)

    @property
    def patch(self) -> tuple[int, int]:
        """Pixels per latent position along (height, width)."""
        scale = self.vae.config.scale_factor_spatial or 8
        return scale, scale

    @property
    def group_frames(self) -> int:
        """Frames per latent frame after the first."""
        return self.vae.config.scale_factor_temporal or 4

    def encode(self, video: Float[Tensor, "b 3 T H W"]) -> Float[Tensor, "b c t h w"]:
        """Normalised latents of RGB frames in [0, 1]."""
        with self._lock:
            latents = self.vae.encode(2 * video - 1).latent_dist.mode()
        return (latents - self.mean) * (1.0 / self.std)

    def decode(self, latents: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b 3 T H W"]:
        """Frames in [0, 1]; the VAE itself clamps them."""
        with self._lock:
            return (self.vae.decode(latents / (1.0 / self.std) + self.mean).sample + 1) / 2


class WanTextEncoder:
    """umT5 (or T5) over its own tokenizer.

    Args:
        max_tokens: length every text is padded to.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel, *, max_tokens: int) -> None:
        self.tokenizer, self.encoder, self.max_tokens = tokenizer, encoder, max_tokens
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    @classmethod
    def from_pretrained(
        cls, folder: Path, tokenizer: Path, *, max_tokens: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> "WanTextEncoder":
        """Raises ValueError if the encoder's weights are not whole."""
        encoder, found = AutoModelForTextEncoding.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
        lost = sorted(found["missing_keys"])
        if lost:
            raise ValueError(f"weights in {folder} do not fit: missing {lost[:5]}")
        return cls(
            AutoTokenizer.from_pretrained(tokenizer, local_files_only=True),
            encoder.to(device).eval(),
            max_tokens=max_tokens,
        )

    def __call__(self, prompts: Sequence[str]) -> tuple[Float[Tensor, "b l d"], None]:
        """Features of every prompt. There is no mask: Wan attends to the zeros behind a text too."""
        return torch.cat([self.features(prompt) for prompt in prompts]), None

    def features(self, prompt: str) -> Float[Tensor, "1 l d"]:
        """Raises ValueError for a prompt of more than `max_tokens` tokens."""
        if prompt not in self._kept:
            batch = self.tokenizer(
                [clean_prompt(prompt)], padding="max_length", max_length=self.max_tokens, return_tensors="pt"
            )
            if batch.input_ids.shape[1] > self.max_tokens:
                raise ValueError(f"prompt has {batch.input_ids.shape[1]} tokens; needs at most {self.max_tokens}")
            ids, mask = batch.input_ids.to(self.encoder.device), batch.attention_mask.to(self.encoder.device)
            features = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            self._kept[prompt] = features * mask[..., None].to(features.dtype)
            if len(self._kept) > KEPT_PROMPTS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(prompt)
        return self._kept[prompt]
