"""Which task runs next: a pure state machine over the DAGs of all videos of a run.

Per video there is one `edit` per segment (after the segments it remembers), one `render` per segment (after its edit) and
one `assemble` (after all renders). Knows nothing of Ray, of storage or of clocks: it is told what ended and asked what is
next, so that thousands of segments with random losses can be tested in a second. Same calls, same answers.

What is leased first:

1. an edit on the critical path: its longest remaining path, after waiting for one segment more, would exceed the edit work
   left per worker. From here on the longest path decides when the run ends, so the longest goes first, over all videos;
2. assembles and renders: nothing waits for them, and a finished video is worth having early;
3. the other edits. Here the order cannot lengthen the run, so a worker stays with the video it ran last (its prefetched
   frames and cached memories serve), then takes the longest remaining path over all videos.

Taking the longest path first always would advance all videos in step and finish all of them at the end of the run.
Everything costs O(log n) per task.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.tasks import Task, TaskFailure, TaskKind

VideoState = Literal["waiting", "running", "done", "quarantined"]

WAITING, READY, LEASED, DONE = range(4)


@dataclass(frozen=True, kw_only=True)
class VideoPlan:
    """The DAG of one video.

    `dependencies[i]` are the earlier segments that segment i needs; `costs[i]` is what its edit takes, in any unit that is
    the same for all videos of a run (seconds, frames).
    """

    video: str
    edit_url: str
    dependencies: tuple[tuple[int, ...], ...]
    costs: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.dependencies:
            raise ValueError(f"dependencies: video {self.video!r} has no segments; a plan needs at least one")
        if len(self.costs) != len(self.dependencies):
            raise ValueError(f"costs: {len(self.costs)} given for {len(self.dependencies)} segments of {self.video!r}")
        for index, earlier in enumerate(self.dependencies):
            for other in earlier:
                if not 0 <= other < index:
                    raise ValueError(
                        f"dependencies: segment {index} of {self.video!r} needs segment {other}; only earlier ones may be needed"
                    )
        if min(self.costs) <= 0:
            raise ValueError(f"costs: {min(self.costs)} in video {self.video!r}; every segment must cost more than 0")


@dataclass(frozen=True, kw_only=True)
class VideoStatus:
    """Where a video stands. `failed_task` and `failure` say why it is quarantined, `attempts` how often that was tried."""

    video: str
    state: VideoState
    num_segments: int
    num_edited: int
    num_rendered: int
    failed_task: Task | None = None
    failure: TaskFailure | None = None
    attempts: int = 0


@dataclass
class _Video:
    plan: VideoPlan
    order: int
    needed_by: list[list[int]]
    remaining_path: list[float]
    edits: list[int]
    renders: list[int]
    num_missing: list[int]
    assemble: int = WAITING
    num_edited: int = 0
    num_rendered: int = 0
    num_editing: int = 0
    remaining_cost: float = 0.0
    ready_edits: list[tuple[float, int]] = field(default_factory=list)
    ready_renders: list[int] = field(default_factory=list)
    has_started: bool = False
    failed_task: Task | None = None
    failure: TaskFailure | None = None

    @property
    def is_open(self) -> bool:
        return self.failure is None and self.assemble != DONE


class Scheduler:
    """Leases the tasks of all videos to workers.

    Args:
        max_attempts: failures charged to one task before its video is quarantined.
        max_parallel_per_video: edits of one video that may run at once; 1 edits strictly in order, each segment after the
            one before, whatever the plan says (the paper's order); None for no limit.
        num_workers: workers that share the work; changes as they come and go.
    """

    def __init__(
        self, *, max_attempts: int = 3, max_parallel_per_video: int | None = None, num_workers: int = 1
    ) -> None:
        for name, value in (("max_attempts", max_attempts), ("max_parallel_per_video", max_parallel_per_video)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; needs at least 1")
        self.max_attempts = max_attempts
        self.max_parallel_per_video = max_parallel_per_video
        self.num_workers = num_workers
        self._videos: dict[str, _Video] = {}
        self._ready_edits: list[tuple[float, int, int, str]] = []
        self._ready_renders: list[tuple[int, int, str]] = []
        self._ready_assembles: list[tuple[int, str]] = []
        self._leases: dict[str, Task] = {}
        self._last_video: dict[str, str] = {}
        self._attempts: Counter[Task] = Counter()
        self._remaining_cost = 0.0
        self._num_open = 0

    # What comes in

    def add_video(
        self,
        plan: VideoPlan,
        *,
        done: AbstractSet[tuple[TaskKind, int]] = frozenset(),
        failures: Mapping[Task, Sequence[TaskFailure]] | None = None,
    ) -> None:
        """Take on a video, less what an earlier run finished (`done`), with the attempts already charged to its tasks."""
        if plan.video in self._videos:
            raise ValueError(f"video {plan.video!r} was added twice; ids must be unique within a run")
        num_segments = len(plan.dependencies)
        dependencies = self._dependencies(plan)
        needed_by: list[list[int]] = [[] for _ in range(num_segments)]
        for index, earlier in enumerate(dependencies):
            for other in set(earlier):
                needed_by[other].append(index)
        edits = [DONE if ("edit", index) in done else WAITING for index in range(num_segments)]
        video = _Video(
            plan=plan,
            order=len(self._videos),
            needed_by=needed_by,
            remaining_path=self._remaining_paths(plan, needed_by, edits),
            edits=edits,
            renders=[DONE if ("render", index) in done else WAITING for index in range(num_segments)],
            num_missing=[sum(edits[other] != DONE for other in set(earlier)) for earlier in dependencies],
            assemble=DONE if ("assemble", 0) in done else WAITING,
            num_edited=edits.count(DONE),
        )
        video.num_rendered = video.renders.count(DONE)
        self._videos[plan.video] = video
        if not video.is_open:
            return
        self._num_open += 1
        video.remaining_cost = sum(
            cost for cost, state in zip(plan.costs, edits, strict=True) if state != DONE
        )  # of edits only: renders never wait for anything
        self._remaining_cost += video.remaining_cost
        for index in range(num_segments):
            if edits[index] == DONE:
                self._offer_render(video, index)
            elif not video.num_missing[index]:
                self._offer_edit(video, index)
        self._offer_assemble(video)
        for task, charged in (failures or {}).items():
            self._attempts[task] = len(charged)
            if len(charged) >= self.max_attempts and video.is_open and not self._is_done(video, task):
                self._quarantine(video, task, charged[-1])

    def lease(self, worker: str) -> Task | None:
        """The next task for an idle worker; None if nothing can run now."""
        assert worker not in self._leases, f"{worker} already has {self._leases[worker]}"
        last = self._videos.get(self._last_video.get(worker, ""))
        task = self._critical_edit(last) or self._assemble() or self._render(last) or self._edit(last)
        if task is None:
            return None
        video = self._videos[task.video]
        video.has_started = True
        if task.kind == "edit":
            video.edits[task.index] = LEASED
            video.num_editing += 1
            self._enter_next(video)
        elif task.kind == "render":
            video.renders[task.index] = LEASED
        else:
            video.assemble = LEASED
        self._leases[worker] = task
        self._last_video[worker] = task.video
        return task

    def complete(self, task: Task, worker: str) -> None:
        """The task's result is committed."""
        self._end_lease(task, worker)
        video = self._videos[task.video]
        if task.kind == "edit":
            video.edits[task.index] = DONE
            video.num_edited += 1
            if video.is_open:
                self._spend(video, video.plan.costs[task.index])
                self._offer_render(video, task.index)
                self._offer_assemble(video)
            for later in video.needed_by[task.index]:
                video.num_missing[later] -= 1
                if not video.num_missing[later] and video.edits[later] == WAITING:
                    self._offer_edit(video, later)
        elif task.kind == "render":
            video.renders[task.index] = DONE
            video.num_rendered += 1
            self._offer_assemble(video)
        else:
            video.assemble = DONE
            self._num_open -= video.failure is None

    def fail(self, task: Task, worker: str, failure: TaskFailure, *, charge: bool) -> bool:
        """The task ended without a result; it is offered again. True if this quarantined its video.

        `charge` counts the attempt against the task; the loss of a node is not its fault.
        """
        self._end_lease(task, worker)
        video = self._videos[task.video]
        if charge:
            self._attempts[task] += 1
        if not video.is_open:
            return False
        if self._attempts[task] >= self.max_attempts:
            self._quarantine(video, task, failure)
            return True
        if task.kind == "edit":
            self._offer_edit(video, task.index)
        elif task.kind == "render":
            self._offer_render(video, task.index)
        else:
            self._offer_assemble(video)
        return False

    def lost(self, worker: str) -> Task | None:
        """A worker is gone through no fault of its task, which is offered again without charge."""
        self._last_video.pop(worker, None)
        task = self._leases.get(worker)
        if task is not None:
            self.fail(task, worker, TaskFailure(error_type="WorkerLost", message=worker), charge=False)
        return task

    # What is asked

    def peek_next(self, task: Task) -> Task | None:
        """The edit that the worker of `task` is likely to get next, to prefetch for; always of the same video, so that a
        prefetch that crashes its process is blamed on the video that caused it."""
        video = self._videos[task.video]
        if not video.is_open:
            return None
        unlocked = [
            (-video.remaining_path[later], later)
            for later in (video.needed_by[task.index] if task.kind == "edit" else ())
            if video.num_missing[later] == 1 and video.edits[later] == WAITING
        ]
        _drop_stale(video.ready_edits, lambda entry: video.edits[entry[1]] != READY)
        best = min((*unlocked, *video.ready_edits[:1]), default=None)
        return Task(task.video, "edit", best[1], task.edit_url) if best else None

    @property
    def is_finished(self) -> bool:
        """Every video is done or quarantined, and nothing runs any more."""
        return self._num_open == 0 and not self._leases

    @property
    def leases(self) -> Mapping[str, Task]:
        """What every busy worker runs."""
        return self._leases

    def attempts(self, task: Task) -> int:
        """Failures charged to a task, those of earlier runs included."""
        return self._attempts[task]

    def status(self, video: str) -> VideoStatus:
        found = self._videos[video]
        state: VideoState = "running" if found.has_started else "waiting"
        if found.failure is not None:
            state = "quarantined"
        elif found.assemble == DONE:
            state = "done"
        return VideoStatus(
            video=video,
            state=state,
            num_segments=len(found.edits),
            num_edited=found.num_edited,
            num_rendered=found.num_rendered,
            failed_task=found.failed_task,
            failure=found.failure,
            attempts=self._attempts[found.failed_task] if found.failed_task else 0,
        )

    def statuses(self) -> list[VideoStatus]:
        """Of all videos, in the order in which they were added."""
        return [self.status(video) for video in self._videos]

    # How the next task is chosen. Heaps keep entries of tasks that are no longer ready: they are dropped when they surface.

    def _critical_edit(self, last: _Video | None) -> Task | None:
        task, path = self._longest_edit()
        if task is None or self.num_workers <= 1:
            return None
        cost = self._videos[task.video].plan.costs[task.index]
        if (path + cost) * self.num_workers < self._remaining_cost:
            return None
        own, own_path = self._longest_edit_of(last)
        return own if own is not None and own_path >= path else task

    def _assemble(self) -> Task | None:
        heap = self._ready_assembles
        _drop_stale(heap, lambda entry: not self._is_ready(entry[1], "assemble", 0))
        return self._task(self._videos[heap[0][1]], "assemble", 0) if heap else None

    def _render(self, last: _Video | None) -> Task | None:
        if last is not None and last.is_open:
            _drop_stale(last.ready_renders, lambda index: last.renders[index] != READY)
            if last.ready_renders:
                return self._task(last, "render", last.ready_renders[0])
        heap = self._ready_renders
        _drop_stale(heap, lambda entry: not self._is_ready(entry[2], "render", entry[1]))
        return self._task(self._videos[heap[0][2]], "render", heap[0][1]) if heap else None

    def _edit(self, last: _Video | None) -> Task | None:
        own, _ = self._longest_edit_of(last)
        return own or self._longest_edit()[0]

    def _longest_edit(self) -> tuple[Task | None, float]:
        """Over all videos: the ready edit with the longest remaining path, and that path."""
        heap = self._ready_edits
        _drop_stale(
            heap,
            lambda entry: not self._is_ready(entry[3], "edit", entry[2]) or self._is_full(self._videos[entry[3]]),
        )
        return (self._task(self._videos[heap[0][3]], "edit", heap[0][2]), -heap[0][0]) if heap else (None, 0.0)

    def _longest_edit_of(self, video: _Video | None) -> tuple[Task | None, float]:
        if video is None or not video.is_open or self._is_full(video):
            return None, 0.0
        heap = video.ready_edits
        _drop_stale(heap, lambda entry: video.edits[entry[1]] != READY)
        return (self._task(video, "edit", heap[0][1]), -heap[0][0]) if heap else (None, 0.0)

    def _offer_edit(self, video: _Video, index: int) -> None:
        video.edits[index] = READY
        if video.is_open:
            entry = (-video.remaining_path[index], index)
            heapq.heappush(video.ready_edits, entry)
            heapq.heappush(self._ready_edits, (entry[0], video.order, index, video.plan.video))

    def _enter_next(self, video: _Video) -> None:
        """Put back what `_longest_edit` passed over while the video was full."""
        if self.max_parallel_per_video is None or self._is_full(video):
            return
        _drop_stale(video.ready_edits, lambda entry: video.edits[entry[1]] != READY)
        if video.ready_edits:
            path, index = video.ready_edits[0]
            heapq.heappush(self._ready_edits, (path, video.order, index, video.plan.video))

    def _offer_render(self, video: _Video, index: int) -> None:
        if video.renders[index] != DONE and video.is_open:
            video.renders[index] = READY
            heapq.heappush(video.ready_renders, index)
            heapq.heappush(self._ready_renders, (video.order, index, video.plan.video))

    def _offer_assemble(self, video: _Video) -> None:
        if video.num_edited == video.num_rendered == len(video.edits) and video.is_open:
            video.assemble = READY
            heapq.heappush(self._ready_assembles, (video.order, video.plan.video))

    def _end_lease(self, task: Task, worker: str) -> None:
        assert self._leases.get(worker) == task, f"{worker} has {self._leases.get(worker)}, not {task}"
        del self._leases[worker]
        video = self._videos[task.video]
        if task.kind == "edit":
            video.num_editing -= 1
            self._enter_next(video)

    def _quarantine(self, video: _Video, task: Task, failure: TaskFailure) -> None:
        video.failed_task, video.failure = task, failure
        self._num_open -= 1
        self._spend(video, video.remaining_cost)
        video.ready_edits.clear()
        video.ready_renders.clear()

    def _spend(self, video: _Video, cost: float) -> None:
        video.remaining_cost -= cost
        self._remaining_cost -= cost

    def _is_full(self, video: _Video) -> bool:
        return self.max_parallel_per_video is not None and video.num_editing >= self.max_parallel_per_video

    def _is_ready(self, name: str, kind: TaskKind, index: int) -> bool:
        video = self._videos[name]
        return video.is_open and self._state(video, kind, index) == READY

    def _is_done(self, video: _Video, task: Task) -> bool:
        return self._state(video, task.kind, task.index) == DONE

    def _state(self, video: _Video, kind: TaskKind, index: int) -> int:
        if kind == "assemble":
            return video.assemble
        return (video.edits if kind == "edit" else video.renders)[index]

    def _task(self, video: _Video, kind: TaskKind, index: int) -> Task:
        return Task(video.plan.video, kind, index, video.plan.edit_url)

    def _dependencies(self, plan: VideoPlan) -> Sequence[tuple[int, ...]]:
        if self.max_parallel_per_video == 1:
            return [(index - 1,) if index else () for index in range(len(plan.dependencies))]
        return plan.dependencies

    def _remaining_paths(self, plan: VideoPlan, needed_by: list[list[int]], edits: list[int]) -> list[float]:
        """Least time from the start of each edit to the end of the video's last edit that must come after it."""
        paths = [0.0] * len(plan.costs)
        later_cost = 0.0
        for index in reversed(range(len(plan.costs))):
            cost = 0.0 if edits[index] == DONE else plan.costs[index]
            paths[index] = cost + max((paths[later] for later in needed_by[index]), default=0.0)
            if self.max_parallel_per_video is not None:
                later_cost += cost
                paths[index] = max(paths[index], later_cost / self.max_parallel_per_video)
        return paths


def _drop_stale(heap: list[Any], is_stale: Callable[[Any], bool]) -> None:
    """Pop what is no longer so, until the top of the heap counts."""
    while heap and is_stale(heap[0]):
        heapq.heappop(heap)
