"""Self-attention of Wan's blocks whose target may also see keys and values that were computed before.

Same parameters, same numbers as diffusers' `WanAttnProcessor`, through the same attention dispatch (so its backends and
context parallelism stay available). Only for self-attention: cross-attention keeps diffusers' own processor.

Legend: B batch, N tokens, H heads, D head dimension.
"""

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from jaxtyping import Float
from torch import Tensor

Rotary = tuple[Float[Tensor, "#b n 1 d"], Float[Tensor, "#b n 1 d"]]
KeysValues = tuple[Float[Tensor, "b n h d"], Float[Tensor, "b n h d"]]


def project(
    attn: WanAttention, hidden_states: Float[Tensor, "b n k"]
) -> tuple[Float[Tensor, "b n h d"], Float[Tensor, "b n h d"], Float[Tensor, "b n h d"]]:
    """Queries, keys (both normalised, not yet rotated) and values."""
    if attn.fused_projections:
        query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
    else:
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
    query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (attn.norm_q(query), attn.norm_k(key), value))
    return query, key, value


def rotate(x: Float[Tensor, "b n h d"], rotary_emb: Rotary) -> Float[Tensor, "b n h d"]:
    """Rotary embedding of interleaved pairs, as in diffusers' Wan."""
    cos, sin = rotary_emb[0][..., 0::2], rotary_emb[1][..., 1::2]
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.empty_like(x)
    rotated[..., 0::2] = even * cos - odd * sin
    rotated[..., 1::2] = even * sin + odd * cos
    return rotated.type_as(x)


class MemoryAttnProcessor(WanAttnProcessor):
    """Wan's self-attention; `memory` are further keys (rotated) and values that every query sees."""

    def __call__(  # type: ignore[override]
        self,
        attn: WanAttention,
        hidden_states: Float[Tensor, "b n k"],
        encoder_hidden_states: None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Rotary | None = None,
        *,
        memory: KeysValues | None = None,
    ) -> Float[Tensor, "b n k"]:
        assert encoder_hidden_states is None, "self-attention only"
        query, key, value = project(attn, hidden_states)
        if rotary_emb is not None:
            query, key = rotate(query, rotary_emb), rotate(key, rotary_emb)
        if memory is not None:
            key, value = torch.cat([key, memory[0]], dim=1), torch.cat([value, memory[1]], dim=1)
        return self.attend(attn, query, key, value, attention_mask)

    def attend(
        self,
        attn: WanAttention,
        query: Float[Tensor, "b n h d"],
        key: Float[Tensor, "b m h d"],
        value: Float[Tensor, "b m h d"],
        attention_mask: Tensor | None = None,
    ) -> Float[Tensor, "b n k"]:
        """Scaled dot product and output projection."""
        attended = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            dropout_p=0.0,
            is_causal=False,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        attended = attended.flatten(2, 3).type_as(query)
        return attn.to_out[1](attn.to_out[0](attended))
