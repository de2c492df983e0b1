"""`python -m model.training OPTIONS.json`: trains with nothing but this package's own needs (torch, diffusers, transformers, ...).

OPTIONS.json holds the fields of `TrainingConfig`; `output` is enough. `torchrun -m model.training OPTIONS.json` trains on several
GPUs or machines. `memory-v2v train` is the same with options on the command line, manifests and Ray.
"""

import sys
from pathlib import Path

from model.training.config import TrainingConfig


def main() -> int:
    """Returns the exit status: 0 trained, 2 the options are wrong."""
    if len(sys.argv) != 2:
        print("usage: python -m model.training OPTIONS.json", file=sys.stderr)
        return 2
    try:
        config = TrainingConfig.read(Path(sys.argv[1]))
        from model.training.trainer import train

        folder = train(config)
    except ValueError as error:
        print(f"model.training: {error}", file=sys.stderr)
        return 2
    print(f"preset written to {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
