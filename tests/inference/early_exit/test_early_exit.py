"""Early exits answer as the full computation does; what they skip is counted right."""

from __future__ import annotations

from pathlib import Path
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
                done = rule.update(layers, probs[:, layers], torch.ones(len(probs))) & (answer < 0)
                answer = torch.where(done, rule.answer()[0], answer)
                stopped[name] += int(done.sum()) * (layers < depth)
            assert torch.equal(answer, full(prior, probs)[name])
    assert min(stopped.values()) > 1000  # and not because nobody ever stopped


def test_a_tie_goes_to_fewer_layers() -> None:
    prior = torch.tensor([0.5, 0.5])
    rule = Mode(prior, 1, 2)
    rule.update(0, torch.tensor([[0.1, 0.9]]), torch.ones(1))
    rule.update(1, torch.tensor([[0.9, 0.1]]), torch.ones(1))
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
        r"359 answers, and labels of the shape \(3,\)": lambda: fit.early_exit(test).accuracy(torch.zeros(3)),
        "needs a network of adaptive depth": lambda: bz.fit(
            bz.models.CoinFlip(), bz.data.load("coin_flips"), progress=False
        ).early_exit(test),
    }
    for words, call in calls.items():
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.parametrize("seed", range(3))
def test_ties_between_depths_do_not_depend_on_the_batch(seed: int) -> None:
    """Later exits repeat the first one with classes renamed: different classes with the same J, up to the last bits."""
    torch.manual_seed(seed)
    net = bz.models.networks.residual_mlp(20, 4, 4, 24)
    with torch.no_grad():
        for head in net.heads:
            head[1].weight.mul_(20)
        for layers in (2, 3, 4):
            for parameter in net.blocks[layers - 1].second.parameters():
                parameter.zero_()
            for mine, first in zip(net.heads[layers][1].parameters(), net.heads[1][1].parameters(), strict=True):
                mine.copy_(first.roll(layers - 1, 0))
    data = bz.data.Data({"x": torch.randn(1500, 20)}, torch.arange(1500) % 4, num_classes=4)
    prior = [0.3, 0.175, 0.175, 0.175, 0.175]
    fit = bz.fit(bz.models.AdaptiveDepthResNet(net, prior, freeze=True), data, steps=1, compile=False, progress=False)
    answers = [fit.early_exit(data, "mode", batch_size=size, repeats=1) for size in (32, 1500)]
    assert answers[0].agreement == answers[1].agreement == 1.0
    assert torch.equal(answers[0].label, answers[1].label)


def test_one_depth_for_all_uses_its_exact_posterior() -> None:
    torch.manual_seed(0)
    net = bz.models.networks.residual_mlp(3, 2, 2, 5)
    x = torch.randn(12, 3)
    data = bz.data.Data({"x": x}, (x[:, 0] > 0).long(), num_classes=2)
    model = bz.models.AdaptiveDepthResNet(net, "uniform", scope="data", freeze=True)
    fit = bz.fit(model, data, steps=1, compile=False, progress=False)
    with torch.no_grad():
        logits = fit.model.net(x)
        weights = fit.model.depth_posterior(logits, data.observed)
        exact = (torch.softmax(logits, -1) * weights[None, :, None]).sum(1)
    found = fit.early_exit(data, "marginal")
    assert torch.equal(found.label, exact.argmax(1))


@pytest.mark.parametrize("bayesian", ["all", "last"])
def test_convolutions_with_one_head_and_latent_weights(bayesian: str, tmp_path: Path) -> None:
    x = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = bz.data.Data({"x": x}, torch.arange(24) % 4, num_classes=4)
    net = bz.models.networks.residual_cnn(1, 4, (1, 2), (4, 8), "shared")
    assert len(net.adapters) == 2  # one a width
    model = bz.models.AdaptiveDepthResNet(net, prior="normal", bayesian=bayesian)
    fit = bz.fit(model, data, guide={"weights": "mean_field", "z": "exact"}, steps=3, compile=False, progress=False)
    found = fit.early_exit(data, "marginal", n=3)
    assert found.agreement == 1.0
    fit.save(tmp_path / "run")
    again = bz.load(tmp_path / "run", model=model)
    assert torch.equal(again.early_exit(data, "marginal", n=3).label, found.label)


