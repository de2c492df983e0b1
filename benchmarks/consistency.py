"""Does memory keep an edited object what it first became? Held-out rendered videos whose object leaves the view and returns.

    python -m benchmarks.consistency --videos 20 --preset tiny --out benchmarks/results

The real editor, embedder, planner and latent store, segment after segment without Ray. Every video's edit leaves something
open (the tone within the named colour, the hat, the style's tint); the target is absent for at least three segments between
visits. What is measured, in RGB distance (0 to 1.73), on the target's pixels (the hat's, where the edit is a hat) as the
renderer knows them, rim left out, mean over a segment:

    drift         colour in a later segment that sees the target, against the FIRST segment that sees it
    return drift  the same, only in the first segment after an absence of at least three segments: memory's own task
    error         colour against the world's true edit: what was drawn cannot be guessed from one segment, so a method
                  without memory cannot bring this to zero, nor can a first segment
    outside       mean absolute difference from the source outside the edit (not for restyles, which change everything)

"truth" is the rendered edit itself: what remains is light and viewpoint, which no method can remove. "do nothing" is the
source through the codec: perfectly consistent and not edited. Ratios are of means over videos; intervals are 95 %
percentile bootstraps over videos (paired).
"""

import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

from benchmarks.provenance import hardware, provenance, write_result
from model.presets import load_editor, resolve_preset
from model.training.edits import Edit, EditTask
from model.training.worlds import World, edited_attribute, make_world, render
from model.types import Editor, EditRequest, MemoryVideo
from pipeline.plan import plan_segments
from pipeline.video.split import split_shots
from retrieval.embed import Embedder, load_embedder
from retrieval.latents import LatentStore, latent_meta
from retrieval.schema import PlannedSegment
from retrieval.store import Store

