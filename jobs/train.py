"""`memory-v2v train`: trains the editor of a preset on rendered worlds. Options are those of `TrainingConfig`."""

import sys

import tyro

from model.training.config import TrainingConfig
from model.training.trainer import train


def main(argv: list[str]) -> int:
    """Returns the exit status: 0 trained, 2 the options are wrong."""
    try:
        folder = train(tyro.cli(TrainingConfig, args=argv, prog="memory-v2v train"))
    except ValueError as error:
        print(f"memory-v2v train: {error}", file=sys.stderr)
        return 2
    print(f"preset written to {folder}")
    return 0
