"""Noise drawn in the layers: the right distribution, the same expectation, less variance, and what it is refused for."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

import bayeszoo as bz
from bayeszoo.inference.estimators.layer_noise import AtTheMean, Flipout, Local
from bayeszoo.models import BayesianNN, networks

MEAN = torch.tensor([[0.5, -1.0, 0.2], [0.3, 0.0, 2.0]], dtype=torch.float64)
SD = torch.tensor([[0.1, 0.5, 0.3], [0.2, 0.4, 0.1]], dtype=torch.float64)
BIAS, BIAS_SD = torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor([0.2, 0.05], dtype=torch.float64)
X = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def guide() -> None:
    pyro.sample("weight", dist.Normal(MEAN, SD).to_event(2))
    pyro.sample("bias", dist.Normal(BIAS, BIAS_SD).to_event(1))


def activations(kind: Any, examples: int) -> Tensor:
    """The layer's outputs (examples, 2) for the same input over and over."""
    at_the_mean = kind is Local
    with AtTheMean() if at_the_mean else poutine.block(hide=[]):
        trace = poutine.trace(guide).get_trace()
    with kind(trace, at_the_mean=at_the_mean):
        return nn.functional.linear(X.expand(examples, 3), trace.nodes["weight"]["value"], trace.nodes["bias"]["value"])


def test_local_activations_have_the_weights_distribution() -> None:
    drawn = activations(Local, 40_000)
    mean, variance = MEAN @ X + BIAS, SD.square() @ X.square() + BIAS_SD.square()
    # Four standard errors: of a mean sd / 200, of a variance 2 ** 0.5 / 200.
    assert bool(((drawn.mean(0) - mean).abs() < 4 * variance.sqrt() / 200).all())
    assert bool(((drawn.var(0) / variance - 1).abs() < 4 * 2**0.5 / 200).all())
    # Examples and units do not move together.
    correlation = torch.corrcoef(torch.stack([drawn[:-1, 0], drawn[1:, 0], drawn[:-1, 1]]))
    assert float((correlation - torch.eye(3)).abs().max()) < 4 / 200


def test_flipout_keeps_each_examples_distribution_and_breaks_their_correlation() -> None:
    drawn = torch.stack([activations(Flipout, 2) for _ in range(20_000)])  # (S, 2 examples, 2 units), a draw of w each
    mean, variance = MEAN @ X + BIAS, SD.square() @ X.square() + BIAS_SD.square()
    error = 20_000**-0.5
    assert bool(((drawn.mean(0) - mean).abs() < 5 * variance.sqrt() * error).all())
    # Products of signs and normals are normal one by one: the same variance, errors of 2 ** 0.5.
    assert bool(((drawn.var(0) / variance - 1).abs() < 5 * 2**0.5 * error).all())
    shared = BIAS_SD.square() / variance  # what the examples still share is the bias
    for unit in range(2):
        correlation = float(torch.corrcoef(drawn[:, :, unit].T)[0, 1])
        assert abs(correlation - float(shared[unit])) < 5 * error


def losses(model: Any, data: bz.data.Data, estimator: Any, number: int) -> Tensor:
    """Losses of the same guide at the same parameters."""
    fit = bz.fit(model, data, guide="mean_field", steps=1, optimizer=1e-9, estimator=estimator, progress=False)
    with fit.run.owned.active(3), torch.no_grad():
        # Larger noise than a fit begins with: what differs between estimators is then seen.
        fit.guide.log_scale.add_(1.5)
        kwargs = data.bind(fit.model)
        return torch.stack([fit.run.objective(kwargs)[1] for _ in range(number)]).double()


def moons(seed: int = 0) -> tuple[BayesianNN, bz.data.Data]:
    torch.manual_seed(seed)
    x = torch.randn(40, 2)
    model = BayesianNN(networks.mlp(2, [6], 2, "tanh"))
    return model, bz.data.Data(inputs={"x": x}, observed=(x[:, 0] * x[:, 1] > 0).long())


def pictures() -> tuple[BayesianNN, bz.data.Data]:
    torch.manual_seed(1)
    x = torch.randn(40, 1, 6, 6)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(3, 2))
    return BayesianNN(net), bz.data.Data(inputs={"x": x}, observed=(x.mean((1, 2, 3)) > 0).long())


def differ(a: Tensor, b: Tensor) -> float:
    """Difference of the means in standard errors."""
    return float((a.mean() - b.mean()) / (a.var() / len(a) + b.var() / len(b)).sqrt())


def test_fully_connected_the_expectation_is_the_same_and_the_variance_less() -> None:
    model, data = moons()
    shared, local, flipout = (losses(model, data, e, 1500) for e in ("shared", "local", "flipout"))
    assert abs(differ(shared, local)) < 4
    assert abs(differ(shared, flipout)) < 4
    assert float(local.var()) < 0.5 * float(shared.var())
    assert float(flipout.var()) < 0.8 * float(shared.var())


