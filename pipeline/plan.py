"""The plan of an edit: which earlier segments each segment will remember, frozen before anything is generated.

Retrieval looks at SOURCE embeddings only, so everything is known beforehand: the output cannot depend on timing, on the
worker, or on what happened to be finished. Inside a shot the previous segment always comes first; the rest are the most
alike of all earlier segments (paper App. D.2, Alg. 2), across cuts too. The paper names objects that leak across cuts
as a limitation; here likeness decides, and the scores are written down.

The plan makes a video a DAG. A segment's depth is the number of generations it stands from a segment without memory: what is
deep has drifted further, and the deepest bounds how far more workers can help. So where likenesses differ by no more than
`SLACK`, the shallower segment is remembered.
"""

import hashlib
import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from model.memory import KernelChoice, MemoryRole, memory_kernel
from retrieval.index import SourceIndex
from retrieval.schema import (
    PlannedMemory,
    PlannedSegment,
    Segment,
    embedding_matrix,
    plan_from_table,
    plan_to_table,
)
from retrieval.store import Store

Method = Literal["memory", "independent", "previous", "recent", "random"]
"""What a segment remembers: the previous segment and the most alike ("memory", the paper), nothing, the previous alone, or the
previous and the latest ("recent") or any ("random") of the others: what retrieval has to beat."""

PLAN_NAME = "plan.parquet"
SLACK = 0.02
"""Cosines that differ by no more are alike. What it does to retrieval and to depth: `docs/decisions.md`."""


def plan_segments(
    segments: Sequence[Segment],
    *,
    method: str = "memory",
    top_k: int = 3,
    seed: int = 0,
    kernels: KernelChoice = "anchored",
) -> list[PlannedSegment]:
    """Decide memories, scores, kernels and seeds of every segment of one video.

    Args:
        segments: all of the video, in order; unit-norm embeddings unless `method` is "independent".
        method: one of `Method`; the previous segment is one of the same shot.
        top_k: how many are remembered beside the previous one.
        seed: of the edit; each segment's own is derived from it and from the segment's index.
        kernels: `model.memory.MemorySettings.kernels`.

    Raises:
        ValueError: unknown method, negative `top_k`, segments out of order, embeddings missing or not of unit norm.
    """
    if method not in get_args(Method):
        raise ValueError(f"method is {method!r}; needs one of {', '.join(get_args(Method))}")
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}; needs 0 or more")
    check_order(segments)
    index = None
    if method != "independent" and segments:
        dims = sorted({len(row.embedding) for row in segments})
        if dims[0] == 0 or len(dims) > 1:
            raise ValueError(f"segments have embeddings of {dims} numbers; needs the same number above 0 for all")
        index = SourceIndex(embedding_matrix(list(segments)))
    plan: list[PlannedSegment] = []
    depths: list[int] = []
    for row in segments:
        found: tuple[PlannedMemory, ...] = ()
        if index is not None:
            found = memories(segments, index, depths, method=method, top_k=top_k, seed=seed, kernels=kernels)
        depths.append(1 + max((depths[memory.segment] for memory in found), default=0))
        plan.append(
            PlannedSegment(
                segment=row.segment,
                shot=row.shot,
                start_frame=row.start_frame,
                end_frame=row.end_frame,
                seed=segment_seed(seed, row.segment),
                memory=found,
            )
        )
    return plan


def memories(
    segments: Sequence[Segment],
    index: SourceIndex,
    depths: Sequence[int],
    *,
    method: str,
    top_k: int,
    seed: int,
    kernels: KernelChoice,
) -> tuple[PlannedMemory, ...]:
    """What the next segment remembers, given the depths of all before it."""
    i = len(depths)
    has_previous = i > 0 and segments[i - 1].shot == segments[i].shot
    others = range(i - 1 if has_previous else i)
    if method == "previous" or not top_k:
        retrieved = []
    elif method == "memory":
        found = index.search_earlier(i, top_k + has_previous, slack=SLACK)
        retrieved = [segment for segment, _ in shallow([item for item in found if item[0] in others], depths, top_k)]
    elif method == "recent":
        retrieved = list(reversed(others))[:top_k]
    else:
        retrieved = random.Random(segment_seed(seed, i)).sample(others, k=min(top_k, len(others)))
    chosen: list[tuple[int, MemoryRole, int]] = [(i - 1, "previous", 0)] if has_previous else []
    chosen += [(segment, "retrieved", rank) for rank, segment in enumerate(retrieved)]
    return tuple(
        PlannedMemory(
            segment=segment,
            role=role,
            score=index.score(i, segment),
            kernel=memory_kernel(role, rank, kernels=kernels, is_anchored=bool(retrieved)),
        )
        for segment, role, rank in chosen
    )


def shallow(found: Sequence[tuple[int, float]], depths: Sequence[int], top_k: int) -> list[tuple[int, float]]:
    """`top_k` of the (segment, score), given best first: of those within `SLACK` of the last place the shallowest."""
    if len(found) <= top_k:
        return list(found)
    last = found[top_k - 1][1]
    rivals = [item for item in found if abs(item[1] - last) <= SLACK]
    surer = [item for item in found if item[1] > last + SLACK]
    rivals.sort(key=lambda item: depths[item[0]])  # stable: then best first
    return sorted([*surer, *rivals[: top_k - len(surer)]], key=found.index)


