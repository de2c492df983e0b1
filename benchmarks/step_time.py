"""Wall time of one denoising step on a GPU at the true sizes, by ratio, in one run: what memory costs, and what isolating and merging save.

    python -m benchmarks.step_time --out benchmarks/results          about a minute on one H200; random weights, no downloads

The settings of `benchmarks/flops.py`: LucyEdit (Wan2.2-5B) with three retrieved segments, novel views (Wan2.1-1.3B) at turn 5. bfloat16, eager,
torch's own attention, no guidance. diffusers' network beside ours, with the same weights: it knows no memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import tyro
from diffusers import WanTransformer3DModel

from benchmarks.flops import LUCY_EDIT, TEXT_TOKENS, TURN_5, Setting, layer_flops
from benchmarks.provenance import write_report
from model.memory import BASE_KERNEL
from model.merging import Merging
from model.transformer import MemoryTransformer3DModel, merging_blocks
from model.types import MemoryBatch
from model.weights import is_island

MATRIX = 8192


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Options of the benchmark.

    Attributes:
        out: folder for the Markdown report.
        share: of the memory frames merged before blocks 10 and 20.
        repeats: of every step; the median is told.
        num_layers: fewer than the real 30, to try the benchmark out.
    """

    out: Path = Path("benchmarks/results")
    share: float = 0.5
    repeats: int = 5
    num_layers: int | None = None


def milliseconds(call: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Median and spread (longest less shortest)."""
    events = []
    with torch.no_grad():
        for _ in range(repeats + 2):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            events.append((begin, end))
    torch.cuda.synchronize()
    times = [begin.elapsed_time(end) for begin, end in events[2:]]
    return median(times), max(times) - min(times)


def matrix_rate(repeats: int) -> float:
    """FLOP per second of a large matrix product: the floor's denominator."""
    a, b = torch.randn(2, MATRIX, MATRIX, device="cuda", dtype=torch.bfloat16)
    return 2 * MATRIX**3 / milliseconds(lambda: a @ b, 10 * repeats)[0] * 1000


def network(kind: Any, setting: Setting, layers: int, **options: Any) -> Any:
    """Random weights as a pipeline in bfloat16 has them."""
    with torch.device("cuda"):
        model = kind(num_layers=layers, **setting.size, **options)
    for name, parameter in model.named_parameters():
        if not is_island(model, name):
            parameter.data = parameter.data.bfloat16()
    return model.eval()


def measure(setting: Setting, *, options: Benchmark) -> list[tuple[str, float, float, float | None]]:
    """(what, median ms, spread, FLOPs by the formula)."""
    layers = options.num_layers or setting.num_layers
    torch.manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

    latents, text = random(1, setting.in_channels, *setting.latent_shape), random(1, TEXT_TOKENS, 4096)
    timestep = torch.tensor([700.0], device="cuda")
    target = setting.tokens(BASE_KERNEL)
    per_token = timestep.repeat(1, target)
    total = sum(map(setting.tokens, setting.memory))
    memory = [
        MemoryBatch(role="retrieved", kernel=kernel, latents=random(1, setting.in_channels, *setting.latent_shape))
        for kernel in setting.memory
    ]
    ours = network(MemoryTransformer3DModel, setting, layers, merging_blocks=merging_blocks(layers))
    theirs = network(WanTransformer3DModel, setting, layers)
    theirs.load_state_dict({name: value for name, value in ours.state_dict().items() if "memory_" not in name})
    with torch.no_grad():
        said, wanted = (net(latents, timestep, text, return_dict=False)[0].float() for net in (ours, theirs))
    print(f"ours against diffusers, relative: {float((said - wanted).norm() / wanted.norm()):.1e}", flush=True)

    def time(call: Callable[[], Any]) -> tuple[float, float]:
        return milliseconds(call, options.repeats)

    alone = layers * layer_flops(setting, target, target)
    rows: list[tuple[str, float, float, float | None]] = [
        ("diffusers, without memory", *time(lambda: theirs(latents, timestep, text)), alone),
        ("diffusers, timesteps per token", *time(lambda: theirs(latents, per_token, text)), alone),
        ("without memory", *time(lambda: ours(latents, timestep, text)), alone),
        ("without memory, timesteps per token", *time(lambda: ours(latents, per_token, text)), alone),
    ]
    del theirs
    everything = layers * layer_flops(setting, target + total, target + total)
    merging = Merging(share=options.share)
    rows += [
        ("joint", *time(lambda: ours(latents, timestep, text, memory=memory)), everything),
        (
            f"joint, {options.share:.0%} of the frames merged twice",
            *time(lambda: ours(latents, timestep, text, memory=memory, merging=merging)),
            None,
        ),
    ]
    state = {name: value for name, value in ours.state_dict().items() if "compressors" not in name}
    del ours
    isolated = network(MemoryTransformer3DModel, setting, layers, memory_attention="isolated")
    isolated.load_state_dict(state)
    with torch.no_grad():
        encoded = [isolated.encode_memory(item) for item in memory]
    reading = layers * layer_flops(setting, target, target + total)
    once = time(lambda: [isolated.encode_memory(item) for item in memory])
    rows += [
        ("isolated, per step", *time(lambda: isolated(latents, timestep, text, memory=encoded)), reading),
        ("isolated, once per memory and edit", *once, None),
    ]
    return rows


def run(options: Benchmark) -> list[str]:
    rate = matrix_rate(options.repeats)
    lines = [
        f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}. Median of {options.repeats} steps after two, "
        "spread in brackets; bfloat16, eager, torch's own attention, one forward without guidance. Floor: the FLOPs of `layer_flops` in "
        f"`benchmarks/flops.py` at {rate / 1e12:.0f} TFLOP/s, a {MATRIX}x{MATRIX}x{MATRIX} matrix product of the same run.",
    ]
    for setting in (LUCY_EDIT, TURN_5):
        found = measure(setting, options=options)
        torch.cuda.empty_cache()
        times = {what: middle for what, middle, _, _ in found}
        rows = []
        for what, middle, spread, flops in found:
            share = "" if flops is None else f"{flops / rate * 1000 / middle:.0%}"
            rows.append(
                f"| {what} | {middle:.1f} ({spread:.1f}) | {middle / times['without memory']:.2f} | "
                f"{middle / times['joint'] - 1:+.0%} | {share} |"
            )
        lines += [
            *setting.heading,
            "| step | ms | times without memory | against joint | floor / measured |",
            "|---|---|---|---|---|",
            *rows,
        ]
        print("\n".join(rows), flush=True)
    return lines


if __name__ == "__main__":
    chosen = tyro.cli(Benchmark, description=__doc__)
    write_report(
        "step_time",
        title="Time of one denoising step on a GPU",
        packages=("torch", "diffusers"),
        machine=torch.cuda.get_device_name().replace(" ", "-"),
        out=chosen.out,
        lines=run(chosen),
    )
