"""The same command through `ray job submit`, against a real local cluster with its job server."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.video.io import inspect, write_video
from tests.jobs.commands import ROOT, moving_frames

RAY = Path(sys.executable).with_name("ray")
# Ray guards its job server with a token; client and cluster must both be told.
ENVIRONMENT = {**os.environ, "RAY_ADDRESS": "", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

pytestmark = pytest.mark.ray


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def job_server(tmp_path: Path) -> Iterator[str]:
    """Address of the job server of a one-node cluster of its own, killed as a process group afterwards."""
    port, dashboard_port, agent_port = free_port(), free_port(), free_port()
    cluster = subprocess.Popen(
        [
            RAY, "start", "--head", "--block", f"--port={port}", "--include-dashboard=true",
            f"--dashboard-port={dashboard_port}", f"--dashboard-agent-listen-port={agent_port}", "--num-cpus=2", "--node-ip-address=127.0.0.1",
            "--object-store-memory=200000000", "--disable-usage-stats",
        ],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
    )  # fmt: skip
    address = f"http://127.0.0.1:{dashboard_port}"
    try:
        wait_until_it_answers(address, cluster)
        yield address
    finally:
        os.killpg(cluster.pid, signal.SIGTERM)
        try:
            cluster.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(cluster.pid, signal.SIGKILL)
            cluster.wait()


def wait_until_it_answers(address: str, cluster: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(f"{address}/api/jobs/", timeout=5):
                return
        except urllib.error.HTTPError:  # it answers: not without the token
            return
        except OSError:
            assert cluster.poll() is None, "the cluster did not start"
            assert time.monotonic() < deadline, "the job server did not answer"
            time.sleep(0.5)


def test_the_command_runs_as_a_submitted_job(job_server: str, tmp_path: Path) -> None:
    source, workspace = tmp_path / "source.mp4", tmp_path / "workspace"
    write_video(source, moving_frames(20, height=64, width=64, seed=0), 25)
    command = [
        RAY, "job", "submit", "--address", job_server, "--working-dir", ".", "--",
        sys.executable, "-m", "jobs", "edit", str(source), "--instruction", "'make it look like a warm sunset'",
        "--workspace", str(workspace), "--json",
    ]  # fmt: skip
    deadline = time.monotonic() + 120
    while True:
        submitted = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=480)
        if "No available agent" not in submitted.stderr or time.monotonic() > deadline:
            break  # on a busy machine the node's agent comes up after the job server
        time.sleep(2)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert '"status": "done"' in submitted.stdout
    (record,) = workspace.glob("videos/source-*/edits/*/record.json")
    output = record.parent / json.loads(record.read_text())["output"]
    assert inspect(str(output)).info.num_frames == 20
