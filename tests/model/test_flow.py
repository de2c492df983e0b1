import math

import pytest
import torch

from model.flow import add_noise, predicted_velocity, predicted_x_0
from model.samplers import EulerSampler, sigma_schedule


def test_schedule_goes_from_noise_to_data() -> None:
    plain, shifted = sigma_schedule(8, shift=1.0), sigma_schedule(8, shift=5.0)
    assert plain == pytest.approx([1 - i / 8 for i in range(9)])
    assert (shifted[0], shifted[-1]) == (1.0, 0.0)
    assert all(s >= p for s, p in zip(shifted, plain, strict=True))
    with pytest.raises(ValueError, match="num_inference_steps is 0"):
        sigma_schedule(0, shift=1.0)


def test_a_perfect_prediction_is_reached_in_any_number_of_steps() -> None:
    x_0, noise = torch.randn(2, 3, 1, 2, 2), torch.randn(2, 3, 1, 2, 2)
    for steps in (1, 3, 8):
        sampler = EulerSampler(num_inference_steps=steps, shift=3.0)
        got = sampler(lambda x_t, timestep, sigma: (x_t - x_0) / sigma, noise, x_0)
        torch.testing.assert_close(got, x_0)


def test_gaussian_data_has_the_right_spread() -> None:
    """For x_0 ~ N(m, s^2) the exact predictor is known in closed form; many Euler steps must give N(m, s^2) back."""
    mean, spread = 1.5, 0.4
    noise = torch.randn(20_000, 1, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def exact(x_t: torch.Tensor, timestep: torch.Tensor, sigma: float) -> torch.Tensor:
        assert float(timestep[0]) == pytest.approx(1000 * sigma)
        alpha = 1 - sigma
        gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
        return (x_t - (mean + gain * (x_t - alpha * mean))) / sigma

    got = EulerSampler(num_inference_steps=200, shift=1.0)(exact, noise, noise)
    assert float(got.mean()) == pytest.approx(mean, abs=0.02)
    assert float(got.std()) == pytest.approx(spread, rel=0.02)
    # An ODE: it maps noise to data monotonically, so the order of samples is kept.
    order = noise.flatten().argsort()
    assert bool((got.flatten()[order].diff() > 0).all())


def test_both_predictions_mean_the_same_x_0() -> None:
    x_0, source, noise = (torch.randn(2, 3, 1, 2, 2) for _ in range(3))
    sigma = torch.tensor([0.3, 0.9])
    x_t = add_noise(x_0, noise, sigma)
    for output, kind in ((noise - x_0, "velocity"), (x_0 - source, "source_residual")):
        got = predicted_x_0(output, x_t, sigma, source=source, prediction_type=kind)
        torch.testing.assert_close(got, x_0, rtol=1e-5, atol=1e-5)
        velocity = predicted_velocity(output[:1], x_t[:1], 0.3, source=source[:1], prediction_type=kind)
        torch.testing.assert_close(velocity, (noise - x_0)[:1], rtol=1e-5, atol=1e-5)
    nothing = predicted_x_0(torch.zeros_like(x_0), x_t, sigma, source=source, prediction_type="source_residual")
    assert torch.equal(nothing, source)
    with pytest.raises(ValueError, match="prediction_type is 'noise'"):
        predicted_x_0(x_0, x_t, sigma, source=source, prediction_type="noise")
    assert math.isclose(float(add_noise(x_0, noise, torch.ones(2))[0, 0, 0, 0, 0]), float(noise[0, 0, 0, 0, 0]))
