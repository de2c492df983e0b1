"""Turns what the executor tells into the run's live progress and its timeline. Knows neither Ray nor the store."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pipeline.events import Event, TaskFailed, TaskFinished, VideoQuarantined, WorkerDied, WorkerJoined
from pipeline.progress import Progress


@dataclass(kw_only=True)
class Watch:
    """Called by the executor with every event.

    Attributes:
        timeline: rows of `timeline.parquet`, one per finished task.
        generated: video -> segments generated in this run.
    """

    progress: Progress
    num_workers: int
    timeline: list[dict[str, Any]]
    generated: Counter[str] = field(default_factory=Counter)
    alive: set[str] = field(default_factory=set)

    def __call__(self, event: Event) -> None:
        match event:
            case WorkerJoined():
                self.alive.add(event.worker)
                self.progress.workers(len(self.alive), self.num_workers)
            case WorkerDied():
                self.alive.discard(event.worker)
                self.progress.workers(len(self.alive), self.num_workers)
                self.progress.note(f"worker {event.worker} died: {event.reason}")
            case TaskFinished():
                self.finished(event)
            case TaskFailed():
                charged = f"attempt {event.num_attempts}" if event.is_charged else "not charged"
                where = f"{event.task.video} {event.task.kind} {event.task.index}"
                self.progress.note(f"{where}: {event.failure.error_type}: {event.failure.message} ({charged})")
            case VideoQuarantined():
                self.progress.video_failed(event.task.video, event.failure.error_type, event.failure.message)

    def finished(self, event: TaskFinished) -> None:
        task = event.task
        self.timeline.append(
            {
                "video": task.video,
                "kind": task.kind,
                "segment": task.index,
                "worker": event.worker,
                "node": event.node,
                "started_at": event.started_at,
                "finished_at": event.ended_at,
            }
        )
        if task.kind == "edit":
            if event.summary["generated"]:
                self.generated[task.video] += 1
            self.progress.segment_done(task.video)
        elif task.kind == "render":
            self.progress.rendered(task.video)
        else:
            self.progress.video_done(task.video, event.summary["output"])
