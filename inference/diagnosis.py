"""What `diagnose` answers: numbers for programs, a small table for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

#: Latents in the printed table.
SHOWN = 6


@dataclass(frozen=True)
class LatentCheck:
    """The marginal of one scalar latent.

    Attributes:
        name: the site and the entry, `theta[intercept]`.
        mean, sd: of the draws.
        psis_mean, psis_sd: the same, weighted by p / q; None where there are no weights.
        reference_mean, reference_sd: of the reference, if there is one.
    """

    name: str
    mean: float
    sd: float
    psis_mean: float | None = None
    psis_sd: float | None = None
    reference_mean: float | None = None
    reference_sd: float | None = None

    @property
    def shift(self) -> float | None:
        """(mean - PSIS mean) in PSIS sds."""
        return _distance(self.mean, self.psis_mean, self.psis_sd)

    @property
    def sd_change(self) -> float | None:
        """sd / PSIS sd - 1."""
        return _change(self.sd, self.psis_sd)

    @property
    def mean_error(self) -> float | None:
        """(mean - reference mean) in reference sds."""
        return _distance(self.mean, self.reference_mean, self.reference_sd)

    @property
    def sd_error(self) -> float | None:
        """sd / reference sd - 1."""
        return _change(self.sd, self.reference_sd)

    @property
    def severity(self) -> float:
        """The worst of all distances, 1 being 0.3 sd or 30 % of an sd."""
        found = [self.shift, self.sd_change, self.mean_error, self.sd_error]
        return max([abs(x) for x in found if x is not None and not math.isnan(x)], default=0.0) / 0.3


@dataclass(frozen=True)
class RestartCheck:
    """One restart beside the best: `mean_distance` in sds of the best, `sd_ratio` the most extreme."""

    loss: float
    k_hat: float | None
    verdict: str
    mean_distance: float
    sd_ratio: float
    converged: bool


@dataclass(frozen=True)
class LooCheck:
    """PSIS-LOO: `elpd` and its error in nats, effective parameters, observations with too high a k-hat."""

    elpd: float
    se: float
    p_loo: float
    bad_k: int
    num_data: int


@dataclass(frozen=True)
class CoverageCheck:
    """Share of held-out observations inside the central predictive interval of probability `prob`."""

    site: str
    prob: float
    share: float
    num_data: int
    discrete: bool

    @property
    def off(self) -> bool:
        """Whether the share misses `prob` by 0.05 and three binomial errors (discrete: falls short of it)."""
        miss = self.prob - self.share
        limit = max(0.05, 3.0 * math.sqrt(self.prob * (1 - self.prob) / self.num_data))
        return miss > limit if self.discrete else abs(miss) > limit


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """How far a fit is from the posterior, as far as can be told.

    Attributes:
        verdict: `good`, `doubtful` where any of `warnings` speaks against it, or `point` for a point guide.
        converged, stop_reason: the optimiser's own word, not the posterior's.
        num_draws: draws behind every number.
        kl, kl_error: KL(q || posterior) = loss + log evidence in nats, with its Monte Carlo standard error.
        k_hat: Pareto shape of p / q; None for point guides and for constant ratios.
        k_verdict: `good`, `too high`, `exact` (constant ratios) or `absent`.
        effective_draws: 1 / sum w^2 of the smoothed weights.
        reference: where the reference comes from, if there is one.
        warnings: one sentence for everything that speaks against the fit.
        notes: one sentence for everything that is absent, and why.
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

    @property
    def verdict(self) -> str:
        """`good`, `doubtful`, or `point` for a point guide that nothing speaks against."""
        return "doubtful" if self.warnings else "point" if self.k_verdict == "absent" else "good"

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it; what is not finite becomes None."""
        out: dict[str, Any] = {"verdict": self.verdict, **asdict(self)}
        for entry, latent in zip(out["latents"], self.latents, strict=True):
            entry |= {k: getattr(latent, k) for k in ("shift", "sd_change", "mean_error", "sd_error")}
        plain = _plain(out)
        assert isinstance(plain, dict)
        return plain

    def __str__(self) -> str:
        lines = [f"{self.model}, guide {self.guide}: {self.verdict}", *_columns(self._facts())]
        worst = sorted(self.latents, key=lambda latent: -latent.severity)[:SHOWN]
        if worst:
            rest = len(self.latents) - len(worst)
            lines += ["", *_columns(self._latent_table(worst), numbers=True)]
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
            rows.append(["LOO", f"elpd {self.loo.elpd:.1f} ± {self.loo.se:.1f}", f"p_loo {self.loo.p_loo:.1f}, {bad}"])
        for c in self.coverage:
            rows.append([f"{c.prob:.0%} interval", f"{c.share:.0%}", f"of {c.num_data} held-out '{c.site}'"])
        if len(self.restarts) > 1:
            apart = max(r.mean_distance for r in self.restarts)
            rows.append(
                [
                    "restarts",
                    f"{len(self.restarts)}",
                    f"means within {apart:.2g} sd of the best; k-hats {', '.join(_k(r) for r in self.restarts)}",
                ]
            )
        return rows

    def _latent_table(self, latents: Sequence[LatentCheck]) -> list[list[str]]:
        weighted = any(latent.psis_mean is not None for latent in latents)
        referred = any(latent.reference_mean is not None for latent in latents)
        head = ["latent", "mean", "sd"] + (["PSIS mean", "PSIS sd"] if weighted else [])
        head += [f"{self.reference} mean", f"{self.reference} sd", "mean error", "sd error"] if referred else []
        rows = [head]
        for x in latents:
            row = [x.name, _number(x.mean), _number(x.sd)]
            row += [_number(x.psis_mean), _number(x.psis_sd)] if weighted else []
            if referred:
                row += [_number(x.reference_mean), _number(x.reference_sd)]
                row += [
                    "" if x.mean_error is None else f"{x.mean_error:+.2f} sd",
                    "" if x.sd_error is None else f"{x.sd_error:+.0%}",
                ]
            rows.append(row)
        return rows


def _distance(a: float, b: float | None, scale: float | None) -> float | None:
    if b is None or scale is None or math.isnan(b):
        return None
    return (a - b) / scale if scale > 0 else (0.0 if a == b else math.inf)


def _change(a: float, b: float | None) -> float | None:
    if b is None or math.isnan(b):
        return None
    return a / b - 1.0 if b > 0 else (0.0 if a == b else math.inf)


def _number(x: float | None) -> str:
    return "" if x is None else f"{x:.4g}"


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
