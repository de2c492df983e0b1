"""`MemoryEditor`: Memory-V2V as an `Editor`. Encodes, edits and decodes one segment.

Made of parts behind small interfaces (networks, codec, text encoder, sampler), so that `tiny` and every diffusers Wan or
LucyEdit pipeline are edited with by the same code. The result is a pure function of the request and the weights: noise is
drawn on the CPU from the request's seed. With isolated memory the encoded memories of recent calls are kept, found by their
content; keeping them only saves time. Knows nothing of how a memory was found; its kernel comes with it.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from diffusers.models.attention_dispatch import attention_backend
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from model.flow import NUM_TRAIN_TIMESTEPS, predicted_velocity
from model.geometry import Geometry
from model.memory import kernel_name
from model.merging import Merging
from model.presets import Preset
from model.samplers import EulerSampler, Sampler, SchedulerSampler, load_scheduler
from model.text_encoder import ByteTextEncoder
from model.transformer import MemoryTransformer3DModel
from model.types import EditRequest, EditResult, EncodedMemory, MemoryBatch, MemoryVideo
from model.wan import WanCodec, WanTextEncoder
from model.weights import load_codec, load_transformer

ENCODED_BYTES = 256 << 20
"""Of keys and values kept on a CPU; one memory of `tiny` takes up to 3 MB."""
ENCODED_SHARE = 8
"""On a GPU an eighth of its memory; one memory of Wan2.2-5B takes 0.2 to 3 GB."""


def encoded_bytes(device: str) -> int:
    is_gpu = torch.device(device).type == "cuda"
    return torch.cuda.get_device_properties(device).total_memory // ENCODED_SHARE if is_gpu else ENCODED_BYTES


class Codec(Protocol):
    def encode(self, video: Float[Tensor, "b 3 T H W"]) -> Float[Tensor, "b c t h w"]: ...

    def decode(self, latents: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b 3 T H W"]: ...


class TextEncoder(Protocol):
    def __call__(self, prompts: Sequence[str], /) -> tuple[Float[Tensor, "b l d"], Bool[Tensor, "b l"] | None]: ...


def make_sampler(preset: Preset) -> Sampler:
    """Euler steps, or those of a pipeline's own scheduler.

    Raises:
        ValueError: if settings or scheduler do not fit.
    """
    settings = preset.sampler
    if "scheduler" not in preset.components:
        return EulerSampler(num_inference_steps=settings["num_inference_steps"], shift=settings["shift"])
    return SchedulerSampler(
        scheduler=load_scheduler(preset.components["scheduler"], shift=settings.get("shift")),
        num_inference_steps=settings["num_inference_steps"],
        strength=settings.get("strength", 1.0),
    )


EncodedKey = tuple[int, bytes, str]
"""Which network encoded it, the content of its latents, its kernel."""


class EncodedLRU:
    """Recently used encoded memories, at most `max_bytes` of them."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self._entries: OrderedDict[EncodedKey, EncodedMemory] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: EncodedKey) -> EncodedMemory | None:
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: EncodedKey, encoded: EncodedMemory) -> None:
        self._entries[key] = encoded
        self.num_bytes += encoded.num_bytes
        while self.num_bytes > self.max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.num_bytes -= oldest.num_bytes


def sees_source(network: MemoryTransformer3DModel) -> bool:
    """Whether the source's latents stand on channels behind the noisy ones; a plain text-to-video network has no room."""
    return bool(network.config.in_channels == 2 * network.config.out_channels)


