"""A driver to be killed: edits every video of a workspace with `ScriptedStages`, from what the store says.

Run as `python -m tests.chaos.driver --workspace FOLDER`; exit status 0 when every video is done.
"""

import argparse
import sys
from pathlib import Path

import ray

from pipeline.events import Event, TaskFailed, WorkerJoined
from pipeline.executor import WorkerPool, run_tasks
from pipeline.scheduler import Scheduler
from pipeline.worker import StagesSpec
from tests.stages import add_from_store


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--address", default="local")
    parser.add_argument("--workers", type=int, help="as many as the cluster holds, if not given")
    parser.add_argument("--cpus", type=float, default=0.2, help="that each worker reserves")
    parser.add_argument("--events", type=Path, help="append one line per event that a killer wants to know")
    arguments = parser.parse_args()
    scheduler = Scheduler(max_attempts=100)  # of random kills, some hit the same task more than three times
    for script in sorted(arguments.workspace.glob("*/script.json")):
        add_from_store(scheduler, script.parent.name, str(script.parent))
    if scheduler.is_finished:
        return 0
    local = {"num_cpus": 2, "include_dashboard": False} if arguments.address == "local" else {}
    ray.init(address=arguments.address, log_to_driver=False, **local)

    def write_event(event: Event) -> None:
        if arguments.events is None:
            return
        with arguments.events.open("a") as file:
            if isinstance(event, WorkerJoined):
                file.write(f"joined {event.pid} {event.worker}\n")
            elif isinstance(event, TaskFailed):
                file.write(f"failed {event.task.video} {event.failure.error_type} {event.is_charged}\n")

    pool = WorkerPool(
        stages=StagesSpec(factory="tests.stages:ScriptedStages", num_threads=None),
        num_workers=arguments.workers,
        num_cpus=arguments.cpus,
    )
    result = run_tasks(scheduler, pool, on_event=write_event, node_grace_s=0.3)
    return 0 if all(status.state == "done" for status in result.videos) else 1


if __name__ == "__main__":
    sys.exit(main())
