"""Dropout as inference: expectations over all masks by enumeration, penalties by hand, learned rates."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

import bayeszoo as bz
from bayeszoo.guides.masked_weights import DroppedInputs, MaskedWeights
from bayeszoo.models import BayesianNN
from bayeszoo.models.weight_priors import Normal

RATE = 0.3


def fit(model: Any, data: bz.data.Data, guide: str, **options: Any) -> bz.inference.Fit:
    return bz.fit(model, data, guide=guide, guide_options=options, steps=40, optimizer=0.05, progress=False)


def masks(count: int) -> tuple[Tensor, Tensor]:
    """All masks (2^count, count) with their probabilities."""
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=count)), dtype=torch.float64)
    return every, torch.where(every > 0, 1 - RATE, RATE).prod(1)


def log_likelihoods(fitted: bz.inference.Fit, data: bz.data.Data, weights: Tensor) -> Tensor:
    """log p(y_n | w) (S, N) for S values of the last layer's weights."""
    points = {k: v.detach() for k, v in fitted.guide.points().items()}
    out = torch.stack([fitted.model.outputs(points | {"fc2.weight": w}, data.inputs["x"]) for w in weights])
    return torch.log_softmax(out, -1).gather(-1, data.observed.expand(len(weights), -1)[..., None]).squeeze(-1).detach()


@pytest.mark.parametrize(("guide", "count"), [("mc_dropout", 3), ("dropconnect", 6)])
def test_loss_is_the_expectation_over_all_masks_and_a_bound(net: nn.Module, data: bz.data.Data, guide: str, count: int) -> None:
    fitted = fit(BayesianNN(net), data, guide, rate=RATE)
    theta = fitted.guide.points()["fc2.weight"].detach()
    every, probs = masks(count)
    shape = (1, 3) if guide == "mc_dropout" else (2, 3)
    log_p = log_likelihoods(fitted, data, theta * every.reshape(-1, *shape) / (1 - RATE))
    exact = -float((probs[:, None] * log_p).sum())  # E_m sum_n log p(y_n | theta m): the KL is zero
    evidence = -float(torch.logsumexp(probs.log() + log_p.sum(1), 0))  # -log E_m p(y | theta m)
    assert fitted.loss == pytest.approx(exact, abs=4 * fitted.loss_error)
    assert exact > evidence
    assert fitted.objective == "surrogate"  # for a model with a prior on its weights it bounds nothing
    # The same expectation with one mask for the batch and with one for each example.
    with fitted.run.owned.active(5), torch.no_grad():
        for noise in ("shared", "local"):
            fitted.run.objective.layer_noise, fitted.run.objective.at_the_mean = noise, noise == "local"
            if guide == "dropconnect" and noise == "local":
                continue
            found = torch.stack([fitted.run.objective(fitted.data.bind(fitted.model))[1] for _ in range(2000)]).double()
            assert float(found.mean()) == pytest.approx(exact, abs=4 * float(found.std()) / 2000**0.5), noise


