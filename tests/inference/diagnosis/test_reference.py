"""Reference posteriors: exact ones, and NUTS against what is known."""

import json
import math
import os
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

import bayeszoo as bz
from bayeszoo.inference.diagnosis.reference import reference


def coin_data():
    x = (torch.rand(60, generator=torch.Generator().manual_seed(1)) < 0.7).double()
    return bz.data.Data(inputs={}, observed=x)


def test_exact_where_the_model_knows_it():
    model, data = bz.models.CoinFlip(), coin_data()
    found = reference(model, data, n=2000)
    truth = model.exact_posterior(data)
    assert found.how == "exact"
    assert float(found.mean["pi"]) == pytest.approx(float(truth.mean["pi"]), rel=1e-12)
    assert found.log_evidence == pytest.approx(float(model.log_evidence(data)), rel=1e-12)
    # four standard errors of 2,000 independent draws
    sd = float(truth.sd["pi"])
    assert float(found.draws["pi"].mean()) == pytest.approx(float(truth.mean["pi"]), abs=4 * sd / math.sqrt(2000))


def test_nuts_agrees_with_the_exact_posterior_and_touches_nothing_global():
    model, data = bz.models.CoinFlip(), coin_data()
    torch.manual_seed(3)
    pyro.param("mine", torch.ones(2))
    state = torch.random.get_rng_state()
    found = reference(model, data, exact=False, num_chains=2, warmup=100, draws=700, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert list(pyro.get_param_store().keys()) == ["mine"]
    pyro.clear_param_store()
    truth = model.exact_posterior(data)
    mean, sd = float(truth.mean["pi"]), float(truth.sd["pi"])
    assert found.how == "nuts"
    assert found.r_hat < 1.01
    assert found.ess > 400
    # four Monte Carlo standard errors at the reported number of effective draws
    assert float(found.mean["pi"]) == pytest.approx(mean, abs=4 * sd / math.sqrt(found.ess))
    assert float(found.sd["pi"]) == pytest.approx(sd, rel=4 / math.sqrt(2 * found.ess))


def test_chains_that_disagree_are_refused():
    def two_modes(y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 20):
            pyro.sample("y", dist.Normal(mu.abs(), 1.0), obs=y)

    data = bz.data.Data(inputs={}, observed=torch.full((20,), 5.0))
    with pytest.raises(ValueError, match="NUTS is no reference here: R-hat"):
        reference(two_modes, data, num_chains=4, warmup=60, draws=100, seed=0)


def test_discrete_latents_are_summed_out_and_drawn_afterwards():
    def switch(x=None):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 6):
            pyro.sample("x", dist.Normal(mu + z, 1.0), obs=x)

    data = bz.data.Data(inputs={}, observed=torch.tensor([0.4, 0.9, 0.1, 0.6, 0.8, 0.2]))
    found = reference(switch, data, num_chains=2, warmup=100, draws=800)
    # given z, y - z ~ N(0, 1 + 1/6) for the mean y of six: the exact odds
    y = data.observed.mean().double()
    log = dist.Normal(torch.tensor([0.0, 1.0], dtype=torch.float64), math.sqrt(1 + 1 / 6)).log_prob(y)
    p = float(log.softmax(0)[1])
    assert float(found.mean["z"]) == pytest.approx(p, abs=4 * 0.5 / math.sqrt(found.ess))
    assert float(found.mean["mu"]) == pytest.approx(float((6 / 7) * (y - p)), abs=4 / math.sqrt(found.ess))


def test_bad_input_is_one_sentence():
    def only_discrete(x=None):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        with pyro.plate("data", 2):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    data = bz.data.Data(inputs={}, observed=torch.zeros(2))
    with pytest.raises(ValueError, match="continuous latents"):
        reference(only_discrete, data)
    with pytest.raises(ValueError, match="draws must be a whole number"):
        reference(only_discrete, data, draws=0)
    with pytest.raises(ValueError, match="num_chains must be at least 2"):
        reference(only_discrete, data, num_chains=1)


@pytest.mark.slow
def test_eight_schools_against_posteriordb():
    root = Path(os.environ.get("BAYESZOO_DATA", Path(__file__).parents[4] / "shared" / "data"))
    folder = root / "posteriordb" / "eight_schools-eight_schools_noncentered"
    if not folder.is_dir():
        pytest.skip("posteriordb's eight schools are absent: name the test data's folder in BAYESZOO_DATA")
    raw = json.loads((folder / "data.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())

    def eight_schools(sigma, y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("data", 8):
            theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu + tau * theta, sigma), obs=y)

    data = bz.data.Data(
        inputs={"sigma": torch.tensor(raw["sigma"], dtype=torch.float64)},
        observed=torch.tensor(raw["y"], dtype=torch.float64),
    )
    found = reference(eight_schools, data, num_chains=4, warmup=500, draws=1000, target_accept=0.9)
    draws = {"mu": found.draws["mu"], "tau": found.draws["tau"]}
    theta = draws["mu"][:, None] + draws["tau"][:, None] * found.draws["theta"]
    draws |= {f"theta[{k + 1}]": theta[:, k] for k in range(8)}
    for name, values in draws.items():
        mean, sd = summary[name]["mean"], summary[name]["sd"]
        # four Monte Carlo standard errors: ours at the smallest ESS, theirs (10,000 draws) on top
        error = sd * math.sqrt(1 / found.ess + 1e-4)
        assert float(values.mean()) == pytest.approx(mean, abs=4 * error), name
        # tau has heavy tails (kurtosis about 10): the relative error of an sd is sqrt((kurtosis - 1) / 4 ESS)
        assert float(values.std()) == pytest.approx(sd, rel=4 * 1.5 / math.sqrt(found.ess)), name
