"""Pictures for the report: both halves, the right height, not too many frames."""

import numpy as np

from pipeline.video.preview import preview_stride, side_by_side

RED, BLUE = np.array([200, 30, 30]), np.array([30, 30, 200])


def _flat(color: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.broadcast_to(color, (height, width, 3)).astype(np.uint8)


def test_source_beside_result_at_one_height() -> None:
    picture = side_by_side(_flat(RED, 272, 640), _flat(BLUE, 64, 112), height_px=96)
    assert picture.shape == (96, 2 * 226, 3)
    assert (picture[:, :226] == RED).all()
    assert (picture[:, 226:] == BLUE).all()


def test_pixels_that_are_not_square_are_shown_as_a_viewer_sees_them() -> None:
    picture = side_by_side(_flat(RED, 144, 176), _flat(BLUE, 64, 64), height_px=240, display_aspect=4 / 3)
    assert picture.shape == (240, 640, 3)


def test_the_stride_holds_the_limit() -> None:
    assert [preview_stride(n) for n in (1, 720, 721, 14_315)] == [1, 1, 2, 20]
    assert -(-14_315 // preview_stride(14_315)) <= 720
