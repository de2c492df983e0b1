"""Who a source file is: its content hash, and the cheap signs by which an unchanged file is recognised.

An edit's identity starts at the sha256 of the source's bytes. Reading a feature film through takes a minute, so the
hash is kept with the file's size and stamp (`videos/<id>/source.json`) and computed again only if one of them changed.
Knows nothing of video: a file that is no video has an identity too, and fails at the probe.

Limit: as with make and rsync, a local file replaced by another of equal size AND equal modification time is taken for
the same file.
"""

import hashlib
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retrieval.store import Store

HASH_BLOCK_BYTES = 8 << 20
SOURCE_FILE = "source.json"

STAMP_KEYS = ("ETag", "etag", "generation", "LastModified", "updated", "mtime", "modified", "created")
"""Where fsspec's file systems keep a sign that changes with the content, surest first (S3, GCS, HTTP, memory)."""


class SourceError(ValueError):
    """A source that cannot be edited, before anything of it was decoded."""


class SourceMissing(SourceError):
    """Nothing is there."""


class SourceIsDirectory(SourceError):
    """A folder where a video file is needed."""


class SourceUnreadable(SourceError):
    """It may be there, but it cannot be read: permission, bucket, network, protocol."""


class SourceEmpty(SourceError):
    """A file of 0 bytes."""


@dataclass(frozen=True, kw_only=True)
class SourceIdentity:
    """What `source.json` holds.

    Attributes:
        uri: where the file was read.
        size_bytes: its size.
        stamp: modification time in ns (local files) or entity tag (object stores); empty where there is neither, and
            then the file is read again every time.
        sha256: of its bytes, hexadecimal.
    """

    uri: str
    size_bytes: int
    stamp: str
    sha256: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "SourceIdentity":
        return cls(**value)


def identify(uri: str, cached: SourceIdentity | None = None) -> SourceIdentity:
    """The identity of the file at `uri` (path or fsspec URL); reads it through unless `cached` still holds.

    Raises:
        SourceMissing, SourceIsDirectory, SourceUnreadable, SourceEmpty: as they say; each names the uri.
    """
    size_bytes, stamp = look(uri)
    if cached is not None and stamp and (cached.uri, cached.size_bytes, cached.stamp) == (uri, size_bytes, stamp):
        return cached
    folder, name = split_url(uri)
    digest, num_bytes = hashlib.sha256(), 0
    try:
        with Store(folder).open(name) as file:
            while block := file.read(HASH_BLOCK_BYTES):
                digest.update(block)
                num_bytes += len(block)
    except storage_errors() as error:
        raise _named(uri, error) from error
    if num_bytes == 0:
        raise SourceEmpty(f"source {uri!r} is empty (0 bytes); needs a video file")
    if look(uri) != (size_bytes, stamp) or (size_bytes is not None and num_bytes != size_bytes):
        raise SourceUnreadable(f"source {uri!r} changed while it was read; wait until it is written")
    return SourceIdentity(uri=uri, size_bytes=num_bytes, stamp=stamp, sha256=digest.hexdigest())


def look(uri: str) -> tuple[int | None, str]:
    """(size_bytes, stamp) without reading the file; the size is None where a server does not tell it.

    Raises:
        SourceMissing, SourceIsDirectory, SourceUnreadable, SourceEmpty
    """
    folder, name = split_url(uri)
    try:
        store = Store(folder)
        path = store.path(name)
        store.fs.invalidate_cache(path)
        info = store.fs.info(path)
        stamp = str(Path(path).stat().st_mtime_ns) if store.is_local else _stamp(info)
    except storage_errors() as error:
        raise _named(uri, error) from error
    if info.get("type") == "directory":
        raise SourceIsDirectory(f"source {uri!r} is a directory; needs a video file")
    if info.get("size") == 0:
        raise SourceEmpty(f"source {uri!r} is empty (0 bytes); needs a video file")
    return info.get("size"), stamp


def identify_sources(
    workspace: Store, sources: Mapping[str, str], *, num_threads: int = 8
) -> dict[str, SourceIdentity | SourceError]:
    """Identity or error of every video {id: uri}, many files at a time, remembered in `videos/<id>/source.json`.

    Hashing leaves Python's lock, so threads are enough.
    """

    def one(item: tuple[str, str]) -> SourceIdentity | SourceError:
        video, uri = item
        folder = workspace / "videos" / video
        cached = SourceIdentity.from_json(folder.read_json(SOURCE_FILE)) if folder.exists(SOURCE_FILE) else None
        try:
            identity = identify(uri, cached)
        except SourceError as error:
            return error
        if identity != cached:
            folder.write_json(SOURCE_FILE, identity.to_json())
        return identity

    with ThreadPoolExecutor(max_workers=num_threads) as pool:
        return dict(zip(sources, pool.map(one, sources.items()), strict=True))


def split_url(url: str) -> tuple[str, str]:
    """(folder URL, file name) of a path or fsspec URL."""
    folder, slash, name = url.rpartition("/")
    return (folder or "/", name) if slash else (".", name)


def storage_errors() -> tuple[type[Exception], ...]:
    """What reading through fsspec can raise: its own errors and those of the client libraries it has loaded by now."""
    own = [OSError, ValueError, ImportError]
    clients = (
        ("botocore.exceptions", "BotoCoreError"),
        ("google.auth.exceptions", "GoogleAuthError"),
        ("gcsfs.retry", "HttpError"),
        ("aiohttp", "ClientError"),
    )
    loaded = [getattr(sys.modules[module], name) for module, name in clients if module in sys.modules]
    return (*own, *loaded)


def _stamp(info: Mapping[str, Any]) -> str:
    return next((str(info[key]) for key in STAMP_KEYS if info.get(key)), "")


def _named(uri: str, error: Exception) -> SourceError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return SourceMissing(f"source {uri!r} does not exist")
    if isinstance(error, IsADirectoryError):
        return SourceIsDirectory(f"source {uri!r} is a directory; needs a video file")
    return SourceUnreadable(f"source {uri!r} cannot be read: {type(error).__name__}: {error}")
