"""Figures of an evaluation: means over videos, confidence intervals and ratios, from the rows of metrics.parquet.

A video counts once, whatever its length: its value is the mean over its segments. Intervals are 95 % percentile
bootstraps over videos, paired where methods are compared.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.evaluation.suite import MIN_ABSENCE

METRICS = ("edit_error", "preservation_error", "consistency_error", "psnr_db", "flicker", "flops", "seconds")
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
    for row in table.to_pylist():
        if row["metric"] == metric and keep(row):
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


def ratio_interval(
    numerator: Mapping[str, float], denominator: Mapping[str, float], *, seed: int
) -> tuple[float, float, float]:
    """Ratio of means over the videos that both have, and its interval."""
    videos = sorted(numerator.keys() & denominator.keys())
    top, bottom = (np.array([values[video] for video in videos]) for values in (numerator, denominator))
    picks = np.random.default_rng(seed).integers(0, len(videos), size=(NUM_BOOTSTRAP, len(videos)))
    low, high = np.percentile(top[picks].mean(1) / np.maximum(bottom[picks].mean(1), 1e-9), (2.5, 97.5))
    return float(top.mean() / bottom.mean()), float(low), float(high)


def main_table(table: pa.Table, methods: Sequence[str], *, seed: int) -> list[str]:
    """Markdown: a row per method, a column per metric, with intervals."""
    columns = [(metric, per_video(table, metric)) for metric in METRICS]
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
        return f"{mean / 1e9:.0f} G"
    if metric == "seconds":
        return f"{mean:.2f}"
    digits = 1 if metric == "psnr_db" else 4
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def ratio_table(table: pa.Table, methods: Sequence[str], tasks: Mapping[str, str], *, seed: int) -> list[str]:
    """Markdown: how many times lower the consistency error with memory is than with every other method."""
    lines = ["| consistency error | videos | against | times lower with memory | 95 % |", "|---|---|---|---|---|"]
    for name, keep in (("all later segments", every), ("returns", is_return)):
        values = per_video(table, "consistency_error", keep=keep)
        for task in ("all", *dict.fromkeys(tasks.values())):
            chosen = {
                m: {video: value for video, value in found.items() if task in ("all", tasks[video])}
                for m, found in values.items()
            }
            for method in methods:
                if method == "memory" or not chosen.get(method) or not chosen.get("memory"):
                    continue
                ratio, low, high = ratio_interval(chosen[method], chosen["memory"], seed=seed)
                lines.append(
                    f"| {name} | {task} ({len(chosen['memory'])}) | {method} | {ratio:.2f} | {low:.2f} to {high:.2f} |"
                )
    return lines


def by_gap(table: pa.Table, methods: Sequence[str], *, seed: int) -> dict[str, list[tuple[float, float, float] | None]]:
    """Method -> consistency error and interval of every bin of `GAP_BINS`; None where no video has such a gap."""
    result: dict[str, list[tuple[float, float, float] | None]] = {method: [] for method in methods}
    for low, high in GAP_BINS:

        def is_in_bin(row: dict[str, Any], low: int = low, high: int = high) -> bool:
            return low <= (row["gap"] or 0) <= high

        values = per_video(table, "consistency_error", keep=is_in_bin)
        for method, bins in result.items():
            found = values.get(method)
            bins.append(mean_interval(list(found.values()), seed=seed) if found else None)
    return result
