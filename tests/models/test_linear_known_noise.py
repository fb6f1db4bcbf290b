import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO
from scipy import stats

import bayeszoo.models as models
from bayeszoo.data import Data, from_arrays

F64 = torch.float64


def table(n=40, dim=3, seed=0, noise=0.7) -> Data:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dim, generator=generator, dtype=F64) @ torch.randn(dim, dim, generator=generator, dtype=F64)
    theta = torch.randn(dim, generator=generator, dtype=F64)
    y = 0.5 + x @ theta + noise * torch.randn(n, generator=generator, dtype=F64)
    return Data(inputs={"x": x}, observed=y)


def rows(data: Data, start: int, stop: int) -> Data:
    return Data(inputs={"x": data.inputs["x"][start:stop]}, observed=data.observed[start:stop])


def scale_tril(dim: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(dim, dim, generator=generator, dtype=F64).tril(-1) + 2.0 * torch.eye(dim, dtype=F64)


PRIORS = [
    {"prior_mean": 0.0, "prior_scale": 1.0},
    {"prior_mean": [1.0, -2.0, 0.0, 3.0], "prior_scale": [0.5, 2.0, 100.0, 1.0]},
    {"prior_mean": 0.3, "prior_scale": scale_tril(4)},
]


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("n", [2, 40])
def test_against_the_normal_equations_and_the_marginal_gaussian(prior, n):
    """Sigma_N = (X^T X / sigma^2 + S_0^-1)^-1, mu_N = Sigma_N (X^T y / sigma^2 + S_0^-1 mu_0)."""
    data, sigma = table(n), 0.7
    model = models.BayesianLinearRegression(3, noise_scale=torch.tensor(sigma, dtype=F64), **prior).double()
    x = np.column_stack([np.ones(n), data.inputs["x"].numpy()])
    y = data.observed.numpy()
    mean = model.prior_mean.numpy()
    scale = model.prior_scale.numpy()
    prior_cov = scale @ scale.T if scale.ndim == 2 else np.diag(scale**2)
    precision = x.T @ x / sigma**2 + np.linalg.inv(prior_cov)
    cov = np.linalg.inv(precision)
    mu = cov @ (x.T @ y / sigma**2 + np.linalg.solve(prior_cov, mean))
    posterior = model.exact_posterior(data)["theta"]
    np.testing.assert_allclose(posterior.mean, mu, atol=1e-11)
    np.testing.assert_allclose(posterior.covariance_matrix, cov, atol=1e-11)
    evidence = stats.multivariate_normal(x @ mean, x @ prior_cov @ x.T + sigma**2 * np.eye(n)).logpdf(y)
    assert float(model.log_evidence(data)) == pytest.approx(evidence, abs=1e-9)
    new = torch.randn(5, 3, dtype=F64)
    design = np.column_stack([np.ones(5), new.numpy()])
    predictive = model.exact_predictive(data, new)
    np.testing.assert_allclose(predictive.mean, design @ mu, atol=1e-11)
    variance = sigma**2 + np.einsum("nd,de,ne->n", design, cov, design)
    np.testing.assert_allclose(predictive.variance, variance, atol=1e-11)


@pytest.mark.parametrize("prior", PRIORS)
def test_model_density_is_posterior_times_evidence(prior, identity_error):
    model = models.BayesianLinearRegression(3, noise_scale=0.7, **prior).double()
    theta = 2.0 * torch.randn(20, 4, dtype=F64)
    assert identity_error(model, table(), {"theta": theta}) < 1e-10  # rounding of sums of a few thousand nats


def exact_fractions(x, y, prior_scale, sigma):
    """Solve the normal equations in rational numbers, without any rounding."""
    n, dim = x.shape
    x = [[Fraction(v) for v in row] for row in x.tolist()]
    y = [Fraction(v) for v in y.tolist()]
    inverse_noise, inverse_prior = 1 / Fraction(sigma) ** 2, 1 / Fraction(prior_scale) ** 2
    left = [
        [sum(x[i][a] * x[i][b] for i in range(n)) * inverse_noise + (a == b) * inverse_prior for b in range(dim)]
        for a in range(dim)
    ]
    right = [sum(x[i][a] * y[i] for i in range(n)) * inverse_noise for a in range(dim)]
    augmented = [[*left[a], right[a], *(Fraction(a == b) for b in range(dim))] for a in range(dim)]
    for a in range(dim):
        pivot = augmented[a][a]
        augmented[a] = [v / pivot for v in augmented[a]]
        for b in range(dim):
            if b != a:
                factor = augmented[b][a]
                augmented[b] = [v - factor * w for v, w in zip(augmented[b], augmented[a], strict=True)]
    mean = np.array([float(augmented[a][dim]) for a in range(dim)])
    variance = np.array([float(augmented[a][dim + 1 + a]) for a in range(dim)])
    return mean, np.sqrt(variance)


def test_condition_number_of_1e8_and_a_prior_far_wider_than_the_posterior():
    """The design's condition number is 1e8, its Gram matrix's 1e16: normal equations lose everything."""
    generator = torch.Generator().manual_seed(5)
    n, dim, sigma, prior_scale = 20, 3, 0.5, 1e6
    left, _ = torch.linalg.qr(torch.randn(n, dim, generator=generator, dtype=F64))
    right, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=F64))
    x = left @ torch.diag(torch.tensor([1e4, 1.0, 1e-4], dtype=F64)) @ right
    y = x @ torch.tensor([1.0, 2.0, 3.0], dtype=F64) + sigma * torch.randn(n, generator=generator, dtype=F64)
    mean, sd = exact_fractions(x, y, prior_scale, sigma)
    model = models.BayesianLinearRegression(dim, prior_scale=prior_scale, noise_scale=sigma, intercept=False).double()
    posterior = model.exact_posterior(Data(inputs={"x": x}, observed=y))
    # a singular value of 1e-8 relative size is known to about 1e-8: eps times the condition number
    np.testing.assert_allclose(posterior.sd["theta"], sd, rtol=1e-6)
    assert float(((posterior.mean["theta"].numpy() - mean) / sd).__abs__().max()) < 1e-6


