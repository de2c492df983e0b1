"""A folder on any fsspec URL: the one door to Arrow files and to storage.

Every write appears whole or not at all: on local disks by writing beside and renaming, on object stores because a put
is atomic. Knows nothing of what is stored (see `schema.py`, `latents.py`).
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq


class Store:
    """A folder at `url` (local path, `s3://…`, `gs://…`, `memory://…`)."""

    def __init__(self, url: str) -> None:
        self.fs, self.root = fsspec.core.url_to_fs(url)
        self.root = self.root.rstrip("/")
        self.url = url.rstrip("/")

    def __truediv__(self, name: str) -> "Store":
        return Store(f"{self.url}/{name}")

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    @property
    def is_local(self) -> bool:
        return "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))

    def exists(self, name: str) -> bool:
        return bool(self.fs.exists(self.path(name)))

    def names(self, suffix: str = "") -> list[str]:
        """File names directly in this folder that end in `suffix`, sorted; empty if the folder does not exist."""
        self.fs.invalidate_cache(self.root)
        try:
            entries = self.fs.ls(self.root, detail=False)
        except FileNotFoundError:
            return []
        names = (entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries)
        return sorted(name for name in names if name.endswith(suffix) and not name.startswith(".tmp-"))

    def read_bytes(self, name: str) -> bytes:
        data: bytes = self.fs.cat_file(self.path(name))
        return data

    def write_bytes(self, name: str, data: bytes) -> None:
        if not self.is_local:
            self.fs.pipe_file(self.path(name), data)
            return
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.parent / f".tmp-{uuid.uuid4().hex}"
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)

    def put_file(self, local: Path, name: str) -> None:
        """Move a finished local file into the store, at once or not at all."""
        if not self.is_local:
            self.fs.put_file(str(local), self.path(name))
            local.unlink()
            return
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.parent / f".tmp-{uuid.uuid4().hex}"
        shutil.move(str(local), beside)
        beside.replace(target)

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """The file for reading, seekable."""
        with self.fs.open(self.path(name), "rb") as file:
            yield file

    def delete(self, name: str) -> None:
        """Remove a file or folder; nothing happens if it is not there."""
        if self.exists(name):
            self.fs.rm(self.path(name), recursive=True)

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        return pq.read_table(pa.BufferReader(self.read_bytes(name)), columns=columns)

    def write_table(self, name: str, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write_bytes(name, sink.getvalue().to_pybytes())
