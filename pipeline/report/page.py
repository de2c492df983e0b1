"""The page of a report: tables, filmstrips and figures as HTML, graphs and timeline as data that page.js draws.

Everything that came from outside (ids, instructions, messages, paths) passes `text` or `json_block`. A content security
policy with the hash of page.js lets no other script run and nothing be fetched.
"""

import base64
import hashlib
import html
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.progress import duration
from pipeline.report.contents import RunContents, VideoContents
from pipeline.report.media import Thumbnail, VideoMedia

SLOT = re.compile(r"\{\{(\w+)\}\}")
MAX_MESSAGE_CHARS = 2000
STATUSES = ("done", "skipped", "failed", "quarantined", "planned")


def build_page(run: RunContents, media: Sequence[VideoMedia]) -> str:
    here = Path(__file__).parent
    script = (here / "page.js").read_text()
    numbers = {video.id: number for number, video in enumerate(run.videos)}
    slots = {
        "title": text(f"{run.run_id} – Memory-V2V edit run"),
        "script_sha256": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "style": (here / "page.css").read_text(),
        "script": script,
        "run_id": text(run.run_id),
        "lead": lead(run),
        "figures": figures(run),
        "nav": navigation(run),
        "videos_table": videos_table(run),
        "failures": failures_section(run, numbers),
        "timeline": timeline_section(run),
        "videos": "\n".join(
            video_section(number, video, pictures)
            for number, (video, pictures) in enumerate(zip(run.videos, media, strict=True))
        ),
        "settings": settings(run),
        "data": json_block(graph_data(run)),
        "previews": "\n".join(
            f'<script type="text/plain" id="preview-{number}">{base64.b64encode(pictures.preview).decode()}</script>'
            for number, pictures in enumerate(media)
            if pictures.preview
        ),
    }
    return SLOT.sub(lambda match: slots[match[1]], (here / "page.html").read_text())


def text(value: object) -> str:
    return html.escape(str(value), quote=True)


