"""Several training workers on GPUs or machines: the same loop in every one, started and restarted by Ray Train.

Ray Train gives every worker its rank and the process group; `model.training` finds both. A worker that dies takes the others
down with it, and all go on from the last checkpoint. `output` (and `cache`) must be folders that all machines share.
"""

import json
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from model.training.config import TrainingConfig
from model.training.data import load_data
from model.training.log import METRICS_FILE
from model.training.parallel import TIMEOUT
from model.training.start import starting_point
from model.training.trainer import CHECKPOINT_FILE, check_output, check_workers, train
from pipeline.ray_session import ray_resources, ray_session
from pipeline.run_record import RunError

LOOK_EVERY_S = 2.0
MAX_FAILURES = 3
"""Of workers, before the run is given up; it can be resumed even then."""


def train_with_workers(config: TrainingConfig, *, num_workers: int, address: str) -> Path:
    """Train with `num_workers` processes on a Ray; returns the preset folder.

    What can be refused is refused here, before Ray Train takes a refusal for a failure and tries again; and data is made here,
    where workers find it.

    Raises:
        ValueError: if the options are wrong, or the Ray has not so many GPUs.
        RunError: if workers failed again and again, or Ray cannot be reached.
    """
    check_output(config)
    check_workers(config, num_workers)
    config = replace(config, output=config.output.absolute(), cache=config.cache and config.cache.absolute())
    load_data(config, starting_point(config), is_shared=True)
    with ray_session(address, num_workers=num_workers):
        num_gpus = int(ray_resources().get("GPU", 0))
        use_gpu = num_gpus > 0 and config.device != "cpu"
        if use_gpu and num_gpus < num_workers:
            raise ValueError(f"workers is {num_workers}; this Ray has {num_gpus} GPUs")
        trainer = TorchTrainer(
            train_one,
            train_loop_config={"config": config},
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=int(TIMEOUT.total_seconds())),
            scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
            run_config=RunConfig(storage_path=str(config.output / "ray"), failure_config=FailureConfig(MAX_FAILURES)),
        )
        ended = Event()
        teller = Thread(target=follow, args=(config.output / METRICS_FILE, ended))
        teller.start()
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise RunError(f"training stopped after {MAX_FAILURES} failures; --resume goes on: {error}") from error
        finally:
            ended.set()
            teller.join()
    return config.output / "preset"


def train_one(options: dict[str, Any]) -> None:
    """One worker. After a failure of any it starts again, and goes on from the checkpoint."""
    config: TrainingConfig = options["config"]
    train(replace(config, resume=config.resume or (config.output / CHECKPOINT_FILE).exists()))


def follow(metrics: Path, ended: Event) -> None:
    """Print what the first worker logs, as Ray Train keeps what workers say to itself."""
    told = -1
    while not ended.wait(LOOK_EVERY_S):
        lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        for row in rows:
            if row["step"] > told:
                print(f"step {row['step']}  loss {row['loss']:.4f}  {row['step_s']:.2f} s/step", flush=True)
        told = max([told, *(row["step"] for row in rows)])
