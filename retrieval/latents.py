"""The external memory: one Parquet file of latents per finished segment, which is its own commit record.

    segment-00012.json      written first: who made the latents, when and how fast, and size and SHA-256 of their file
    segment-00012.parquet   written last: one row per tensor, and in the footer what they were made from; nothing that
                            depends on time

A segment counts as done when its Parquet file is there, which appears whole or not at all (`store.py`) and once it is there
needs nothing else. The JSON file beside it is not flushed to disk: a kill leaves it whole, a power cut may take it, and
then it is only no longer known how long that segment took. "edited" and "source" latents are stored as bfloat16 (that rounding is
the only loss); everything else bit for bit. The bytes of a tensor are laid out for compression, see `docs/decisions.md`
and `benchmarks/results/latent_store_*`: the elements' high bytes, then their low bytes, each plane a zstd frame with a
checksum; where that is smaller, the high bytes of "edited" are stored as their difference from those of "source".

`put` gives back what `get` will give. Feed the network those values: only then does an edit that was interrupted and
resumed equal one that was not.
"""

import hashlib
import json
import math
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

# Latents are noise to a match finder: their gain is in Huffman coding of the exponents, and matches found in passing only
# spoil it. Long matches and a small hash table find few; they beat plain levels 1 to 13 in size and in speed.
ZSTD_PARAMETERS = zstandard.ZstdCompressionParameters.from_level(
    1, strategy=zstandard.STRATEGY_FAST, min_match=7, hash_log=6, chain_log=6, write_checksum=1, write_content_size=1
)
HIGH_BYTE = np.uint16(0xFF00)
BFLOAT16_EXPONENT = np.uint16(0x7F80)
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
            without it (size, checksums, metadata); it takes 10 to 40 % longer.
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
            record: how they came to be (timings, worker, attempt); JSON-able.

        Returns:
            The tensors as `get` gives them: the same dtypes, values as stored.
        """
        if taken := {"segment", "format_version", "bytes", "sha256", "tensors"} & set(record):
            raise ValueError(f"record of segment {index} sets {sorted(taken)}; the store sets these itself")
        entry = {
            name: (stored_values(index, name, tensor), dtype_name(name, tensor)) for name, tensor in tensors.items()
        }
        head = {"format_version": FORMAT_VERSION, "segment": index, "meta": dict(meta)}
        data = parquet_bytes([encode_row(name, entry) for name in sorted(entry)], head)
        self.store.write_json(
            record_name(index),
            {
                **record,
                "segment": index,
                "format_version": FORMAT_VERSION,
                "bytes": data.size,
                "sha256": hashlib.sha256(data).hexdigest(),
                "tensors": {
                    name: {"shape": list(tensor.shape), "dtype": dtype} for name, (tensor, dtype) in entry.items()
                },
            },
            indent=None,
            is_flushed=False,
        )
        self.store.write_bytes(parquet_name(index), data)
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
        url = self.store.url_of(parquet_name(index))
        try:
            with self.store.open(parquet_name(index)) as file:
                return read_head(pq.read_schema(file), index, url)["meta"]
        except FileNotFoundError as error:
            raise StoreError(f"segment {index} is not committed: there is no {url}") from error
        except pa.ArrowException as error:
            raise StoreError(f"{url}: not readable: {describe(error)}") from error

    def record(self, index: int) -> dict[str, Any]:
        """How a committed segment came to be; empty if a power cut took what was known of it."""
        try:
            return dict(json.loads(self.store.read_bytes(record_name(index))))
        except (FileNotFoundError, ValueError):
            return {}

    def committed(self) -> set[int]:
        """Segments that are done. One listing."""
        return committed_segments(self.store)

    def is_committed(self, index: int) -> bool:
        return self.store.exists(parquet_name(index))

    def _read(self, index: int) -> dict[str, tuple[Tensor, str]]:
        url = self.store.url_of(parquet_name(index))
        try:
            data = self.store.read_bytes(parquet_name(index))
            if self.is_sha256_checked and hashlib.sha256(data).hexdigest() != self.record(index).get("sha256"):
                raise StoreError(f"{url}: its SHA-256 is not the one in {record_name(index)}")
            table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
            read_head(table.schema, index, url)
            return decode_rows(table)
        except FileNotFoundError as error:
            raise StoreError(f"segment {index} is not committed: there is no {url}") from error
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
    if not rounded.is_floating_point() or not is_finite(rounded):
        raise ValueError(
            f"segment {index}: {name!r} has dtype {values.dtype}; it must be floating and finite as bfloat16"
        )
    return rounded


def is_finite(tensor: Tensor) -> bool:
    """Read off the exponents where they are whole bits of an integer: `torch.isfinite` takes 20 times as long on a CPU."""
    if tensor.dtype != torch.bfloat16:
        return bool(torch.isfinite(tensor).all())
    return not bool(((tensor_bits(tensor) & BFLOAT16_EXPONENT) == BFLOAT16_EXPONENT).any())


def parquet_bytes(rows: list[dict[str, Any]], head: Mapping[str, Any]) -> pa.Buffer:
    """The file. Arrow's own copy of the schema is left out: it is as long as a percent of a small latent."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, LATENT_SCHEMA, compression="none", use_dictionary=False, write_statistics=False, store_schema=False
    ) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=LATENT_SCHEMA))
        writer.add_key_value_metadata({METADATA_KEY: json.dumps(head, sort_keys=True, allow_nan=False).encode()})
    return sink.getvalue()


