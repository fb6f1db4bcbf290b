"""Figures of fits and of the lecture, with matplotlib.

Each draws into `ax`, or into a new figure, and returns the axes. Figures of class probabilities live in
`classification_plots`, those of autoencoders in `picture_plots`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

from .classification_plots import plot_averaging as plot_averaging
from .classification_plots import plot_entropies as plot_entropies
from .classification_plots import plot_reliability as plot_reliability
from .data import Data
from .figure import BLUE, GREEN, GREY, INK, ORANGE, PINK, RED, SKY, add_legend, open_axes
from .inference import Fit
from .inference.target.program import quiet
from .models import CoinFlip
from .picture_plots import plot_codes as plot_codes
from .picture_plots import plot_pictures as plot_pictures
from .picture_plots import plot_plane as plot_plane
from .picture_plots import plot_reconstructions as plot_reconstructions
from .picture_plots import plot_samples as plot_samples
from .picture_plots import plot_styles as plot_styles
from .picture_plots import plot_traversals as plot_traversals

type Array = NDArray[np.float64]

GUIDES = (ORANGE, BLUE, GREEN, PINK, SKY, RED)


def plot_losses(fit: Fit, *, ax: Axes | None = None) -> Axes:
    """The loss at every step, of every restart, over the evidence where the model knows it."""
    ax = open_axes(ax)
    last = [x for run in fit.runs for x in run.history.losses[len(run.history.losses) // 2 :]]
    for k, run in enumerate(fit.runs):
        losses = np.asarray(run.history.losses)
        label = "loss" if len(fit.runs) == 1 else f"restart {k + 1}{' (best)' if k == fit.best else ''}"
        ax.plot(np.arange(1, len(losses) + 1), losses, color=GUIDES[(k + 1) % 6], lw=0.8, alpha=0.85, label=label)
    low, high = np.quantile(last, [0.0, 0.995]) if last else (0.0, 1.0)
    if fit.objective == "elbo" and hasattr(fit.model, "log_evidence"):
        floor = -float(fit.model.log_evidence(fit.data))
        ax.axhline(floor, color=INK, ls="--", lw=1, label="−log evidence (exact)")
        low = min(low, floor)
    # The first steps would hide the rest: the axis shows the second half of the fit and what lies near it.
    room = max(high - low, 1e-6 * max(1.0, abs(high)))
    first = max(run.history.losses[0] for run in fit.runs)
    top = first if first < high + 4 * room else high + 2 * room
    ax.set_ylim(low - 0.3 * room, top + 0.3 * room)
    ax.ticklabel_format(axis="y", useOffset=False)
    ax.set(xlabel="step", ylabel=f"{fit.loss_name.split(',')[0]} (nats)", title=f"{_name(fit)}: {_guide(fit)}")
    return add_legend(ax)


def plot_posterior(
    fit: Fit,
    site: str,
    index: tuple[int, ...] = (),
    *,
    exact: Any = None,
    draws: Mapping[str, Tensor] | None = None,
    n: int = 4000,
    ax: Axes | None = None,
) -> Axes:
    """The marginal density of one latent beside the exact posterior.

    Args:
        site: the latent's name.
        index: which entry of it, for a latent with a shape.
        exact: an exact or reference posterior; by default the model's own where it has one.
        draws: the fit's own draws by site, where they are at hand already.
        n: draws of each.
    """
    ax = open_axes(ax)
    exact = _exact(fit) if exact is None else exact
    values = (fit.sample(n) if draws is None else draws)[site][_at(index)].double().numpy()
    x = _range(values)
    if exact is not None:
        known = getattr(exact, "distributions", {}).get(site)
        truth = _draws(exact, n)[site][_at(index)].numpy()
        x = _range(np.concatenate([values, truth]))
        if known is not None and not known.event_shape and not index:
            x = x[known.support.check(torch.from_numpy(x)).numpy()]
            density = known.log_prob(torch.from_numpy(x)).exp().numpy()
        else:
            density = _kde(truth, x)
        ax.fill_between(x, density, color=GREY, alpha=0.35, lw=0, label="exact")
    if values.std() > 0:
        ax.plot(x, _kde(values, x), color=BLUE, label=_guide(fit))
    else:
        ax.axvline(values[0], color=BLUE, label=_guide(fit))
    name = _entry(fit, site, index)
    ax.set(xlabel=name, ylabel=f"density of {name}", ylim=(0, None))
    return add_legend(ax)


def plot_coin_updates(
    flips: Data | Tensor, *, at: Sequence[int] = (0, 1, 3, 10, 100), model: Any = None, ax: Axes | None = None
) -> Axes:
    """From the prior to the posterior of a coin, after `at` flips.

    Args:
        flips: zeros and ones in their order, `(N,)`, or `Data` that observe them.
        model: a `CoinFlip`; by default with a uniform prior.
    """
    ax = open_axes(ax)
    x, model = _flips(flips), CoinFlip() if model is None else model
    pi = torch.linspace(0.0005, 0.9995, 1500, dtype=torch.float64)
    colours = plt.get_cmap("viridis_r")(np.linspace(0.12, 0.92, len(at)))
    for n, colour in zip(at, colours, strict=True):
        a, b = float(model.alpha) + float(x[:n].sum()), float(model.beta) + n - float(x[:n].sum())
        density = torch.distributions.Beta(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)).log_prob(
            pi
        )
        label = "prior" if n == 0 else f"{n:,} flip{'s' if n > 1 else ''}, {int(x[:n].sum()):,} heads"
        ax.plot(pi, density.exp(), color=colour, label=label)
    ax.set(xlabel="π, chance of heads", ylabel="density of π", xlim=(0, 1), ylim=(0, None))
    return add_legend(ax)


def plot_coin_answers(
    flips: Data | Tensor, *, at: Sequence[int] | None = None, model: Any = None, ax: Axes | None = None
) -> Axes:
    """The next flip's chance of heads by maximum likelihood, by MAP and by full Bayes, as flips arrive.

    Args:
        flips: zeros and ones in their order, `(N,)`, or `Data` that observe them.
        at: numbers of flips; by default about evenly spaced on a logarithmic axis.
        model: a `CoinFlip`; by default Beta(2, 2), so that MAP differs from maximum likelihood.
    """
    ax = open_axes(ax)
    x, model = _flips(flips), CoinFlip(2.0, 2.0) if model is None else model
    at = sorted({int(n) for n in np.geomspace(1, len(x), 25).round()}) if at is None else at
    answers: dict[str, list[float]] = {"maximum likelihood": [], "MAP": [], "full Bayes": []}
    for n in at:
        part = Data({}, x[:n])
        answers["maximum likelihood"].append(float(model.maximum_likelihood(part)["pi"]))
        answers["MAP"].append(float(model.maximum_a_posteriori(part)["pi"]))
        answers["full Bayes"].append(float(model.exact_predictive(part).probs))
    for (name, values), colour, marker in zip(answers.items(), (RED, ORANGE, BLUE), "s^o", strict=True):
        ax.plot(at, values, color=colour, marker=marker, ms=4, lw=1.2, label=name)
    ax.axhline(float(x.mean()), color=GREY, lw=1, ls=":", label=f"share of heads in all {len(x):,}")
    ax.set_xscale("log")
    ax.set(xlabel="flips seen", ylabel="chance that the next flip is heads", ylim=(-0.03, 1.03))
    return add_legend(ax)


def plot_regression(
    fit: Fit,
    feature: int | str = 0,
    *,
    data: Any = None,
    lines: int = 25,
    prob: float = 0.9,
    ax: Axes | None = None,
) -> Axes:
    """The predictive band of a regression over one input, the others at their means, and posterior lines.

    Args:
        feature: number or name of the input column.
        data: the points to show; by default the training data.
        lines: posterior draws of the regression line.
        prob: mass of the predictive band.
    """
    ax = open_axes(ax)
    data = fit.data.to("cpu") if data is None else data.to("cpu")
    names = data.feature_names or tuple(f"x{d}" for d in range(data.dim))
    j = names.index(feature) if isinstance(feature, str) else feature
    x, scaler = data.inputs["x"], data.scaler
    grid = x.mean(0).repeat(101, 1)
    low, high = x[:, j].min(), x[:, j].max()
    grid[:, j] = torch.linspace(float(low - 0.08 * (high - low)), float(high + 0.08 * (high - low)), 101)
    found = fit.predict({"x": grid}, 4000)  # a smooth edge of the band needs many draws
    lower, upper = found.interval(prob)
    raw = data.unscaled()
    at = grid[:, j] if scaler is None else scaler.inverse_inputs(grid)[:, j]
    ax.fill_between(at, lower, upper, color=SKY, alpha=0.3, lw=0, label=f"{prob:.0%} predictive interval")
    if hasattr(fit.model, "predict_mean"):
        theta = fit.sample(lines)["theta"].unsqueeze(-2)
        mean = fit.model.predict_mean(theta.to(fit.device), grid.to(fit.device)).detach().cpu()
        for k, line in enumerate(mean if scaler is None else scaler.inverse_target(mean)):
            ax.plot(at, line, color=BLUE, lw=0.5, alpha=0.5, label="" if k else "posterior draws of the line")
    ax.plot(at, found.mean, color=INK, lw=1.5, label="predictive mean")
    observed = raw.observed if isinstance(raw.observed, Tensor) else next(iter(raw.observed.values()))
    size = 14 if len(data) < 300 else 5
    ax.scatter(
        raw.inputs["x"][:, j],
        observed,
        s=size,
        color=ORANGE,
        edgecolor="none",
        alpha=0.7,
        label="data",
        zorder=1,
    )
    rest = " (others at their means)" if data.dim > 1 else ""
    ax.set(xlabel=f"{names[j]}{rest}", ylabel=data.target_name or "y")
    return add_legend(ax)


def plot_contours(
    fits: Fit | Mapping[str, Fit],
    site: str,
    pair: tuple[int, int] = (0, 1),
    *,
    exact: Any = None,
    draws: int = 0,
    prob: float = 0.9,
    ax: Axes | None = None,
) -> Axes:
    """Two entries of a latent: what each guide believes over the exact posterior's contours.

    Args:
        fits: one fit, or guide name -> fit, such as `bz.compare(...).fits`.
        site: a latent with one dimension, such as `theta`.
        pair: the two entries.
        exact: an exact or reference posterior; by default the model's own where it has one.
        draws: how many draws of each guide to scatter as well.
        prob: mass inside each guide's ellipse; the exact contours hold 50 %, 90 % and 99 %.
    """
    ax = open_axes(ax)
    named = {_guide(fits): fits} if isinstance(fits, Fit) else dict(fits)
    one = next(iter(named.values()))
    exact = _exact(one) if exact is None else exact
    # (S, 2) draws; the ellipse of a normal with their mean and covariance.
    samples = {name: fit.sample(4000)[site][:, list(pair)].double().numpy() for name, fit in named.items()}
    if exact is not None:
        _exact_contours(ax, _draws(exact, 20_000)[site][:, list(pair)].numpy())
    turn = np.linspace(0, 2 * math.pi, 200)
    circle = np.stack([np.cos(turn), np.sin(turn)]) * math.sqrt(-2 * math.log1p(-prob))
    for (name, points), colour in zip(samples.items(), GUIDES * len(samples), strict=False):
        covariance = np.cov(points.T)
        if np.trace(covariance) < 1e-20:
            ax.plot(*points[0], marker="X", ms=8, ls="", color=colour, label=f"{name} (a point)")
            continue
        if draws:
            ax.scatter(points[:draws, 0], points[:draws, 1], s=4, color=colour, alpha=0.35, edgecolor="none")
        ring = points.mean(0)[:, None] + np.linalg.cholesky(covariance) @ circle
        ax.plot(*ring, color=colour, lw=1.8, label=f"{name}, {prob:.0%}")
    ax.set(xlabel=_entry(one, site, (pair[0],)), ylabel=_entry(one, site, (pair[1],)))
    return add_legend(ax)


def plot_people(fit: Fit, *, site: str = "pi", prob: float = 0.9, n: int = 2000, ax: Axes | None = None) -> Axes:
    """A forest of people: each one's share beside the posterior, which draws small samples to the others.

    Args:
        fit: of a model with counts and one latent for each row, such as `HierarchicalCoin`.
        site: that latent.
        prob: mass of the intervals; the raw share's is that of a Beta posterior with a uniform prior.
    """
    from scipy.stats import beta

    data = fit.data.to("cpu")
    x, total = (t.double().numpy() for t in (data.observed, data.inputs["total_count"]))
    ax = open_axes(ax, size=(6.4, max(3.0, 0.16 * len(x) + 1.0)))
    order = np.argsort(total, kind="stable")
    draws = fit.sample(n)[site].double().numpy()
    tail = (1 - prob) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    raw_low, raw_high = (beta.ppf(q, 1 + x, 1 + total - x) for q in (tail, 1 - tail))
    y = np.arange(len(x))
    ax.axvline(0.5, color=INK, lw=0.8, ls=":", label="fair coin")
    ax.hlines(y - 0.2, raw_low[order], raw_high[order], color=ORANGE, lw=1, alpha=0.7)
    ax.plot((x / total)[order], y - 0.2, "s", ms=3, color=ORANGE, label=f"each share alone, {prob:.0%}")
    ax.hlines(y + 0.2, low[order], high[order], color=BLUE, lw=1.4)
    ax.plot(draws.mean(0)[order], y + 0.2, "o", ms=3, color=BLUE, label=f"posterior of all together, {prob:.0%}")
    labels = data.labels or tuple(str(k + 1) for k in range(len(x)))
    ax.set_yticks(y, [f"{labels[k]} ({int(total[k]):,})" for k in order], fontsize=6)
    ax.set(xlabel="π, chance of the same side", ylabel=f"{data.observation_dim} (flips)", ylim=(-1, len(x)))
    ax.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return ax


def plot_residual_check(fit: Fit, *, n: int = 1000, ax: Axes | None = None) -> Axes:
    """A posterior predictive check: the spread of residuals in data simulated from the fit, and in the data.

    A known noise that is wrong shows at once: the real spread lies outside what the fit can produce.
    """
    ax = open_axes(ax)
    data = fit.data.to("cpu").unscaled()
    y = data.observed if isinstance(data.observed, Tensor) else next(iter(data.observed.values()))
    found = fit.predict(fit.data.inputs, n)
    assert found.draws is not None
    spread = (found.draws.double() - found.mean).std(1).numpy()
    real = float((y.double() - found.mean).std())
    share = float((spread >= real).mean())
    both = np.append(spread, real)
    room = 0.08 * (both.max() - both.min())
    ax.hist(spread, bins=40, color=SKY, edgecolor="white", lw=0.3, label="simulated from the fit")
    ax.axvline(real, color=RED, lw=2, label=f"the data ({share:.0%} of simulations spread more)")
    name = data.target_name or "y"
    ax.set(
        xlabel=f"sd of the residuals of {name}",
        ylabel="simulated data sets",
        xlim=(both.min() - room, both.max() + room),
    )
    return add_legend(ax)


def save(drawn: Mapping[str, Axes], folder: Path) -> list[Path]:
    """Writes each figure as `<name>.png` and closes it."""
    paths = []
    for name, ax in drawn.items():
        paths.append(folder / f"{name}.png")
        figure = ax.get_figure(root=True)
        assert figure is not None
        figure.savefig(paths[-1], dpi=130)
        plt.close(figure)
    return paths


def _exact_contours(ax: Axes, points: Array) -> None:
    """Contours of highest density that hold 50 %, 90 % and 99 % of (S, 2) draws."""
    from scipy.stats import gaussian_kde

    kde = gaussian_kde(points[: min(4000, len(points) // 2)].T)
    level = np.quantile(kde(points[-4000:].T), [0.01, 0.1, 0.5])
    low, high = points.min(0), points.max(0)
    grid = np.meshgrid(*(np.linspace(a, b, 90) for a, b in zip(low, high, strict=True)))
    density = kde(np.stack([g.ravel() for g in grid])).reshape(grid[0].shape)
    ax.contourf(*grid, density, levels=[*level, density.max()], colors=["#e4e4e4", "#cccccc", "#aaaaaa"])
    ax.plot([], [], color="#aaaaaa", lw=6, label="exact: 50, 90, 99 %")


def _exact(fit: Fit) -> Any:
    """The model's own exact posterior, or None."""
    solve = getattr(fit.model, "exact_posterior", None)
    return None if solve is None else solve(fit.data)


