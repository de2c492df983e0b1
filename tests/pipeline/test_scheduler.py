"""The scheduler against simulated clusters: what must hold is asserted at every lease, by a checker that keeps its own books."""

import heapq
import random
import time
from dataclasses import dataclass, field

import pytest

from pipeline.scheduler import Scheduler, VideoPlan
from pipeline.tasks import Task, TaskFailure

FAILURE = TaskFailure(error_type="ValueError", message="no")


def make_plan(
    video: str, dependencies: list[tuple[int, ...]], costs: list[float] | None = None, url: str = "/w"
) -> VideoPlan:
    return VideoPlan(
        video=video,
        edit_url=f"{url}/{video}",
        dependencies=tuple(dependencies),
        costs=tuple(costs or [1.0] * len(dependencies)),
    )


def chain(video: str, length: int, cost: float = 1.0) -> VideoPlan:
    return make_plan(video, [(i - 1,) if i else () for i in range(length)], [cost] * length)


def random_plan(video: str, rng: random.Random, max_segments: int) -> VideoPlan:
    """Shots of random length: the previous segment inside a shot, and up to three earlier ones anywhere."""
    dependencies: list[tuple[int, ...]] = []
    shot_start = 0
    for index in range(rng.randint(1, max_segments)):
        if rng.random() < 0.25:
            shot_start = index
        previous = {index - 1} if index > shot_start else set()
        retrieved = rng.sample(range(index), k=min(index, rng.randint(0, 3)))
        dependencies.append(tuple(sorted(previous | set(retrieved))))
    return make_plan(video, dependencies, [rng.uniform(0.5, 2.0) for _ in dependencies])


def longest_path(plan: VideoPlan) -> float:
    ends: list[float] = []
    for earlier, cost in zip(plan.dependencies, plan.costs, strict=True):
        ends.append(cost + max((ends[other] for other in earlier), default=0.0))
    return max(ends)


@dataclass
class Cluster:
    """Workers in simulated time. Keeps its own books of what may run and asserts them at every lease."""

    plans: list[VideoPlan]
    num_workers: int
    scheduler: Scheduler
    render_s: float = 0.0
    done: set[Task] = field(default_factory=set)
    running: dict[str, Task] = field(default_factory=dict)
    charged: dict[Task, int] = field(default_factory=dict)
    started: list[tuple[float, str, Task]] = field(default_factory=list)
    ended_at: dict[Task, float] = field(default_factory=dict)
    num_runs: int = 0

    def __post_init__(self) -> None:
        self.by_name = {plan.video: plan for plan in self.plans}
        self.scheduler.num_workers = self.num_workers
        for plan in self.plans:
            self.scheduler.add_video(
                plan, done={(task.kind, task.index) for task in self.done if task.video == plan.video}
            )

    def check_lease(self, task: Task) -> None:
        plan = self.by_name[task.video]
        assert task.edit_url == plan.edit_url
        assert task not in self.done, f"{task} is done"
        assert task not in self.running.values(), f"{task} is leased twice"
        assert self.scheduler.status(task.video).state == "running"
        limit = self.scheduler.max_parallel_per_video

        def need(kind, indices) -> None:
            for index in indices:
                assert Task(task.video, kind, index, plan.edit_url) in self.done, f"{task} before {kind} {index}"

        if task.kind == "edit":
            need("edit", range(task.index) if limit == 1 else plan.dependencies[task.index])
            editing = [other for other in self.running.values() if (other.video, other.kind) == (task.video, "edit")]
            assert limit is None or len(editing) < limit
        elif task.kind == "render":
            need("edit", [task.index])
        else:
            need("render", range(len(plan.dependencies)))

    def check_idle(self) -> None:
        """A worker may only idle if nothing at all can run."""
        limit = self.scheduler.max_parallel_per_video
        taken = self.done | set(self.running.values())
        for plan in self.plans:
            if self.scheduler.status(plan.video).state == "quarantined":
                continue

            def free(kind, index, plan=plan) -> bool:
                return Task(plan.video, kind, index, plan.edit_url) not in taken

            def has(kind, indices, plan=plan) -> bool:
                return all(Task(plan.video, kind, index, plan.edit_url) in self.done for index in indices)

            num_editing = sum((task.video, task.kind) == (plan.video, "edit") for task in self.running.values())
            for index, earlier in enumerate(plan.dependencies):
                needed = range(index) if limit == 1 else earlier
                is_full = limit is not None and num_editing >= limit
                assert is_full or not (free("edit", index) and has("edit", needed)), f"{plan.video} edit {index} waits"
                assert not (free("render", index) and has("edit", [index])), f"{plan.video} render {index} waits"
            everything = range(len(plan.dependencies))
            assert not (free("assemble", 0) and has("render", everything) and has("edit", everything)), plan.video

    def run(
        self,
        *,
        rng: random.Random | None = None,
        loss: float = 0.0,
        fault: float = 0.0,
        poison: frozenset[Task] = frozenset(),
    ) -> float:
        """Until the scheduler says it is finished; returns the simulated time. `loss` and `fault` are odds per task."""
        rng = rng or random.Random(0)
        now = 0.0
        workers = [f"w{number}" for number in range(self.num_workers)]
        idle = list(workers)
        events: list[tuple[float, int, str, Task, str]] = []
        while True:
            waiting = []
            for worker in idle:
                task = self.scheduler.lease(worker)
                if task is None:
                    if self.num_runs % 8 == 0:  # it looks at every task of every video
                        self.check_idle()
                    waiting.append(worker)
                    continue
                self.check_lease(task)
                expected = self.scheduler.peek_next(task)
                assert expected is None or (expected.video, expected.kind) == (task.video, "edit")
                assert expected is None or expected not in self.done | set(self.running.values()) | {task}
                self.running[worker] = task
                self.num_runs += 1
                self.started.append((now, worker, task))
                cost = self.by_name[task.video].costs[task.index] if task.kind == "edit" else self.render_s
                fate = "fault" if task in poison or rng.random() < fault else "loss" if rng.random() < loss else "done"
                heapq.heappush(events, (now + cost, self.num_runs, worker, task, fate))
            assert self.scheduler.leases == self.running
            if not events:
                assert self.scheduler.is_finished, "nothing runs and the scheduler is not finished"
                return now
            assert not self.scheduler.is_finished
            now, _, worker, task, fate = heapq.heappop(events)
            del self.running[worker]
            if fate == "done":
                self.scheduler.complete(task, worker)
                self.done.add(task)
                self.ended_at[task] = now
            elif fate == "loss":
                assert self.scheduler.lost(worker) == task
                worker = f"{worker}'"  # the one built in its place
            else:
                self.charged[task] = self.charged.get(task, 0) + 1
                is_quarantined = self.scheduler.fail(task, worker, FAILURE, charge=True)
                assert not is_quarantined or self.charged[task] == self.scheduler.max_attempts
            idle = [worker, *waiting]

    def assert_all_done(self, videos: list[str] | None = None) -> None:
        for status in self.scheduler.statuses():
            if videos is None or status.video in videos:
                assert status.state == "done"
                assert status.num_edited == status.num_rendered == status.num_segments
                assert sum(task.video == status.video for task in self.done) == 2 * status.num_segments + 1


