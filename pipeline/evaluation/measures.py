"""What is measured of an edit whose truth is known: one row per segment and measure.

    edit_error          mean absolute difference from the truth over the pixels that the edit changes, in segments that see them
    preservation_error  mean absolute difference from the source outside those pixels (not for restyles, which change all)
    consistency_error   how far what was edited is from its FIRST segment, an RGB distance (0 to 1.73)
                        of an object: its mean colour, from that in the first segment that sees it. What is added (a hat) is
                        looked at where the truth has it, so one that is missing, elsewhere or of another shape shows as colour
                        of a restyle: its colour map (`style.py`), from the first segment's, over this segment's source pixels
    psnr_db, ssim       of all pixels against the truth
    flicker             mean absolute difference between the change from frame to frame and that of the truth, cuts left out
    clip_f, dino_f, lpips   of other people's networks, where their weights are given (`learned.py`)
    flops, seconds      of generating the segment, all steps (counted by torch, all memories encoded anew; the worker's clock)

`gap` of a consistency error is how many segments before this one did not see the followed object; none for a segment of a
restyle that does not see it. Values are in [0, 1] where nothing else is said. Two rows are in every table so that a measure
which rewards doing nothing is seen: "do-nothing" is the source through the codec, "truth" is the rendered edit. What
consistency error is left in the truth no method can remove: light and viewpoint of an object, and a style's curve, which an affine
map of other colours only approaches.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model.editor import MemoryEditor, make_sampler
from model.memory import Kernel, MemoryRole, MemorySettings
from model.presets import load_editor
from model.training.worlds import edited_attribute
from model.types import Editor, EditRequest, MemoryVideo
from pipeline.evaluation.learned import LPIPS_METRIC, LearnedMeasures, lpips_distance
from pipeline.evaluation.ssim import ssim
from pipeline.evaluation.style import fit_style, style_distance
from pipeline.evaluation.suite import MIN_VISIBLE_SHARE, WHOLE_FRAME_TASKS, SuiteVideo, load_truth
from pipeline.stages.context import EditContext, load_context
from pipeline.video.io import decode_span
from retrieval.latents import LatentLRU
from retrieval.schema import PlannedSegment

REFERENCES = ("do-nothing", "truth")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of metrics.parquet; `gap` is None where it means nothing."""

    method: str
    seed: int
    video: str
    segment: int
    gap: int | None
    metric: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Everything known of one video, all frames: floats in [0, 1], [T, h, w, 3]; masks [T, h, w]."""

    source: Float[Tensor, "T h w 3"]
    truth: Float[Tensor, "T h w 3"]
    mask: Bool[Tensor, "T h w"]
    target: Bool[Tensor, "T h w"]


def measure_video(
    video: SuiteVideo, edits: Mapping[str, str], *, seed: int, learned: LearnedMeasures = LearnedMeasures()
) -> list[Row]:
    """All measures of all methods of one video, and of the two references.

    Args:
        edits: URL of the edit's folder by method; the latents are decoded, no file is.
        learned: which measures by other people's networks are taken as well.
    """
    torch.set_num_threads(1)
    contexts = contexts_of(edits)
    context = next(iter(contexts.values()))
    known = frames_of(video, context)
    videos = {method: edited_frames(edit) for method, edit in contexts.items()}
    videos |= {"do-nothing": edited_frames(context, name="source"), "truth": known.truth}
    rows: list[Row] = []
    for method, edited in videos.items():
        rows += measure(video, method, seed, context.plan, known, edited)
        rows += measure_learned(video, method, seed, context.plan, known, edited, learned)
    for method, edit in contexts.items():
        settings = replace(edit.spec.memory, kernels="anchored", has_source=True)  # neither of them adds to the layout
        for segment in edit.plan:
            layout = tuple((memory.role, memory.kernel) for memory in segment.memory)
            figures = {"flops": float(edit_flops(edit.preset, settings, layout, edit.size))}
            if timings := edit.latents.record(segment.segment).get("timings"):
                figures["seconds"] = float(timings["generate_s"])
            for metric, value in figures.items():
                rows.append(row_of(video, method, seed, segment, metric, value))
    return rows


def row_of(
    video: SuiteVideo,
    method: str,
    seed: int,
    segment: PlannedSegment,
    metric: str,
    value: float,
    *,
    gap: int | None = None,
) -> Row:
    return Row(method=method, seed=seed, video=video.id, segment=segment.segment, gap=gap, metric=metric, value=value)


@cache
def editor_of(preset: str) -> Editor:
    return load_editor(preset)


def contexts_of(edits: Mapping[str, str]) -> dict[str, EditContext]:
    return {method: load_context(url, lru=LatentLRU(0)) for method, url in edits.items()}


def edited_frames(edit: EditContext, *, name: str = "edited") -> Float[Tensor, "T h w 3"]:
    """An edit's frames, decoded from its committed latents; what was padded for the editor is cut."""
    editor = editor_of(edit.preset)
    parts = [editor.decode(edit.latents.get(row.segment, names=(name,))[name])[: row.num_frames] for row in edit.plan]
    return torch.cat(parts).clamp(0, 1)


