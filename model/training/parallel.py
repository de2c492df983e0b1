"""One process, or several that train together: who works on which part of a batch, and how gradients come together.

The parts (shards) of a batch are the same however many workers there are, and their gradients are summed in a fixed order,
so the number of workers and their timing change a result by rounding at most. Workers are those of torch.distributed: a
launcher (Ray Train, torchrun) starts them; without one there is a single process.

"ddp": every worker holds the whole network and gradients are summed once a step. "fsdp" (FSDP2): every worker holds a part of every
block's weights, gradients, optimizer state and average.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from model.training.batches import Batch
from model.training.config import Device, Sharding
from model.training.editing import Editing

TIMEOUT = timedelta(hours=4)
"""For what one worker does alone while the others wait: rendering worlds."""
BUCKET_NUMBERS = 16 << 20
"""Gradients are sent in pieces of about so many numbers."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    rank: int
    count: int
    device: torch.device
    is_sharded: bool
    """Whether each holds only a part of the network ("fsdp")."""

    @classmethod
    def join(cls, device: Device, sharding: Sharding) -> "Workers":
        """This process among those of its launcher.

        Raises:
            ValueError: if a GPU is asked for and there is none.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device is 'cuda', and there is no GPU; needs 'auto' or 'cpu'")
        is_gpu = torch.cuda.is_available() and device != "cpu"
        if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            dist.init_process_group("nccl" if is_gpu else "gloo", timeout=TIMEOUT)
        rank, count = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        place = torch.device("cpu")
        if is_gpu:
            place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
            torch.cuda.set_device(place)
        return cls(rank=rank, count=count, device=place, is_sharded=sharding == "fsdp" and count > 1)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all workers are here."""
        if self.count > 1:
            dist.barrier()

    def any(self, *, is_true: bool) -> bool:
        """Whether it is true for any worker; all get the same answer."""
        return bool(self.total(torch.tensor([float(is_true)])))

    def total(self, values: Tensor) -> Tensor:
        """Sum over the workers."""
        if self.count > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values.cpu()

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by its sum over the workers, many in one message."""
        if self.count == 1:
            return
        bucket: list[Tensor] = []
        for tensor in tensors:
            bucket.append(tensor)
            if sum(item.numel() for item in bucket) > BUCKET_NUMBERS:
                add_up_bucket(bucket)
                bucket = []
        add_up_bucket(bucket)

    def mine(self, shards: Sequence[Batch]) -> list[int]:
        """Numbers of the shards this worker works on."""
        return list(range(self.rank, len(shards), self.count))


def add_up_bucket(tensors: Sequence[Tensor]) -> None:
    if tensors:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


def shard_network(editing: Editing, workers: Workers) -> None:
    """FSDP2 over the network's blocks and over what is left."""
    mesh = init_device_mesh(workers.device.type, (workers.count,))
    blocks = list(editing.transformer.blocks)
    for module in (*blocks, editing):
        fully_shard(module, mesh=mesh)
    for block in blocks:
        for method in ("encode_memory", "responsiveness"):
            register_fsdp_forward_method(block, method)
    for module in editing.modules():
        if isinstance(module, FSDPModule):
            # Sums, like those of "ddp": every shard's loss is divided by their number already.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(enable=True)


def make_gradients(
    editing: Editing, batch: Batch, workers: Workers, *, num_shards: int, loss_of: Any,
    parameters: Sequence[nn.Parameter], pool: ThreadPoolExecutor | None,
) -> tuple[float, Tensor]:  # fmt: skip
    """Mean gradients over a batch's shards into `.grad`; the mean loss, and the edited region's error per sample.

    Args:
        loss_of: shard -> (loss, error of the edited region per sample).
        pool: on a CPU a thread per shard instead of threads inside every operation: no barrier per operation, so a busy
            machine costs little; and gradients are averaged in a fixed order, so timing cannot change the result.
    """
    shards = batch.shards(num_shards)
    losses, edited = torch.zeros(len(shards)), torch.zeros(len(batch.instructions))
    ends = torch.tensor([len(shard.instructions) for shard in shards]).cumsum(0).tolist()

    def note(number: int, loss: Tensor, errors: Tensor) -> None:
        losses[number] = loss.detach().cpu()
        edited[ends[number] - len(errors) : ends[number]] = errors.cpu()

    if workers.is_sharded:
        for parameter in parameters:
            parameter.grad = None
        for turn in range(-(-len(shards) // workers.count)):
            # All workers take part in every turn: who has nothing left to do works on the last shard for nothing.
            number = turn * workers.count + workers.rank
            has_work = number < len(shards)
            loss, errors = loss_of(shards[min(number, len(shards) - 1)].to(workers.device))
            (loss * (1 / len(shards) if has_work else 0.0)).backward()
            if has_work:
                note(number, loss, errors)
    else:

        def gradients(number: int) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
            loss, errors = loss_of(shards[number].to(workers.device))
            return loss.detach(), errors, torch.autograd.grad(loss, parameters, allow_unused=True)

        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        grads = [cast(Tensor, parameter.grad) for parameter in parameters]
        mine = workers.mine(shards)
        for number, (loss, errors, found) in zip(mine, (pool.map if pool else map)(gradients, mine), strict=True):
            note(number, loss, errors)
            parts = [(grad, part) for grad, part in zip(grads, found, strict=True) if part is not None]
            torch._foreach_add_([grad for grad, _ in parts], [part for _, part in parts])
        workers.add_up(grads)
        torch._foreach_div_(grads, len(shards))
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return float(workers.total(losses).mean()), workers.total(edited)


def whole(value: Any) -> Any:
    """Tensors put together from all workers' parts, on the CPU; every worker must ask for the same."""
    if isinstance(value, DTensor):
        value = value.full_tensor()
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole(item) for item in value)
    return value


def like(value: Tensor, reference: Tensor) -> Tensor:
    """A whole tensor in the parts and on the device of another one of its shape."""
    if isinstance(reference, DTensor):
        return distribute_tensor(value.to(reference.device), reference.device_mesh, reference.placements)
    return value.to(reference.device)
