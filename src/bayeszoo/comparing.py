"""Several guides on one model and data set, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from .fitting import fit as fit_one
from .fitting import in_precision
from .inference import Fit
from .inference.draws import chunk_size
from .inference.target.density import EachDraw, log_likelihood
from .inference.target.program import check_data, describe

#: Draws behind the errors of means and sds: a Monte Carlo error of 0.016 sds and 1.1 %.
DRAWS = 4_000


@dataclass(frozen=True)
class Truth:
    """What a guide's moments are held against.

    Attributes:
        mean: site -> posterior mean.
        sd: site -> posterior sd.
        log_evidence: log p(observations) in nats, None where it is not known.
        source: "exact", or "reference" for one that was given.
    """

    mean: Mapping[str, Tensor]
    sd: Mapping[str, Tensor]
    log_evidence: float | None
    source: str


@dataclass(frozen=True)
class Comparison:
    """Fits of several guides.

    Attributes:
        fits: guide name -> `Fit`, in the order asked for.
        table: one row a guide, a pandas `DataFrame` indexed by its name. Columns: `objective`; `loss` and
            `loss_error` in nats (a surrogate's loss is no bound, and is not to be set beside the others);
            `gap`, loss + log evidence, which is KL(q || p), where the evidence is known; `k_hat`;
            `mean_error`, the worst error of a mean in posterior sds, and `sd_error`, the worst of an sd as a
            share of it, where the posterior is known; `held_out_nll`, -log p(y | data) a held-out observation
            in nats; `steps`; `converged`; `seconds`.
        truth: what the errors were measured against, or None.
    """

    fits: dict[str, Fit]
    table: pd.DataFrame
    truth: Truth | None = field(default=None, repr=False)

    def to_arviz(self, n: int = 1000, **options: Any) -> dict[str, Any]:
        """Guide name -> `DataTree`, as `arviz.plot_forest` and the other plots take several models.

        Args:
            n: draws a fit.
            **options: those of `Fit.to_arviz`.
        """
        return {name: fit.to_arviz(n, **options) for name, fit in self.fits.items()}

    def __str__(self) -> str:
        shown = self.table.drop(columns=["loss_error", *[c for c in self.table if self.table[c].isna().all()]])
        shown["loss"] = [
            f"{row.loss:.5g} ± {row.loss_error:.2g}" if row.loss_error > 0 else f"{row.loss:.5g}"
            for row in self.table.itertuples()
        ]
        formats: dict[str, Callable[[Any], str]] = {
            "gap": "{:.3g}".format,
            "k_hat": "{:.2f}".format,
            "mean_error": "{:.3f} sd".format,
            "sd_error": "{:.1%}".format,
            "held_out_nll": "{:.4f}".format,
            "converged": lambda value: "yes" if value else "no",
            "seconds": "{:.1f}".format,
        }
        for name, form in formats.items():
            if name in shown:
                shown[name] = [
                    "exact" if name == "k_hat" and value == -math.inf else "" if _missing(value) else form(value)
                    for value in shown[name]
                ]
        truth = f"errors against the {self.truth.source} posterior; " if self.truth is not None else ""
        note = f"{truth}losses in nats; the loss of a surrogate is no bound on the evidence"
        return f"{shown.to_string()}\n({note})"

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        html: str = self.table.to_html(float_format=lambda value: f"{value:.4g}", na_rep="")
        return html


def compare(
    model: Callable[..., Any],
    data: Any,
    guides: Sequence[Any] | Mapping[str, Any],
    *,
    reference: Any = None,
    held_out: Any = None,
    **fit_options: Any,
) -> Comparison:
    """Fits several guides to the same model and data.

    Args:
        model: as for `bayeszoo.fit`.
        data: the training data.
        guides: names of families, or names -> whatever `fit` takes as a guide.
        reference: a posterior to measure errors against, with `mean` and `sd` by site (`bz.reference`), or
            draws by site, each (n, *shape); by default the model's exact one where it knows it.
        held_out: further `Data`, to predict.
        **fit_options: those of `bayeszoo.fit`, for all guides alike; `guide_options` is a dict by guide name.

    Raises:
        ValueError: one sentence; a guide that does not fit the model is found before the first fit begins.
    """
    named = _named(guides)
    options = dict(fit_options.pop("guide_options", None) or {})
    unknown = [name for name in options if name not in named]
    if unknown:
        raise ValueError(f"guide_options are for '{unknown[0]}', which is not among the guides {', '.join(named)}")
    _check_guides(model, data, named, options)
    truth = _truth(model, data, reference)
    fits = {
        name: fit_one(model, data, guide=guide, guide_options=options.get(name), **fit_options) for name, guide in named.items()
    }
    rows = {name: _row(fit, truth, held_out) for name, fit in fits.items()}
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "guide"
    return Comparison(fits, table, truth)


def _named(guides: Sequence[Any] | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(guides, str):
        guides = [guides]
    if isinstance(guides, Mapping):
        named = dict(guides)
    else:
        named = {}
        for guide in guides:
            name = (
                guide if isinstance(guide, str) else getattr(guide, "family", getattr(guide, "__name__", type(guide).__name__))
            )
            if name in named:
                raise ValueError(
                    f"guide '{name}' is listed twice; give each its own name, guides={{'first': ..., 'second': ...}}"
                )
            named[name] = guide
    if not named:
        raise ValueError("compare needs at least one guide, such as guides=['mean_field', 'full_rank']")
    return named


def _check_guides(model: Any, data: Any, named: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Builds every family once, so that a mistake in the last name costs no fit."""
    from . import guides as families
    from .inference.target.program import quiet

    check_data(model, data)
    for name, guide in named.items():
        line = families.in_words(guide) if isinstance(guide, Mapping) else guide
        if isinstance(line, str):
            with quiet(0):
                families.build(families.checked_name(line), in_precision(model, data), data, **options.get(name, {}))


def _truth(model: Any, data: Any, reference: Any) -> Truth | None:
    evidence = None
    if hasattr(model, "log_evidence"):
        evidence = float(model.log_evidence(data))
    if reference is None:
        if not hasattr(model, "exact_posterior"):
            return None
        posterior = model.exact_posterior(data)
        return Truth(posterior.mean, posterior.sd, evidence, "exact")
    if isinstance(reference, Mapping):
        draws = {name: torch.as_tensor(value).double() for name, value in reference.items()}
        return Truth(
            {k: v.mean(0) for k, v in draws.items()},
            {k: v.std(0) for k, v in draws.items()},
            evidence,
            "reference",
        )
    if not (hasattr(reference, "mean") and hasattr(reference, "sd")):
        raise ValueError(
            f"reference must have mean and sd by site, or be draws by site, and is a "
            f"{type(reference).__name__}; bz.reference(model, data) makes one"
        )
    if evidence is None:
        evidence = getattr(reference, "log_evidence", None)
    return Truth(reference.mean, reference.sd, evidence, "reference")


def _row(fit: Fit, truth: Truth | None, held_out: Any) -> dict[str, Any]:
    bound = fit.objective == "elbo"
    gap = fit.loss + truth.log_evidence if bound and truth is not None and truth.log_evidence is not None else math.nan
    mean_error, sd_error = moment_errors(fit, truth) if truth is not None else (math.nan, math.nan)
    return {
        "objective": fit.objective,
        "loss": fit.loss,
        "loss_error": fit.loss_error,
        "gap": gap,
        "k_hat": fit.run.k_hat if bound else math.nan,
        "mean_error": mean_error,
        "sd_error": sd_error,
        "held_out_nll": math.nan if held_out is None else held_out_nll(fit, held_out),
        "steps": len(fit.losses),
        "converged": fit.converged,
        "seconds": fit.seconds,
    }


def moment_errors(fit: Fit, truth: Truth, n: int = DRAWS) -> tuple[float, float]:
    """The worst error of any mean in true posterior sds, and the worst relative error of any sd.

    A point has no sd, so its sd is off by 100 %. Both are NaN where no site is shared.
    """
    draws = fit.sample(n)
    shifts, ratios = [], []
    for name, mean in truth.mean.items():
        if name not in draws:
            continue
        found, sd = draws[name].double(), torch.as_tensor(truth.sd[name]).detach().cpu().double()
        shifts.append(float(((found.mean(0) - torch.as_tensor(mean).detach().cpu().double()) / sd).abs().max()))
        ratios.append(float((found.std(0) / sd - 1).abs().max()))
    return (max(shifts), max(ratios)) if shifts else (math.nan, math.nan)


def held_out_nll(fit: Fit, held_out: Any, n: int = 1000) -> float:
    """-log p(y | training data) a held-out observation, in nats and in the model's own units.

    Where all latents are observations' own they are integrated out by importance sampling from the guide's network, `n` draws each; NaN
    where observations have continuous latents of their own of which the guide says nothing for new ones.
    """
    if any(not site.discrete for site in fit.program.local.values()):
        shared = any(not site.local for site in fit.program.latents.values())
        if shared or fit.objective == "surrogate" or not getattr(fit.guide, "amortized", False):
            return math.nan
        return -fit.log_marginal(held_out, n, k_hat=False).mean
    data = held_out.to(fit.device, fit.dtype)
    draws = fit.run.draws(fit.data, n, fit._seed(None, 29), score=False).values
    values = {k: v for k, v in draws.items() if not fit.program.latents[k].local}
    with fit.run.owned.active(0), torch.no_grad():
        kwargs = data.bind(fit.model)
        program = describe(fit.model, data)
        each, chunk = EachDraw(), chunk_size(len(data), 8)

        def one(v: Mapping[str, Tensor]) -> Tensor:
            parts = log_likelihood(program, fit.model, kwargs, v).values()
            return torch.stack([p.reshape(-1) for p in parts]).sum(0)

        total: Tensor | None = None
        for i in range(0, n, chunk):
            part = each(one, {k: v[i : i + chunk] for k, v in values.items()}, chunk=chunk).double().logsumexp(0)
            total = part if total is None else torch.logaddexp(total, part)
    assert total is not None
    return float(math.log(n) - total.mean())


def _missing(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