def check_order(segments: Sequence[Segment]) -> None:
    for i, row in enumerate(segments):
        if row.segment != i:
            raise ValueError(f"segment {row.segment} stands at place {i}; needs all segments of the video in order")
        if row.end_frame <= row.start_frame:
            raise ValueError(f"segment {i} spans frames [{row.start_frame}, {row.end_frame}); needs at least one")
        if i and (row.start_frame != segments[i - 1].end_frame or row.shot < segments[i - 1].shot):
            raise ValueError(f"segment {i} does not follow segment {i - 1}: frames and shots must go on without gap")


def segment_seed(seed: int, segment: int) -> int:
    """The generator seed of a segment: never from the order of work. 0 to 2^63 - 1."""
    digest = hashlib.sha256(f"{seed}:{segment}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def freeze_plan(store: Store, plan: Sequence[PlannedSegment]) -> list[PlannedSegment]:
    """Write the plan into the edit's folder, once. A plan that is already there wins, unchanged."""
    if not store.exists(PLAN_NAME):
        store.write_table(PLAN_NAME, plan_to_table(plan))
    return plan_from_table(store.read_table(PLAN_NAME))


@dataclass(frozen=True, kw_only=True)
class PlanFigures:
    """What an edit will take. Times are None without a measured number of seconds per segment.

    Attributes:
        num_remaining: segments not committed yet; times are of these.
        depth: segments in the longest chain of dependencies: no number of workers makes it shorter.
        critical_path_s: time of the longest chain that remains.
        gpu_hours: time of one worker for all that remains.
    """

    num_frames: int
    num_shots: int
    num_segments: int
    num_remaining: int
    depth: int
    seconds_per_segment: float | None
    critical_path_s: float | None
    gpu_hours: float | None


def plan_figures(
    plan: Sequence[PlannedSegment], *, seconds_per_segment: float | None, committed: Collection[int] = ()
) -> PlanFigures:
    if seconds_per_segment is not None and not (math.isfinite(seconds_per_segment) and seconds_per_segment >= 0):
        raise ValueError(f"seconds_per_segment is {seconds_per_segment}; needs 0 or more, or None")
    remaining = np.array([row.segment not in committed for row in plan], dtype=np.int64)
    depth = np.zeros(len(plan), dtype=np.int64)
    remaining_depth = np.zeros(len(plan), dtype=np.int64)
    for i, row in enumerate(plan):
        needed = [memory.segment for memory in row.memory]
        depth[i] = 1 + max(depth[needed], default=0)
        remaining_depth[i] = remaining[i] + max(remaining_depth[needed], default=0)
    num_remaining = int(remaining.sum())
    longest = int(remaining_depth.max(initial=0))
    return PlanFigures(
        num_frames=sum(row.num_frames for row in plan),
        num_shots=len({row.shot for row in plan}),
        num_segments=len(plan),
        num_remaining=num_remaining,
        depth=int(depth.max(initial=0)),
        seconds_per_segment=seconds_per_segment,
        critical_path_s=None if seconds_per_segment is None else longest * seconds_per_segment,
        gpu_hours=None if seconds_per_segment is None else num_remaining * seconds_per_segment / 3600,
    )


def format_plan_table(rows: Sequence[tuple[str, PlanFigures]], *, num_workers: int | None = None) -> str:
    """A whole manifest as text: one line per (video id, figures), a total, and the least time it can take.

    The total's depth and critical path are the longest of any video: videos do not wait for each other.
    """
    header = ["video", "frames", "shots", "segments", "to do", "depth", "s/segment", "critical path", "GPU-hours"]
    figures = [row for _, row in rows]
    seconds = {row.seconds_per_segment for row in figures}
    is_timed = bool(figures) and None not in seconds
    total = PlanFigures(
        num_frames=sum(row.num_frames for row in figures),
        num_shots=sum(row.num_shots for row in figures),
        num_segments=sum(row.num_segments for row in figures),
        num_remaining=sum(row.num_remaining for row in figures),
        depth=max((row.depth for row in figures), default=0),
        seconds_per_segment=seconds.pop() if len(seconds) == 1 else None,
        critical_path_s=max(row.critical_path_s or 0.0 for row in figures) if is_timed else None,
        gpu_hours=sum(row.gpu_hours or 0.0 for row in figures) if is_timed else None,
    )
    cells = [header, *([shortened(name), *figure_cells(row)] for name, row in rows)]
    cells.append([f"total {len(rows)}", *figure_cells(total)])
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    lines.insert(len(lines) - 1, "-" * max(map(len, lines)))
    lines.insert(1, lines[-2])
    if not is_timed and figures:
        lines.append("no measured seconds per segment yet: times unknown until a first run has finished")
    if is_timed and num_workers is not None:
        assert total.critical_path_s is not None
        assert total.gpu_hours is not None
        least_s = max(total.critical_path_s, total.gpu_hours * 3600 / num_workers)
        lines.append(f"at least {format_duration(least_s)} on {num_workers} worker{'s' * (num_workers != 1)}")
    return "\n".join(lines)


def figure_cells(row: PlanFigures) -> list[str]:
    counts = (row.num_frames, row.num_shots, row.num_segments, row.num_remaining, row.depth)
    return [
        *(f"{count:,}" for count in counts),
        "-" if row.seconds_per_segment is None else f"{row.seconds_per_segment:.3g}",
        "-" if row.critical_path_s is None else format_duration(row.critical_path_s),
        "-" if row.gpu_hours is None else f"{row.gpu_hours:.3g}",
    ]


def shortened(name: str, *, width: int = 28) -> str:
    """Names that differ at the end stay different: the middle goes."""
    return name if len(name) <= width else f"{name[: width // 2 - 1]}…{name[-(width // 2) :]}"


def format_duration(seconds: float) -> str:
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
