"""Instructions to features without a vocabulary file: UTF-8 bytes (ByT5's tokenizer) through a small T5 encoder.

Trained together with the transformer. Nothing is ever truncated: `model.presets.Preset.check_instruction` refuses a text that is too long
before anything runs. The real presets use Wan's UMT5 in the same place.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import ByT5Tokenizer, T5Config, T5EncoderModel


class ByteTextEncoder(nn.Module):
    """A T5 encoder over bytes.

    Args:
        width: width of the features; the transformer's `text_dim`.
    """

    def __init__(self, *, width: int = 128, num_layers: int = 2, num_heads: int = 4, ffn_dim: int = 512) -> None:
        super().__init__()
        self.tokenizer = ByT5Tokenizer()
        self.encoder = T5EncoderModel(
            T5Config(
                vocab_size=len(self.tokenizer),
                d_model=width,
                d_kv=width // num_heads,
                d_ff=ffn_dim,
                num_layers=num_layers,
                num_heads=num_heads,
                dropout_rate=0.0,
                feed_forward_proj="gated-gelu",
            )
        )

    def forward(self, instructions: Sequence[str]) -> tuple[Float[Tensor, "b l d"], Bool[Tensor, "b l"]]:
        """Features of every byte and a mask that is True where there is one; short texts are padded to the longest."""
        batch = self.tokenizer(list(instructions), return_tensors="pt", padding=True)
        device = self.encoder.device
        ids, mask = batch.input_ids.to(device), batch.attention_mask.to(device)
        return self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask.bool()

    def save_pretrained(self, folder: Path) -> None:
        self.encoder.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: Path, *, dtype: torch.dtype = torch.float32) -> "ByteTextEncoder":
        encoder = T5EncoderModel.from_pretrained(folder, dtype=dtype, local_files_only=True)
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model.tokenizer, model.encoder = ByT5Tokenizer(), encoder
        return model