@pytest.mark.parametrize("limit", [None, 1, 2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_everything_is_done_in_order_despite_losses(seed, limit):
    rng = random.Random(seed)
    plans = [random_plan(f"v{n}", rng, 60) for n in range(rng.randint(1, 12))]
    cluster = Cluster(
        plans, rng.randint(1, 9), Scheduler(max_attempts=10**6, max_parallel_per_video=limit), render_s=0.3
    )
    cluster.run(rng=rng, loss=0.1, fault=0.1)
    cluster.assert_all_done()
    assert all(cluster.scheduler.attempts(task) == count for task, count in cluster.charged.items())
    assert cluster.num_runs > len(cluster.done), "no loss happened; the test tests nothing"


@pytest.mark.parametrize("seed", range(10))
def test_a_poisoned_task_quarantines_its_video_alone(seed):
    rng = random.Random(seed)
    plans = [random_plan(f"v{n}", rng, 30) for n in range(8)]
    bad = plans[rng.randrange(8)]
    kind = ("edit", "render", "assemble")[seed % 3]
    index = 0 if kind == "assemble" else rng.randrange(len(bad.dependencies))
    poison = Task(bad.video, kind, index, bad.edit_url)
    cluster = Cluster(plans, 8, Scheduler(max_attempts=3), render_s=0.3)
    cluster.run(rng=rng, loss=0.1, poison=frozenset({poison}))
    cluster.assert_all_done([plan.video for plan in plans if plan is not bad])
    status = cluster.scheduler.status(bad.video)
    assert (status.state, status.failed_task, status.failure, status.attempts) == ("quarantined", poison, FAILURE, 3)
    assert cluster.charged == {poison: 3}, "an innocent task was charged"


@pytest.mark.parametrize("seed", range(10))
def test_a_rerun_continues_and_repeats_nothing(seed):
    rng = random.Random(seed)
    plans = [random_plan(f"v{n}", rng, 40) for n in range(5)]
    first = Cluster(plans, 4, Scheduler(), render_s=0.2)
    first.run(rng=rng)
    order = sorted(first.done, key=lambda task: first.ended_at[task])
    kept = set(order[: rng.randrange(len(order))])
    second = Cluster(plans, 3, Scheduler(), render_s=0.2, done=set(kept))
    second.run(rng=rng, loss=0.1)
    second.assert_all_done()
    assert not kept & {task for _, _, task in second.started}


@pytest.mark.parametrize("seed", range(10))
def test_whatever_is_missing_is_made_again(seed):
    """Someone deleted results from the store, also such that others were made from."""
    rng = random.Random(seed)
    plans = [random_plan(f"v{n}", rng, 40) for n in range(5)]
    first = Cluster(plans, 4, Scheduler())
    first.run(rng=rng)
    kept = {task for task in first.done if task.kind != "assemble" and rng.random() < 0.7}
    second = Cluster(plans, 3, Scheduler(), done=set(kept))
    second.run(rng=rng)
    second.assert_all_done()
    assert not kept & {task for _, _, task in second.started}


def test_what_waited_for_a_full_video_comes_back_when_two_edits_end_at_once():
    scheduler = Scheduler(max_parallel_per_video=2, num_workers=8)
    scheduler.add_video(make_plan("v", [(), (), (), ()]))
    first, second = scheduler.lease("a"), scheduler.lease("b")
    assert scheduler.lease("c") is None
    scheduler.complete(first, "a")
    scheduler.complete(second, "b")
    leases = {scheduler.lease(worker) for worker in "cdef"}
    assert leases == {
        Task("v", kind, index, "/w/v") for kind, index in [("edit", 2), ("edit", 3), ("render", 0), ("render", 1)]
    }


def test_a_quarantined_video_no_longer_counts_as_work():
    """Else what is left would never seem to be on the critical path."""
    scheduler = Scheduler(max_attempts=1, num_workers=2)
    for plan in (chain("bad", 1000), chain("long", 10)):
        scheduler.add_video(plan)
    bad, long = scheduler.lease("a"), scheduler.lease("b")
    assert (bad.video, long.video) == ("bad", "long")
    assert scheduler.fail(bad, "a", FAILURE, charge=True)
    scheduler.complete(long, "b")
    assert scheduler.lease("b") == Task("long", "edit", 1, "/w/long"), "not its render: the chain decides the end"


def test_a_finished_video_has_nothing_to_lease():
    plan = chain("v", 3)
    scheduler = Scheduler()
    scheduler.add_video(
        plan, done={("assemble", 0)} | {("edit", i) for i in range(3)} | {("render", i) for i in range(3)}
    )
    assert scheduler.is_finished
    assert scheduler.lease("w") is None
    assert scheduler.status("v").state == "done"


def test_attempts_of_earlier_runs_count():
    plan = chain("v", 2)
    task = Task("v", "edit", 0, plan.edit_url)
    scheduler = Scheduler(max_attempts=3)
    scheduler.add_video(plan, failures={task: [FAILURE, FAILURE]})
    assert scheduler.lease("w") == task
    assert scheduler.fail(task, "w", FAILURE, charge=True)
    assert scheduler.is_finished

    again = Scheduler(max_attempts=3)
    again.add_video(plan, failures={task: [FAILURE] * 3})
    assert again.is_finished
    assert again.status("v").state == "quarantined"
    assert again.lease("w") is None


def test_what_runs_when_its_video_is_quarantined_may_end():
    scheduler = Scheduler(max_attempts=1, num_workers=2)
    scheduler.add_video(make_plan("v", [(), (), (0, 1)]))
    first, second = scheduler.lease("a"), scheduler.lease("b")
    assert scheduler.fail(first, "a", FAILURE, charge=True)
    assert scheduler.lease("a") is None
    assert not scheduler.is_finished
    scheduler.complete(second, "b")
    assert scheduler.is_finished
    assert scheduler.lease("b") is None
    assert scheduler.status("v").num_edited == 1


def test_a_loss_is_not_charged_and_a_lost_idle_worker_is_nothing():
    scheduler = Scheduler(max_attempts=1)
    scheduler.add_video(chain("v", 1))
    assert scheduler.lost("a") is None
    task = scheduler.lease("a")
    assert scheduler.lost("a") == task
    assert scheduler.attempts(task) == 0
    assert scheduler.lease("b") == task


def test_the_longest_remaining_path_goes_first_when_it_decides_the_end():
    plans = [chain("short", 2), chain("long", 30), chain("middle", 10)]
    cluster = Cluster(plans, 2, Scheduler(), render_s=0.01)
    cluster.run()
    assert cluster.started[0][2].video == "long"
    assert cluster.ended_at[Task("long", "edit", 29, "/w/long")] == pytest.approx(30, rel=0.01)


def test_finished_videos_appear_early():
    """40 equal videos on 4 workers: the first is ready after a tenth of the run, not at its end."""
    cluster = Cluster([chain(f"v{n:02}", 10) for n in range(40)], 4, Scheduler(), render_s=0.05)
    makespan = cluster.run()
    first = min(end for task, end in cluster.ended_at.items() if task.kind == "assemble")
    assert first < 0.15 * makespan


def test_a_worker_stays_with_its_video():
    """Prefetched frames and cached memories are of the video a worker ran last."""
    cluster = Cluster([chain(f"v{n:02}", 20) for n in range(20)], 4, Scheduler())
    cluster.run()
    last: dict[str, str] = {}
    num_changes = 0
    edits = [(worker, task) for _, worker, task in cluster.started if task.kind == "edit"]
    for worker, task in edits:
        num_changes += last.get(worker, task.video) != task.video
        last[worker] = task.video
    assert num_changes < 0.1 * len(edits)


def test_peek_next_is_what_the_worker_gets_in_a_chain():
    scheduler = Scheduler()
    scheduler.add_video(chain("v", 3))
    first = scheduler.lease("w")
    expected = scheduler.peek_next(first)
    assert expected == Task("v", "edit", 1, "/w/v")
    scheduler.complete(first, "w")
    render = scheduler.lease("w")
    assert render.kind == "render"
    assert scheduler.peek_next(render) == expected
    scheduler.complete(render, "w")
    assert scheduler.lease("w") == expected


@pytest.mark.parametrize("seed", range(6))
def test_makespan_of_a_batch_with_a_long_tail_is_near_the_lower_bound(seed):
    rng = random.Random(seed)
    plans = [chain(f"v{n}", int(40 ** rng.random() + 0.5)) for n in range(40)] + [chain("longest", 40)]
    cluster = Cluster(plans, 8, Scheduler())
    total = sum(len(plan.costs) for plan in plans)
    bound = max(total / 8, 40.0)
    assert cluster.run() <= 1.05 * bound


@pytest.mark.parametrize("seed", range(6))
def test_makespan_of_random_dags_is_near_the_lower_bound(seed):
    rng = random.Random(seed)
    plans = [random_plan(f"v{n}", rng, 120) for n in range(6)]
    cluster = Cluster(plans, 8, Scheduler())
    bound = max(sum(sum(plan.costs) for plan in plans) / 8, max(longest_path(plan) for plan in plans))
    assert cluster.run() <= 1.05 * bound


def test_a_hundred_videos_of_a_thousand_segments_schedule_in_seconds():
    rng = random.Random(0)
    plans = [
        make_plan(f"v{n}", [tuple({i - 1, rng.randrange(i)}) if i else () for i in range(1000)]) for n in range(100)
    ]
    scheduler = Scheduler(num_workers=64)
    started = time.process_time()
    for plan in plans:
        scheduler.add_video(plan)
    workers = [f"w{n}" for n in range(64)]
    busy = {worker: task for worker in workers if (task := scheduler.lease(worker))}
    num_tasks = 0
    while busy:
        worker, task = next(iter(busy.items()))
        del busy[worker]
        scheduler.complete(task, worker)
        num_tasks += 1
        for free in [worker, *(other for other in workers if other not in busy and other != worker)]:
            if (following := scheduler.lease(free)) is None:
                break
            scheduler.peek_next(following)
            busy[free] = following
    assert scheduler.is_finished
    assert num_tasks == 100 * 2001
    assert time.process_time() - started < 60  # 5 s on a free core


def test_errors_name_the_field():
    with pytest.raises(ValueError, match=r"dependencies: segment 1 of 'v' needs segment 1"):
        make_plan("v", [(), (1,)])
    with pytest.raises(ValueError, match="costs: 1 given for 2 segments"):
        VideoPlan(video="v", edit_url="", dependencies=((), ()), costs=(1.0,))
    with pytest.raises(ValueError, match="has no segments"):
        VideoPlan(video="v", edit_url="", dependencies=(), costs=())
    with pytest.raises(ValueError, match="max_attempts is 0"):
        Scheduler(max_attempts=0)
    scheduler = Scheduler()
    scheduler.add_video(chain("v", 1))
    with pytest.raises(ValueError, match="'v' was added twice"):
        scheduler.add_video(chain("v", 1))
