"""One worker process: builds its stages, then runs one task at a time and prefetches for the next.

Knows nothing of Ray or scheduling. Whatever a stage raises becomes an answer: only the death of the process, which no code
here can answer for, is left to the executor.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from pipeline.tasks import Stages, Task, TaskFailure

log = logging.getLogger(__name__)

MAX_MESSAGE_CHARS = 4000
DEVICE_ERRORS = ("CUDA error", "CUDA out of memory", "CUBLAS", "cuDNN", "CUDNN", "NCCL", "device-side assert")


@dataclass(frozen=True, kw_only=True)
class StagesSpec:
    """How a worker process builds its `Stages`.

    Args:
        factory: "module:callable".
        kwargs: its keyword arguments, small and picklable.
        num_threads: torch threads, fixed before anything is built so that results do not depend on the machine; None
            leaves torch alone (and unimported).
    """

    factory: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    num_threads: int | None = 1

    def __post_init__(self) -> None:
        if ":" not in self.factory:
            raise ValueError(f"factory is {self.factory!r}; needs 'module:callable'")


@dataclass(frozen=True, kw_only=True)
class Started:
    """The answer to `TaskWorker.start`; `failure` says why the stages could not be built."""

    node: str
    pid: int
    failure: TaskFailure | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one task. After `is_device_broken` the process is not to be used again."""

    started_at: float
    ended_at: float
    summary: dict[str, Any]
    failure: TaskFailure | None = None
    is_device_broken: bool = False


class TaskWorker:
    """Runs tasks one at a time. Building the stages is a call of its own: its failure is an answer, not a dead process."""

    def start(self, spec: StagesSpec) -> Started:
        self._prefetching: threading.Thread | None = None
        self._prefetched: Task | None = None
        failure = None
        try:
            if spec.num_threads is not None:
                os.environ["OMP_NUM_THREADS"] = str(spec.num_threads)
                import torch

                torch.set_num_threads(spec.num_threads)
            module, _, factory = spec.factory.partition(":")
            self._stages: Stages = getattr(import_module(module), factory)(**spec.kwargs)
        except (Exception, SystemExit) as error:  # the run ends with it as its message
            log.exception("the stages could not be built")
            failure = failure_of(error)
        return Started(node=socket.gethostname(), pid=os.getpid(), failure=failure)

    def run(self, task: Task, following: Task | None) -> Outcome:
        """Do `task`; meanwhile prefetch for `following` in a second thread, which ends before another task begins."""
        if self._prefetching is not None:
            self._prefetching.join()
        if following is not None and following != self._prefetched:
            self._prefetched = following
            self._prefetching = threading.Thread(target=self._prefetch, args=(following,), daemon=True)
            self._prefetching.start()
        summary: dict[str, Any] = {}
        failure, is_device_broken = None, False
        started_at = time.time()
        try:
            summary = self._stages.run(task)
        except (Exception, SystemExit) as error:  # a failure is data, and no task ends the process in good order
            log.exception("%s failed", task)
            failure, is_device_broken = failure_of(error), is_device_error(error)
        return Outcome(
            started_at=started_at,
            ended_at=time.time(),
            summary=summary,
            failure=failure,
            is_device_broken=is_device_broken,
        )

    def _prefetch(self, task: Task) -> None:
        try:
            self._stages.prefetch(task)
        except (Exception, SystemExit):  # only a hint: the task will meet the same error and be charged for it
            log.debug("prefetch for %s failed", task, exc_info=True)


def failure_of(error: BaseException) -> TaskFailure:
    return TaskFailure(error_type=type(error).__name__, message=(str(error) or repr(error))[:MAX_MESSAGE_CHARS])


def is_device_error(error: BaseException) -> bool:
    """After these a CUDA context is not to be trusted (out of memory leaves fragments, an illegal access poisons it)."""
    names = {base.__name__ for base in type(error).__mro__}
    return bool(names & {"AcceleratorError", "OutOfMemoryError"}) or any(mark in str(error) for mark in DEVICE_ERRORS)
