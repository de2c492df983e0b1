import hashlib
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.plan import (
    PlanFigures,
    format_duration,
    format_plan_table,
    freeze_plan,
    plan_figures,
    plan_segments,
    segment_seed,
)
from retrieval.schema import PlannedSegment, Segment
from retrieval.store import Store, StoreError

FRAMES = 17


def film(shots: list[int], *, dim: int = 32, seed: int = 0) -> list[Segment]:
    """One segment per entry, which is its shot; random directions."""
    rows = np.random.default_rng(seed).standard_normal((len(shots), dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return [
        Segment(
            segment=i, shot=shot, start_frame=i * FRAMES, end_frame=(i + 1) * FRAMES, embedding=tuple(map(float, row))
        )
        for i, (shot, row) in enumerate(zip(shots, rows, strict=True))
    ]


def looking_at(places: list[int], shots: list[int]) -> list[Segment]:
    """Segments whose sources are alike exactly where they show the same place."""
    rows = np.eye(max(places) + 1)
    return [replace(segment, embedding=tuple(rows[place])) for segment, place in zip(film(shots), places, strict=True)]


def remembered(plan: list[PlannedSegment]) -> list[list[tuple[str, int]]]:
    return [[(memory.role, memory.segment) for memory in row.memory] for row in plan]


def test_previous_first_then_the_most_alike_of_all_earlier() -> None:
    segments = looking_at([0, 1, 2, 0, 1, 0], [0, 0, 0, 0, 0, 0])
    plan = plan_segments(segments, top_k=1)
    assert remembered(plan) == [
        [],
        [("previous", 0)],
        [("previous", 1), ("retrieved", 0)],
        [("previous", 2), ("retrieved", 0)],
        [("previous", 3), ("retrieved", 1)],
        [("previous", 4), ("retrieved", 0)],
    ]
    assert [memory.score for memory in plan[5].memory] == [0.0, 1.0]
    assert [memory.score for memory in plan[2].memory] == [0.0, 0.0]


def test_first_segment_of_a_shot_has_no_previous_but_retrieves_across_the_cut() -> None:
    segments = looking_at([0, 1, 0, 0], [0, 0, 1, 1])
    plan = plan_segments(segments, top_k=2)
    assert remembered(plan)[2] == [("retrieved", 0), ("retrieved", 1)]
    assert remembered(plan)[3] == [("previous", 2), ("retrieved", 0), ("retrieved", 1)]


def test_of_nearly_equal_memories_the_shallowest() -> None:
    """Segments 0 to 3 have depths 1, 2, 3 and 2. Only what is clearly more alike beats depth."""

    def last_memory(cosines: list[float]) -> list[int]:
        earlier = np.eye(5)[:4]
        query = np.array([*cosines, np.sqrt(1 - np.square(cosines).sum())])
        segments = [
            replace(segment, embedding=tuple(row))
            for segment, row in zip(film([0, 0, 0, 1, 2]), [*earlier, query], strict=True)
        ]
        plan = plan_segments(segments, top_k=1)
        assert [row.memory[0].segment for row in plan[1:4]] == [0, 1, 0]
        return [memory.segment for memory in plan[4].memory]

    assert last_memory([0.50, 0.49, 0.515, 0.30]) == [0]
    assert last_memory([0.50, 0.49, 0.525, 0.30]) == [2]
    assert last_memory([0.30, 0.505, 0.515, 0.40]) == [1]
    assert last_memory([0.30, 0.505, 0.515, 0.50]) == [1]


def test_what_retrieval_is_compared_with() -> None:
    segments = looking_at([0, 1, 2, 0, 1, 0, 0], [0] * 7)
    recent = plan_segments(segments, method="recent", top_k=2)
    assert [memory.segment for memory in recent[6].memory] == [5, 4, 3]
    assert [memory.score for memory in recent[6].memory] == [1.0, 0.0, 1.0]
    assert [memory.segment for memory in recent[1].memory] == [0]
    first, again, other = (plan_segments(segments, method="random", top_k=2, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert remembered(first) != remembered(other)
    for row in first[1:]:
        previous, *others = (memory.segment for memory in row.memory)
        assert previous == row.segment - 1
        assert len(set(others)) == len(others) == min(2, row.segment - 1)
        assert all(segment < row.segment - 1 for segment in others)


@pytest.mark.parametrize("top_k", [0, 1, 3, 5, 50])
@pytest.mark.parametrize("shots", [[0] * 12, list(range(12)), [0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 4, 4]])
def test_what_every_plan_keeps(top_k: int, shots: list[int]) -> None:
    segments = film(shots)
    for i, row in enumerate(plan_segments(segments, top_k=top_k, kernels="dynamic")):
        has_previous = i > 0 and shots[i] == shots[i - 1]
        others = [memory.segment for memory in row.memory]
        assert len(set(others)) == len(others) == has_previous + min(top_k, i - has_previous)
        assert all(other < i for other in others)
        assert [memory.role for memory in row.memory] == ["previous"] * has_previous + ["retrieved"] * (
            len(others) - has_previous
        )
        kernels = [(1, 2, 2)] * has_previous + [(1, 4, 4)] * 3 + [(1, 8, 8)] * 50
        assert [memory.kernel for memory in row.memory] == kernels[: len(others)]
        retrieved = [memory.score for memory in row.memory if memory.role == "retrieved"]
        assert retrieved == sorted(retrieved, reverse=True)
        cosines = [np.dot(segments[i].embedding, segments[other].embedding) for other in others]
        assert [memory.score for memory in row.memory] == pytest.approx(cosines, abs=2e-6)
        assert all(memory.score == float(np.float32(memory.score)) for memory in row.memory)


def test_previous_and_independent() -> None:
    segments = film([0, 0, 0, 1, 1])
    assert remembered(plan_segments(segments, method="previous")) == [
        [],
        [("previous", 0)],
        [("previous", 1)],
        [],
        [("previous", 3)],
    ]
    blind = [replace(segment, embedding=()) for segment in segments]
    assert remembered(plan_segments(blind, method="independent")) == [[]] * 5
    memory = plan_segments(segments, kernels="dynamic")
    assert [row.memory[:1] for row in plan_segments(segments, method="previous")[1:3]] == [
        row.memory[:1] for row in memory[1:3]
    ]


def test_spans_shots_and_seeds() -> None:
    plan = plan_segments(film([0, 0, 1]), seed=7)
    assert [(row.segment, row.shot, row.start_frame, row.end_frame) for row in plan] == [
        (0, 0, 0, 17),
        (1, 0, 17, 34),
        (2, 1, 34, 51),
    ]
    assert [row.seed for row in plan] == [segment_seed(7, i) for i in range(3)]
    assert plan_segments([]) == []


def test_segment_seed_is_the_documented_hash() -> None:
    digest = hashlib.sha256(b"7:12").digest()
    assert segment_seed(7, 12) == int.from_bytes(digest[:8], "big") // 2
    seeds = {segment_seed(seed, segment) for seed in range(20) for segment in range(200)}
    assert len(seeds) == 4000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_kernels_are_chosen_before_anything_is_generated() -> None:
    def kernels(**options: object) -> list[list[tuple[int, int, int]]]:
        plan = plan_segments(film([0] * 6), top_k=4, **options)
        assert remembered(plan) == remembered(plan_segments(film([0] * 6), top_k=4))
        return [[memory.kernel for memory in row.memory] for row in plan]

    assert kernels(kernels="dynamic")[5] == [(1, 2, 2), (1, 4, 4), (1, 4, 4), (1, 4, 4), (1, 8, 8)]
    assert kernels(kernels="fine")[5] == [(1, 2, 2)] * 5
    assert kernels(kernels="coarse")[5] == [(1, 8, 8)] * 5


@pytest.mark.parametrize("shots", [[0] * 12, list(range(12)), [0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 4, 4]])
def test_the_anchor_is_the_most_alike_of_the_retrieved(shots: list[int]) -> None:
    for row in plan_segments(film(shots)):
        retrieved = [memory for memory in row.memory if memory.role == "retrieved"]
        anchors = [memory for memory in row.memory if memory.kernel == (1, 2, 2)]
        assert len(anchors) == bool(row.memory)
        assert anchors == (retrieved or list(row.memory))[:1]
        assert {memory.kernel for memory in row.memory} <= {(1, 2, 2), (1, 4, 4)}
        assert all(memory.score <= retrieved[0].score for memory in retrieved)


def broken(**changes: object) -> list[Segment]:
    segments = film([0, 0, 0])
    segments[1] = replace(segments[1], **changes)  # type: ignore[arg-type]
    return segments


@pytest.mark.parametrize(
    ("segments", "options", "message"),
    [
        (film([0]), {"method": "memry"}, "method is 'memry'; needs one of memory, independent, previous"),
        (film([0]), {"top_k": -1}, "top_k is -1; needs 0 or more"),
        (broken(embedding=()), {}, r"embeddings of \[0, 32\] numbers"),
        (broken(embedding=(0.5,) * 32), {}, "embedding of segment 1 has norm 2.8"),
        (broken(embedding=(math.nan,) * 32), {"method": "previous"}, "embedding of segment 1 has norm nan"),
        (broken(segment=2), {}, "segment 2 stands at place 1"),
        (broken(end_frame=17), {}, r"segment 1 spans frames \[17, 17\)"),
        (broken(start_frame=16), {}, "segment 1 does not follow segment 0"),
        (broken(shot=-1), {"method": "independent"}, "segment 1 does not follow segment 0"),
    ],
)
def test_unusable_input(segments: list[Segment], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_segments(segments, **options)


def test_a_frozen_plan_wins(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "edit"))
    first = plan_segments(film([0, 0, 0, 1, 1]), seed=1)
    assert freeze_plan(store, first) == first
    frozen = store.read_bytes("plan.parquet")
    assert freeze_plan(store, plan_segments(film([0, 0, 0, 1, 1], seed=5), seed=2)) == first
    assert store.read_bytes("plan.parquet") == frozen
    store.write_bytes("plan.parquet", frozen[:-20])
    with pytest.raises(StoreError, match=r"plan\.parquet"):
        freeze_plan(store, first)


def chain_length(plan: list[PlannedSegment], i: int, *, left: set[int]) -> int:
    below = [chain_length(plan, memory.segment, left=left) for memory in plan[i].memory]
    return (i in left) + max(below, default=0)


@pytest.mark.parametrize("method", ["memory", "previous", "independent"])
@pytest.mark.parametrize("committed", [set(), {0, 1, 4}, set(range(11))])
def test_depth_and_critical_path(method: str, committed: set[int]) -> None:
    plan = plan_segments(film([0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 4]), method=method, top_k=1)
    figures = plan_figures(plan, seconds_per_segment=2.0, committed=committed)
    everything = set(range(11))
    assert figures.depth == max(chain_length(plan, i, left=everything) for i in everything)
    assert figures.critical_path_s == 2 * max(chain_length(plan, i, left=everything - committed) for i in everything)
    assert figures.gpu_hours == (11 - len(committed)) * 2 / 3600
    assert (figures.num_segments, figures.num_remaining, figures.num_shots) == (11, 11 - len(committed), 5)
    assert figures.num_frames == 11 * FRAMES


def test_depth_of_the_plain_cases() -> None:
    one_shot, cuts = film([0] * 9), film([0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert plan_figures(plan_segments(one_shot), seconds_per_segment=None).depth == 9
    assert plan_figures(plan_segments(cuts, method="previous"), seconds_per_segment=None).depth == 3
    assert plan_figures(plan_segments(cuts, method="independent"), seconds_per_segment=None).depth == 1
    nothing = plan_figures([], seconds_per_segment=1.0)
    assert (nothing.depth, nothing.critical_path_s, nothing.gpu_hours) == (0, 0.0, 0.0)


def test_no_time_is_given_without_a_measurement() -> None:
    figures = plan_figures(plan_segments(film([0, 0])), seconds_per_segment=None)
    assert (figures.seconds_per_segment, figures.critical_path_s, figures.gpu_hours) == (None, None, None)
    with pytest.raises(ValueError, match="seconds_per_segment is nan"):
        plan_figures([], seconds_per_segment=math.nan)


def test_a_long_film_is_planned_in_seconds() -> None:
    """And its chains, deeper than a recursion may be, are followed."""
    plan = plan_segments(film([i // 1500 for i in range(2000)], dim=32))
    assert plan_figures(plan, seconds_per_segment=1.0).depth >= 1500


def figures(**changes: object) -> PlanFigures:
    row = PlanFigures(
        num_frames=901,
        num_shots=3,
        num_segments=55,
        num_remaining=50,
        depth=20,
        seconds_per_segment=1.5,
        critical_path_s=27.0,
        gpu_hours=50 * 1.5 / 3600,
    )
    return replace(row, **changes)  # type: ignore[arg-type]


def test_table_of_a_manifest() -> None:
    rows = [
        ("world", figures()),
        ("a-very-long-identifier-of-a-film-part-1", figures(depth=7, critical_path_s=10.5)),
        ("a-very-long-identifier-of-a-film-part-2", figures(num_frames=1_000_000)),
    ]
    text = format_plan_table(rows, num_workers=2)
    lines = text.splitlines()
    assert lines[0].split()[:5] == ["video", "frames", "shots", "segments", "to"]
    assert lines[2].split() == ["world", "901", "3", "55", "50", "20", "1.5", "27.0", "s", "0.0208"]
    assert lines[3].startswith("a-very-long-i…")
    assert "part-1 " in lines[3]
    assert "part-2 " in lines[4]
    assert lines[6].split() == ["total", "3", "1,001,802", "9", "165", "150", "20", "1.5", "27.0", "s", "0.0625"]
    assert lines[7] == "at least 1 min 52 s on 2 workers"
    assert max(map(len, lines)) <= 120
    assert "at least 27.0 s on 100 workers" in format_plan_table(rows, num_workers=100)


def test_table_without_times() -> None:
    unknown = figures(seconds_per_segment=None, critical_path_s=None, gpu_hours=None)
    text = format_plan_table([("a", figures()), ("b", unknown)], num_workers=4)
    assert text.splitlines()[3].split()[-3:] == ["-", "-", "-"]
    assert text.splitlines()[5].split()[-3:] == ["-", "-", "-"]
    assert "unknown until" in text
    assert "at least" not in text
    assert "total 0" in format_plan_table([])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (59.97, "1 min 00 s"),
        (60, "1 min 00 s"),
        (3599.6, "1 h 00 min"),
        (90000, "25 h 00 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
