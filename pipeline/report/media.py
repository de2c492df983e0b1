"""Which pictures go into the report: thumbnails of every video first, then previews, in order, while they fit.

Knows sizes and files; nothing of HTML. Bytes are counted as base64, because that is what the page carries.
"""

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from PIL import Image, UnidentifiedImageError

from pipeline.report.contents import VideoContents
from retrieval.store import Store

MEDIA_BYTES = 22_000_000
"""Leaves room for tables and graphs in a file of 25 MB, which mail and browsers still take."""
THUMBNAIL_SHARE = 0.4
MAX_THUMBNAILS = 60


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """`chunks/segment-….jpg`: source and result of a segment's first frame, side by side; sizes of the whole in pixels."""

    jpeg: bytes
    width_px: int
    height_px: int


@dataclass(frozen=True, kw_only=True)
class VideoMedia:
    """Pictures of one video. `preview_left_out`: there is one, but it did not fit."""

    thumbnails: Mapping[int, Thumbnail] = field(default_factory=dict)
    preview: bytes | None = None
    preview_left_out: bool = False


def choose_media(workspace: Store, videos: Sequence[VideoContents], *, max_bytes: int) -> list[VideoMedia]:
    """Every video gets an equal share of the thumbnails' room; previews take what is left, first come first served."""
    with_plan = [video for video in videos if video.plan]
    share = int(max_bytes * THUMBNAIL_SHARE / max(len(with_plan), 1))
    thumbnails = [read_thumbnails(workspace, video, max_bytes=share) for video in videos]
    left = max_bytes - sum(base64_bytes(len(one.jpeg)) for each in thumbnails for one in each.values())
    media = []
    for video, chosen in zip(videos, thumbnails, strict=True):
        preview, is_left_out = None, False
        edit = workspace / video.folder if video.folder else None
        if edit is not None and edit.exists("preview.mp4"):
            size = base64_bytes(edit.fs.info(edit.path("preview.mp4"))["size"])
            is_left_out = size > left
            if not is_left_out:
                preview, left = edit.read_bytes("preview.mp4"), left - size
        media.append(VideoMedia(thumbnails=chosen, preview=preview, preview_left_out=is_left_out))
    return media


def read_thumbnails(workspace: Store, video: VideoContents, *, max_bytes: int) -> dict[int, Thumbnail]:
    """Thumbnails of segments spread evenly over the video: at most 60, fewer where the room is short."""
    if not video.folder or not video.plan:
        return {}
    chunks = workspace / video.folder / "chunks"
    there = set(chunks.names(".jpg"))
    segments = [row.segment for row in video.plan if thumbnail_name(row.segment) in there]
    segments = evenly(segments, MAX_THUMBNAILS)
    with ThreadPoolExecutor(max_workers=8) as pool:
        read = list(pool.map(lambda segment: chunks.read_bytes(thumbnail_name(segment)), segments))
    pictures = {segment: one for segment, jpeg in zip(segments, read, strict=True) if (one := thumbnail(jpeg))}
    total = sum(base64_bytes(len(one.jpeg)) for one in pictures.values())
    if total > max_bytes:
        largest = max(base64_bytes(len(one.jpeg)) for one in pictures.values())
        pictures = {segment: pictures[segment] for segment in evenly(list(pictures), max_bytes // largest)}
    return pictures


def thumbnail(jpeg: bytes) -> Thumbnail | None:
    """The picture with its size; None if it is none."""
    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
            return Thumbnail(jpeg=jpeg, width_px=image.width, height_px=image.height)
    except (UnidentifiedImageError, OSError):
        return None


def evenly(items: list[int], count: int) -> list[int]:
    """At most `count` of `items`, evenly spread, first and last among them."""
    if len(items) <= count:
        return items
    if count < 2:
        return items[:count]
    return [items[round(step * (len(items) - 1) / (count - 1))] for step in range(count)]


def thumbnail_name(segment: int) -> str:
    return f"segment-{segment:05d}.jpg"


def base64_bytes(num_bytes: int) -> int:
    return -(-num_bytes // 3) * 4
