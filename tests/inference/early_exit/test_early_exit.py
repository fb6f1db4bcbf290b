"""Early exits answer as the full computation does; what they skip is counted right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import bayeszoo as bz
from bayeszoo.inference.early_exit.rules import Marginal, Mode
from bayeszoo.inference.early_exit.stages import Cost, Stages

residual_mlp = bz.models.networks.residual_mlp


def full(prior: Tensor, probs: Tensor) -> dict[str, Tensor]:
    """Both answers by definition, from p(y | x, z) of all depths `(N, L + 1, K)`."""
    joint = probs * prior[:, None]
    # The first of equal entries in the order of z, then y.
    return {"mode": joint.flatten(1).argmax(1) % probs.shape[2], "marginal": joint.sum(1).argmax(1)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certificates_hold_for_any_probabilities_and_prior(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    stopped = {"mode": 0, "marginal": 0}
    for trial in range(300):
        depth, classes = int(torch.randint(1, 9, (), generator=generator)), int(torch.randint(2, 6, (), generator=generator))
        prior = torch.softmax(3 * torch.randn(depth + 1, generator=generator, dtype=torch.float64), 0).to(dtype)
        if trial % 5 == 0:  # depths without mass
            prior = torch.where(torch.rand(depth + 1, generator=generator) < 0.3, torch.zeros_like(prior), prior)
            prior = prior / prior.sum() if float(prior.sum()) else torch.full_like(prior, 1 / (depth + 1))
        scale = 10 ** (2 * float(torch.rand((), generator=generator)))
        probs = torch.softmax(scale * torch.randn(50, depth + 1, classes, generator=generator, dtype=torch.float64), -1).to(
            dtype
        )
        for name, kind in {"mode": Mode, "marginal": Marginal}.items():
            rule = kind(prior, 50, classes)
            answer = torch.full((50,), -1)
            for layers in range(depth + 1):
                done = rule.update(layers, probs[:, layers]) & (answer < 0)
                answer = torch.where(done, rule.answer()[0], answer)
                stopped[name] += int(done.sum()) * (layers < depth)
            assert torch.equal(answer, full(prior, probs)[name])
    assert min(stopped.values()) > 1000  # and not because nobody ever stopped


def test_a_tie_goes_to_fewer_layers() -> None:
    prior = torch.tensor([0.5, 0.5])
    rule = Mode(prior, 1, 2)
    rule.update(0, torch.tensor([[0.1, 0.9]]))
    rule.update(1, torch.tensor([[0.9, 0.1]]))
    assert rule.answer()[0].tolist() == [1]


@pytest.fixture(scope="module")
def digits() -> tuple[Any, bz.data.Data]:
    train, test = bz.data.load("digits").split(0.8, seed=0)
    torch.manual_seed(0)
    model = bz.models.AdaptiveDepthResNet(residual_mlp(64, 10, depth=6, width=32), "geometric", 0.9)
    return bz.fit(model, train, steps=600, batch_size=128, progress=False, compile=False), test


@pytest.mark.parametrize("rule", ["mode", "marginal"])
def test_a_trained_network_keeps_every_answer(digits: tuple[Any, bz.data.Data], rule: str) -> None:
    fit, test = digits
    found = fit.early_exit(test, rule, batch_size=100)
    with torch.no_grad():
        probs = torch.softmax(fit.model.net(test.inputs["x"]), -1)
    assert torch.equal(found.label, full(fit.model.probs, probs)[rule])
    assert found.agreement == 1.0
    assert found.blocks_saved > 0.4
    assert found.accuracy(test) > 0.93
    assert "certified" in str(found)
    assert found.flops < found.full_flops


def test_operations_by_hand() -> None:
    stages = Stages(residual_mlp(5, 3, depth=2, width=4), {})
    cost = Cost(stages, torch.randn(7, 5))
    # A product with a matrix of m x n takes 2 m n operations.
    assert (cost.first, cost.block, cost.exit) == (2 * 5 * 4, [0, 4 * 16, 4 * 16], [2 * 12] * 3)


def test_layers_and_operations_agree(digits: tuple[Any, bz.data.Data]) -> None:
    fit, test = digits
    found = fit.early_exit(test, "marginal")
    # 64 -> 32, blocks of two 32 x 32, exits 32 -> 10 after every depth.
    each = 2 * 64 * 32 + found.layers * 4 * 32 * 32 + (found.layers + 1) * 2 * 320
    assert found.flops == pytest.approx(float(each.double().mean()))
    assert found.full_flops == 2 * 64 * 32 + 6 * 4 * 32 * 32 + 7 * 2 * 320


def test_a_sampled_depth_follows_the_prior_whatever_the_input(digits: tuple[Any, bz.data.Data]) -> None:
    fit, test = digits
    share = torch.bincount(fit.early_exit(test, "sample").layers, minlength=7) / len(test)
    prior = fit.model.probs
    assert bool(((share - prior).abs() < 4 * (prior * (1 - prior) / len(test)).sqrt()).all())


def test_draws_of_weights_are_averaged_before_the_rule() -> None:
    train, test = bz.data.load("digits").split(0.8, seed=0)
    torch.manual_seed(1)
    model = bz.models.AdaptiveDepthResNet(residual_mlp(64, 10, depth=3, width=16), prior="normal")
    fit = bz.fit(
        model, train, {"weights": "mean_field", "z": "amortized"}, steps=300, batch_size=128, progress=False, compile=False
    )
    run = fit.run
    with run.owned.active(0), torch.no_grad():
        draws = run.draws(fit.data, 8, 0, discrete=False, score=False).values
        each = [fit.model.run({n: draws[n][s] for n in fit.model.sites}, test.inputs["x"]) for s in range(8)]
        probs = torch.softmax(torch.stack(each), -1).mean(0)
    for rule in ("mode", "marginal"):
        found = fit.early_exit(test, rule, n=8)
        assert torch.equal(found.label, full(fit.model.probs, probs)[rule])
        assert found.agreement == 1.0
    chosen = fit.early_exit(test, "amortized", n=8)
    with torch.no_grad():
        depth = run.owned.guide.probs("z", x=test.inputs["x"]).argmax(-1)
    assert torch.equal(chosen.layers, depth)
    assert torch.equal(chosen.label, probs[torch.arange(len(test)), depth].argmax(-1))


def test_what_is_refused(digits: tuple[Any, bz.data.Data]) -> None:
    fit, test = digits
    calls = {
        "unknown rule 'fast'": lambda: fit.early_exit(test, "fast"),
        "asks q": lambda: fit.early_exit(test, "amortized"),
        r"inputs of shape \(N, 64\)": lambda: fit.early_exit(torch.randn(3, 10)),
        "n must be a whole number": lambda: fit.early_exit(test, n=0),
        "359 answers and 3 labels": lambda: fit.early_exit(test).accuracy(torch.zeros(3)),
        "needs a network of adaptive depth": lambda: bz.fit(
            bz.models.CoinFlip(), bz.data.load("coin_flips"), progress=False
        ).early_exit(test),
    }
    for words, call in calls.items():
        with pytest.raises(ValueError, match=words):
            call()
