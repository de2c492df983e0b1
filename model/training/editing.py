"""What is trained: the network (and a text encoder of bytes), what of it, and the loss (rectified flow; paper section 4.1)."""

from collections.abc import Sequence
from dataclasses import replace
from threading import Lock
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from model.codec import PatchCodec
from model.colour import MEMORIES, NO_CHANGE
from model.editor import sees_source
from model.flow import NUM_TRAIN_TIMESTEPS, add_noise, predicted_velocity, predicted_x_0
from model.samplers import EulerSampler
from model.text_encoder import ByteTextEncoder
from model.training.batches import Batch
from model.training.config import Trained
from model.training.segments import VideoCodec
from model.transformer import MemoryTransformer3DModel
from model.types import ColourChoice, MemoryBatch
from model.wan import WanTextEncoder
from model.weights import MEMORY_MODULES

CHOICE_SHARPNESS = 300.0
"""How much better one of two colours must be for the choice between them to be sure: about 0.02 of [0, 1]."""
Choice = tuple[Float[Tensor, "b e c t h w"], Float[Tensor, "b e t h w"]]
"""x_0 as each of several say it, the network first, and the logits of whom to believe."""

SELF_ATTENTION = r"blocks\.\d+\.attn1\.(to_q|to_k|to_v|to_out\.0)"


