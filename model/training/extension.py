"""Target extension: a clip is continued, and what comes after it is what training remembers (paper section 4.1).

Most edited videos are one segment long and so have no memory of themselves. The paper lets FramePack continue the edited
clip and draws memories from that; here an `Extender` does, of which there are two. Continuations are memories only: never a
target, and never "previous", as they come after the clip.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from model.editor import MemoryEditor
from model.memory import BASE_KERNEL
from model.training.config import TrainingConfig
from model.training.segments import Segments, VideoCodec, encode, latent_mask
from model.training.start import Start
from model.types import EditRequest, MemoryVideo

CHANGED = 0.1
"""A pixel counts as edited where its colour moved by so much of the range (mean of the channels)."""
FRAMEPACK_MULTIPLE_PX = 16


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One segment in latents. `source` is None where nobody knows what the edit would have been made of."""

    source: Float[Tensor, "c t h w"] | None
    edited: Float[Tensor, "c t h w"]


class Extender(Protocol):
    def extend(self, clip: Clip, instruction: str, *, num_segments: int, seed: int) -> list[Clip]:
        """The segments that follow a clip, the nearest first."""
        ...


@dataclass(frozen=True, kw_only=True)
class OwnExtender:
    """The network to be trained goes on: it edits the source played backwards, then forwards, remembering the segment before.

    So the joint is smooth, the continuation has a source like any other memory, and the faults are the network's own.
    """

    editor: MemoryEditor

    @torch.no_grad()
    def extend(self, clip: Clip, instruction: str, *, num_segments: int, seed: int) -> list[Clip]:
        assert clip.source is not None
        codec, found = self.editor.codec, [clip]
        pixels = codec.decode(clip.source[None].float().to(self.editor.device))
        for number in range(num_segments):
            before = found[-1]
            assert before.source is not None
            pixels = pixels.flip(2)
            source = codec.encode(pixels)[0].cpu()
            memory = MemoryVideo(
                role="previous", kernel=BASE_KERNEL, edited=before.edited.float(), source=before.source.float()
            )  # fmt: skip
            request = EditRequest(instruction=instruction, source=source, memory=(memory,), seed=seed + number)
            found.append(Clip(source=source, edited=self.editor.edit(request).latent))
        return found[1:]


@dataclass(frozen=True, kw_only=True)
class FramePackExtender:
    """diffusers' `HunyuanVideoFramepackPipeline` goes on from the last edited frame. It knows no source.

    Attributes:
        options: of the pipeline's call.
    """

    pipeline: Any
    codec: VideoCodec
    segment_frames: int
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_pretrained(
        cls, folder: Path, *, codec: VideoCodec, segment_frames: int, device: str
    ) -> "FramePackExtender":
        """Raises ValueError if the folder is no such pipeline."""
        from diffusers import HunyuanVideoFramepackPipeline

        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        try:
            pipeline = HunyuanVideoFramepackPipeline.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"framepack is {folder}; needs a HunyuanVideoFramepackPipeline folder: {error}") from error
        pipeline.set_progress_bar_config(disable=True)
        return cls(pipeline=pipeline.to(device), codec=codec, segment_frames=segment_frames)

    @torch.no_grad()
    def extend(self, clip: Clip, instruction: str, *, num_segments: int, seed: int) -> list[Clip]:
        device = self.pipeline.device
        last = self.codec.decode(clip.edited[None].float().to(device))[:, :, -1].clamp(0, 1)
        size = last.shape[2:]
        height, width = (-(-side // FRAMEPACK_MULTIPLE_PX) * FRAMEPACK_MULTIPLE_PX for side in size)
        wanted = num_segments * self.segment_frames
        made = self.pipeline(
            image=functional.interpolate(last, (height, width), mode="bilinear"),
            prompt=instruction,
            height=height,
            width=width,
            num_frames=wanted + 1,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
            **self.options,
        ).frames[0][1 : wanted + 1]
        assert len(made) == wanted, f"FramePack made {len(made)} frames of {wanted}"
        video = rearrange(functional.interpolate(made.float(), tuple(size), mode="area"), "t c h w -> 1 c t h w")
        return [
            Clip(source=None, edited=encode(self.codec, part.to(device)).cpu())
            for part in video.split(self.segment_frames, dim=2)
        ]


def make_extender(config: TrainingConfig, start: Start) -> Extender:
    """The one the options ask for.

    Raises:
        ValueError: if its weights are not there.
    """
    device = "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"
    if config.extension == "own":
        assert start.base is not None
        return OwnExtender(editor=MemoryEditor.from_preset(start.base, device=device))
    assert config.framepack is not None
    return FramePackExtender.from_pretrained(
        config.framepack, codec=start.codec, segment_frames=start.geometry.segment_frames, device=device
    )


def extend_segments(
    segments: Segments, extender: Extender, codec: VideoCodec, *, num_segments: int, seed: int
) -> Segments:
    """The segments with every video continued after its last one. Every video has a seed of its own."""
    latents: dict[str, list[Tensor]] = {"source": [], "edited": [], "mask": []}
    rows: list[int] = []
    is_generated: list[bool] = []
    worlds = segments.world.tolist()
    for row, world in enumerate(worlds):
        latents["source"].append(segments.source[row])
        latents["edited"].append(segments.edited[row])
        latents["mask"].append(segments.mask[row])
        rows.append(row)
        is_generated.append(False)
        if row + 1 < len(worlds) and worlds[row + 1] == world:
            continue
        clip = Clip(source=segments.source[row], edited=segments.edited[row])
        instruction = segments.instructions[world]
        for made in extender.extend(clip, instruction, num_segments=num_segments, seed=seed + row * num_segments):
            edited = made.edited.bfloat16()
            source = torch.zeros_like(edited) if made.source is None else made.source.bfloat16()
            latents["source"].append(source)
            latents["edited"].append(edited)
            # Nobody knows what of a continuation without source is edited: it counts as showing the edit.
            whole = torch.ones_like(segments.mask[row])
            latents["mask"].append(whole if made.source is None else latent_changes(source, edited, codec))
            rows.append(row)
            is_generated.append(True)
    return Segments(
        source=torch.stack(latents["source"]),
        edited=torch.stack(latents["edited"]),
        mask=torch.stack(latents["mask"]),
        instructions=segments.instructions,
        world=segments.world[rows],
        shot=segments.shot[rows],
        is_generated=torch.tensor(is_generated),
    )


@torch.no_grad()
def latent_changes(
    source: Float[Tensor, "c t h w"], edited: Float[Tensor, "c t h w"], codec: VideoCodec
) -> Bool[Tensor, "t h w"]:
    """Where an edit changed the picture, as far as latents tell."""
    before, after = (codec.decode(latents[None].float())[0] for latents in (source, edited))
    return latent_mask(changed_pixels(before, after), codec)


def changed_pixels(source: Float[Tensor, "3 T H W"], edited: Float[Tensor, "3 T H W"]) -> Bool[Tensor, "T H W"]:
    """Where colours moved by more than compression moves them."""
    return (edited - source).abs().mean(0) > CHANGED
