import io
import itertools
import json
import math
import subprocess
import sys
import threading

import pytest

from pipeline.progress import PLAIN_INTERVAL_S, Progress, Rate, duration, per_second


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def lines_of(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_rate_of_even_events_is_exact_and_forgets_a_slow_start():
    rate = Rate(since_s=0.0)
    assert rate.per_s(50.0, window=20) == 0.0
    now_s = 100.0
    rate.event(now_s, window=20)
    for _ in range(200):
        now_s += 0.5
        rate.event(now_s, window=20)
    assert rate.per_s(now_s, window=20) == pytest.approx(2.0, rel=0.01)


def test_rate_falls_while_nothing_happens():
    rate = Rate(since_s=0.0)
    for second in range(1, 41):
        rate.event(float(second), window=20)
    assert rate.per_s(40.5, window=20) == pytest.approx(1.0)
    assert rate.per_s(140.0, window=20) == pytest.approx(1 / (0.95 + 0.05 * 100))


def test_time_left_counts_generated_segments_only(clock):
    progress = Progress(stream=io.StringIO(), interactive=False, clock=clock)
    progress.video_planned("resumed", 1000, 900)
    progress.video_planned("skipped", 500, 500)
    assert progress.tally.left_s(clock.now_s) == math.inf
    for _ in range(10):
        clock.now_s += 2.0
        progress.segment_done("resumed")
    assert progress.tally.left_s(clock.now_s) == pytest.approx(90 * 2.0)


def test_a_failed_video_leaves_the_time_left(clock):
    progress = Progress(stream=io.StringIO(), interactive=False, clock=clock)
    progress.video_planned("good", 11)
    progress.video_planned("bad", 1000)
    clock.now_s += 3.0
    progress.segment_done("good")
    progress.video_failed("bad", "ValueError", "no")
    assert progress.tally.left_s(clock.now_s) == pytest.approx(10 * 3.0)


def test_preparing_and_loading_do_not_count_as_generation(clock):
    progress = Progress(stream=io.StringIO(), interactive=False, clock=clock)
    progress.video_planned("a", 3)
    clock.now_s += 600.0
    progress.workers(1, 1)
    clock.now_s += 4.0
    progress.segment_done("a")
    assert progress.tally.left_s(clock.now_s) == pytest.approx(8.0)


def test_a_further_run_counts_from_nothing(clock):
    progress = Progress(stream=io.StringIO(), interactive=False, clock=clock)
    for run in ("first", "second"):
        progress.begin(run)
        progress.video_planned("film", 2)
        progress.segment_done("film")
        assert (progress.tally.num_done, progress.tally.num_segments) == (1, 2)
        clock.now_s += 3600.0
        assert progress.tally.videos["film"].ended is None
        progress.video_done("film", "edited.mp4")
    progress.begin("third")
    assert progress.tally.num_segments == 0


def test_plain_lines_are_at_least_the_interval_apart_and_lose_no_failure_count(clock):
    stream = io.StringIO()
    progress = Progress(stream=stream, interactive=False, clock=clock)
    progress.stage("edit")
    written_at, before = [clock.now_s], 1
    for video in range(1000):
        clock.now_s += 0.1
        progress.video_planned(f"v{video}", 2)
        progress.segment_done(f"v{video}")
        progress.video_failed(f"v{video}", "DecodeError", "bad")
        if len(lines_of(stream)) > before:
            before = len(lines_of(stream))
            written_at.append(clock.now_s)
    gaps = [b - a for a, b in itertools.pairwise(written_at)]
    assert len(gaps) == pytest.approx(1000 * 0.1 / PLAIN_INTERVAL_S, abs=1)
    assert min(gaps) >= PLAIN_INTERVAL_S - 1e-6
    assert "failed: v" in lines_of(stream)[1]
    assert "more events" in lines_of(stream)[1]


def test_failures_are_named_before_finished_videos(clock):
    stream = io.StringIO()
    progress = Progress(stream=stream, interactive=False, clock=clock)
    progress.stage("edit")
    for video in range(9):
        progress.video_done(f"v{video}", "out.mp4")
    progress.video_failed("poison", "WorkerDied", "exit 137")
    clock.now_s += PLAIN_INTERVAL_S
    progress.tick()
    assert "failed: poison: WorkerDied: exit 137" in lines_of(stream)[-1]


def test_every_stage_has_its_line_and_the_end_is_always_told(clock):
    stream = io.StringIO()
    with Progress(stream=stream, interactive=False, clock=clock) as progress:
        progress.stage("prepare")
        progress.stage("prepare")
        progress.stage("edit")
        progress.video_planned("a", 4, 1)
        for _ in range(3):
            progress.segment_done("a")
        progress.video_done("a", "a.mp4")
        clock.now_s += 60.0
    lines = lines_of(stream)
    assert [line.split(" ", 2)[2].split(" | ")[0] for line in lines[:2]] == ["prepare", "edit"]
    assert lines[-1].endswith(
        "ended after 1:00: 1 of 1 videos done, 0 failed, 3 segments generated (0.05/s overall), 1 found finished"
    )


def test_text_from_outside_stays_on_its_line_and_moves_no_cursor(clock):
    for interactive in (False, True):
        stream = io.StringIO()
        with Progress(stream=stream, interactive=interactive, clock=clock) as progress:
            progress.video_failed("a[red]\x1b[2J", "E", "one\ntwo\r\x07")
        assert "\x1b[2J" not in stream.getvalue()
        assert "a[red] [2J" in stream.getvalue()
        assert "one two" in stream.getvalue()


def test_display_lists_few_videos_and_counts_the_rest_of_many(clock):
    stream = io.StringIO()
    progress = Progress(stream=stream, interactive=True, clock=clock)
    progress._console.width, progress._console.height = 80, 40
    for video in range(60):
        progress.video_planned(f"video-{video:02}", 10)
    for video in (3, 7):
        clock.now_s += 1.0
        progress.segment_done(f"video-{video:02}")
    progress.video_failed("video-50", "E", "m")
    progress.workers(3, 4)
    progress.stage("edit")
    with progress._console.capture() as capture:
        progress._console.print(progress.render())
    text = capture.get()
    assert "video-03" in text
    assert "video-07" in text
    assert "video-04" not in text
    assert "and 57 waiting, 1 failed" in text
    assert "2/600 segments" in text
    assert "workers 3/4" in text


def test_the_display_never_writes_to_standard_output():
    script = """
import json, sys, time
from pipeline.progress import Progress
with Progress(interactive=True) as progress:
    progress.stage("edit")
    progress.video_planned("a", 1)
    progress.segment_done("a")
    time.sleep(0.4)
    progress.video_done("a", "a.mp4")
print(json.dumps({"ok": True}))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == {"ok": True}
    assert "1/1" in run.stderr


def test_calls_from_many_threads_lose_nothing():
    with Progress(stream=io.StringIO(), interactive=True) as progress:
        progress.video_planned("a", 800)
        threads = [threading.Thread(target=lambda: [progress.segment_done("a") for _ in range(100)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert progress.tally.generated == 800


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (math.inf, "?")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("rate", "text"), [(45.44, "45.4/s"), (2, "2.00/s"), (0.005, "18.0/h")])
def test_per_second(rate, text):
    assert per_second(rate) == text