def test_groups_of_a_convolution_have_inputs_of_their_own() -> None:
    """Of two groups with two inputs each all four are dropped independently, by one mask for the batch and by one for each example."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(10, 4, 1, generator=generator, dtype=torch.float64)
    data = bz.data.Data({"x": x}, torch.arange(10) % 2)
    torch.manual_seed(4)
    net = nn.Sequential(nn.Conv1d(4, 6, 1, groups=2), nn.Flatten(), nn.Linear(6, 2)).double()
    model = BayesianNN(net, bayesian=["0"])
    fitted = fit(model, data, "mc_dropout", rate=RATE, input_rate=RATE)
    points = {k: v.detach() for k, v in fitted.guide.points().items()}
    every, probs = masks(4)
    log_p = []
    for mask in every:
        columns = mask.reshape(2, 2, 1).repeat_interleave(3, 0)  # filters 0 to 2 see inputs 0 and 1
        out = fitted.model.outputs(points | {"0.weight": points["0.weight"] * columns / (1 - RATE)}, x)
        log_p.append(torch.log_softmax(out, -1).gather(-1, data.observed[:, None]).sum().detach())
    exact = -float((probs * torch.stack(log_p)).sum())
    # Both have this expectation; what tells them apart is how much the loss scatters.
    variance = float((probs * (torch.stack(log_p) + exact).square()).sum())
    found = {}
    with fitted.run.owned.active(5), torch.no_grad():
        for noise in ("shared", "local"):
            fitted.run.objective.layer_noise, fitted.run.objective.at_the_mean = noise, noise == "local"
            found[noise] = torch.stack([fitted.run.objective(fitted.data.bind(fitted.model))[1] for _ in range(3000)]).double()
            assert float(found[noise].mean()) == pytest.approx(exact, abs=4 * float(found[noise].std()) / 3000**0.5), noise
    # The variance of 3,000 draws from 16 values: its own error is below 5 % here.
    assert float(found["shared"].var()) == pytest.approx(variance, rel=0.15)


def test_rates_and_alphas_of_groups_count_every_input() -> None:
    data = bz.data.Data({"x": torch.randn(10, 4, 1, dtype=torch.float64)}, torch.arange(10) % 2)
    net = nn.Sequential(nn.Conv1d(4, 6, 1, groups=2, bias=False), nn.Flatten(), nn.Linear(6, 2)).double()
    concrete = fit(BayesianNN(net, bayesian=["0"]), data, "concrete_dropout").guide
    rate, theta = concrete.learned_rates()["0.weight"], concrete.points()["0.weight"].detach()
    entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
    squares = (theta / concrete.prior_of("0.weight").scale).square().sum() / (2 * (1 - rate))
    assert concrete.penalty().item() == pytest.approx(float(squares) - 4 * entropy, rel=1e-5)
    shares = fit(BayesianNN(net, bayesian=["0"], prior="log_uniform"), data, "gaussian_dropout", share="unit").guide
    assert shares.log_alphas.shape == (4,)
    assert torch.equal(
        shares.log_alpha()["0.weight"][:, :, 0], shares.log_alphas.detach().reshape(2, 2).repeat_interleave(3, 0)
    )


def test_gal_and_ghahramanis_penalty_by_hand(net: nn.Module, data: bz.data.Data) -> None:
    model = BayesianNN(net, prior=Normal(0.5))
    guide = fit(model, data, "mc_dropout", rate=RATE, l2=True).guide
    points = {k: v.detach() for k, v in guide.points().items()}
    # q puts theta / (1 - p) with probability 1 - p: half its expected square over the prior's variance.
    by_hand = sum(
        float((1 - rate) * (points[name] / (1 - rate)).square().sum()) / (2 * 0.25)
        for name, rate in (("fc1.weight", 0.0), ("fc2.weight", RATE))
    )
    for name in ("fc1.bias", "fc2.bias"):
        by_hand -= float(torch.distributions.Normal(0.0 * points[name], 0.5).log_prob(points[name]).sum())
    assert float(guide.penalty().detach()) == pytest.approx(by_hand, rel=1e-6)


def test_concrete_penalty_by_hand(net: nn.Module, data: bz.data.Data) -> None:
    guide = fit(BayesianNN(net, prior=Normal(0.5), biases=False), data, "concrete_dropout", rate=0.2).guide
    points, rates = {k: v.detach() for k, v in guide.points().items()}, guide.learned_rates()
    assert rates["fc1.weight"] != pytest.approx(0.2)  # they are learned
    by_hand = 0.0
    for name, inputs in (("fc1.weight", 2), ("fc2.weight", 3)):
        p = rates[name]
        by_hand += float(points[name].square().sum()) / (2 * (1 - p) * 0.25)
        by_hand += inputs * (p * math.log(p) + (1 - p) * math.log(1 - p))
    assert float(guide.penalty().detach()) == pytest.approx(by_hand, rel=1e-6)


def test_relaxed_masks_become_bernoulli() -> None:
    theta = torch.ones(1, 50_000, dtype=torch.float64)
    cold = DroppedInputs(theta, torch.tensor(RATE, dtype=torch.float64), temperature=0.01).rsample()
    # 50,000 draws: the share's standard error is 0.002; at this temperature 1 % of the masks are between the ends.
    assert float((cold < 0.5).double().mean()) == pytest.approx(RATE, abs=0.01)
    assert float(cold.max()) == pytest.approx(1 / (1 - RATE))


def test_masks_have_the_stated_moments() -> None:
    theta = torch.full((2, 3), 1.5, dtype=torch.float64)
    for fn, same in ((DroppedInputs(theta, RATE), True), (MaskedWeights(theta, RATE, (2, 3)), False)):
        drawn = torch.stack([fn.rsample() for _ in range(20_000)])
        # variance theta^2 p / (1 - p), that of gaussian dropout with alpha = p / (1 - p); errors of 20,000 draws are 0.7 %
        assert float(drawn.mean()) == pytest.approx(1.5, rel=0.01)
        assert drawn.var(0).numpy() == pytest.approx(1.5**2 * RATE / (1 - RATE), rel=0.04)
        assert bool((drawn[:, 0] == drawn[:, 1]).all()) is same  # a dropped input is dropped for all units


@pytest.mark.parametrize(
    ("guide", "options", "message"),
    [
        ("mc_dropout", {"rate": 1.0}, "rate is the probability of a zero, from 0 to below 1, got 1"),
        ("concrete_dropout", {"rate": 0.0}, "where learned rates begin"),
        ("concrete_dropout", {"temperature": 0.0}, "temperature must be positive"),
        ("mc_dropout", {"p": 0.5}, "no such option: unexpected keyword argument 'p'"),
    ],
)
def test_bad_options(net: nn.Module, data: bz.data.Data, guide: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        fit(BayesianNN(net), data, guide, **options)


def test_ties_to_a_prior(net: nn.Module, data: bz.data.Data) -> None:
    with pytest.raises(ValueError, match=r'l2=True takes the penalty from a normal prior.*prior="normal"'):
        fit(BayesianNN(net, prior="laplace"), data, "mc_dropout", l2=True)
    with pytest.raises(ValueError, match=r"'mc_dropout' is for networks, .*use 'mean_field'"):
        fit(bz.models.CoinFlip(), bz.data.load("coin_flips", form="pooled"), "mc_dropout")


def test_the_first_layer_is_the_networks_not_the_first_bayesian_one(net: nn.Module, data: bz.data.Data) -> None:
    whole = fit(BayesianNN(net), data, "mc_dropout", rate=RATE)
    last = fit(BayesianNN(net, bayesian="last", freeze=True), data, "mc_dropout", rate=RATE)
    assert whole.guide.rates == {"fc1.weight": 0.0, "fc2.weight": RATE}
    assert last.guide.rates == {"fc2.weight": RATE}
    assert float(last.predict(data.inputs["x"], n=50).epistemic.max()) > 0


def test_the_first_layer_of_a_network_of_plain_pyro(data: bz.data.Data) -> None:
    net = PyroModule[nn.Sequential](PyroModule[nn.Linear](2, 3), nn.Tanh(), PyroModule[nn.Linear](3, 2))
    for layer in (net[0], net[2]):
        prior = dist.Normal(torch.zeros(layer.weight.shape, dtype=torch.float64), 1.0).to_event(2)
        layer.weight = PyroSample(prior)

    class Model(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            logits = self.net(x)
            with pyro.plate("data", len(x)):
                return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    assert fit(Model(), data, "mc_dropout", rate=RATE).guide.rates == {"net.0.weight": 0.0, "net.2.weight": RATE}
