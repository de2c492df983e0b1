"""Runs the tasks of a `Scheduler` on Ray actors of our own: one door to Ray, one `ray.wait` loop.

Knows workers, nodes and how they die; nothing of videos, models or what a task does (a `Stages` does it). Ray restarts and
retries nothing (`max_restarts=0, max_task_retries=0`): this loop rebuilds what died and decides who is to blame.

- One task in flight per worker, so the running task alone is charged when its process dies. What a worker prefetches
  belongs to the same video and has ended before it starts another task.
- A worker that dies gets an inquest: if its node is gone (or was preempted) nobody is charged, else the task is. Ray may
  report the death of a process before that of its node, so the verdict waits `node_grace_s`; only that one task waits.
- `ActorUnavailableError` says nothing yet ("may or may not have been executed"): the worker is asked again until it is
  known to be dead, its node is known to be gone, or `unavailable_s` have passed.
- Everything that matters is in the store before a task counts as done. Kill this process at any moment and fill a new
  scheduler from the store.
"""

import logging
import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError, RayTaskError

from pipeline.events import (
    Event,
    TaskFailed,
    TaskFinished,
    TaskStarted,
    VideoQuarantined,
    WorkerDied,
    WorkerJoined,
)
from pipeline.ledger import AttemptLedger
from pipeline.scheduler import Scheduler, VideoStatus
from pipeline.tasks import Task, TaskFailure
from pipeline.worker import MAX_MESSAGE_CHARS, Outcome, StagesSpec, Started, TaskWorker
from retrieval.store import Store

log = logging.getLogger(__name__)

IDLE_WAIT_S = 1.0
INQUEST_WAIT_S = 0.2
POOL_CHECK_S = 5.0
SHORT_POOL_S = 15.0
"""How long workers may take to be placed before a smaller pool is called small."""
MAX_BLAMELESS = 20
"""Losses of one task, on nodes that live, for which nobody could be blamed; the next ones are charged."""


@dataclass(frozen=True, kw_only=True)
class WorkerPool:
    """What workers are and how many.

    Args:
        stages: what each worker process builds.
        num_workers: None for as many as the cluster holds, followed as nodes join.
        num_cpus, num_gpus: what one worker reserves; fractions share.
    """

    stages: StagesSpec
    num_workers: int | None = None
    num_cpus: float = 1.0
    num_gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.num_workers is not None and self.num_workers < 1:
            raise ValueError(f"num_workers is {self.num_workers}; needs at least 1")
        if self.num_cpus < 0 or self.num_gpus < 0 or not self.num_cpus + self.num_gpus:
            raise ValueError(
                f"num_cpus is {self.num_cpus} and num_gpus {self.num_gpus}; a worker must reserve something"
            )


@dataclass(frozen=True, kw_only=True)
class ExecutionResult:
    """`finished` has one small record per task that ran in this run, in the order in which they ended."""

    videos: list[VideoStatus]
    finished: list[TaskFinished]


class WorkersUnavailable(RuntimeError):
    """No worker can be built, so no work can proceed. The message says why."""


def ledger_of_edit(task: Task) -> AttemptLedger:
    return AttemptLedger(Store(task.edit_url) / "attempts")


def run_tasks(
    scheduler: Scheduler,
    pool: WorkerPool,
    *,
    on_event: Callable[[Event], None] = lambda event: None,
    ledger_for: Callable[[Task], AttemptLedger] = ledger_of_edit,
    task_timeout_s: float = 3600.0,
    node_grace_s: float = 2.0,
    unavailable_s: float = 60.0,
    start_timeout_s: float = 1800.0,
    max_start_failures: int = 3,
) -> ExecutionResult:
    """Run everything the scheduler has, until every video is done or quarantined. Ray must be initialised.

    A video that fails is data in the result, never an exception. However this ends, its workers are killed.

    Args:
        on_event: called in this thread as things happen; must be quick.
        ledger_for: where failures charged to a task are recorded.
        task_timeout_s: a task that runs longer has its worker killed and is charged a `Timeout`.
        start_timeout_s: how long to wait for a first worker (an autoscaling cluster may have to start nodes).
        max_start_failures: a worker that fails to start so often in a row ends the run if there is no other.

    Raises:
        WorkersUnavailable: no worker can be built (weights missing, no node with the resources asked for).
    """
    run = _Run(
        scheduler=scheduler,
        pool=pool,
        on_event=on_event,
        ledger_for=ledger_for,
        task_timeout_s=task_timeout_s,
        node_grace_s=node_grace_s,
        unavailable_s=unavailable_s,
        start_timeout_s=start_timeout_s,
        max_start_failures=max_start_failures,
    )
    try:
        return run.loop()
    finally:
        run.kill_workers()