def encode_row(name: str, entry: Mapping[str, tuple[Tensor, str]]) -> dict[str, Any]:
    tensor, dtype = entry[name]
    bits, reference = tensor_bits(tensor), None
    planes = [compress_plane(bits, i) for i in reversed(range(bits.itemsize))]
    other = entry.get(REFERENCES.get(name, ""), (None, ""))[0]
    if other is not None and other.dtype == tensor.dtype == torch.bfloat16 and other.shape == tensor.shape:
        # Sign and exponent of an edit are mostly those of its source, or next to them. The low bytes stay as they are.
        difference = compress_plane(bits - (tensor_bits(other) & HIGH_BYTE), 1)
        if len(difference) < len(planes[0]):
            planes[0], reference = difference, REFERENCES[name]
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
    sizes = [(math.prod(row["shape"]), len(row["plane_bytes"])) for row in rows]
    starts = [0, *accumulate(-(-count * itemsize // ALIGNMENT) * ALIGNMENT for count, itemsize in sizes)]
    # One allocation for all: fresh memory costs a page fault per 4 KiB, and large arrays get huge pages.
    memory = torch.from_numpy(np.empty(max(starts[-1], 1), np.uint8))
    entry: dict[str, tuple[Tensor, str]] = {}
    for place in sorted(range(len(rows)), key=lambda place: rows[place]["reference"] is not None):
        row, (count, itemsize) = rows[place], sizes[place]
        raw = memory[starts[place] : starts[place] + count * itemsize]
        tensor = raw.view(DTYPES[row["stored_dtype"]]).reshape(row["shape"])
        bits = tensor_bits(tensor)
        reference = None if row["reference"] is None else tensor_bits(entry[row["reference"]][0])
        expand_planes(table["data"][place].as_buffer(), row["plane_bytes"], bits, reference)
        entry[row["name"]] = (tensor, row["dtype"])
    return entry


def tensor_bits(tensor: Tensor) -> np.ndarray:
    """`[num_elements]` unsigned integers that share the tensor's memory."""
    flat = tensor.reshape(-1)
    return flat.view(torch.uint8).numpy().view(f"u{tensor.element_size()}")


def compress_plane(bits: np.ndarray, byte: int) -> bytes:
    """One zstd frame of one byte (0 is the lowest) of every element. Apart: exponents compress and mantissas do not."""
    if not hasattr(SCRATCH, "compressor"):  # of this thread: two may not share one
        SCRATCH.compressor = zstandard.ZstdCompressor(compression_params=ZSTD_PARAMETERS)
    plane = (bits >> bits.dtype.type(8 * byte)).astype(np.uint8)
    compressed: bytes = SCRATCH.compressor.compress(plane)
    return compressed


def expand_planes(data: pa.Buffer, plane_bytes: list[int], bits: np.ndarray, reference: np.ndarray | None) -> None:
    """The inverse of `compress_plane` for all bytes, highest first, into `bits`; high bytes relative to those of `reference` if there is one."""
    view, start = memoryview(data), 0
    planes = scratch_planes(len(plane_bytes), bits.size)
    decompressor = zstandard.ZstdDecompressor()
    for plane, num_bytes in zip(planes, plane_bytes, strict=True):
        with decompressor.stream_reader(view[start : start + num_bytes]) as reader:
            if reader.readinto(plane) != bits.size or reader.read(1):
                raise ValueError("a plane's length does not fit the tensor's shape")
        start += num_bytes
    if len(planes) != 2:
        bits.view(np.uint8).reshape(bits.size, len(planes))[...] = planes[::-1].T
        return
    for first in range(0, bits.size, BLOCK):
        part = slice(first, first + BLOCK)
        block = bits[part]
        block[...] = planes[0, part]
        block <<= 8
        block |= planes[1, part]
        if reference is not None:
            block += reference[part] & HIGH_BYTE


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
