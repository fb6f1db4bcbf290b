"""What every (model, guide, data) keeps: structure, gradients, seeds, independence, bounds, shapes, export, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from contract_models import Centres, Encoder, Mixture, PrincipalComponents, SmallNetwork, Switch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, init_to_value
from torch import nn

import bayeszoo as bz

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def coin() -> tuple[Any, bz.data.Data]:
    return bz.models.CoinFlip(2.0, 3.0), bz.data.simulate(bz.models.CoinFlip(2.0, 3.0), 30, seed=1).to(dtype=torch.float64)


def people() -> tuple[Any, bz.data.Data]:
    return bz.models.HierarchicalCoin(), bz.data.load("coin_flips").select(slice(0, 10))


def regression(noise: float | None) -> tuple[Any, bz.data.Data]:
    model = bz.models.BayesianLinearRegression(2, noise_scale=noise)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    y = (
        0.5
        + x @ torch.tensor([1.0, -1.0], dtype=torch.float64)
        + 0.5 * torch.randn(40, generator=generator, dtype=torch.float64)
    )
    return model, bz.data.Data(inputs={"x": x}, observed=y)


def network() -> tuple[Any, bz.data.Data]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(60, 2, generator=generator)
    return SmallNetwork(), bz.data.Data(inputs={"x": x}, observed=torch.sin(x[:, 0]))


def classifier(prior: str = "normal", **options: Any) -> tuple[Any, bz.data.Data]:
    """Three classes by the angle of two inputs, a network 2-5-3."""
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(60, 2, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        net = bz.models.networks.mlp(2, [5], 3, "tanh")
    labels = ((torch.atan2(x[:, 1], x[:, 0]) + torch.pi) / (2 * torch.pi) * 3).long().clamp_max(2)
    return bz.models.BayesianNN(net, prior=prior, **options), bz.data.Data(inputs={"x": x}, observed=labels, num_classes=3)


def curve() -> tuple[Any, bz.data.Data]:
    """A network 1-4-1 with unknown noise."""
    x = torch.linspace(-1, 1, 40)[:, None]
    with torch.random.fork_rng():
        torch.manual_seed(8)
        net = bz.models.networks.mlp(1, [4], 1, "tanh")
    return bz.models.BayesianNN(net, "gaussian"), bz.data.Data(inputs={"x": x}, observed=torch.sin(3 * x[:, 0]))


def pictures(prior: str = "normal") -> tuple[Any, bz.data.Data]:
    """Pictures of 6 x 6 in two classes, one convolution."""
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(40, 1, 6, 6, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(10)
        net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2))
    labels = (x[:, 0, :3].mean((1, 2)) > 0).long()
    return bz.models.BayesianNN(net, prior=prior), bz.data.Data(inputs={"x": x}, observed=labels, num_classes=2)


def layered(**options: Any) -> tuple[Any, bz.data.Data]:
    """The classes of `classifier`, for a network that may use 0 to 3 layers."""
    _, data = classifier()
    with torch.random.fork_rng():
        torch.manual_seed(11)
        net = bz.models.networks.residual_mlp(2, 3, depth=3, width=6)
    return bz.models.AdaptiveDepthResNet(net, **options), data


def autoencoder(likelihood: str = "gaussian", *, fresh: bool = False, **options: Any) -> tuple[Any, bz.data.Data]:
    """Pictures that a generator with random weights draws: six pixels, or 5 x 5 in four grey levels."""
    shape = (1, 5, 5) if options.get("layers") == "conv" else 6
    with torch.random.fork_rng():
        torch.manual_seed(12)
        model = bz.models.VAE(shape, 2, likelihood, levels=4, **{"hidden": (8,), **options})
    if fresh:
        return model, bz.data.Data({}, torch.rand(40, 6, generator=torch.Generator().manual_seed(13))).binarized(seed=0)
    return simulated(model, 40)


def simulated(model: Any, n: int) -> tuple[Any, bz.data.Data]:
    return model, bz.data.simulate(model, n, seed=5)


@dataclass(frozen=True)
class Case:
    make: Callable[[], tuple[Any, bz.data.Data]]
    guide: Any
    options: dict[str, Any] = field(default_factory=dict)
    own_guide: bool = False


#: Guides for the depth of each input.
DEPTHS = ("exact", "amortized", "reinforce", "relaxed")

CASES = {
    **{
        f"coin-{g}": Case(coin, g)
        for g in ("beta", "mean_field", "full_rank", "low_rank", "iaf", "spline", "laplace", "exact", "map", "mle")
    },
    **{f"people-{g}": Case(people, g) for g in ("structured", "mean_field", "full_rank", "exact", "map")},
    "people-structured-batch": Case(people, "structured", {"batch_size": 4}),
    **{
        f"known-{g}": Case(lambda: regression(0.5), g)
        for g in ("exact", "full_rank", "mean_field", "low_rank", "laplace", "map", "mle")
    },
    **{f"unknown-{g}": Case(lambda: regression(None), g) for g in ("exact", "full_rank", "mean_field", "iaf", "spline", "map")},
    "known-batch": Case(lambda: regression(0.5), "full_rank", {"batch_size": 10}),
    "known-particles": Case(lambda: regression(0.5), "full_rank", {"num_particles": 4}),
    "known-importance": Case(lambda: regression(0.5), "mean_field", {"num_particles": 4, "loss": "importance_weighted"}),
    "network-mean_field-batch": Case(network, "mean_field", {"batch_size": 20}),
    "network-full_rank": Case(network, "full_rank"),
    **{
        f"weights-{g}-batch": Case(classifier, g, {"batch_size": 20})
        for g in ("mean_field", "mc_dropout", "dropconnect", "concrete_dropout", "ensemble", "low_rank", "map")
    },
    **{
        f"weights-{g}-batch": Case(lambda: classifier("log_uniform"), g, {"batch_size": 20})
        for g in ("gaussian_dropout", "sparse_vd")
    },
    "weights-shared-batch": Case(classifier, "mean_field", {"batch_size": 20, "estimator": "shared"}),
    "weights-flipout-batch": Case(classifier, "mean_field", {"batch_size": 20, "estimator": "flipout"}),
    "weights-laplace-prior-local": Case(lambda: classifier("laplace"), "mean_field", {"estimator": "local"}),
    "weights-mixture-prior": Case(lambda: classifier("scale_mixture"), "mean_field"),
    "weights-last": Case(lambda: classifier(bayesian="last"), "full_rank"),
    "weights-particles": Case(classifier, "mean_field", {"batch_size": 20, "num_particles": 3}),
    "curve-mean_field": Case(curve, "mean_field"),
    "curve-full_rank": Case(curve, "full_rank"),
    "pictures-flipout-batch": Case(pictures, "mean_field", {"batch_size": 20, "estimator": "flipout"}),
    "pictures-mc_dropout": Case(pictures, "mc_dropout"),
    "pictures-sparse_vd-local": Case(lambda: pictures("log_uniform"), "sparse_vd", {"estimator": "local"}),
    **{f"depth-{z}-batch": Case(layered, {"z": z}, {"batch_size": 20}) for z in (*DEPTHS, "table", "global")},
    "depth-shared-global-batch": Case(lambda: layered(scope="data"), {"z": "global"}, {"batch_size": 20}),
    "depth-shared-exact": Case(lambda: layered(scope="data"), "exact"),
    **{
        f"depth-weights-{z}-batch": Case(lambda: layered(prior="normal"), {"weights": "mean_field", "z": z}, {"batch_size": 20})
        for z in DEPTHS
    },
    **{
        f"vae-{g}-batch": Case(autoencoder, g, {"batch_size": 20})
        for g in ("amortized", "amortized_full_rank", "amortized_iaf", "per_datum")
    },
    "vae-importance-batch": Case(
        lambda: autoencoder("bernoulli"), "amortized", {"batch_size": 20, "num_particles": 4, "loss": "importance_weighted"}
    ),
    "vae-resampled-batch": Case(
        lambda: autoencoder("bernoulli"),
        "amortized",
        {"batch_size": 20, "num_particles": 5, "loss": "importance_weighted", "resample": 2},
    ),
    "known-resampled": Case(
        lambda: regression(0.5), "mean_field", {"num_particles": 4, "loss": "importance_weighted", "resample": 1}
    ),
    **{
        f"vae-free_bits-{g}-batch": Case(autoencoder, g, {"batch_size": 20, "free_bits": 0.3, **options})
        for g, options in {
            "amortized": {"kl_weight": 0.5},
            "amortized_full_rank": {},
            "amortized_iaf": {"num_particles": 3},
            "per_datum": {"loss": "monte_carlo"},
        }.items()
    },
    "vae-fresh-batch": Case(lambda: autoencoder("bernoulli", fresh=True), "amortized", {"batch_size": 20}),
    "vae-conv-batch": Case(lambda: autoencoder("logistic", layers="conv", hidden=(3, 4, 8)), "amortized", {"batch_size": 20}),
    "pca-amortized-batch": Case(lambda: simulated(PrincipalComponents(), 50), Encoder, {"batch_size": 25}, own_guide=True),
    "pca-mean_field-batch": Case(lambda: simulated(PrincipalComponents(), 50), "mean_field", {"batch_size": 25}),
    "centres-structured-batch": Case(lambda: simulated(Centres(), 24), "structured", {"batch_size": 12}),
    "centres-free_bits-batch": Case(lambda: simulated(Centres(), 24), "structured", {"batch_size": 12, "free_bits": 0.1}),
    "centres-full_rank": Case(lambda: simulated(Centres(), 24), "full_rank"),
    "mixture-mean_field-batch": Case(lambda: simulated(Mixture(), 40), "mean_field", {"batch_size": 20}),
    "mixture-guide": Case(lambda: simulated(Mixture(), 40), "mean_field", {"discrete": "guide", "batch_size": 20}),
    "switch-mean_field": Case(lambda: simulated(Switch(), 40), "mean_field"),
    "switch-guide-batch": Case(lambda: simulated(Switch(), 40), "mean_field", {"discrete": "guide", "batch_size": 20}),
}


def run(case: Case, seed: int = 0, **options: Any) -> bz.inference.Fit:
    model, data = case.make()
    return bz.fit(model, data, case.guide, seed=seed, progress=False, **{"steps": 60, **case.options, **options})


#: One case of each kind runs in `make test`; the others are slow.
QUICK = {
    "coin-beta", "coin-exact", "coin-map", "people-structured-batch", "known-full_rank", "known-mle", "known-importance", "unknown-mean_field",
    "unknown-spline", "network-mean_field-batch", "pca-amortized-batch", "centres-structured-batch", "mixture-mean_field-batch",
    "switch-guide-batch", "switch-mean_field", "weights-mean_field-batch", "weights-mc_dropout-batch", "weights-ensemble-batch",
    "weights-sparse_vd-batch", "weights-last", "curve-mean_field", "pictures-flipout-batch",
    "vae-amortized-batch", "vae-amortized_iaf-batch", "vae-free_bits-amortized-batch", "vae-free_bits-amortized_iaf-batch", "vae-importance-batch", "vae-conv-batch",
    "depth-exact-batch", "depth-amortized-batch", "depth-reinforce-batch", "depth-relaxed-batch", "depth-shared-global-batch", "depth-weights-exact-batch",
}  # fmt: skip


@pytest.fixture(
    scope="module",
    params=[n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
    + [pytest.param(f"{n} on cuda", marks=pytest.mark.gpu) for n in CASES],
)
def fitted(request: pytest.FixtureRequest) -> tuple[Case, bz.inference.Fit]:
    name, _, device = request.param.partition(" on ")
    if device and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and there is none")
    case = CASES[name]
    if device:
        case = replace(case, options={**case.options, "device": device})
    return case, run(case)


def test_sites_and_shapes(fitted: tuple[Case, bz.inference.Fit]) -> None:
    _, fit = fitted
    draws = fit.sample(7)
    assert set(draws) == set(fit.program.latents)
    for name, site in fit.program.latents.items():
        assert draws[name].shape == (7, *site.shape)
        if site.support.is_discrete is False:
            assert bool(site.support.check(draws[name]).all())


def test_gradient_for_every_parameter(fitted: tuple[Case, bz.inference.Fit]) -> None:
    _, fit = fitted
    run = fit.run
    with run.owned.active(1):
        named = {n: p for n, p in run.owned.parameters().items() if p.requires_grad}
        if not named:
            pytest.skip("nothing is trained")
        with torch.no_grad():  # away from the optimum, where gradients vanish
            for p in named.values():
                p.add_(0.1 * torch.rand_like(p))
        try:
            surrogate, _ = run.objective(fit.data.bind(fit.model))
            grads = torch.autograd.grad(surrogate, list(named.values()), allow_unused=True)
        finally:
            with torch.no_grad():
                torch.manual_seed(1)
    for name, grad in zip(named, grads, strict=True):
        assert grad is not None, f"{name} has no gradient"
        assert float(grad.abs().sum()) > 0 or name.endswith("tril") or grad.numel() == 0, f"{name} has a zero gradient"


def test_seed_repeats_losses_and_fits_are_independent(fitted: tuple[Case, bz.inference.Fit]) -> None:
    case, fit = fitted
    other = run(case, seed=1)
    again = run(case)
    assert again.losses == fit.losses
    # Where the family holds the posterior, every draw of every seed has the same loss, to rounding.
    exact = fit.settings.guide in ("exact", "laplace") or fit.loss_error < 1e-12 * abs(fit.loss)
    if fit.objective == "elbo" and not exact:
        assert other.losses != fit.losses


def test_buffers_untouched_and_global_state_left(fitted: tuple[Case, bz.inference.Fit]) -> None:
    import pyro

    case, _ = fitted
    model, data = case.make()
    before = {n: b.clone() for n, b in model.named_buffers()}
    state = torch.get_rng_state()
    fit = bz.fit(model, data, case.guide, seed=0, progress=False, **{**case.options, "steps": 5})
    assert torch.equal(state, torch.get_rng_state())
    assert not list(pyro.get_param_store().keys())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])
        assert torch.allclose(dict(fit.model.named_buffers())[name].double(), before[name].double())


def test_bound(fitted: tuple[Case, bz.inference.Fit]) -> None:
    case, fit = fitted
    model, data = case.make()
    if fit.objective != "elbo" or not hasattr(model, "log_evidence"):
        pytest.skip("no bound, or no exact evidence")
    # loss is a mean of 1000 draws: below -log evidence only by its Monte Carlo error (four of them) and rounding.
    floor = -float(model.log_evidence(data))
    assert fit.loss >= floor - 4 * fit.loss_error - 1e-5 * abs(floor)


def test_loss_falls_from_a_bad_start() -> None:
    model, data = regression(0.5)
    far = init_to_value(values={"theta": torch.full((3,), 5.0)})
    fit = bz.fit(model, data, AutoNormal(model, init_loc_fn=far), steps=400, optimizer=0.05, progress=False)
    # From (5, 5, 5) with noise 0.5 the loss is thousands of nats above the optimum.
    assert sum(fit.losses[-50:]) < 0.1 * sum(fit.losses[:50])


def test_predictions(fitted: tuple[Case, bz.inference.Fit]) -> None:
    _, fit = fitted
    inputs = {k: v[:5] for k, v in fit.data.inputs.items()}
    p = fit.predict(inputs, n=30) if inputs else fit.predict(n=30, num_data=5)
    event = next(iter(fit.program.observed.values())).shape[1:]
    assert p.mean.shape == (5, *event)
    assert p.draws.shape == (30, 5, *event)
    assert bool((p.sd >= 0).all())
    low, high = p.interval(0.5)
    assert bool((low <= high).all())


def test_log_likelihood(fitted: tuple[Case, bz.inference.Fit]) -> None:
    _, fit = fitted
    values = fit.log_likelihood(6)
    assert values.shape == (6, len(fit.data))
    assert bool(torch.isfinite(values).all())


def test_tree(fitted: tuple[Case, bz.inference.Fit]) -> None:
    _, fit = fitted
    tree = fit.to_arviz(40)
    likelihood = "log_conditional" if fit.program.all_local else "log_likelihood"
    groups = {"posterior", "posterior_predictive", likelihood, "observed_data", "sample_stats"}
    if not fit.improper:
        groups |= {"prior", "prior_predictive"}
    assert groups <= set(tree.children)
    functions = {"f"} if hasattr(fit.model, "outputs") else set()  # what a network computes, beside its weights
    assert set(tree["posterior"].data_vars) == set(fit.program.latents) | functions


def test_save_and_load(fitted: tuple[Case, bz.inference.Fit], tmp_path: Any) -> None:
    case, fit = fitted
    model, data = case.make()
    fit.save(tmp_path / "run")
    options: dict[str, Any] = {} if hasattr(model, "config") else {"model": model}
    if case.own_guide:
        options["guide"] = case.guide(model, data)
    again = bz.load(tmp_path / "run", **options)
    before, after = fit.sample(5), again.sample(5)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("builder", [AutoNormal, AutoMultivariateNormal])
def test_pyro_autoguides(builder: Any) -> None:
    model, data = regression(0.5)
    guide = builder(model)
    fit = bz.fit(model, data, guide, steps=50, progress=False)
    again = bz.fit(model, data, guide, steps=50, progress=False)
    assert fit.losses == again.losses  # the given guide itself is never trained
    assert fit.sample(3)["theta"].shape == (3, 3)


def test_local_autoguide_with_plates() -> None:
    import pyro

    model, data = simulated(Centres(), 24)

    def create_plates(x: Any = None, num_data: int | None = None, index: Any = None) -> Any:
        return pyro.plate("data", num_data or len(x), subsample=index, dim=-1)

    guide = AutoNormal(model, create_plates=create_plates)
    fit = bz.fit(model, data, guide, steps=1500, batch_size=12, optimizer=0.02, progress=False)
    # Factorised normals on this posterior: -log evidence plus the KL of independence, which is below one nat.
    floor = -float(model.log_evidence(data))
    assert floor - 4 * fit.loss_error <= fit.loss <= floor + 4.0


def test_global_discrete_in_minibatches_says_what_to_do() -> None:
    model, data = simulated(Switch(), 40)
    with pytest.raises(ValueError, match="discrete='guide'"):
        bz.fit(model, data, "mean_field", steps=5, batch_size=10, progress=False)


@pytest.mark.parametrize("discrete", ["marginalize", "guide"])
def test_discrete_posterior_is_right(discrete: Any) -> None:
    model, data = simulated(Switch(), 40)
    fit = bz.fit(model, data, "mean_field", discrete=discrete, progress=False)
    exact = float(torch.softmax(model.parts(data), 0)[1])
    share = float(fit.sample(4000)["k"].double().mean())
    # Binomial error of 4000 draws is below 0.008; the mean-field table's own bias was measured below 0.01.
    assert abs(share - exact) < 0.04


@pytest.mark.parametrize("device", DEVICES)
def test_devices_agree(device: str) -> None:
    model, data = regression(0.5)
    fit = bz.fit(model, data, "full_rank", device=device, progress=False)
    exact = model.exact_posterior(data)
    draws = fit.sample(4000)["theta"]
    assert draws.device.type == "cpu"
    # 4 standard errors of 4000 draws are 0.063 sd, the fit itself is within 0.05.
    assert float(((draws.mean(0) - exact.mean["theta"]) / exact.sd["theta"]).abs().max()) < 0.12
