import math

import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO
from scipy import integrate, stats

import bayeszoo.models as models
from bayeszoo.data import Data, simulate

F64 = torch.float64


def flips(values, total_count=None) -> Data:
    inputs = {} if total_count is None else {"total_count": torch.tensor(total_count, dtype=F64)}
    return Data(inputs=inputs, observed=torch.tensor(values, dtype=F64))


SEQUENCE = flips([1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0])
COUNTS = flips([3.0, 0.0, 5.0, 2.0], [4.0, 2.0, 5.0, 6.0])


def test_lecture_predictive_with_a_uniform_prior():
    """p(x_N = 1 | x_<N) = (1 + heads) / (N + 1) after N - 1 flips; three heads in a row give 0.8."""
    for heads, observed in ((5, SEQUENCE), (3, flips([1.0, 1.0, 1.0]))):
        n = len(observed) + 1
        predictive = models.CoinFlip().exact_predictive(observed)
        assert float(predictive.mean) == pytest.approx((1 + heads) / (n + 1), rel=1e-15)
    assert float(predictive.mean) == 0.8


def test_lecture_predictive_with_a_beta_prior():
    predictive = models.CoinFlip(2.0, 5.0).exact_predictive(SEQUENCE)
    assert float(predictive.log_prob(torch.tensor(0.0, dtype=F64)).exp()) == pytest.approx((5 + 2) / (7 + 7))


@pytest.mark.parametrize("data", [SEQUENCE, COUNTS])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (2.5, 0.75)])
def test_posterior_and_evidence_against_numerical_integration(data, alpha, beta):
    model = models.CoinFlip(alpha, beta)
    x = data.observed.numpy()
    n = data.inputs["total_count"].numpy() if data.inputs else np.ones_like(x)

    def joint(pi):
        return stats.beta.pdf(pi, alpha, beta) * stats.binom.pmf(x, n, pi).prod()

    evidence, _ = integrate.quad(joint, 0.0, 1.0, epsabs=0.0, epsrel=1e-12, limit=500)
    mean, _ = integrate.quad(lambda pi: pi * joint(pi), 0.0, 1.0, epsabs=0.0, epsrel=1e-12, limit=500)
    # quad meets the singular end of Beta(2.5, 0.75 + tails) to about 1e-10
    assert float(model.log_evidence(data)) == pytest.approx(math.log(evidence), abs=1e-9)
    assert float(model.exact_posterior(data).mean["pi"]) == pytest.approx(mean / evidence, abs=1e-9)


def test_binomial_coefficients_belong_to_counts_only():
    model = models.CoinFlip()
    one_by_one = flips([1.0] * 10 + [0.0] * 7)
    coefficients = sum(math.log(math.comb(n, k)) for k, n in ((3, 4), (0, 2), (5, 5), (2, 6)))
    counted = float(model.log_evidence(COUNTS))
    assert counted == pytest.approx(float(model.log_evidence(one_by_one)) + coefficients, abs=1e-12)
    in_order = model.log_evidence(COUNTS, sequence=True)
    assert float(in_order) == pytest.approx(float(model.log_evidence(one_by_one)), abs=1e-12)
    assert float(model.log_evidence(one_by_one, sequence=True)) == float(model.log_evidence(one_by_one))


@pytest.mark.parametrize("data", [SEQUENCE, COUNTS])
def test_model_density_is_posterior_times_evidence(data, identity_error):
    model = models.CoinFlip(1.5, 2.0)
    assert identity_error(model, data, {"pi": torch.rand(20, dtype=F64)}) < 1e-11  # float64 rounding of lgamma


def test_exact_posterior_as_guide_has_loss_minus_log_evidence():
    for data in (SEQUENCE, COUNTS):
        model = models.CoinFlip()
        guide = model.exact_posterior(data).as_guide()
        for elbo in (Trace_ELBO(), Trace_ELBO(8, vectorize_particles=True, max_plate_nesting=1)):
            loss = elbo.loss(model, guide, **data.bind(model))
            assert loss == pytest.approx(-float(model.log_evidence(data)), rel=1e-10)


def test_samples_have_the_posterior_moments(monte_carlo):
    posterior = models.CoinFlip().exact_posterior(COUNTS)
    draws = posterior.sample(20_000)["pi"]
    monte_carlo(draws, posterior.mean["pi"], posterior.sd["pi"])
    assert posterior["pi"].concentration1 == 1 + 10


def test_sequential_updating_is_the_batch_answer():
    model = models.CoinFlip(0.3, 4.0)
    once = model.exact_posterior(SEQUENCE)["pi"]
    first, second = flips([1.0, 1.0, 0.0]), flips([1.0, 0.0, 1.0, 1.0])
    halfway = model.update(first)
    twice = halfway.exact_posterior(second)["pi"]
    assert twice.concentration1.dtype == F64
    assert float(twice.concentration1) == pytest.approx(float(once.concentration1), rel=1e-15)
    assert float(twice.concentration0) == pytest.approx(float(once.concentration0), rel=1e-15)
    # the chain rule of the evidence: p(x_1..7) = p(x_1..3) p(x_4..7 | x_1..3)
    chain = model.log_evidence(first) + halfway.log_evidence(second)
    assert float(chain) == pytest.approx(float(model.log_evidence(SEQUENCE)), abs=1e-12)