def json_block(value: Any) -> str:
    """JSON that cannot end its script element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")


def lead(run: RunContents) -> str:
    started = f"{datetime.fromtimestamp(run.started_s).astimezone():%Y-%m-%d %H:%M %Z}"
    if run.finished_s is None:
        return f"Started {text(started)}; not finished when this report was written."
    return f"Started {text(started)}, took {duration(run.finished_s - run.started_s)}."


def figures(run: RunContents) -> str:
    counts = Counter(str(video.row["status"]) for video in run.videos)
    generated = sum(int(video.row["generated_segments"] or 0) for video in run.videos)
    cells = [("Videos", f"{len(run.videos)}", "")]
    cells += [
        (status.capitalize(), f"{counts[status]}", "bad" if status in ("failed", "quarantined") else "")
        for status in STATUSES
        if counts[status]
    ]
    cells += [
        ("Segments", f"{sum(int(video.row['segments'] or 0) for video in run.videos):,}", ""),
        ("Generated in this run", f"{generated:,}", ""),
    ]
    edits = [task for task in run.tasks if task.kind == "edit"]
    if edits:
        mean_s = sum(task.finished_s - task.started_s for task in edits) / len(edits)
        cells.append(("Seconds per segment", f"{mean_s:.2f}", ""))
    if run.finished_s is not None:
        cells.append(("Total time", duration(run.finished_s - run.started_s), ""))
    if workers := {task.worker for task in run.tasks}:
        cells.append(("Workers", str(len(workers)), ""))
    return "".join(
        f'<div class="{kind}"><dt>{text(name)}</dt><dd>{text(value)}</dd></div>' for name, value, kind in cells
    )


def navigation(run: RunContents) -> str:
    links = [("videos", "Videos")]
    links += [("failures", f"Failures ({len(run.failures)})")] if run.failures else []
    links += [("timeline", "Workers")] if run.tasks else []
    links += [("video-0", "Results")] if run.videos else []
    links += [("settings", "Settings")]
    return "".join(f'<a href="#{anchor}">{text(name)}</a>' for anchor, name in links)


def videos_table(run: RunContents) -> str:
    if not run.videos:
        return '<p class="note">This run has no videos.</p>'
    rows = []
    for number, video in enumerate(run.videos):
        row = video.row
        link = f'<a href="{text(video.output_link)}">{text(link_name(video))}</a>' if video.output_link else ""
        problem = ""
        if row["error_type"]:
            problem = f"<b>{text(row['error_type'])}</b> {text(shortened(row['error'] or '', 160))}"
        rows.append(
            f'<tr data-status="{text(row["status"])}"><td class="id"><a href="#video-{number}">{text(video.id)}</a>'
            f'<span class="source">{text(row["source"])}</span></td>'
            f"<td>{pill(row['status'])}</td>"
            f'<td class="num">{number_text(row["segments"])}</td>'
            f'<td class="num">{number_text(row["generated_segments"])}</td>'
            f'<td class="num">{duration(row["seconds"]) if row["seconds"] is not None else ""}</td>'
            f'<td>{link}</td><td class="text">{problem}</td></tr>'
        )
    search = ""
    if len(rows) > 10:
        search = (
            '<p class="filter"><input type="search" id="filter" aria-label="Filter videos" '
            'placeholder="Filter by id, source or status"></p>'
        )
    return search + table(
        ("Video", "Status", "#Segments", "#Generated", "#Time", "Result", "Problem"), rows, label="Videos"
    )


def failures_section(run: RunContents, numbers: Mapping[str, int]) -> str:
    if not run.failures:
        return ""
    rows = []
    for row in run.failures:
        name = text(row["video"])
        if row["video"] in numbers:
            name = f'<a href="#video-{numbers[row["video"]]}">{name}</a>'
        span = "" if row["start_frame"] is None else f"{row['start_frame']}–{row['end_frame']}"
        rows.append(
            f'<tr><td class="id">{name}</td><td>{text(row["stage"])}</td><td class="num">{text(span)}</td>'
            f"<td>{text(row['error_type'])}</td>"
            f'<td class="text">{text(shortened(row["message"] or "", MAX_MESSAGE_CHARS))}</td>'
            f'<td class="num">{number_text(row["attempts"])}</td></tr>'
        )
    heads = ("Video", "Stage", "#Frames", "Error", "Message", "#Attempts")
    return section("failures", "Failures", table(heads, rows, label="Failures"))


def timeline_section(run: RunContents) -> str:
    if not run.tasks:
        return ""
    return section(
        "timeline",
        "Workers",
        '<p class="facts">What every worker did in this run, from its start. '
        "Percentages: share of the run spent on tasks.</p>"
        '<div data-gantt role="group" aria-label="Timeline of workers"></div>',
    )


def video_section(number: int, video: VideoContents, media: VideoMedia) -> str:
    row = video.row
    parts = [f'<h2 id="video-{number}-title">{text(video.id)} {pill(row["status"])}</h2>']
    parts.append(f'<p class="facts">{" · ".join(facts(video))}</p>')
    if video.instruction:
        parts.append(f"<blockquote>{text(shortened(video.instruction, MAX_MESSAGE_CHARS))}</blockquote>")
    if row["error_type"]:
        message = shortened(row["error"] or "", MAX_MESSAGE_CHARS)
        parts.append(f'<p class="error"><b>{text(row["error_type"])}</b> {text(message)}</p>')
    if video.problem:
        parts.append(f'<p class="error"><b>The edit’s files cannot be read.</b> {text(video.problem)}</p>')
    parts += [f'<p class="note">{text(note)}</p>' for note in record_notes(video)]
    parts.append(player(number, video, media))
    if media.thumbnails:
        parts.append(filmstrip(number, video, media.thumbnails))
    if video.plan:
        parts.append(
            f'<div class="bar"><h3>What each segment remembers</h3></div>'
            f'<div data-graph="{number}" role="group" aria-label="Retrieval graph of {text(video.id)}"></div>'
        )
    if video.spec:
        spec = json.dumps(video.spec, indent=2, sort_keys=True)
        parts.append(
            f"<details><summary>Specification {text(row['edit_id'] or '')}</summary><pre>{text(spec)}</pre></details>"
        )
    return (
        f'<section class="video" id="video-{number}" aria-labelledby="video-{number}-title">{"".join(parts)}</section>'
    )


def facts(video: VideoContents) -> list[str]:
    """Short pieces of HTML under a video's name."""
    row, record = video.row, video.record
    items = [text(row["source"])]
    if video.plan:
        shots = len({segment.shot for segment in video.plan})
        items.append(f"{counted(len(video.plan), 'segment')} in {counted(shots, 'shot')}")
        if not record and row["status"] != "planned":
            items.append(f"{len(video.committed & {segment.segment for segment in video.plan})} generated so far")
    if video.num_frames:
        items.append(counted(video.num_frames, "frame"))
    if video.fps:
        items.append(f"{video.fps:.5g} frames/s")
        items.append(clock(video.num_frames / video.fps))
    if video.num_charged:
        items.append(counted(video.num_charged, "failed attempt"))
    if video.output_link:
        size = f" at {text(record['size'])} size" if record.get("size") else ""
        items.append(f'<a href="{text(video.output_link)}">{text(link_name(video))}</a>{size}')
    return items


