"""What a training run is told. Imports no torch, so that the command line answers at once."""

import json
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from model.checkpoints import read_json
from model.memory import MemoryAttention, MemoryPositions

TINY_SIZES = ((64, 64), (56, 72), (48, 88), (40, 96), (72, 56), (88, 48), (96, 40))

Trained = Literal["all", "memory", "lora"]
Sharding = Literal["ddp", "fsdp"]
MemoryLayouts = Literal["edits", "paper"]
ExtensionKind = Literal["none", "own", "framepack"]
CodecOrigin = Literal["base", "fitted"]
Precision = Literal["float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]

CHOICES: dict[str, Any] = {
    "train": Trained,
    "sharding": Sharding,
    "memory_layouts": MemoryLayouts,
    "extension": ExtensionKind,
    "codec": CodecOrigin,
    "precision": Precision,
    "device": Device,
    "memory_attention": MemoryAttention,
    "memory_positions": MemoryPositions,
}
MAY_CHANGE = (
    "output", "cache", "resume", "minutes", "render_workers", "batch_workers", "checkpoint_every", "log_every", "sample_every",
)  # fmt: skip
"""Options that a resumed run may be given anew: no number of the result depends on them."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Train the network that edits: from nothing, or from a preset. Writes a preset folder.

    A run that was stopped goes on with --resume and the same options, and ends with the same weights.

    Attributes:
        output: folder for checkpoint, logs and the finished preset.
        data: "worlds" (rendered here, with their truth), or a folder of segments in latents; the command also takes a manifest
            (CSV, JSONL or Parquet; columns source, edited, instruction) and makes that folder of it.
        cache: folder that keeps rendered worlds between runs; none: they are rendered anew (by several workers: kept in `output`).
        resume: go on from `output`'s checkpoint (which must be there).
        base: preset (name or folder) that training starts from: its codec or VAE, network, text encoder, geometry and sampler; none:
            from nothing. What the base does not have (kernels and compressors of memory) starts new.
        codec: the base's, or one fitted now ("fitted", as without a base), which the base's network is carried over to. Only of bases on the
            linear codec, and with the whole network trained.
        train: "all" of the network (and a text encoder of bytes), only what the paper trains ("memory": tokenizers of memory, self-attention,
            compressors), or low-rank adapters of self-attention beside what memory adds ("lora", merged in the result). A published text
            encoder always stays as it is.
        lora_rank: of the adapters.
        extension: who continues clips, so that they have something to remember: nobody, the base itself ("own"), or diffusers'
            FramePack pipeline.
        extension_segments: by how many segments every video is continued.
        framepack: folder of a HunyuanVideoFramepackPipeline.
        memory_layouts: which memories under which kernels: mostly as edits have them, or as the paper draws them (1 to 6, half of the time
            all under one random kernel, else each under its own).
        sharding: with several workers, each holds the whole network ("ddp") or a part of every block ("fsdp").
        device: auto is a GPU where there is one.
        precision: of the arithmetic; weights, gradients and averages stay float32.
        gradient_checkpointing: compute a block again for its gradient instead of keeping what it made: less memory, a third more work.
        batch_workers: processes that draw batches ahead, for a GPU that takes them faster than one core draws them; none: drawn between
            the steps.
        num_shards: parts of a batch worked on apart, on a CPU at the same time; part of what the result depends on. A multiple of the
            number of workers.
        steps: length of the learning-rate schedule, and where the run ends.
        minutes: stop (and write the preset) after this much time even if steps are left; resumable.
        stages: (steps, latent frames (at most a segment's), batch size) one after the other: single frames teach most of what an instruction and a
            memory mean at a tenth of the cost. The last stage lasts to the end.
        memory_noise: strongest noise on memory latents (the paper adds noise too, level not given).
        edit_weight: weight of the error inside the edited region beside the error everywhere.
        look_weight: weight of the error of the edited region's mean, frame by frame.
        shift: training sigmas are uniform, shifted towards noise by this.
        memory_attention: "joint" as in the paper, or "isolated": memories attend only to themselves, are computed once per
            segment instead of at every step, and read no text. None: as the base has it, joint without one.
        memory_positions: where memories stand in time, "ranges" as in the paper, "reversed" or one "shared" range. None: as the base
            has it, "ranges" without one.
        memoryless: share of batches without memory; of worlds, they come from the short ones.
        num_worlds, num_short_worlds: videos of six segments, and of one.
        num_layers, num_heads, head_dim, ffn_dim, text_layers, text_width: of a new network; a base has its own.
        merging: give the network compressors of memory frames, and use them in half of the batches. Joint attention only.
        sizes, segment_frames, num_inference_steps, inference_shift, max_instruction_tokens: of a new preset; left at their defaults,
            a base's own hold.
        sample_every: steps between grids of pictures in TensorBoard.
    """

    output: Path
    data: str = "worlds"
    cache: Path | None = None
    resume: bool = False
    base: str | None = None
    codec: CodecOrigin = "base"
    train: Trained = "all"
    lora_rank: int = 16
    extension: ExtensionKind = "none"
    extension_segments: int = 2
    framepack: Path | None = None
    memory_layouts: MemoryLayouts = "edits"
    sharding: Sharding = "ddp"
    device: Device = "auto"
    precision: Precision = "float32"
    gradient_checkpointing: bool = False
    seed: int = 0
    steps: int = 2400
    minutes: float | None = None
    stages: tuple[tuple[int, int, int], ...] = ((1200, 1, 48), (500, 2, 24), (700, 9, 8))
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    ema_decay: float = 0.997
    max_gradient_norm: float = 1.0
    memory_noise: float = 0.2
    edit_weight: float = 1.0
    look_weight: float = 8.0
    shift: float = 4.0
    memory_attention: MemoryAttention | None = None
    memory_positions: MemoryPositions | None = None
    merging: bool = False
    memoryless: float = 0.4
    num_worlds: int = 2000
    num_short_worlds: int = 10_000
    num_codec_worlds: int = 150
    render_workers: int = 2
    batch_workers: int = 0
    num_shards: int = 2
    num_layers: int = 6
    num_heads: int = 6
    head_dim: int = 32
    ffn_dim: int = 768
    text_layers: int = 2
    text_width: int = 128
    sizes: tuple[tuple[int, int], ...] = TINY_SIZES
    segment_frames: int = 17
    num_inference_steps: int = 4
    inference_shift: float = 5.0
    max_instruction_tokens: int = 512
    checkpoint_every: int = 100
    log_every: int = 10
    sample_every: int = 200

    def __post_init__(self) -> None:
        for name in (
            "steps", "num_codec_worlds", "checkpoint_every", "log_every", "sample_every", "num_shards", "warmup_steps",
            "lora_rank", "extension_segments", "render_workers", "num_layers",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; needs at least 1")
        if self.data == "worlds":
            for name in ("num_worlds", "num_short_worlds"):
                if getattr(self, name) <= len(self.sizes):
                    raise ValueError(f"{name} is {getattr(self, name)}; needs more than the {len(self.sizes)} sizes")
        for name, choices in CHOICES.items():
            is_left_open = getattr(self, name) is None and getattr(TrainingConfig, name) is None
            if not is_left_open and getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name} is {getattr(self, name)!r}; needs one of {', '.join(get_args(choices))}")
        if not 0 <= self.memoryless <= 1:
            raise ValueError(f"memoryless is {self.memoryless}; needs 0 to 1")
        if not self.stages or any(len(stage) != 3 or min(stage) < 1 for stage in self.stages):
            raise ValueError(f"stages are {self.stages}; needs (steps, latent frames, batch size), each at least 1")
        if self.train != "all" and self.base is None:
            raise ValueError(f"train is {self.train!r}; needs a base, as the rest would stay random")
        if self.codec == "fitted" and self.train != "all":
            raise ValueError(
                f"codec is 'fitted', train is {self.train!r}; needs train all, as the rest knows only the old codec"
            )
        if self.extension == "own" and self.base is None:
            raise ValueError("extension is 'own'; needs a base that continues the clips")
        if (self.extension == "framepack") != (self.framepack is not None):
            raise ValueError(f"extension is {self.extension!r}, framepack {self.framepack}; needs both or neither")

    def given(self, name: str) -> bool:
        """Whether an option differs from its default: left at it, a base's own value holds."""
        return bool(getattr(self, name) != getattr(TrainingConfig, name))

    @classmethod
    def read(cls, path: Path) -> "TrainingConfig":
        """The options of a JSON file, as `write` leaves them or with only some of them.

        Raises:
            ValueError: if it cannot be read, or an option is unknown, missing or of another kind.
        """
        document = read_json(path)
        known = {field.name: field for field in fields(cls)}
        unknown = sorted(set(document) - set(known))
        missing = [name for name, field in known.items() if field.default is MISSING and name not in document]
        if unknown or missing:
            raise ValueError(f"options {path}: unknown {unknown}, missing {missing}; known are {', '.join(known)}")
        for name, value in document.items():
            wanted = type(known[name].default)
            numbers = (int, float) if wanted is float else wanted
            if wanted in (bool, int, float, str) and not isinstance(value, numbers):
                raise ValueError(f"options {path}: {name} is {value!r}; needs {wanted.__name__}")
        return cls(**{name: _from_json(name, value) for name, value in document.items()})

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self), default=str))

    def check_resumable(self, path: Path) -> None:
        """Raises ValueError if the run that wrote `path` had other options that its result depends on."""
        before, now = json.loads(path.read_text()), self.to_json()
        for name in now:
            if name not in MAY_CHANGE and name in before and before[name] != now[name]:
                raise ValueError(
                    f"{name} is {now[name]!r}; the run to resume had {before[name]!r}, and needs the same options"
                )


def _from_json(name: str, value: Any) -> Any:
    """Lists become tuples, paths paths."""
    if name in ("output", "cache", "framepack"):
        return None if value is None else Path(value)
    if isinstance(value, list):
        return tuple(tuple(item) if isinstance(item, list) else item for item in value)
    return value
