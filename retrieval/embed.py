"""Image embeddings of source segments: the one door to open_clip. Knows frames and features; not what is retrieved with them.

A segment's embedding is the mean over ALL its frames of the unit-norm image features, made unit-norm again (Memory-V2V,
section 3.1: CLIP features of every source frame). A frame is squeezed to the model's input whatever its aspect ratio: a
centre crop, the usual way of these models, would not see what enters at the sides, and that is what retrieval is about.

Names: "bundled" (the small model of `weights/clip-tiny`), a local open_clip folder (`open_clip_config.json` beside the
weights), or any open_clip model as ARCHITECTURE:TAG ("ViT-B-32:laion2b_s34b_b79k") or ARCHITECTURE:FILE.
"""

import difflib
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, UInt8

if TYPE_CHECKING:
    import torch

BUNDLED_FOLDER = Path(__file__).parent / "weights" / "clip-tiny"
CONFIG_FILE = "open_clip_config.json"
FRAMES_PER_BATCH = 32


def _local_files(name: str) -> list[Path]:
    """The files that decide what `name` computes; empty for a published ARCHITECTURE:TAG.

    Raises:
        ValueError: if `name` is a folder without an open_clip model, or no form of name at all.
    """
    folder = BUNDLED_FOLDER if name == "bundled" else Path(name)
    if folder.is_dir():
        weights = sorted(folder.glob("*.safetensors")) or sorted([*folder.glob("*.bin"), *folder.glob("*.pth")])
        if not (folder / CONFIG_FILE).is_file() or not weights:
            raise ValueError(
                f"embedder folder {folder} needs {CONFIG_FILE} and a *.safetensors, *.bin or *.pth beside it"
            )
        return [folder / CONFIG_FILE, *weights]
    architecture, _, tag = name.partition(":")
    if not architecture or not tag:
        raise ValueError(
            f"embedder is {name!r}; needs 'bundled', a folder with {CONFIG_FILE}, or ARCHITECTURE:TAG "
            "('ViT-B-32:laion2b_s34b_b79k')"
        )
    return [Path(tag)] if Path(tag).is_file() else []


def embedder_revision(name: str = "bundled") -> str:
    """What identifies the features of `name` in an edit's spec. Imports neither torch nor open_clip.

    A hash of the files of a local model; the name itself for a published one, whose tags do not change.

    Raises:
        ValueError: as `_local_files`.
    """
    files = _local_files(name)
    if not files:
        return f"open_clip:{name}"
    digest = hashlib.sha256(name.partition(":")[0].encode() if Path(name.partition(":")[2]).is_file() else b"")
    for file in files:
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


class Embedder:
    """Turns frames into one unit vector. Build it with `load_embedder`.

    Attributes:
        name: what it was loaded by.
        revision: see `embedder_revision`.
        input_size: (height_px, width_px) every frame is squeezed to; frames decoded at this size are not resized again.
    """

    def __init__(self, model: Any, *, name: str, revision: str, device: str) -> None:
        import torch

        self.name, self.revision = name, revision
        self._model = model.visual.to(device).eval()
        self._device = torch.device(device)
        size = model.visual.image_size
        self.input_size: tuple[int, int] = (size, size) if isinstance(size, int) else (size[0], size[1])
        config = model.visual.preprocess_cfg
        self._mean = torch.tensor(config["mean"], device=device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(config["std"], device=device).view(1, 3, 1, 1) * 255

    def pixels(self, frames: "UInt8[torch.Tensor, 't h w 3']") -> "Float32[torch.Tensor, 't 3 height width']":
        """Model input of frames: squeezed (bicubic, antialiased) and normalised."""
        from torch.nn import functional

        planes = frames.to(self._device).permute(0, 3, 1, 2)
        if tuple(planes.shape[2:]) != self.input_size:
            planes = functional.interpolate(
                planes, self.input_size, mode="bicubic", antialias=True, align_corners=False
            )
        return (planes.float() - self._mean) / self._std

    def frame_features(self, frames: UInt8[np.ndarray, "t h w 3"]) -> Float32[np.ndarray, "t d"]:
        """Unit-norm image features of every frame.

        Raises:
            ValueError: if there is no frame, or the frames are not uint8 RGB.
        """
        import torch

        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
            raise ValueError(f"frames are {frames.dtype} of shape {frames.shape}; needs uint8 [T, H, W, 3] with T >= 1")
        features = []
        with torch.inference_mode():
            for first in range(0, len(frames), FRAMES_PER_BATCH):
                batch = torch.from_numpy(np.ascontiguousarray(frames[first : first + FRAMES_PER_BATCH]))
                found = self._model(self.pixels(batch))
                features.append(torch.nn.functional.normalize(found.float(), dim=-1).cpu().numpy())
        return np.concatenate(features)

    def embed_frames(self, frames: UInt8[np.ndarray, "t h w 3"]) -> Float32[np.ndarray, "d"]:
        """The embedding of one segment: mean of its frames' unit-norm features, unit-norm.

        Raises:
            ValueError: as `frame_features`.
        """
        mean = self.frame_features(frames).mean(axis=0, dtype=np.float64)
        return (mean / np.linalg.norm(mean)).astype(np.float32)


def load_embedder(name: str = "bundled", *, device: str = "cpu") -> Embedder:
    """Load an embedder by name (see the head of this file).

    Raises:
        ValueError: if the name is unknown (the nearest one is named), or its weights are neither here nor can be
            downloaded (the message says which files to put where).
    """
    revision = embedder_revision(name)
    files = _local_files(name)
    import open_clip

    if files and files[0].name == CONFIG_FILE:
        model = open_clip.create_model(f"local-dir:{files[0].parent}", require_pretrained=True)
        return Embedder(model, name=name, revision=revision, device=device)
    architecture, _, tag = name.partition(":")
    _check_published(architecture, tag, is_file=bool(files))
    try:
        model = open_clip.create_model(architecture, pretrained=tag, require_pretrained=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"embedder {name!r} could not be loaded ({type(error).__name__}: {str(error).splitlines()[0][:200]}). {_where_to_put(architecture, tag)}"
        ) from error
    return Embedder(model, name=name, revision=revision, device=device)


def _check_published(architecture: str, tag: str, *, is_file: bool) -> None:
    import open_clip

    known = open_clip.list_models()
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=1)
        raise ValueError(
            f"embedder architecture is {architecture!r}; open_clip knows no such model"
            + (f", the nearest is {near[0]!r}" if near else "")
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if not is_file and tag not in tags:
        raise ValueError(
            f"embedder weights are {tag!r}; for {architecture} needs a file or one of {', '.join(tags) or 'none'}"
        )


def _where_to_put(architecture: str, tag: str) -> str:
    """What a machine without a route to the hub needs."""
    import open_clip

    published = open_clip.get_pretrained_cfg(architecture, tag) or {}
    source = published.get("hf_hub", "").rstrip("/") or published.get("url", "its publisher")
    return (
        f"Without a route to the hub: download the model from {source} elsewhere, put open_clip_model.safetensors (or "
        f"open_clip_pytorch_model.bin) and {CONFIG_FILE} into a folder and name that folder as the embedder, or name "
        f"the weights file as {architecture}:/path/to/file."
    )
