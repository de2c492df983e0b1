"""`memory-v2v train-embedder`: trains the open_clip model that compares source segments, on rendered worlds."""

import json

import tyro

from pipeline.train_embedder import EmbedderTraining, train_embedder


def main(argv: list[str]) -> int:
    print(json.dumps(train_embedder(tyro.cli(EmbedderTraining, args=argv, prog="memory-v2v train-embedder")), indent=1))
    return 0
