"""The executor on a real local Ray, with stages that sleep, raise and kill their process."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import ray

from pipeline.events import TaskFailed, TaskFinished, TaskStarted, VideoQuarantined, WorkerDied, WorkerJoined
from pipeline.executor import WorkerPool, WorkersUnavailable, run_tasks
from pipeline.ledger import AttemptLedger
from pipeline.scheduler import Scheduler
from pipeline.worker import StagesSpec
from retrieval.store import Store
from tests.stages import add_from_store, generated_again, generation_log, num_commits, result_bytes, write_script

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

CHAIN = [(index - 1,) if index else () for index in range(6)]


@dataclass
class Videos:
    """Edits in a folder, and a run over all of them."""

    folder: Path
    names: list[str] = field(default_factory=list)
    events: list = field(default_factory=list)

    def url(self, name: str) -> str:
        return str(self.folder / name)

    def add(self, name: str, dependencies=CHAIN, **script) -> None:
        write_script(self.url(name), dependencies, **script)
        self.names.append(name)

    def run(
        self,
        *,
        num_workers: int = 2,
        num_cpus: float = 0.2,
        max_attempts: int = 3,
        factory: str = "ScriptedStages",
        **options,
    ):
        scheduler = Scheduler(max_attempts=max_attempts)
        for name in self.names:
            add_from_store(scheduler, name, self.url(name))
        pool = WorkerPool(
            stages=StagesSpec(factory=f"tests.stages:{factory}", num_threads=None),
            num_workers=num_workers,
            num_cpus=num_cpus,
        )
        options.setdefault("node_grace_s", 0.3)
        options.setdefault("on_event", self.events.append)
        return run_tasks(scheduler, pool, **options)

    def of(self, kind) -> list:
        return [event for event in self.events if isinstance(event, kind)]

    def charged(self) -> Counter:
        return Counter(event.task.video for event in self.of(TaskFailed) if event.is_charged)


@pytest.fixture
def videos(tmp_path: Path) -> Videos:
    return Videos(tmp_path)


def states(result) -> dict[str, str]:
    return {status.video: status.state for status in result.videos}


def test_everything_runs_once_and_a_rerun_does_nothing(videos):
    for name in ("a", "b", "c"):
        videos.add(name, sleep_s=0.01)
    result = videos.run()
    assert states(result) == {"a": "done", "b": "done", "c": "done"}
    assert len(result.finished) == 3 * (2 * len(CHAIN) + 1) == len(videos.of(TaskStarted))
    assert result.finished == videos.of(TaskFinished)
    assert all(record.summary == {"generated": True} for record in result.finished)
    assert all(record.started_at <= record.ended_at for record in result.finished)
    assert {record.worker for record in result.finished} <= {event.worker for event in videos.of(WorkerJoined)}
    assert len({event.pid for event in videos.of(WorkerJoined)} - {os.getpid()}) == 2

    started = time.monotonic()
    again = videos.run()
    assert again.finished == []
    assert states(again) == states(result)
    assert time.monotonic() - started < 1, "a finished run must not start workers"


def test_eight_workers_eight_videos_one_of_which_kills_its_worker(videos):
    for number in range(8):
        deeds = {"edit-2": "kill"} if number == 5 else {}
        videos.add(f"v{number}", sleep_s=0.02, deeds=deeds)
    result = videos.run(num_workers=8)
    assert states(result) == {f"v{number}": "quarantined" if number == 5 else "done" for number in range(8)}
    status = result.videos[5]
    assert (status.failed_task.kind, status.failed_task.index, status.attempts) == ("edit", 2, 3)
    assert status.failure.error_type == "WorkerDied"
    assert "worker process" in status.failure.message
    assert status.num_edited == 2
    assert videos.charged() == {"v5": 3}
    for number in range(8):
        attempts = (Store(videos.url(f"v{number}")) / "attempts").names()
        assert attempts == (["edit-00002-1.json", "edit-00002-2.json", "edit-00002-3.json"] if number == 5 else [])
    assert len(videos.of(WorkerDied)) == 3
    assert [event.task for event in videos.of(VideoQuarantined)] == [status.failed_task]


def test_an_exception_is_charged_and_its_worker_goes_on(videos):
    videos.add("bad", deeds={"render-1": "raise no such colour"})
    videos.add("good")
    result = videos.run(num_workers=1)
    assert states(result) == {"bad": "quarantined", "good": "done"}
    failure = result.videos[0].failure
    assert (failure.error_type, failure.message) == ("ValueError", "no such colour")
    assert len(videos.of(WorkerJoined)) == 1
    assert videos.of(WorkerDied) == []


def test_a_quarantined_video_stays_so_until_its_ledger_is_cleared(videos):
    videos.add("v", deeds={"edit-0": "raise broken"})
    assert states(videos.run(max_attempts=2)) == {"v": "quarantined"}
    num_failures = len(videos.of(TaskFailed))
    assert states(videos.run(max_attempts=2)) == {"v": "quarantined"}
    assert len(videos.of(TaskFailed)) == num_failures == 2
    write_script(videos.url("v"), CHAIN)
    assert AttemptLedger(Store(videos.url("v")) / "attempts").clear() == 2
    assert states(videos.run(max_attempts=2)) == {"v": "done"}


def test_after_a_device_error_the_worker_is_built_anew(videos):
    videos.add("v", deeds={"edit-1": "raise-once CUDA error: an illegal memory access was encountered"})
    result = videos.run(num_workers=1)
    assert states(result) == {"v": "done"}
    assert [event.worker for event in videos.of(WorkerJoined)] == ["w0", "w0.1"]
    assert videos.charged() == {"v": 1}


def test_a_task_that_hangs_is_killed_and_charged(videos):
    videos.add("v", deeds={"edit-0": "sleep 100"})
    videos.add("good")
    result = videos.run(num_workers=2, max_attempts=1, task_timeout_s=3)
    assert states(result) == {"v": "quarantined", "good": "done"}
    assert result.videos[0].failure.error_type == "Timeout"


def test_a_task_that_calls_exit_is_charged(videos):
    videos.add("v", deeds={"edit-0": "exit"})
    result = videos.run(num_workers=1, max_attempts=1)
    assert states(result) == {"v": "quarantined"}
    assert result.videos[0].failure.error_type == "SystemExit"


def test_an_answer_that_cannot_be_sent_is_charged(videos):
    videos.add("v")
    result = videos.run(num_workers=1, max_attempts=2, factory="UnsendableStages")
    assert states(result) == {"v": "quarantined"}
    assert result.videos[0].failure.error_type == "TypeError"
    assert "cannot pickle" in result.videos[0].failure.message
    assert len(videos.of(WorkerJoined)) == 1, "its worker goes on"


def test_a_prefetch_that_kills_the_process_is_blamed_on_its_own_video(videos):
    videos.add("bad", sleep_s=0.05, deeds={"prefetch-3": "kill"})
    videos.add("good", sleep_s=0.01)
    result = videos.run(num_workers=1)
    assert states(result)["good"] == "done"
    assert set(videos.charged()) == {"bad"}


def test_the_next_segment_is_prefetched_while_one_is_edited(videos):
    videos.add("v", sleep_s=0.05)
    videos.run(num_workers=1)
    lines = [line for line, _ in generation_log(videos.url("v"))]
    for index in range(1, len(CHAIN)):
        prefetched = lines.index(f"prefetch edit {index}")
        assert prefetched < lines.index(f"commit edit {index - 1}"), "while the one before is edited"
        assert index == 1 or prefetched > lines.index(f"commit edit {index - 2}"), "not earlier"


def test_an_idle_worker_that_dies_costs_nobody_an_attempt(videos):
    """One chain on two workers: the second idles. Its process is killed while it has nothing to do."""
    videos.add("v", sleep_s=1.5, dependencies=CHAIN[:3])
    killed = []

    def kill_the_idle_one(event) -> None:
        videos.events.append(event)
        if isinstance(event, WorkerJoined) and not killed and len(videos.of(WorkerJoined)) == 2:
            busy = videos.of(TaskStarted)[-1].worker
            idle = next(event for event in videos.of(WorkerJoined) if event.worker != busy)
            os.kill(idle.pid, signal.SIGKILL)
            killed.append(idle.worker)

    result = videos.run(on_event=kill_the_idle_one)
    assert killed
    assert states(result) == {"v": "done"}
    assert videos.charged() == {}
    assert [event.worker for event in videos.of(WorkerDied)] == killed


@pytest.mark.parametrize(
    ("factory", "reason"),
    [("UnbuildableStages", "weights of 'tiny' are missing"), ("StagesOfKilledProcess", "worker process has died")],
)
def test_no_worker_can_be_built(videos, factory, reason):
    videos.add("v")
    with pytest.raises(WorkersUnavailable, match=f"failed to start 2 times in a row.*{reason}"):
        videos.run(num_workers=2, factory=factory, max_start_failures=2)


def test_no_node_can_hold_a_worker(videos, monkeypatch):
    monkeypatch.setattr("pipeline.executor.SHORT_POOL_S", 0.1)
    monkeypatch.setattr("pipeline.executor.POOL_CHECK_S", 0.5)
    videos.add("v")
    scheduler = Scheduler()
    add_from_store(scheduler, "v", videos.url("v"))
    pool = WorkerPool(stages=StagesSpec(factory="tests.stages:ScriptedStages"), num_workers=1, num_cpus=1000)
    with pytest.raises(WorkersUnavailable, match="each needs 1000 CPU"):
        run_tasks(scheduler, pool, start_timeout_s=0)


def test_fewer_places_than_workers_go_on_with_those_that_fit(videos, caplog, monkeypatch):
    monkeypatch.setattr("pipeline.executor.SHORT_POOL_S", 2.0)
    monkeypatch.setattr("pipeline.executor.POOL_CHECK_S", 0.5)
    videos.add("v", sleep_s=1.0)
    result = videos.run(num_workers=4, num_cpus=1.0)
    assert states(result) == {"v": "done"}
    assert sum("workers have not come up" in message for message in caplog.messages) == 1
    assert len(videos.of(WorkerJoined)) <= 2


def test_a_stopped_driver_leaves_no_workers(tmp_path):
    """SIGTERM ends the run with its workers; what was committed stays."""
    url = str(tmp_path / "v")
    write_script(url, CHAIN, sleep_s=0.3)
    address = ray.get_runtime_context().gcs_address
    command = [
        sys.executable,
        "-m",
        "tests.chaos.driver",
        "--workspace",
        str(tmp_path),
        "--address",
        address,
        "--workers",
        "2",
    ]
    process = subprocess.Popen([*command, "--events", str(tmp_path / "events")], stderr=subprocess.DEVNULL)
    while num_commits(url) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0
    pids = [
        int(line.split()[1]) for line in (tmp_path / "events").read_text().splitlines() if line.startswith("joined")
    ]
    assert len(pids) == 2
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived its driver"
        time.sleep(0.05)
    subprocess.run(command, check=True, timeout=120, stderr=subprocess.DEVNULL)
    assert len(result_bytes(url)) == 2 * len(CHAIN) + 1
    assert generated_again(url) == []
