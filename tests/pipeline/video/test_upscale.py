"""`--size source`: nothing where nothing was edited, edges where the source has them, consistent when reduced again."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.video.decode import decode_span
from pipeline.video.upscale import carry_edit, iter_carried, upsample_difference
from tests.videos import inspection_of, real_video

SMALL = (64, 112)


def _real_frame(name: str, index: int) -> np.ndarray:
    path = real_video(name)
    return decode_span(str(path), inspection_of(path), index, index + 1)[0]


def _tensor(frame: np.ndarray) -> Tensor:
    return torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255


def _reduced(image: Tensor, size: tuple[int, int] = SMALL) -> Tensor:
    return F.interpolate(image, size=size, mode="area")


def _frames(image: Tensor) -> Tensor:
    """As an editor decodes: `[1, h, w, 3]`."""
    return image.permute(0, 2, 3, 1)


def _psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10(((a - b) ** 2).mean()))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_no_difference_returns_the_source_exactly(dtype: type) -> None:
    rng = np.random.default_rng(0)
    source = rng.integers(0, np.iinfo(dtype).max, (3, 45, 67, 3), dtype=dtype, endpoint=True)
    decoded = torch.from_numpy(rng.normal(0.5, 0.3, (3, 16, 24, 3)))
    carried = carry_edit(source, decoded, decoded)
    assert carried.dtype == dtype
    assert np.array_equal(carried, source)


def test_what_lies_away_from_the_edit_is_untouched() -> None:
    source = np.random.default_rng(0).integers(0, 255, (1, 240, 320, 3), dtype=np.uint8)
    decoded = torch.rand(1, 60, 80, 3)
    edit = decoded.clone()
    edit[:, :, :20] += 0.3
    carried = carry_edit(source, edit, decoded)
    assert np.array_equal(carried[:, :, 160:], source[:, :, 160:])
    assert (carried[:, :, :60].astype(int) - source[:, :, :60]).mean() > 20


def test_the_codecs_own_error_cancels() -> None:
    source = np.random.default_rng(0).integers(60, 180, (2, 120, 160, 3), dtype=np.uint8)
    true_edit, codec_error = torch.full((2, 30, 40, 3), 0.1), torch.randn(2, 30, 40, 3)
    carried = carry_edit(source, 0.5 + true_edit + codec_error, 0.5 + codec_error)
    assert np.abs(carried.astype(float) - source - 25.5).max() <= 1.01


def test_a_change_of_light_is_carried_almost_exactly() -> None:
    """An affine change of colour is what the guided filter models: full detail from an edit at 64x112."""
    source = _real_frame("bikes.mp4", 200)
    full = _tensor(source)
    relit = full * torch.tensor([1.1, 1.0, 0.8]).view(1, 3, 1, 1) + 0.03
    difference = _reduced(relit) - _reduced(full)
    assert _psnr(full + upsample_difference(difference, full), relit) > 55
    plain = F.interpolate(difference, size=full.shape[-2:], mode="bilinear", align_corners=False)
    assert _psnr(full + plain, relit) < 49


@pytest.mark.parametrize(("name", "index", "gain_db"), [("bikes.mp4", 110, 1.0), ("bigbuckbunny.mp4", 100, 2.0)])
def test_a_recoloured_object_keeps_its_edges(name: str, index: int, gain_db: float) -> None:
    full = _tensor(_real_frame(name, index))
    is_warm = (full[:, :1] - full[:, 2:] > 0.12).float()
    blue = full.mean(dim=1, keepdim=True) * torch.tensor([0.4, 0.7, 1.4]).view(1, 3, 1, 1)
    edited = full * (1 - is_warm) + blue * is_warm
    difference = _reduced(edited) - _reduced(full)
    plain = F.interpolate(difference, size=full.shape[-2:], mode="bilinear", align_corners=False)
    gain = _psnr(full + upsample_difference(difference, full), edited) - _psnr(full + plain, edited)
    assert gain > gain_db


def test_reduced_again_it_is_nearly_the_difference_that_was_asked_for() -> None:
    """A disc pasted where the source has no such edge: what the source's colours do not explain still arrives."""
    full = _tensor(_real_frame("bikes.mp4", 60))
    yy, xx = torch.meshgrid(torch.arange(SMALL[0]), torch.arange(SMALL[1]), indexing="ij")
    wanted = 0.4 * ((yy - 32) ** 2 + (xx - 56) ** 2 < 18**2).float().expand(1, 3, -1, -1)
    again = _reduced(upsample_difference(wanted, full))
    assert float((again - wanted).abs().mean()) < 0.1 * float(wanted.abs().mean())


def test_colours_are_clamped_once_at_the_end() -> None:
    source = np.full((1, 32, 32, 3), 200, np.uint8)
    carried = carry_edit(source, torch.full((1, 8, 8, 3), 1.4), torch.full((1, 8, 8, 3), 0.2))
    assert (carried == 255).all()
    carried = carry_edit(source, torch.full((1, 8, 8, 3), -0.9), torch.full((1, 8, 8, 3), 0.2))
    assert (carried == 0).all()


def test_one_frame_at_a_time_is_the_same() -> None:
    source = np.random.default_rng(0).integers(0, 255, (3, 40, 60, 3), dtype=np.uint8)
    edit, decoded = torch.rand(3, 16, 24, 3), torch.rand(3, 16, 24, 3)
    assert np.array_equal(
        np.stack(list(iter_carried(iter(source), iter(edit), iter(decoded)))), carry_edit(source, edit, decoded)
    )


def test_different_numbers_of_frames_are_refused() -> None:
    source = np.zeros((3, 40, 60, 3), np.uint8)
    with pytest.raises(ValueError, match="source 3, edit 2, decoded source 3"):
        carry_edit(source, torch.zeros(2, 8, 8, 3), torch.zeros(3, 8, 8, 3))
