"""What tests of the network share: its smallest configuration, and seeded numbers."""

import torch
from torch import Tensor

SMALL = {
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "in_channels": 12,
    "out_channels": 6,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 3,
}


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