METHODS = ("memory", "independent", "previous")
ROWS = (*METHODS, "do nothing", "truth")
MEASURES = ("drift", "return drift", "error", "outside")
TASKS: tuple[EditTask, ...] = ("recolour", "recolour", "hat", "restyle")
MIN_VISIBLE_SHARE = 0.01
"""Of a segment's pixels: less of the target is not looked at."""
MIN_ABSENCE = 3
NUM_BOOTSTRAP = 10_000
NUM_STRIPS = 8


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Options of the benchmark."""

    videos: int = 20
    """How many videos; tasks take turns: recolour, recolour, hat, restyle."""
    preset: str = "tiny"
    embedder: str = "bundled"
    out: Path = Path("benchmarks/results")
    """Folder for the Markdown report and the strips."""
    num_segments: int = 14
    top_k: int = 3
    seed: int = 0
    """Of the worlds and of the edits."""
    num_threads: int = 1

    def __post_init__(self) -> None:
        if self.videos < 1:
            raise ValueError(f"videos is {self.videos}; needs at least 1")
        if self.num_segments < 8:
            raise ValueError(f"num_segments is {self.num_segments}; needs at least 8")


@dataclass(frozen=True, kw_only=True)
class Footage:
    """One rendered video cut into segments, as tensors. Frames are [T, h, w, 3] in [0, 1]."""

    world: World
    spans: list[PlannedSegment]
    source: list[Tensor]
    truth: list[Tensor]
    mask: list[Tensor]
    target: list[Tensor]
    visits: list[int]
    """Segments that see the target."""
    returns: list[int]
    """Those of them before which it was away for at least three segments."""


def suitable_worlds(benchmark: Benchmark, editor: Editor) -> list[Footage]:
    """The first `videos` worlds from the seed on whose target is seen, is away long enough, and returns."""
    chosen: list[Footage] = []
    seed = 10_000 * (benchmark.seed + 1)
    while len(chosen) < benchmark.videos:
        seed += 1
        task = TASKS[len(chosen) % len(TASKS)]
        world = make_world(
            seed,
            split="heldout",
            num_frames=benchmark.num_segments * editor.geometry.segment_frames,
            task=task,
            absence_segments=(3.5, 5),
            presence_frames=(20, 40),
        )
        footage = shoot(world, editor)
        if footage.returns:
            chosen.append(footage)
    return chosen


def shoot(world: World, editor: Editor) -> Footage:
    size = (64, 64) if (64, 64) in editor.geometry.sizes else editor.geometry.sizes[0]
    rows = split_shots(world.num_frames, world.cuts, editor.geometry)
    spans = plan_segments(rows, method="independent", top_k=0, seed=0)
    footage = Footage(world=world, spans=spans, source=[], truth=[], mask=[], target=[], visits=[], returns=[])
    marker = replace(world, edit=Edit(task="recolour", target=0, colour=(1.0, 1.0, 1.0)))
    for span in spans:
        frames = render(world, span.start_frame, span.end_frame, size=size)
        target = frames.mask
        if world.task == "restyle":
            target = render(marker, span.start_frame, span.end_frame, size=size).mask
        footage.source.append(frames.source)
        footage.truth.append(frames.edited.float() / 255)
        footage.mask.append(frames.mask)
        footage.target.append(target)
    footage.visits.extend(i for i, mask in enumerate(footage.target) if float(mask.float().mean()) > MIN_VISIBLE_SHARE)
    for before, after in zip(footage.visits, footage.visits[1:], strict=False):
        if after - before > MIN_ABSENCE:
            footage.returns.append(after)
    return footage


def edit_video(
    footage: Footage, plan: Sequence[PlannedSegment], editor: Editor, *, instruction: str, folder: Path
) -> list[Tensor]:
    """Edit all segments in order, memories read back from a latent store as in the pipeline; frames in [0, 1]."""
    store = LatentStore(Store(str(folder)))
    edited = []
    for segment, frames in zip(plan, footage.source, strict=True):
        missing = editor.geometry.padded_frames(len(frames)) - len(frames)
        source = editor.encode(torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)]))
        memory = []
        for planned in segment.memory:
            tensors = store.get(planned.segment, names=("edited", "source"))
            memory.append(
                MemoryVideo(
                    role=planned.role,
                    kernel=planned.kernel,
                    edited=tensors["edited"].float(),
                    source=tensors["source"].float(),
                )
            )
        request = EditRequest(instruction=instruction, source=source, memory=tuple(memory), seed=segment.seed)
        latent = editor.edit(request).latent
        meta = latent_meta(segment, weights_revision=editor.weights_revision)
        store.put(segment.segment, {"edited": latent, "source": source}, meta=meta, record={})
        edited.append(editor.decode(latent)[: len(frames)].clamp(0, 1))
    return edited


def do_nothing(footage: Footage, editor: Editor) -> list[Tensor]:
    frames = []
    for source in footage.source:
        missing = editor.geometry.padded_frames(len(source)) - len(source)
        latent = editor.encode(torch.cat([source, source[-1:].expand(missing, -1, -1, -1)]))
        frames.append(editor.decode(latent)[: len(source)].clamp(0, 1))
    return frames


def measure(footage: Footage, frames: Sequence[Tensor]) -> dict[str, float]:
    """The measures of one video; a measure that does not apply is left out."""
    colour = {i: edited_attribute(frames[i], footage.target[i]) for i in footage.visits}
    true_colour = {i: edited_attribute(footage.truth[i], footage.target[i]) for i in footage.visits}
    first, *later = footage.visits

    def distance(a: Tensor, b: Tensor) -> float:
        return float(torch.linalg.vector_norm(a - b))

    result = {
        "drift": float(np.mean([distance(colour[i], colour[first]) for i in later])),
        "return drift": float(np.mean([distance(colour[i], colour[first]) for i in footage.returns])),
        "error": float(np.mean([distance(colour[i], true_colour[i]) for i in footage.visits])),
    }
    if footage.world.task != "restyle":
        outside = [
            (frames[i] - footage.source[i].float() / 255).abs()[~footage.mask[i]].mean().item()
            for i in range(len(frames))
        ]
        result["outside"] = float(np.mean(outside))
    return result


def retrieval_figures(footage: Footage, plan: Sequence[PlannedSegment]) -> list[float]:
    """For every return: whether the plan gives it a memory that has seen the target."""
    return [float(any(memory.segment in footage.visits for memory in plan[i].memory)) for i in footage.returns]


def bootstrap_ratio(numerator: np.ndarray, denominator: np.ndarray, *, seed: int) -> tuple[float, float, float]:
    """Ratio of means over videos, with its paired 95 % percentile bootstrap interval."""
    picks = np.random.default_rng(seed).integers(0, len(numerator), size=(NUM_BOOTSTRAP, len(numerator)))
    ratios = numerator[picks].mean(1) / denominator[picks].mean(1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(numerator.mean() / denominator.mean()), float(low), float(high)


def strip(footage: Footage, videos: dict[str, list[Tensor]], *, columns: int = 8, zoom: int = 2) -> np.ndarray:
    """Rows: source, truth, memory, independent, previous. Columns: segments that see the target, where they see most of it."""
    segments = footage.visits[:columns]
    best = {i: int(footage.target[i].sum((1, 2)).argmax()) for i in segments}
    rows = []
    for frames in ([part.float() / 255 for part in footage.source], footage.truth, *(videos[m] for m in METHODS)):
        tiles = [frames[i][best[i]] for i in segments]
        blank = torch.ones_like(tiles[0])
        rows.append(torch.cat([*tiles, *[blank] * (columns - len(tiles))], dim=1))
    picture = (torch.cat(rows).clamp(0, 1) * 255).round().to(torch.uint8)
    return picture.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1).numpy()


def run(benchmark: Benchmark) -> str:
    """Do it, write the strips, and return the report."""
    torch.set_num_threads(benchmark.num_threads)
    editor = load_editor(benchmark.preset)
    preset = resolve_preset(benchmark.preset)
    embedder: Embedder = load_embedder(benchmark.embedder)
    started = time.monotonic()
    scores: dict[str, list[dict[str, float]]] = defaultdict(list)
    retrieved: list[float] = []
    tasks, lines, strips, segment_s = [], [], [], []
    for number, footage in enumerate(suitable_worlds(benchmark, editor)):
        world = footage.world
        rows = [
            replace(row, embedding=tuple(embedder.embed_frames(frames.numpy()).tolist()))
            for row, frames in zip(
                split_shots(world.num_frames, world.cuts, editor.geometry), footage.source, strict=True
            )
        ]
        videos: dict[str, list[Tensor]] = {"truth": footage.truth, "do nothing": do_nothing(footage, editor)}
        for method in METHODS:
            plan = plan_segments(rows, method=method, top_k=benchmark.top_k, seed=benchmark.seed)
            began = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                videos[method] = edit_video(footage, plan, editor, instruction=world.instruction, folder=Path(folder))
            segment_s.append((time.monotonic() - began) / len(plan))
            if method == "memory":
                retrieved += retrieval_figures(footage, plan)
        tasks.append(world.task)
        for row in ROWS:
            scores[row].append(measure(footage, videos[row]))
        drifts = ", ".join(f"{row} {scores[row][-1]['return drift']:.3f}" for row in ROWS)
        lines.append(
            f"| {number} | {world.seed} | {world.task} | {world.instruction} | {len(rows)} | {len(footage.visits)} | "
            f"{len(footage.returns)} | " + " | ".join(f"{scores[row][-1]['drift']:.3f}" for row in ROWS) + " |"
        )
        print(f"{number} {world.task}: {world.instruction}: return drift {drifts}", flush=True)
        if number < NUM_STRIPS:
            strips.append(strip(footage, videos))
    picture = benchmark.out / f"consistency_{hardware()}_{datetime.now(UTC):%Y-%m-%d}.png"
    benchmark.out.mkdir(parents=True, exist_ok=True)
    gap = np.full((8, strips[0].shape[1], 3), 255, dtype=np.uint8)
    Image.fromarray(np.concatenate([part for filmstrip in strips for part in (filmstrip, gap)])).save(picture)
    table = {
        (row, name): np.array([score.get(name, np.nan) for score in scores[row]]) for row in ROWS for name in MEASURES
    }
    ratio_lines = []
    for name in ("drift", "return drift"):
        for group in ("all", *dict.fromkeys(tasks)):
            chosen = np.array([group in ("all", task) for task in tasks])
            for method in ("independent", "previous"):
                ratio = bootstrap_ratio(table[method, name][chosen], table["memory", name][chosen], seed=benchmark.seed)
                ratio_lines.append(
                    f"| {name} | {group} ({int(chosen.sum())}) | {method} / memory | {ratio[0]:.2f} | "
                    f"{ratio[1]:.2f} to {ratio[2]:.2f} |"
                )
    command = f"python -m benchmarks.consistency --videos {benchmark.videos} --preset {benchmark.preset}"
    return "\n".join(
        [
            "# Consistency of an edited object that leaves the view and returns",
            "",
            provenance(command=command, packages=("torch", "open_clip_torch", "faiss-cpu")),
            "",
            f"Preset `{benchmark.preset}` (weights {preset.weights_revision}), sampler {dict(preset.sampler)}, embedder "
            f"`{benchmark.embedder}` ({embedder.revision}), top-k {benchmark.top_k}, seed {benchmark.seed}; "
            f"{benchmark.videos} held-out rendered videos of {benchmark.num_segments * editor.geometry.segment_frames} "
            f"frames. {np.mean(segment_s):.2f} s a segment, {time.monotonic() - started:.0f} s in all.",
            "",
            "What is measured stands at the head of `benchmarks/consistency.py`. RGB distances, lower is better.",
            "",
            "| method | " + " | ".join(MEASURES) + " |",
            "|---|" + "---|" * len(MEASURES),
            *(
                f"| {row} | " + " | ".join(f"{np.nanmean(table[row, name]):.4f}" for name in MEASURES) + " |"
                for row in ROWS
            ),
            "",
            f"The plan gave {np.mean(retrieved):.0%} of the {len(retrieved)} returns a memory that has seen the target.",
            "",
            "| measure | videos | ratio | value | 95 % interval |",
            "|---|---|---|---|---|",
            *ratio_lines,
            "",
            f"First {len(strips)} videos, segments that see the target (rows: source, truth, {', '.join(METHODS)}):",
            "",
            f"![strips]({picture.name})",
            "",
            "Drift of every video:",
            "",
            "| video | world seed | task | instruction | segments | visits | returns | " + " | ".join(ROWS) + " |",
            "|---|---|---|---|---|---|---|" + "---|" * len(ROWS),
            *lines,
            "",
        ]
    )


if __name__ == "__main__":
    options = tyro.cli(Benchmark)
    write_result("consistency", run(options), out=options.out)
