"""`MemoryTransformer3DModel`: Wan's video transformer whose token sequence also holds memories.

Our own forward over diffusers' mixins and Wan modules, with diffusers' Wan parameter names, so every diffusers Wan
checkpoint loads and, with no memory, the output equals diffusers' `WanTransformer3DModel` (tests/model/test_transformer.py).
What is added: source latents on channels (LucyEdit), memories as tokens under kernels of their own (Memory-V2V section 3.2),
explicit positions, and several timesteps in one sequence: the target is at t, a memory is clean and so at 0. A modulation is a
vector broadcast over its run of tokens, never one vector per token; timesteps given per token (Wan2.2-5B) are cut into runs.

Memory attention is "joint" (the paper: all tokens attend to all) or "isolated": a memory attends only to itself and reads no
text, so its keys and values are the same at every step and for every target, and are computed once (`encode_memory`).

Does not know what a memory is for, how it was chosen, or how sampling works.

Legend: B batch, N tokens (target first), L text tokens, D width.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, cast, get_args

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import FromOriginalModelMixin, PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import WanTimeTextImageEmbedding, WanTransformerBlock
from diffusers.utils import apply_lora_scale
from jaxtyping import Bool, Float
from torch import Tensor, nn

from model.attention import KeysValues, MemoryAttnProcessor, Rotary, project, rotate
from model.checkpoints import find_folder
from model.colour import ColourHead
from model.flow import NUM_TRAIN_TIMESTEPS
from model.memory import KERNELS, MemoryAttention, MemoryPositions, MemoryRole, kernel_name, temporal_start
from model.merging import FrameCompressor, Merging, responsiveness, thin
from model.patchify import TokenGroup, concatenate, init_from_base, patchify, unpatchify
from model.rope import rotary_embedding
from model.types import ColourChoice, EncodedMemory, Kernel, MemoryBatch


def merging_blocks(num_layers: int) -> tuple[int, int]:
    """Where the paper merges: before the first block of the second and of the last third (10 and 20 of 30)."""
    return num_layers // 3, 2 * num_layers // 3


class MemoryTransformerBlock(WanTransformerBlock):
    """Wan's block, same parameters, for a sequence whose parts stand at different timesteps."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.attn1.set_processor(MemoryAttnProcessor())

    def forward(  # type: ignore[override]
        self,
        hidden_states: Float[Tensor, "b n d"],
        encoder_hidden_states: Float[Tensor, "b l d"],
        temb: Float[Tensor, "b parts 6 d"],
        rotary_emb: tuple[Tensor, Tensor],
        lengths: list[int],
        text_mask: Bool[Tensor, "b 1 1 l"] | None = None,
        memory: KeysValues | None = None,
    ) -> Float[Tensor, "b n d"]:
        """`temb[:, i]` modulates the i-th run of `lengths[i]` tokens; all of them also see `memory` (keys rotated)."""
        shift_msa, scale_msa, gate_msa, c_shift_msa, c_scale_msa, c_gate_msa = self.modulation(temb)

        normed = modulate(self.norm1(hidden_states.float()), shift_msa, scale_msa, lengths).type_as(hidden_states)
        attended = self.attn1(normed, None, None, rotary_emb, memory=memory)
        hidden_states = (hidden_states.float() + gate(attended, gate_msa, lengths)).type_as(hidden_states)

        normed = self.norm2(hidden_states.float()).type_as(hidden_states)
        hidden_states = hidden_states + self.attn2(normed, encoder_hidden_states, text_mask, None)

        normed = modulate(self.norm3(hidden_states.float()), c_shift_msa, c_scale_msa, lengths).type_as(hidden_states)
        fed = self.ffn(normed)
        return (hidden_states.float() + gate(fed.float(), c_gate_msa, lengths)).type_as(hidden_states)

    def modulation(self, temb: Float[Tensor, "b parts 6 d"]) -> tuple[Float[Tensor, "b parts d"], ...]:
        """Shift, scale and gate of attention, then of the feed-forward layer."""
        return (self.scale_shift_table.unsqueeze(1) + temb.float()).unbind(2)

    def responsiveness(
        self,
        hidden_states: Float[Tensor, "b n d"],
        temb: Float[Tensor, "b parts 6 d"],
        lengths: list[int],
        frames: Sequence[tuple[int, int]],
    ) -> Float[Tensor, "b f"]:
        """How the target responds in this block to every frame of the memory, which is the last part of the sequence.

        Without rotary embedding: what a mean of rotated keys says of a frame is less (docs/decisions.md).
        """
        attn = self.attn1
        shift, scale = self.modulation(temb)[:2]
        normed = modulate(self.norm1(hidden_states.float()), shift, scale, lengths).type_as(hidden_states)
        target, memory = normed.split([sum(lengths[:-1]), lengths[-1]], dim=1)
        query = attn.norm_q(attn.to_q(target)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(memory)).unflatten(2, (attn.heads, -1))
        return responsiveness(query, key, frames)

    def encode_memory(
        self, hidden_states: Float[Tensor, "b n d"], temb: Float[Tensor, "#b 1 6 d"], rotary_emb: Rotary
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n h e"], Float[Tensor, "b n h e"]]:
        """The block for a memory by itself, without text; also its keys (not rotated) and values."""
        shift_msa, scale_msa, gate_msa, c_shift_msa, c_scale_msa, c_gate_msa = self.modulation(temb)
        lengths = [hidden_states.shape[1]]

        normed = modulate(self.norm1(hidden_states.float()), shift_msa, scale_msa, lengths).type_as(hidden_states)
        query, key, value = project(self.attn1, normed)
        processor = cast(MemoryAttnProcessor, self.attn1.processor)
        attended = processor.attend(self.attn1, rotate(query, rotary_emb), rotate(key, rotary_emb), value)
        hidden_states = (hidden_states.float() + attended * gate_msa).type_as(hidden_states)

        normed = modulate(self.norm3(hidden_states.float()), c_shift_msa, c_scale_msa, lengths).type_as(hidden_states)
        return (hidden_states.float() + self.ffn(normed).float() * c_gate_msa).type_as(hidden_states), key, value


def modulate(
    x: Float[Tensor, "b n d"], shift: Float[Tensor, "b parts d"], scale: Float[Tensor, "b parts d"], lengths: list[int]
) -> Float[Tensor, "b n d"]:
    """`x * (1 + scale) + shift`, each part with its own vectors."""
    if len(lengths) == 1:
        return x * (1 + scale) + shift
    parts = x.split(lengths, dim=1)
    return torch.cat([p * (1 + scale[:, i, None]) + shift[:, i, None] for i, p in enumerate(parts)], dim=1)


def gate(x: Float[Tensor, "b n d"], gates: Float[Tensor, "b parts d"], lengths: list[int]) -> Float[Tensor, "b n d"]:
    """`x * gate`, each part with its own vector."""
    if len(lengths) == 1:
        return x * gates
    return torch.cat([p * gates[:, i, None] for i, p in enumerate(x.split(lengths, dim=1))], dim=1)


def timestep_runs(
    timestep: Float[Tensor, "b"] | Float[Tensor, "b n"], num_tokens: int
) -> tuple[Float[Tensor, "b parts"], list[int]]:
    """The timesteps of the target's runs of tokens, and how long the runs are: one run unless tokens differ.

    Raises:
        ValueError: for timesteps that are neither one per sample nor one per token.
    """
    if timestep.ndim == 1:
        return timestep[:, None], [num_tokens]
    if timestep.ndim != 2 or timestep.shape[1] != num_tokens:
        raise ValueError(
            f"timestep has shape {tuple(timestep.shape)}; needs one per sample, or one for each of {num_tokens} tokens"
        )
    is_new = (timestep[:, 1:] != timestep[:, :-1]).any(0)
    starts = [0, *(1 + is_new.nonzero().flatten()).tolist()]
    return timestep[:, starts], [end - start for start, end in zip(starts, [*starts[1:], num_tokens], strict=True)]


@dataclass
class MemoryTransformerOutput(Transformer2DModelOutput):  # type: ignore[misc]
    """`choice` is what `sample` was mixed of, in a network with a colour head."""

    choice: ColourChoice | None = None


class MemoryTransformer3DModel(
    ModelMixin, ConfigMixin, PeftAdapterMixin, FromOriginalModelMixin, CacheMixin, AttentionMixin
):
    """Denoises the latents of one segment, given its source, an instruction and any number of memories.

    Args (beyond those of diffusers' `WanTransformer3DModel`):
        memory_kernels: kernels a memory may come in; one patch embedding each, started from the base embedding.
        prediction_type: what the output means: "velocity" (noise - x_0) or "source_residual" (x_0 - source latents).
            Only recorded here; `model.flow` acts on it.
        memory_attention: "joint" or "isolated".
        merging_blocks: blocks before which memory frames may be merged, each with a compressor of its own; the paper's are
            at a third and two thirds of the depth (`merging_blocks(num_layers)`). Joint attention only.
        memory_positions: "ranges", "reversed" or "shared"; see `model.memory.temporal_start`.
        has_colour_head: the output also changes the source's own colours, by itself or as memories show (`model.colour`); of networks
            on the linear codec.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ["patch_embedding", "condition_embedder", "norm"]
    _no_split_modules = ["MemoryTransformerBlock"]
    _keep_in_fp32_modules = ["time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"]
    _keys_to_ignore_on_load_unexpected = ["norm_added_q"]
    _repeated_blocks = ["MemoryTransformerBlock"]

    @register_to_config
    def __init__(
        self,
        patch_size: Kernel = (1, 2, 2),
        num_attention_heads: int = 24,
        attention_head_dim: int = 128,
        in_channels: int = 96,
        out_channels: int = 48,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 14336,
        num_layers: int = 30,
        cross_attn_norm: bool = True,  # noqa: FBT001 - diffusers' config
        qk_norm: str | None = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int | None = None,
        added_kv_proj_dim: int | None = None,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
        memory_kernels: tuple[Kernel, ...] = KERNELS,
        prediction_type: str = "velocity",
        memory_attention: str = "joint",
        merging_blocks: tuple[int, ...] = (),
        memory_positions: str = "ranges",
        has_colour_head: bool = False,  # noqa: FBT001 - a config like diffusers' own
    ) -> None:
        super().__init__()
        if memory_positions not in get_args(MemoryPositions):
            allowed = ", ".join(get_args(MemoryPositions))
            raise ValueError(f"memory_positions is {memory_positions!r}; needs one of {allowed}")
        if memory_attention not in get_args(MemoryAttention):
            allowed = ", ".join(get_args(MemoryAttention))
            raise ValueError(f"memory_attention is {memory_attention!r}; needs one of {allowed}")
        if merging_blocks and memory_attention != "joint":
            raise ValueError(
                f"merging_blocks are {merging_blocks}; isolated memory is computed once, before any target"
            )
        if any(not 0 <= number < num_layers for number in merging_blocks):
            raise ValueError(f"merging_blocks are {merging_blocks}; needs 0 to {num_layers - 1}")
        if has_colour_head and in_channels != 2 * out_channels:
            raise ValueError(
                f"has_colour_head needs source latents: in_channels {2 * out_channels}; it is {in_channels}"
            )
        width = num_attention_heads * attention_head_dim
        self.patch_embedding = nn.Conv3d(in_channels, width, kernel_size=patch_size, stride=patch_size)
        self.memory_patch_embedding = nn.ModuleDict(
            {kernel_name(k): nn.Conv3d(in_channels, width, kernel_size=k, stride=k) for k in memory_kernels}
        )
        self.memory_compressors = nn.ModuleDict({str(number): FrameCompressor(width) for number in merging_blocks})
        self.init_memory([*self.memory_patch_embedding.values(), *self.memory_compressors.values()])

        self.condition_embedder = WanTimeTextImageEmbedding(
            dim=width,
            time_freq_dim=freq_dim,
            time_proj_dim=width * 6,
            text_embed_dim=text_dim,
            image_embed_dim=image_dim,
            pos_embed_seq_len=pos_embed_seq_len,
        )
        self.blocks = nn.ModuleList(
            MemoryTransformerBlock(
                width, ffn_dim, num_attention_heads, qk_norm, cross_attn_norm, eps, added_kv_proj_dim
            )
            for _ in range(num_layers)
        )
        self.norm_out = FP32LayerNorm(width, eps, elementwise_affine=False)
        self.proj_out = nn.Linear(width, out_channels * patch_size[0] * patch_size[1] * patch_size[2])
        self.colour_head = ColourHead(width, out_channels, patch_size) if has_colour_head else None
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, width) / width**0.5)
        self.gradient_checkpointing = False

    def init_memory(self, modules: Iterable[nn.Module]) -> None:
        """Bring memory modules to where they start on a base that knows no memory: averages, of tokens and of its embedding."""
        for module in modules:
            if isinstance(module, FrameCompressor):
                module.reset_parameters()
            else:
                init_from_base(cast(nn.Conv3d, module), self.patch_embedding)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, folder: str | Path, *, subfolder: str = "", torch_dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> "MemoryTransformer3DModel":
        """The network of any diffusers Wan folder (or hub id in the local cache), in evaluation mode; `model.weights`.

        Raises:
            ValueError: if the folder is not there or its tensors do not fit.
        """
        from model.weights import load_transformer

        return load_transformer(find_folder(folder) / subfolder, dtype=torch_dtype or torch.float32, device=device)

    @property
    def is_isolated(self) -> bool:
        return bool(self.config.memory_attention == "isolated")

    def memory_start(self, role: MemoryRole, num_range_frames: int) -> int:
        return temporal_start(role, num_range_frames, positions=self.config.memory_positions)

    def patchify_memory(self, item: MemoryBatch, *, start: int, video: int) -> TokenGroup:
        """Tokens of a memory under its own kernel, its first position in time (its last frame's, reversed) being `start`.

        Raises:
            ValueError: for a kernel this model has no embedding for.
        """
        name = kernel_name(item.kernel)
        if name not in self.memory_patch_embedding:
            raise ValueError(f"memory kernel is {name}; needs one of {sorted(self.memory_patch_embedding)}")
        embedding = cast(nn.Conv3d, self.memory_patch_embedding[name])
        base = cast(Kernel, tuple(self.config.patch_size))
        group = patchify(item.latents, embedding, base=base, start=start, video=video)
        if self.config.memory_positions == "reversed":
            t, y, x = group.positions.unbind(-1)
            group = replace(group, positions=torch.stack([t.max() + t.min() - t, y, x], dim=-1))
        return group if self.colour_head is None else replace(group, colours=self.colour_head.show(item))

    def tokenize(
        self, hidden_states: Float[Tensor, "b c t h w"], memory: Sequence[MemoryBatch], *, num_range_frames: int
    ) -> TokenGroup:
        """Target tokens, then every memory's, with positions in their temporal ranges."""
        base = cast(Kernel, tuple(self.config.patch_size))
        groups = [patchify(hidden_states, self.patch_embedding, base=base, start=0, video=0)]
        for video, item in enumerate(memory, start=1):
            start = self.memory_start(item.role, num_range_frames)
            groups.append(self.patchify_memory(item, start=start, video=video))
        return concatenate(groups)

    def encode_memory(self, item: MemoryBatch) -> EncodedMemory:
        """Keys and values of a memory in every block, for isolated attention.

        Positions count from the memory's own first frame: attention inside it sees only their differences, and its place
        beside a target is put in when it is read.
        """
        group = self.patchify_memory(item, start=0, video=1)
        rotary_emb = rotary_embedding(group.positions, self.config.attention_head_dim)
        temb = self.clean_modulation(item.latents.new_zeros(1))
        keys, values, tokens = [], [], group.tokens
        for block in cast(Iterable[MemoryTransformerBlock], self.blocks):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                checkpointed = self._gradient_checkpointing_func
                tokens, key, value = checkpointed(block.encode_memory, tokens, temb, rotary_emb)
            else:
                tokens, key, value = block.encode_memory(tokens, temb, rotary_emb)
            keys.append(key)
            values.append(value)
        return EncodedMemory(
            role=item.role,
            keys=tuple(keys),
            values=tuple(values),
            positions=group.positions,
            colours=group.colours,
        )

    def thin(
        self,
        group: TokenGroup,
        number: int,
        merging: Merging,
        modulation: Float[Tensor, "b parts 6 d"],
        lengths: list[int],
    ) -> TokenGroup:
        """Merge or discard memory frames before block `number`, by how the target responds to them there."""
        num_target = sum(lengths[:-1])
        frames = [(span.start - num_target, span.end - num_target) for span in group.spans if span.video != 0]
        block = cast(MemoryTransformerBlock, self.blocks[number])
        with torch.no_grad():
            scores = block.responsiveness(group.tokens, modulation, lengths, frames)
        return thin(group, scores, merging, cast(FrameCompressor, self.memory_compressors[str(number)]))

    def clean_modulation(self, timestep: Float[Tensor, "1"]) -> Float[Tensor, "1 1 6 d"]:
        """Modulation of what stands at timestep 0."""
        embedder: Any = self.condition_embedder
        embedded = embedder.timesteps_proj(torch.zeros_like(timestep))
        embedded = embedder.time_embedder(embedded.to(embedder.time_embedder.linear_1.weight.dtype))
        embedded = embedded.to(embedder.time_proj.weight.dtype)
        return embedder.time_proj(embedder.act_fn(embedded)).unflatten(1, (6, -1)).unsqueeze(1)

    def read_memory(self, encoded: Sequence[EncodedMemory], *, num_range_frames: int) -> list[KeysValues]:
        """Per block the keys, rotated to where the memories stand beside this target, and values of all of them."""
        positions = []
        for item in encoded:
            start = torch.tensor([self.memory_start(item.role, num_range_frames), 0, 0], dtype=item.positions.dtype)
            positions.append(item.positions + start.to(item.positions.device))
        rotary_emb = rotary_embedding(torch.cat(positions, dim=1), self.config.attention_head_dim)
        return [
            (rotate(torch.cat(keys, dim=1), rotary_emb), torch.cat(values, dim=1))
            for keys, values in zip(
                zip(*(item.keys for item in encoded), strict=True),
                zip(*(item.values for item in encoded), strict=True),
                strict=True,
            )
        ]

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: Float[Tensor, "b c t h w"],
        timestep: Float[Tensor, "b"] | Float[Tensor, "b n"],
        encoder_hidden_states: Float[Tensor, "b l k"],
        encoder_hidden_states_image: Tensor | None = None,
        return_dict: bool = True,  # noqa: FBT001 - diffusers' signature
        attention_kwargs: dict[str, Any] | None = None,
        *,
        encoder_attention_mask: Bool[Tensor, "b l"] | None = None,
        memory: Sequence[MemoryBatch | EncodedMemory] = (),
        num_range_frames: int | None = None,
        merging: Merging | None = None,
        begins: Bool[Tensor, "b"] | None = None,
    ) -> "MemoryTransformerOutput | tuple[Tensor]":
        """Predict for the target tokens only.

        Args:
            hidden_states: noisy latents, with the source latents behind them on channels where the model edits.
            timestep: sigma * 1000 of the target, one per sample or one per token of it.
            encoder_hidden_states: text features.
            encoder_attention_mask: True for text tokens that are there; None (Wan's own habit) attends to all.
            memory: the memories of this batch, in any order; the same layout for every sample. With isolated attention
                they may come encoded, which gives the same numbers.
            num_range_frames: latent frames of a temporal range, the target's own count unless given.
            merging: how memory frames are thinned at the network's merging blocks; None leaves them as they are.
            begins: whether the target begins with its segment's first frame; None: it does. Read by the colour head.
        """
        if merging is not None and not self.memory_compressors:
            raise ValueError("merging is given; this network has no merging_blocks")
        batch, _, *latent_shape = hidden_states.shape
        range_frames = num_range_frames or latent_shape[0]
        appended: list[MemoryBatch] = []
        read: list[KeysValues] | None = None
        shown: list[Tensor] = []
        if self.is_isolated and memory:
            encoded = [item if isinstance(item, EncodedMemory) else self.encode_memory(item) for item in memory]
            read = self.read_memory(encoded, num_range_frames=range_frames)
            shown = [item.colours for item in encoded if item.colours is not None]
        else:
            for item in memory:
                if isinstance(item, EncodedMemory):
                    raise ValueError("memory is encoded; this network's memory_attention is joint, it needs latents")
                appended.append(item)
        group = self.tokenize(hidden_states, appended, num_range_frames=range_frames)
        num_target = sum(span.end - span.start for span in group.spans if span.video == 0)
        runs, target_lengths = timestep_runs(timestep, num_target)
        lengths = target_lengths + ([group.num_tokens - num_target] if appended else [])
        rotary_emb = rotary_embedding(group.positions, self.config.attention_head_dim)

        # One row of modulation per part of the sequence: the timesteps of the target's runs, and 0 for memories.
        temb, modulation, text, image = self.condition_embedder(
            runs.flatten(), encoder_hidden_states, encoder_hidden_states_image, timestep_seq_len=runs.shape[1]
        )
        modulation = modulation.unflatten(2, (6, -1))
        if appended:
            clean = self.clean_modulation(runs[:1, 0]).expand(batch, -1, -1, -1)
            modulation = torch.cat([modulation, clean.type_as(modulation)], dim=1)
        if image is not None:
            text = torch.cat([image, text], dim=1)
        text_mask = None if encoder_attention_mask is None else encoder_attention_mask[:, None, None, :]

        tokens = group.tokens
        for number, block in enumerate(self.blocks):
            if merging is not None and appended and str(number) in self.memory_compressors:
                group = self.thin(replace(group, tokens=tokens), number, merging, modulation, lengths)
                tokens, lengths = group.tokens, [*target_lengths, group.num_tokens - num_target]
                if not lengths[-1]:
                    lengths, modulation, appended = target_lengths, modulation[:, :-1], []
                rotary_emb = rotary_embedding(group.positions, self.config.attention_head_dim)
            inputs = (tokens, text, modulation, rotary_emb, lengths, text_mask, read[number] if read else None)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, *inputs)
            else:
                tokens = block(*inputs)

        if appended and group.colours is not None:
            shown = [group.colours[:, num_target:]]
        tokens = tokens[:, :num_target]
        shift, scale = (self.scale_shift_table.unsqueeze(1) + temb.unsqueeze(2)).unbind(2)
        tokens = modulate(self.norm_out(tokens.float()), shift, scale, target_lengths).type_as(tokens)
        sample = unpatchify(self.proj_out(tokens), latent_shape, tuple(self.config.patch_size))
        choice = None
        if self.colour_head is not None:
            noisy, source = hidden_states.chunk(2, dim=1)
            sigma = timestep.float() / NUM_TRAIN_TIMESTEPS
            if timestep.ndim == 1:
                sigma = sigma.view(-1, 1, 1, 1, 1)
            else:
                patch = tuple(self.config.patch_size)
                sigma = unpatchify(sigma[..., None].expand(-1, -1, prod(patch)), latent_shape, patch)
            choice = self.colour_head(
                sample, tokens, source, begins, torch.cat(shown, dim=1) if shown else None, noisy=noisy, sigma=sigma
            )
            sample = choice.sample
        return MemoryTransformerOutput(sample=sample, choice=choice) if return_dict else (sample,)
