"""The straight-through concrete gradient of q of a discrete latent, against sums over its states and a quadrature."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import bayeszoo as bz
from bayeszoo.guides.relaxed import straight_through

#: Means of so many draws, and how many draws each is of: errors are estimated from the means.
MEANS, EACH = 30, 100


def problem(depth: int, **options: Any) -> tuple[Any, bz.data.Data]:
    torch.manual_seed(3)
    x = torch.randn(30, 2, dtype=torch.float64)
    data = bz.data.Data({"x": x}, (x.norm(dim=1) * 2).long().clamp_max(2), num_classes=3)
    return bz.models.AdaptiveDepthResNet(bz.models.networks.residual_mlp(2, 3, depth, 8), **options), data


def begun(model: Any, data: bz.data.Data, word: str, **options: Any) -> bz.inference.Fit:
    """A fit of no training to speak of; with the same seed guides of the same shape begin at the same q."""
    return bz.fit(model, data, {"z": word}, steps=1, optimizer=1e-9, seed=5, progress=False, guide_options=options)


def gradients(fit: bz.inference.Fit, module: Any, num: int = 1, each: int = 1) -> tuple[Tensor, Tensor]:
    """`num` gradients of the loss (num, P), and losses (num,), both means over `each` draws."""
    params = list(module.parameters())
    objective = replace(fit.run.objective, num_particles=each)
    found = []
    with fit.run.owned.active(1):
        for _ in range(num):
            surrogate, value = objective(fit.data.bind(fit.model))
            found.append((torch.cat([g.reshape(-1) for g in torch.autograd.grad(surrogate, params)]), value.detach()))
    return torch.stack([g for g, _ in found]), torch.stack([v for _, v in found])


def squared_z(means: Tensor, truth: Tensor) -> float:
    """The average over entries of squared standard scores; 1.07 for 30 means around the truth, by Student's t."""
    error = means.std(0) / len(means) ** 0.5
    seen = error > 0
    return float((((means.mean(0) - truth)[seen] / error[seen]) ** 2).mean())


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_mean_gradient_is_that_of_the_mean_weights(temperature: float) -> None:
    model, data = problem(1, scope="data", depth_prior=[0.3, 0.7], freeze=True)
    relaxed, summed = begun(model, data, "relaxed", temperature=temperature), begun(model, data, "global")
    parts = [fit.run.owned.guide.parts[0] for fit in (relaxed, summed)]
    with torch.no_grad():
        for part in parts:
            part.logits.copy_(torch.tensor([0.4, -0.3]))
        log_p = torch.log_softmax(model.double().net(data.inputs["x"]), -1)
        f = log_p[torch.arange(len(data)), :, data.observed].sum(0)
    # Of two states s_1 = sigmoid((l_1 - l_0 + a) / temperature) with a logistic: a sum over its quantiles.
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    s, q = torch.sigmoid((-0.7 + torch.logit(u)) / temperature), torch.sigmoid(torch.tensor(-0.7, dtype=torch.float64))
    bias = -(f[1] - f[0]) * ((s * (1 - s)).mean() / temperature - q * (1 - q))
    wanted = gradients(summed, parts[1])[0][0] + bias * torch.tensor([-1.0, 1.0])
    means, _ = gradients(relaxed, parts[0], MEANS, EACH)
    # The two entries are opposite numbers: one squared score with 29 degrees of freedom, above 10 once in 270 seeds.
    assert squared_z(means, wanted) < 10
    # The test would see the bias itself, or it would say nothing about it.
    assert temperature < 1 or squared_z(means, gradients(summed, parts[1])[0][0]) > 40


