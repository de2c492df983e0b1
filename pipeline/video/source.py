"""Opening a source for reading: local paths and fsspec URLs, with PyAV's errors turned into named ones."""

from collections.abc import Iterator
from contextlib import contextmanager

import av
import fsspec

from pipeline.video.errors import EmptyVideo, NoVideoStream, UnreadableVideo, VideoNotFound

READ_BUFFER_BYTES = 1 << 20
REMOTE_BLOCK_BYTES = 4 << 20
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


def is_local(uri: str) -> bool:
    return "://" not in uri or uri.startswith(("file://", "local://"))


def size_of(uri: str) -> int:
    """Bytes of the file behind `uri`.

    Raises:
        VideoNotFound, UnreadableVideo, EmptyVideo
    """
    try:
        fs, path = fsspec.core.url_to_fs(uri)
        entry = fs.info(path)
    except FileNotFoundError as error:
        raise VideoNotFound(f"{uri}: no such file") from error
    except (OSError, ValueError, ImportError) as error:
        raise UnreadableVideo(f"{uri}: cannot be read: {type(error).__name__}: {error}") from error
    if entry["type"] == "directory":
        raise UnreadableVideo(f"{uri}: is a directory, not a video file")
    if entry["size"] == 0:
        raise EmptyVideo(f"{uri}: the file is empty (0 bytes)")
    return int(entry["size"] or 0)


@contextmanager
def open_source(uri: str) -> Iterator[av.container.InputContainer]:
    """The demuxer over `uri`; remote files are read through fsspec in blocks, never whole.

    Raises:
        VideoNotFound, UnreadableVideo, EmptyVideo
    """
    size_of(uri)
    fs, path = fsspec.core.url_to_fs(uri)
    if is_local(uri):
        with _demuxer(uri, path) as container:
            yield container
        return
    with fs.open(path, "rb", block_size=REMOTE_BLOCK_BYTES) as file, _demuxer(uri, file) as container:
        yield container


@contextmanager
def _demuxer(uri: str, file: object) -> Iterator[av.container.InputContainer]:
    try:
        container = av.open(file, "r", buffer_size=READ_BUFFER_BYTES, metadata_errors="replace")
    except av.error.FFmpegError as error:
        reason = reason_of(error)
        if "moov atom not found" in reason and _is_mp4(uri):
            reason = "moov atom not found: the mp4 was cut off before its index, or its recording was never finished"
        else:
            reason = f"not a video file that FFmpeg knows ({reason})"
        raise UnreadableVideo(f"{uri}: {reason}") from error
    with container:
        yield container


def _is_mp4(uri: str) -> bool:
    with fsspec.open(uri, "rb") as file:
        return file.read(12)[4:8] in _FIRST_BOXES


@contextmanager
def explained() -> Iterator[None]:
    """FFmpeg's own words in the errors that are raised inside (`reason_of`), and nothing of them on the log."""
    before = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture():
            yield
    finally:
        av.logging.set_level(before)


def reason_of(error: Exception) -> str:
    """What FFmpeg logged about an error, or else the error itself."""
    log = getattr(error, "log", None)
    return str(log[-1]).strip() if log else str(error)


def video_stream(container: av.container.InputContainer, *, uri: str, index: int | None = None) -> av.VideoStream:
    """The stream that is edited: the first with moving pictures (cover art is none), or the one at `index`."""
    if index is not None:
        chosen = container.streams[index]
        assert isinstance(chosen, av.VideoStream)
        return chosen
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    kinds = ", ".join(stream.type for stream in container.streams) or "no streams at all"
    raise NoVideoStream(f"{uri}: has no video stream (it has: {kinds})")
