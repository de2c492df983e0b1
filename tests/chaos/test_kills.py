"""SIGKILL at random moments of workers, of the driver, of a raylet: what the store holds afterwards is what an undisturbed
run would have made, and nothing committed was made twice. Three nodes on one machine; every kill is drawn from a seed.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from pipeline.tasks import Task
from pipeline.video.io import write_video
from retrieval.store import Store
from tests.jobs.commands import committed, latent_bytes, memory_v2v, moving_frames, start
from tests.stages import (
    ScriptedStages,
    done_tasks,
    generated_again,
    generation_log,
    num_commits,
    result_bytes,
    write_script,
)

pytestmark = pytest.mark.ray

NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
PATIENCE_S = 240


HEAD = NODE | {
    "include_dashboard": False,
    "_system_config": {"health_check_period_ms": 1000, "health_check_failure_threshold": 8},
}
"""A dead node is noticed after eight seconds; a starved one must not be."""


def patiently(start: Callable[[], Any]) -> Any:
    """Ray gives a node 30 s to start, which a busy machine may exceed."""
    for _ in range(4):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    return start()


def kill_node(cluster: Cluster, node: Any) -> None:
    node.all_processes["raylet"][0].process.kill()
    cluster.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head and two more nodes."""
    cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args=HEAD))
    for _ in range(2):
        patiently(lambda: cluster.add_node(wait=False, **NODE))
    yield cluster
    cluster.shutdown()


@dataclass
class Edits:
    """Videos in a folder, and a driver that edits them, killed and started again as needed."""

    folder: Path
    cluster: Cluster
    seed: int
    num_videos: int
    num_segments: int
    events_read: int = 0
    drivers: list[subprocess.Popen] = field(default_factory=list)

    def __post_init__(self) -> None:
        for url in self.urls:
            self.write_video(url)

    def write_video(self, url: str) -> None:
        rng = random.Random(f"{self.seed} {Path(url).name}")
        dependencies = [
            tuple(sorted({*([i - 1] if i % 5 else []), *rng.sample(range(i), k=min(i, 2))}))
            for i in range(self.num_segments)
        ]
        write_script(url, dependencies, sleep_s=[rng.uniform(0.02, 0.05) for _ in dependencies])

    @property
    def urls(self) -> list[str]:
        return [str(self.folder / f"v{number}") for number in range(self.num_videos)]

    def num_committed(self) -> int:
        return sum(num_commits(url) for url in self.urls)

    def start_driver(self, *options: str) -> None:
        command = [sys.executable, "-m", "tests.chaos.driver", "--workspace", str(self.folder)]
        command += options or ["--workers", "4"]
        command += ["--address", self.cluster.address, "--events", str(self.folder / f"events-{len(self.drivers)}")]
        with self.driver_log(len(self.drivers)).open("wb") as log:
            self.drivers.append(subprocess.Popen(command, stdout=log, stderr=log))

    def driver_log(self, number: int) -> Path:
        return self.folder / f"driver-{number}.log"

    def worker_pids(self) -> list[int]:
        """Workers of the running driver that are alive."""
        events = self.folder / f"events-{len(self.drivers) - 1}"
        lines = events.read_text().splitlines() if events.exists() else []
        pids = [int(line.split()[1]) for line in lines if line.startswith("joined")]
        return [pid for pid in pids if psutil.pid_exists(pid)]

    def failures(self) -> list[str]:
        """What the drivers' executors said of tasks that failed: "error_type is_charged"."""
        lines = [line for path in self.folder.glob("events-*") for line in path.read_text().splitlines()]
        return [line.split(" ", 2)[2] for line in lines if line.startswith("failed")]

    def num_charged(self) -> int:
        return sum(len((Store(url) / "attempts").names()) for url in self.urls)

    def wait_until(self, is_so, what: str) -> None:
        """Give the driver more to do should it end before: a raylet takes long to replace."""
        deadline = time.monotonic() + PATIENCE_S
        while not is_so():
            if self.drivers[-1].poll() == 0:
                self.num_videos += 1
                self.write_video(self.urls[-1])
                self.start_driver()
            assert self.drivers[-1].poll() is None, (
                f"the driver ended before {what}: {self.driver_log(len(self.drivers) - 1).read_text()[-2000:]}"
            )
            assert time.monotonic() < deadline, f"waited {PATIENCE_S} s for {what}"
            time.sleep(0.01)

    def kill(self, victim: str, rng: random.Random) -> None:
        if victim == "worker":
            self.wait_until(self.worker_pids, "a worker")
            os.kill(rng.choice(self.worker_pids()), signal.SIGKILL)
        elif victim == "driver":
            self.drivers[-1].kill()
            self.drivers[-1].wait()
            self.start_driver()
        else:
            kill_node(self.cluster, rng.choice(sorted(self.cluster.worker_nodes, key=lambda node: node.unique_id)))
            patiently(lambda: self.cluster.add_node(wait=False, **NODE))

    def run(self, victims: list[str], rng: random.Random) -> None:
        """Edit everything; kill one victim after the other at random counts of commits."""
        total = self.num_videos * (2 * self.num_segments + 1)
        moments = sorted(rng.sample(range(1, total - 5), k=len(victims)))
        self.start_driver()
        for moment, victim in zip(moments, victims, strict=True):
            self.wait_until(lambda moment=moment: self.num_committed() >= moment, f"commit {moment} of {total}")
            time.sleep(rng.uniform(0, 0.05))
            self.kill(victim, rng)
        assert self.drivers[-1].wait(PATIENCE_S) == 0

    def undisturbed(self) -> list[dict[str, bytes]]:
        """What one process makes of the same videos, one task after the other."""
        results = []
        for url in self.urls:
            script = Store(url).read_json("script.json")
            calm = f"{url}-undisturbed"
            write_script(calm, script["dependencies"])
            stages, video = ScriptedStages(), Path(url).name
            for kind in ("edit", "render"):
                for index in range(self.num_segments):
                    stages.run(Task(video, kind, index, calm))
            stages.run(Task(video, "assemble", 0, calm))
            results.append(result_bytes(calm))
        return results


