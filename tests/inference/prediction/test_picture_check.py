"""Checks of pictures: statistics by hand, uniform p-values under the model, power against others, ArviZ, refusals."""

from __future__ import annotations

import math
from typing import Any

import arviz as az
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor

import bayeszoo as bz
from bayeszoo.inference.prediction.picture_statistics import STATISTICS, plane


def generator(likelihood: str = "logistic", shape: Any = 36) -> bz.inference.Fit:
    """An autoencoder with random weights, of pictures of 36 pixels that it draws itself."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = bz.models.VAE(shape, 2, likelihood, levels=5, hidden=(8,))
        with torch.no_grad():  # pixels that the code moves, not all alike
            model.generator[-2 if isinstance(model.generator[-1], torch.nn.Unflatten) else -1].weight.mul_(4)
    data = bz.data.simulate(model, 40, seed=0)
    return bz.fit(model, data, "amortized", steps=1, optimizer=1e-9, compile=False, progress=False)


def test_statistics_of_pictures_made_by_hand() -> None:
    bar, empty, whole = torch.zeros(3, 4), torch.zeros(3, 4), torch.full((3, 4), 0.4)
    bar[:2, 3] = 1.0  # two of twelve pixels, at the right edge
    found = {name: statistic(torch.stack([bar, empty, whole])).tolist() for name, statistic in STATISTICS.items()}
    wanted = {
        "intensity": [2 / 12, 0, 0.4],
        "contrast": [math.sqrt(2 / 12 * 10 / 12), 0, 0],
        "lit": [2 / 12, 0, 0],
        "symmetry": [0, 1, 1],
        "row": [0.25, 0.5, 0.5],
        "column": [1, 0.5, 0.5],
    }
    for name, values in wanted.items():
        assert found[name] == pytest.approx(values, abs=1e-6), name


def test_negative_pixels_are_no_ink() -> None:
    x = torch.tensor([[[-3.0, 1.0], [0.0, 1.0]]])
    assert [float(STATISTICS[k](x)) for k in ("row", "column", "symmetry")] == [0.5, 1.0, 0.0]


def test_how_pixels_lie() -> None:
    assert plane((64,), None) == (1, 8, 8)
    assert plane((3, 4, 5), None) == (3, 4, 5)
    assert plane((4, 5), None) == (1, 4, 5)
    assert plane((20,), (4, 5)) == (1, 4, 5)
    for shape, size in (((20,), None), ((3, 4, 5), (5, 4)), ((20,), (3, 4)), ((2, 3, 4, 5), None)):
        with pytest.raises(ValueError, match=r"give size=\(H, W\)"):
            plane(shape, size)


def test_p_values_are_uniform_under_the_model() -> None:
    """200 data sets that the model drew, 19 sets beside each: p is one of 1/20, ..., 1, each as likely."""
    fit, trials = generator(), 200
    found: dict[tuple[str, str], list[float]] = {}
    for seed in range(trials):
        data = bz.data.simulate(fit.model, 30, seed=1000 + seed)
        for name, both in fit.check_pictures(data, 19, seed=seed).p_values.items():
            for summary, p in both.items():
                found.setdefault((name, summary), []).append(p)
    assert len(found) == 12
    for which, values in found.items():
        p = torch.tensor(values)
        for level in (0.1, 0.5, 0.9):
            # Binomial: 36 counts, the largest of which is within 4 sd but for one case in 400.
            sd = math.sqrt(level * (1 - level) / trials)
            assert abs(float((p <= level + 1e-6).double().mean()) - level) < 4 * sd, (which, level)


def test_what_the_model_does_not_draw_fails() -> None:
    fit = generator()
    data = bz.data.simulate(fit.model, 200, seed=5)
    inverted = bz.data.Data({}, 1 - data.observed)
    sunk = bz.data.Data({}, data.observed.sort(1).values)  # the same pixels, the bright ones below
    alike = bz.data.Data({}, data.observed[:1].expand(200, 36))
    least, most = 1 / 100, 1.0
    assert fit.check_pictures(inverted, 99).p_values["intensity"]["mean"] in (least, most)
    plain, moved = (fit.check_pictures(d, 99).p_values for d in (data, sunk))
    assert all(least < p < most for both in plain.values() for p in both.values())
    assert moved["row"]["mean"] == least
    assert all(moved[name] == pytest.approx(plain[name]) for name in ("intensity", "contrast", "lit"))
    assert fit.check_pictures(alike, 99).p_values["intensity"]["sd"] == 1.0


class Grey(PyroModule):
    """One brightness for all pictures: m ~ N(0, 1), pixels ~ N(m, 1)."""

    def forward(self, x: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None) -> Tensor:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", num_data if x is None else num_data or len(x), subsample=index, dim=-1):
            return pyro.sample("x", dist.Normal(m, 1.0).expand([4, 5]).to_event(2), obs=x)


def test_shared_latents_are_drawn_from_their_posterior() -> None:
    """The mean over 10 pictures of 20 pixels is N(m_post, 1 / 201 + 1 / 200), in closed form."""
    x = 2 + torch.randn(10, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fit = bz.fit(Grey(), bz.data.Data({}, x), "full_rank", progress=False)
    sets = fit.check_pictures(n=2000).replicated["intensity"].mean(1)
    sd = math.sqrt(1 / 201 + 1 / 200)
    # Four standard errors of 2,000 draws, and the 0.05 posterior sds that the optimiser may leave.
    assert abs(float(sets.mean()) - 200 * float(x.mean()) / 201) < 4 * sd / math.sqrt(2000) + 0.05 * math.sqrt(1 / 201)
    assert float(sets.std()) == pytest.approx(sd, rel=4 / math.sqrt(2 * 2000) + 0.05)


def test_the_tree_holds_what_the_check_says(tmp_path: Any) -> None:
    fit = generator("bernoulli", (1, 6, 6))
    check = fit.check_pictures(n=20)
    tree = check.to_arviz()
    assert dict(tree["posterior_predictive"].sizes) == {"chain": 1, "draw": 20, "picture": 40}
    assert set(tree["observed_data"].data_vars) == set(STATISTICS)
    assert float(tree["p_value"]["row"].sel(summary="sd")) == check.p_values["row"]["sd"]
    # The same number by hand: the data's set is one of 21.
    sets = tree["posterior_predictive"]["lit"].values[0].mean(1)
    own = float(tree["observed_data"]["lit"].mean())
    assert check.p_values["lit"]["mean"] == (1 + int((sets >= own - 1e-12).sum())) / 21
    az.plot_ppc_tstat(tree, t_stat="mean")
    az.plot_ppc_dist(tree, var_names=["contrast"], num_samples=5)
    plt.close("all")
    tree.to_netcdf(tmp_path / "check.nc")
    assert "20 sets of 40 pictures" in str(check)
    assert str(check).count("\n") == 1 + 2 * len(STATISTICS)


def test_same_seed_same_check_and_other_statistics() -> None:
    fit = generator()
    corner = {"corner": lambda x: x[:, 0, 0]}
    a, b = (fit.check_pictures(n=5, statistics=corner) for _ in range(2))
    assert torch.equal(a.replicated["corner"], b.replicated["corner"])
    assert not torch.equal(a.replicated["corner"], fit.check_pictures(n=5, statistics=corner, seed=9).replicated["corner"])
    torch.testing.assert_close(a.observed["corner"], fit.data.observed[:, 0].double())
    same = fit.check_pictures(fit.data.observed.numpy(), n=5, statistics=corner)
    assert torch.equal(a.observed["corner"], same.observed["corner"])


def test_a_statistic_without_a_value_has_no_p_value() -> None:
    check = generator().check_pictures(n=5, statistics={"log": lambda x: (x.mean((1, 2)) - 0.5).log()})
    assert all(math.isnan(p) for p in check.p_values["log"].values())


def test_what_is_refused() -> None:
    fit = generator()
    coin = bz.fit(bz.models.CoinFlip(), bz.data.Data({}, torch.ones(9)), "exact", progress=False)
    cases = {
        "n must be a whole number of sets": lambda: fit.check_pictures(n=1),
        r"these have \(25,\)": lambda: fit.check_pictures(bz.data.Data({}, torch.zeros(5, 25))),
        r"two pictures of shape \(36,\), got \(1, 36\)": lambda: fit.check_pictures(bz.data.Data({}, torch.zeros(1, 36))),
        r"'total' returned \(\) for 40": lambda: fit.check_pictures(statistics={"total": torch.sum}),
        "'x' is no array an observation": lambda: coin.check_pictures(),
        "divide them by 4": lambda: fit.check_pictures(4.0 * torch.ones(3, 36)),
        r"give x.float\(\)": lambda: fit.check_pictures(torch.ones(3, 36, dtype=torch.int64)),
        "statistics takes functions by name, .* got {}": lambda: fit.check_pictures(statistics={}),
        "a text without '/', .* got 'a/b'": lambda: fit.check_pictures(statistics={"a/b": lambda x: x.mean((1, 2))}),
        "got 'picture'": lambda: fit.check_pictures(statistics={"picture": lambda x: x.mean((1, 2))}),
        "got {'ink': 3}": lambda: fit.check_pictures(statistics={"ink": 3}),
        "'ink' returned float for 40": lambda: fit.check_pictures(statistics={"ink": lambda x: 1.0}),
        r"numbers of rows and of columns, \(H, W\), got 8": lambda: fit.check_pictures(size=8),
        "seed must be": lambda: fit.check_pictures(n=5, seed=-1),
        "with size=": lambda: fit.check_pictures(size=(5, 7)),
    }
    for words, call in cases.items():
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
