"""FLOPs of one denoising step at the true sizes, counted on the meta device, beside the closed formulas.

    python -m benchmarks.flops --out benchmarks/results          about a minute, no weights, no GPU

Two settings of the paper: LucyEdit (Wan2.2-5B, 480x832, 81 frames, the source on channels) with three retrieved segments, and
novel views (Wan2.1-1.3B, same size) at turn 5: the user's video, three relevant and one less relevant memory as tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.provenance import write_report
from model.memory import BASE_KERNEL, COARSE_KERNEL, RELEVANT_KERNEL
from model.merging import Merging
from model.patchify import grid_size
from model.transformer import MemoryTransformer3DModel, merging_blocks
from model.types import Kernel, MemoryBatch

TEXT_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A network and what it is given. `latent_shape` is (t, h, w)."""

    name: str
    num_layers: int
    num_heads: int
    ffn_dim: int
    in_channels: int
    out_channels: int
    latent_shape: tuple[int, int, int]
    memory: tuple[Kernel, ...]

    @property
    def width(self) -> int:
        return 128 * self.num_heads

    @property
    def size(self) -> dict[str, int]:
        """What the network's constructor is told of it, but for the number of layers."""
        return {
            "num_attention_heads": self.num_heads,
            "ffn_dim": self.ffn_dim,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
        }

    @property
    def heading(self) -> list[str]:
        """Of its part of a report."""
        tokens = f"{self.tokens(BASE_KERNEL):,} target tokens, {sum(map(self.tokens, self.memory)):,} memory tokens."
        return ["", f"## {self.name}", "", tokens, ""]

    def tokens(self, kernel: Kernel) -> int:
        return math.prod(grid_size(self.latent_shape, kernel))


LUCY_EDIT = Setting(
    name="Wan2.2-5B 480x832x81, 3 memories 1x4x4",
    num_layers=30,
    num_heads=24,
    ffn_dim=14336,
    in_channels=96,
    out_channels=48,
    latent_shape=(21, 30, 52),
    memory=(RELEVANT_KERNEL,) * 3,
)
TURN_5 = Setting(
    name="Wan2.1-1.3B 480x832x81, turn 5: user input 1x2x2, 3 memories 1x4x4, 1 memory 1x8x8",
    num_layers=30,
    num_heads=12,
    ffn_dim=8960,
    in_channels=16,
    out_channels=16,
    latent_shape=(21, 60, 104),
    memory=(BASE_KERNEL, *(RELEVANT_KERNEL,) * 3, COARSE_KERNEL),
)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Options of the benchmark.

    Attributes:
        out: folder for the Markdown report.
        share: of the memory frames merged before blocks 10 and 20.
    """

    out: Path = Path("benchmarks/results")
    share: float = 0.5


def layer_flops(setting: Setting, queries: int, keys: int, *, text: bool = True) -> float:
    """One block: projections, self-attention, text attention, feed-forward."""
    d = setting.width
    own = 8 * queries * d**2 + 4 * queries * keys * d + 4 * queries * d * setting.ffn_dim
    read = 4 * queries * d**2 + 4 * TEXT_TOKENS * d**2 + 4 * queries * TEXT_TOKENS * d
    return own + (read if text else 0)


def network(setting: Setting, *, attention: str, is_merging: bool = False) -> MemoryTransformer3DModel:
    with torch.device("meta"):
        return MemoryTransformer3DModel(
            num_layers=setting.num_layers,
            **setting.size,
            memory_attention=attention,
            merging_blocks=merging_blocks(setting.num_layers) if is_merging else (),
        )


def memories(setting: Setting) -> list[MemoryBatch]:
    latents = torch.empty(1, setting.in_channels, *setting.latent_shape, device="meta")
    return [MemoryBatch(role="retrieved", kernel=kernel, latents=latents) for kernel in setting.memory]


def step_flops(
    model: MemoryTransformer3DModel, setting: Setting, memory: Sequence, *, merging: Merging | None = None
) -> int:
    latents = torch.empty(1, setting.in_channels, *setting.latent_shape, device="meta")
    text = torch.empty(1, TEXT_TOKENS, 4096, device="meta")
    timestep = torch.empty(1, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(latents, timestep, text, memory=memory, merging=merging)
    return counter.get_total_flops()


def measure(setting: Setting, *, share: float) -> list[tuple[str, int, float]]:
    """(what, counted, formula) of every way to give the same memory."""
    layers, target = setting.num_layers, setting.tokens(BASE_KERNEL)
    sizes = [setting.tokens(kernel) for kernel in setting.memory]
    total = sum(sizes)
    isolated = network(setting, attention="isolated")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoded = [isolated.encode_memory(item) for item in memories(setting)]
    merging = network(setting, attention="joint", is_merging=True)
    kept = total
    merged = 0.0
    for number in range(layers):
        if number in merging_blocks(layers):
            merged += 2 * (target + kept) * setting.width**2  # responsiveness: the target's queries, the memory's keys
            kept = round(kept * (1 - 0.75 * share))
        merged += layer_flops(setting, target + kept, target + kept)
    joint = network(setting, attention="joint")
    return [
        ("without memory", step_flops(joint, setting, []), layers * layer_flops(setting, target, target)),
        (
            "joint",
            step_flops(joint, setting, memories(setting)),
            layers * layer_flops(setting, target + total, target + total),
        ),
        (
            f"joint, {share:.0%} of the frames merged twice",
            step_flops(merging, setting, memories(setting), merging=Merging(share=share)),
            merged,
        ),
        (
            "isolated, per step",
            step_flops(isolated, setting, encoded),
            layers * layer_flops(setting, target, target + total),
        ),
        (
            "isolated, once per memory and edit",
            counter.get_total_flops(),
            layers * sum(layer_flops(setting, size, size, text=False) for size in sizes),
        ),
    ]


def run(options: Benchmark) -> list[str]:
    fine = replace(LUCY_EDIT, name="the same, all memories 1x2x2", memory=(BASE_KERNEL,) * 3)
    lines = [
        "Counted by torch's FlopCounterMode on the meta device; the formula is `layer_flops` in `benchmarks/flops.py`. "
        "A multiplication and an addition are two; one forward, without guidance.",
    ]
    for setting in (LUCY_EDIT, fine, TURN_5):
        found = measure(setting, share=options.share)
        base, joint = found[0][1], found[1][1]
        rows = [
            f"| {what} | {counted / 1e12:.1f} | {formula / 1e12:.1f} | {counted / formula - 1:+.1%} | {counted / base:.2f} | "
            f"{counted / joint - 1:+.0%} |"
            for what, counted, formula in found
        ]
        lines += [
            *setting.heading,
            "| step | TFLOP counted | formula | difference | times without memory | against joint |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
        print("\n".join([*lines[-len(rows) - 2 :], ""]), flush=True)
    return lines


if __name__ == "__main__":
    chosen = tyro.cli(Benchmark, description=__doc__)
    write_report(
        "flops",
        title="FLOPs of one denoising step",
        packages=("torch", "diffusers"),
        out=chosen.out,
        lines=run(chosen),
    )
