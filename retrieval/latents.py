"""The external memory: one Parquet file of latents per finished segment, and its commit record.

    segment-00012.parquet   one row per tensor; what the editor made and what it depends on, nothing that depends on time
    segment-00012.json      written last: who made it, when and how fast, and the size and SHA-256 of the Parquet file

A segment counts as done when both are there. "edited" and "source" latents are stored as bfloat16 (that rounding is
the only loss); everything else bit for bit. The bytes of a tensor are laid out for compression, see `docs/decisions.md`
and `benchmarks/results/latent_store_*`: the elements' high bytes, then their low bytes, each plane a zstd frame with a
checksum; where that is smaller, what is stored is the distance from another tensor of the file ("edited" from
"source") in units in the last place.

`put` gives back what `get` will give. Feed the network those values: only then does an edit that was interrupted and
resumed equal one that was not.
"""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zstandard
from torch import Tensor

from retrieval.commits import committed_segments, parquet_name, record_name
from retrieval.schema import PlannedSegment
from retrieval.store import Store, StoreError, describe

FORMAT_VERSION = 1
METADATA_KEY = b"memory_v2v.latents"
LATENT_NAMES = ("edited", "source")
REFERENCES = {"edited": "source"}
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bfloat16,
        torch.float16,
        torch.float32,
        torch.float64,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

LATENT_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("shape", pa.list_(pa.int32())),
        ("dtype", pa.string()),
        ("stored_dtype", pa.string()),
        ("reference", pa.string()),
        ("plane_bytes", pa.list_(pa.int32())),
        ("data", pa.large_binary()),
    ]
)

# Latents are noise to a match finder: their gain is all in Huffman coding of the exponents, so matches under seven
# bytes only cost (0.692 of raw against 0.697 at plain level 1, and faster).
ZSTD_PARAMETERS = zstandard.ZstdCompressionParameters.from_level(
    1, strategy=zstandard.STRATEGY_FAST, min_match=7, write_checksum=True, write_content_size=True
)
# A distance costs twice the time to read, so it must earn it.
REFERENCE_GAIN = 0.9
# Elements worked on at once: both planes and the result stay in the L2 cache.
BLOCK = 1 << 16
SCRATCH = threading.local()
MAX_SCRATCH_BYTES = 64 << 20
ALIGNMENT = 64


def latent_meta(segment: PlannedSegment, *, weights_revision: str) -> dict[str, Any]:
    """What a segment's latents were made from, as it is kept with them."""
    return {
        "start_frame": segment.start_frame,
        "end_frame": segment.end_frame,
        "seed": segment.seed,
        "weights_revision": weights_revision,
        "memory": [asdict(memory) for memory in segment.memory],
    }


