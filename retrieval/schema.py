"""The tables of a workspace, as dataclasses with their Arrow schemas. docs/data.md explains every column.

Spans are half-open `[start_frame, end_frame)` in the source's decoded frames.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Literal

import numpy as np
import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One row of `segments.parquet`: what one generation sees of the source."""

    segment: int
    shot: int
    start_frame: int
    end_frame: int
    embedding: tuple[float, ...] = ()

    @property
    def num_frames(self) -> int:
        return self.end_frame - self.start_frame


SEGMENT_SCHEMA = pa.schema(
    [
        ("segment", pa.int32()),
        ("shot", pa.int32()),
        ("start_frame", pa.int64()),
        ("end_frame", pa.int64()),
        ("embedding", pa.list_(pa.float32())),
    ]
)


MemoryRole = Literal["previous", "retrieved"]


@dataclass(frozen=True, kw_only=True)
class PlannedMemory:
    """One memory of a planned segment: which earlier segment, in which role, how alike (cosine), how finely tokenized."""

    segment: int
    role: MemoryRole
    score: float
    kernel: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class PlannedSegment:
    """One row of `plan.parquet`. Frozen before anything is generated; read back, never recomputed."""

    segment: int
    shot: int
    start_frame: int
    end_frame: int
    seed: int
    memory: tuple[PlannedMemory, ...]

    @property
    def num_frames(self) -> int:
        return self.end_frame - self.start_frame


PLAN_SCHEMA = pa.schema(
    [
        ("segment", pa.int32()),
        ("shot", pa.int32()),
        ("start_frame", pa.int64()),
        ("end_frame", pa.int64()),
        ("seed", pa.int64()),
        (
            "memory",
            pa.list_(
                pa.struct(
                    [
                        ("segment", pa.int32()),
                        ("role", pa.string()),
                        ("score", pa.float32()),
                        ("kernel", pa.list_(pa.int32(), 3)),
                    ]
                )
            ),
        ),
    ]
)


def segments_to_table(segments: Iterable[Segment]) -> pa.Table:
    return pa.Table.from_pylist([asdict(row) for row in segments], schema=SEGMENT_SCHEMA)


def segments_from_table(table: pa.Table) -> list[Segment]:
    names = [field.name for field in fields(Segment)]
    rows = table.select(names).to_pylist()
    return [Segment(**{**row, "embedding": tuple(row["embedding"])}) for row in rows]


def plan_to_table(plan: Iterable[PlannedSegment]) -> pa.Table:
    return pa.Table.from_pylist([asdict(row) for row in plan], schema=PLAN_SCHEMA)


def plan_from_table(table: pa.Table) -> list[PlannedSegment]:
    names = [field.name for field in fields(PlannedSegment)]
    plan = []
    for row in table.select(names).to_pylist():
        memory = tuple(PlannedMemory(**{**item, "kernel": tuple(item["kernel"])}) for item in row["memory"])
        plan.append(PlannedSegment(**{**row, "memory": memory}))
    return plan


def embedding_matrix(segments: list[Segment]) -> np.ndarray:
    """`[num_segments, dim]` float32."""
    return np.asarray([row.embedding for row in segments], dtype=np.float32)