def record_notes(video: VideoContents) -> list[str]:
    notes = [str(note) for note in video.record.get("notes") or ()]
    if video.record.get("container_reason"):
        notes.insert(0, f"Container {video.record.get('container')}: {video.record['container_reason']}")
    return notes


def player(number: int, video: VideoContents, media: VideoMedia) -> str:
    if media.preview is not None:
        name = text(video.id)
        shape = next((f"auto {one.width_px} / {one.height_px}" for one in media.thumbnails.values()), "auto")
        return (
            '<div class="bar"><h3>Source and result</h3><span class="spring"></span>'
            f'<span class="group" role="group" aria-label="View"><button type="button" data-view="pair" aria-pressed="true">'
            'Side by side</button><button type="button" data-view="wipe" aria-pressed="false">Wipe</button></span></div>'
            f'<div class="player" data-player="{number}"><div class="labels"><span>Source</span><span>Result</span></div>'
            f'<video controls muted loop playsinline preload="auto" style="aspect-ratio: {shape}" title="Source left, result right: {name}" '
            f'aria-label="Preview of {name}: source on the left, result on the right"></video></div>'
        )
    if media.preview_left_out and video.output_link:
        return (
            '<p class="note">The preview is left out to keep this file small. '
            f'The result: <a href="{text(video.output_link)}">{text(video.output_link)}</a></p>'
        )
    if video.output_link:
        return '<p class="note">There is no preview of this video.</p>'
    return ""


def filmstrip(number: int, video: VideoContents, thumbnails: Mapping[int, Thumbnail]) -> str:
    items, shot_before = [], None
    has_all = len(thumbnails) == len(video.plan)
    for segment in video.plan:
        if segment.segment not in thumbnails:
            continue
        when = moment(video, segment.start_frame)
        picture = thumbnail_svg(
            f"{number}-{segment.segment}",
            thumbnails[segment.segment],
            label=f"Segment {segment.segment} at {when}: source above, result below",
        )
        is_cut = has_all and shot_before is not None and segment.shot != shot_before
        shot_before = segment.shot
        items.append(
            f'<li{" class=cut" if is_cut else ""}><button type="button" data-segment="{segment.segment}">{picture}'
            f"<span><b>{segment.segment}</b> {text(when)}</span></button></li>"
        )
    which = "every segment" if has_all else f"{len(items)} of {counted(len(video.plan), 'segment')}"
    return (
        f'<div class="bar"><h3>First frames</h3><span class="soft">{which}; source above, result below'
        f"{'; a bar marks a cut' if has_all else ''}</span></div>"
        f'<ol class="film" data-film="{number}" tabindex="0" '
        f'aria-label="Filmstrip of {text(video.id)}">{"".join(items)}</ol>'
    )


def thumbnail_svg(name: str, picture: Thumbnail, *, label: str) -> str:
    """The side-by-side picture as two stacked halves, its bytes in the page once."""
    width, height = picture.width_px / 2, picture.height_px
    data = base64.b64encode(picture.jpeg).decode()
    return (
        f'<svg role="img" aria-label="{text(label)}" viewBox="0 0 {width:g} {2 * height + 2}" '
        f'width="{width * 148 / (2 * height + 2):.0f}" height="148"><title>{text(label)}</title><g id="thumb-{name}">'
        f'<image id="pair-{name}" width="{picture.width_px}" height="{height}" href="data:image/jpeg;base64,{data}"/>'
        f'<use href="#pair-{name}" x="{-width:g}" y="{height + 2}"/></g></svg>'
    )


