"""The cases: what is fitted, on which data, with which settings, and how good is good enough.

A case holds NumPy arrays and numbers only. Its model is written twice under the case's `model` name: a plain Pyro function in
`pyro_models`, which every torch contestant runs, and its twin in `numpyro_models`. The approximating family, the
optimiser (Adam, its defaults), learning rate, batch and number of steps are the same for all; everything is float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import best

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """One thing to fit.

    Attributes:
        name: on the command line and in the results.
        title: for people.
        model: the function's name in `pyro_models`, `numpyro_models` and `torch_losses`.
        arrays: makes the data, by the names of the model's parameters.
        observed: which of them is observed.
        learning_rate: of Adam, constant.
        steps: of the run that is timed from its start until it is accurate.
        window: steps over which the running mean of the loss is taken.
        best: the loss that the family can reach, in nats: a function of the data where it has a closed form, else the value that
            `python -m benchmarks reference` found in a long run with a falling learning rate.
        tolerance: nats above `best` at which a fit counts as accurate.
        batch_size: rows a step; None takes all.
        small: whether a step is so small that Python would dominate it; the growth curves run over these.
    """

    name: str
    title: str
    model: str
    arrays: Callable[[], dict[str, Array]]
    observed: str
    learning_rate: float
    steps: int
    window: int
    best: float | Callable[[dict[str, Array]], float]
    tolerance: float
    batch_size: int | None = None
    small: bool = True

    @property
    def target(self) -> float:
        """The running mean of the loss at which a fit counts as accurate, in nats."""
        best_loss = self.best(self.arrays()) if callable(self.best) else self.best
        return best_loss + self.tolerance


def _float(x: Any) -> Array:
    return np.asarray(x, dtype=np.float32)


def flips() -> dict[str, Array]:
    """100 flips of a coin that shows heads in 70 % of them."""
    return {"x": _float(np.random.default_rng(1).random(100) < 0.7)}


def line(rows: int, columns: int) -> Callable[[], dict[str, Array]]:
    """Rows of y = x theta + noise of sd 0.5, theta standard normal."""

    def arrays() -> dict[str, Array]:
        rng = np.random.default_rng(2)
        x = rng.standard_normal((rows, columns), dtype=np.float32)
        y = x @ rng.standard_normal(columns) + 0.5 * rng.standard_normal(rows)
        return {"x": x, "y": _float(y)}

    return arrays


def coins() -> dict[str, Array]:
    """20 people who flip 50 times each, with biases that scatter by 0.5 in log odds."""
    rng = np.random.default_rng(3)
    log_odds = 0.3 + 0.5 * rng.standard_normal(20)
    return {"total": _float(np.full(20, 50)), "heads": _float(rng.binomial(50, 1 / (1 + np.exp(-log_odds))))}


def schools() -> dict[str, Array]:
    """The eight schools of Rubin (1981): estimated effects of coaching and their standard errors."""
    return {"sigma": _float([15, 10, 16, 11, 9, 11, 10, 18]), "y": _float([28, 8, -3, 7, -1, 1, 18, 12])}


def two_classes() -> dict[str, Array]:
    """1000 rows of 20 features, labels drawn from a logistic regression."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((1000, 20), dtype=np.float32)
    return {"x": x, "y": _float(rng.random(1000) < 1 / (1 + np.exp(-(x @ rng.standard_normal(20) - 0.5))))}


def ten_classes() -> dict[str, Array]:
    """256 rows of 64 features, labels of a random network with one hidden layer."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((256, 64), dtype=np.float32)
    logits = np.tanh(x @ rng.standard_normal((64, 30)) / 8) @ rng.standard_normal((30, 10))
    return {"x": x, "y": logits.argmax(1).astype(np.int64)}


def images() -> dict[str, Array]:
    """2048 binary images of 28 x 28 pixels: three soft discs at random places, each pixel a coin flip."""
    rng = np.random.default_rng(6)
    grid = np.stack(np.meshgrid(np.arange(28), np.arange(28)), -1).reshape(784, 2)
    centres = rng.uniform(4, 24, (2048, 3, 2))
    distance = ((centres[:, :, None] - grid) ** 2).sum(-1)
    p = 0.02 + 0.96 * np.exp(-distance / 18).max(1)
    return {"x": _float(rng.random((2048, 784)) < p)}


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case("coin", "coin flip, 100 flips", "coin", flips, "x", 0.05, 1000, 100, best.coin, 0.2),
        Case("linear", "linear regression, 1000 x 10", "linear", line(1000, 10), "y", 0.02, 2000, 100, best.linear, 3.0),
        Case(
            "linear-large", "linear regression, 100,000 x 100", "linear", line(100_000, 100), "y", 0.02, 1000, 20,
            best.linear, 20_000.0, small=False,
        ),
        Case(
            "linear-batch", "linear regression, 256 of 100,000 x 100", "linear", line(100_000, 100), "y", 0.02, 2000, 100,
            best.linear, 10_000.0, batch_size=256,
        ),
        Case("coins", "hierarchical coin, 20 people", "coins", coins, "heads", 0.02, 1000, 100, 74.4, 1.0),
        Case("schools", "eight schools", "schools", schools, "y", 0.02, 1000, 100, 31.6, 0.8),
        Case("logistic", "logistic regression, 1000 x 20", "logistic", two_classes, "y", 0.02, 1000, 100, 368.5, 2.0),
        Case("bnn", "BNN 64-50-50-10, 256 rows", "bnn", ten_classes, "y", 0.01, 1500, 50, 1305.0, 100.0, small=False),
        Case("vae", "VAE 784-400-20, 128 of 2048 images", "vae", images, "x", 0.001, 1000, 32, 472_400.0, 62_000.0, 128, small=False),
    )
}  # fmt: skip


def index_rows(rows: int, batch_size: int, steps: int, seed: int) -> NDArray[np.int64]:
    """Row numbers of every step's batch, (steps, batch_size): shuffled epochs, a last short batch dropped."""
    rng = np.random.default_rng(seed)
    per_epoch = rows // batch_size
    epochs = [rng.permutation(rows)[: per_epoch * batch_size] for _ in range(-(-steps // per_epoch))]
    return np.concatenate(epochs).reshape(-1, batch_size)[:steps]


#: Widths of the VAE: pixels, hidden units, code.
VAE_WIDTHS = (784, 400, 20)


def vae_weights(seed: int = 0) -> dict[str, tuple[Array, Array]]:
    """Initial weight (in, out) and bias (out,) of every layer of the VAE, as torch draws them: uniform in +-1 / sqrt(in)."""
    rng = np.random.default_rng(seed)
    pixels, hidden, code = VAE_WIDTHS
    shapes = {
        "encoder.hidden": (pixels, hidden),
        "encoder.loc": (hidden, code),
        "encoder.log_scale": (hidden, code),
        "decoder.hidden": (code, hidden),
        "decoder.logits": (hidden, pixels),
    }
    weights = {}
    for name, (fan_in, fan_out) in shapes.items():
        bound = fan_in**-0.5
        weight, bias = rng.uniform(-bound, bound, (fan_in, fan_out)), rng.uniform(-bound, bound, fan_out)
        weights[name] = (_float(weight), _float(bias))
    return weights
