"""Trains the bundled embedder on rendered worlds and measures what it is for: finding a place again after an absence.

Run it with `memory-v2v train-embedder`; the result is an open_clip folder.
Positives are two views of the same place of a world at different times; negatives are other worlds AND other places of the
same world, because retrieval chooses among the segments of one video.
"""

import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from model.training.worlds import SEGMENT_FRAMES, World, make_world, render, render_frames
from retrieval.embed import BUNDLED_FOLDER, Embedder, embedder_revision, load_embedder
from retrieval.train_clip import TINY_CLIP, ClipTraining, ImagePairs, new_clip, save_clip, train_clip

WORLD_FRAMES = 238
RENDER_SIZES = ((64, 64), (56, 72), (48, 88), (72, 56))
SAME_VIEW_RAD, OTHER_VIEW_RAD = 0.35, 0.8
SAME_PLACE_M, OTHER_PLACE_M = 1.2, 5.0
EVAL_SEGMENTS = 60
MIN_VISIBLE_SHARE = 0.01
"""Of a segment's pixels: less of the target is no visit."""


@dataclass(frozen=True, kw_only=True)
class EmbedderTraining:
    """`memory-v2v train embedder`: the bundled open_clip model.

    Attributes:
        out: folder to write.
        worlds_per_step: each gives two places, and each place a pair of frames.
        num_eval_worlds: held-out videos for the measurement.
    """

    out: Path = BUNDLED_FOLDER
    worlds_per_step: int = 16
    num_eval_worlds: int = 40
    num_threads: int = 1
    clip: ClipTraining = field(default_factory=ClipTraining)

    def __post_init__(self) -> None:
        if self.worlds_per_step < 2:
            raise ValueError(f"worlds_per_step is {self.worlds_per_step}; needs at least 2")


