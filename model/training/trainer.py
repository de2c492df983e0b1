"""Trains a preset, from nothing or from another: the one loop.

Everything random is a function of (seed, step), so a run that was stopped and resumed is the run that was not. The output is a
preset folder, its weights the exponential moving average. Several workers run the same loop (`model.training.parallel`).
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from model.codec import PatchCodec
from model.training.batches import Batch, BatchSampler
from model.training.checkpoints import State, load_checkpoint, save_checkpoint
from model.training.config import TrainingConfig
from model.training.data import load_data
from model.training.editing import channel_weights, editing_loss
from model.training.log import Log, note
from model.training.optimizers import learning_rate, make_optimizers, stage_at
from model.training.parallel import Workers, make_gradients, shard_network
from model.training.precision import arithmetic
from model.training.result import write_preset
from model.training.sample_grid import grid_batch, sample_grid
from model.training.start import make_editing, starting_point

CHECKPOINT_FILE = "checkpoint.pt"


def train(config: TrainingConfig) -> Path:
    """Run it; returns the preset folder.

    Raises:
        ValueError: if the options do not fit each other, the base or the data; if asked to resume without a checkpoint, or
            to start over one.
    """
    torch.set_num_threads(1)
    workers = Workers.join(config.device, config.sharding)
    check_output(config)
    if config.resume:
        config.check_resumable(config.output / "config.json")
    check_workers(config, workers.count)
    workers.wait()
    if workers.is_first:
        config.output.mkdir(parents=True, exist_ok=True)
        (config.output / "config.json").write_text(json.dumps(config.to_json(), indent=2) + "\n")

    # Of several workers the first one makes what the others then find.
    device = str(workers.device)
    if workers.is_first:
        start = starting_point(config, device=device)
        data = load_data(config, start, is_shared=workers.count > 1)
    workers.wait()
    if not workers.is_first:
        start = starting_point(config, device=device)
        data = load_data(config, start, is_shared=True)
    sampler = BatchSampler(
        data.cache, data.short, seed=config.seed, memory_noise=config.memory_noise, shift=config.shift,
        memoryless=config.memoryless, is_merging=config.merging, layouts=config.memory_layouts,
        colour_maps=start.codec.colour_maps() if isinstance(start.codec, PatchCodec) else None,
    )  # fmt: skip
    weights = channel_weights(start.codec).to(workers.device)

    editing = make_editing(config, start, device=device)
    if isinstance(start.codec, PatchCodec):
        # Segments were encoded on the CPU; samples are decoded where they are made.
        start.codec.to(workers.device)
    if workers.is_sharded:
        shard_network(editing, workers)
    parameters = [p for p in editing.parameters() if p.requires_grad]
    state = State(
        parameters=parameters,
        optimizers=make_optimizers(editing, config),
        average=[p.detach().clone() for p in parameters],
    )
    if config.resume:
        load_checkpoint(config.output / CHECKPOINT_FILE, state)
    looked_at = grid_batch(sampler, num_frames=start.latent_frames)

    def loss_of(shard: Batch) -> tuple[Tensor, Tensor]:
        with arithmetic(config.precision, workers.device.type):
            predicted, truth, choice = editing(shard, num_range_frames=start.latent_frames)
        return editing_loss(
            predicted, truth, shard.mask, choice, is_whole=shard.is_whole,
            channel_weight=weights, edit_weight=config.edit_weight, look_weight=config.look_weight,
        )  # fmt: skip

    began = time.monotonic()
    with ExitStack() as stack:
        pool = log = None
        # Operations on parts of a network are messages between workers: all must send them in the same order.
        if workers.device.type == "cpu" and not workers.is_sharded:
            threads = ThreadPoolExecutor(config.num_shards, initializer=torch.set_num_threads, initargs=(1,))
            pool = stack.enter_context(threads)
        if workers.is_first:
            print(f"{sum(p.numel() for p in parameters) / 1e6:.2f} M parameters, from step {state.step}", flush=True)
            log = Log(config.output, step=state.step, num_steps=config.steps, recent=state.recent)
            stack.enter_context(log)
        stages = [stage_at(step, config) for step in range(state.step, config.steps)]
        batches = sampler.stream(
            [
                (step, min(num_frames, start.latent_frames), batch_size)
                for step, (num_frames, batch_size) in enumerate(stages, start=state.step)
            ],
            workers=config.batch_workers,
        )
        while state.step < config.steps:
            is_late = config.minutes is not None and time.monotonic() - began > 60 * config.minutes
            if config.minutes is not None and workers.any(is_true=is_late):
                print(f"stopping after {config.minutes} minutes", flush=True)
                break
            batch = next(batches)
            loss, edited = make_gradients(
                editing, batch, workers, num_shards=config.num_shards, loss_of=loss_of,
                parameters=parameters, pool=pool,
            )  # fmt: skip
            norm = nn.utils.clip_grad_norm_(parameters, config.max_gradient_norm)
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            rate = learning_rate(state.step, config)
            for group in (group for optimizer in state.optimizers for group in optimizer.param_groups):
                group["lr"] = rate
            list((pool.map if pool else map)(lambda optimizer: optimizer.step(), state.optimizers))
            decay = min(config.ema_decay, (state.step + 1) / (state.step + 10))
            torch._foreach_lerp_(state.average, [p.detach() for p in parameters], 1 - decay)
            state.step += 1

            note(state.recent, batch, loss=loss, edited=edited)
            if state.step % config.log_every == 0 or state.step == config.steps:
                if log is not None:
                    log.tell(state.step, {"learning_rate": rate, "gradient_norm": float(norm)})
                state.recent.clear()
            if state.step % config.checkpoint_every == 0 or state.step == config.steps:
                save_checkpoint(config.output / CHECKPOINT_FILE, state, workers)
            if state.step % config.sample_every == 0 or state.step == config.steps:
                shift = start.sampler.get("shift", config.inference_shift)
                picture = sample_grid(editing, looked_at, start.codec, shift=shift, device=workers.device)
                if log is not None:
                    log.show(state.step, picture)
    if state.step < config.steps:
        save_checkpoint(config.output / CHECKPOINT_FILE, state, workers)
    return write_preset(config, start, editing, state.average, workers)


def check_workers(config: TrainingConfig, count: int) -> None:
    """Raises ValueError if a batch's shards cannot be shared out equally."""
    if config.num_shards % count:
        raise ValueError(f"num_shards is {config.num_shards}; needs a multiple of the {count} workers")


def check_output(config: TrainingConfig) -> None:
    """Raises ValueError if there is nothing to resume, or something that is not to be resumed."""
    checkpoint = config.output / CHECKPOINT_FILE
    if config.resume and not checkpoint.exists():
        raise ValueError(f"nothing to resume: no {checkpoint}")
    if not config.resume and checkpoint.exists():
        raise ValueError(f"{checkpoint} is there already; resume it or give another output folder")