class _Actor:
    """A worker process as a Ray actor."""

    def __init__(self) -> None:
        self.worker = TaskWorker()

    def begin(self, spec: StagesSpec) -> tuple[str, Started]:
        """With the id of the node it is on."""
        return ray.get_runtime_context().get_node_id(), self.worker.start(spec)

    def run(self, call: bytes) -> bytes:
        """`TaskWorker.run`, with arguments and answer pickled here: Ray hands bytes on as they are, while its own pickling
        (argument by argument, in Python, ready for classes that the other side lacks) is a third of a call."""
        return pickle.dumps(self.worker.run(*pickle.loads(call)))  # noqa: S301  # from our own driver

    @ray.method(concurrency_group="watch")
    def watch(self) -> None:
        """Never answers: its call fails at the moment the process dies, idle or not."""
        threading.Event().wait()

    @ray.method(concurrency_group="watch")
    def ping(self) -> None:
        pass


_ActorClass: Any = ray.remote(  # type: ignore[call-overload]  # Ray's stubs do not know concurrency_groups
    max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD", concurrency_groups={"watch": 2}
)(_Actor)


@dataclass
class _Hand:
    """A worker as the driver sees it. `slot` stays when its process is replaced."""

    name: str
    slot: int
    actor: Any
    built: float = field(default_factory=time.monotonic)
    node_id: str = ""
    started: Started | None = None
    task: Task | None = None
    refs: dict[Any, Literal["start", "watch", "run"]] = field(default_factory=dict)
    deadline: float = float("inf")

    @property
    def node(self) -> str:
        return self.started.node if self.started else ""


@dataclass
class _Inquest:
    hand: _Hand
    task: Task
    error: RayError
    opened: float
    probe: Any = None


@dataclass
class _Slot:
    num_built: int = 0
    num_start_failures: int = 0
    rebuild_at: float = 0.0
    is_filled: bool = False


