"""Own videos to train on: a manifest of (source, edited, instruction) becomes a folder of segments in latents.

Both videos of a pair are cut where the source is, resized to the nearest size the preset knows, and encoded by its codec. The
folder is all that training needs: `model.training` reads no video files. It appears whole or not at all, and is found again
by its content. Everything wrong with any pair is listed, with its line, before anything is encoded.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from model.geometry import Geometry
from model.presets import resolve_preset
from model.prompts import num_tokens
from model.training.config import TrainingConfig
from model.training.data import segment_file
from model.training.extension import changed_pixels
from model.training.segments import (
    Segments,
    VideoCodec,
    codec_revision,
    encode,
    latent_mask,
    padded,
    pixels,
    write_segments,
)
from model.training.start import Start, starting_point
from pipeline.source import look, split_url
from pipeline.table import Columns, ManifestError, Problem, absolute, read_rows, text_of
from pipeline.video.io import Inspection, inspect, iter_span
from pipeline.video.split import split_shots

COLUMNS = Columns(required=("source", "edited", "instruction"))
VIDEOS = ("source", "edited")


@dataclass(frozen=True, kw_only=True)
class TrainingPair:
    """A video, the same edited, and what was asked for; both are absolute paths or URLs."""

    line: int
    source: str
    edited: str
    instruction: str


@dataclass(frozen=True, kw_only=True)
class ProbedPair:
    pair: TrainingPair
    source: Inspection
    edited: Inspection


def is_manifest(data: str) -> bool:
    """Whether training data is a table of pairs: anything with a suffix that is no folder."""
    return data != "worlds" and not Path(data).is_dir()


def load_pairs(url: str, *, check_instruction: Callable[[str], None] = lambda text: None) -> list[TrainingPair]:
    """The rows of a `.jsonl`, `.csv` or `.parquet` manifest; relative paths are relative to its folder.

    Raises:
        ManifestError: with every problem of every row, if there is any.
    """
    raw, problems = read_rows(url, COLUMNS)
    folder, _ = split_url(url)
    pairs = []
    for line, values in raw:
        found: dict[str, str] = {}
        texts = {name: text_of(values, name, found) if name in values else "" for name in COLUMNS.required}
        if texts["instruction"]:
            try:
                check_instruction(texts["instruction"])
            except ValueError as error:
                found["instruction"] = str(error)
        problems.extend(Problem(line=line, column=column, message=message) for column, message in found.items())
        paths = {name: absolute(texts[name], folder) if texts[name] else "" for name in VIDEOS}
        pairs.append(TrainingPair(line=line, instruction=texts["instruction"], **paths))
    if problems:
        raise ManifestError(url, problems)
    return pairs


def prepare_pairs(config: TrainingConfig) -> Path:
    """The folder of segments of the manifest `config.data`, in `cache` or `output`; made if it is not there.

    Raises:
        ValueError: for a base that is not there or cannot be trained.
        ManifestError: with every row that is wrong, cannot be read, or whose videos differ in length.
    """
    url, base = config.data, None if config.base is None else resolve_preset(config.base)

    def check_instruction(text: str) -> None:
        if base is not None:
            base.check_instruction(text)
        elif num_tokens(text, None) > config.max_instruction_tokens:
            raise ValueError(f"has {num_tokens(text, None)} tokens; needs at most {config.max_instruction_tokens}")

    pairs = load_pairs(url, check_instruction=check_instruction)
    start = starting_point(config)
    made = (config.cache or config.output).absolute() / f"pairs-{pairs_id(url, pairs, start)}"
    if made.is_dir():
        return made
    probed = probe_pairs(url, pairs)
    partial = made.with_suffix(f".{os.getpid()}.partial")
    frames, revision = start.geometry.segment_frames, codec_revision(start.codec)
    by_size: dict[tuple[int, int], list[tuple[int, ProbedPair]]] = {}
    for number, item in enumerate(probed):
        info = item.source.info
        size = start.geometry.size_for(info.display_width, info.display_height)
        by_size.setdefault(size, []).append((number, item))
    for size, items in by_size.items():
        segments = encode_pairs(items, codec=start.codec, geometry=start.geometry, size=size)
        write_segments(partial / segment_file("pairs", size=size, frames=frames, revision=revision), segments)
    try:
        partial.rename(made)
    except OSError:
        # Another run has made the same folder meanwhile.
        if not made.is_dir():
            raise
        shutil.rmtree(partial)
    return made


def pairs_id(url: str, pairs: list[TrainingPair], start: Start) -> str:
    """Changes with the rows, their files, the codec or the geometry.

    Raises:
        ManifestError: with every file that is not there.
    """
    problems, files = [], []
    for pair in pairs:
        for column in VIDEOS:
            try:
                files.append([*look(getattr(pair, column))])
            except ValueError as error:
                problems.append(Problem(line=pair.line, column=column, message=str(error)))
    if problems:
        raise ManifestError(url, problems)
    what = [[asdict(pair) for pair in pairs], files, codec_revision(start.codec), asdict(start.geometry)]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]


def probe_pairs(url: str, pairs: list[TrainingPair]) -> list[ProbedPair]:
    """Both videos of every pair, decoded once.

    Raises:
        ManifestError: with every video that cannot be used, and every pair whose videos differ in length.
    """
    problems, probed = [], []
    for pair in tqdm(pairs, desc="probing pairs", mininterval=10):
        found: dict[str, Inspection] = {}
        for column in VIDEOS:
            try:
                found[column] = inspect(getattr(pair, column))
            except ValueError as error:
                problems.append(Problem(line=pair.line, column=column, message=str(error)))
        if len(found) < len(VIDEOS):
            continue
        lengths = [found[column].info.num_frames for column in VIDEOS]
        if lengths[0] != lengths[1]:
            message = f"has {lengths[1]} frames; needs the {lengths[0]} of its source"
            problems.append(Problem(line=pair.line, column="edited", message=message))
        probed.append(ProbedPair(pair=pair, **found))
    if problems:
        raise ManifestError(url, problems)
    return probed


def encode_pairs(
    items: list[tuple[int, ProbedPair]], *, codec: VideoCodec, geometry: Geometry, size: tuple[int, int]
) -> Segments:
    """Latents of all segments of numbered pairs at one frame size."""
    latents: dict[str, list[torch.Tensor]] = {name: [] for name in (*VIDEOS, "mask")}
    worlds, shots, instructions = [], [], {}
    for number, item in tqdm(items, desc=f"pairs {size[0]}x{size[1]}", mininterval=10):
        info = item.source.info
        spans = split_shots(info.num_frames, item.source.cuts, geometry)
        instructions[number] = item.pair.instruction
        frames = {
            name: iter_span(getattr(item.pair, name), getattr(item, name), 0, info.num_frames, size=size)
            for name in VIDEOS
        }
        for span in spans:
            both = {name: next_segment(frames[name], span.num_frames, geometry.segment_frames) for name in VIDEOS}
            for name in VIDEOS:
                latents[name].append(encode(codec, both[name]).cpu())
            latents["mask"].append(latent_mask(changed_pixels(both["source"][0], both["edited"][0]), codec))
            worlds.append(number)
            shots.append(span.shot)
    return Segments(
        source=torch.stack(latents["source"]),
        edited=torch.stack(latents["edited"]),
        mask=torch.stack(latents["mask"]),
        world=torch.tensor(worlds),
        shot=torch.tensor(shots),
        instructions=instructions,
    )


def next_segment(frames: Iterator[np.ndarray], num_frames: int, length: int) -> torch.Tensor:
    """`[1, 3, T, H, W]` in [0, 1], the last frame repeated where the segment is shorter."""
    video = torch.from_numpy(np.stack(list(islice(frames, num_frames))))
    return pixels(padded(video, length))
