"""Trains a small CLIP with open_clip's own model, tokenizer and loss. Knows pairs of images and captions; not where they come from.

Three contrastive terms: either image of a pair against the captions, and the two images against each other. The third is
what retrieval lives on: two views of the same place must find one another among other views, also of the same video.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import UInt8
from open_clip.loss import ClipLoss
from safetensors.torch import save_file
from torch import Tensor

from retrieval.embed import CONFIG_FILE, Embedder

TINY_CLIP: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 96, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
"""Image tower: 4 blocks over 8 x 8 patches of 64 x 64 pixels. Most of the file is the text tower's 49,408 words."""


@dataclass(frozen=True, kw_only=True)
class ImagePairs:
    """Row i of `first` and of `second` show the same thing, which is what `captions[i]` says."""

    first: UInt8[Tensor, "b h w 3"]
    second: UInt8[Tensor, "b h w 3"]
    captions: list[str]


@dataclass(frozen=True, kw_only=True)
class ClipTraining:
    """How long and how fast."""

    num_steps: int = 650
    learning_rate: float = 1e-3
    warmup_steps: int = 60
    weight_decay: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps}; needs at least 1")

    def rate_at(self, step: int) -> float:
        """Linear warm-up, then half a cosine to zero."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def new_clip(config: dict[str, Any], *, seed: int) -> open_clip.CLIP:
    """An untrained open_clip model of `config`."""
    torch.manual_seed(seed)
    model = open_clip.CLIP(**config)
    open_clip.factory.set_model_preprocess_cfg(
        model, {**open_clip.transform.PreprocessCfg().__dict__, "size": model.visual.image_size}
    )
    return model


def train_clip(
    pairs: Iterator[ImagePairs],
    *,
    training: ClipTraining,
    config: dict[str, Any] = TINY_CLIP,
    on_step: Callable[[int, float], None] | None = None,
) -> open_clip.CLIP:
    """Train on one batch of pairs per step. `on_step(step, loss)` is told about each."""
    model = new_clip(config, seed=training.seed)
    tokenize = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
    embedder = Embedder(model, name="training", revision="", device="cpu")
    contrast = ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=training.weight_decay)
    model.train()
    for step in range(training.num_steps):
        batch = next(pairs)
        for group in optimizer.param_groups:
            group["lr"] = training.rate_at(step)
        images = embedder.pixels(torch.cat([batch.first, batch.second]))
        first, second = model.encode_image(images, normalize=True).chunk(2)
        text = model.encode_text(tokenize(batch.captions), normalize=True)
        scale = model.logit_scale.exp()
        loss = (contrast(first, text, scale) + contrast(second, text, scale)) / 2 + contrast(first, second, scale)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if on_step is not None:
            on_step(step, loss.item())
    return model.eval()


def save_clip(model: open_clip.CLIP, config: dict[str, Any], folder: Path) -> None:
    """Write an open_clip local folder: config and half-precision weights."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = model.visual.preprocess_cfg
    described = {"model_cfg": config, "preprocess_cfg": {name: preprocess[name] for name in ("mean", "std")}}
    (folder / CONFIG_FILE).write_text(json.dumps(described, indent=1) + "\n")
    weights = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, str(folder / "open_clip_model.safetensors"))