def check(edits: Edits, victims: list[str]) -> None:
    for url in edits.urls:
        assert len(done_tasks(url)) == 2 * edits.num_segments + 1
        assert generated_again(url) == []
    assert [result_bytes(url) for url in edits.urls] == edits.undisturbed()
    assert edits.num_charged() <= victims.count("worker"), "a driver's or a node's death was charged to a segment"


def test_five_kills(cluster, tmp_path):
    rng = random.Random(2)
    victims = ["worker", "worker", "driver", "driver", "raylet"]
    rng.shuffle(victims)
    edits = Edits(tmp_path, cluster, seed=2, num_videos=3, num_segments=12)
    edits.run(victims, rng)
    check(edits, victims)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(5))
def test_fifty_kills(cluster, tmp_path, seed):
    rng = random.Random(seed)
    victims = ["worker"] * 5 + ["driver"] * 3 + ["raylet"] * 2
    rng.shuffle(victims)
    edits = Edits(tmp_path, cluster, seed=seed, num_videos=4, num_segments=25)
    edits.run(victims, rng)
    check(edits, victims)


def test_a_lost_node_costs_no_segment_an_attempt(cluster, tmp_path):
    """The node is killed while its workers are in the middle of long segments."""
    edits = Edits(tmp_path, cluster, seed=0, num_videos=4, num_segments=3)
    for url in edits.urls:
        write_script(url, [(), (0,), (1,)], sleep_s=[0.05, 3.0, 0.05])
    edits.start_driver()
    edits.wait_until(lambda: len(edits.worker_pids()) == 4 and edits.num_committed() >= 4, "all workers are busy")
    edits.kill("raylet", random.Random(0))
    assert edits.drivers[-1].wait(PATIENCE_S) == 0
    check(edits, ["raylet"])
    assert edits.failures(), "no task ran on the lost node; the test tests nothing"
    assert set(edits.failures()) == {"NodeLost False"}


def test_a_node_that_joins_later_is_used(cluster, tmp_path):
    """With as many workers as the cluster holds: one per CPU."""
    edits = Edits(tmp_path, cluster, seed=0, num_videos=1, num_segments=1)
    write_script(edits.urls[0], [()] * 1000, sleep_s=0.5)
    edits.start_driver("--cpus", "1")
    edits.wait_until(lambda: len(edits.worker_pids()) == 3, "three workers")
    node = patiently(lambda: cluster.add_node(wait=False, **NODE))

    def has_four() -> bool:
        return len({process for line, process in generation_log(edits.urls[0]) if line.startswith("commit")}) == 4

    edits.wait_until(has_four, "commits of a fourth")
    edits.drivers[-1].terminate()
    edits.drivers[-1].wait()
    cluster.remove_node(node)


def edit_workers(cluster: Cluster) -> list[psutil.Process]:
    """Of this cluster: other tests run workers beside it."""
    raylets = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in cluster.list_all_nodes()]
    started = [process for raylet in raylets for process in raylet.children(recursive=True)]
    return [process for process in started if is_edit_worker(process)]


def is_edit_worker(process: psutil.Process) -> bool:
    try:
        return "".join(process.cmdline()[:1]).startswith("ray::_Actor.run")
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def test_the_real_edit_survives_a_node_a_worker_and_the_driver(cluster, tmp_path):
    """`memory-v2v edit` with the bundled network on three nodes; the same latents as an undisturbed run on one."""
    videos = [tmp_path / f"v{seed}.mp4" for seed in range(2)]
    for seed, path in enumerate(videos):
        write_video(path, moving_frames(8 * 17, height=64, width=64, seed=seed), 25)
    workspace, calm = tmp_path / "workspace", tmp_path / "calm"
    edit = ("edit", *videos, "--instruction", "make it look like a warm sunset", "--workers", "3", "--json")
    command = (*edit, "--workspace", workspace, "--address", cluster.address)

    def wait_for_commits(count: int, process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while len(committed(workspace)) < count:
            assert process.poll() is None, f"ended before commit {count}: {process.communicate()[1][-2000:]}"
            assert time.monotonic() < deadline, f"waited {PATIENCE_S} s for commit {count}"
            time.sleep(0.02)

    process = start(*command)
    wait_for_commits(2, process)
    kill_node(cluster, min(cluster.worker_nodes, key=lambda node: node.unique_id))
    wait_for_commits(5, process)
    workers = edit_workers(cluster)
    assert workers, "no worker is editing"
    workers[0].kill()
    wait_for_commits(8, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    patiently(lambda: cluster.add_node(wait=False, **NODE))
    kept = committed(workspace)
    assert len(kept) < 16, "everything was done before the driver was killed; the test tests nothing"

    answer = memory_v2v(*command)
    assert answer.status == 0, answer.stderr
    assert {video["status"] for video in answer.result["videos"]} == {"done"}
    after = committed(workspace)
    assert {name: after[name] for name in kept} == kept, "a committed segment was generated again"
    assert memory_v2v(*edit, "--workspace", calm).status == 0
    assert latent_bytes(workspace) == latent_bytes(calm)
