"""The arithmetic of training: float32, or bfloat16 where torch's autocast takes it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from model.training.config import Precision


class Float32Attention(TorchFunctionMode):
    """Scaled dot products in float32: on a CPU torch's backward pass of them takes four times as long in bfloat16."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        named = {name: in_float32(value) for name, value in (kwargs or {}).items()}
        with torch.autocast("cpu", enabled=False):
            return func(*map(in_float32, args), **named)


def in_float32(value: Any) -> Any:
    """Numbers of a tensor in float32; masks, and what is no tensor, as they are."""
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def attention(precision: Precision, device_type: str) -> AbstractContextManager[Any]:
    """What attention computes in, where that is not what autocast would take."""
    return Float32Attention() if precision == "bfloat16" and device_type == "cpu" else nullcontext()


@contextmanager
def arithmetic(precision: Precision, device_type: str) -> Iterator[None]:
    """Within it, a forward pass computes in `precision`; what has to stay float32 does."""
    is_bfloat16 = precision == "bfloat16"
    with torch.autocast(device_type, torch.bfloat16, enabled=is_bfloat16), attention(precision, device_type):
        yield


def recompute(precision: Precision, device_type: str) -> Any:
    """Gradient checkpointing under `arithmetic`: what is computed again in the backward pass is computed the same way.

    torch brings autocast back there by itself, other contexts it must be told of.
    """
    return partial(
        checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), attention(precision, device_type))
    )
