"""Live progress of a run on standard error: a display in a terminal, rare plain lines in a log file.

Knows videos, segments and workers by name and number only; nothing of Ray, the store or what a segment is. Standard
output is never written: it belongs to `--json`. Fed by plain calls from any thread; a second thread redraws.
"""

import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

VideoStatus = Literal["waiting", "editing", "rendering", "done", "failed"]

MAX_LISTED_VIDEOS = 20
PLAIN_INTERVAL_S = 5.0
HEARTBEAT_S = 60.0
STYLES: dict[VideoStatus, str] = {
    "waiting": "dim",
    "editing": "cyan",
    "rendering": "blue",
    "done": "green",
    "failed": "bold red",
}


@dataclass
class Rate:
    """Exponentially weighted mean of the time between events, so that a slow start is forgotten.

    The first `window` events are a plain mean; after that each new gap weighs 1/window. A gap still open counts once it is
    longer than the mean: a stalled run shows a falling rate, not its last good one.
    """

    since_s: float
    num_events: int = 0
    mean_gap_s: float = math.inf

    def event(self, now_s: float, *, window: int) -> None:
        self.num_events += 1
        gap_s = now_s - self.since_s
        self.since_s = now_s
        weight = 1 / min(self.num_events, window)
        self.mean_gap_s = gap_s if self.num_events == 1 else (1 - weight) * self.mean_gap_s + weight * gap_s

    def per_s(self, now_s: float, *, window: int) -> float:
        """Events per second; 0 before the first event."""
        if not self.num_events:
            return 0.0
        weight = 1 / min(self.num_events + 1, window)
        open_gap_s = max(now_s - self.since_s, self.mean_gap_s)
        return 1 / max((1 - weight) * self.mean_gap_s + weight * open_gap_s, 1e-9)


@dataclass
class Video:
    """What is known of one video of the run. `already_done` segments were committed by an earlier run."""

    name: str
    rate: Rate
    num_segments: int = 0
    already_done: int = 0
    generated: int = 0
    num_rendered: int = 0
    ended: Literal["done", "failed"] | None = None

    @property
    def num_done(self) -> int:
        return self.already_done + self.generated

    @property
    def num_left(self) -> int:
        return 0 if self.ended else self.num_segments - self.num_done

    @property
    def status(self) -> VideoStatus:
        if self.ended:
            return self.ended
        if self.num_segments and not self.num_left:
            return "rendering"
        return "editing" if self.generated else "waiting"


@dataclass
class Tally:
    """The whole run, and the arithmetic over it."""

    started_s: float
    rate: Rate
    stage: str = ""
    videos: dict[str, Video] = field(default_factory=dict)
    workers_alive: int = 0
    workers_wanted: int = 0

    @property
    def window(self) -> int:
        """Workers finish in bursts: average over several rounds of all of them."""
        return max(20, 4 * self.workers_alive)

    @property
    def generated(self) -> int:
        return sum(video.generated for video in self.videos.values())

    @property
    def num_done(self) -> int:
        return sum(video.num_done for video in self.videos.values())

    @property
    def num_segments(self) -> int:
        return sum(video.num_segments for video in self.videos.values())

    @property
    def statuses(self) -> Counter[VideoStatus]:
        return Counter(video.status for video in self.videos.values())

    def video(self, name: str) -> Video:
        if name not in self.videos:
            self.videos[name] = Video(name=name, rate=Rate(since_s=self.started_s))
        return self.videos[name]

    def left_s(self, now_s: float) -> float:
        """Seconds until everything planned is generated; infinite while no rate is known, 0 when nothing is left."""
        num_left = sum(video.num_left for video in self.videos.values())
        rate = self.rate.per_s(now_s, window=self.window)
        return 0.0 if not num_left else num_left / rate if rate else math.inf


