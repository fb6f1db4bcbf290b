"""Bayesian networks: the density by hand, the exact limit, what may be latent, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from torch import Tensor, nn

import bayeszoo as bz
from bayeszoo.models import BayesianNN, networks
from bayeszoo.models.weight_priors import Normal


def table(n: int = 30, columns: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, columns, generator=generator, dtype=torch.float64)
    return x, x[:, 0] - 0.5 * x[:, 1] + 0.3 * torch.randn(n, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
def test_log_joint_by_hand(likelihood: str) -> None:
    x, y = table()
    net = networks.mlp(3, [4], 3 if likelihood == "categorical" else 1, "tanh").double()
    model = BayesianNN(net, likelihood, prior=Normal(0.7)).double()
    target = {"categorical": (y > 0).long() + (y > 1).long(), "bernoulli": (y > 0).double(), "gaussian": y}[likelihood]
    generator = torch.Generator().manual_seed(1)
    weights = {n: torch.randn(p.shape, generator=generator, dtype=torch.float64) for n, p in net.named_parameters()}
    sigma = torch.tensor(0.4, dtype=torch.float64)
    values = weights | ({"sigma": sigma} if likelihood == "gaussian" else {})
    trace = poutine.trace(poutine.condition(model, values)).get_trace(x, target)
    out = torch.tanh(x @ weights["fc1.weight"].T + weights["fc1.bias"]) @ weights["fc2.weight"].T + weights["fc2.bias"]
    by_hand = sum(dist.Normal(0.0 * sigma, 0.7 + 0.0 * sigma).log_prob(w).sum() for w in weights.values())
    if likelihood == "categorical":
        by_hand += torch.log_softmax(out, 1)[torch.arange(30), target].sum()
    elif likelihood == "bernoulli":
        by_hand += -nn.functional.binary_cross_entropy_with_logits(out[:, 0], target, reduction="sum")
    else:
        by_hand += dist.Normal(out[:, 0], sigma).log_prob(y).sum() + dist.HalfNormal(1.0).log_prob(sigma)
    assert float(trace.log_prob_sum()) == pytest.approx(float(by_hand), rel=1e-10)


def test_without_hidden_layer_it_is_linear_regression() -> None:
    """The ELBO is exact in scale: the full-rank fit reaches the exact evidence of the regression."""
    x, y = table(60)
    data = bz.data.Data(inputs={"x": x}, observed=y)
    exact = bz.models.BayesianLinearRegression(3, noise_scale=0.3).log_evidence(data)
    model = BayesianNN(networks.mlp(3, [], 1), "gaussian", prior=Normal(1.0), noise_scale=0.3)
    fit = bz.fit(model, data, guide="full_rank", steps=1500, optimizer=0.03, progress=False)
    # The family holds the posterior; what is left is the optimiser's (measured: below 0.001), and the loss's own error.
    assert -4 * fit.loss_error < fit.loss + float(exact) < 0.01
    batches = bz.fit(model, data, guide="full_rank", steps=1500, optimizer=0.03, batch_size=20, progress=False)
    assert (
        -4 * batches.loss_error < batches.loss + float(exact) < 0.15
    )  # noise of the batches at the last step size; measured 0.04


def test_many_draws_are_one_computation_and_the_same() -> None:
    for net, shape in ((networks.mlp(4, [5], 2), (7, 4)), (networks.lenet_5_caffe(1, 16, 3), (7, 1, 16, 16))):
        model = BayesianNN(net)
        x = torch.randn(shape)
        draws = {name: torch.randn(6, *model.net.get_buffer(name).shape) / 5 for name in model.sites}
        many = torch.vmap(lambda w, m=model, x=x: m.outputs(w, x))(draws)
        single = torch.stack([model.outputs({k: v[s] for k, v in draws.items()}, x) for s in range(6)])
        # float32 sums of some hundred terms in another order
        torch.testing.assert_close(many, single, rtol=1e-4, atol=1e-4)


def test_sizes_of_the_literature() -> None:
    assert sum(p.numel() for p in networks.lenet_300_100().parameters()) == 266_610
    assert sum(p.numel() for p in networks.lenet_5_caffe().parameters()) == 431_080


def three_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def classes(n: int = 40) -> bz.data.Data:
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(2))
    return bz.data.Data(inputs={"x": x}, observed=(x[:, 0] > 0).long())


def test_which_layers_are_latent() -> None:
    net = three_layers()
    assert BayesianNN(net, bayesian="last").bayesian_layers == ["5"]
    assert BayesianNN(net, bayesian=["3", "5"]).bayesian_layers == ["3", "5"]
    assert BayesianNN(net, bayesian=lambda name, layer: isinstance(layer, nn.Linear)).bayesian_layers == ["0", "3", "5"]
    assert set(BayesianNN(net, bayesian="last").sites) == {"5.weight", "5.bias"}
    assert set(BayesianNN(net, bayesian="last", biases=False).sites) == {"5.weight"}
    assert set(BayesianNN(net, bayesian="last", prior="log_uniform").sites) == {"5.weight"}


def test_points_are_trained_unless_frozen_and_buffers_stay() -> None:
    for freeze in (False, True):
        model = BayesianNN(three_layers(), bayesian="last", freeze=freeze)
        fit = bz.fit(model, classes(), guide="mean_field", steps=30, optimizer=0.05, progress=False)
        moved = not torch.equal(fit.model.net[0].weight, model.net[0].weight)
        assert moved is not freeze
        for name, buffer in model.named_buffers():
            assert torch.equal(buffer, dict(fit.model.named_buffers())[name]), name


def test_the_network_runs_as_in_evaluation() -> None:
    net = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    model = BayesianNN(net).train()
    x, weights = torch.randn(5, 2), {name: v for name, (v, _) in BayesianNN(net).initial_values().items()}
    assert torch.equal(model.outputs(weights, x), model.outputs(weights, x))


def test_where_fits_begin() -> None:
    net = networks.mlp(2, [4], 2)
    model = BayesianNN(net)
    first, second = model.initial_values(0), model.initial_values(1)
    assert torch.equal(first["fc1.weight"][0], net.fc1.weight)
    assert not torch.equal(second["fc1.weight"][0], net.fc1.weight)
    assert torch.equal(model.net.get_buffer("fc1.weight"), net.fc1.weight)  # new weights are drawn elsewhere
    drawn = BayesianNN(networks.mlp(50, [400], 2), prior=Normal(0.3), init="prior").initial_values()["fc1.weight"][0]
    assert float(drawn.std()) == pytest.approx(0.3, rel=0.02)  # 20,000 draws: 0.5 %


def fails(model: Callable[[], Any], data: Callable[[], bz.data.Data] = classes) -> Callable[[], Any]:
    return lambda: bz.fit(model(), data(), guide="mean_field", steps=1, progress=False)


def with_labels(labels: Tensor) -> Callable[[], bz.data.Data]:
    return lambda: bz.data.Data(inputs={"x": torch.randn(len(labels), 2)}, observed=labels)


def pictures(side: int) -> bz.data.Data:
    return bz.data.Data(inputs={"x": torch.rand(4, 1, side, side)}, observed=torch.tensor([0, 1, 2, 3]))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class _Kept(nn.Linear):
    """Keeps a tensor that was computed from its parameters, as the deprecated `torch.nn.utils.weight_norm` does."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.computed = self.weight * 2


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "batch norm": (lambda: BayesianNN(three_layers()), "layer '1' is batch norm .*bayesian='last'"),
    "weight norm": (
        lambda: BayesianNN(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)), nn.ReLU(), nn.Linear(3, 2))),
        "weights of layer '0' are computed from others",
    ),
    "old weight norm": (
        lambda: BayesianNN(nn.Sequential(nn.Linear(2, 3), _Kept())),
        "cannot be copied, .*parametrizations.weight_norm",
    ),
    "layer norm": (lambda: BayesianNN(three_layers(), bayesian=["4"]), r"layer '4' \(LayerNorm\) cannot be made Bayesian"),
    "batch norm above": (fails(lambda: BayesianNN(three_layers(), bayesian=["0"])), "batch norm '1' runs after .* layer '0'"),
    "no such layer": (lambda: BayesianNN(three_layers(), bayesian=["fc"]), "no layer 'fc'"),
    "no layer": (lambda: BayesianNN(three_layers(), bayesian=lambda n, m: False), "chooses no layer"),
    "nothing linear": (
        lambda: BayesianNN(nn.Sequential(nn.ReLU())),
        "no linear or convolutional layer.*no layer with parameters",
    ),
    "recurrent": (lambda: BayesianNN(nn.Sequential(nn.LSTM(2, 3))), r"no linear or convolutional layer.*'0' \(LSTM\)"),
    "shared": (lambda: BayesianNN(Shared()), "'a' and 'b' share their weight"),
    "likelihood": (lambda: BayesianNN(networks.mlp(2, [], 2), "poisson"), "unknown likelihood 'poisson'"),
    "noise": (lambda: BayesianNN(networks.mlp(2, [], 2), noise_scale=1.0), "noise_scale belongs to likelihood='gaussian'"),
    "size": (fails(lambda: BayesianNN(networks.mlp(3, [4], 2))), r"does not take inputs of shape \(N, 2\)"),
    "too many classes": (
        fails(lambda: BayesianNN(networks.mlp(2, [4], 2)), with_labels(torch.tensor([0, 1, 2]))),
        "from 0 to 1, .* from 0 to 2",
    ),
    "negative": (fails(lambda: BayesianNN(networks.mlp(2, [4], 2)), with_labels(torch.tensor([0, -1]))), "from -1 to 0"),
    "one class": (fails(lambda: BayesianNN(networks.mlp(2, [4], 2)), with_labels(torch.ones(5).long())), "all 5 labels are 1"),
    "one answer": (
        fails(lambda: BayesianNN(networks.mlp(2, [4], 1), "bernoulli"), with_labels(torch.zeros(5))),
        "all 5 labels are 0: with one class only",
    ),
    "halves": (fails(lambda: BayesianNN(networks.mlp(2, [4], 2)), with_labels(torch.tensor([0.5, 1.0]))), "whole numbers"),
    "one-hot": (fails(lambda: BayesianNN(networks.mlp(2, [4], 2)), with_labels(torch.eye(2))), r"shape \(N,\), got \(2, 2\)"),
    "pictures of another size": (
        fails(lambda: BayesianNN(networks.lenet_5_caffe()), lambda: pictures(32)),
        r"does not take inputs of shape \(N, 1, 32, 32\).*give data of the size",
    ),
    "one output": (fails(lambda: BayesianNN(networks.mlp(2, [4], 1))), "at least two outputs"),
    "widths": (
        fails(lambda: BayesianNN(networks.mlp(2, [4], 3), "gaussian"), with_labels(torch.randn(6))),
        r"returns \(N, 3\) and the targets have the shape \(N,\)",
    ),
    "no zeros and ones": (
        fails(lambda: BayesianNN(networks.mlp(2, [4], 1), "bernoulli"), with_labels(torch.randn(6))),
        "targets that are 0 or 1",
    ),
    "small pictures": (lambda: networks.lenet_5_caffe(size=12), "too small"),
}


@pytest.mark.parametrize("what", list(BAD))
def test_bad_input(what: str) -> None:
    make, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("likelihood", "width"), [("categorical", 2), ("bernoulli", 1)])
def test_held_out_data_may_be_of_one_class_and_are_checked(likelihood: str, width: int) -> None:
    x = torch.randn(20, 2)
    train, held_out = (bz.data.Data({"x": x}, y) for y in ((x[:, 0] > 0).long(), torch.ones(20).long()))
    model = BayesianNN(networks.mlp(2, [4], width), likelihood)
    options = {"steps": 3, "compile": False, "progress": False}
    assert bz.fit(model, train, "mean_field", validation=held_out, **options).validation_losses
    with pytest.raises(ValueError, match=r"0 or 1|from 0 to 1"):
        bz.fit(model, train, "mean_field", validation=bz.data.Data({"x": x}, 2 * held_out.observed), **options)
