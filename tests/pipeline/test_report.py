import base64
import hashlib
import io
import itertools
import json
import random
import re
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.report import write_report
from pipeline.report.contents import edit_folder
from pipeline.report.media import MEDIA_BYTES, evenly
from pipeline.run_record import FAILURE_SCHEMA, RESULT_SCHEMA, TIMELINE_SCHEMA
from retrieval.schema import PlannedMemory, PlannedSegment, plan_to_table
from retrieval.store import Store

STARTED_S = 1_760_000_000.0
HOSTILE = "<script>alert(1)</script>\"'&</title>"
FPS = 24.0

# A workspace as a run leaves it.


def scene(moment: float, hue: float, *, height: int = 96, width: int = 160) -> np.ndarray:
    """A street of stripes with a ball going round, `hue` of the ball in [0, 1]."""
    y, x = np.mgrid[0:height, 0:width]
    frame = np.stack(
        [90 + 60 * np.sin(x / 14 + moment), 110 + 40 * np.cos(y / 17), 130 + 50 * np.sin((x + y) / 25 - moment / 2)], -1
    )
    centre_x, centre_y = width * (0.5 + 0.35 * np.cos(moment)), height * (0.5 + 0.3 * np.sin(moment * 1.3))
    ball = (x - centre_x) ** 2 + (y - centre_y) ** 2 < (height / 6) ** 2
    frame[ball] = np.array([255 * hue, 60, 255 * (1 - hue)])
    return np.clip(frame, 0, 255).astype(np.uint8)


def pair(moment: float, *, height: int = 96, width: int = 160) -> np.ndarray:
    return np.concatenate(
        [scene(moment, 1.0, height=height, width=width), scene(moment, 0.1, height=height, width=width)], axis=1
    )


