"""What happens while tasks run, as plain records: for progress, reports and records. Times are seconds since the epoch."""

from dataclasses import dataclass
from typing import Any

from pipeline.tasks import Task, TaskFailure


@dataclass(frozen=True, kw_only=True)
class WorkerJoined:
    worker: str
    node: str
    pid: int
    at: float


@dataclass(frozen=True, kw_only=True)
class WorkerDied:
    worker: str
    node: str
    reason: str
    at: float


@dataclass(frozen=True, kw_only=True)
class TaskStarted:
    task: Task
    worker: str
    at: float


@dataclass(frozen=True, kw_only=True)
class TaskFinished:
    """`started_at` and `ended_at` by the worker's clock; `summary` is what the stage returned."""

    task: Task
    worker: str
    node: str
    started_at: float
    ended_at: float
    summary: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TaskFailed:
    """`num_attempts` are the failures charged to the task so far, this one included if `is_charged`."""

    task: Task
    worker: str
    failure: TaskFailure
    is_charged: bool
    num_attempts: int
    at: float


@dataclass(frozen=True, kw_only=True)
class VideoQuarantined:
    task: Task
    failure: TaskFailure
    num_attempts: int
    at: float


Event = WorkerJoined | WorkerDied | TaskStarted | TaskFinished | TaskFailed | VideoQuarantined
