"""The lowest loss that mean field can reach, where theory gives it: -log evidence plus KL(q || posterior) of the best q."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

Array = NDArray[Any]


def coin(arrays: dict[str, Array]) -> float:
    """One coin, uniform prior, q normal in log odds u: the minimum over mean and sd of E_q[log q - log p(x, u)], in nats.

    p(x, u) = pi^(heads + 1) (1 - pi)^(tails + 1), since the prior in u is pi (1 - pi). The integral is by 64 Gauss-Hermite nodes.
    """
    heads = float(arrays["x"].sum())
    tails = len(arrays["x"]) - heads
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    weights = weights / weights.sum()

    def loss(q: Array) -> float:
        u = q[0] + math.exp(q[1]) * nodes
        log_p = (heads + 1) * special.log_expit(u) + (tails + 1) * special.log_expit(-u)
        entropy = q[1] + 0.5 * math.log(2 * math.pi * math.e)
        return -float(weights @ log_p) - entropy

    return float(
        optimize.minimize(loss, np.array([0.0, -1.0]), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10}).fun
    )


def linear(arrays: dict[str, Array], noise: float = 0.5) -> float:
    """Linear regression with known noise, standard normal prior, in nats.

    The posterior is normal with precision P = I + x^T x / noise^2; the best mean-field q has its mean and the variances 1 / P_ii,
    which costs (sum log P_ii - log |P|) / 2.
    """
    x, y = arrays["x"].astype(np.float64), arrays["y"].astype(np.float64)
    rows, columns = x.shape
    precision = np.eye(columns) + x.T @ x / noise**2
    b = x.T @ y / noise**2
    log_det = float(np.linalg.slogdet(precision)[1])
    quadratic = float(y @ y) / noise**2 - float(b @ np.linalg.solve(precision, b))
    log_evidence = -0.5 * (rows * math.log(2 * math.pi * noise**2) + log_det + quadratic)
    return -log_evidence + 0.5 * (float(np.log(np.diag(precision)).sum()) - log_det)