@dataclass(kw_only=True)
class _Run:
    scheduler: Scheduler
    pool: WorkerPool
    on_event: Callable[[Event], None]
    ledger_for: Callable[[Task], AttemptLedger]
    task_timeout_s: float
    node_grace_s: float
    unavailable_s: float
    start_timeout_s: float
    max_start_failures: int

    hands: dict[str, _Hand] = field(default_factory=dict)
    idle: list[_Hand] = field(default_factory=list)  # the one freed last comes first
    owners: dict[Any, _Hand] = field(default_factory=dict)  # of every pending ref
    slots: list[_Slot] = field(default_factory=list)
    inquests: list[_Inquest] = field(default_factory=list)
    blameless: Counter[Task] = field(default_factory=Counter)
    finished: list[TaskFinished] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    last_staffed: float = field(default_factory=time.monotonic)
    pool_checked: float = float("-inf")
    is_short_told: bool = False

    def loop(self) -> ExecutionResult:
        while not self.scheduler.is_finished:
            self.fill_pool()
            self.lease()
            pending = list(self.owners)
            ready, _ = ray.wait(pending, timeout=self.patience()) if pending else ([], [])
            if not pending:
                time.sleep(INQUEST_WAIT_S)
            for ref in ready:
                self.answer(ref)
            self.stop_overdue()
            self.settle()
        return ExecutionResult(videos=self.scheduler.statuses(), finished=self.finished)

    def patience(self) -> float:
        if self.inquests or any(not slot.is_filled for slot in self.slots):
            return INQUEST_WAIT_S
        overdue = min((hand.deadline for hand in self.hands.values()), default=float("inf")) - time.monotonic()
        return max(0.0, min(IDLE_WAIT_S, overdue))

    # Workers come

    def fill_pool(self) -> None:
        now = time.monotonic()
        if now - self.pool_checked > POOL_CHECK_S:
            self.pool_checked = now
            wanted = self.pool.num_workers or max(1, self.capacity())
            self.slots.extend(_Slot() for _ in range(wanted - len(self.slots)))
            self.check_staff(now)
        for number, slot in enumerate(self.slots):
            if slot.is_filled or slot.rebuild_at > now:
                continue
            name = f"w{number}" if not slot.num_built else f"w{number}.{slot.num_built}"
            slot.num_built += 1
            slot.is_filled = True
            actor = _ActorClass.options(num_cpus=self.pool.num_cpus, num_gpus=self.pool.num_gpus).remote()
            hand = self.hands[name] = _Hand(name=name, slot=number, actor=actor)
            self.expect(hand, hand.actor.begin.remote(self.pool.stages), "start")
            self.expect(hand, hand.actor.watch.remote(), "watch")

    def capacity(self) -> int:
        """Workers that the cluster's nodes can hold."""
        ask = {"CPU": self.pool.num_cpus, "GPU": self.pool.num_gpus}
        return sum(
            int(min(node["Resources"].get(name, 0.0) / amount for name, amount in ask.items() if amount))
            for node in ray.nodes()
            if node["Alive"]
        )

    def check_staff(self, now: float) -> None:
        """Tell, once, if some workers do not come up; end the run if none did for too long."""
        num_ready = sum(hand.started is not None for hand in self.hands.values())
        if num_ready:
            self.last_staffed = now
        num_unplaced = sum(hand.started is None and now - hand.built > SHORT_POOL_S for hand in self.hands.values())
        self.scheduler.num_workers = max(1, len(self.slots) - num_unplaced)
        if not num_unplaced:
            return
        has, free = ray.cluster_resources(), ray.available_resources()
        facts = (
            f"{num_unplaced} of {len(self.slots)} workers have not come up: each needs {self.pool.num_cpus:g} CPU and "
            f"{self.pool.num_gpus:g} GPU; the cluster has {has.get('CPU', 0):g} CPU ({free.get('CPU', 0):g} free) and "
            f"{has.get('GPU', 0):g} GPU ({free.get('GPU', 0):g} free)"
        )
        if now - self.last_staffed > self.start_timeout_s:
            raise WorkersUnavailable(f"no worker for {self.start_timeout_s:g} s: {facts}")
        if not self.is_short_told:
            self.is_short_told = True
            log.warning("%s; %s", facts, "going on with the others" if num_ready else "waiting")

    def expect(self, hand: _Hand, ref: Any, purpose: Literal["start", "watch", "run"]) -> None:
        hand.refs[ref] = purpose
        self.owners[ref] = hand

    # Work goes out and comes back

    def lease(self) -> None:
        while self.idle:
            hand = self.idle[0]
            task = self.scheduler.lease(hand.name)
            if task is None:  # then there is none for the others either
                return
            self.idle.pop(0)
            hand.task = task
            hand.deadline = time.monotonic() + self.task_timeout_s
            call = pickle.dumps((task, self.scheduler.peek_next(task)))
            self.expect(hand, hand.actor.run.remote(call), "run")
            self.on_event(TaskStarted(task=task, worker=hand.name, at=time.time()))

    def answer(self, ref: Any) -> None:
        hand = self.owners.pop(ref)
        purpose = hand.refs.pop(ref)
        try:
            value = ray.get(ref)
            if purpose == "run":
                value = pickle.loads(value)  # noqa: S301  # from our own actor
        except RayTaskError as error:  # the call failed around the stage: its result could not be sent, for one
            value = TaskFailure(error_type=type(error.cause).__name__, message=str(error)[-MAX_MESSAGE_CHARS:])
            now = time.time()
            if purpose == "run":
                value = Outcome(started_at=now, ended_at=now, summary={}, failure=value)
            else:
                self.not_started(hand, value)
                return
        except RayError as error:
            self.bury(hand, error)
            return
        if purpose == "start":
            self.joined(hand, *value)
        elif purpose == "run":
            self.ended(hand, value)

    def joined(self, hand: _Hand, node_id: str, started: Started) -> None:
        if started.failure is not None:
            self.not_started(hand, started.failure)
            return
        hand.node_id, hand.started = node_id, started
        self.slots[hand.slot].num_start_failures = 0
        self.idle.append(hand)
        self.on_event(WorkerJoined(worker=hand.name, node=started.node, pid=started.pid, at=time.time()))

    def ended(self, hand: _Hand, outcome: Outcome) -> None:
        task, hand.task, hand.deadline = hand.task, None, float("inf")
        assert task is not None
        if outcome.failure is None:
            self.scheduler.complete(task, hand.name)
            record = TaskFinished(
                task=task,
                worker=hand.name,
                node=hand.node,
                started_at=outcome.started_at,
                ended_at=outcome.ended_at,
                summary=outcome.summary,
            )
            self.finished.append(record)
            self.on_event(record)
        else:
            self.fail(task, hand, outcome.failure, charge=True)
        if outcome.is_device_broken:
            self.dismiss(hand, reason=f"device error in {task.kind} {task.index} of {task.video}")
        else:
            self.idle.insert(0, hand)

    def fail(self, task: Task, hand: _Hand, failure: TaskFailure, *, charge: bool) -> None:
        num_attempts = self.scheduler.attempts(task) + charge
        if charge:
            try:
                self.ledger_for(task).record(task, failure, attempt=num_attempts, worker=hand.name)
            except OSError:  # it still counts in this run
                log.exception("attempt %d at %s could not be recorded", num_attempts, task)
        now = time.time()
        is_quarantined = self.scheduler.fail(task, hand.name, failure, charge=charge)
        self.on_event(
            TaskFailed(
                task=task, worker=hand.name, failure=failure, is_charged=charge, num_attempts=num_attempts, at=now
            )
        )
        if is_quarantined:
            self.on_event(VideoQuarantined(task=task, failure=failure, num_attempts=num_attempts, at=now))

    # Workers go

    def not_started(self, hand: _Hand, failure: TaskFailure) -> None:
        slot = self.slots[hand.slot]
        slot.num_start_failures += 1
        slot.rebuild_at = time.monotonic() + min(30.0, 0.5 * 2**slot.num_start_failures)
        self.dismiss(hand, reason=f"could not start: {failure.error_type}: {failure.message}")
        if slot.num_start_failures >= self.max_start_failures and not any(
            other.started for other in self.hands.values()
        ):
            raise WorkersUnavailable(
                f"a worker failed to start {slot.num_start_failures} times in a row and no other is up: "
                f"{failure.error_type}: {failure.message}"
            )

    def dismiss(self, hand: _Hand, *, reason: str) -> None:
        """Take a worker out of the pool and make sure that its process ends; `fill_pool` builds the next one."""
        self.forget(hand, reason=reason)
        ray.kill(hand.actor)

    def forget(self, hand: _Hand, *, reason: str) -> None:
        for ref in hand.refs:
            self.owners.pop(ref, None)
        hand.refs.clear()
        del self.hands[hand.name]
        if hand in self.idle:
            self.idle.remove(hand)
        self.slots[hand.slot].is_filled = False
        log.info("worker %s: %s", hand.name, reason)
        self.on_event(WorkerDied(worker=hand.name, node=hand.node, reason=reason, at=time.time()))

    def bury(self, hand: _Hand, error: RayError) -> None:
        reason = _cause(error)
        if hand.started is None:
            self.not_started(hand, TaskFailure(error_type=type(error).__name__, message=reason))
            return
        self.forget(hand, reason=reason)
        if hand.task is None:
            ray.kill(hand.actor)
        else:
            self.inquests.append(_Inquest(hand=hand, task=hand.task, error=error, opened=time.monotonic()))

    def stop_overdue(self) -> None:
        now = time.monotonic()
        for hand in [hand for hand in self.hands.values() if hand.deadline <= now]:
            assert hand.task is not None
            message = f"ran longer than {self.task_timeout_s:g} s; its worker was killed"
            self.dismiss(hand, reason=f"{hand.task.kind} {hand.task.index} of {hand.task.video} {message}")
            self.fail(hand.task, hand, TaskFailure(error_type="Timeout", message=message), charge=True)

    def settle(self) -> None:
        """Close the inquests whose verdict is known."""
        if not self.inquests:
            return
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        open_inquests, self.inquests = self.inquests, []
        for inquest in open_inquests:
            hand, task = inquest.hand, inquest.task
            assert hand.started is not None
            waited = time.monotonic() - inquest.opened
            if hand.node_id not in alive or getattr(inquest.error, "preempted", False):
                self.fail(task, hand, TaskFailure(error_type="NodeLost", message=hand.node), charge=False)
            elif isinstance(inquest.error, ActorDiedError | OutOfMemoryError):
                if waited < self.node_grace_s:
                    self.inquests.append(inquest)
                    continue
                is_memory = isinstance(inquest.error, OutOfMemoryError)
                failure = TaskFailure(
                    error_type="OutOfMemory" if is_memory else "WorkerDied",
                    message=f"worker process {hand.started.pid} on {hand.node} died: {_cause(inquest.error)}",
                )
                self.fail(task, hand, failure, charge=True)
            elif waited > self.unavailable_s or self.answers(inquest):
                self.blameless[task] += 1
                failure = TaskFailure(error_type="WorkerUnavailable", message=_cause(inquest.error))
                self.fail(task, hand, failure, charge=self.blameless[task] > MAX_BLAMELESS)
            else:
                self.inquests.append(inquest)
                continue
            self.scheduler.lost(hand.name)
            ray.kill(hand.actor)

    def answers(self, inquest: _Inquest) -> bool:
        """Whether an unavailable worker is back. Its death, should that be the answer, becomes the inquest's error."""
        if inquest.probe is None:
            inquest.probe = inquest.hand.actor.ping.remote()
        ready, _ = ray.wait([inquest.probe], timeout=0)
        if not ready:
            return False
        try:
            ray.get(inquest.probe)
        except RayError as error:
            inquest.error, inquest.probe = error, None
            return False
        return True

    def kill_workers(self) -> None:
        for hand in [*self.hands.values(), *(inquest.hand for inquest in self.inquests)]:
            if ray.is_initialized():
                ray.kill(hand.actor)


def _cause(error: RayError) -> str:
    """What Ray says of a death, without its advice: the sentences that name the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "dead because" in line or "died because" in line or "unavailable" in line]
    return " ".join(telling or lines[:1])[:500]
