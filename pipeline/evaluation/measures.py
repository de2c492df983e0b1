"""What is measured of an edit whose truth is known: one row per segment and measure.

    edit_error          mean absolute difference from the truth over the pixels that the edit changes, in segments that see them
    preservation_error  mean absolute difference from the source outside those pixels (not for restyles, which change all)
    consistency_error   colour of the followed object, RGB distance (0 to 1.73) from the FIRST segment that sees it; `gap` is how
                        many segments before this one did not see it
    psnr_db             of all pixels against the truth
    flicker             mean absolute difference between the change from frame to frame and that of the truth, cuts left out
    flops, seconds      of generating the segment, all steps (counted by torch; the worker's clock)

Values are in [0, 1] where nothing else is said. Two rows are in every table so that a measure which rewards doing nothing is
seen: "do-nothing" is the source through the codec, "truth" is the rendered edit. What consistency error is left in
the truth is light and viewpoint, which no method can remove.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model.presets import load_editor
from model.training.worlds import edited_attribute
from model.types import Editor, EditRequest, MemoryVideo
from pipeline.evaluation.suite import MIN_VISIBLE_SHARE, SuiteVideo, truth_of
from pipeline.stages.context import EditContext, load_context
from pipeline.stages.edit import encode_source
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


def measure_video(video: SuiteVideo, edits: Mapping[str, str], *, seed: int) -> list[Row]:
    """All measures of all methods of one video, and of the two references.

    Args:
        edits: URL of the edit's folder by method; the latents are decoded, no file is.
    """
    torch.set_num_threads(1)
    contexts = {method: load_context(url, lru=LatentLRU(0)) for method, url in edits.items()}
    context = next(iter(contexts.values()))
    editor = editor_of(context.preset)
    plan = context.plan
    known = frames_of(video, context)
    rows: list[Row] = []
    for method, edit in contexts.items():
        rows += measure(video, method, seed, plan, known, edited_frames(edit, editor))
        for segment in edit.plan:
            figures = {
                "flops": edit_flops(context.preset, tuple((m.role, m.kernel) for m in segment.memory), context.size)
            }
            if timings := edit.latents.record(segment.segment).get("timings"):
                figures["seconds"] = timings["generate_s"]
            for metric, value in figures.items():
                rows.append(
                    Row(
                        method=method,
                        seed=seed,
                        video=video.id,
                        segment=segment.segment,
                        gap=None,
                        metric=metric,
                        value=float(value),
                    )
                )
    through_codec = [editor.decode(encode_source(context, editor, segment)) for segment in plan]
    rows += measure(video, "do-nothing", seed, plan, known, joined(plan, through_codec))
    rows += measure(video, "truth", seed, plan, known, known.truth)
    return rows


@cache
def editor_of(preset: str) -> Editor:
    return load_editor(preset)


def edited_frames(edit: EditContext, editor: Editor) -> Float[Tensor, "T h w 3"]:
    """An edit's frames, decoded from its committed latents."""
    parts = [editor.decode(edit.latents.get(row.segment, names=("edited",))["edited"]) for row in edit.plan]
    return joined(edit.plan, parts)


def joined(plan: Sequence[PlannedSegment], parts: Sequence[Tensor]) -> Tensor:
    """Frames of all segments; what was padded for the editor is cut."""
    return torch.cat([part[: row.num_frames] for row, part in zip(plan, parts, strict=True)]).clamp(0, 1)


def frames_of(video: SuiteVideo, context: EditContext) -> Frames:
    source, truths = [], []
    for segment in context.plan:
        start, end = segment.start_frame, segment.end_frame
        frames = decode_span(context.source_uri, context.inspection, start, end, size=context.size)
        source.append(torch.from_numpy(frames).float() / 255)
        truths.append(truth_of(video, start, end))
    return Frames(
        source=torch.cat(source),
        truth=torch.cat([truth.edited for truth in truths]),
        mask=torch.cat([truth.mask for truth in truths]),
        target=torch.cat([truth.target for truth in truths]),
    )


def measure(
    video: SuiteVideo,
    method: str,
    seed: int,
    plan: Sequence[PlannedSegment],
    known: Frames,
    edited: Float[Tensor, "T h w 3"],
) -> list[Row]:
    """Rows of one method."""
    rows: list[Row] = []
    first: Tensor | None = None
    last_seen = -1
    change = ((edited[1:] - edited[:-1]) - (known.truth[1:] - known.truth[:-1])).abs().mean((1, 2, 3))
    for segment in plan:
        part = slice(segment.start_frame, segment.end_frame)
        frames, truth, source = edited[part], known.truth[part], known.source[part]
        mask, target = known.mask[part], known.target[part]

        def add(metric: str, value: float, *, gap: int | None = None, number: int = segment.segment) -> None:
            rows.append(
                Row(method=method, seed=seed, video=video.id, segment=number, gap=gap, metric=metric, value=value)
            )

        if float(mask.float().mean()) > MIN_VISIBLE_SHARE:
            add("edit_error", float((frames - truth).abs()[mask].mean()))
        if video.task != "restyle":
            add("preservation_error", float((frames - source).abs()[~mask].mean()))
        add("psnr_db", -10 * math.log10(float((frames - truth).square().mean()) + 1e-10))
        # A change belongs to its later frame; the one over a cut is no flicker.
        is_cut = not segment.segment or plan[segment.segment - 1].shot != segment.shot
        steps = change[max(0, segment.start_frame - 1 + is_cut) : segment.end_frame - 1]
        if len(steps):
            add("flicker", float(steps.mean()))
        if float(target.float().mean()) > MIN_VISIBLE_SHARE:
            colour = edited_attribute(frames, target)
            if first is None:
                first = colour
            else:
                gap = segment.segment - last_seen - 1
                add("consistency_error", float(torch.linalg.vector_norm(colour - first)), gap=gap)
            last_seen = segment.segment
    return rows


@cache
def edit_flops(preset: str, layout: tuple[tuple[str, tuple[int, int, int]], ...], size: tuple[int, int]) -> int:
    """Counted by torch while a segment with memories of these (role, kernel) is edited."""
    editor = editor_of(preset)
    height, width = size
    latent = editor.encode(torch.zeros(editor.geometry.segment_frames, height, width, 3, dtype=torch.uint8))
    memory = tuple(
        MemoryVideo(role=role, kernel=kernel, edited=latent, source=latent)  # type: ignore[arg-type]
        for role, kernel in layout
    )
    with FlopCounterMode(display=False) as counter:
        editor.edit(EditRequest(instruction="make it red", source=latent, memory=memory, seed=0))
    return counter.get_total_flops()
