"""Small pictures of an edit for the report: the source at the left, the result at the right."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pipeline.video.encode import write_video

THUMBNAIL_HEIGHT_PX = 96
PREVIEW_HEIGHT_PX = 240
PREVIEW_MAX_FRAMES = 720
PREVIEW_CRF = 26


def side_by_side(
    source_rgb: UInt8[np.ndarray, "H W 3"],
    edited_rgb: UInt8[np.ndarray, "h w 3"],
    *,
    height_px: int,
    display_aspect: float | None = None,
) -> UInt8[np.ndarray, "height_px width 3"]:
    """Both frames at one height and one even width; `display_aspect` (width / height) where pixels are not square."""
    aspect = display_aspect or source_rgb.shape[1] / source_rgb.shape[0]
    width = max(2, 2 * round(height_px * aspect / 2))
    halves = [
        np.asarray(
            Image.fromarray(rgb).resize(
                (width, height_px), Image.Resampling.BOX if rgb.shape[0] > height_px else Image.Resampling.BICUBIC
            )
        )
        for rgb in (source_rgb, edited_rgb)
    ]
    return np.concatenate(halves, axis=1)


def write_thumbnail(
    path: str | Path,
    source_rgb: UInt8[np.ndarray, "H W 3"],
    edited_rgb: UInt8[np.ndarray, "h w 3"],
    *,
    height_px: int = THUMBNAIL_HEIGHT_PX,
    display_aspect: float | None = None,
) -> None:
    """A JPEG of source | result."""
    pair = side_by_side(source_rgb, edited_rgb, height_px=height_px, display_aspect=display_aspect)
    Image.fromarray(pair).save(path, format="JPEG", quality=85)


def preview_stride(num_frames: int, *, max_frames: int = PREVIEW_MAX_FRAMES) -> int:
    """Every how many frames a preview takes one, so that it has at most `max_frames`."""
    return max(1, -(-num_frames // max_frames))


def write_preview(
    path: str | Path,
    pairs: Iterable[tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "h w 3"]]],
    *,
    fps: float,
    num_frames: int,
    height_px: int = PREVIEW_HEIGHT_PX,
    max_frames: int = PREVIEW_MAX_FRAMES,
    display_aspect: float | None = None,
) -> int:
    """A small mp4 of source | result for the browser (H.264 4:2:0, index in front); long videos are thinned out.

    Args:
        pairs: (source frame, result frame) for EVERY frame; only the kept ones are touched.
        fps, num_frames: of the video; with a stride the preview plays as long as the video does.

    Returns:
        Frames written.
    """
    stride = preview_stride(num_frames, max_frames=max_frames)

    def kept() -> Iterator[np.ndarray]:
        for index, (source, edited) in enumerate(pairs):
            if index % stride == 0:
                yield side_by_side(source, edited, height_px=height_px, display_aspect=display_aspect)

    return write_video(path, kept(), fps / stride, crf=PREVIEW_CRF, preset="veryfast")
