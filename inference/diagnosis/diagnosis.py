"""What `diagnose` answers: numbers for programs, a small table for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .checks import CoverageCheck, LatentCheck, LooCheck, ObservationCheck, RestartCheck, ScoreCheck

#: Rows of a printed table.
SHOWN = 6
#: Rows where function values are all that can be shown.
MOST_SHOWN = 20


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """How far a fit is from the posterior, as far as can be told.

    Attributes:
        verdict: `good`, `doubtful` where any of `warnings` speaks against it, `point` for a point guide, or `unchecked` where nothing
            speaks against it and no k-hat could speak for it.
        converged, stop_reason: the optimiser's own word, not the posterior's.
        num_draws: draws behind every number.
        kl, kl_error: KL(q || posterior) = loss + log evidence in nats, with its Monte Carlo standard error.
        k_hat: Pareto shape of p / q; None for point guides and for constant ratios.
        k_verdict: `good`, `too high`, `exact` (constant ratios), `hopeless` (too many latents for a ratio over all), `by observation`
            (see `observations`) or `absent`.
        effective_draws: 1 / sum w^2 of the smoothed weights.
        latents: all of them; of thousands the twenty furthest off, and of a network with thousands none.
        reference: where the reference comes from, if there is one.
        warnings: one sentence for everything that speaks against the fit.
        notes: one sentence for everything that is absent, and why.
        functions: of networks, the twenty outputs at `function_inputs` (of `num_functions`) that are furthest off, or widest.
        scores: of predictions of held-out data.
        spread: whether draws differ at all.
        observations: where latents all belong to single observations, log p(x) and k-hats of these; training data, then held-out.
    """

    model: str
    guide: str
    objective: str
    num_draws: int
    converged: bool
    stop_reason: str
    loss_name: str
    loss: float
    loss_error: float
    log_evidence: float | None
    kl: float | None
    kl_error: float | None
    k_hat: float | None
    k_threshold: float | None
    k_verdict: str
    effective_draws: float | None
    restarts: tuple[RestartCheck, ...]
    latents: tuple[LatentCheck, ...]
    loo: LooCheck | None
    coverage: tuple[CoverageCheck, ...]
    reference: str | None
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    functions: tuple[LatentCheck, ...] = ()
    function_inputs: str = ""
    num_functions: int = 0
    scores: tuple[ScoreCheck, ...] = ()
    spread: bool = True
    observations: tuple[ObservationCheck, ...] = ()

    @property
    def verdict(self) -> str:
        """`doubtful`, or where nothing speaks against the fit `point`, `unchecked` or `good`."""
        if self.warnings:
            return "doubtful"
        if self.k_verdict in ("absent", "hopeless"):
            return "unchecked" if self.spread else "point"
        return "good"

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it; what is not finite becomes None."""
        out: dict[str, Any] = {"verdict": self.verdict, **asdict(self)}
        for name, checks in (("latents", self.latents), ("functions", self.functions)):
            for entry, check in zip(out[name], checks, strict=True):
                entry |= {k: getattr(check, k) for k in ("shift", "sd_change", "mean_error", "sd_error")}
        plain = _plain(out)
        assert isinstance(plain, dict)
        return plain

    def __str__(self) -> str:
        lines = [f"{self.model}, guide {self.guide}: {self.verdict}", *_columns(self._facts())]
        shown = self.functions[: SHOWN if self.latents else MOST_SHOWN]
        if shown:
            lines += ["", *_columns(self._table("output", shown), numbers=True)]
            rest = self.num_functions - len(shown)
            which = "none further off" if any(check.severity for check in shown) else "none wider"
            lines += [f"(f at {self.function_inputs}; {rest} more, {which})"] if rest else [f"(f at {self.function_inputs})"]
        worst = sorted(self.latents, key=lambda latent: -latent.severity)[:SHOWN]
        if worst:
            rest = len(self.latents) - len(worst)
            lines += ["", *_columns(self._table("latent", worst), numbers=True)]
            lines += [f"({rest} more latents, none further off)"] if rest else []
        lines += [""] if self.warnings or self.notes else []
        lines += [f"warning: {text}" for text in self.warnings] + [f"note: {text}" for text in self.notes]
        return "\n".join(lines)

    __repr__ = __str__

    def _facts(self) -> list[list[str]]:
        rows = [["optimiser", "converged" if self.converged else "NOT converged", self.stop_reason]]
        error = f" ± {self.loss_error:.2g}" if self.loss_error else ""
        rows.append(["loss", f"{self.loss:.6g}{error} nats", self.loss_name])
        if self.kl is not None:
            rows.append(
                [
                    "KL(q || p)",
                    f"{self.kl:.3g} ± {self.kl_error:.2g} nats",
                    f"loss + log evidence ({self.log_evidence:.6g})",
                ]
            )
        if self.k_verdict == "exact":
            rows.append(["k-hat", "exact", "log p - log q is the same at every draw"])
        elif self.k_verdict == "hopeless":
            rows.append(["k-hat", "hopeless", "too many latents for one ratio over all"])
        elif self.k_hat is not None:
            assert self.k_threshold is not None
            word = "below" if self.k_hat <= self.k_threshold else "ABOVE"
            where = f"{word} {self.k_threshold:.2f}"
            if self.k_verdict == "good" and word == "ABOVE":
                where = "all ratios within 10 % of each other"
            rows.append(
                [
                    "k-hat",
                    f"{self.k_hat:.2f}",
                    f"{self.k_verdict}: {where}, {self.effective_draws:.0f} effective of {self.num_draws} draws",
                ]
            )
        if self.loo is not None:
            bad = f"{self.loo.bad_k} of {self.loo.num_data} k-hats too high" if self.loo.bad_k else "all k-hats good"
            how = "" if self.loo.weighted else ", draws of q taken for the posterior's"
            rows.append(["LOO", f"elpd {self.loo.elpd:.1f} ± {self.loo.se:.1f}", f"p_loo {self.loo.p_loo:.1f}, {bad}{how}"])
        for o in self.observations:
            bits = f"ELBO {o.elbo:.2f}, {o.bits_per_dim:.3f} bits a dimension, {o.num_data} observations"
            rows.append([f"log p({o.observed}), {o.of}", f"{o.log_p:.2f} ± {o.log_p_error:.2g} nats", bits])
            effective = f"{o.bad_k} of {o.num_data} above {o.k_threshold:.2f}, {o.effective_draws:.0f} effective of {self.num_draws} draws"
            rows.append([f"k-hat, {o.of}", f"{o.k_hat:.2f}", f"median; {effective}"])
        for c in self.coverage:
            rows.append([f"{c.prob:.0%} interval", f"{c.share:.0%}", f"of {c.num_data} held-out '{c.site}'"])
        rows += [_score_row(score) for score in self.scores]
        if len(self.restarts) > 1:
            rows.append(["restarts", f"{len(self.restarts)}", self._agreement()])
        return rows

    def _agreement(self) -> str:
        apart = max(r.mean_distance for r in self.restarts)
        of_classes = [r.disagreement for r in self.restarts if r.disagreement is not None]
        if of_classes:
            text = f"mean class probabilities within {max(of_classes):.2g} of the best's"
        else:
            text = f"{'predicted means' if self.functions else 'means'} within {apart:.2g} sd of the best"
        if self.k_verdict in ("absent", "hopeless") and self.functions:
            return text
        return f"{text}; k-hats {', '.join(_k(r) for r in self.restarts)}"

    def _table(self, what: str, latents: Sequence[LatentCheck]) -> list[list[str]]:
        weighted = any(latent.psis_mean is not None for latent in latents)
        referred = any(latent.reference_mean is not None for latent in latents)
        compared = any(latent.apart is not None for latent in latents)
        head = [what, "mean", "sd"] + (["PSIS mean", "PSIS sd"] if weighted else []) + (["restarts apart"] if compared else [])
        head += [f"{self.reference} mean", f"{self.reference} sd", "mean error", "sd error"] if referred else []
        rows = [head]
        for x in latents:
            row = [x.name, _number(x.mean), _number(x.sd)]
            row += [_number(x.psis_mean), _number(x.psis_sd)] if weighted else []
            row += ["" if x.apart is None else f"{x.apart:.2f} sd"] if compared else []
            if referred:
                row += [_number(x.reference_mean), _number(x.reference_sd)]
                row += [
                    "" if x.mean_error is None else f"{x.mean_error:+.2f} sd",
                    "" if x.sd_error is None else f"{x.sd_error:+.0%}",
                ]
            rows.append(row)
        return rows


def _number(x: float | None) -> str:
    return "" if x is None else f"{x:.4g}"


def _score_row(score: ScoreCheck) -> list[str]:
    if score.accuracy is not None:
        return [
            "held out",
            f"accuracy {score.accuracy:.1%}, NLL {score.nll:.3f} nats",
            f"confidence {score.confidence:.1%}, ECE {score.ece:.3f}, of {score.num_data} '{score.site}'",
        ]
    return [
        "held out",
        f"rmse {score.rmse:.4g}",
        f"log density {score.log_density:.3f} nats, of {score.num_data} '{score.site}'",
    ]


def _k(restart: RestartCheck) -> str:
    return restart.verdict if restart.k_hat is None else f"{restart.k_hat:.2f}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _columns(rows: Sequence[Sequence[str]], *, numbers: bool = False) -> list[str]:
    """Aligned columns; all but the first to the right for numbers."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(w) if numbers and k else cell.ljust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines
