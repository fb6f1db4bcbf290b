"""Quadrature against the reference draws of posteriordb (10 chains of 1,000 draws by Stan)."""

import json
import math

import numpy as np
import pytest
import torch

import bayeszoo.models as models
from bayeszoo.data import Data


@pytest.mark.parametrize("name", ["sblri-blr", "sblrc-blr"])
def test_quadrature_agrees_with_the_reference_draws(name, shared_data):
    folder = shared_data / "posteriordb" / name
    if not folder.is_dir():
        pytest.skip(f"posteriordb's {name} is absent")
    raw = json.loads((folder / "data.json").read_text())
    data = Data(
        inputs={"x": torch.tensor(raw["X"], dtype=torch.float64)},
        observed=torch.tensor(raw["y"], dtype=torch.float64),
    )
    model = models.BayesianLinearRegression(raw["D"], prior_scale=10.0, noise_prior_scale=10.0, intercept=False)
    posterior = model.exact_posterior(data)
    with np.load(folder / "draws.npz") as stored:
        draws = {key: stored[key].astype(np.float64) for key in stored.files}
    names = [f"beta[{d + 1}]" for d in range(raw["D"])] + ["sigma"]
    means = [*posterior.mean["theta"].tolist(), float(posterior.mean["sigma"])]
    sds = [*posterior.sd["theta"].tolist(), float(posterior.sd["sigma"])]
    for key, mean, sd in zip(names, means, sds, strict=True):
        chains = draws[key]
        # reference draws are thinned to near independence: their standard error from the chains' means
        # (10 of them, so it is itself uncertain) and from the draws, whichever is larger
        error = max(chains.mean(1).std(ddof=1) / math.sqrt(len(chains)), sd / math.sqrt(chains.size))
        assert abs(mean - chains.mean()) < 4 * error, key
        assert sd == pytest.approx(chains.std(), rel=4 / math.sqrt(2 * chains.size)), key