class Editing(nn.Module):
    """The transformer, and the text encoder if it is trained with it; a published one only reads for it."""

    def __init__(self, transformer: MemoryTransformer3DModel, text_encoder: ByteTextEncoder | WanTextEncoder) -> None:
        super().__init__()
        self.transformer = transformer
        self.sampler = EulerSampler(num_inference_steps=4, shift=5.0)
        """By which it makes whole edits to remember."""
        self.text_encoder: ByteTextEncoder | None = None
        self.reader: tuple[WanTextEncoder, ...] = ()
        """In a tuple, so that torch does not count it among what is trained and saved."""
        if isinstance(text_encoder, ByteTextEncoder):
            self.text_encoder = text_encoder
        else:
            text_encoder.encoder.requires_grad_(requires_grad=False)
            self.reader = (text_encoder,)
        self.reading = Lock()

    def read(self, instructions: Sequence[str]) -> tuple[Float[Tensor, "b l d"], Bool[Tensor, "b l"] | None]:
        """Features and mask of the instructions."""
        if self.text_encoder is not None:
            return self.text_encoder(instructions)
        with self.reading, torch.no_grad():
            features, mask = self.reader[0](instructions)
        return features.float(), mask

    def forward(
        self, batch: Batch, *, num_range_frames: int
    ) -> tuple[Float[Tensor, "b c t h w"], Float[Tensor, "b c t h w"], Choice | None]:
        """What a batch should lead to and what the network makes of it: x_0, or the velocity where it predicts that.

        Returns:
            (predicted, truth, what a colour head chose between)
        """
        features, text_mask = self.read(batch.instructions)
        memory = batch.memory
        if batch.is_whole:
            memory = self.own_edits(batch, features, text_mask, num_range_frames=num_range_frames)
        elif batch.memory_sigma is not None:
            memory = self.own_memory(batch, features, text_mask)
        # Autocast keeps the weights it has cast: those cast without gradients must not be used with them.
        torch.clear_autocast_cache()
        x_t = add_noise(batch.x_0, batch.noise, batch.sigma)
        output, mixed = self.predict(
            x_t, batch.source, batch.sigma, features, text_mask,
            memory=memory, num_range_frames=num_range_frames, merging=batch.merging, begins=batch.begins[0],
        )  # fmt: skip
        kind = self.transformer.config.prediction_type
        if kind == "velocity":
            return output, batch.noise - batch.x_0, None
        choice = None
        if mixed is not None:
            # What the network made of a noised truth is to be kept, right or not: it teaches nothing of whom to trust.
            is_noised = batch.memory_sigma is not None and not batch.is_whole
            logits = mixed.logits.detach() if is_noised else mixed.logits
            choice = batch.source[:, None] + mixed.changes, logits
        return predicted_x_0(output, x_t, batch.sigma, source=batch.source, prediction_type=kind), batch.x_0, choice

    def predict(
        self,
        x_t: Float[Tensor, "b c t h w"],
        source: Float[Tensor, "b c t h w"],
        sigma: Float[Tensor, "b"],
        features: Float[Tensor, "b l d"],
        text_mask: Bool[Tensor, "b l"] | None,
        *,
        memory: Sequence[MemoryBatch] = (),
        **options: Any,
    ) -> tuple[Float[Tensor, "b c t h w"], ColourChoice | None]:
        """The network's output, and what a colour head mixed into it. One without channels for the source sees neither it nor the source half of memories."""
        seen = x_t
        if sees_source(self.transformer):
            seen = torch.cat([x_t, source], dim=1)
        else:
            memory = [replace(item, latents=item.latents.chunk(2, dim=1)[0]) for item in memory]
        output = self.transformer(
            seen, sigma * NUM_TRAIN_TIMESTEPS, features, encoder_attention_mask=text_mask, memory=memory, **options
        )
        return output.sample.float(), output.choice

    @torch.no_grad()
    def own_edits(
        self, batch: Batch, features: Float[Tensor, "b l d"], text_mask: Bool[Tensor, "b l"] | None, **options: Any
    ) -> tuple[MemoryBatch, ...]:
        """The memories of a batch as edits go: from noise, the first by itself, the later ones remembering it."""
        kind = self.transformer.config.prediction_type

        def edit(
            items: Sequence[MemoryBatch], begins: Bool[Tensor, "videos b"], first: Sequence[MemoryBatch]
        ) -> Tensor:
            count = len(items)
            noise, source = torch.cat([item.latents for item in items]).chunk(2, dim=1)
            text = features.repeat(count, 1, 1), None if text_mask is None else text_mask.repeat(count, 1)
            memory = [replace(item, latents=item.latents.repeat(count, 1, 1, 1, 1)) for item in first]

            def velocity(x_t: Tensor, timestep: Tensor, sigma: float) -> Tensor:
                sigmas = timestep / NUM_TRAIN_TIMESTEPS
                output, _ = self.predict(x_t, source, sigmas, *text, memory=memory, begins=begins.flatten(), **options)
                return predicted_velocity(output, x_t, sigma, source=source, prediction_type=kind)

            return torch.cat([self.sampler(velocity, noise, source), source], dim=1)

        first = [replace(batch.memory[0], latents=edit(batch.memory[:1], batch.begins[1:2], ()))]
        if len(batch.memory) == 1:
            return tuple(first)
        rest = edit(batch.memory[1:], batch.begins[2:], first).chunk(len(batch.memory) - 1)
        return (*first, *(replace(item, latents=latents) for item, latents in zip(batch.memory[1:], rest, strict=True)))

    @torch.no_grad()
    def own_memory(
        self, batch: Batch, features: Float[Tensor, "b l d"], text_mask: Bool[Tensor, "b l"] | None
    ) -> tuple[MemoryBatch, ...]:
        """The memories of a batch, their noised edited half replaced by what the network makes of it."""
        assert batch.memory_sigma is not None
        count = len(batch.memory)
        x_t, source = torch.cat([item.latents for item in batch.memory]).chunk(2, dim=1)
        sigma = batch.memory_sigma.repeat(count)
        mask = None if text_mask is None else text_mask.repeat(count, 1)
        begins = batch.begins[1:].flatten()
        output, _ = self.predict(x_t, source, sigma, features.repeat(count, 1, 1), mask, begins=begins)
        kind = self.transformer.config.prediction_type
        edited = predicted_x_0(output, x_t, sigma, source=source, prediction_type=kind)
        latents = torch.cat([edited, source], dim=1).chunk(count)
        return tuple(replace(item, latents=part) for item, part in zip(batch.memory, latents, strict=True))


