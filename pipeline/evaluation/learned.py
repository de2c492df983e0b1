"""Measures that are other people's networks, for those who have the weights; nothing is downloaded.

    clip_f   mean cosine of the open_clip embeddings of consecutive frames (0 to 1), cuts left out
    dino_f   the same of a DINO's features (any timm image model)
    lpips    learned perceptual distance from the truth (0 is the same), AlexNet

The one door to timm and torchmetrics. Knows frames and files; not edits or segments. Imports torch only where it computes: the driver
holds `LearnedMeasures` and nothing else.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval.embed import embedder_revision, load_embedder

FRAMES_PER_BATCH = 32
FEATURE_METRICS, LPIPS_METRIC = ("clip_f", "dino_f"), "lpips"
MIN_LPIPS_PX = 64
"""AlexNet's convolutions leave nothing of smaller frames: these are enlarged."""

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    Features = Callable[[Float[Tensor, "t h w 3"]], Float[Tensor, "t d"]]
    Distance = Callable[[Float[Tensor, "t h w 3"], Float[Tensor, "t h w 3"]], Float[Tensor, "t"]]


@dataclass(frozen=True, kw_only=True)
class LearnedMeasures:
    """Which of them are taken.

    Attributes:
        clip: an embedder, as `retrieval.embed` names them.
        dino: ARCHITECTURE:FILE, a timm image model and its weights.
        lpips: file of torchvision's AlexNet weights.
    """

    clip: str | None = None
    dino: str | None = None
    lpips: Path | None = None

    def check(self) -> None:
        """Whether all can be had, before any work.

        Raises:
            ValueError: for a name that is none, or a file that is not there or does not fit.
        """
        if self.clip is not None:
            embedder_revision(self.clip)
        if self.dino is not None:
            dino_features(self.dino)
        if self.lpips is not None:
            lpips_distance(self.lpips)

    def features(self) -> "dict[str, Features]":
        """Unit-norm features of frames in [0, 1], by the measure that is made of them."""
        found: "dict[str, Features]" = {}
        if self.clip is not None:
            found["clip_f"] = clip_features(self.clip)
        if self.dino is not None:
            found["dino_f"] = dino_features(self.dino)
        return found


@cache
def clip_features(name: str) -> "Features":
    import torch

    embedder = load_embedder(name)

    def features(frames: "Tensor") -> "Tensor":
        return torch.from_numpy(embedder.frame_features((frames * 255).round().to(torch.uint8).numpy()))

    return features


@cache
def dino_features(name: str) -> "Features":
    """Features of a timm model; frames are squeezed to its input.

    Raises:
        ValueError: for an unknown architecture, a file that is not there, or weights of another network.
    """
    import timm
    import torch
    from torch.nn import functional

    architecture, _, file = name.partition(":")
    if architecture not in timm.list_models():
        near = difflib.get_close_matches(architecture, timm.list_models(), n=1)
        hint = f"; the nearest of timm's models is {near[0]!r}" if near else ""
        raise ValueError(
            f"--dino is {name!r}; needs ARCHITECTURE:FILE, such as vit_small_patch14_dinov2:dino.pth{hint}"
        )
    if not Path(file).is_file():
        raise ValueError(f"--dino names the weights file {file!r}, which is not there; needs ARCHITECTURE:FILE")
    try:
        model = timm.create_model(architecture, pretrained=False, num_classes=0, checkpoint_path=file)
    except RuntimeError as error:
        raise ValueError(f"--dino: {file} does not fit {architecture}: {str(error).splitlines()[0]}") from error
    model = model.eval().requires_grad_(False)
    config = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))

    @torch.inference_mode()
    def features(frames: "Tensor") -> "Tensor":
        found = []
        for batch in frames.split(FRAMES_PER_BATCH):
            pixels = functional.interpolate(
                batch.permute(0, 3, 1, 2), config["input_size"][1:], mode="bicubic", antialias=True, align_corners=False
            )
            found.append(functional.normalize(model((pixels - mean) / std), dim=-1))
        return torch.cat(found)

    return features


@cache
def lpips_distance(file: Path) -> "Distance":
    """LPIPS of frames in [0, 1]; its linear layers are torchmetrics' own, the AlexNet below them is `file`.

    Raises:
        ValueError: if the file is not there or is no AlexNet.
    """
    import torch
    from torch.nn import functional
    from torchmetrics.functional.image.lpips import _LPIPS  # its public class only takes weights that it downloads

    if not file.is_file():
        raise ValueError(f"--lpips is {str(file)!r}, which is not there; needs torchvision's alexnet-owt-7be5be79.pth")
    network = _LPIPS(net="alex", pnet_rand=True)
    layers = [layer for part in network.net.children() for layer in part.children()]
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
        for index, layer in enumerate(layers):
            prefix = f"features.{index}."
            layer.load_state_dict({k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)})
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"--lpips: {file} is no AlexNet of torchvision: {str(error).splitlines()[0]}") from error

    @torch.inference_mode()
    def distance(frames: "Tensor", truth: "Tensor") -> "Tensor":
        parts = []
        for pair in zip(frames.split(FRAMES_PER_BATCH), truth.split(FRAMES_PER_BATCH), strict=True):
            planes = [part.permute(0, 3, 1, 2) for part in pair]
            scale = max(1.0, MIN_LPIPS_PX / min(planes[0].shape[2:]))
            if scale > 1:
                planes = [functional.interpolate(p, scale_factor=scale, mode="bilinear") for p in planes]
            parts.append(network(*planes, normalize=True).flatten())
        return torch.cat(parts)

    return distance