class LatentLRU:
    """Recently used latents of this process, at most `max_bytes` of them. Several stores may share one."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._entries: OrderedDict[tuple[str, int], dict[str, tuple[Tensor, str]]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int]) -> dict[str, tuple[Tensor, str]] | None:
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key]

    def put(self, key: tuple[str, int], entry: dict[str, tuple[Tensor, str]]) -> None:
        with self._lock:
            self.num_bytes += entry_bytes(entry) - entry_bytes(self._entries.pop(key, {}))
            self._entries[key] = entry
            while self.num_bytes > self.max_bytes:
                _, oldest = self._entries.popitem(last=False)
                self.num_bytes -= entry_bytes(oldest)


def entry_bytes(entry: Mapping[str, tuple[Tensor, str]]) -> int:
    return sum(tensor.nbytes for tensor, _ in entry.values())


class LatentStore:
    """The latents of one edit, in its folder `latents/`. Safe to use from two threads.

    Attributes:
        store: the folder.
        lru: shared with other edits of the process if given; else one of 64 MiB of its own.
        is_sha256_checked: also compare the SHA-256 of every file read. Truncated, damaged and foreign files are found
            without it (size, checksums, metadata); it costs about a third of the reading time.
    """

    def __init__(self, store: Store, *, lru: LatentLRU | None = None, is_sha256_checked: bool = False) -> None:
        self.store = store
        self.lru = LatentLRU(64 << 20) if lru is None else lru
        self.is_sha256_checked = is_sha256_checked

    def put(
        self, index: int, tensors: Mapping[str, Tensor], *, meta: Mapping[str, Any], record: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Commit a segment.

        Args:
            index: the segment.
            tensors: by name; "edited" and "source" must be finite.
            meta: what they were made from (`latent_meta`); JSON-able and independent of time and place.
            record: how they were made (timings, worker, attempt); JSON-able.

        Returns:
            The tensors as `get` gives them: the same dtypes, values as stored.
        """
        if taken := {"segment", "format_version", "bytes", "sha256", "tensors"} & set(record):
            raise ValueError(f"record of segment {index} sets {sorted(taken)}; the store sets these itself")
        entry = {
            name: (stored_values(index, name, tensor), dtype_name(name, tensor)) for name, tensor in tensors.items()
        }
        head = {"format_version": FORMAT_VERSION, "segment": index, "meta": dict(meta)}
        text = json.dumps(head, sort_keys=True, allow_nan=False)
        rows = [encode_row(name, entry) for name in sorted(entry)]
        table = pa.Table.from_pylist(rows, schema=LATENT_SCHEMA.with_metadata({METADATA_KEY: text.encode()}))
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="none", use_dictionary=False, write_statistics=False)
        data = sink.getvalue()
        self.store.write_bytes(parquet_name(index), data)
        self.store.write_json(
            record_name(index),
            {
                **record,
                "segment": index,
                "format_version": FORMAT_VERSION,
                "bytes": data.size,
                "sha256": hashlib.sha256(data).hexdigest(),
                "tensors": {row["name"]: {"shape": row["shape"], "dtype": row["dtype"]} for row in rows},
            },
        )
        self.lru.put((self.store.url, index), entry)
        return given(entry, entry)

    def get(self, index: int, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The tensors of a committed segment, all or those named; the caller's own copies.

        Raises:
            StoreError: if the segment is not committed or its file is damaged; names the file.
            KeyError: if it has no tensor of that name.
        """
        entry = self.lru.get((self.store.url, index))
        if entry is None:
            entry = self._read(index)
            self.lru.put((self.store.url, index), entry)
        wanted = list(entry if names is None else names)
        if missing := [name for name in wanted if name not in entry]:
            raise KeyError(f"segment {index} has no tensor {missing[0]!r}; it has {sorted(entry)}")
        return given(entry, wanted)

    def meta(self, index: int) -> dict[str, Any]:
        """What the segment was made from, as given to `put`. Reads only the file's footer."""
        self.record(index)
        url = self.store.url_of(parquet_name(index))
        try:
            with self.store.open(parquet_name(index)) as file:
                return read_head(pq.read_schema(file), index, url)["meta"]
        except (pa.ArrowException, FileNotFoundError) as error:
            raise StoreError(f"{url}: not readable: {describe(error)}") from error

    def record(self, index: int) -> dict[str, Any]:
        """The commit record."""
        try:
            return self.store.read_json(record_name(index))
        except FileNotFoundError as error:
            url = self.store.url_of(record_name(index))
            raise StoreError(f"segment {index} is not committed: there is no {url}") from error

    def committed(self) -> set[int]:
        """Segments that are done. One listing."""
        return committed_segments(self.store)

    def is_committed(self, index: int) -> bool:
        return self.store.exists(record_name(index)) and self.store.exists(parquet_name(index))

    def _read(self, index: int) -> dict[str, tuple[Tensor, str]]:
        record = self.record(index)
        url = self.store.url_of(parquet_name(index))
        try:
            data = self.store.read_bytes(parquet_name(index))
            if len(data) != record["bytes"]:
                raise StoreError(f"{url}: has {len(data)} bytes; its commit record says {record['bytes']}")
            if self.is_sha256_checked and hashlib.sha256(data).hexdigest() != record["sha256"]:
                raise StoreError(f"{url}: its SHA-256 is not the one in its commit record")
            table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
            read_head(table.schema, index, url)
            return decode_rows(table)
        except FileNotFoundError as error:
            raise StoreError(f"{url}: missing, though segment {index} is committed") from error
        except (pa.ArrowException, zstandard.ZstdError, KeyError, ValueError, TypeError) as error:
            raise StoreError(f"{url}: damaged: {type(error).__name__}: {describe(error)}") from error


def given(entry: Mapping[str, tuple[Tensor, str]], names: Iterable[str]) -> dict[str, Tensor]:
    """Copies in the dtypes that were put, so that whoever writes into them does not change the memory."""
    return {name: entry[name][0].to(DTYPES[entry[name][1]], copy=True) for name in names}


def read_head(schema: pa.Schema, index: int, url: str) -> dict[str, Any]:
    text = (schema.metadata or {}).get(METADATA_KEY)
    if text is None:
        raise StoreError(f"{url}: not a file of latents")
    head = json.loads(text)
    if head["format_version"] != FORMAT_VERSION:
        raise StoreError(f"{url}: has format version {head['format_version']}; this version reads {FORMAT_VERSION}")
    if head["segment"] != index:
        raise StoreError(f"{url}: holds segment {head['segment']}")
    return head


def dtype_name(name: str, tensor: Tensor) -> str:
    if tensor.dtype not in DTYPE_NAMES:
        raise ValueError(f"tensor {name!r} has dtype {tensor.dtype}; needs one of {', '.join(DTYPES)}")
    return DTYPE_NAMES[tensor.dtype]


def stored_values(index: int, name: str, tensor: Tensor) -> Tensor:
    """The tensor on the CPU with the values that are kept."""
    values = tensor.detach().to("cpu", copy=True).contiguous()
    if name not in LATENT_NAMES:
        return values
    rounded = values.to(torch.bfloat16) if values.dtype in (torch.float32, torch.float64) else values
    if not rounded.is_floating_point() or not bool(torch.isfinite(rounded).all()):
        raise ValueError(
            f"segment {index}: {name!r} has dtype {values.dtype}; it must be floating and finite as bfloat16"
        )
    return rounded


def encode_row(name: str, entry: Mapping[str, tuple[Tensor, str]]) -> dict[str, Any]:
    tensor, dtype = entry[name]
    reference = None
    planes = compress_planes(tensor_bits(tensor))
    other = entry.get(REFERENCES.get(name, ""), (None, ""))[0]
    if other is not None and other.dtype == tensor.dtype == torch.bfloat16 and other.shape == tensor.shape:
        distance = ulp_distance(tensor_bits(tensor), tensor_bits(other))
        distance_planes = compress_planes(distance)
        if sum(map(len, distance_planes)) < REFERENCE_GAIN * sum(map(len, planes)):
            reference, planes = REFERENCES[name], distance_planes
    return {
        "name": name,
        "shape": list(tensor.shape),
        "dtype": dtype,
        "stored_dtype": DTYPE_NAMES[tensor.dtype],
        "reference": reference,
        "plane_bytes": [len(plane) for plane in planes],
        "data": b"".join(planes),
    }


def decode_rows(table: pa.Table) -> dict[str, tuple[Tensor, str]]:
    """All tensors of a file, those that others refer to first."""
    rows = table.select(["name", "shape", "dtype", "stored_dtype", "reference", "plane_bytes"]).to_pylist()
    data = table["data"].combine_chunks() if table["data"].num_chunks != 1 else table["data"].chunk(0)
    sizes = [(int(np.prod(row["shape"], dtype=np.int64)), len(row["plane_bytes"])) for row in rows]
    starts = [0, *accumulate(-(-count * itemsize // ALIGNMENT) * ALIGNMENT for count, itemsize in sizes)]
    # One allocation for all: fresh memory costs a page fault per 4 KiB, and large arrays get huge pages.
    memory = torch.from_numpy(np.empty(max(starts[-1], 1), np.uint8))
    entry: dict[str, tuple[Tensor, str]] = {}
    for place in sorted(range(len(rows)), key=lambda place: rows[place]["reference"] is not None):
        row, (count, itemsize) = rows[place], sizes[place]
        raw = memory[starts[place] : starts[place] + count * itemsize]
        tensor = raw.view(DTYPES[row["stored_dtype"]]).reshape(row["shape"])
        bits = tensor_bits(tensor)
        expand_planes(data[place].as_buffer(), row["plane_bytes"], bits)
        if row["reference"] is not None:
            add_ulp_distance(bits, tensor_bits(entry[row["reference"]][0]))
        entry[row["name"]] = (tensor, row["dtype"])
    return entry


def tensor_bits(tensor: Tensor) -> np.ndarray:
    """`[num_elements]` unsigned integers that share the tensor's memory."""
    flat = tensor.reshape(-1)
    return flat.view(torch.uint8).numpy().view(f"u{tensor.element_size()}")


def compress_planes(bits: np.ndarray) -> list[bytes]:
    """One zstd frame per byte of the element, highest first. Apart: exponents compress and mantissas do not."""
    compressor = zstandard.ZstdCompressor(compression_params=ZSTD_PARAMETERS)
    columns = bits.view(np.uint8).reshape(bits.size, bits.itemsize)
    return [compressor.compress(columns[:, i].tobytes()) for i in reversed(range(bits.itemsize))]


def expand_planes(data: pa.Buffer, plane_bytes: list[int], bits: np.ndarray) -> None:
    """The inverse of `compress_planes`, into `bits`."""
    view, start = memoryview(data), 0
    planes = scratch_planes(len(plane_bytes), bits.size)
    decompressor = zstandard.ZstdDecompressor()
    for plane, num_bytes in zip(planes, plane_bytes, strict=True):
        with decompressor.stream_reader(view[start : start + num_bytes]) as reader:
            if reader.readinto(plane) != bits.size or reader.read(1):
                raise ValueError("a plane's length does not fit the tensor's shape")
        start += num_bytes
    if len(planes) == 2:
        for first in range(0, bits.size, BLOCK):
            block = bits[first : first + BLOCK]
            block[...] = planes[0, first : first + BLOCK]
            block <<= 8
            block |= planes[1, first : first + BLOCK]
    else:
        bits.view(np.uint8).reshape(bits.size, len(planes))[...] = planes[::-1].T


def scratch_planes(num_planes: int, num_elements: int) -> np.ndarray:
    """`[num_planes, num_elements]` bytes of this thread that the next call takes again.

    Fresh memory each time would cost more in page faults than decompression does.
    """
    num_bytes = num_planes * num_elements
    planes = getattr(SCRATCH, "planes", None)
    if planes is None or planes.size < num_bytes:
        planes = np.empty(num_bytes, np.uint8)
        if num_bytes <= MAX_SCRATCH_BYTES:
            SCRATCH.planes = planes
    return planes[:num_bytes].reshape(num_planes, num_elements)


def ulp_distance(bits: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """How many bfloat16 values lie between, plus 128, so that small distances of either sign have a high byte of 0."""
    distance = ordered(bits.view(np.int16)) - ordered(reference.view(np.int16))
    return (distance + np.int16(128)).view(np.uint16)


def add_ulp_distance(distance: np.ndarray, reference: np.ndarray) -> None:
    """The inverse of `ulp_distance`, in place. Modulo 2^16, so every pair of values comes back."""
    for first in range(0, distance.size, BLOCK):
        block = distance[first : first + BLOCK].view(np.int16)
        block += ordered(reference[first : first + BLOCK].view(np.int16))
        block -= np.int16(128)
        block[...] = ordered(block)


def ordered(bits: np.ndarray) -> np.ndarray:
    """Integers in the order of the floats whose bits these are (negative floats reversed). Its own inverse."""
    mask = bits >> 15
    mask &= 0x7FFF
    mask ^= bits
    return mask
