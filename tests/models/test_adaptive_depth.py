"""The evidence and the posterior of z, against sums written out; priors; what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import bayeszoo as bz
from bayeszoo.inference.target.density import discrete_marginals, log_joint
from bayeszoo.inference.target.program import describe

residual_mlp, residual_cnn = bz.models.networks.residual_mlp, bz.models.networks.residual_cnn


def spiral(n: int = 60, seed: int = 0) -> bz.data.Data:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return bz.data.Data({"x": x}, (x.norm(dim=1) * 2).long().clamp_max(2), num_classes=3)


def brute(model: Any, data: bz.data.Data) -> tuple[Tensor, Tensor]:
    """log p(y_n, z) of every input and depth (N, L + 1), from a network run to each depth by itself; and p(z | x, y)."""
    joint = []
    for n in range(len(data)):
        row = []
        for depth in range(model.depth + 1):
            h = model.net.stem(data.inputs["x"][n : n + 1])
            for block in list(model.net.blocks)[:depth]:
                h = block(h)
            log_p = torch.log_softmax(model.net.exit(h, depth), -1)[0, int(data.observed[n])]
            row.append(log_p + model.probs[depth].log())
        joint.append(torch.stack(row))
    table = torch.stack(joint)
    return table, torch.softmax(table, -1)


@pytest.mark.parametrize("depth", [1, 3, 8])
@pytest.mark.parametrize("prior", ["geometric", "poisson"])
@pytest.mark.parametrize("heads", ["each", "shared"])
def test_evidence_is_the_sum_over_depths(depth: int, prior: str, heads: str) -> None:
    torch.manual_seed(depth)
    model, data = bz.models.AdaptiveDepthResNet(residual_mlp(2, 3, depth, 5, heads), prior), spiral()
    fit = bz.fit(model, data, steps=20, batch_size=20, progress=False)
    with torch.no_grad():
        joint, posterior = brute(fit.model, data)
        # The sums are the same in another order: rounding of 60 terms in double precision.
        assert fit.loss == pytest.approx(-float(joint.logsumexp(-1).sum()), rel=1e-12)
        assert torch.allclose(fit.model.depth_posterior(fit.model.net(data.inputs["x"]), data.observed), posterior, atol=1e-12)
    marginals = discrete_marginals(fit.program, fit.model, data.bind(fit.model), {})["z"]
    assert torch.allclose(marginals, posterior, atol=1e-10)


def test_draws_of_z_follow_the_posterior() -> None:
    torch.manual_seed(0)
    model, data = bz.models.AdaptiveDepthResNet(residual_mlp(2, 3, 3, 5)), spiral(20)
    fit = bz.fit(model, data, "exact", steps=200, progress=False)
    with torch.no_grad():
        posterior = brute(fit.model, data)[1]
    z = fit.sample(20_000, seed=1)["z"]
    share = torch.stack([(z == depth).double().mean(0) for depth in range(4)], 1)
    # 4.5 standard errors of 20,000 draws: exceeded by chance once in 2,000 times 80 comparisons at the most.
    assert bool(((share - posterior).abs() < 4.5 * (posterior * (1 - posterior) / 20_000).sqrt() + 1e-4).all())


def test_one_depth_for_all_data() -> None:
    torch.manual_seed(1)
    model, data = bz.models.AdaptiveDepthResNet(residual_mlp(2, 3, 4, 5), scope="data").double(), spiral()
    program = describe(model, data)
    with torch.no_grad():
        log_p = torch.log_softmax(model.net(data.inputs["x"]), -1)
        each = log_p[torch.arange(len(data)), :, data.observed].sum(0) + model.probs.log()
        assert float(log_joint(program, model, data.bind(model), {})) == pytest.approx(float(each.logsumexp(0)), rel=1e-12)
        assert torch.allclose(model.depth_posterior(model.net(data.inputs["x"]), data.observed), torch.softmax(each, 0))
    with pytest.raises(ValueError, match="discrete='guide'"):
        bz.fit(model, data, "exact", steps=5, batch_size=10, progress=False)


def test_a_table_for_z_reaches_the_exact_loss_where_the_network_is_frozen() -> None:
    torch.manual_seed(2)
    model, data = bz.models.AdaptiveDepthResNet(residual_mlp(2, 3, 3, 8), freeze=True), spiral(30)
    exact = bz.fit(model, data, "exact", progress=False)
    table = bz.fit(model, data, {"z": "table"}, steps=1000, optimizer=0.05, progress=False)
    amortized = bz.fit(model, data, {"z": "amortized"}, steps=600, progress=False)
    assert exact.stop_reason == "the guide has no parameters to train"
    # Loss minus -log evidence is KL(q || p(z | x, y)): rows of free probabilities reach it, to what 1,000 steps leave.
    assert -1e-9 < table.loss - exact.loss < 1e-3
    # q(z | x) does not see y, so it stays above; a uniform q would cost more.
    with torch.no_grad():
        joint, _ = brute(exact.model, data)
        uniform = float((-joint.mean(1) - torch.log(torch.tensor(4.0))).sum())
    assert exact.loss < amortized.loss < uniform


def test_one_table_for_all_inputs_reaches_its_closed_form() -> None:
    torch.manual_seed(2)
    net = residual_mlp(2, 3, 3, 8)
    with torch.no_grad():  # exits that are sure of themselves differ from one another
        for head in net.heads:
            head[-1].weight.mul_(6)
    model, data = bz.models.AdaptiveDepthResNet(net, freeze=True), spiral(30)
    fit = bz.fit(model, data, {"z": "global"}, steps=400, optimizer=0.05, progress=False)
    with torch.no_grad():
        joint, posterior = brute(fit.model, data)
        # -ELBO = N (sum_z q log q - sum_z q mean_n log p(y_n, z)), lowest at q proportional to exp(mean_n log p(y_n, z)).
        best = torch.softmax(joint.mean(0), -1)
        lowest = -len(data) * float(joint.mean(0).logsumexp(-1))
        guide = fit.run.owned.guide
        q = guide.probs("z", x=data.inputs["x"])
        of_new = guide.probs("z", x=torch.zeros(4, 2, dtype=torch.float64))
    assert q.shape == (30, 4)
    assert of_new.shape == (4, 4)
    assert torch.equal(q, q[:1].expand_as(q))
    # Nothing is drawn, so that 400 steps leave little; the mean of the posteriors is another vector.
    assert torch.allclose(q[0], best, atol=1e-3)
    assert float((posterior.mean(0) - best).abs().max()) > 0.03
    assert lowest - 1e-9 <= fit.loss < lowest + 1e-3


def sure(second: tuple[float, float], n: int = 20_000) -> tuple[Any, bz.data.Data]:
    """One layer whose exit knows the class of every input, without layers none; and N inputs."""
    net = residual_mlp(2, 2, depth=1, width=2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.stem[1].weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        net.heads[1][1].weight.copy_(torch.tensor([[0.0, second[0]], [second[1], 0.0]]))
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    return net, bz.data.Data({"x": x}, (x[:, 0] > 0).long(), num_classes=2)


@pytest.mark.parametrize("z", ["exact", "global", "table", "relaxed"])
def test_no_data_make_up_for_a_prior_of_zero(z: str) -> None:
    net, data = sure((10.0, 10.0))
    fit = bz.fit(
        bz.models.AdaptiveDepthResNet(net, [1.0, 0.0], scope="data", freeze=True),
        data,
        {"z": z},
        steps=3,
        compile=False,
        progress=False,
    )
    # Without layers both classes have probability 1/2; with one layer 20,000 rows would gain 13,000 nats.
    assert fit.loss == pytest.approx(20_000 * math.log(2), rel=1e-6)
    assert int(fit.sample(50, seed=1)["z"].max()) == 0


@pytest.mark.parametrize("z", ["exact", "amortized", "table", "global", "reinforce"])
def test_nor_does_one_input(z: str) -> None:
    net, data = sure((1e5, 1e5), n=20)
    fit = bz.fit(
        bz.models.AdaptiveDepthResNet(net, [1.0, 0.0], freeze=True), data, {"z": z}, steps=3, compile=False, progress=False
    )
    assert fit.loss == pytest.approx(20 * math.log(2), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("z", ["global", "amortized"])
def test_a_prior_of_zero_on_both_engines(z: str) -> None:
    """Outside the contract test: the head of a depth that cannot occur has no gradient."""
    torch.manual_seed(5)
    model, data = bz.models.AdaptiveDepthResNet(residual_mlp(2, 3, 3, 5), [0.5, 0.3, 0.0, 0.2]), spiral()
    a, b = (bz.fit(model, data, {"z": z}, steps=60, batch_size=20, compile=c, progress=False) for c in (False, True))
    assert b.engine == "compiled"
    torch.testing.assert_close(torch.tensor(a.losses), torch.tensor(b.losses), rtol=1e-8, atol=0.0)
    with torch.no_grad():
        assert float(b.guide.probs("z", x=data.inputs["x"])[:, 2].max()) == 0.0


def test_a_steep_prior_in_single_precision() -> None:
    net = residual_mlp(2, 2, depth=8, width=2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.heads[8][1].bias.copy_(torch.tensor([3.0, 0.0]))
    data = bz.data.Data({"x": torch.randn(1000, 2)}, torch.tensor([0] * 999 + [1]), num_classes=2)
    model = bz.models.AdaptiveDepthResNet(net, "geometric", 1e-6, scope="data", freeze=True)
    loss = bz.fit(model, data, steps=1, compile=False, progress=False, dtype=torch.float32).loss
    # p(z = 8) = 1e-48 is no number of single precision; its logarithm is, and 999 classes that are right outweigh it.
    right = 999 * math.log1p(math.exp(-3)) + (3 + math.log1p(math.exp(-3)))
    assert loss == pytest.approx(right + 8 * math.log(1e6) - math.log1p(-1e-6), rel=1e-5)


def test_the_last_layer_is_the_head_that_all_depths_share() -> None:
    net = residual_cnn(1, 4, (1, 2), (4, 8), "shared")
    assert list(bz.models.AdaptiveDepthResNet(net, prior="normal", bayesian="last").sites) == ["heads.0.weight", "heads.0.bias"]


def test_reinforce_is_unbiased_and_the_baseline_helps() -> None:
    torch.manual_seed(3)
    model, data = bz.models.AdaptiveDepthResNet(residual_mlp(2, 3, 3, 8), freeze=True), spiral(30)
    summed = bz.fit(model, data, {"z": "amortized"}, steps=1, seed=5, progress=False)
    drawn = bz.fit(model, data, {"z": "reinforce"}, steps=1, seed=5, progress=False)
    kwargs = data.bind(model)
    parts = summed.run.owned.guide.parts[0], drawn.run.owned.guide.parts[0]
    parts[1].net.load_state_dict(parts[0].net.state_dict())

    def gradient(fit: Any, part: Any) -> Tensor:
        surrogate, _ = fit.run.objective(kwargs)
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(surrogate, list(part.net.parameters()))])

    with summed.run.owned.active(0):
        truth = gradient(summed, parts[0])
    found = {}
    for bias in (0.0, float(drawn.loss) / -len(data)):
        with torch.no_grad():
            parts[1].baseline[2].weight.zero_()
            parts[1].baseline[2].bias.fill_(bias)
        with drawn.run.owned.active(1):
            draws = torch.stack([gradient(drawn, parts[1]) for _ in range(1500)])
        error = draws.std(0) / 1500**0.5
        seen = error > 0
        # A mean of squared z scores over some hundred correlated entries is near 1; 2 would be a bias of one standard error.
        assert float((((draws.mean(0) - truth)[seen] / error[seen]) ** 2).mean()) < 2.0
        found[bias] = float(draws.var(0).sum())
    small, large = sorted(found.values())
    assert found[0.0] == large
    assert small < 0.8 * large


def test_convolutions_in_stages() -> None:
    torch.manual_seed(4)
    x = torch.randn(6, 1, 12, 12)
    for heads in ("each", "shared"):
        net = residual_cnn(1, 4, (1, 2), (4, 8), heads)
        out = net(x)
        assert out.shape == (6, 4, 4)
        h = net.blocks[0](net.stem(x))
        assert torch.allclose(out[:, 1], net.exit(h, 1))
        assert net.blocks[1](h).shape == (6, 8, 6, 6)
    data = bz.data.Data({"x": x}, torch.arange(6) % 4, num_classes=4)
    fit = bz.fit(bz.models.AdaptiveDepthResNet(net), data, steps=3, progress=False)
    assert fit.sample(3)["z"].shape == (3, 6)


def test_weights_and_depth_have_families_of_their_own() -> None:
    torch.manual_seed(5)
    model, data = bz.models.AdaptiveDepthResNet(residual_mlp(2, 3, 2, 4), prior="normal"), spiral(30)
    fit = bz.fit(model, data, {"weights": "mean_field", "z": "exact"}, steps=30, progress=False)
    assert fit.settings.guide == "weights=mean_field, z=exact"
    assert set(fit.sample(2)) == {"z", *model.sites}
    assert bz.fit(model, data, "weights=map, z=exact", steps=10, progress=False).objective == "surrogate"


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        ([0.5, 0.6, -0.1], "which are not negative"),
        ([0.5, 0.2, 0.2], "must sum to 1, and sums to 0.9"),
        ([0.5, 0.5], "needs 3 probabilities, one for each of 0 to 2 layers"),
        ([0.5, float("nan"), 0.5], "which are not negative"),
        (["few", "some", "many"], "or 3 probabilities, got"),
        (None, "or 3 probabilities, got None"),
        ("binomial", "unknown depth_prior 'binomial'; choose one of geometric, poisson, uniform"),
    ],
)
def test_priors_that_are_none(prior: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        bz.models.AdaptiveDepthResNet(residual_mlp(2, 3, 2), prior)


def test_priors_in_numbers() -> None:
    priors = bz.models.depth_priors
    assert torch.allclose(priors.geometric(3, 0.5), torch.tensor([8.0, 4, 2, 1], dtype=torch.float64) / 15)
    assert torch.allclose(priors.poisson(2, 2.0), torch.tensor([1.0, 2, 2], dtype=torch.float64) / 5)
    assert torch.allclose(priors.depth_prior("uniform", 4), torch.full((5,), 0.2, dtype=torch.float64))
    for wrong in (
        lambda: priors.geometric(3, 0.0),
        lambda: priors.poisson(3, -1.0),
        lambda: priors.depth_prior("uniform", 3, 0.5),
        lambda: priors.depth_prior("poisson", 3, "few"),
    ):
        with pytest.raises(ValueError, match=r"ratio|rate"):
            wrong()


def test_what_is_refused() -> None:
    model, data = bz.models.AdaptiveDepthResNet(residual_mlp(2, 3, 2, 4)), spiral()
    bayesian = bz.models.AdaptiveDepthResNet(residual_mlp(2, 3, 2, 4), prior="normal")

    def labels(top: int) -> bz.data.Data:
        return bz.data.Data(data.inputs, data.observed + top)

    calls = {
        "depth is the number of residual layers": lambda: residual_mlp(2, 3, depth=0),
        "blocks must be whole numbers of at least 1, got 0": lambda: residual_cnn(1, 3, (2, 0), (4, 8)),
        "width must be whole numbers of at least 1, got 0": lambda: residual_mlp(2, 3, width=0),
        "must be a ResidualNetwork": lambda: bz.models.AdaptiveDepthResNet(torch.nn.Linear(2, 3)),  # type: ignore[arg-type]
        "scope must be": lambda: bz.models.AdaptiveDepthResNet(residual_mlp(2, 3), scope="batch"),
        "labels must be whole numbers from 0 to 2": lambda: bz.fit(model, labels(1), steps=1),
        r"does not take inputs of shape \(N, 3\)": lambda: bz.fit(
            model, bz.data.Data({"x": torch.randn(60, 3)}, data.observed), steps=1
        ),
        "unknown guide 'mean_feld'; did you mean 'mean_field'": lambda: bz.fit(
            bayesian, data, {"weights": "mean_feld", "z": "exact"}, steps=1
        ),
        "'global' is a guide of a discrete latent, which is given by its name": lambda: bz.fit(model, data, "global", steps=1),
        "here all inputs share one; use rule 'mode'": lambda: bz.fit(
            bz.models.AdaptiveDepthResNet(residual_mlp(2, 3), scope="data"), data, {"z": "global"}, steps=1, progress=False
        ).early_exit(data, "amortized"),
        "one of its entries is nan": lambda: bz.models.AdaptiveDepthResNet(residual_mlp(2, 3, 1), [math.nan, 1.0]),
        "adapters are one for each of 0 to 1 layers, and there are 1": lambda: bz.models.networks.ResidualNetwork(
            torch.nn.Identity(), [torch.nn.Identity()], [torch.nn.Identity()], [torch.nn.Identity()]
        ),
        "unknown guide 'exakt' for the discrete latent 'z'": lambda: bz.fit(model, data, {"z": "exakt"}, steps=1),
        "its weights are points": lambda: bz.fit(model, data, {"weights": "mean_field", "z": "exact"}, steps=1),
        "need a family: add 'weights'": lambda: bz.fit(bayesian, data, {"z": "exact"}, steps=1),
        "no discrete latent of that name; its parts are z": lambda: bz.fit(model, data, {"depth": "exact"}, steps=1),
        "is shared by all observations": lambda: bz.fit(
            bz.models.AdaptiveDepthResNet(residual_mlp(2, 3), scope="data"), data, {"z": "amortized"}, steps=1
        ),
        "no 'temprature'": lambda: bz.fit(model, data, {"z": "amortized"}, steps=1, guide_options={"temprature": 1.0}),
        "has no options, and 'hidden' was given": lambda: bz.fit(
            model, data, {"z": "exact"}, steps=1, guide_options={"hidden": 8}
        ),
        "no such option": lambda: bz.fit(
            bayesian, data, {"weights": "mean_field", "z": "amortized"}, steps=1, guide_options={"rank": 3}
        ),
        "hidden is the width of a layer": lambda: bz.fit(model, data, {"z": "amortized"}, steps=1, guide_options={"hidden": 0}),
        "is a point without a density": lambda: bz.fit(bayesian, data, {"weights": "map", "z": "amortized"}, steps=1),
    }
    for words, call in calls.items():
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert str(caught.value).count("\n") == 0


def test_loo_says_why_there_is_none() -> None:
    fit = bz.fit(bz.models.AdaptiveDepthResNet(residual_mlp(2, 3, 2, 4)), spiral(), steps=5, progress=False)
    with pytest.raises(ValueError, match="all have the same likelihood"):
        fit.loo()
    assert any("all have the same likelihood" in note for note in fit.diagnose().notes)


@pytest.mark.parametrize("prior", [("geometric", 0.05), ([0.5, 0.5, *[0.0] * 7], None)])
def test_depths_that_the_prior_all_but_forbids_stay_forbidden(prior: Any) -> None:
    """The deepest layer alone is right; a prior raised to the precision's epsilon would make it pay."""
    torch.manual_seed(0)
    net = residual_mlp(2, 2, 8, 4)
    with torch.no_grad():
        for layers, head in enumerate(net.heads):
            head[1].weight.zero_()
            head[1].bias.copy_(torch.tensor([0.0, 30.0] if layers == 8 else [30.0, 0.0]))
    data = bz.data.Data({"x": torch.randn(10, 2)}, torch.tensor([1] * 9 + [0]), num_classes=2)
    for dtype in (torch.float32, torch.float64):
        fit = bz.fit(
            bz.models.AdaptiveDepthResNet(net, *prior, freeze=True), data, steps=1, dtype=dtype, compile=False, progress=False
        )
        with torch.no_grad():
            score = fit.model.net(fit.data.inputs["x"]).double().log_softmax(-1)[torch.arange(10), :, data.observed]
        exact = -float((score + fit.model.probs.double().log()).logsumexp(1).sum())
        assert fit.loss == pytest.approx(exact, rel=1e-5)
        learned = bz.fit(
            bz.models.AdaptiveDepthResNet(net, *prior, freeze=True), data, {"z": "amortized"}, steps=30, dtype=dtype, compile=False,
            progress=False,
        )  # fmt: skip
        assert learned.loss >= exact - 1e-5 * exact - 4 * learned.loss_error


def test_q_of_the_depth_of_new_inputs() -> None:
    fit = bz.fit(
        bz.models.AdaptiveDepthResNet(residual_mlp(2, 3, 2, 4)), spiral(), {"z": "amortized"}, discrete="guide", steps=5, compile=False,
        progress=False,
    )  # fmt: skip
    new = spiral(30, seed=1)
    probs = fit.latent_probs(new.inputs["x"])
    assert probs.shape == (30, 3)
    with torch.no_grad():
        assert torch.equal(probs, fit.guide.probs("z", x=new.inputs["x"].to(fit.dtype)))
    one_class = bz.data.Data({"x": new.inputs["x"]}, torch.zeros(30).long(), num_classes=3)
    assert torch.equal(fit.latent_probs(one_class), probs)
    with pytest.raises(ValueError, match=r"shape \(N, 2\)"):
        fit.latent_probs(torch.zeros(3, 4))
