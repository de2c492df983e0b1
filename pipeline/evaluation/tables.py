"""Figures of an evaluation: means over videos, confidence intervals and ratios, from the rows of metrics.parquet.

A video counts once, whatever its length: its value is the mean over its segments. Intervals are 95 % percentile
bootstraps over videos, paired where methods are compared. Videos of another seed have other names: the rows of several runs may
be joined.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.evaluation.learned import FEATURE_METRICS, LPIPS_METRIC
from pipeline.evaluation.suite import MIN_ABSENCE, WHOLE_FRAME_TASKS
from pipeline.evaluation.variants import REFERENCE

METRICS = ("edit_error", "preservation_error", "consistency_error", "psnr_db", "ssim", "flicker", "flops", "seconds")
OPTIONAL_METRICS = (*FEATURE_METRICS, LPIPS_METRIC)
COMPARED = ("edit_error", "preservation_error", "psnr_db", "ssim", "flicker")
GAP_BINS = ((0, 0), (1, 2), (3, 5), (6, 10), (11, 60))
NUM_BOOTSTRAP = 10_000

PerVideo = Mapping[str, Mapping[str, float]]
"""Method -> video -> value."""


Keep = Callable[[dict[str, Any]], bool]


def every(row: dict[str, Any]) -> bool:
    return True


def per_video(table: pa.Table, metric: str, *, keep: Keep = every) -> PerVideo:
    """Mean over the segments of every video; videos without such a row are left out."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in table.filter(pc.field("metric") == metric).to_pylist():
        if keep(row):
            values[row["method"]][row["video"]].append(row["value"])
    return {m: {video: float(np.mean(found)) for video, found in videos.items()} for m, videos in values.items()}


def is_return(row: dict[str, Any]) -> bool:
    return row["gap"] is not None and row["gap"] >= MIN_ABSENCE


def mean_interval(values: Sequence[float], *, seed: int) -> tuple[float, float, float]:
    """Mean and its interval."""
    array = np.asarray(values)
    picks = np.random.default_rng(seed).integers(0, len(array), size=(NUM_BOOTSTRAP, len(array)))
    low, high = np.percentile(array[picks].mean(1), (2.5, 97.5))
    return float(array.mean()), float(low), float(high)


def paired(numerator: Mapping[str, float], denominator: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Values of the videos that both have, in one order."""
    videos = sorted(numerator.keys() & denominator.keys())
    return np.array([numerator[video] for video in videos]), np.array([denominator[video] for video in videos])


def ratio_interval(
    numerator: Mapping[str, float], denominator: Mapping[str, float], *, seed: int
) -> tuple[float, float, float]:
    """Ratio of means over the videos that both have, and its interval."""
    top, bottom = paired(numerator, denominator)
    picks = np.random.default_rng(seed).integers(0, len(top), size=(NUM_BOOTSTRAP, len(top)))
    low, high = np.percentile(top[picks].mean(1) / np.maximum(bottom[picks].mean(1), 1e-9), (2.5, 97.5))
    return float(top.mean() / max(bottom.mean(), 1e-9)), float(low), float(high)


def metrics_of(table: pa.Table) -> list[str]:
    """Those that were measured, in the order of the tables."""
    found = set(table["metric"].to_pylist())
    return [metric for metric in (*METRICS, *OPTIONAL_METRICS) if metric in found]


def means(table: pa.Table) -> dict[str, dict[str, float]]:
    """Metric -> method -> mean over the videos."""
    return {
        metric: {method: float(np.mean(list(found.values()))) for method, found in per_video(table, metric).items()}
        for metric in metrics_of(table)
    }


def main_table(table: pa.Table, methods: Sequence[str], *, seed: int) -> list[str]:
    """Markdown: a row per method, a column per metric, with intervals."""
    columns = [(metric, per_video(table, metric)) for metric in metrics_of(table)]
    columns.insert(3, ("at returns", per_video(table, "consistency_error", keep=is_return)))
    lines = ["| method | " + " | ".join(name for name, _ in columns) + " |", "|---|" + "---|" * len(columns)]
    for method in methods:
        cells = []
        for name, values in columns:
            found = values.get(method)
            cells.append(number(name, *mean_interval(list(found.values()), seed=seed)) if found else "-")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def number(metric: str, mean: float, low: float, high: float) -> str:
    if metric == "flops":
        return f"{mean / 1e9:.1f} G"
    if metric == "seconds":
        return f"{mean:.2f}"
    digits = {"psnr_db": 1, "ssim": 3}.get(metric, 4)
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def ratio_table(table: pa.Table, methods: Sequence[str], tasks: Mapping[str, str], *, seed: int) -> list[str]:
    """Markdown: how many times lower the consistency error with memory is than with every other method.

    Of edits of objects and of the whole frame by themselves too, and of every task: they are measured in different ways.
    """
    groups = task_groups(tasks)
    head = ["consistency error", "against", *(f"{name} ({len(videos)})" for name, videos in groups.items())]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, keep in (("all later segments", every), ("returns", is_return)):
        values = per_video(table, "consistency_error", keep=keep)
        for method in methods:
            if method == REFERENCE or not values.get(method) or not values.get(REFERENCE):
                continue
            cells = []
            for videos in groups.values():
                found, memory = ({v: values[m][v] for v in videos & values[m].keys()} for m in (method, REFERENCE))
                if found.keys() & memory.keys():
                    ratio, low, high = ratio_interval(found, memory, seed=seed)
                    cells.append(f"{ratio:.2f} ({low:.2f} to {high:.2f})")
                else:
                    cells.append("-")
            lines.append(f"| {name} | {method} | " + " | ".join(cells) + " |")
    return lines


def task_groups(tasks: Mapping[str, str]) -> dict[str, set[str]]:
    """Group -> videos: all, edits of objects, then every task (those of the whole frame are tasks by themselves)."""
    objects = {video for video, task in tasks.items() if task not in WHOLE_FRAME_TASKS}
    groups = {"all": set(tasks), "edits of objects": objects}
    groups |= {name: {video for video, task in tasks.items() if task == name} for name in sorted(set(tasks.values()))}
    return {name: videos for name, videos in groups.items() if videos}


def difference_table(table: pa.Table, methods: Sequence[str], *, seed: int) -> list[str]:
    """Markdown: every method less memory, over the same videos. An interval around 0 shows no difference."""
    lines = ["| less memory's | " + " | ".join(COMPARED) + " |", "|---|" + "---|" * len(COMPARED)]
    values = {metric: per_video(table, metric) for metric in COMPARED}
    for method in methods:
        if method == REFERENCE:
            continue
        cells = []
        for metric, by_method in values.items():
            found, memory = paired(by_method.get(method, {}), by_method.get(REFERENCE, {}))
            cells.append(number(metric, *mean_interval((found - memory).tolist(), seed=seed)) if len(found) else "-")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def by_gap(table: pa.Table, methods: Sequence[str], *, seed: int) -> dict[str, list[tuple[float, float, float] | None]]:
    """Method -> consistency error and interval of every bin of `GAP_BINS`; None where no video has such a gap."""
    result: dict[str, list[tuple[float, float, float] | None]] = {method: [] for method in methods}
    for low, high in GAP_BINS:

        def is_in_bin(row: dict[str, Any], low: int = low, high: int = high) -> bool:
            return row["gap"] is not None and low <= row["gap"] <= high

        values = per_video(table, "consistency_error", keep=is_in_bin)
        for method, bins in result.items():
            found = values.get(method)
            bins.append(mean_interval(list(found.values()), seed=seed) if found else None)
    return result
