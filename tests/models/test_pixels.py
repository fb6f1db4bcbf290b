"""What pixels are drawn from: probabilities that sum to one, moments that are those of draws, sentences for other pixels."""

from __future__ import annotations

import pytest
import torch

from bayeszoo.models.pixels import CutLogistic, GreyLevels, Pixels


@pytest.mark.parametrize("levels", [2, 4, 17, 256])
def test_a_cut_logistic_is_the_difference_of_sigmoids(levels: int) -> None:
    torch.manual_seed(0)
    mean, log_scale = 0.5 + torch.randn(20).double(), torch.randn(20).double() - 2
    grey = torch.linspace(0, 1, levels, dtype=torch.float64)[:, None]
    half = 0.5 / (levels - 1)
    upper = torch.where(grey == 1, torch.ones(1).double(), torch.sigmoid((grey + half - mean) / log_scale.exp()))
    lower = torch.where(grey == 0, torch.zeros(1).double(), torch.sigmoid((grey - half - mean) / log_scale.exp()))
    got = CutLogistic(mean, log_scale, levels).log_prob(grey).exp()
    # Differences of numbers near one lose about 1e-16.
    torch.testing.assert_close(got, upper - lower, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(got.sum(0), torch.ones(20).double())


def test_far_bins_have_finite_logarithms_and_gradients() -> None:
    mean, log_scale = torch.tensor([50.0, -50.0], requires_grad=True), torch.tensor([-9.0, -6.0], requires_grad=True)
    score = CutLogistic(mean, log_scale, 256).log_prob(torch.tensor([0.5, 0.5]))
    assert bool(torch.isfinite(score).all())
    assert bool((score < -1000).all())
    score.sum().backward()
    assert mean.grad is not None
    assert bool(torch.isfinite(mean.grad).all())


@pytest.mark.parametrize("word", ["bernoulli", "categorical", "logistic", "gaussian"])
def test_moments_are_those_of_draws(word: str) -> None:
    torch.manual_seed(1)
    pixels = Pixels(word, levels=5)
    out = torch.randn(3, 4, pixels.per_pixel)
    fn = pixels.distribution(out, 1)
    assert fn.event_shape == (4,)
    draws = fn.sample((40_000,))
    error = 5 * fn.stddev / 200  # five standard errors of 40,000 draws
    assert bool(((draws.mean(0) - pixels.mean(out)).abs() < error).all())
    assert bool(((draws.var(0) - fn.variance).abs() < 0.05 * fn.variance + 1e-3).all())
    assert fn.log_prob(draws[0]).shape == (3,)


def test_grey_levels_score_by_the_level() -> None:
    log_probs = torch.log(torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]))
    torch.testing.assert_close(GreyLevels(log_probs).log_prob(torch.tensor([0.5, 1.0])).exp(), torch.tensor([0.3, 0.1]))


@pytest.mark.parametrize(
    ("word", "x", "words"),
    [
        ("bernoulli", [0.0, 0.4], r"binarized\(seed=0\)"),
        ("bernoulli", [0.0, 255.0], "divide them by 255"),
        ("logistic", [0.0, 0.4], "multiples of 1/16"),
        ("bernoulli", [0.0, 252.0], "divide them by 255"),
        ("logistic", [0.0, 14.0], "divide them by 16"),
        ("categorical", [-1.0, 0.5], r"from -1 to 0.5; take \(x \+ 1\) / 2"),
        ("logistic", [-0.4, 2.8], "undo what standardised them"),
    ],
)
def test_other_pixels_are_refused_with_what_helps(word: str, x: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        Pixels(word, levels=17).check(torch.tensor(x))
    assert "\n" not in str(caught.value)


def test_whole_numbers_are_refused_as_a_type() -> None:
    with pytest.raises(ValueError, match=r"floating-point numbers, and these are torch.uint8; give x.float\(\) / 255"):
        Pixels("logistic").check(torch.tensor([0, 250], dtype=torch.uint8))


def test_what_is_no_likelihood_is_refused() -> None:
    with pytest.raises(ValueError, match="choose one of bernoulli"):
        Pixels("poisson")
    with pytest.raises(ValueError, match="levels"):
        Pixels("logistic", levels=1)
