"""The One-Euro filter on signals whose answer is known. Published implementations: tests/known_answers/fn_one_euro*.npz."""

import math

import pytest
import torch

from body3d.filters import OneEuro


def test_without_beta_it_is_an_exponential_average():
    """A step is approached as 1 - (1 - a)^n with a = 2 pi fc / (2 pi fc + rate)."""
    step = torch.ones(20, dtype=torch.float64)
    step[0] = 0
    share = 2 * math.pi * 1.5 / (2 * math.pi * 1.5 + 30)
    expected = 1 - (1 - share) ** torch.arange(20, dtype=torch.float64)
    torch.testing.assert_close(OneEuro(30.0, 1.5)(step), expected)


@pytest.mark.parametrize("derivative", ["raw", "filtered"])
def test_what_rests_is_still_and_what_moves_is_not_late(derivative):
    torch.manual_seed(0)
    t = torch.arange(300, dtype=torch.float64) / 30
    rest, motion = torch.zeros_like(t), 20 * t
    noise = 0.02 * torch.randn(300, dtype=torch.float64)
    slow, quick = (OneEuro(30.0, 0.5, beta, derivative=derivative) for beta in (0.0, 0.5))
    assert quick(rest + noise)[50:].std() < 0.5 * noise.std()
    late = lambda f: (motion - f(motion + noise))[50:].mean() / 20 * 30  # frames
    assert late(slow) > 5
    assert 0 < late(quick) < 1


def test_numbers_do_not_mix_and_frames_may_come_singly():
    torch.manual_seed(0)
    x, f = torch.randn(12, 3, 2), OneEuro(25.0, 1.0, 0.7)
    together, state = f(x), None
    for n in range(12):
        state = f.step(state, x[n])
        torch.testing.assert_close(state.value, together[n])
    torch.testing.assert_close(f(x[:, 1, 0]), together[:, 1, 0])
    assert f(x[:0]).shape == (0, 3, 2)
    torch.testing.assert_close(f(x[:1]), x[:1])


def test_the_unit_of_time_is_free():
    """Rates and cut-offs per minute in place of per second; beta is per speed, which is sixty times as large."""
    torch.manual_seed(0)
    x = torch.randn(30, dtype=torch.float64)
    per_second = OneEuro(25.0, 1.0, 0.6, 2.0)
    per_minute = OneEuro(1500.0, 60.0, 0.6, 120.0)
    torch.testing.assert_close(per_minute(x), per_second(x))


def test_settings_that_mean_nothing():
    for wrong in ({"rate": 0.0}, {"rate": 30.0, "min_cutoff": 0.0}, {"rate": 30.0, "beta": -1.0}):
        with pytest.raises(ValueError, match="must be positive"):
            OneEuro(**wrong)
