"""Tables come back as they went, whatever is in them: randomized rows, and through a file."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.run_record import FAILURE_SCHEMA, RESULT_SCHEMA, TIMELINE_SCHEMA
from retrieval.latents import LATENT_SCHEMA
from retrieval.schema import (
    PLAN_SCHEMA,
    SEGMENT_SCHEMA,
    PlannedMemory,
    PlannedSegment,
    Segment,
    embedding_matrix,
    plan_from_table,
    plan_to_table,
    segments_from_table,
    segments_to_table,
)
from retrieval.store import Store


def float32(rng: random.Random) -> float:
    return float(np.float32(rng.uniform(-1, 1) * 10 ** rng.randint(-30, 0)))


def random_segments(rng: random.Random) -> list[Segment]:
    dim = rng.choice([0, 1, 7, 512])
    return [
        Segment(
            segment=i,
            shot=rng.randrange(2**31),
            start_frame=rng.randrange(2**62),
            end_frame=rng.randrange(2**62),
            embedding=tuple(float32(rng) for _ in range(dim)),
        )
        for i in range(rng.randrange(20))
    ]


def random_plan(rng: random.Random) -> list[PlannedSegment]:
    return [
        PlannedSegment(
            segment=i,
            shot=rng.randrange(2**31),
            start_frame=rng.randrange(2**62),
            end_frame=rng.randrange(2**62),
            seed=rng.choice([0, 2**63 - 1, rng.randrange(2**63)]),
            memory=tuple(
                PlannedMemory(
                    segment=rng.randrange(2**31),
                    role=rng.choice(["previous", "retrieved", "", "é"]),
                    score=float32(rng),
                    kernel=(rng.randrange(9), rng.randrange(9), rng.randrange(9)),
                )
                for _ in range(rng.randrange(6))
            ),
        )
        for i in range(rng.randrange(20))
    ]


@pytest.mark.parametrize("seed", range(30))
def test_tables_come_back(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    store = Store(str(tmp_path))
    segments, plan = random_segments(rng), random_plan(rng)
    store.write_table("segments.parquet", segments_to_table(segments))
    store.write_table("plan.parquet", plan_to_table(plan))
    assert segments_from_table(store.read_table("segments.parquet")) == segments
    assert plan_from_table(store.read_table("plan.parquet")) == plan


def test_no_rows_keep_their_columns() -> None:
    assert segments_to_table([]).schema == SEGMENT_SCHEMA
    assert plan_to_table([]).schema == PLAN_SCHEMA
    assert segments_from_table(segments_to_table([])) == []
    assert plan_from_table(plan_to_table([])) == []


def test_columns_a_later_version_adds_are_passed_over() -> None:
    segments = random_segments(random.Random(3))
    table = segments_to_table(segments).append_column("hdr", [[True] * len(segments)])
    assert segments_from_table(table) == segments
    plan = random_plan(random.Random(3))
    assert plan_from_table(plan_to_table(plan).append_column("turn", [[1] * len(plan)])) == plan


def test_embedding_matrix() -> None:
    rows = [Segment(segment=i, shot=0, start_frame=i, end_frame=i + 1, embedding=(float(i), 0.5)) for i in range(3)]
    matrix = embedding_matrix(rows)
    assert matrix.dtype == np.float32
    assert matrix.tolist() == [[0, 0.5], [1, 0.5], [2, 0.5]]


@pytest.mark.parametrize(
    ("section", "schema"),
    [
        ("segments.parquet", SEGMENT_SCHEMA),
        ("plan.parquet", PLAN_SCHEMA),
        ("latents/segment-00012.parquet", LATENT_SCHEMA),
        ("results.parquet", RESULT_SCHEMA),
        ("failures.parquet", FAILURE_SCHEMA),
        ("timeline.parquet", TIMELINE_SCHEMA),
    ],
)
def test_every_column_is_documented_and_nothing_else(section: str, schema: pa.Schema) -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    part = text.split(f"### {section}\n", 1)[1].split("\n### ", 1)[0]
    table = part.split("| --- |", 1)[1].split("\n\n", 1)[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    documented = {name for row in rows for name in row.split(", ") if "." not in name}
    assert documented == set(schema.names)
