"""The units of work of an edit and what becomes of them. Plain records; imports nothing.

An edit of one video is a DAG of tasks: one `edit` per segment (after the segments it remembers), one `render` per
segment (after its edit), one `assemble` (after all renders).
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

TaskKind = Literal["edit", "render", "assemble"]


@dataclass(frozen=True, order=True)
class Task:
    """`video` is the id within the run, `edit_url` the folder of the edit, `index` the segment (0 for assemble)."""

    video: str
    kind: TaskKind
    index: int
    edit_url: str


@dataclass(frozen=True, kw_only=True)
class TaskFailure:
    """Why an attempt at a task ended without a result."""

    error_type: str
    message: str


class Stages(Protocol):
    """What a worker does with tasks. Built once per worker process; owns the models and caches."""

    def run(self, task: Task) -> dict[str, Any]:
        """Do the task and commit its result to the store. Returns a small JSON-able summary (timings, sizes).

        Running a committed task again must be harmless and must not generate anything.
        """
        ...

    def prefetch(self, task: Task) -> None:
        """Load what `task` will need (source frames, committed memories). Called in a second thread; may do nothing."""
        ...
