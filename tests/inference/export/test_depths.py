"""Posteriors of the depth in ArviZ's tree, against sums over depths and over draws of the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import bayeszoo as bz

N, L = 120, 3


def problem(**options: Any) -> tuple[Any, bz.data.Data]:
    torch.manual_seed(1)
    x = torch.randn(N, 2, dtype=torch.float64)
    data = bz.data.Data({"x": x}, (x.norm(dim=1) * 2).long().clamp_max(2), num_classes=3)
    return bz.models.AdaptiveDepthResNet(bz.models.networks.residual_mlp(2, 3, L, 6), **options), data


def fitted(guide: Any, **options: Any) -> bz.inference.Fit:
    model, data = problem(**options)
    return bz.fit(model, data, guide, steps=30, progress=False)


def joint(fit: bz.inference.Fit, data: bz.data.Data, weights: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    """log p(y_n, z | x_n, w), (N, L + 1)."""
    with torch.no_grad():
        log_p = torch.log_softmax(fit.model.run(weights or {}, data.inputs["x"]), -1)
    return log_p[torch.arange(len(data)), :, data.observed] + fit.model.probs.log()


@pytest.mark.parametrize("guide", ["exact", "amortized", "table", "reinforce", "relaxed"])
def test_points_and_every_guide(guide: str) -> None:
    fit = fitted({"z": guide})
    tree = fit.to_arviz(20)
    group = tree["depth"]
    assert dict(group.sizes) == {"chain": 1, "depth_input": 100, "depth": L + 1}
    assert group["depth"].values.tolist() == [0, 1, 2, 3]
    wanted = torch.softmax(joint(fit, fit.data)[:100], -1)
    # The same sum in another order, in double precision.
    assert np.allclose(group["posterior"].values[0], wanted, atol=1e-12)
    assert np.array_equal(group["y"].values, fit.data.observed[:100])
    assert np.allclose(group["prior"].values, fit.model.probs)
    if guide == "exact":
        assert "guide" not in group
        return
    q = group["guide"].values[0]
    z = fit.sample(4000)["z"][:, :100]
    share = np.stack([(z == k).double().mean(0).numpy() for k in range(L + 1)], 1)
    if guide == "reinforce":  # z is summed out of the model, so draws follow p(z | x, y) and q only trains
        assert np.allclose(q.sum(1), 1)
        return
    # 4.5 standard errors of 4,000 draws: by chance once in 370 times 400 comparisons at the most.
    assert np.all(np.abs(share - q) < 4.5 * np.sqrt(q * (1 - q) / 4000) + 1e-4)


def test_latent_weights_are_averaged_over() -> None:
    fit = fitted({"weights": "mean_field", "z": "amortized"}, prior="normal")
    _, data = problem()
    some = data.select(torch.tensor([110, 3, 7]))
    group = fit.to_arviz(40, depths=some)["depth"]
    draws = fit.sample(40)
    wanted = torch.stack(
        [torch.softmax(joint(fit, some, {k: draws[k][s] for k in fit.model.sites}), -1) for s in range(40)]
    ).mean(0)
    assert np.allclose(group["posterior"].values[0], wanted, atol=1e-10)
    one = torch.softmax(joint(fit, some, {k: draws[k].mean(0) for k in fit.model.sites}), -1)
    assert not np.allclose(group["posterior"].values[0], one, atol=1e-3)
    guide = fit.run.owned.guide
    with fit.run.owned.active(0), torch.no_grad():
        assert np.allclose(group["guide"].values[0], guide.probs("z", x=some.inputs["x"]))


def test_one_depth_for_all_data() -> None:
    fit = fitted({"z": "global"}, scope="data")
    group = fit.to_arviz(20)["depth"]
    assert dict(group.sizes) == {"chain": 1, "depth": L + 1}
    total = joint(fit, fit.data).sum(0) - (N - 1) * fit.model.probs.log()
    assert np.allclose(group["posterior"].values[0], torch.softmax(total, 0), atol=1e-12)
    with torch.no_grad():
        assert np.allclose(group["guide"].values[0], torch.softmax(fit.run.owned.guide.parts[0].logits, 0))


def test_what_is_absent_and_what_is_refused() -> None:
    fit = fitted({"z": "table"})
    _, data = problem()
    other = data.select(torch.arange(5))
    tree = fit.to_arviz(5, depths=other)
    assert "guide" not in tree["depth"]
    assert "a table of the training data" in tree.attrs["depth_note"]
    assert "depth" not in fit.to_arviz(5, depths=False)
    with pytest.raises(ValueError, match="a table of the training data and says nothing of new inputs"):
        fit.early_exit(data, "amortized")
    narrow = bz.data.Data({"x": torch.randn(4, 3)}, torch.zeros(4, dtype=torch.long))
    for wrong, words in ((7, "depths must be Data with inputs and classes, got int"), (narrow, r"the network takes \(N, 2\)")):
        with pytest.raises(ValueError, match=words):
            fit.to_arviz(5, depths=wrong)
    line = bz.fit(bz.models.CoinFlip(), bz.data.load("coin_flips").select(torch.arange(20)), "exact", progress=False)
    with pytest.raises(ValueError, match="depths is for networks of adaptive depth"):
        line.to_arviz(5, depths=other)
