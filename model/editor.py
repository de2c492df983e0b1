"""`MemoryEditor`: Memory-V2V as an `Editor`. Encodes, edits and decodes one segment.

The result is a pure function of the request and the weights: noise is drawn on the CPU from the request's seed. With
isolated memory the encoded memories of recent calls are kept, found by their content; keeping them only saves time.
Everything runs in float32 (on a CPU bfloat16 is slower at this size).
Knows nothing of how a memory was found; its kernel comes with it.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field, replace

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from model.codec import PatchCodec
from model.flow import NUM_TRAIN_TIMESTEPS, predicted_x_0, sample, sigma_schedule
from model.geometry import Geometry
from model.memory import kernel_name
from model.merging import Merging
from model.presets import Preset
from model.text_encoder import ByteTextEncoder
from model.transformer import MemoryTransformer3DModel
from model.types import EditRequest, EditResult, EncodedMemory, MemoryBatch, MemoryVideo
from model.weights import load_codec, load_transformer

ENCODED_BYTES = 256 << 20
"""Of keys and values kept on the device; one memory of `tiny` takes up to 3 MB."""


class EncodedLRU:
    """Recently used encoded memories, at most `max_bytes` of them, by the content of their latents and their kernel."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self._entries: OrderedDict[tuple[bytes, str], EncodedMemory] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: tuple[bytes, str]) -> EncodedMemory | None:
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: tuple[bytes, str], encoded: EncodedMemory) -> None:
        self._entries[key] = encoded
        self.num_bytes += encoded.num_bytes
        while self.num_bytes > self.max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.num_bytes -= oldest.num_bytes


@dataclass(kw_only=True)
class MemoryEditor:
    preset: Preset
    transformer: MemoryTransformer3DModel
    codec: PatchCodec
    text_encoder: ByteTextEncoder
    device: str = "cpu"
    encoded: EncodedLRU = field(default_factory=lambda: EncodedLRU(ENCODED_BYTES))

    @classmethod
    def from_preset(cls, preset: Preset, *, device: str = "cpu") -> "MemoryEditor":
        """Load every component of a preset's folder."""
        transformer = load_transformer(preset.path / "transformer")
        codec = load_codec(preset.path / "codec")
        text_encoder = ByteTextEncoder.from_pretrained(preset.path / "text_encoder")
        return cls(
            preset=preset,
            transformer=transformer.to(device),
            codec=codec.to(device),
            text_encoder=text_encoder.to(device).eval(),
            device=device,
        )

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
        """Sample the edited latents: Euler steps from seeded noise, every step seeing source, instruction and memories.

        Raises:
            ValueError: if the instruction is empty or too long.
        """
        self.preset.check_instruction(request.instruction)
        sampler = self.preset.sampler
        noise = torch.randn(request.source.shape, generator=torch.Generator().manual_seed(request.seed))
        source = request.source[None].to(self.device, torch.float32)
        settings = request.settings.resolved(sampler)
        memory = [self.prepare_memory(item, has_source=settings.has_source) for item in request.memory]
        merging = Merging.of(settings) if memory else None
        guidance_scale = sampler["guidance_scale"]
        prompts = [request.instruction] if guidance_scale == 1.0 else [request.instruction, ""]
        texts = [self.text_encoder([prompt]) for prompt in prompts]

        def predict_x_0(x_t: Float[Tensor, "b c t h w"], sigma: float) -> Float[Tensor, "b c t h w"]:
            sigma_B = torch.full((1,), sigma, device=self.device)
            predictions = [
                predicted_x_0(
                    self.transformer(
                        torch.cat([x_t, source], dim=1),
                        sigma_B * NUM_TRAIN_TIMESTEPS,
                        features,
                        encoder_attention_mask=mask,
                        memory=memory,
                        merging=merging,
                    ).sample,
                    x_t,
                    sigma_B,
                    source=source,
                    prediction_type=self.transformer.config.prediction_type,
                )
                for features, mask in texts
            ]
            if len(predictions) == 1:
                return predictions[0]
            with_text, without = predictions
            return without + guidance_scale * (with_text - without)

        sigmas = sigma_schedule(sampler["num_inference_steps"], shift=sampler["shift"])
        latent = sample(predict_x_0, noise[None].to(self.device), sigmas)
        return EditResult(latent=latent[0].cpu())

    def prepare_memory(self, item: MemoryVideo, *, has_source: bool = True) -> MemoryBatch | EncodedMemory:
        """On the device, its source latents zero where they are not to be seen; encoded where memory is isolated."""
        source = item.source if has_source else torch.zeros_like(item.source)
        latents = torch.cat([item.edited, source])[None].to(torch.float32)
        batch = MemoryBatch(role=item.role, kernel=item.kernel, latents=latents.to(self.device))
        if not self.transformer.is_isolated:
            return batch
        key = (hashlib.sha256(latents.contiguous().numpy().tobytes()).digest(), kernel_name(item.kernel))
        encoded = self.encoded.get(key)
        if encoded is None:
            encoded = self.transformer.encode_memory(batch)
            self.encoded.put(key, encoded)
        return replace(encoded, role=item.role)

    @torch.inference_mode()
    def decode(self, latent: Float[Tensor, "c t h w"]) -> Float[Tensor, "T H W 3"]:
        """Frames in [0, 1], not clamped."""
        video = self.codec.decode(latent[None].to(self.device, torch.float32))[0]
        return rearrange(video, "c t h w -> t h w c").cpu()
