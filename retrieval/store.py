"""A folder on any fsspec URL: the one door to Arrow files and to storage.

Every write appears whole or not at all: on local disks by writing beside and renaming, on object stores because a put
is atomic. Nothing is read from a listing cache, because other processes write the same folders. Credentials, endpoints
and the like come from where fsspec takes them (`AWS_ENDPOINT_URL`, `FSSPEC_S3_…`, `~/.config/fsspec`). Knows nothing of
what is stored (see `schema.py`, `latents.py`).
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

TEMPORARY_PREFIX = ".tmp-"
EXTRA_OF_PROTOCOL = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


class StoreError(OSError):
    """A folder or file of the store cannot be used; the message names its URL and says why."""


class Store:
    """A folder at `url` (local path, `s3://…`, `gs://…`, `memory://…`). The folder need not exist.

    Raises:
        ValueError: if the URL is empty, its protocol unknown or the protocol's package not installed.
    """

    def __init__(self, url: str) -> None:
        if not url:
            raise ValueError("store url is empty; needs a folder or a URL such as s3://bucket/folder")
        try:
            self.fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            protocol = url.split("://", 1)[0]
            extra = EXTRA_OF_PROTOCOL.get(protocol)
            remedy = f"pip install 'memory-v2v[{extra}]'" if extra else str(error)
            raise ValueError(f"store url {url!r} needs a package that is not installed: {remedy}") from error
        self.root = root.rstrip("/")
        # A relative path would mean another folder in a worker that was started elsewhere.
        self.url = self.root if self.is_local else url.rstrip("/")

    def __truediv__(self, name: str) -> "Store":
        return Store(f"{self.url}/{name}")

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def __reduce__(self) -> tuple[type["Store"], tuple[str]]:
        return Store, (self.url,)

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def url_of(self, name: str) -> str:
        """What an error message or another program calls the file."""
        return f"{self.url}/{name}"

    @property
    def is_local(self) -> bool:
        return "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))

    @property
    def has_buckets(self) -> bool:
        protocols = self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,)
        return any(protocol in EXTRA_OF_PROTOCOL for protocol in protocols)

    def check_writable(self) -> None:
        """Write and remove a probe, so that a run ends before any work if its workspace cannot be used.

        Raises:
            StoreError: if there is no such bucket, no permission, no credentials, no space or no route.
        """
        probe = f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            self.write_bytes(probe, b"")
            self.delete(probe)
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(f"{self.url}: cannot be written: {describe(error)}") from error

    def exists(self, name: str) -> bool:
        with self._naming(name):
            return bool(self.fs.exists(self.path(name)))

    def names(self, suffix: str = "") -> list[str]:
        """Names of files and folders directly in this folder that end in `suffix`, sorted; empty if there is no such folder.

        Raises:
            StoreError: if it cannot be listed (no such bucket, no permission, no route).
        """
        with self._naming(""):
            try:
                entries = self.fs.ls(self.root, detail=False)
            except FileNotFoundError as error:
                bucket = self.root.split("/", 1)[0]
                # An object store has no empty folders, but it has buckets, and a mistyped one must not look empty.
                if self.has_buckets and not self.fs.exists(bucket):
                    raise StoreError(f"{self.url}: there is no bucket {bucket!r}") from error
                return []
        paths = (entry.rstrip("/") for entry in entries)
        found = (path.rsplit("/", 1)[-1] for path in paths if path != self.root)
        return sorted(name for name in found if name.endswith(suffix) and not name.startswith(TEMPORARY_PREFIX))

    def read_bytes(self, name: str) -> bytes:
        """Raises FileNotFoundError naming the URL if there is no such file."""
        with self._naming(name):
            data: bytes = self.fs.cat_file(self.path(name))
            return data

    def write_bytes(self, name: str, data: bytes | pa.Buffer, *, is_flushed: bool = True) -> None:
        """`is_flushed=False` spares a local disk's flush: after a power cut, not after a kill, the file may be lost or empty."""
        if not self.is_local:
            with self._naming(name):
                self.fs.pipe_file(self.path(name), bytes(data))
            return
        with self._beside(name) as beside, beside.open("wb", buffering=0) as file:
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]
            if is_flushed:
                os.fsync(file.fileno())

    def put_file(self, local: Path, name: str) -> None:
        """Move a finished local file into the store, at once or not at all."""
        if not self.is_local:
            with self._naming(name):
                self.fs.put_file(str(local), self.path(name))
            local.unlink()
            return
        with self._beside(name) as beside:
            shutil.move(local, beside)
            with beside.open("rb") as file:
                os.fsync(file.fileno())

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """The file for reading, seekable."""
        with self._naming(name):
            file = self.fs.open(self.path(name), "rb")
        with file:
            yield file

    def delete(self, name: str) -> None:
        """Remove a file or folder; nothing happens if it is not there."""
        with self._naming(name), suppress(FileNotFoundError):
            self.fs.rm(self.path(name), recursive=True)

    def read_json(self, name: str) -> Any:
        try:
            return json.loads(self.read_bytes(name))
        except ValueError as error:
            raise StoreError(f"{self.url_of(name)}: not JSON: {error}") from error

    def write_json(self, name: str, value: Any, *, indent: int | None = 1, is_flushed: bool = True) -> None:
        """`indent=None` writes one line, several times faster; `is_flushed` as for `write_bytes`."""
        try:
            text = json.dumps(value, indent=indent, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{self.url_of(name)}: {describe(error)}") from error
        self.write_bytes(name, f"{text}\n".encode(), is_flushed=is_flushed)

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        data = self.read_bytes(name)
        try:
            return pq.read_table(pa.BufferReader(data), columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise StoreError(f"{self.url_of(name)}: not a readable Parquet file: {describe(error)}") from error

    def write_table(self, name: str, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write_bytes(name, sink.getvalue())

    @contextmanager
    def _beside(self, name: str) -> Iterator[Path]:
        """A temporary path next to the file, renamed onto it if the block succeeds and removed if it does not."""
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            yield beside
            beside.replace(target)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Make what object stores raise say which URL, as the errors of a local file system do."""
        if self.is_local:
            yield
            return
        url = self.url_of(name) if name else self.url
        try:
            yield
        except StoreError:
            raise
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{url}: {describe(error)}") from error
        except Exception as error:  # the clients' own classes: botocore's, google-auth's, aiohttp's
            raise StoreError(f"{url}: {type(error).__name__}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """What an exception says, or its class where it says nothing."""
    return str(error).strip() or type(error).__name__