def train_embedder(config: EmbedderTraining) -> dict[str, float]:
    """Train, write the folder, measure, and write the measurement beside the weights. Returns the measurement."""
    torch.set_num_threads(config.num_threads)
    started = time.monotonic()
    losses: list[float] = []

    def tell(step: int, loss: float) -> None:
        losses.append(loss)
        if (step + 1) % 50 == 0:
            mean = sum(losses[-50:]) / 50
            print(f"step {step + 1}  loss {mean:.3f}  {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)

    pairs = world_pairs(config.clip.seed, num_worlds=config.worlds_per_step)
    model = train_clip(pairs, training=config.clip, on_step=tell)
    save_clip(model, TINY_CLIP, config.out)
    seconds = time.monotonic() - started
    metrics = measure_recall(load_embedder(str(config.out)), num_worlds=config.num_eval_worlds, seed=config.clip.seed)
    metrics |= {"final_loss": sum(losses[-50:]) / len(losses[-50:]), "training_s": seconds}
    record = {
        "command": "memory-v2v train-embedder",
        "settings": {**asdict(config), "out": None},
        "revision": embedder_revision(str(config.out)),
        "metrics": metrics,
    }
    (config.out / "metrics.json").write_text(json.dumps(record, indent=1) + "\n")
    return metrics


def world_pairs(seed: int, *, num_worlds: int) -> Iterator[ImagePairs]:
    """Endless batches of `2 * num_worlds` pairs from training worlds that never repeat."""
    rng = random.Random(f"embedder:{seed}")
    world_seed = 1_000_000_000 + seed * 100_000_000
    while True:
        size = rng.choice(RENDER_SIZES)
        first: list[torch.Tensor] = []
        second: list[torch.Tensor] = []
        captions: list[str] = []
        while len(captions) < 2 * num_worlds:
            world_seed += 1
            world = make_world(world_seed, split="train", num_frames=WORLD_FRAMES, absence_segments=(1, 4))
            views = _draw_views(world, rng)
            images = render_frames(world, [frame for pair in views for frame in pair], size=size).source
            images = _jitter(images, rng)
            first += [images[0], images[2]]
            second += [images[1], images[3]]
            captions += [world.caption_at(pair[0]) for pair in views]
        yield ImagePairs(first=torch.stack(first), second=torch.stack(second), captions=captions)


def _draw_views(world: World, rng: random.Random) -> list[tuple[int, int]]:
    """Two pairs of frames: the frames of a pair look at the same place, the pairs at different ones."""
    poses = [world.scene.camera.pose(frame) for frame in range(0, world.num_frames, 3)]

    def apart(a: int, b: int) -> tuple[float, float]:
        turn = abs((poses[a].yaw - poses[b].yaw + math.pi) % (2 * math.pi) - math.pi)
        return turn, math.dist(poses[a].position, poses[b].position)

    def choose(anchor: int, *, same: bool) -> int:
        found = []
        for other in range(len(poses)):
            turn, distance = apart(anchor, other)
            is_same = turn < SAME_VIEW_RAD and distance < SAME_PLACE_M
            is_other = turn > OTHER_VIEW_RAD or distance > OTHER_PLACE_M
            if is_same if same else is_other:
                found.append(other)
        late = [other for other in found if abs(other - anchor) * 3 > 2 * SEGMENT_FRAMES]
        return rng.choice(late or found or [anchor])

    anchor = rng.randrange(len(poses))
    other = choose(anchor, same=False)
    return [(view * 3, choose(view, same=True) * 3) for view in (anchor, other)]


def _jitter(images: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Each image with its own exposure and white balance, as if the camera had set them anew."""
    gains = torch.tensor([[rng.uniform(0.9, 1.1) * rng.uniform(0.8, 1.15) for _ in range(3)] for _ in images])
    return (images.float() * gains[:, None, None]).clamp(0, 255).to(torch.uint8)


def pixel_thumbnail(frames: np.ndarray) -> np.ndarray:
    """The baseline: the segment's mean frame as a centred, unit-norm 8 x 8 thumbnail."""
    mean = torch.from_numpy(frames).float().mean(0).permute(2, 0, 1)[None]
    small = functional.interpolate(mean, (8, 8), mode="area").flatten().numpy() - 127.5
    return small / np.linalg.norm(small)


def measure_recall(embedder: Embedder, *, num_worlds: int, seed: int, top_k: int = 3) -> dict[str, float]:
    """Recall@`top_k` of an earlier visit, for the first segment that sees the target again, on held-out worlds.

    A query sees the target after at least two segments without it; candidates are all segments before its predecessor (the
    predecessor is given to the editor anyway); it is answered when a candidate that sees the target is among the best.
    "chance" is the expected recall of a random choice among the same candidates.
    """
    untrained = Embedder(new_clip(TINY_CLIP, seed=seed + 1), name="untrained", revision="", device="cpu")
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "trained": embedder.embed_frames,
        "untrained": untrained.embed_frames,
        "pixels": pixel_thumbnail,
    }
    answered: dict[str, list[float]] = {name: [] for name in (*ways, "chance")}
    for world_seed in range(seed + 500, seed + 500 + num_worlds):
        world = make_world(
            world_seed,
            split="heldout",
            num_frames=EVAL_SEGMENTS * SEGMENT_FRAMES,
            task="recolour",
            absence_segments=(6, 18),
        )
        vectors: dict[str, list[np.ndarray]] = {name: [] for name in ways}
        sees = []
        for start in range(0, world.num_frames, SEGMENT_FRAMES):
            frames = render(world, start, start + SEGMENT_FRAMES, size=embedder.input_size)
            sees.append(float(frames.mask.float().mean()) > MIN_VISIBLE_SHARE)
            for name, embed in ways.items():
                vectors[name].append(embed(frames.source.numpy()))
        for query in range(3, len(sees)):
            relevant = [i for i in range(query - 1) if sees[i]]
            is_return = sees[query] and not sees[query - 1] and not sees[query - 2]
            if not is_return or not relevant or query - 1 <= top_k:
                continue
            num_candidates = query - 1
            misses = math.comb(num_candidates - len(relevant), top_k) / math.comb(num_candidates, top_k)
            answered["chance"].append(1 - misses)
            for name, found in vectors.items():
                scores = np.stack(found[:num_candidates]) @ found[query]
                best = np.argsort(-scores, kind="stable")[:top_k]
                answered[name].append(float(any(sees[i] for i in best)))
    metrics = {f"recall_at_{top_k}_{name}": float(np.mean(values)) for name, values in answered.items()}
    return metrics | {"num_queries": float(len(answered["chance"]))}