def test_map_with_a_uniform_prior_is_maximum_likelihood_exactly():
    model = models.CoinFlip()
    assert model.maximum_a_posteriori(SEQUENCE)["pi"].item() == 5 / 7
    assert model.maximum_likelihood(SEQUENCE)["pi"].item() == 5 / 7
    assert model.maximum_likelihood(flips([1.0, 1.0, 1.0]))["pi"].item() == 1.0


@pytest.mark.parametrize(
    ("alpha", "beta", "mode"),
    [(3.0, 2.0, 2 / 3), (1.0, 2.0, 0.0), (0.5, 1.0, 0.0), (2.0, 0.5, 1.0), (1.0, 0.5, 1.0), (0.5, 3.0, 0.0)],
)
def test_map_is_the_mode_of_the_beta_inside_and_at_the_ends(alpha, beta, mode):
    nothing = flips([0.0], [0.0])
    assert models.CoinFlip(alpha, beta).maximum_a_posteriori(nothing)["pi"].item() == pytest.approx(mode)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 0.5), (0.5, 0.9)])
def test_map_is_refused_where_there_is_no_single_mode(alpha, beta):
    with pytest.raises(ValueError, match="has no single mode"):
        models.CoinFlip(alpha, beta).maximum_a_posteriori(flips([0.0], [0.0]))
    with pytest.raises(ValueError, match="at least one flip"):
        models.CoinFlip().maximum_likelihood(flips([0.0], [0.0]))


def test_the_three_answers_meet_as_data_grow():
    model = models.CoinFlip(4.0, 2.0)
    gaps = []
    for n in (10, 1_000, 100_000):
        data = flips([0.3 * n], [float(n)])
        likelihood = float(model.maximum_likelihood(data)["pi"])
        posterior = float(model.maximum_a_posteriori(data)["pi"])
        bayes = float(model.exact_posterior(data).mean["pi"])
        gaps.append(max(abs(posterior - likelihood), abs(bayes - likelihood)))
    # (alpha - pi (alpha + beta)) / (N + alpha + beta) for the mean: 2.2 / N
    assert gaps[0] > 0.1
    assert gaps[1] == pytest.approx(2.2 / 1_000, rel=0.01)
    assert gaps[2] == pytest.approx(2.2 / 100_000, rel=0.01)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (flips([0.0, 1.0, 2.0]), r"row 3 .* is 2, where CoinFlip expects 0 or 1"),
        (flips([0.5, 1.0]), r"row 1 .* is 0.5, where CoinFlip expects 0 or 1"),
        (flips([1.0, -1.0]), r"row 2 .* is -1"),
        (flips([1.0, 5.0], [2.0, 4.0]), r"the count in row 2 .* is 5, .* from 0 to total_count"),
        (flips([1.0, 1.5], [2.0, 4.0]), r"the count in row 2 .* is 1.5"),
        (flips([1.0, 1.0], [2.0, 4.5]), r"the total_count in row 2 .* is 4.5"),
    ],
)
def test_impossible_outcomes_are_refused_in_one_sentence(data, message):
    for call in (models.CoinFlip().check, models.CoinFlip().exact_posterior, models.CoinFlip().log_evidence):
        with pytest.raises(ValueError, match=message):
            call(data)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_constructor_refuses_weights_that_are_not_positive(bad):
    with pytest.raises(ValueError, match="alpha must be"):
        models.CoinFlip(bad)
    with pytest.raises(ValueError, match="beta must be"):
        models.CoinFlip(1.0, bad)


def test_integer_flips_and_one_total_count_for_all():
    integers = Data(inputs={}, observed=torch.tensor([1, 0, 1]))
    model = models.CoinFlip()
    assert float(model.exact_posterior(integers).mean["pi"]) == 3 / 5
    model(**integers.bind(model))  # scored without an error about dtypes
    shared = Data(inputs={}, observed=torch.tensor([1.0, 4.0]), constants={"total_count": torch.tensor(5.0)})
    assert float(model.exact_posterior(shared).mean["pi"]) == 6 / 12
    assert model(**shared.bind(model)).shape == (2,)


def test_simulation_recovers_its_truth():
    data = simulate(models.CoinFlip(), 50_000, seed=3)
    posterior = models.CoinFlip().exact_posterior(data)
    assert set(data.observed.unique().tolist()) <= {0.0, 1.0}
    error = abs(float(data.truth["pi"]) - float(posterior.mean["pi"]))
    assert error < 4 * float(posterior.sd["pi"])
