"""Ray for the time of a run: a private one that goes with it, or a running cluster that is left as it is."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from pipeline.run_record import RunError

START_ATTEMPTS = 3
PRIVATE_OBJECT_STORE_BYTES = 256 << 20
"""Frames and latents go through the store, never through Ray's object store."""


@contextmanager
def ray_session(address: str, *, num_workers: int | None = None) -> Iterator[None]:
    """Ray for the time of a run. A private one is shut down with the run; one that was there before is left as it is."""
    if ray.is_initialized():
        yield
        return
    start(address, num_workers=num_workers)
    try:
        yield
    finally:
        ray.shutdown()


def start(address: str, *, num_workers: int | None) -> None:
    """Ray gives itself 30 s to start, too little on a machine whose cores are all taken: a private one is tried again."""
    settings: dict[str, Any] = {"address": address, "logging_level": "error", "log_to_driver": False}
    attempts = 1
    if address == "local":
        # A worker reserves a core: whoever asks for more workers than cores gets them.
        settings["num_cpus"] = max(os.cpu_count() or 1, num_workers or 1)
        settings |= {"include_dashboard": False, "object_store_memory": PRIVATE_OBJECT_STORE_BYTES}
        attempts = START_ATTEMPTS
    for attempt in range(1, attempts + 1):
        try:
            ray.init(**settings)
            return
        except Exception as error:  # Ray raises the bare class here
            ray.shutdown()
            if attempt == attempts:
                raise RunError(f"--address {address}: Ray cannot be reached or started: {error}") from error


def ray_resources() -> dict[str, float]:
    return ray.cluster_resources()


def default_workers() -> int:
    """One per GPU of the cluster, else one per core."""
    resources = ray_resources()
    return max(1, int(resources.get("GPU", 0)) or int(resources.get("CPU", 1)))
