"""What every model owes to the runner: plates that scale, sites that broadcast, buffers that stay."""

import subprocess
import sys
from pathlib import Path

import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoNormal, init_to_mean
from pyro.poutine.util import site_is_subsample

import bayeszoo.models as models
from bayeszoo.data import Data

X = torch.linspace(-2.0, 2.0, 24).reshape(12, 2)
Y = X.sum(1) + torch.linspace(0.0, 9.0, 12).cos()
COUNTS = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0, 2.0])
MODELS = {
    "flips": (models.CoinFlip, {}, Data(inputs={}, observed=torch.tensor([1.0, 0.0, 1.0, 1.0]))),
    "counts": (models.CoinFlip, {}, Data(inputs={"total_count": COUNTS + 2.0}, observed=COUNTS)),
    "known noise": (
        models.BayesianLinearRegression,
        {"dim": 2, "noise_scale": 0.5},
        Data(inputs={"x": X}, observed=Y),
    ),
    "full prior": (
        models.BayesianLinearRegression,
        {"dim": 2, "noise_scale": 0.5, "prior_scale": torch.tensor([[1.0, 0, 0], [1, 2, 0], [0, 1, 1]])},
        Data(inputs={"x": X}, observed=Y),
    ),
    "unknown noise": (
        models.BayesianLinearRegression,
        {"dim": 2, "intercept": False},
        Data(inputs={"x": X}, observed=Y),
    ),
    "people": (models.HierarchicalCoin, {}, Data(inputs={"total_count": COUNTS + 2.0}, observed=COUNTS)),
}
every_model = pytest.mark.parametrize(("kind", "settings", "data"), MODELS.values(), ids=MODELS.keys())


def latents(model, data):
    trace = pyro.poutine.trace(model).get_trace(**data.bind(model))
    return {
        name: site["value"]
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    }


@every_model
def test_batches_have_on_average_the_whole_data_sets_likelihood(kind, settings, data):
    model = kind(**settings)
    values = latents(model, data)

    def score(bound, index=None):
        picked = {k: v if v.dim() == 0 or k != "pi" or index is None else v[index] for k, v in values.items()}
        trace = pyro.poutine.trace(pyro.poutine.condition(model, picked)).get_trace(**bound)
        return trace.log_prob_sum()

    whole = score(data.bind(model))
    halves = torch.arange(len(data)).reshape(2, -1)
    batches = [score(data.batch(index, model), index) for index in halves]
    torch.testing.assert_close(torch.stack(batches).mean(), whole, rtol=1e-5, atol=1e-5)  # float32


@every_model
def test_vmap_and_broadcasting_agree_with_one_draw_at_a_time(kind, settings, data):
    model = kind(**settings)
    draws = [latents(model, data) for _ in range(5)]
    bound = data.bind(model)
    stacked = {name: torch.stack([d[name] for d in draws]) for name in draws[0]}

    def score(values):
        trace = pyro.poutine.trace(pyro.poutine.condition(model, values)).get_trace(**bound)
        return trace.log_prob_sum()

    one_by_one = torch.stack([score(d) for d in draws])
    with pyro.validation_enabled(False):
        torch.testing.assert_close(torch.vmap(score)(stacked), one_by_one, rtol=1e-5, atol=1e-5)

    # as Pyro's vectorised particles do it: global sites gain (S, 1), local ones (S, N)
    lifted = {}
    for name, value in stacked.items():
        local = name == "pi" and value.dim() == 2
        lifted[name] = value if local else value.unsqueeze(1)
    with pyro.plate("particles", 5, dim=-2):
        trace = pyro.poutine.trace(pyro.poutine.condition(model, lifted)).get_trace(**bound)
    torch.testing.assert_close(trace.log_prob_sum(), one_by_one.sum(), rtol=1e-5, atol=1e-4)
    outcomes = next(site for site in ("x", "y") if site in trace.nodes)
    assert trace.nodes[outcomes]["fn"].batch_shape == (5, len(data))


@every_model
def test_simulation_has_the_shape_of_the_data(kind, settings, data):
    model = kind(**settings)
    assert model(**data.bind(model, observed=False)).shape == (len(data),)


@every_model
def test_precision_follows_the_data_and_exact_guides_fit_both(kind, settings, data):
    model = kind(**settings)
    values = latents(model, data.to(dtype=torch.float64))
    assert {v.dtype for v in values.values()} == {torch.float64}
    guide = model.exact_posterior(data).as_guide()
    loss = pyro.infer.Trace_ELBO().loss(model, guide, **data.bind(model))  # float64 draws on float32 data
    # model and evidence read the same float32 settings; digits are lost where outcomes are scored in float32
    assert loss == pytest.approx(-float(model.log_evidence(data)), rel=1e-5)


@every_model
def test_no_call_and_no_fit_changes_a_buffer(kind, settings, data):
    model = kind(**settings)
    before = {name: value.clone() for name, value in model.named_buffers()}
    guide = AutoNormal(model, init_loc_fn=init_to_mean)
    bound = data.bind(model)
    guide(**bound)
    optimizer = torch.optim.SGD(guide.parameters(), lr=1.0)
    for parameter in guide.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for parameter in guide.parameters():
        parameter.data.add_(1.0)
    model.exact_posterior(data).sample(2)
    model.log_evidence(data)
    for name, value in model.named_buffers():
        assert torch.equal(value, before[name]), name


@every_model
def test_settings_rebuild_the_model(kind, settings, data):
    model = kind(**settings)
    again = kind(**model.config())
    assert {k: v.tolist() for k, v in again.named_buffers()} == {k: v.tolist() for k, v in model.named_buffers()}
    assert type(model).__name__ in repr(model)


def test_settings_are_copies_and_tensors_keep_their_precision():
    mean = torch.zeros(3, dtype=torch.float64)
    model = models.BayesianLinearRegression(2, prior_mean=mean)
    mean += 1.0
    assert model.prior_mean.dtype == torch.float64
    assert model.prior_mean.tolist() == [0.0, 0.0, 0.0]
    assert models.CoinFlip().alpha.dtype == torch.float64
    assert float(models.CoinFlip(0.4).alpha) == 0.4  # no digit is lost
    assert models.CoinFlip().double().alpha.dtype == torch.float64


def test_plates_refuse_contradictions():
    model, rows = models.CoinFlip(), torch.ones(3)
    with pytest.raises(ValueError, match="nothing to simulate"):
        model()
    with pytest.raises(ValueError, match="3 rows of a data set of 10; pass index"):
        model(rows, num_data=10)
    with pytest.raises(ValueError, match="needs num_data"):
        model(rows, index=torch.arange(3))
    with pytest.raises(ValueError, match="index names 2 rows but the batch holds 3"):
        model(rows, num_data=10, index=torch.arange(2))
    assert model(num_data=7).shape == (7,)


def test_the_folder_cannot_be_imported_under_a_second_name():
    root = Path(models.__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", "import models"], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "ImportError" in done.stderr
    assert "bayeszoo.models" in done.stderr