def test_in_a_convolution_flipout_stays_right_and_local_does_not() -> None:
    model, data = pictures()
    shared, flipout = (losses(model, data, e, 1500) for e in ("shared", "flipout"))
    assert abs(differ(shared, flipout)) < 4

    # One filter of 3 x 3 on a blank picture, its outputs averaged over 16 places: with shared weights the noise stays, 9 sd^2.
    sd, blank = torch.full((1, 1, 3, 3), 0.4, dtype=torch.float64), torch.ones(1, 1, 6, 6, dtype=torch.float64)

    def guide() -> None:
        pyro.sample("weight", dist.Normal(torch.zeros_like(sd), sd).to_event(4))

    def pooled(kind: Any) -> Tensor:
        out = []
        for _ in range(4000):
            trace = poutine.trace(guide).get_trace()
            with kind(trace, at_the_mean=False):
                out.append(nn.functional.conv2d(blank, trace.nodes["weight"]["value"]).mean())
        return torch.stack(out)

    # The variance of 4000 draws has a relative error of 2.2 %.
    assert float(pooled(Flipout).var()) == pytest.approx(9 * 0.16, rel=0.1)
    assert float(pooled(Local).var()) == pytest.approx(9 * 0.16 / 16, rel=0.1)


def used(model: Any, data: bz.data.Data, guide: Any, **options: Any) -> str:
    fit = bz.fit(model, data, guide=guide, steps=1, progress=False, **options)
    return str(fit.run.objective.layer_noise)


def own_layer(x: Tensor, y: Tensor | None = None) -> Tensor:
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def test_auto_changes_nothing_but_the_variance() -> None:
    model, data = moons()
    assert used(model, data, "mean_field") == "local"
    assert used(model, data, "full_rank") == "shared"
    assert used(*pictures(), "mean_field") == "shared"
    assert used(*pictures(), "mc_dropout") == "local"  # channels drop as a whole, so every example's mask is exact
    assert (
        used(own_layer, bz.data.Data(inputs={"x": data.inputs["x"]}, observed=data.observed.float()), "mean_field") == "shared"
    )


class ByTranspose(nn.Module):
    """The second layer's weights enter as an attribute's values, no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 8), nn.Linear(8, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x)) @ self.second.weight.T


class Pieces(nn.Module):
    """Every row passes the first layer in two pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1, 4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x.reshape(-1, 1))).reshape(len(x), 8))


def twice() -> nn.Module:
    layer = nn.Linear(2, 2)
    return nn.Sequential(layer, nn.Tanh(), layer)


class Tied(nn.Module):
    """One matrix there and back."""

    def __init__(self) -> None:
        super().__init__()
        self.there = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.there(x)) @ self.there.weight


@pytest.mark.parametrize("net", [ByTranspose(), Pieces(), twice(), Tied()])
@pytest.mark.parametrize("batch_size", [None, 20])
def test_auto_leaves_alone_what_noise_in_the_layers_would_change(net: nn.Module, batch_size: int | None) -> None:
    _, data = moons()
    for prior in ("normal", "scale_mixture"):  # with the KL in closed form, and drawn
        assert used(BayesianNN(net, prior=prior), data, "mean_field", batch_size=batch_size) == "shared"
        assert used(BayesianNN(networks.mlp(2, [8], 2), prior=prior), data, "mean_field", batch_size=batch_size) == "local"


def test_refusals() -> None:
    model, data = moons()
    binary = bz.data.Data(inputs={"x": data.inputs["x"]}, observed=data.observed.float())
    with pytest.raises(ValueError, match=r"site 'w' enters .*use estimator='shared'"):
        used(own_layer, binary, "mean_field", estimator="local")
    with pytest.raises(ValueError, match="guide 'full_rank' draws no independent normals"):
        used(model, data, "full_rank", estimator="flipout")
    with pytest.raises(ValueError, match=r"draws masks of 'fc1\.weight', which are not; use estimator='local'"):
        used(model, data, "mc_dropout", estimator="flipout")
    with pytest.raises(ValueError, match=r"site 'second\.weight' enters __get__"):
        used(BayesianNN(ByTranspose()), data, "mean_field", estimator="local")
    with pytest.raises(ValueError, match="unknown estimator 'rao'; choose 'auto', 'shared', 'local', 'flipout'"):
        used(model, data, "mean_field", estimator="rao")


def test_a_ready_guide_is_as_good_as_a_name() -> None:
    model, data = moons()
    fit = bz.fit(model, data, guide=bz.guides.MeanField(model, data), steps=1, progress=False)
    assert (fit.estimator, fit.run.objective.layer_noise) == ("analytic_kl", "local")