def test_exact_posterior_as_guide_has_loss_minus_log_evidence():
    data = table()
    model = models.BayesianLinearRegression(3, noise_scale=0.7).double()
    guide = model.exact_posterior(data).as_guide()
    for elbo in (Trace_ELBO(), Trace_ELBO(8, vectorize_particles=True, max_plate_nesting=1)):
        assert elbo.loss(model, guide, **data.bind(model)) == pytest.approx(-float(model.log_evidence(data)), rel=1e-10)


def test_sequential_updating_is_the_batch_answer():
    data = table(60)
    model = models.BayesianLinearRegression(3, prior_scale=50.0, noise_scale=0.7)
    once = model.exact_posterior(data)["theta"]
    sequential, evidence = model, torch.zeros((), dtype=F64)
    for start, stop in ((0, 2), (2, 30), (30, 60)):
        evidence = evidence + sequential.log_evidence(rows(data, start, stop))
        sequential = sequential.update(rows(data, start, stop))
    assert sequential.prior_mean.dtype == F64
    torch.testing.assert_close(sequential.prior_mean, once.mean, atol=1e-10, rtol=0.0)
    covariance = sequential.prior_scale @ sequential.prior_scale.mT
    torch.testing.assert_close(covariance, once.covariance_matrix, atol=1e-11, rtol=0.0)
    assert float(evidence) == pytest.approx(float(model.log_evidence(data)), abs=1e-9)
    assert sequential(data.inputs["x"]).shape == (60,)


def test_maximum_likelihood_is_least_squares_and_map_is_ridge():
    data, sigma, width = table(), 0.7, 0.4
    model = models.BayesianLinearRegression(3, prior_scale=width, noise_scale=sigma).double()
    x = np.column_stack([np.ones(40), data.inputs["x"].numpy()])
    y = data.observed.numpy()
    np.testing.assert_allclose(model.maximum_likelihood(data)["theta"], np.linalg.lstsq(x, y, rcond=None)[0], atol=1e-12)
    ridge = np.linalg.solve(x.T @ x + (sigma / width) ** 2 * np.eye(4), x.T @ y)
    np.testing.assert_allclose(model.maximum_a_posteriori(data)["theta"], ridge, atol=1e-7)  # width in float32
    assert set(model.maximum_likelihood(data)) == {"theta"}


