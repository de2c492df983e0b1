"""What an evaluation leaves to look at: report.md, plots, filmstrips, and report.html with all of them inside."""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.evaluation.evaluate import Evaluated, Evaluation
from pipeline.evaluation.suite import LONG_SEGMENTS, MIN_VISIBLE_SHARE, TASKS, SuiteVideo
from pipeline.evaluation.tables import (
    GAP_BINS,
    by_gap,
    difference_table,
    main_table,
    mean_interval,
    per_video,
    ratio_table,
)
from pipeline.evaluation.variants import REFERENCE

NUM_STRIPS = 8
STRIP_COLUMNS = 8
STRIP_ZOOM = 2
PLOTTED = ("edit_error", "preservation_error", "consistency_error", "flicker")
STYLE = "body{font:16px/1.5 system-ui;max-width:75rem;margin:2rem auto;padding:0 1rem}table{border-collapse:collapse;font-size:14px}td,th{border:1px solid #ccc;padding:.25rem .5rem;text-align:right}td:first-child{text-align:left}img{max-width:100%;image-rendering:pixelated}"


@dataclass(frozen=True, kw_only=True)
class Strip:
    """A filmstrip and what its rows are."""

    video: SuiteVideo
    path: Path
    rows: tuple[str, ...]


def write_evaluation_report(evaluation: Evaluation, evaluated: Evaluated, *, provenance: str) -> Path:
    """Write everything into `evaluation.out`; returns report.html."""
    out, suite, table, seed = evaluation.out, evaluated.suite, evaluated.table, evaluation.seed
    edited = tuple(variant.name for variant in evaluation.variants)
    methods = (*edited, "do-nothing", "truth")
    tables = {
        "Means over videos, with 95 % bootstrap intervals; lower is better but for psnr_db, ssim, clip_f and dino_f": main_table(
            table, methods, seed=seed
        )
    }
    if REFERENCE in edited and len(edited) > 1:
        tasks = {video.id: video.task for video in suite}
        tables["How many times lower the consistency error is with memory (number of videos)"] = ratio_table(
            table, edited, tasks, seed=seed
        )
        tables["Differences, by videos"] = difference_table(table, edited, seed=seed)
    gaps = by_gap(table, methods, seed=seed)
    plots = [
        plot_gaps(gaps, out / "consistency_by_gap.png"),
        plot_metrics(table, methods, out / "metrics.png", evaluation),
    ]
    strips = [write_strip(video, evaluated.edits, out) for video in suite[:NUM_STRIPS]]
    long = sum(video.num_segments == LONG_SEGMENTS for video in suite)
    intro = (
        f"Suite {evaluation.suite}, seed {seed}: {len(suite)} rendered videos of the {evaluation.split} split, {long} of them over 900 frames. "
        f"Preset {', '.join(evaluation.presets)}, top-k {evaluation.top_k}. {provenance} {times(evaluated)} What is "
        "measured stands at the head of `pipeline/evaluation/measures.py`."
    )
    of_tasks = "" if evaluation.tasks == TASKS else f" --tasks {','.join(evaluation.tasks)}"
    given = {
        "frame-embedder": evaluation.learned.clip,
        "dino": evaluation.learned.dino,
        "lpips": evaluation.learned.lpips,
    }
    learned = "".join(f" --{name} {value}" for name, value in given.items() if value is not None)
    command = (
        f"memory-v2v evaluate --suite {evaluation.suite} --preset {','.join(evaluation.presets)} --methods "
        f"{','.join(evaluation.methods)} --videos {evaluation.videos}{of_tasks} --seed {seed} --top-k {evaluation.top_k}{learned} --out DIR"
    )
    markdown = ["# Evaluation", "", intro, "", f"    {command}", ""]
    for title, lines in tables.items():
        markdown += [f"{title}:", "", *lines, ""]
    markdown += [f"![{path.stem}]({path.name})" for path in plots]
    for strip in strips:
        markdown += [
            "",
            f"{strip.video.id}, {strip.video.task}: {strip.video.instruction}. Rows: {', '.join(strip.rows)}.",
        ]
        markdown += ["", f"![{strip.video.id}]({strip.path.relative_to(out)})"]
    (out / "report.md").write_text("\n".join(markdown) + "\n")
    page = out / "report.html"
    page.write_text(html_page(intro, command, tables, plots, strips))
    return page


def times(evaluated: Evaluated) -> str:
    """How long the edits of this run took; what was edited before is not spoken of."""
    found = [
        f"{name} {seconds:.0f} s ({segments} segments)"
        for name, (segments, seconds) in evaluated.generated.items()
        if segments
    ]
    return f"Edited in: {', '.join(found)}." if found else ""