def settings(run: RunContents) -> str:
    def listing(values: Mapping[str, Any]) -> str:
        rows = (
            f"<div><dt>{text(name)}</dt><dd>{text(shortened(plain(value), 300))}</dd></div>"
            for name, value in values.items()
        )
        return f'<dl class="settings">{"".join(rows)}</dl>'

    command, versions = run.run.get("command") or {}, run.run.get("versions") or {}
    parts = [listing(command)] if command else ['<p class="note">Not recorded.</p>']
    if versions:
        parts.append(f"<details><summary>Versions</summary>{listing(versions)}</details>")
    return "".join(parts)


def graph_data(run: RunContents) -> dict[str, Any]:
    """What page.js draws. Rows are lists, because a long video has thousands; scores are in thousandths."""
    kernels: dict[str, int] = {}
    failed = {(str(row["video"]), row["start_frame"]) for row in run.failures}
    videos = []
    for video in run.videos:
        segments = []
        for segment in video.plan:
            state = 0 if segment.segment in video.committed else 2 if (video.id, segment.start_frame) in failed else 1
            memory = [
                [
                    item.segment,
                    int(item.role == "previous"),
                    round(item.score * 1000),
                    kernels.setdefault("×".join(map(str, item.kernel)), len(kernels)),
                ]
                for item in segment.memory
            ]
            segments.append([segment.segment, segment.shot, segment.start_frame, segment.end_frame, state, memory])
        videos.append({"id": video.id, "fps": video.fps, "frames": video.num_frames, "segments": segments})
    tasks = run.tasks
    start_s = min([run.started_s, *(task.started_s for task in tasks)])
    end_s = max([run.finished_s or run.started_s, *(task.finished_s for task in tasks)])
    workers = sorted({task.worker for task in tasks}, key=natural)
    nodes = {task.worker: task.node for task in tasks if task.node}
    row_of = {worker: row for row, worker in enumerate(workers)}
    kinds = ("edit", "render", "assemble")
    return {
        "videos": videos,
        "kernels": list(kernels),
        "duration": round(end_s - start_s, 3),
        "workers": [[worker, nodes.get(worker, "")] for worker in workers],
        "tasks": [
            [
                row_of[task.worker],
                kinds.index(task.kind),
                task.video,
                task.segment,
                round(task.started_s - start_s, 3),
                round(task.finished_s - task.started_s, 3),
            ]
            for task in tasks
        ],
    }


def natural(name: str) -> list[tuple[int, int, str]]:
    """worker-10 after worker-9."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def section(anchor: str, title: str, body: str) -> str:
    return f'<section id="{anchor}" aria-labelledby="{anchor}-title"><h2 id="{anchor}-title">{text(title)}</h2>{body}</section>'


def table(heads: Iterable[str], rows: Sequence[str], *, label: str) -> str:
    """`heads` that begin with # are of numbers."""
    cells = "".join(
        f'<th scope="col" class="num">{text(head[1:])}</th>'
        if head.startswith("#")
        else f'<th scope="col">{text(head)}</th>'
        for head in heads
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(label)}">'
        f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def pill(status: object) -> str:
    return f'<span class="pill {text(status)}">{text(status)}</span>'


def link_name(video: VideoContents) -> str:
    return str(video.output_link).rsplit("/", 1)[-1]


def shortened(message: str, max_chars: int) -> str:
    return message if len(message) <= max_chars else f"{message[:max_chars]}… ({len(message):,} characters)"


def number_text(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def counted(count: int, noun: str, plural: str = "") -> str:
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def plain(value: Any) -> str:
    """A setting for the eye; rows of a manifest are in the table of videos."""
    if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
        return counted(len(value), "entry", "entries")
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def moment(video: VideoContents, frame: int) -> str:
    return clock(frame / video.fps) if video.fps else f"frame {frame}"


def clock(seconds: float) -> str:
    """`m:ss.s`, or `h:mm:ss` from an hour on."""
    if seconds >= 3600:
        return duration(seconds)
    tenths = round(seconds * 10)
    return f"{tenths // 600}:{tenths // 10 % 60:02}.{tenths % 10}"