def choose_trained(editing: Editing, trained: Trained, *, lora_rank: int) -> None:
    """Freeze what is not trained. "memory" as the paper: cross-attention, feed-forward and all else stay as they are.

    Raises:
        ValueError: for "lora" without `peft`.
    """
    if trained == "all":
        return
    editing.requires_grad_(requires_grad=False)
    if trained == "lora":
        try:
            from peft import LoraConfig
        except ImportError as error:
            raise ValueError("train is 'lora'; needs the package peft (pip install peft)") from error
        editing.transformer.add_adapter(
            LoraConfig(r=lora_rank, lora_alpha=lora_rank, target_modules=SELF_ATTENTION, init_lora_weights="gaussian")
        )
    for name, parameter in editing.transformer.named_parameters():
        is_attention = ".attn1." in name and trained == "memory"
        parameter.requires_grad_(is_attention or "lora_" in name or name.startswith(MEMORY_MODULES))


def editing_loss(
    predicted: Float[Tensor, "b c t h w"],
    truth: Float[Tensor, "b c t h w"],
    mask: Bool[Tensor, "b t h w"],
    choice: Choice | None = None,
    *,
    is_whole: bool = False,
    channel_weight: Float[Tensor, "c 2"],
    edit_weight: float,
    look_weight: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, "b"]]:
    """Squared error over everything, plus that over the edited region, plus that of the region's mean; also the second per sample (0
    where none).

    The edited region counts by itself, whatever its size: a small object would otherwise hardly be seen. So does its look, what all of
    it has in common in a frame: memory is to keep it, and it is a tenth of the region's error. `channel_weight` holds a
    column for the first latent frame and one for the others.

    `choice` is learned as one between experts, by which is right at a position: what memories show is a little better than the network
    inside the object and much worse everywhere else, so squared error alone closes the gate everywhere. The network learns from all of its
    own output, chosen or not: else what is chosen less gets worse, and is chosen less.

    With memories that are edits of the network's own (`is_whole`) the truth says what to leave alone; in the edited region memory is right
    wherever it is nearer to the truth than doing nothing.
    """
    frames = truth.shape[2]
    weight = torch.cat([channel_weight[:, :1], channel_weight[:, 1:].expand(-1, frames - 1)], dim=1)
    area = mask.sum((2, 3))
    count = area.sum(1).clamp_min(8)

    def error_of(x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b t h w"]:
        return ((x - truth).square() * weight[None, :, :, None, None]).mean(1)

    def loss_of(x: Float[Tensor, "b c t h w"]) -> tuple[Float[Tensor, ""], Float[Tensor, "b"]]:
        error = error_of(x)
        if is_whole:
            return (error * ~mask).mean(), ((error * mask).sum((1, 2, 3)) / count).detach()
        edited = (error * mask).sum((1, 2, 3)) / count
        mean = ((x - truth) * mask[:, None]).sum((3, 4)) / area[:, None].clamp_min(1)
        look = ((mean.square() * weight).mean(1) * area).sum(1) / count
        return error.mean() + edit_weight * edited.mean() + look_weight * look.mean(), edited.detach()

    loss, edited = loss_of(predicted)
    if choice is not None:
        said, logits = choice
        errors = torch.stack([error_of(x) for x in said.unbind(1)], dim=1)
        if is_whole:
            kept = mask & (errors[:, MEMORIES] < errors[:, NO_CHANGE])
            errors = torch.cat([errors[:, :MEMORIES], errors[:, MEMORIES:].masked_fill(kept[:, None], -1.0)], dim=1)
        is_right = (-CHOICE_SHARPNESS * errors).softmax(1).detach()
        wrong = -(is_right * logits.log_softmax(1)).sum(1)
        loss = loss + loss_of(said[:, 0])[0] + wrong.mean() + (wrong * mask).sum() / mask.sum().clamp_min(8)
    return loss, edited


def channel_weights(codec: VideoCodec) -> Float[Tensor, "c 2"]:
    """Between latents (all channels alike) and pixels (by variance): by standard deviation, mean 1. Of a VAE all alike."""
    if not isinstance(codec, PatchCodec):
        return torch.ones(len(codec.mean.flatten()), 2)
    deviations = torch.stack([codec.first_std, codec.group_std], dim=1)
    return deviations / deviations.mean(0)