def plot_gaps(gaps: Mapping[str, Sequence[tuple[float, float, float] | None]], path: Path) -> Path:
    figure, axes = new_figure()
    axes.set_prop_cycle(color=colours(len(gaps)))
    places = np.arange(len(GAP_BINS))
    for number, (method, bins) in enumerate(gaps.items()):
        known = [i for i, found in enumerate(bins) if found]
        points = np.array([bins[i] for i in known], dtype=float).reshape(-1, 3)
        spread = (points[:, :1] - points[:, 1:]).T * np.array([[1], [-1]])
        shift = 0.6 * ((number + 0.5) / len(gaps) - 0.5)
        axes.errorbar(
            places[known] + shift, points[:, 0], yerr=np.maximum(spread, 0), marker="o", ls="", capsize=3, label=method
        )
    axes.set_xticks(places, [f"{low}" if low == high else f"{low} to {high}" for low, high in GAP_BINS])
    axes.set_xlabel("segments the object was away")
    axes.set_ylabel("consistency error (RGB distance)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    return path


def plot_metrics(table: pa.Table, methods: Sequence[str], path: Path, evaluation: Evaluation) -> Path:
    figure, panels = new_figure(columns=len(PLOTTED))
    for axes, metric in zip(panels, PLOTTED, strict=True):
        values = per_video(table, metric)
        for place, (method, colour) in enumerate(zip(methods, colours(len(methods)), strict=True)):
            if found := values.get(method):
                mean, low, high = mean_interval(list(found.values()), seed=evaluation.seed)
                axes.barh(place, mean, xerr=[[mean - low], [high - mean]], capsize=3, color=colour)
        axes.set_yticks(range(len(methods)), methods if axes is panels[0] else [""] * len(methods), fontsize=8)
        axes.invert_yaxis()
        axes.set_title(metric, fontsize=10)
    figure.savefig(path, dpi=110)
    return path


def colours(count: int) -> list[tuple[float, float, float]]:
    from matplotlib import colormaps

    return [colormaps["tab20"](2 * i % 20 + i // 10 % 2)[:3] for i in range(count)]


def new_figure(*, columns: int = 1):  # type: ignore[no-untyped-def]  # matplotlib's own types, imported late
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    return plt.subplots(1, columns, figsize=(9, 4.5) if columns == 1 else (3.2 * columns, 4.2), layout="constrained")


def write_strip(video: SuiteVideo, edits: Mapping[str, Mapping[str, str]], out: Path) -> Strip:
    """Rows: source, truth, every method. Columns: segments that see the object, each where it sees most of it."""
    import torch

    from pipeline.evaluation.measures import contexts_of, edited_frames, frames_of

    contexts = contexts_of({method: urls[video.id] for method, urls in edits.items()})
    context = next(iter(contexts.values()))
    plan, known = context.plan, frames_of(video, context)
    videos = {"source": known.source, "truth": known.truth}
    videos |= {method: edited_frames(edit) for method, edit in contexts.items()}
    seen = known.target.float().mean((1, 2))
    best = [
        segment.start_frame + int(seen[segment.start_frame : segment.end_frame].argmax())
        for segment in plan
        if float(seen[segment.start_frame : segment.end_frame].mean()) > MIN_VISIBLE_SHARE
    ]
    chosen = (
        best if len(best) <= STRIP_COLUMNS else [best[round(i)] for i in np.linspace(0, len(best) - 1, STRIP_COLUMNS)]
    )
    picture = torch.cat([torch.cat(list(frames[chosen]), dim=1) for frames in videos.values()])
    pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    path = out / "strips" / f"{video.id}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.repeat(STRIP_ZOOM, 0).repeat(STRIP_ZOOM, 1)).save(path)
    return Strip(video=video, path=path, rows=tuple(videos))


def html_page(
    intro: str, command: str, tables: Mapping[str, Sequence[str]], plots: Sequence[Path], strips: Sequence[Strip]
) -> str:
    parts = [f"<h1>Evaluation</h1><p>{html.escape(intro)}</p><pre>{html.escape(command)}</pre>"]
    parts += [f"<p>{html.escape(title)}:</p>{html_table(lines)}" for title, lines in tables.items()]
    parts += [picture(path) for path in plots]
    for strip in strips:
        parts.append(
            f"<h3>{html.escape(strip.video.instruction)}</h3><p>{strip.video.task}; rows: {', '.join(strip.rows)}</p>"
        )
        parts.append(picture(strip.path))
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Evaluation</title><style>{STYLE}</style>'
    return head + "\n".join(parts) + "</html>\n"


def html_table(lines: Sequence[str]) -> str:
    """A Markdown table as HTML."""
    rows = [[html.escape(cell.strip()) for cell in line.strip("|").split("|")] for line in lines]
    head = "".join(f"<th>{cell}</th>" for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows[2:])
    return f"<table><tr>{head}</tr>{body}</table>"


def picture(path: Path) -> str:
    return f'<p><img alt="{path.stem}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"></p>'
