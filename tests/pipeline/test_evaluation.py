"""Measures on frames whose answer is known, figures on rows whose answer is known, and the suite's worlds."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.memory import MemorySettings
from model.presets import load_editor
from model.types import EditRequest, MemoryVideo
from pipeline.evaluation.evaluate import METRICS_SCHEMA, Evaluation, evaluate
from pipeline.evaluation.measures import Frames, Row, edit_flops, measure
from pipeline.evaluation.ssim import ssim
from pipeline.evaluation.style import fit_style, style_distance
from pipeline.evaluation.suite import SuiteVideo, draw_suite, load_truth, returns, truth_of, visits
from pipeline.evaluation.tables import (
    by_gap,
    difference_table,
    is_return,
    main_table,
    mean_interval,
    per_video,
    ratio_interval,
    ratio_table,
)
from pipeline.evaluation.variants import read_variants
from pipeline.progress import Progress
from pipeline.video.io import inspect
from retrieval.schema import PlannedSegment
from tests.presets import write_random_preset

VIDEO = SuiteVideo(
    id="v", world_seed=0, task="recolour", num_segments=14, size=(12, 16), instruction="make it red", path=""
)


def plan(shots: list[int]) -> list[PlannedSegment]:
    return [
        PlannedSegment(segment=i, shot=shot, start_frame=4 * i, end_frame=4 * i + 4, seed=i, memory=())
        for i, shot in enumerate(shots)
    ]


def known(seen: list[bool]) -> Frames:
    """Grey; the edit turns the left half of the segments that see it to a dark red."""
    frames = 4 * len(seen)
    source = torch.full((frames, 12, 16, 3), 0.5)
    mask = torch.zeros(frames, 12, 16, dtype=torch.bool)
    for i, is_seen in enumerate(seen):
        mask[4 * i : 4 * i + 4, :, :8] = is_seen
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
    assert values(rows, "ssim")[2] == 1.0
    assert 0 < values(rows, "ssim")[0] < 0.99
    perfect = measure(VIDEO, "truth", 7, plan([0, 0, 0, 0, 0]), frames, frames.truth)
    for metric in ("edit_error", "preservation_error", "consistency_error", "flicker"):
        assert set(values(perfect, metric).values()) == {0.0}


def styled(source: torch.Tensor, gains: list[float]) -> torch.Tensor:
    """Every segment of 4 frames under its own colour map: red and blue change places, all of it darker by the gain."""
    return torch.cat([gain * part.flip(-1) + 0.1 for gain, part in zip(gains, source.split(4), strict=True)])


def test_the_consistency_of_a_restyle_is_that_of_its_colour_map() -> None:
    """Whatever the segments show: each is of other colours, and the followed object is in view in two of five."""
    generator = torch.Generator().manual_seed(0)
    source = torch.rand(20, 12, 16, 3, generator=generator) * torch.rand(5, 3, generator=generator).repeat_interleave(
        4, 0
    ).view(20, 1, 1, 3).clamp_min(0.3)
    target = torch.zeros(20, 12, 16, dtype=torch.bool)
    target[:4, :6, :8] = target[16:, :6, :8] = True
    truth = styled(source, [0.5] * 5)
    frames = Frames(source=source, truth=truth, mask=torch.ones_like(target), target=target)
    restyle = replace(VIDEO, task="restyle")

    def consistency(edited: torch.Tensor) -> list[tuple[int, int | None, float]]:
        rows = measure(restyle, "m", 0, plan([0] * 5), frames, edited)
        assert {row.metric for row in rows}.isdisjoint({"preservation_error"})
        return [(row.segment, row.gap, row.value) for row in rows if row.metric == "consistency_error"]

    still = consistency(truth)
    assert [(segment, gap) for segment, gap, _ in still] == [(1, None), (2, None), (3, None), (4, 3)]
    assert max(value for *_, value in still) < 0.004
    assert max(value for *_, value in consistency(source)) < 1e-6
    # The last segment is darker by 0.2 of its source, whose mean length is what the two maps differ by.
    drifting = consistency(styled(source, [0.5, 0.5, 0.5, 0.5, 0.3]))
    assert drifting[:3] == still[:3]
    assert drifting[3][2] == pytest.approx(float(0.2 * source[16:].norm(dim=-1).mean()), abs=0.004)


def test_a_style_is_the_affine_map_that_made_it() -> None:
    source = torch.rand(2, 12, 16, 3, generator=torch.Generator().manual_seed(1))
    matrix = torch.tensor([[0.5, 0.1, 0.0], [0.2, 0.6, 0.1], [0.0, 0.0, 0.4]])
    style = fit_style(source, source @ matrix + 0.2)
    torch.testing.assert_close(style[:3], matrix, rtol=0, atol=2e-3)
    torch.testing.assert_close(style[3], torch.full((3,), 0.2), rtol=0, atol=2e-3)
    darker = style - torch.tensor([0.0, 0.0, 0.0, 0.1])[:, None]
    assert float(style_distance(style, darker, source)) == pytest.approx(0.1 * 3**0.5, abs=1e-6)


def test_ssim_is_its_formula() -> None:
    """Against the definition, window by window in float64; equal frames give 1, and structure counts more than light."""
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.rand(2, 13, 12, 3, generator=generator) for _ in range(2))
    x = 0.7 * y + 0.3 * x
    weights = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    weights = np.outer(weights, weights) / weights.sum() ** 2
    expected = []
    for a, b in zip(x.double().numpy(), y.double().numpy(), strict=True):
        found = []
        for top, left, channel in np.ndindex(3, 2, 3):
            p, q = (image[top : top + 11, left : left + 11, channel] for image in (a, b))
            mean_p, mean_q = (weights * p).sum(), (weights * q).sum()
            spread_p, spread_q = (weights * (p - mean_p) ** 2).sum(), (weights * (q - mean_q) ** 2).sum()
            shared = (weights * (p - mean_p) * (q - mean_q)).sum()
            found.append(
                (2 * mean_p * mean_q + 0.01**2)
                * (2 * shared + 0.03**2)
                / ((mean_p**2 + mean_q**2 + 0.01**2) * (spread_p + spread_q + 0.03**2))
            )
        expected.append(np.mean(found))
    assert ssim(x, y).tolist() == pytest.approx(expected, abs=1e-5)
    assert ssim(y, y).tolist() == pytest.approx([1, 1])
    with pytest.raises(ValueError, match="frames are 10x12 px; ssim needs at least 11"):
        ssim(x[:, :10], y[:, :10])


@pytest.mark.parametrize("memory_attention", ["joint", "isolated"])
def test_flops_are_those_of_all_steps(memory_attention: str, tmp_path: Path) -> None:
    """Against a count of the whole edit, here of five steps; a memory that is encoded once is counted once."""
    folder = write_random_preset(tmp_path / "five", memory_attention=memory_attention)
    document = json.loads((folder / "preset.json").read_text())
    document["sampler"]["num_inference_steps"] = 5
    (folder / "preset.json").write_text(json.dumps(document))
    layout = (("previous", (1, 2, 2)), ("retrieved", (1, 4, 4)), ("retrieved", (1, 4, 4)))
    editor = load_editor(folder)
    shape = editor.encode(torch.zeros(17, 64, 64, 3, dtype=torch.uint8)).shape
    latents = [torch.randn(shape) for _ in layout]
    memory = tuple(
        MemoryVideo(role=role, kernel=kernel, edited=latent, source=latent)
        for (role, kernel), latent in zip(layout, latents, strict=True)
    )
    with FlopCounterMode(display=False) as counter:
        editor.edit(EditRequest(instruction="make it red", source=latents[0], memory=memory, seed=0))
    settings = MemorySettings().resolved({})
    assert edit_flops(str(folder), settings, layout, (64, 64)) == counter.get_total_flops()
    assert edit_flops(str(folder), settings, layout[:2], (64, 64)) < counter.get_total_flops()


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


def test_objects_and_restyles_are_compared_apart() -> None:
    tasks = {"v0": "recolour", "v1": "hat", "v2": "restyle"}
    times = {"v0": 4.0, "v1": 2.0, "v2": 1.0}
    rows = [("memory", video, None, "consistency_error", 0.1) for video in tasks]
    rows += [("previous", video, None, "consistency_error", 0.1 * factor) for video, factor in times.items()]
    rows += [("previous", "v0", 5, "consistency_error", 0.8), ("memory", "v0", 5, "consistency_error", 0.1)]
    rows += [(method, video, None, "edit_error", 0.2) for method in ("memory", "previous") for video in tasks]
    rows += [("previous", "v2", None, "edit_error", 0.5)]
    found = table(rows)
    lines = ratio_table(found, ["previous", "memory"], tasks, seed=0)
    assert lines[0] == (
        "| consistency error | against | all (3) | edits of objects (2) | hat (1) | recolour (1) | restyle (1) |"
    )
    cells = [cell.split(" (")[0].strip() for cell in lines[2].strip("| ").split("|")]
    assert cells == ["all later segments", "previous", "3.00", "4.00", "2.00", "6.00", "1.00"]
    assert (
        lines[3] == "| returns | previous | 8.00 (8.00 to 8.00) | 8.00 (8.00 to 8.00) | - | 8.00 (8.00 to 8.00) | - |"
    )
    assert len(lines) == 4
    differences = difference_table(found, ["previous", "memory"], seed=0)
    assert len(differences) == 3
    assert "| previous | 0.0500 (0.0000 to 0.1500) | -" in differences[2]


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
    assert [video.starts_in_view for video in first] == [True, False]
    for video in first:
        info = inspect(video.path).info
        assert (info.num_frames, info.height_px, info.width_px) == (238, 40, 96)
        truth = load_truth(video)
        assert truth.edited.shape == (238, 40, 96, 3)
        seen = visits(truth.target)
        assert returns(seen)
        assert (seen[0] == 0) == video.starts_in_view
        again = truth_of(video, 17 * seen[1], 17 * seen[1] + 17)
        for name in ("source", "edited", "mask", "target"):
            kept = getattr(truth, name)[17 * seen[1] : 17 * seen[1] + 17]
            assert torch.equal(kept, getattr(again, name)), name
        assert bool(again.target.any())
    assert returns([0, 1, 4, 8, 9]) == [8]


def test_chosen_tasks_are_taken_in_turn_and_do_not_mix_with_others(tmp_path: Path) -> None:
    suite = draw_suite(tmp_path, videos=3, seed=3, size=(32, 40), workers=2, tasks=("jacket", "orange"))
    assert [video.task for video in suite] == ["jacket", "orange", "orange"]
    assert [video.id for video in suite] == [
        "s3-v000-jacket-32x40",
        "s3-v001-orange-away-32x40",
        "s3-v002-orange-away-32x40",
    ]
    assert all(returns(visits(load_truth(video).target)) for video in suite)
    other = draw_suite(tmp_path, videos=1, seed=3, size=(32, 40), workers=1, tasks=("door",))
    assert other[0].id == "s3-v000-door-32x40"


def test_videos_of_the_train_split_are_others_under_other_names(tmp_path: Path) -> None:
    heldout, known = (
        draw_suite(tmp_path, videos=1, seed=3, size=(32, 40), workers=1, tasks=("door",), split=split)[0]
        for split in ("heldout", "train")
    )
    assert known.id == "train-s3-v000-door-32x40"
    assert not torch.equal(load_truth(heldout).source, load_truth(known).source)
    again = truth_of(known, 0, 17)  # redrawn by the description alone
    assert torch.equal(again.source, load_truth(known).source[:17])


def test_rows_say_what_they_are_edited_by() -> None:
    plain, other, named, further = read_variants(
        ("memory", "previous@b:kernels=fine:merging=discard-low:share=0.3:source=off", "memory-edited-only"), ("a", "c")
    )
    assert (plain.method, plain.preset, plain.settings) == ("memory", "a", MemorySettings())
    assert (other.method, other.preset) == ("previous", "b")
    assert other.settings == MemorySettings(kernels="fine", merging="discard-low", merging_share=0.3, has_source=False)
    assert (named.name, named.method, named.settings.has_source) == ("memory-edited-only", "memory", False)
    assert (further.name, further.method, further.preset) == ("memory@c", "memory", "c")
    names = [variant.name for variant in read_variants(("table-a",), ("tiny",))]
    assert names == ["independent", "previous", "recent", "random", "memory", "memory-edited-only"]
    shares = {variant.settings.merging_share for variant in read_variants(("table-b",), ("tiny",))}
    assert shares == {None, 0.3, 0.5, 0.7}


def test_wrong_options_are_named(tmp_path: Path) -> None:
    for methods, message in (
        (("memory", "magic"), "--methods has 'magic'; needs some of memory, independent"),
        (("memory", "memory"), "each method once"),
        (("memory:kernel=fine",), "--methods has 'kernel=fine' in 'memory:kernel=fine'; needs kernels="),
        (("memory:share=much",), "--methods has 'share=much'"),
        (
            ("memory:kernels=none",),
            "'memory:kernels=none': kernels is 'none'; needs one of anchored, dynamic, fine, coarse",
        ),
        (("memory:share=0.5",), "'memory:share=0.5': merging_share is 0.5; needs merging"),
    ):
        with pytest.raises(ValueError, match=message):
            Evaluation(out=tmp_path, methods=methods)
    with pytest.raises(ValueError, match="--videos is 0"):
        Evaluation(out=tmp_path, videos=0)
    for tasks, named in ((("hat", "surface"), "'surface'"), (("wig",), "'wig'"), ((), "no task")):
        with pytest.raises(ValueError, match=f"--tasks has {named}; needs some of recolour, hat, remove"):
            Evaluation(out=tmp_path, tasks=tasks)
    plain, isolated = write_random_preset(tmp_path / "plain"), tmp_path / "isolated"
    write_random_preset(isolated, memory_attention="isolated")
    for preset, method, message in (
        (plain, "memory:merging=merge-low", "preset 'plain' was trained without merging"),
        (plain, f"memory@{isolated}:merging=discard-high", "preset 'isolated' has isolated memory"),
        ("tinny", "memory", "did you mean 'tiny'"),
    ):
        out = tmp_path / "out"
        with pytest.raises(ValueError, match=message):
            evaluate(Evaluation(out=out, presets=(str(preset),), methods=(method,)), Progress())
        assert not out.exists(), "nothing is begun"