@dataclass(kw_only=True)
class MemoryEditor:
    """`networks` are one transformer, or two of which the first works where there is more noise (Wan2.2-A14B)."""

    preset: Preset
    networks: tuple[MemoryTransformer3DModel, ...]
    codec: Codec
    text_encoder: TextEncoder
    sampler: Sampler
    device: str = "cpu"
    encoded: EncodedLRU = field(default_factory=lambda: EncodedLRU(ENCODED_BYTES))

    @classmethod
    def from_preset(cls, preset: Preset, *, device: str = "cpu") -> "MemoryEditor":
        """Load every component of a preset.

        Raises:
            ValueError: if weights or settings do not fit.
        """
        dtype, folders = getattr(torch, preset.precision), preset.components
        networks = tuple(
            load_transformer(
                folders[name],
                dtype=dtype,
                device=device,
                lora=[lora for lora in preset.lora if lora.component == name],
            )
            for name in ("transformer", "transformer_2")
            if name in folders
        )
        if preset.attention_backend is not None:
            # Outside the context diffusers would make it the default of all networks in this process.
            with attention_backend():
                for network in networks:
                    network.set_attention_backend(preset.attention_backend)
        codec: Codec
        text_encoder: TextEncoder
        if "vae" in folders:
            codec = WanCodec.from_pretrained(folders["vae"], device=device, is_tiled=preset.is_vae_tiled)
        else:
            codec = load_codec(folders["codec"], device=device)
        if "tokenizer" in folders:
            text_encoder = WanTextEncoder.from_pretrained(
                folders["text_encoder"],
                folders["tokenizer"],
                max_tokens=preset.max_instruction_tokens,
                dtype=dtype,
                device=device,
            )
        else:
            text_encoder = ByteTextEncoder.from_pretrained(folders["text_encoder"]).to(device).eval()
        return cls(
            preset=preset,
            networks=networks,
            codec=codec,
            text_encoder=text_encoder,
            sampler=make_sampler(preset),
            device=device,
            encoded=EncodedLRU(encoded_bytes(device)),
        )

    @property
    def transformer(self) -> MemoryTransformer3DModel:
        return self.networks[0]

    @property
    def geometry(self) -> Geometry:
        return self.preset.geometry

    @property
    def weights_revision(self) -> str:
        return self.preset.weights_revision

    @torch.inference_mode()
    def encode(self, frames: UInt8[Tensor, "T H W 3"]) -> Float[Tensor, "c t h w"]:
        """Normalised latents.

        Raises:
            ValueError: if length or size is not one of this editor's.
        """
        num_frames, height, width, _ = frames.shape
        if not 1 <= num_frames <= self.geometry.segment_frames or self.geometry.padded_frames(num_frames) != num_frames:
            raise ValueError(
                f"segment has {num_frames} frames; needs {self.geometry.min_frames} to {self.geometry.segment_frames}, "
                f"{self.geometry.frame_multiple}n+1"
            )
        if (height, width) not in self.geometry.sizes:
            raise ValueError(f"segment is {height}x{width} px; needs one of {self.geometry.sizes}")
        video = rearrange(frames.to(self.device).float() / 255, "t h w c -> 1 c t h w")
        return self.codec.encode(video)[0].cpu()

    @torch.inference_mode()
    def edit(self, request: EditRequest) -> EditResult:
        """Sample the edited latents from seeded noise; every step sees source, instruction and memories.

        Raises:
            ValueError: if the instruction is empty or too long.
        """
        self.preset.check_instruction(request.instruction)
        sampler = self.preset.sampler
        noise = torch.randn(request.source.shape, generator=torch.Generator().manual_seed(request.seed))
        source = request.source[None].to(self.device, torch.float32)
        settings = request.settings.resolved(sampler)
        merging = Merging.of(settings) if request.memory else None
        scales = [sampler["guidance_scale"]]
        scales.append(sampler.get("guidance_scale_2", scales[0]))
        is_guided = any(scale != 1.0 for scale in scales[: len(self.networks)])
        prompts = [request.instruction, sampler.get("negative_prompt", "")] if is_guided else [request.instruction]
        texts = [self.text_encoder([prompt]) for prompt in prompts]
        memories: dict[int, list[MemoryBatch | EncodedMemory]] = {}

        def velocity(x_t: Float[Tensor, "b c t h w"], timestep: Tensor, sigma: float) -> Float[Tensor, "b c t h w"]:
            number = self.network_at(timestep)
            network = self.networks[number]
            if number not in memories:
                memories[number] = [
                    self.prepare_memory(item, number=number, has_source=settings.has_source) for item in request.memory
                ]
            seen = torch.cat([x_t, source], dim=1) if sees_source(network) else x_t
            outputs = [
                network(
                    seen.to(network.dtype),
                    timestep,
                    features.to(network.dtype),
                    encoder_attention_mask=mask,
                    memory=memories[number],
                    merging=merging,
                ).sample.float()
                for features, mask in (texts if scales[number] != 1.0 else texts[:1])
            ]
            # Guidance and what an output means are both linear with weights that sum to 1: their order does not matter.
            output, *without = outputs
            for other in without:
                output = other + scales[number] * (output - other)
            kind = network.config.prediction_type
            return predicted_velocity(output, x_t, sigma, source=source, prediction_type=kind)

        latent = self.sampler(velocity, noise[None].to(self.device), source)
        return EditResult(latent=latent[0].cpu())

    def network_at(self, timestep: Float[Tensor, "b"]) -> int:
        """Which of the networks works at this level of noise."""
        boundary = self.preset.boundary_ratio
        return int(
            len(self.networks) > 1 and boundary is not None and bool(timestep[0] < boundary * NUM_TRAIN_TIMESTEPS)
        )

    def prepare_memory(
        self, item: MemoryVideo, *, number: int = 0, has_source: bool = True
    ) -> MemoryBatch | EncodedMemory:
        """On the device, in a network's precision, source latents zero where they are not to be seen; encoded where its
        memory is isolated."""
        network = self.networks[number]
        source = item.source if has_source else torch.zeros_like(item.source)
        latents = (torch.cat([item.edited, source]) if sees_source(network) else item.edited)[None].float()
        batch = MemoryBatch(role=item.role, kernel=item.kernel, latents=latents.to(self.device, network.dtype))
        if not network.is_isolated:
            return batch
        digest = hashlib.sha256(latents.contiguous().numpy().tobytes()).digest()
        key = (number, digest, kernel_name(item.kernel))
        encoded = self.encoded.get(key)
        if encoded is None:
            encoded = network.encode_memory(batch)
            self.encoded.put(key, encoded)
        return replace(encoded, role=item.role)

    @torch.inference_mode()
    def decode(self, latent: Float[Tensor, "c t h w"]) -> Float[Tensor, "T H W 3"]:
        """Frames in [0, 1], not clamped."""
        video = self.codec.decode(latent[None].to(self.device, torch.float32))[0]
        return rearrange(video, "c t h w -> t h w c").cpu()