def _draws(posterior: Any, n: int) -> dict[str, Tensor]:
    """Seeded draws of an exact or reference posterior, as float64 on the CPU."""
    if isinstance(posterior, Mapping):
        return {k: torch.as_tensor(v).double().cpu() for k, v in posterior.items()}
    draws = getattr(posterior, "draws", None)  # a reference holds its own
    if draws is None:
        with quiet(0):
            draws = posterior.sample(n)
    return {k: v.double().cpu() for k, v in draws.items()}


def _at(index: tuple[int, ...]) -> Any:
    """One entry of every draw."""
    return (slice(None), *index)


def _kde(draws: Array, x: Array) -> Array:
    from scipy.stats import gaussian_kde

    density: Array = gaussian_kde(draws)(x)
    return density


def _range(draws: Array) -> Array:
    low, high = np.quantile(draws, [0.001, 0.999])
    room = 0.15 * (high - low) + 1e-9
    return np.linspace(low - room, high + room, 400)


def _flips(flips: Data | Tensor) -> Tensor:
    x = flips.observed if isinstance(flips, Data) else flips
    if not isinstance(x, Tensor) or x.dim() != 1 or not bool(((x == 0) | (x == 1)).all()):
        raise ValueError(
            "flips must be zeros and ones in their order, shape (N,), such as bz.data.load('coin_flips', form='sequence')"
        )
    return x.double().cpu()


def _name(fit: Fit) -> str:
    return type(fit.model).__name__ if isinstance(fit.model, torch.nn.Module) else getattr(fit.model, "__name__", "model")


def _guide(fit: Fit) -> str:
    return fit.settings.guide or fit.run.family or type(fit.guide).__name__


def _entry(fit: Fit, site: str, index: tuple[int, ...]) -> str:
    """`theta[bmi]` where the model names its entries, else `theta[3]`; says so where it is standardised."""
    names = getattr(fit.model, "dims", {}).get(site, [])
    coords = fit.model.coords(fit.data) if names and hasattr(fit.model, "coords") else {}
    words = [str(coords[d][i]) if d in coords else str(i) for d, i in zip([*names, *[""] * len(index)], index, strict=False)]
    label = f"{site}[{', '.join(words)}]" if words else site
    return f"{label} (standardised)" if fit.data.scaler is not None else label
