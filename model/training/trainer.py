"""Trains a preset, from nothing or from another: fits the codec, renders the worlds, trains transformer and text encoder together.

Everything random is a function of (seed, step), so a run that was stopped and resumed is the run that was not. A checkpoint is
one file and appears whole or not at all. The output is a preset folder, its weights the exponential moving average.
"""

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from model.codec import PatchCodec
from model.flow import NUM_TRAIN_TIMESTEPS, add_noise, predicted_x_0
from model.geometry import Geometry
from model.presets import Preset, resolve_preset, write_preset_file
from model.text_encoder import ByteTextEncoder
from model.training.batches import WORLD_FRAMES, Batch, BatchSampler, load_cache
from model.training.codec_fit import fit_codec, noise_videos, world_videos
from model.transformer import MemoryAttention, MemoryTransformer3DModel, merging_blocks
from model.types import MemoryBatch
from model.weights import load_codec, load_transformer

TINY_SIZES = ((64, 64), (56, 72), (48, 88), (40, 96), (72, 56), (88, 48), (96, 40))
CODEC_SEED = 1_000_000
"""Worlds the codec is fitted on: none of those the network is trained on."""
SHORT_SEED = 100_000
"""First of the worlds of one segment."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Train the network that edits, and its text encoder, on rendered worlds; writes a preset folder.

    A run that was stopped goes on with --resume and the same options, and ends with the same weights.

    Attributes:
        output: folder for checkpoint, logs and the finished preset.
        cache: folder that keeps rendered worlds between runs; none: they are rendered anew.
        resume: go on from `output`'s checkpoint (which must be there).
        base: preset folder (or name) whose codec, network and text encoder training starts from; none: from nothing. What the base
            does not have (compressors of memory frames) starts new.
        num_shards: parts of a batch worked on at the same time, one CPU thread each; part of what the result depends on.
        steps: length of the learning-rate schedule, and where the run ends.
        minutes: stop (and write the preset) after this much time even if steps are left; resumable.
        stages: (steps, latent frames, batch size) one after the other: single frames teach most of what an instruction and a
            memory mean at a tenth of the cost. The last stage lasts to the end.
        memory_noise: strongest noise on memory latents (the paper adds noise too, level not given).
        edit_weight: weight of the error inside the edited region beside the error everywhere.
        shift: training sigmas are uniform, shifted towards noise by this.
        memory_attention: "joint" as in the paper, or "isolated": memories attend only to themselves, are computed once per
            segment instead of at every step, and read no text.
        memoryless: share of batches without memory; they come from the short worlds.
        num_worlds, num_short_worlds: videos of six segments, and of one.
        merging: give the network compressors of memory frames, and use them in half of the batches. Joint attention only.
    """

    output: Path
    cache: Path | None = None
    resume: bool = False
    base: str | None = None
    seed: int = 0
    steps: int = 2400
    minutes: float | None = None
    stages: tuple[tuple[int, int, int], ...] = ((1200, 1, 48), (500, 2, 24), (700, 5, 12))
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    ema_decay: float = 0.997
    max_gradient_norm: float = 1.0
    memory_noise: float = 0.2
    edit_weight: float = 1.0
    shift: float = 4.0
    memory_attention: MemoryAttention = "joint"
    merging: bool = False
    memoryless: float = 0.4
    num_worlds: int = 2000
    num_short_worlds: int = 10_000
    num_codec_worlds: int = 150
    render_workers: int = 2
    num_shards: int = 2
    num_layers: int = 6
    num_heads: int = 6
    head_dim: int = 32
    ffn_dim: int = 768
    text_layers: int = 2
    text_width: int = 128
    sizes: tuple[tuple[int, int], ...] = TINY_SIZES
    segment_frames: int = 17
    num_inference_steps: int = 8
    inference_shift: float = 5.0
    max_instruction_tokens: int = 512
    checkpoint_every: int = 100
    log_every: int = 10

    def __post_init__(self) -> None:
        for name in ("steps", "num_codec_worlds", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; needs at least 1")
        for name in ("num_worlds", "num_short_worlds"):
            if getattr(self, name) <= len(self.sizes):
                raise ValueError(f"{name} is {getattr(self, name)}; needs more than the {len(self.sizes)} sizes")


class Editing(nn.Module):
    """What is trained: the transformer and the text encoder."""

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__()
        self.transformer = MemoryTransformer3DModel(
            num_attention_heads=config.num_heads,
            attention_head_dim=config.head_dim,
            ffn_dim=config.ffn_dim,
            num_layers=config.num_layers,
            text_dim=config.text_width,
            prediction_type="source_residual",
            memory_attention=config.memory_attention,
            merging_blocks=merging_blocks(config.num_layers) if config.merging else (),
        )
        self.text_encoder = ByteTextEncoder(
            width=config.text_width, num_layers=config.text_layers, ffn_dim=4 * config.text_width
        )
        with torch.no_grad():
            # A network that has learned nothing leaves the video as it is.
            self.transformer.proj_out.weight.zero_()
            self.transformer.proj_out.bias.zero_()

    def forward(self, batch: Batch, *, num_range_frames: int) -> Float[Tensor, "b c t h w"]:
        """Predicted x_0 of a batch."""
        features, text_mask = self.text_encoder(batch.instructions)
        memory = self.own_memory(batch, features, text_mask) if batch.memory_sigma is not None else batch.memory
        x_t = add_noise(batch.x_0, batch.noise, batch.sigma)
        return self.denoise(
            x_t, batch.source, batch.sigma, features, text_mask,
            memory=memory, num_range_frames=num_range_frames, merging=batch.merging,
        )  # fmt: skip

    def denoise(
        self,
        x_t: Float[Tensor, "b c t h w"],
        source: Float[Tensor, "b c t h w"],
        sigma: Float[Tensor, "b"],
        features: Float[Tensor, "b l d"],
        text_mask: Bool[Tensor, "b l"],
        **memory: Any,
    ) -> Float[Tensor, "b c t h w"]:
        """Predicted x_0; `memory` is what the transformer is told of memories."""
        output = self.transformer(
            torch.cat([x_t, source], dim=1),
            sigma * NUM_TRAIN_TIMESTEPS,
            features,
            encoder_attention_mask=text_mask,
            **memory,
        ).sample
        return predicted_x_0(output, x_t, sigma, source=source, prediction_type=self.transformer.config.prediction_type)

    @torch.no_grad()
    def own_memory(
        self, batch: Batch, features: Float[Tensor, "b l d"], text_mask: Bool[Tensor, "b l"]
    ) -> tuple[MemoryBatch, ...]:
        """The memories of a batch, their noised edited half replaced by what the network makes of it."""
        assert batch.memory_sigma is not None
        count = len(batch.memory)
        x_t, source = torch.cat([item.latents for item in batch.memory]).chunk(2, dim=1)
        sigma = batch.memory_sigma.repeat(count)
        edited = self.denoise(x_t, source, sigma, features.repeat(count, 1, 1), text_mask.repeat(count, 1))
        latents = torch.cat([edited, source], dim=1).chunk(count)
        return tuple(replace(item, latents=part) for item, part in zip(batch.memory, latents, strict=True))


def editing_loss(
    predicted: Float[Tensor, "b c t h w"],
    x_0: Float[Tensor, "b c t h w"],
    mask: Bool[Tensor, "b t h w"],
    *,
    channel_weight: Float[Tensor, "c 2"],
    edit_weight: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, "b"]]:
    """Squared error over everything plus that over the edited region; also the latter per sample (0 where none).

    The edited region counts by itself, whatever its size: a small object would otherwise hardly be seen. `channel_weight`
    holds a column for the first latent frame and one for the others.
    """
    frames = x_0.shape[2]
    weight = torch.cat([channel_weight[:, :1], channel_weight[:, 1:].expand(-1, frames - 1)], dim=1)
    error = ((predicted - x_0).square() * weight[None, :, :, None, None]).mean(1)
    edited = (error * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp_min(8)
    return error.mean() + edit_weight * edited.mean(), edited.detach()


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then a cosine down to a twentieth."""
    warm = min(1.0, (step + 1) / config.warmup_steps)
    progress = min(1.0, step / config.steps)
    return config.learning_rate * warm * (0.525 + 0.475 * math.cos(math.pi * progress))


def stage_at(step: int, config: TrainingConfig) -> tuple[int, int]:
    """Latent frames and batch size of a step."""
    for steps, num_frames, batch_size in config.stages:
        if step < steps:
            return num_frames, batch_size
        step -= steps
    return config.stages[-1][1:]


def make_optimizers(editing: Editing, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for all else (embeddings, norms, modulation, input and output).

    Muon makes every matrix orthogonal, a third of a step on one core: one Muon per shard, to be stepped at the same time.
    """
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in editing.named_parameters():
        is_inner = parameter.ndim == 2 and ("blocks." in name or ".block." in name) and "relative" not in name
        (matrices if is_inner else rest).append(parameter)
    matrices.sort(key=lambda matrix: matrix.numel(), reverse=True)
    return [
        *(
            torch.optim.Muon(
                matrices[shard :: config.num_shards],
                lr=config.learning_rate,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
            for shard in range(config.num_shards)
        ),
        torch.optim.AdamW(rest, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay),
    ]


def channel_weights(codec: PatchCodec) -> Float[Tensor, "c 2"]:
    """Between latents (all channels alike) and pixels (by variance): by standard deviation, mean 1."""
    deviations = torch.stack([codec.first_std, codec.group_std], dim=1)
    return deviations / deviations.mean(0)


def train(config: TrainingConfig) -> Path:
    """Run it; returns the preset folder.

    Raises:
        ValueError: if asked to resume without a checkpoint, or to start over one.
    """
    torch.set_num_threads(1)
    checkpoint_path = config.output / "checkpoint.pt"
    if config.resume and not checkpoint_path.exists():
        raise ValueError(f"nothing to resume: no {checkpoint_path}")
    if not config.resume and checkpoint_path.exists():
        raise ValueError(f"{checkpoint_path} is there already; resume it or give another output folder")
    config.output.mkdir(parents=True, exist_ok=True)
    (config.output / "config.json").write_text(json.dumps(asdict(config), indent=2, default=str) + "\n")

    codec = prepare_codec(config)
    cache, short = (
        load_cache(
            config.cache, codec=codec, sizes=config.sizes, num_worlds=count, first_seed=first_seed,
            segment_frames=config.segment_frames, workers=config.render_workers, num_frames=num_frames,
        )
        for count, first_seed, num_frames in (
            (config.num_worlds, 0, WORLD_FRAMES),
            (config.num_short_worlds, SHORT_SEED, config.segment_frames),
        )
    )  # fmt: skip
    print(f"{sum(map(len, cache))} segments of {config.num_worlds} worlds and {sum(map(len, short))} more", flush=True)
    sampler = BatchSampler(
        cache, short, seed=config.seed, memory_noise=config.memory_noise, shift=config.shift,
        memoryless=config.memoryless, is_merging=config.merging,
    )  # fmt: skip
    range_frames = (config.segment_frames - 1) // codec.config.group_frames + 1
    weights = channel_weights(codec)

    torch.manual_seed(config.seed)
    editing = Editing(config)
    if config.base is not None:
        load_base(editing, resolve_preset(config.base))
    parameters = [p for p in editing.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in parameters]
    optimizers = make_optimizers(editing, config)
    step = 0
    if config.resume:
        saved = torch.load(checkpoint_path, weights_only=True)
        editing.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        average, step = saved["average"], saved["step"]
        print(f"resumed at step {step}", flush=True)
    print(f"{sum(p.numel() for p in parameters) / 1e6:.2f} M parameters", flush=True)

    def save() -> None:
        state = {
            "model": editing.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "average": average,
            "step": step,
        }
        partial = checkpoint_path.with_suffix(".partial")
        torch.save(state, partial)
        partial.rename(checkpoint_path)

    def gradients(shard: Batch) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        predicted = editing(shard, num_range_frames=range_frames)
        loss, edited = editing_loss(
            predicted, shard.x_0, shard.mask, channel_weight=weights, edit_weight=config.edit_weight
        )
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        found = tuple(torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True))
        return loss.detach(), edited, found

    started, first_step = time.monotonic(), step
    recent: dict[str, list[float]] = {"loss": [], "edited_with_memory": [], "edited_without_memory": []}
    with (
        # One thread per shard instead of threads inside every operation: no barrier per operation, so a busy machine
        # costs little; and gradients are averaged in a fixed order, so timing cannot change the result.
        ThreadPoolExecutor(config.num_shards, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        SummaryWriter(config.output / "tensorboard") as board,
        (config.output / "metrics.jsonl").open("a") as log,
    ):
        while step < config.steps:
            if config.minutes is not None and time.monotonic() - started > 60 * config.minutes:
                print(f"stopping after {config.minutes} minutes", flush=True)
                break
            num_frames, batch_size = stage_at(step, config)
            batch = sampler.batch(step, batch_size=batch_size, num_frames=num_frames)
            rate = learning_rate(step, config)
            results = list(pool.map(gradients, batch.shards(config.num_shards)))
            loss = torch.stack([result[0] for result in results]).mean()
            edited = torch.cat([result[1] for result in results])
            for index, parameter in enumerate(parameters):
                parameter.grad = torch.stack([result[2][index] for result in results]).mean(0)
            norm = nn.utils.clip_grad_norm_(parameters, config.max_gradient_norm)
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = rate
            list(pool.map(lambda optimizer: optimizer.step(), optimizers))
            decay = min(config.ema_decay, (step + 1) / (step + 10))
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
            step += 1

            # The choice a memory makes is a choice made near sigma 1: only there does it show in the error.
            noisy = batch.sigma > 0.8
            recent["loss"].append(float(loss))
            if bool(noisy.any()):
                key = "edited_with_memory" if batch.memory else "edited_without_memory"
                recent[key].append(float(edited[noisy].mean()))
            if step % config.log_every == 0 or step == config.steps:
                per_step = (time.monotonic() - started) / (step - first_step)
                figures = {key: sum(values) / len(values) for key, values in recent.items() if values}
                figures |= {"learning_rate": rate, "gradient_norm": float(norm), "step_s": per_step}
                for key, value in figures.items():
                    board.add_scalar(key, value, step)
                log.write(json.dumps({"step": step, **figures}) + "\n")
                log.flush()
                print(
                    f"step {step}/{config.steps}  loss {figures['loss']:.4f}  edited region at high noise: "
                    f"with memory {figures.get('edited_with_memory', math.nan):.3f}, "
                    f"without {figures.get('edited_without_memory', math.nan):.3f}  "
                    f"{per_step:.2f} s/step  {(config.steps - step) * per_step / 60:.0f} min left",
                    flush=True,
                )
                recent = {key: [] for key in recent}
            if step % config.checkpoint_every == 0:
                save()
    save()
    return write_preset(config, codec, editing, average)


def load_base(editing: Editing, preset: Preset) -> None:
    """Weights of a preset into what is trained.

    Raises:
        ValueError: if the preset's network or text encoder is another than the one to be trained (it may lack compressors).
    """
    base = load_transformer(preset.components["transformer"])
    text_encoder = ByteTextEncoder.from_pretrained(preset.components["text_encoder"])
    try:
        missing, unknown = editing.transformer.load_state_dict(base.state_dict(), strict=False)
        editing.text_encoder.load_state_dict(text_encoder.state_dict())
    except RuntimeError as error:
        raise ValueError(f"base {preset.path} has other sizes than what is to be trained: {error}") from error
    lost = [name for name in missing if not name.startswith("memory_compressors.")]
    if lost or unknown:
        raise ValueError(f"base {preset.path} does not fit: missing {lost[:5]}, unknown {unknown[:5]}")


def prepare_codec(config: TrainingConfig) -> PatchCodec:
    """The run's codec: fitted once, then kept beside the checkpoint, so that a resumed run has the same."""
    folder = config.output / "codec"
    if (folder / "config.json").exists():
        return load_codec(folder)
    if config.base is not None:
        codec = load_codec(resolve_preset(config.base).components["codec"])
        codec.save_pretrained(folder)
        return codec
    size = config.sizes[0]
    videos = [
        *world_videos(config.num_codec_worlds, seed=CODEC_SEED, size=size),
        *noise_videos(2 * config.num_codec_worlds, seed=config.seed, size=size),
    ]
    codec = fit_codec(videos)
    codec.save_pretrained(folder)
    return codec


def write_preset(config: TrainingConfig, codec: PatchCodec, editing: Editing, average: list[Tensor]) -> Path:
    """Preset folder with the averaged weights, stored as bfloat16 (the codec stays float32)."""
    folder = config.output / "preset"
    smooth = Editing(config)
    smooth.load_state_dict(editing.state_dict())
    with torch.no_grad():
        for parameter, value in zip((p for p in smooth.parameters() if p.requires_grad), average, strict=True):
            parameter.copy_(value)
    smooth.to(torch.bfloat16)
    smooth.transformer.save_pretrained(folder / "transformer")
    smooth.text_encoder.save_pretrained(folder / "text_encoder")
    codec.save_pretrained(folder / "codec")
    geometry = Geometry(
        segment_frames=config.segment_frames,
        min_frames=config.segment_frames,
        frame_multiple=codec.config.group_frames,
        sizes=config.sizes,
    )
    write_preset_file(
        folder, name="tiny", geometry=geometry, max_instruction_tokens=config.max_instruction_tokens,
        sampler={
            "num_inference_steps": config.num_inference_steps, "guidance_scale": 1.0, "shift": config.inference_shift,
        },
    )  # fmt: skip
    return folder
