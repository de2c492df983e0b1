"""The attempts charged to the tasks of one edit: a small JSON file each, so that a rerun knows what failed how often.

Knows the store and tasks; nothing of scheduling. Reading costs one listing per edit plus one read per charged attempt, so an
edit without failures costs the listing alone.
"""

import time
from typing import get_args

from pipeline.tasks import Task, TaskFailure, TaskKind
from retrieval.store import Store

KINDS: dict[str, TaskKind] = {kind: kind for kind in get_args(TaskKind)}


class AttemptLedger:
    """The failures charged to the tasks of one edit.

    Args:
        store: the `attempts` folder of the edit; it need not exist.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def record(self, task: Task, failure: TaskFailure, *, attempt: int, worker: str) -> None:
        """Charge `task` its `attempt`-th failure (counted from 1)."""
        self._store.write_json(
            f"{task.kind}-{task.index:05d}-{attempt}.json",
            {
                "kind": task.kind,
                "segment": task.index,
                "attempt": attempt,
                "error_type": failure.error_type,
                "message": failure.message,
                "worker": worker,
                "at": time.time(),
            },
        )

    def failures(self, *, video: str, edit_url: str) -> dict[Task, list[TaskFailure]]:
        """All charged failures by task, oldest first, as `Scheduler.add_video` takes them."""
        charged: dict[Task, list[tuple[int, TaskFailure]]] = {}
        for name in self._store.names(".json"):
            kind, segment, attempt = name.removesuffix(".json").split("-")
            if kind not in KINDS:
                raise ValueError(f"{self._store.url}/{name}: task kind {kind!r}; known are {', '.join(KINDS)}")
            row = self._store.read_json(name)
            failure = TaskFailure(error_type=row["error_type"], message=row["message"])
            charged.setdefault(Task(video, KINDS[kind], int(segment), edit_url), []).append((int(attempt), failure))
        return {
            task: [failure for _, failure in sorted(rows, key=lambda row: row[0])] for task, rows in charged.items()
        }

    def attempts(self, task: Task) -> list[TaskFailure]:
        """The failures charged to one task, oldest first."""
        return self.failures(video=task.video, edit_url=task.edit_url).get(task, [])

    def clear(self) -> int:
        """Forget every charged attempt, so that a quarantined edit is tried again. Returns how many there were."""
        names = self._store.names(".json")
        for name in names:
            self._store.delete(name)
        return len(names)
