"""Measures on frames whose answer is known, figures on rows whose answer is known, and the suite's worlds."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.evaluation.evaluate import METRICS_SCHEMA, Evaluation
from pipeline.evaluation.measures import Frames, Row, measure
from pipeline.evaluation.suite import SuiteVideo, draw_suite, returns, spans, truth_of, visits
from pipeline.evaluation.tables import by_gap, is_return, main_table, mean_interval, per_video, ratio_interval
from pipeline.video.io import inspect
from retrieval.schema import PlannedSegment

VIDEO = SuiteVideo(
    id="v", world_seed=0, task="recolour", num_segments=14, size=(8, 8), instruction="make it red", path=""
)


def plan(shots: list[int]) -> list[PlannedSegment]:
    return [
        PlannedSegment(segment=i, shot=shot, start_frame=4 * i, end_frame=4 * i + 4, seed=i, memory=())
        for i, shot in enumerate(shots)
    ]


def known(seen: list[bool]) -> Frames:
    """Grey; the edit turns the left half of the segments that see it to a dark red."""
    frames = 4 * len(seen)
    source = torch.full((frames, 8, 8, 3), 0.5)
    mask = torch.zeros(frames, 8, 8, dtype=torch.bool)
    for i, is_seen in enumerate(seen):
        mask[4 * i : 4 * i + 4, :, :4] = is_seen
    truth = source.clone()
    truth[mask] = torch.tensor([0.4, 0.0, 0.0])
    return Frames(source=source, truth=truth, mask=mask, target=mask)


def values(rows: list[Row], metric: str) -> dict[int, float]:
    return {row.segment: round(row.value, 5) for row in rows if row.metric == metric}


def test_every_measure_is_its_definition() -> None:
    frames = known([True, False, False, False, True])
    edited = frames.truth.clone()
    edited[:4][frames.mask[:4]] += torch.tensor([0.3, 0.0, 0.0])  # brighter than the truth at first
    edited[16:][~frames.mask[16:]] += 0.06  # and in the end the background is changed
    edited[5] += 0.1  # one frame flashes
    rows = measure(VIDEO, "m", 7, plan([0, 0, 0, 0, 0]), frames, edited)
    assert values(rows, "edit_error") == {0: 0.1, 4: 0.0}
    assert values(rows, "preservation_error") == {0: 0.0, 1: 0.025, 2: 0.0, 3: 0.0, 4: 0.06}
    assert values(rows, "consistency_error") == {4: 0.3}
    assert {row.gap for row in rows if row.metric == "consistency_error"} == {3}
    assert {row.gap for row in rows if row.metric != "consistency_error"} == {None}
    assert {row.method for row in rows} == {"m"}
    assert {row.seed for row in rows} == {7}
    flicker = values(rows, "flicker")
    # Frame 4 loses the 0.3 of one channel on half of the pixels; frame 5 flashes up and frame 6 down; frame 16 changes.
    assert flicker == {0: 0.0, 1: round((0.3 / 3 / 2 + 0.1 + 0.1) / 4, 5), 2: 0.0, 3: 0.0, 4: round(0.06 / 2 / 4, 5)}
    assert values(rows, "psnr_db")[2] == 100.0
    assert values(rows, "psnr_db")[0] == pytest.approx(-10 * np.log10(0.09 / 3 / 2), abs=1e-3)
    perfect = measure(VIDEO, "truth", 7, plan([0, 0, 0, 0, 0]), frames, frames.truth)
    for metric in ("edit_error", "preservation_error", "consistency_error", "flicker"):
        assert set(values(perfect, metric).values()) == {0.0}


def test_a_cut_is_no_flicker() -> None:
    frames = known([True, True])
    edited = frames.truth.clone()
    edited[4:] = 0.9
    assert values(measure(VIDEO, "m", 0, plan([0, 0]), frames, edited), "flicker")[1] > 0
    assert values(measure(VIDEO, "m", 0, plan([0, 1]), frames, edited), "flicker")[1] == 0


def table(rows: list[tuple[str, str, int | None, str, float]]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {"method": m, "seed": 0, "video": v, "segment": i, "gap": gap, "metric": metric, "value": value}
            for i, (m, v, gap, metric, value) in enumerate(rows)
        ],
        schema=METRICS_SCHEMA,
    )


def test_a_video_counts_once_and_ratios_are_of_means() -> None:
    rows = [("independent", f"v{i}", gap, "consistency_error", 0.3) for i in range(5) for gap in (0, 4, 4)]
    rows += [("memory", f"v{i}", gap, "consistency_error", 0.05 if gap else 0.1) for i in range(5) for gap in (0, 4)]
    rows += [("memory", "v0", 0, "consistency_error", 0.1)] * 8
    found = table(rows)
    errors = per_video(found, "consistency_error")
    assert errors["memory"]["v0"] == pytest.approx((9 * 0.1 + 0.05) / 10)
    assert errors["memory"]["v1"] == pytest.approx(0.075)
    at_returns = per_video(found, "consistency_error", keep=is_return)
    assert ratio_interval(at_returns["independent"], at_returns["memory"], seed=0) == pytest.approx((6, 6, 6))
    assert by_gap(found, ["memory"], seed=0)["memory"][0] == pytest.approx((0.1, 0.1, 0.1))
    assert by_gap(found, ["memory"], seed=0)["memory"][3] is None
    lines = main_table(found, ["independent", "memory", "truth"], seed=0)
    assert len(lines) == 5
    assert "0.3000 (0.3000 to 0.3000)" in lines[2]
    assert lines[4].startswith("| truth | -")


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for number in range(200):
        mean, low, high = mean_interval(generator.normal(1.0, 0.3, 30).tolist(), seed=number)
        assert low < mean < high
        covered += low <= 1.0 <= high
    assert 0.88 < covered / 200 < 0.99


def test_the_suite_is_drawn_once_and_its_objects_return(tmp_path: Path) -> None:
    first = draw_suite(tmp_path, videos=2, seed=3, size=(40, 96), workers=2)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert draw_suite(tmp_path, videos=2, seed=3, size=(40, 96), workers=1) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written
    assert first[0].world_seed != draw_suite(tmp_path, videos=1, seed=4, size=(40, 96), workers=1)[0].world_seed
    for video in first:
        info = inspect(video.path).info
        assert (info.num_frames, info.height_px, info.width_px) == (238, 40, 96)
        seen = visits(video)
        assert returns(seen)
        start, end = spans(video)[seen[0]]
        truth = truth_of(video, start, end)
        assert truth.edited.shape == (17, 40, 96, 3)
        assert bool(truth.target.any())
    assert returns([0, 1, 4, 8, 9]) == [8]


def test_wrong_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--methods has 'magic'; needs some of memory, independent"):
        Evaluation(out=tmp_path, methods=("memory", "magic"))
    with pytest.raises(ValueError, match="each method once"):
        Evaluation(out=tmp_path, methods=("memory", "memory"))
    with pytest.raises(ValueError, match="--videos is 0"):
        Evaluation(out=tmp_path, videos=0)