def test_inputs_that_are_none_are_refused() -> None:
    x = torch.randn(10, 2)
    data = bz.data.Data({"x": x}, torch.arange(10) % 2, num_classes=2)
    model = bz.models.AdaptiveDepthResNet(bz.models.networks.residual_mlp(2, 2, 2, 4))
    fit = bz.fit(model, data, steps=1, compile=False, progress=False)
    x = x.clone()
    x[3, 1] = torch.nan
    cases = {
        "row 4 of the inputs": lambda: fit.early_exit(x),
        "inputs under 'x'": lambda: fit.early_exit({"q": x}),
        "early_exit takes Data": lambda: fit.early_exit("abc"),
        "labels of the shape": lambda: fit.early_exit(data).accuracy(5),
        "tells 0 to 1 apart": lambda: fit.to_arviz(5, depths=bz.data.Data({"x": data.inputs["x"]}, torch.full((10,), 7))),
    }
    for words, call in cases.items():
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert str(caught.value).count("\n") == 0


def test_draws_of_weights_count_by_their_posterior_of_the_depth() -> None:
    """Where all inputs share z and it is summed out: p(y | x) is the mean over draws of sum_z p(y | x, z, w) p(z | w, D)."""
    train, test = bz.data.load("digits").split(0.2, seed=0)
    test = test.select(torch.arange(200))
    torch.manual_seed(2)
    net = residual_mlp(64, 10, depth=3, width=6)
    fit = bz.fit(
        bz.models.AdaptiveDepthResNet(net, "geometric", 0.9, scope="data", prior="normal"), train,
        {"weights": "ensemble", "z": "exact"}, steps=30, optimizer=0.02, progress=False, compile=False,
    )  # fmt: skip
    model, run = fit.model, fit.run
    with run.owned.active(0), torch.no_grad():
        draws = run.draws(fit.data, 6, 0, discrete=False, score=False).values
        each = [{n: draws[n][s] for n in model.sites} for s in range(6)]
        bound = fit.data.bind(model)
        z = torch.stack([model.depth_posterior(model.run(w, bound["x"]), bound["y"]) for w in each])
        joint = torch.stack([torch.softmax(model.run(w, test.inputs["x"]), -1) for w in each]) * z[:, None, :, None]
    assert float(z.std(0).max()) > 0.1  # or the average of p(z | w, D) would do
    joint = joint.mean(0)
    mode, marginal = fit.early_exit(test, "mode", n=6), fit.early_exit(test, "marginal", n=6)
    assert torch.allclose(mode.prob, joint.flatten(1).max(1).values, atol=1e-6)
    assert torch.equal(mode.label, joint.max(1).values.argmax(1))
    assert torch.equal(marginal.label, joint.sum(1).argmax(1))


@pytest.mark.parametrize("common", [1e4, 1e5])
def test_logits_that_are_large_round_more(common: float) -> None:
    torch.manual_seed(3)
    net = residual_mlp(8, 2, depth=4, width=64)
    with torch.no_grad():
        for head in net.heads:  # the same for both classes, so that it cancels but for its rounding
            head[1].weight.add_(common * torch.rand(1, 64))
    x = torch.randn(500, 8)
    data = bz.data.Data({"x": x}, (x[:, 0] > 0).long(), num_classes=2)
    model = bz.models.AdaptiveDepthResNet(net, "geometric", 0.9, freeze=True)
    fit = bz.fit(model, data, "exact", steps=1, progress=False, compile=False, dtype=torch.float32)
    with torch.no_grad():
        alone = torch.cat([torch.softmax(fit.model.net(row), -1) for row in x.split(1)])
    for rule in ("mode", "marginal"):
        found = fit.early_exit(x, rule, batch_size=4, repeats=1)
        assert found.agreement == 1.0
        assert torch.equal(found.label, full(fit.model.probs.float(), alone)[rule])