def frames_of(video: SuiteVideo, context: EditContext) -> Frames:
    """The source as the editor saw it, and the truth."""
    source = decode_span(context.source_uri, context.inspection, 0, video.num_frames, size=context.size)
    truth = load_truth(video)
    return Frames(
        source=torch.from_numpy(source).float() / 255,
        truth=truth.edited.float() / 255,
        mask=truth.mask,
        target=truth.target,
    )


def measure(
    video: SuiteVideo,
    method: str,
    seed: int,
    plan: Sequence[PlannedSegment],
    known: Frames,
    edited: Float[Tensor, "T h w 3"],
) -> list[Row]:
    """Rows of one method that need nothing but its frames."""
    rows: list[Row] = []
    is_whole_frame = video.task in WHOLE_FRAME_TASKS
    first: Tensor | None = None
    last_seen = -1
    change = ((edited[1:] - edited[:-1]) - (known.truth[1:] - known.truth[:-1])).abs().mean((1, 2, 3))
    for segment in plan:
        part = slice(segment.start_frame, segment.end_frame)
        frames, truth, source = edited[part], known.truth[part], known.source[part]
        mask, target = known.mask[part], known.target[part]

        def add(metric: str, value: float | Tensor, gap: int | None = None, at: PlannedSegment = segment) -> None:
            rows.append(row_of(video, method, seed, at, metric, float(value), gap=gap))

        if float(mask.float().mean()) > MIN_VISIBLE_SHARE:
            add("edit_error", (frames - truth).abs()[mask].mean())
        if not is_whole_frame:
            add("preservation_error", (frames - source).abs()[~mask].mean())
        add("psnr_db", -10 * math.log10(float((frames - truth).square().mean()) + 1e-10))
        add("ssim", ssim(frames, truth).mean())
        steps = change[steps_within(plan, segment)]
        if len(steps):
            add("flicker", steps.mean())
        is_seen = float(target.float().mean()) > MIN_VISIBLE_SHARE
        gap = segment.segment - last_seen - 1 if is_seen and last_seen >= 0 else None
        if is_seen or is_whole_frame:
            look = fit_style(source, frames) if is_whole_frame else edited_attribute(frames, target)
            if first is None:
                first = look
            elif is_whole_frame:
                add("consistency_error", style_distance(look, first, source), gap)
            else:
                add("consistency_error", torch.linalg.vector_norm(look - first), gap)
        if is_seen:
            last_seen = segment.segment
    return rows


def measure_learned(
    video: SuiteVideo,
    method: str,
    seed: int,
    plan: Sequence[PlannedSegment],
    known: Frames,
    edited: Float[Tensor, "T h w 3"],
    learned: LearnedMeasures,
) -> list[Row]:
    """Rows of one method that other people's networks give."""
    rows: list[Row] = []
    for metric, features in learned.features().items():
        found = features(edited)
        cosines = (found[1:] * found[:-1]).sum(1)
        rows += [
            row_of(video, method, seed, segment, metric, float(steps.mean()))
            for segment in plan
            if len(steps := cosines[steps_within(plan, segment)])
        ]
    if learned.lpips is not None:
        distance = lpips_distance(learned.lpips)(edited, known.truth)
        for segment in plan:
            value = float(distance[segment.start_frame : segment.end_frame].mean())
            rows.append(row_of(video, method, seed, segment, LPIPS_METRIC, value))
    return rows


def steps_within(plan: Sequence[PlannedSegment], segment: PlannedSegment) -> slice:
    """Of the steps from frame to frame those of a segment: a step belongs to its later frame; one over a cut to none."""
    is_cut = not segment.segment or plan[segment.segment - 1].shot != segment.shot
    return slice(max(0, segment.start_frame - 1 + is_cut), segment.end_frame - 1)


@cache
def edit_flops(
    preset: str, settings: MemorySettings, layout: tuple[tuple[MemoryRole, Kernel], ...], size: tuple[int, int]
) -> int:
    """Counted by torch while a segment with memories of these (role, kernel) is edited.

    One and two steps are counted; every further one costs what the second does. The memories are noise, so that none of them
    is found encoded already.
    """
    editor = editor_of(preset)
    assert isinstance(editor, MemoryEditor)
    sampler = editor.preset.sampler
    height, width = size
    latent = editor.encode(torch.zeros(editor.geometry.segment_frames, height, width, 3, dtype=torch.uint8))

    def count(num_steps: int) -> int:
        short = replace(editor.preset, sampler={**sampler, "num_inference_steps": num_steps})
        memory = tuple(
            MemoryVideo(role=role, kernel=kernel, edited=torch.randn_like(latent), source=latent)
            for role, kernel in layout
        )
        request = EditRequest(instruction="make it red", source=latent, memory=memory, seed=0, settings=settings)
        with FlopCounterMode(display=False) as counter:
            replace(editor, preset=short, sampler=make_sampler(short)).edit(request)
        return counter.get_total_flops()

    first, both = count(1), count(2)
    return first + (sampler["num_inference_steps"] - 1) * (both - first)
