"""Pictures for the report: both halves, the right height, not too many frames."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.video.decode import decode_span
from pipeline.video.preview import preview_stride, write_preview, write_thumbnail
from tests.videos import inspection_of

RED, BLUE = np.array([200, 30, 30]), np.array([30, 30, 200])


def _flat(color: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.broadcast_to(color, (height, width, 3)).astype(np.uint8)


def test_a_thumbnail_is_source_beside_result(tmp_path: Path) -> None:
    write_thumbnail(tmp_path / "t.jpg", _flat(RED, 272, 640), _flat(BLUE, 64, 112))
    picture = np.asarray(Image.open(tmp_path / "t.jpg")).astype(int)
    assert picture.shape == (96, 2 * 226, 3)
    assert np.abs(picture[:, :200] - RED).max() < 12
    assert np.abs(picture[:, -200:] - BLUE).max() < 12


def test_a_preview_is_small_thinned_and_as_long(tmp_path: Path) -> None:
    values = np.arange(50) * 4 + 20
    pairs = ((_flat(np.full(3, v), 144, 176), _flat(np.full(3, 255 - v), 64, 64)) for v in values)
    written = write_preview(tmp_path / "p.mp4", pairs, fps=25, num_frames=50, max_frames=20, display_aspect=4 / 3)
    found = inspection_of(tmp_path / "p.mp4")
    assert written == found.info.num_frames == 17
    assert (found.info.height_px, found.info.width_px) == (240, 640)
    assert found.info.duration_s == pytest.approx(2.0, abs=0.07)
    assert found.info.pixel_format == "yuv420p"
    frames = decode_span(str(tmp_path / "p.mp4"), found, 0, 17).astype(int)
    assert np.abs(frames[:, 100, 100, 1] - values[::3]).max() < 5
    assert np.abs(frames[:, 100, 500, 1] - (255 - values[::3])).max() < 5
    head = (tmp_path / "p.mp4").read_bytes()
    assert head.find(b"moov") < head.find(b"mdat"), "a browser should not need the whole file to begin"


def test_the_stride_holds_the_limit() -> None:
    assert [preview_stride(n) for n in (1, 720, 721, 14_315)] == [1, 1, 2, 20]
    assert -(-14_315 // preview_stride(14_315)) <= 720