def jpeg(moment: float) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pair(moment)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def preview(num_frames: int) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "28", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 320, 96, "yuv420p"
        for number in range(num_frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pair(number / 9), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def put(store: Store, name: str, data: bytes) -> None:
    """As `Store.write_bytes`, without waiting for the disk at every one of thousands of files."""
    path = Path(store.path(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def make_plan(num_segments: int, *, frames: int = 17, shot_segments: int = 4, seed: int = 0) -> list[PlannedSegment]:
    rng, plan = random.Random(seed), []
    for index in range(num_segments):
        shot = index // shot_segments
        earlier = rng.sample(range(index), min(3, index))
        memory = [
            PlannedMemory(
                segment=one, role="retrieved", score=rng.uniform(0.6, 0.99), kernel=(1, 4 if rank < 2 else 8, 4)
            )
            for rank, one in enumerate(earlier)
        ]
        if index % shot_segments:
            memory.insert(0, PlannedMemory(segment=index - 1, role="previous", score=0.97, kernel=(1, 2, 2)))
        plan.append(
            PlannedSegment(
                segment=index,
                shot=shot,
                start_frame=index * frames,
                end_frame=(index + 1) * frames,
                seed=index,
                memory=tuple(memory),
            )
        )
    return plan


@dataclass
class Workspace:
    store: Store
    rows: list[dict] = field(default_factory=list)
    failures: list[dict] = field(default_factory=list)
    timeline: list[dict] = field(default_factory=list)
    clock_s: float = STARTED_S + 5

    def add(
        self,
        name: str,
        status: str,
        *,
        segments: int = 0,
        edit_id: str | None = "e0e0e0e0",
        instruction: str = "make the ball blue",
        preview_bytes: bytes | None = None,
        thumbnails: bool = True,
        error: tuple[str, str] | None = None,
        before_run: int = 0,
        folder: str | None = None,
        workers: int = 3,
    ) -> Store | None:
        """A video; its first `before_run` segments were done by an earlier run. "quarantined": the first 3 were done."""
        folder = folder or name
        url = f"/elsewhere/videos/{folder}/edits/{edit_id}" if edit_id else None
        is_done = status in ("done", "skipped")
        self.rows.append(
            {
                "id": name,
                "source": f"s3://films/{name}.mp4",
                "status": status,
                "edit_id": edit_id,
                "edit_url": url,
                "output": f"{url}/edited.mp4" if is_done else None,
                "segments": segments,
                "generated_segments": segments - before_run if is_done else 0,
                "error_type": error[0] if error else None,
                "error": error[1] if error else None,
                "seconds": 12.5,
            }
        )
        if edit_id is None:
            return None
        edit = self.store / f"videos/{folder}/edits/{edit_id}"
        spec = {"turns": [{"instruction": instruction}], "preset": "tiny", "seed": 0}
        plan = make_plan(segments)
        edit.write_json("spec.json", {"spec": spec, "preset": "tiny", "prepared": "aa"})
        edit.write_table("plan.parquet", plan_to_table(plan))
        if thumbnails:
            for row in plan[:: max(1, len(plan) // 80)]:
                put(edit, f"chunks/segment-{row.segment:05d}.jpg", jpeg(row.segment / 2))
        if preview_bytes:
            edit.write_bytes("preview.mp4", preview_bytes)
        committed = plan if is_done else plan[:3]
        for row in committed:
            put(edit, f"latents/segment-{row.segment:05d}.parquet", b"not looked at")
            put(edit, f"latents/segment-{row.segment:05d}.json", b"{}")
        self.work(name, committed[before_run:], is_done=is_done, workers=workers)
        if is_done:
            record = {
                "size": "source",
                "output": "edited.mp4",
                "container": "mp4",
                "container_reason": None,
            }
            record |= {"notes": [], "fps": FPS, "num_frames": plan[-1].end_frame, "segments": [{"segment": 0}]}
            edit.write_json("record.json", record)
            edit.write_bytes("edited.mp4", b"not looked at")
        return edit

    def work(self, video: str, plan: list[PlannedSegment], *, is_done: bool, workers: int) -> None:
        rng, begun_s = random.Random(len(plan)), self.clock_s

        def task(kind: str, segment: int, worker: int, started_s: float, took_s: float) -> float:
            row = {"video": video, "kind": kind, "segment": segment, "worker": f"worker-{worker}", "node": "10.0.0.7"}
            self.timeline.append({**row, "started_at": started_s, "finished_at": started_s + took_s})
            self.clock_s = max(self.clock_s, started_s + took_s)
            return started_s + took_s

        for place, row in enumerate(plan):
            ended_s = task(
                "edit", row.segment, place % workers, begun_s + (place // workers) * 2.0, rng.uniform(1, 1.7)
            )
            task("render", row.segment, place % workers, ended_s, 0.3)
        if is_done and plan:
            task("assemble", 0, 0, self.clock_s, 2.0)

    def write(self, run_id: str = "run-1", **options) -> str:
        folder = self.store / "runs" / run_id
        command = {"workspace": "/ws", "preset": "tiny", "note": HOSTILE, "rows": [{"id": "a"}, {"id": "b"}]}
        run = {"run_id": run_id, "command": command, "started_at": STARTED_S, "finished_at": self.clock_s + 3}
        folder.write_json("run.json", {**run, "versions": {"torch": "2.9"}})
        folder.write_table("results.parquet", pa.Table.from_pylist(self.rows, schema=RESULT_SCHEMA))
        folder.write_table("failures.parquet", pa.Table.from_pylist(self.failures, schema=FAILURE_SCHEMA))
        folder.write_table("timeline.parquet", pa.Table.from_pylist(self.timeline, schema=TIMELINE_SCHEMA))
        write_report(self.store, run_id, **options)
        return folder.read_bytes("report.html").decode()


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(Store(str(tmp_path / "ws")))


def mixed(workspace: Workspace, *, preview_bytes: bytes | None = None) -> Workspace:
    workspace.add("street", "done", segments=12, preview_bytes=preview_bytes, before_run=4)
    workspace.add(HOSTILE, "done", segments=1, instruction=HOSTILE, folder="odd-name")
    workspace.add("poison", "quarantined", segments=8, error=("WorkerDied", f"exit 137 {HOSTILE}"))
    workspace.add("empty", "failed", edit_id=None, error=("SourceEmpty", "0 bytes"))
    workspace.failures += [
        {"video": "poison", "stage": "edit", "start_frame": 51, "end_frame": 68, "error_type": "WorkerDied", "message": HOSTILE, "attempts": 3},
        {"video": "empty", "stage": "prepare", "start_frame": None, "end_frame": None, "error_type": "SourceEmpty", "message": "0 bytes", "attempts": 1},
    ]  # fmt: skip
    return workspace


# Reading the page.

VOID = {"meta", "input", "link", "br", "img", "image", "use", "rect", "path"}


class Page(HTMLParser):
    """Checks that tags balance, and keeps what the tests ask about."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def with_class(self, name: str) -> list[tuple[str, dict[str, str | None]]]:
        return [(tag, attrs) for tag, attrs in self.tags if name in (attrs.get("class") or "").split()]

    def by(self, attribute: str) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.tags if attribute in attrs]

    @property
    def data(self) -> dict:
        return json.loads(next(text for text in self.scripts if text.startswith('{"videos"')))


def test_page_needs_nothing_from_outside(workspace):
    markup = mixed(workspace, preview_bytes=preview(5)).write()
    page = Page(markup)
    for tag, attrs in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "srcset", "poster", "action", "data"):
            address = attrs.get(name) or "#"
            assert address.startswith(("#", "data:image/jpeg;base64,", "../../videos/")), (tag, name, address[:80])
    style, script = (Path("pipeline/report") / name for name in ("page.css", "page.js"))
    assert not re.search(r"url\(|@import|//", style.read_text())
    assert not re.search(r"https?:|fetch\(|XMLHttp|import\(", script.read_text())


def test_only_our_script_may_run(workspace):
    page = Page(mixed(workspace).write())
    runnable = [attrs for tag, attrs in page.tags if tag == "script" and "type" not in attrs]
    assert len(runnable) == 1
    digest = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
    policy = next(attrs["content"] for attrs in page.by("http-equiv"))
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_text_from_outside_is_only_ever_text(workspace):
    markup = mixed(workspace).write()
    page = Page(markup)
    assert "<script>alert" not in markup
    assert not any("alert(1)" in text for text in page.scripts if not text.startswith('{"videos"'))
    assert page.data["videos"][1]["id"] == HOSTILE
    # id in table, heading, failure messages, instruction, setting
    assert page.text.count(HOSTILE) >= 6


def test_counts_agree_with_the_tables(workspace):
    page = Page(mixed(workspace).write())
    assert len(page.by("data-status")) == 4
    sections = page.with_class("video")
    assert [attrs["id"] for _, attrs in sections] == ["video-0", "video-1", "video-2", "video-3"]
    figures = dict(
        re.findall(
            r"<dt>([^<]+)</dt><dd>([^<]+)</dd>", Path(workspace.store.path("runs/run-1/report.html")).read_text()
        )
    )
    assert figures["Videos"] == "4"
    assert figures["Done"] == "2"
    assert figures["Quarantined"] == "1"
    assert figures["Failed"] == "1"
    assert figures["Segments"] == "21"
    assert figures["Generated in this run"] == "9"
    assert page.text.count("WorkerDied") == 3  # in the table of videos, at the video, in the table of failures
    assert [len(video["segments"]) for video in page.data["videos"]] == [12, 1, 8, 0]


def test_every_anchor_leads_somewhere_and_ids_are_unique(workspace):
    page = Page(mixed(workspace, preview_bytes=preview(3)).write())
    ids = [attrs["id"] for attrs in page.by("id")]
    assert len(ids) == len(set(ids))
    for attrs in page.by("href"):
        if attrs["href"].startswith("#"):
            assert attrs["href"][1:] in ids


def test_graph_carries_the_frozen_plan(workspace):
    page = Page(mixed(workspace).write())
    kernels = page.data["kernels"]
    drawn = page.data["videos"][0]["segments"]
    for planned, (segment, shot, start, end, state, memory) in zip(make_plan(12), drawn, strict=True):
        assert (segment, shot, start, end) == (planned.segment, planned.shot, planned.start_frame, planned.end_frame)
        assert state == 0
        assert [
            (one, "previous" if is_previous else "retrieved", kernels[kernel]) for one, is_previous, _, kernel in memory
        ] == [(item.segment, item.role, "×".join(map(str, item.kernel))) for item in planned.memory]
        assert [score / 1000 for _, _, score, _ in memory] == pytest.approx(
            [item.score for item in planned.memory], abs=6e-4
        )


def test_unfinished_video_shows_what_is_done_and_what_failed(workspace):
    mixed(workspace)
    edit = workspace.store / "videos/poison/edits/e0e0e0e0"
    (edit / "latents").write_json("segment-00004.json", {"worker": "written, not committed"})
    (edit / "attempts").write_json("edit-00003-1.json", {})
    (edit / "attempts").write_json("edit-00003-2.json", {})
    page = Page(workspace.write())
    assert [row[4] for row in page.data["videos"][2]["segments"]] == [0, 0, 0, 2, 1, 1, 1, 1]
    assert "3 generated so far" in page.text
    assert "2 failed attempts" in page.text


def test_timeline_shows_this_run_only(workspace):
    page = Page(mixed(workspace).write())
    tasks = page.data["tasks"]
    for video, segments, is_assembled in ((0, range(4, 12), True), (2, range(3), False)):
        for kind in (0, 1):
            assert sorted(row[3] for row in tasks if row[1:3] == [kind, video]) == list(segments)
        assert [row[3] for row in tasks if row[1:3] == [2, video]] == [0] * is_assembled
    starts = [start for *_, start, _ in tasks]
    assert starts == sorted(starts)
    assert all(start >= 0 and start + took <= page.data["duration"] for *_, start, took in tasks)
    assert page.data["workers"] == [[f"worker-{number}", "10.0.0.7"] for number in range(3)]


def test_links_follow_a_moved_workspace_and_escape(workspace):
    workspace.add("a", "done", segments=1, folder="name with #hash")
    page = Page(workspace.write())
    links = {attrs["href"] for attrs in page.by("href") if attrs["href"].startswith("..")}
    assert links == {"../../videos/name%20with%20%23hash/edits/e0e0e0e0/edited.mp4"}
    assert edit_folder({"id": "v", "edit_id": "e", "edit_url": None}) == "videos/v/edits/e"
    assert edit_folder({"id": "v", "edit_id": None, "edit_url": None}) is None


def test_no_videos_and_only_failures(workspace):
    page = Page(workspace.write())
    assert "This run has no videos." in page.text
    for number in range(12):
        workspace.add(f"bad-{number}", "failed", edit_id=None, error=("SourceMissing", "does not exist"))
    page = Page(workspace.write())
    assert len(page.with_class("video")) == 12
    assert any(attrs.get("id") == "filter" for attrs in page.by("type"))


def test_run_still_going(workspace):
    mixed(workspace).write()
    folder = workspace.store / "runs/run-1"
    run = {"run_id": "run-1", "command": {}, "started_at": STARTED_S, "finished_at": None}
    folder.write_json("run.json", run)
    write_report(workspace.store, "run-1")
    assert "not finished when this report was written" in folder.read_bytes("report.html").decode()


def test_missing_and_broken_media_cost_nothing_else(workspace):
    edit = workspace.add("plain", "done", segments=3, thumbnails=False)
    assert edit is not None
    (edit / "chunks").write_bytes("segment-00001.jpg", b"no picture")
    page = Page(workspace.write())
    assert "There is no preview of this video." in page.text
    assert not page.with_class("film")


def test_broken_record_is_told_and_the_others_are_shown(workspace):
    mixed(workspace)
    (workspace.store / "videos/street/edits/e0e0e0e0").write_bytes("record.json", b"{")
    page = Page(workspace.write())
    assert "cannot be read" in page.text
    assert len(page.data["videos"][1]["segments"]) == 1


def test_size_stays_within_the_budget_and_says_what_is_left_out(workspace):
    rng = np.random.default_rng(0)
    for number in range(6):
        workspace.add(f"v{number}", "done", segments=40, preview_bytes=rng.bytes(150_000))
    page_bytes = workspace.write(media_bytes=900_000)
    page = Page(page_bytes)
    plans = len(json.dumps(page.data))
    assert len(page_bytes.encode()) < 900_000 + plans + 120_000
    previews = [attrs["id"] for tag, attrs in page.tags if tag == "script" and "id" in attrs and attrs["id"] != "data"]
    assert previews == ["preview-0", "preview-1"]
    assert page.text.count("The preview is left out") == 6 - len(previews)
    films = list(page.by("data-segment"))
    assert 6 <= len(films) < 240


def test_long_video_has_sixty_thumbnails_evenly(workspace):
    workspace.add("film", "done", segments=850)
    markup = workspace.write()
    page = Page(markup)
    shown = [int(attrs["data-segment"]) for attrs in page.by("data-segment")]
    assert len(shown) == 60
    assert shown[0] == 0
    assert max(b - a for a, b in itertools.pairwise(shown)) <= 20
    assert "60 of 850 segments" in page.text
    assert len(markup.encode()) < MEDIA_BYTES


@pytest.mark.parametrize(("count", "chosen"), [(5, [0, 1, 2, 3]), (3, [0, 2, 3]), (1, [0]), (0, [])])
def test_evenly(count, chosen):
    assert evenly([0, 1, 2, 3], count) == chosen


# In a browser.

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """
window.addEventListener("load", async () => {
  const until = async test => { while (!test()) await new Promise(resolve => setTimeout(resolve, 20)); };
  const before = document.getElementById("settings").offsetTop;
  const section = document.getElementById("video-0"), video = section.querySelector("video");
  await until(() => section.panel && document.querySelector(".task") && video.readyState > 1);
  const drift = document.getElementById("settings").offsetTop - before;
  const ready = video.readyState;
  section.panel.graph.pick(9);
  const sought = new Promise(resolve => video.addEventListener("seeked", resolve));
  section.querySelectorAll("[data-film] button")[6].click();
  await sought;
  const at = video.currentTime;
  await video.play();
  await until(() => video.currentTime > at + 0.1);
  video.pause();
  section.querySelector("[data-view=wipe]").click();
  const canvas = section.querySelector("canvas");
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  navigator.sendBeacon("/seen", JSON.stringify({
    ready, at, width: video.videoWidth, seconds: video.duration, canvas: [canvas.width, canvas.height],
    colours: new Set(pixels).size, arcs: section.querySelectorAll(".arc").length,
    lit: section.querySelectorAll(".arc.in").length, tasks: document.querySelectorAll(".task").length,
    drift, detail: section.querySelector(".detail").textContent,
  }));
});
"""


def chromium(folder: Path, *arguments: str) -> list[str]:
    quiet = ["quic", "background-networking", "component-update", "sync", "gpu"]
    return [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--no-first-run",
        *(f"--disable-{name}" for name in quiet),
        "--enable-logging=stderr",
        "--autoplay-policy=no-user-gesture-required",
        "--window-size=1280,9000",
        f"--user-data-dir={folder}",
        *arguments,
    ]


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_in_a_browser_the_video_plays_and_the_graph_answers(workspace, tmp_path):
    """Nothing is logged to the console either. The page's policy is kept; only the probe and its answer are let in."""
    markup = mixed(workspace, preview_bytes=preview(48)).write()
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    markup = markup.replace("script-src ", f"connect-src 'self'; script-src 'sha256-{digest}' ", 1)
    markup = markup.replace("</body>", f"<script>{PROBE}</script></body>")
    seen: dict = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(markup.encode())

        def do_POST(self) -> None:
            seen.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.timeout = 1.0
        url = f"http://127.0.0.1:{server.server_port}/"
        log = (tmp_path / "log").open("w+")
        browser = subprocess.Popen(chromium(tmp_path / "profile", "--remote-debugging-port=0", url), stderr=log)
        try:
            deadline_s = time.monotonic() + 30
            while not seen and time.monotonic() < deadline_s:
                server.handle_request()
        finally:
            browser.terminate()
            browser.wait(timeout=10)
    log.seek(0)
    logged = log.read()
    assert seen, logged
    assert "CONSOLE" not in logged
    plan = make_plan(12)
    assert seen["ready"] > 1
    assert seen["width"] == 320
    assert seen["seconds"] == pytest.approx(2.0, abs=0.1)
    assert seen["at"] == pytest.approx((6 * 17 + 0.5) / (12 * 17) * 2.0, abs=0.05)
    assert seen["canvas"] == [160, 96]
    assert seen["colours"] > 50
    assert seen["arcs"] == sum(len(row.memory) for row in plan)
    assert seen["lit"] == len(plan[6].memory)
    assert seen["tasks"] > 10
    assert abs(seen["drift"]) < 40, "a link into the page lands elsewhere once what is above it is drawn"
    for item in plan[6].memory:
        assert f"{item.segment}score {item.score:.3f}kernel {'×'.join(map(str, item.kernel))}" in seen["detail"]
