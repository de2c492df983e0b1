"""What all tests share: a local Ray and an S3 server on demand, isolated random state, and the rule for GPU tests."""

import os
import random
import sys
from collections.abc import Iterator

import pytest

# Ray's workers run at niceness 15: beside another test's processes they would hardly run at all.
os.environ.setdefault("RAY_worker_niceness", "0")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        if os.environ.get("REQUIRE_GPU") == "1":
            pytest.fail("REQUIRE_GPU=1, and there is no GPU")
        pytest.skip("needs a GPU")


@pytest.fixture(autouse=True)
def same_random_state_for_every_test() -> None:
    """A test draws the same numbers alone, in any order, and after any other. One thread: small tensors on shared cores."""
    random.seed(0)
    if "numpy" in sys.modules:
        import numpy as np

        np.random.seed(0)
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(0)
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A private Ray with two CPUs, started by the first test that asks for it. Workers may reserve fractions of a CPU."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """URL of an empty bucket on a real S3 server on loopback; s3fs finds it as it would find any, through the environment."""
    boto3 = pytest.importorskip("boto3")
    s3fs = pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("NO_PROXY", "127.0.0.1")
        boto3.client("s3").create_bucket(Bucket="films")
        s3fs.S3FileSystem.clear_instance_cache()
        yield "s3://films"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()