def test_bias_falls_and_variance_grows_with_a_lower_temperature() -> None:
    model, data = problem(3)
    summed = begun(model, data, "amortized")
    truth, value = gradients(summed, summed.run.owned.guide)
    of_model, _ = gradients(summed, summed.run.owned.model)
    bias, spread = [], []
    for temperature in (0.1, 0.5, 2.0):
        fit = begun(model, data, "relaxed", temperature=temperature)
        fit.run.owned.guide.load_state_dict(summed.run.owned.guide.state_dict())
        fit.run.owned.model.load_state_dict(summed.run.owned.model.state_dict())
        means, losses = gradients(fit, fit.run.owned.guide, MEANS, EACH)
        error = means.var(0) / MEANS
        bias.append(float(((means.mean(0) - truth[0]) ** 2 - error).sum().clamp_min(0).sqrt() / truth.norm()))
        spread.append(float((EACH * means.var(0).sum()).sqrt() / truth.norm()))
        # The loss is the discrete model's, whatever the temperature: four standard errors.
        assert abs(float(losses.mean() - value[0])) < 4 * float(losses.std()) / MEANS**0.5
        # So is the gradient of the network, which sees draws of z: squared scores of correlated entries average near 1.
        assert squared_z(gradients(fit, fit.run.owned.model, MEANS, EACH)[0], of_model[0]) < 2.0
    # Measured: 0.3, 1.6 and 7.9 % of the gradient's length; 3000 draws know that to 0.5, 0.15 and 0.03 %, the sds over 3000^0.5.
    assert bias[0] < 0.003 + 3 * 0.005
    assert abs(bias[1] - 0.016) < 3 * 0.0015
    assert abs(bias[2] - 0.079) < 3 * 0.0003
    assert spread[0] > 2 * spread[1] > 4 * spread[2]


def test_weights_are_one_draw_of_the_states() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64).expand(20_000, 3)
    weights = straight_through(logits, 0.7)
    assert torch.allclose(weights, torch.nn.functional.one_hot(weights.argmax(-1), 3).double(), atol=1e-12)
    q = torch.softmax(logits[0], -1)
    # 4.5 binomial standard errors: by chance once in 50,000 times three.
    assert bool(((weights.mean(0) - q).abs() < 4.5 * (q * (1 - q) / 20_000).sqrt()).all())


def test_relaxed_training_approaches_the_posterior() -> None:
    model, data = problem(3, scope="data", freeze=True)
    exact = bz.fit(model, data, "exact", progress=False)
    relaxed = bz.fit(model, data, {"z": "relaxed"}, steps=1500, optimizer=0.02, progress=False)
    # The loss ends as far above -log evidence as bias and noise of the last steps leave it; a uniform q is 10 times as far.
    q = torch.full((4,), 0.25, dtype=torch.float64)
    with torch.no_grad():
        posterior = exact.model.depth_posterior(exact.model.net(data.inputs["x"]), data.observed)
    uniform = float((q * (q.log() - posterior.log())).sum())
    assert -4 * relaxed.loss_error < relaxed.loss - exact.loss < 0.1 * uniform


def test_importance_weights_are_those_of_whole_draws() -> None:
    model, data = problem(1, scope="data", depth_prior=[0.3, 0.7], freeze=True)
    exact = bz.fit(model, data, "exact", progress=False)
    fit = begun(model, data, "relaxed")
    objective = replace(fit.run.objective, num_particles=20_000, estimator="importance_weighted")
    with torch.no_grad(), fit.run.owned.active(1):
        fit.run.owned.guide.parts[0].logits.copy_(torch.tensor([0.4, -0.3]))
        _, value = objective(fit.data.bind(fit.model))
        log_p = torch.log_softmax(fit.model.net(fit.data.inputs["x"]), -1)
        joint = log_p[torch.arange(len(data)), :, data.observed].sum(0) + fit.model.probs.log()
        q = torch.softmax(fit.run.owned.guide.parts[0].logits, 0)
    # log mean of w = p(y, z) / q(z): its error is the coefficient of variation of w over 20,000^0.5; four of them.
    ratio = (joint - q.log() + exact.loss).exp()
    error = float(((q * ratio.square()).sum() - 1).sqrt()) / 20_000**0.5
    assert abs(float(value) - exact.loss) < 4 * error


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), "low", True])
def test_temperatures_that_are_none(temperature: Any) -> None:
    model, data = problem(1)
    with pytest.raises(ValueError, match="temperature must be a positive number"):
        begun(model, data, "relaxed", temperature=temperature)
    with pytest.raises(ValueError, match="no discrete latent has this guide"):
        begun(model, data, "amortized", temperature=temperature)
