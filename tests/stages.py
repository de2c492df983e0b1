"""Stages that commit like real ones but compute nothing: for tests and benchmarks of what schedules and executes.

The bytes of a segment are a hash over its name and the committed bytes of what it depends on, so a wrong order or a missing
dependency shows in the result. Every generation is written to a log, so that a second one shows too. What a task is to do
beyond that (sleep, raise, kill its process) stands in the edit's `script.json`.
"""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.ledger import AttemptLedger
from pipeline.scheduler import Scheduler, VideoPlan
from pipeline.tasks import Task, TaskKind
from retrieval.store import Store


def write_script(
    edit_url: str,
    dependencies: list[tuple[int, ...]],
    *,
    sleep_s: float | list[float] = 0.0,
    deeds: Mapping[str, str] | None = None,
) -> None:
    """What `ScriptedStages` does in an edit. `deeds` maps "edit-3", "render-0", "assemble-0" or "prefetch-3" to a deed."""
    sleeps = sleep_s if isinstance(sleep_s, list) else [sleep_s] * len(dependencies)
    Store(edit_url).write_json(
        "script.json", {"dependencies": dependencies, "sleep_s": sleeps, "deeds": dict(deeds or {})}
    )


class ScriptedStages:
    """Does what the script of an edit says.

    Args:
        ready_folder: if given, building waits until `num_workers` workers are at this point, so that all start together.
    """

    def __init__(self, *, ready_folder: str | None = None, num_workers: int = 1) -> None:
        self._scripts: dict[str, dict] = {}
        if ready_folder is not None:
            folder = Path(ready_folder)
            (folder / str(os.getpid())).touch()
            while len(list(folder.iterdir())) < num_workers:
                time.sleep(0.01)

    def run(self, task: Task) -> dict[str, Any]:
        store = Store(task.edit_url)
        script = self._script(task)
        log_line(store, "begin", task)  # before the look at the store, see generated_again
        if is_committed(store, task):
            return {"generated": False}
        self._do(script["deeds"].get(f"{task.kind}-{task.index}"), store)
        if task.kind == "edit":
            time.sleep(script["sleep_s"][task.index])
            needed = [read(store, "edit", other) for other in script["dependencies"][task.index]]
        elif task.kind == "render":
            needed = [read(store, "edit", task.index)]
        else:
            needed = [read(store, "render", index) for index in range(len(script["dependencies"]))]
        name = f"{task.video}/{task.kind}/{task.index}:".encode()
        store.write_bytes(data_name(task.kind, task.index), hashlib.sha512(name + b"".join(needed)).digest() * 16)
        store.write_json(commit_name(task.kind, task.index), {"pid": os.getpid()})
        log_line(store, "commit", task)
        return {"generated": True}

    def prefetch(self, task: Task) -> None:
        store = Store(task.edit_url)
        self._do(self._script(task)["deeds"].get(f"prefetch-{task.index}"), store)
        log_line(store, "prefetch", task)

    def _script(self, task: Task) -> dict:
        if task.edit_url not in self._scripts:
            self._scripts[task.edit_url] = Store(task.edit_url).read_json("script.json")
        return self._scripts[task.edit_url]

    def _do(self, deed: str | None, store: Store) -> None:
        deed, _, argument = (deed or "").partition(" ")
        if deed == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif deed == "exit":
            raise SystemExit(3)
        elif deed == "raise":
            raise ValueError(argument)
        elif deed == "raise-once" and not store.exists("raised"):
            store.write_bytes("raised", b"")
            raise RuntimeError(argument)
        elif deed == "sleep":
            time.sleep(float(argument))
        elif deed == "allocate":
            self.held = bytearray(int(argument))
            time.sleep(30)


class UnsendableStages:
    """Answers with what cannot leave its process."""

    def run(self, task: Task) -> dict[str, Any]:
        return {"generated": threading.Lock()}

    def prefetch(self, task: Task) -> None:
        pass


class UnbuildableStages:
    """What a missing weight file looks like."""

    def __init__(self) -> None:
        raise FileNotFoundError("weights of 'tiny' are missing")


class StagesOfKilledProcess:
    """A process that never gets through building its stages."""

    def __init__(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def data_name(kind: TaskKind, index: int) -> str:
    return f"{kind}s/{index:05d}.bin"


def commit_name(kind: TaskKind, index: int) -> str:
    return f"{kind}s/{index:05d}.json"


def read(store: Store, kind: TaskKind, index: int) -> bytes:
    if not store.exists(commit_name(kind, index)):
        raise AssertionError(f"{kind} {index} is needed before it is committed")
    return store.read_bytes(data_name(kind, index))


def is_committed(store: Store, task: Task) -> bool:
    return store.exists(commit_name(task.kind, task.index))


def log_line(store: Store, what: str, task: Task) -> None:
    """One atomic append, whoever writes at the same time."""
    line = f"{what} {task.kind} {task.index} {os.getpid()}\n".encode()
    descriptor = os.open(store.path("generation.log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line)
    os.close(descriptor)


def done_tasks(edit_url: str) -> set[tuple[TaskKind, int]]:
    """What is committed, as `Scheduler.add_video` takes it."""
    kinds: tuple[TaskKind, ...] = ("edit", "render", "assemble")
    return {
        (kind, int(name.removesuffix(".json")))
        for kind in kinds
        for name in (Store(edit_url) / f"{kind}s").names(".json")
    }


def add_from_store(scheduler: Scheduler, video: str, edit_url: str) -> None:
    """Fill a scheduler from the store alone, as every rerun does."""
    script = Store(edit_url).read_json("script.json")
    plan = VideoPlan(
        video=video,
        edit_url=edit_url,
        dependencies=tuple(tuple(earlier) for earlier in script["dependencies"]),
        costs=tuple(sleep_s + 0.001 for sleep_s in script["sleep_s"]),
    )
    failures = AttemptLedger(Store(edit_url) / "attempts").failures(video=video, edit_url=edit_url)
    scheduler.add_video(plan, done=done_tasks(edit_url), failures=failures)


def result_bytes(edit_url: str) -> dict[str, bytes]:
    """Every committed data file of an edit."""
    store = Store(edit_url)
    return {
        data_name(kind, index): store.read_bytes(data_name(kind, index)) for kind, index in sorted(done_tasks(edit_url))
    }


def generation_log(edit_url: str) -> list[tuple[str, int]]:
    """("begin|commit|prefetch edit 3", process), in the order in which they were written."""
    store = Store(edit_url)
    lines = store.read_bytes("generation.log").decode().splitlines() if store.exists("generation.log") else []
    return [(line.rsplit(" ", 1)[0], int(line.rsplit(" ", 1)[1])) for line in lines]


def num_commits(edit_url: str) -> int:
    return sum(line.startswith("commit") for line, _ in generation_log(edit_url))


def generated_again(edit_url: str) -> list[str]:
    """Tasks whose generation began after they were committed.

    A process writes `begin` and then looks at the store, and writes `commit` after committing: one that begins after a
    commit must see it and stop. Two that overlap (a driver was killed, its worker still ends its segment) are no fault.
    """
    committed: set[str] = set()
    began_late: set[tuple[str, int]] = set()
    again = []
    for line, process in generation_log(edit_url):
        what, task = line.split(" ", 1)
        if what == "begin" and task in committed:
            began_late.add((task, process))
        elif what == "commit":
            again.extend([task] if (task, process) in began_late else [])
            committed.add(task)
    return again
