"""What an Editor takes and gives: the one vocabulary between the network and the pipeline around it.

Knows nothing of files, retrieval or Ray. An Editor is anything that edits one segment: the Memory-V2V network, a
baseline, a published checkpoint. The pipeline only ever speaks this protocol (DESIGN: "Everything that edits is an
Editor").

Shapes: frames are `[T, H, W, 3]` RGB; latents are `[C, t, h, w]` with `t = (T - 1) / 4 + 1` for Wan-like codecs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from jaxtyping import Float, UInt8
from torch import Tensor

from model.geometry import Geometry
from model.memory import Kernel, MemoryRole, MemorySettings


@dataclass(frozen=True, kw_only=True)
class MemoryVideo:
    """One earlier segment given to the network as memory.

    `edited` and `source` are normalised latents of equal shape; `kernel` is the patch kernel (t, h, w) that turns them
    into tokens, coarser the less relevant the segment is (paper section 3.2).
    """

    role: MemoryRole
    kernel: Kernel
    edited: Float[Tensor, "c t h w"]
    source: Float[Tensor, "c t h w"]

    def __post_init__(self) -> None:
        if self.edited.shape != self.source.shape:
            raise ValueError(f"memory: edited {tuple(self.edited.shape)} and source {tuple(self.source.shape)} differ")


@dataclass(frozen=True, kw_only=True)
class MemoryBatch:
    """The same place in the memory layout of every sample of a batch: what the network itself takes.

    `latents` are the edited and the source latents of a memory on channels, like the target's noisy and source latents.
    """

    role: MemoryRole
    kernel: Kernel
    latents: Float[Tensor, "b c t h w"]


CHOICE_SURENESS = 4.0
"""Times the logits: near to taking the likeliest, as half of a change is what nobody wants. A mixture at the odds themselves pales with every memory."""


@dataclass(frozen=True, kw_only=True)
class ColourChoice:
    """What `model.colour.ColourHead` may add to the source, the network's own change first, and the logits of which it is."""

    changes: Float[Tensor, "b e c t h w"]
    logits: Float[Tensor, "b e t h w"]

    @property
    def sample(self) -> Float[Tensor, "b c t h w"]:
        """Their mixture. The shares learn by nothing that becomes of it (`model.training.editing.editing_loss`)."""
        return (self.changes * (CHOICE_SURENESS * self.logits).softmax(1).detach()[:, :, None]).sum(1)


@dataclass(frozen=True, kw_only=True)
class EncodedMemory:
    """A memory as isolated attention reads it: what `MemoryTransformer3DModel.encode_memory` makes of one `MemoryBatch`.

    It depends on nothing but the memory and the weights, neither on target, timestep nor instruction, so one serves every
    step of a segment and every later segment, in any role (`dataclasses.replace(encoded, role=...)`).

    Attributes:
        keys, values: of every block, in order; keys are not yet rotated.
        positions: (t, y, x) in base tokens, counted from the memory's own first frame.
        colours: what its patches show of colours (`model.colour`); None for a network that does not look.
    """

    role: MemoryRole
    keys: tuple[Float[Tensor, "b n h d"], ...]
    values: tuple[Float[Tensor, "b n h d"], ...]
    positions: Float[Tensor, "1 n 3"]
    colours: Float[Tensor, "b n k"] | None = None

    @property
    def num_bytes(self) -> int:
        return sum(
            tensor.nbytes for tensor in (*self.keys, *self.values, *([] if self.colours is None else [self.colours]))
        )


@dataclass(frozen=True, kw_only=True)
class EditRequest:
    """Everything one generation depends on. The result is a pure function of this and the editor's weights."""

    instruction: str
    source: Float[Tensor, "c t h w"]
    memory: tuple[MemoryVideo, ...]
    seed: int
    settings: MemorySettings = field(default_factory=MemorySettings)
    """What is done with the memories inside the network; their kernels are theirs already."""
    state: Mapping[str, Tensor] = field(default_factory=dict)
    """Named tensors the previous segment's result carried (FIFO's queue); empty for editors without state."""


@dataclass(frozen=True, kw_only=True)
class EditResult:
    latent: Float[Tensor, "c t h w"]
    state: Mapping[str, Tensor] = field(default_factory=dict)


class Editor(Protocol):
    """Encodes, edits and decodes one segment at a time."""

    @property
    def geometry(self) -> Geometry: ...

    @property
    def weights_revision(self) -> str:
        """Hash of the weight files; part of an edit's identity."""
        ...

    def encode(self, frames: UInt8[Tensor, "T H W 3"]) -> Float[Tensor, "c t h w"]:
        """Normalised latents of legal-length frames at a legal size."""
        ...

    def edit(self, request: EditRequest) -> EditResult:
        """Generate the edited latents of one segment."""
        ...

    def decode(self, latent: Float[Tensor, "c t h w"]) -> Float[Tensor, "T H W 3"]:
        """Frames in [0, 1], NOT clamped, so that differences of two decodes stay exact."""
        ...
