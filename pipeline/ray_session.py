"""Ray for the time of a run: a private one that goes with it, or a running cluster that is left as it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

PRIVATE_OBJECT_STORE_BYTES = 256 << 20
"""Frames and latents go through the store, never through Ray's object store."""


@contextmanager
def ray_session(address: str) -> Iterator[None]:
    """Ray for the time of a run. A private one is shut down with the run; one that was there before is left as it is."""
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    if address == "local":
        ray.init(address="local", include_dashboard=False, object_store_memory=PRIVATE_OBJECT_STORE_BYTES, **quiet)
    else:
        ray.init(address=address, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def ray_resources() -> dict[str, float]:
    return ray.cluster_resources()


def default_workers() -> int:
    """One per GPU of the cluster, else one per core."""
    resources = ray_resources()
    return max(1, int(resources.get("GPU", 0)) or int(resources.get("CPU", 1)))
