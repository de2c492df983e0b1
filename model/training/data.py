"""The segments a run is trained on: rendered worlds, or a folder of segments made of videos; continued where that is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.training.config import TrainingConfig
from model.training.extension import extend_segments, make_extender
from model.training.segments import WORLD_FRAMES, Segments, codec_revision, load_cache, read_segments, write_segments
from model.training.start import Start

SHORT_SEED = 100_000
"""First of the worlds of one segment."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """By size: what batches with memory are drawn from, and those without."""

    cache: Sequence[Segments]
    short: Sequence[Segments]


def load_data(config: TrainingConfig, start: Start, *, is_shared: bool) -> Data:
    """Made where it is not there yet; with `is_shared` kept in a folder where other workers find it.

    Raises:
        ValueError: if there is no such data, it is of another codec, or nothing in it can be remembered.
    """
    folder = config.cache or (config.output / "cache" if is_shared or config.extension != "none" else None)
    cache, short = worlds(config, start, folder) if config.data == "worlds" else read_folder(config, start)
    if config.extension != "none":
        assert folder is not None
        cache = extended(cache, config, start, folder)
        short = short if config.data == "worlds" else cache
    data = Data(cache=cache, short=short)
    if config.memoryless < 1 and not any(len(item.world) > len(item.world.unique()) for item in cache):
        raise ValueError(
            "data holds no video of two segments or more, so there is nothing to remember; "
            "needs longer videos, an extension, or memoryless 1"
        )
    print(f"{sum(map(len, cache))} segments, and {sum(map(len, short))} for batches without memory", flush=True)
    return data


def worlds(config: TrainingConfig, start: Start, folder: Path | None) -> tuple[list[Segments], list[Segments]]:
    frames = start.geometry.segment_frames
    cache, short = (
        load_cache(
            folder, codec=start.codec, sizes=start.geometry.sizes, num_worlds=count, first_seed=first_seed,
            segment_frames=frames, workers=config.render_workers, num_frames=num_frames,
        )
        for count, first_seed, num_frames in (
            (config.num_worlds, 0, WORLD_FRAMES),
            (config.num_short_worlds, SHORT_SEED, frames),
        )
    )  # fmt: skip
    return cache, short


def segment_file(name: str, *, size: tuple[int, int], frames: int, revision: str) -> str:
    """Tells what the latents are of: frame size, segment length and codec."""
    return f"{name}-{size[0]}x{size[1]}x{frames}-{revision}.pt"


def read_folder(config: TrainingConfig, start: Start) -> tuple[list[Segments], list[Segments]]:
    """Segments of videos; batches without memory come from the same."""
    folder = Path(config.data)
    found = sorted(folder.glob("*.pt")) if folder.is_dir() else []
    if not found:
        raise ValueError(
            f"data is {config.data!r}; needs 'worlds' or a folder of segments "
            "(`memory-v2v train --data MANIFEST` makes one of a manifest of videos)"
        )
    ending = f"x{start.geometry.segment_frames}-{codec_revision(start.codec)}.pt"
    others = [path.name for path in found if not path.name.endswith(ending)]
    if others:
        raise ValueError(
            f"data {config.data} has {others[0]}, of another codec or segment length than this run; needs …{ending}"
        )
    cache = [read_segments(path) for path in found]
    return cache, cache


def extended(cache: Sequence[Segments], config: TrainingConfig, start: Start, folder: Path) -> list[Segments]:
    """Every video continued; kept, because that takes long."""
    extender, done = None, []
    for number, segments in enumerate(cache):
        size = (segments.source.shape[3] * start.codec.patch[0], segments.source.shape[4] * start.codec.patch[1])
        who = start.base.weights_revision if config.extension == "own" and start.base else "framepack"
        name = f"{config.extension}-{who}-{config.extension_segments}-{config.seed}-{number}-{len(segments)}"
        revision = codec_revision(start.codec)
        path = folder / segment_file(name, size=size, frames=start.geometry.segment_frames, revision=revision)
        if not path.exists():
            extender = extender or make_extender(config, start)
            continued = extend_segments(
                segments, extender, start.codec, num_segments=config.extension_segments, seed=config.seed
            )
            write_segments(path, continued)
        done.append(read_segments(path))
    return done