class Progress:
    """Progress of one run. A context manager; every method may be called from any thread.

    Args:
        stream: where to write; standard error if not given.
        interactive: a redrawn display rather than lines; if not given, whether `stream` is a terminal that can.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        *,
        stream: TextIO | None = None,
        interactive: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stream = stream if stream is not None else sys.stderr
        terminal = Console(file=self.stream)
        self.interactive = (
            terminal.is_terminal and not terminal.is_dumb_terminal if interactive is None else interactive
        )
        self.clock = clock
        now_s = clock()
        self.tally = Tally(started_s=now_s, rate=Rate(since_s=now_s))
        self._lock = threading.RLock()
        self._console = Console(file=self.stream, force_terminal=self.interactive or None, highlight=False)
        self._live: Live | None = None
        self._closed = threading.Event()
        self._ticker: threading.Thread | None = None
        self._events: list[tuple[int, str]] = []  # (urgency, text)
        self._has_news = False
        self._line_s = -math.inf

    def __enter__(self) -> Self:
        if self.interactive:
            self._live = Live(
                console=self._console,
                get_renderable=self.render,
                refresh_per_second=4,
                redirect_stdout=False,
                vertical_overflow="crop",
            )
            self._live.start()
        else:
            self._ticker = threading.Thread(target=self._tick_until_closed, name="progress", daemon=True)
            self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        if self._ticker is not None:
            self._ticker.join()
        if self._live is not None:
            self._live.stop()
        with self._lock:
            if self._events:
                self._write_line(self._status_line())
            how = "ended" if kind is None else f"stopped by {kind.__name__}"
            self._say(f"{how} after {duration(self.clock() - self.tally.started_s)}: {self._summary()}")

    def stage(self, name: str) -> None:
        with self._lock:
            if name == self.tally.stage:
                return
            self.tally.stage = name
            self._not_yet_generating()
            if not self.interactive:
                self._write_line(self._status_line())

    def begin(self, name: str) -> None:
        """A further run, whose first stage is `name`: the videos of the one before are forgotten."""
        with self._lock:
            self.tally.videos.clear()
            self.tally.rate = Rate(since_s=self.clock())
        self.stage(name)

    def video_planned(self, video: str, num_segments: int, already_done: int = 0) -> None:
        with self._lock:
            entry = self.tally.video(video)
            entry.num_segments, entry.already_done = num_segments, already_done
            entry.rate.since_s = self.clock()
            self._not_yet_generating()
            self._news()

    def segment_done(self, video: str) -> None:
        """One segment was generated now; call it for generated ones only, not for ones found finished."""
        with self._lock:
            entry, now_s = self.tally.video(video), self.clock()
            entry.generated += 1
            entry.rate.event(now_s, window=20)
            self.tally.rate.event(now_s, window=self.tally.window)
            self._news()

    def rendered(self, video: str) -> None:
        with self._lock:
            self.tally.video(video).num_rendered += 1
            self._news()

    def video_done(self, video: str, output: str) -> None:
        with self._lock:
            self.tally.video(video).ended = "done"
            self._event(f"done: {video} -> {output}", urgency=2, style="green")

    def video_failed(self, video: str, error_type: str, message: str) -> None:
        with self._lock:
            self.tally.video(video).ended = "failed"
            self._event(f"failed: {video}: {error_type}: {message}", urgency=0, style="red")

    def workers(self, alive: int, wanted: int) -> None:
        with self._lock:
            self.tally.workers_alive, self.tally.workers_wanted = alive, wanted
            self._not_yet_generating()
            self._news()

    def note(self, text: str) -> None:
        with self._lock:
            self._event(text, urgency=1)

    def _not_yet_generating(self) -> None:
        """Preparing and loading models is not generation: until the first segment, its clock starts anew."""
        if not self.tally.generated:
            self.tally.rate.since_s = self.clock()

    # Plain lines: events wait until a line may be written, so that a thousand failures do not flood a log;
    # if there are too many for one line, failures come before notes and finished videos.

    def _event(self, text: str, *, urgency: int, style: str = "") -> None:
        text = one_line(text)
        if self.interactive:
            self._console.print(Text(f"{time.strftime('%H:%M:%S')} {text}", style=style))
        else:
            self._events.append((urgency, text))
            self._news()

    def _news(self) -> None:
        self._has_news = True
        self.tick()

    def tick(self) -> None:
        """Write a plain line if there is something to say and the last one is old enough."""
        with self._lock:
            wait_s = PLAIN_INTERVAL_S if self._has_news else HEARTBEAT_S
            if not self.interactive and self.clock() - self._line_s >= wait_s:
                self._write_line(self._status_line())

    def _tick_until_closed(self) -> None:
        while not self._closed.wait(1.0):
            self.tick()

    def _write_line(self, text: str) -> None:
        self._line_s, self._has_news = self.clock(), False
        self._events.clear()
        self._say(text)

    def _say(self, text: str) -> None:
        if self.interactive:
            self._console.print(Text(text))
            return
        self.stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        self.stream.flush()

    def _status_line(self) -> str:
        tally, now_s = self.tally, self.clock()
        parts = [tally.stage] if tally.stage else []
        if tally.num_segments:
            parts.append(f"{tally.num_done}/{tally.num_segments} segments")
        if rate := tally.rate.per_s(now_s, window=tally.window):
            parts.append(f"{per_second(rate)}, {duration(tally.left_s(now_s))} left")
        if counts := tally.statuses:
            running = counts["editing"] + counts["rendering"]
            parts.append(
                f"videos: {counts['done']} done, {counts['failed']} failed, {running} running, {counts['waiting']} waiting"
            )
        if tally.workers_wanted:
            parts.append(f"workers {tally.workers_alive}/{tally.workers_wanted}")
        shown = [text for _, text in sorted(self._events, key=lambda event: event[0])[:3]]
        if len(self._events) > len(shown):
            shown = [*shown, f"and {len(self._events) - len(shown)} more events"]
        return " | ".join([*parts, *shown])

    def _summary(self) -> str:
        counts, elapsed_s = self.tally.statuses, max(self.clock() - self.tally.started_s, 1e-9)
        generated, found = self.tally.generated, sum(video.already_done for video in self.tally.videos.values())
        text = f"{counts['done']} of {len(self.tally.videos)} videos done, {counts['failed']} failed, {generated} segments generated"
        text += f" ({per_second(generated / elapsed_s)} overall)" if generated else ""
        return text + (f", {found} found finished" if found else "")

    # The terminal display.

    def render(self) -> RenderableType:
        """The whole display as it stands now."""
        with self._lock:
            now_s, width = self.clock(), self._console.width
            videos = list(self.tally.videos.values())
            room = max(1, min(MAX_LISTED_VIDEOS, self._console.height - 5))
            listed = videos
            if len(videos) > room:
                listed = [video for video in videos if video.status in ("editing", "rendering")][:room]
            rows = Table.grid(padding=(0, 1), expand=True)
            rows.add_column(max_width=max(12, width // 4), no_wrap=True, overflow="ellipsis")
            rows.add_column(ratio=1, min_width=8)
            for _ in range(3):
                rows.add_column(justify="right", no_wrap=True)
            rows.add_column(no_wrap=True, min_width=9)
            for video in listed:
                rows.add_row(*self._video_cells(video, now_s))
            parts: list[RenderableType] = [rows] if listed else []
            if rest := Counter(video.status for video in videos) - Counter(video.status for video in listed):
                text = ", ".join(f"{count} {status}" for status in STYLES if (count := rest[status]))
                parts.append(Text(f"{'and ' if listed else ''}{text}", style="dim"))
            parts.append(self._overall(now_s))
            return Group(*parts)

    def _video_cells(self, video: Video, now_s: float) -> list[RenderableType]:
        rate = 0.0 if video.ended or not video.num_left else video.rate.per_s(now_s, window=20)
        status: str = video.status
        if status == "rendering":
            status = f"rendering {min(video.num_rendered, video.num_segments)}/{video.num_segments}"
        return [
            Text(one_line(video.name)),
            bar(video.num_done, video.num_segments, is_failed=video.ended == "failed"),
            f"{video.num_done}/{video.num_segments}" if video.num_segments else "",
            per_second(rate) if rate else "",
            duration(video.num_left / rate) if rate else "",
            Text(status, style=STYLES[video.status]),
        ]

    def _overall(self, now_s: float) -> RenderableType:
        tally, counts = self.tally, self.tally.statuses
        figures = Table.grid(padding=(0, 1), expand=True)
        figures.add_column(no_wrap=True)
        figures.add_column(ratio=1, min_width=8)
        figures.add_column(justify="right", no_wrap=True)
        rate = tally.rate.per_s(now_s, window=tally.window)
        numbers = [f"{tally.num_done}/{tally.num_segments} segments"] if tally.num_segments else []
        if rate and tally.left_s(now_s):
            numbers += [per_second(rate), f"{duration(tally.left_s(now_s))} left"]
        figures.add_row(
            Text(one_line(tally.stage) or "starting", style="bold"),
            bar(tally.num_done, tally.num_segments, is_failed=False),
            Text("  ".join(numbers), style="bold"),
        )
        line = Text(f"videos {counts['done']}/{len(tally.videos)} done")
        if counts["failed"]:
            line.append(f"  {counts['failed']} failed", style="bold red")
        if tally.workers_wanted:
            short = tally.workers_alive < tally.workers_wanted
            line.append(f"  workers {tally.workers_alive}/{tally.workers_wanted}", style="yellow" if short else "")
        line.append(f"  elapsed {duration(now_s - tally.started_s)}", style="dim")
        return Group(figures, line)


def bar(num_done: int, num_total: int, *, is_failed: bool) -> RenderableType:
    if not num_total:
        return ""
    return ProgressBar(
        total=num_total,
        completed=num_done,
        complete_style="red" if is_failed else "cyan",
        finished_style="red" if is_failed else "green",
    )


def one_line(text: str, *, max_chars: int = 400) -> str:
    """`text` on one line without control characters: an id or message from outside cannot move the cursor."""
    text = "".join(char if char.isprintable() else " " for char in text)
    return text if len(text) <= max_chars else f"{text[: max_chars - 1]}…"


def per_second(rate: float) -> str:
    """A rate with about three digits, always with a point, so that columns of rates line up."""
    if rate < 0.01:
        return f"{rate * 3600:.1f}/h"
    return f"{rate:.1f}/s" if rate >= 10 else f"{rate:.2f}/s"


def duration(seconds: float) -> str:
    """`m:ss` or `h:mm:ss`; `?` if not known."""
    if not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
