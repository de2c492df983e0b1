"""Small pictures of an edit for the report: the source at the left, the result at the right."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

THUMBNAIL_HEIGHT_PX = 96
PREVIEW_HEIGHT_PX = 240
PREVIEW_MAX_FRAMES = 720


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


def preview_stride(num_frames: int, *, max_frames: int = PREVIEW_MAX_FRAMES) -> int:
    """Every how many frames a preview takes one, so that it has at most `max_frames`."""
    return max(1, -(-num_frames // max_frames))
