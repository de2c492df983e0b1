"""`memory-v2v train`: trains the editor of a preset, on rendered worlds or on own videos. Options are those of `TrainingConfig`."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import tyro

from jobs.console import command_error
from model.training.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class TrainCommand(TrainingConfig):
    __doc__ = TrainingConfig.__doc__

    workers: int = 1
    """Processes that train together, one per GPU where there are GPUs, on one or many machines (Ray Train)."""
    address: str | None = None
    """Ray of the workers: local (a private one), auto (the running cluster), or HOST:PORT. Default: auto inside a Ray job, else local."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}; needs at least 1")


def main(argv: list[str]) -> int:
    """Returns the exit status: 0 trained, 2 the options or the data are wrong, or workers failed again and again."""
    command = tyro.cli(TrainCommand, args=argv, prog="memory-v2v train")
    from pipeline.run_record import RunError

    try:
        folder = run(command)
    except (ValueError, RunError) as error:
        return command_error("train", error)
    print(f"preset written to {folder}")
    return 0


def run(command: TrainCommand) -> Path:
    """Prepare the data if it is a manifest, then train here or with workers."""
    # Heavy imports only after the options are right.
    from model.training.trainer import check_output, train
    from pipeline.training_pairs import is_manifest, prepare_pairs

    config = TrainingConfig(**{field.name: getattr(command, field.name) for field in fields(TrainingConfig)})
    check_output(config)
    if is_manifest(config.data):
        config = replace(config, data=str(prepare_pairs(config)))
    if command.workers == 1:
        return train(config)
    from jobs.edit import default_address
    from pipeline.training_workers import train_with_workers

    return train_with_workers(config, num_workers=command.workers, address=command.address or default_address())
