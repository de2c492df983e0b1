"""One worker process, without Ray."""

import os
import threading
import time
from typing import Any

import pytest
import torch

from pipeline.tasks import Task
from pipeline.worker import MAX_MESSAGE_CHARS, StagesSpec, TaskWorker, is_device_error

EDITS = [Task("v", "edit", index, "/w/v") for index in range(4)]


class Recorder:
    """Stages that write down what is called when, and raise what they are told to."""

    def __init__(self, *, raises: BaseException | None = None, prefetch_s: float = 0.0) -> None:
        self.raises, self.prefetch_s = raises, prefetch_s
        self.calls: list[str] = []
        self.threads = torch.get_num_threads()

    def run(self, task: Task) -> dict[str, Any]:
        self.calls.append(f"run {task.index}")
        if self.raises is not None:
            raise self.raises
        return {"index": task.index}

    def prefetch(self, task: Task) -> None:
        time.sleep(self.prefetch_s)
        self.calls.append(f"prefetch {task.index}")
        if self.raises is not None:
            raise self.raises


def started(**kwargs) -> tuple[TaskWorker, Recorder]:
    worker = TaskWorker()
    answer = worker.start(StagesSpec(factory="tests.pipeline.test_worker:Recorder", kwargs=kwargs, num_threads=None))
    assert answer.failure is None
    assert answer.pid == os.getpid()
    return worker, worker._stages


def test_a_prefetch_has_ended_before_the_next_task_begins():
    worker, stages = started(prefetch_s=0.1)
    worker.run(EDITS[0], EDITS[1])
    worker.run(Task("w", "edit", 9, "/w/w"), None)
    assert stages.calls == ["run 0", "prefetch 1", "run 9"]


def test_nothing_is_prefetched_twice():
    worker, stages = started()
    worker.run(EDITS[0], EDITS[1])
    worker.run(Task("v", "render", 0, "/w/v"), EDITS[1])
    worker.run(EDITS[1], EDITS[2])
    worker.run(EDITS[2], None)
    assert sorted(stages.calls) == ["prefetch 1", "prefetch 2", "run 0", "run 0", "run 1", "run 2"]


@pytest.mark.parametrize(
    ("error", "error_type", "message", "is_device_broken"),
    [
        (ValueError("no such colour"), "ValueError", "no such colour", False),
        (KeyError(), "KeyError", "KeyError()", False),
        (SystemExit(3), "SystemExit", "3", False),
        (ValueError("x" * 10**6), "ValueError", "x" * MAX_MESSAGE_CHARS, False),
        (torch.OutOfMemoryError("CUDA out of memory"), "OutOfMemoryError", "CUDA out of memory", True),
        (RuntimeError("CUDA error: device-side assert"), "RuntimeError", "CUDA error: device-side assert", True),
    ],
)
def test_whatever_a_stage_raises_is_an_answer(error, error_type, message, is_device_broken):
    worker, _ = started(raises=error)
    outcome = worker.run(EDITS[0], EDITS[1])
    assert outcome.failure.error_type == error_type
    assert outcome.failure.message == message
    assert outcome.is_device_broken is is_device_broken
    assert outcome.summary == {}
    assert outcome.started_at <= outcome.ended_at


def test_a_host_out_of_memory_is_no_device_error():
    assert not is_device_error(MemoryError("cannot allocate"))


def test_stages_that_cannot_be_built_are_an_answer():
    answer = TaskWorker().start(StagesSpec(factory="tests.stages:UnbuildableStages", num_threads=None))
    assert (answer.failure.error_type, answer.failure.message) == (
        "FileNotFoundError",
        "weights of 'tiny' are missing",
    )
    answer = TaskWorker().start(StagesSpec(factory="no.such.module:Stages", num_threads=None))
    assert answer.failure.error_type == "ModuleNotFoundError"


def test_threads_are_fixed_before_the_stages_are_built(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # and back afterwards
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        worker = TaskWorker()
        worker.start(StagesSpec(factory="tests.pipeline.test_worker:Recorder", num_threads=1))
        assert worker._stages.threads == 1
        assert os.environ["OMP_NUM_THREADS"] == "1"
    finally:
        torch.set_num_threads(before)


def test_a_factory_needs_a_module():
    with pytest.raises(ValueError, match="factory is 'Recorder'; needs 'module:callable'"):
        StagesSpec(factory="Recorder")


def test_a_prefetch_runs_beside_the_task():
    begun = threading.Event()

    class Together(Recorder):
        def run(self, task: Task) -> dict[str, Any]:
            assert begun.wait(10)
            return {}

        def prefetch(self, task: Task) -> None:
            begun.set()

    worker, _ = started()
    worker._stages = Together()
    assert worker.run(EDITS[0], EDITS[1]).failure is None