def test_the_three_answers_meet_as_data_grow():
    model = models.BayesianLinearRegression(3, prior_scale=0.5)
    gaps = []
    everything = table(200_000)
    for n in (200, 20_000, 200_000):
        data = rows(everything, 0, n)
        likelihood = model.maximum_likelihood(data)
        posterior = model.maximum_a_posteriori(data)
        bayes = model.exact_posterior(data).mean
        gaps.append(
            max(
                float((answer[site] - likelihood[site]).abs().max())
                for answer in (posterior, bayes)
                for site in ("theta", "sigma")
            )
        )
    # the prior is worth a fixed number of rows, so the gap falls like 1 / N; a factor 2 for chance
    assert gaps[1] < gaps[0] / 50
    assert gaps[2] < gaps[1] / 5


def test_maximum_likelihood_is_refused_where_it_is_not_unique():
    model = models.BayesianLinearRegression(3, noise_scale=1.0)
    with pytest.raises(ValueError, match="3 rows determine 3 of 4 coefficients"):
        model.maximum_likelihood(rows(table(), 0, 3))
    data = table()
    x = data.inputs["x"].clone()
    x[:, 2] = 2.0 * x[:, 0] - 1.0
    with pytest.raises(ValueError, match="40 rows determine 3 of 4 coefficients"):
        model.maximum_likelihood(Data(inputs={"x": x}, observed=data.observed))


def test_to_original_undoes_the_standardisation():
    raw = table(50)
    x, y = 100.0 + 7.0 * raw.inputs["x"], 5.0 - 3.0 * raw.observed
    data = from_arrays(x, y, standardize=True)
    model = models.BayesianLinearRegression(3).double()
    draws = model.exact_posterior(data).sample(10)
    original = model.to_original(draws, data.scaler)
    standard = torch.stack([model.predict_mean(t, data.inputs["x"].double()) for t in draws["theta"]])
    natural = torch.stack([model.predict_mean(t, x) for t in original["theta"]])
    torch.testing.assert_close(natural, data.scaler.inverse_target(standard), atol=1e-9, rtol=0.0)
    torch.testing.assert_close(original["sigma"], draws["sigma"] * y.std(correction=0))
    through_origin = models.BayesianLinearRegression(3, intercept=False).double()
    with pytest.raises(ValueError, match="without an intercept"):
        through_origin.to_original({"theta": draws["theta"][:, 1:]}, data.scaler)


def test_names_of_the_coefficients():
    data = table()
    named = Data(inputs={"x": data.inputs["x"]}, observed=data.observed, feature_names=("a", "b", "c"))
    assert models.BayesianLinearRegression(3).coords(named) == {"feature": ["intercept", "a", "b", "c"]}
    assert models.BayesianLinearRegression(3, intercept=False).coords(data) == {"feature": ["x0", "x1", "x2"]}
    assert models.BayesianLinearRegression.dims == {"theta": ["feature"]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 0}, "dim must be a whole number of columns from 1 up, but is 0"),
        ({"dim": 2.0}, "dim must be a whole number"),
        ({"dim": 2, "prior_scale": 0.0}, "prior_scale must be above zero"),
        (
            {"dim": 2, "prior_scale": [1.0, -1.0, 1.0]},
            "prior_scale must be above zero, but its smallest is -1",
        ),
        ({"dim": 2, "prior_scale": [1.0, 1.0]}, r"3 numbers, .* has the shape \(2,\)"),
        ({"dim": 2, "prior_mean": [1.0, 1.0]}, r"prior_mean must be one number or 3 numbers"),
        ({"dim": 2, "prior_mean": math.nan}, "prior_mean must be finite"),
        ({"dim": 2, "noise_scale": -1.0}, "noise_scale must be above zero, but is -1"),
        ({"dim": 2, "noise_prior_scale": 0.0}, "noise_prior_scale must be above zero"),
        ({"dim": 1, "prior_scale": torch.ones(2, 2)}, "lower Cholesky factor"),
        ({"dim": 1, "prior_scale": torch.eye(3)}, "must be 2 x 2"),
    ],
)
def test_constructor_refuses_in_one_sentence(settings, message):
    with pytest.raises(ValueError, match=message):
        models.BayesianLinearRegression(**settings)


def test_tables_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="made for dim=4 columns, but x has 3 columns"):
        models.BayesianLinearRegression(4).check(table())
    data = table()
    wrong = Data(inputs={"x": data.inputs["x"]}, observed=data.observed.unsqueeze(1))
    with pytest.raises(ValueError, match=r"y the shape \(40, 1\)"):
        models.BayesianLinearRegression(3).exact_posterior(wrong)
    with pytest.raises(ValueError, match="unknown noise the posterior is no Gaussian"):
        models.BayesianLinearRegression(3).update(data)
