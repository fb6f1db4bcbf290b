"""Bias and variance of the ELBO's gradient estimators, measured.

    reinforce              f grad log q for every draw, f = log p(x, z) - log q(z)
    reinforce_baseline     (f - b) grad log q, b the other particles' mean of f, or a constant from draws of their own
    reparametrized         z = g(e), the gradient flows through the draw
    local, flipout         the same with the noise of a network's weights drawn in its layers; see `layer_noise`
    sticking_the_landing   reparametrised, log q without the gradient of its own parameters; see `guides.path_derivative`

All aim at the same gradient, that of the negative ELBO, at the same parameters; `reinforce` says why the lecture's formula
may leave out E_q[grad log q]. Lecture: "Gradient-Based Variational Inference" ("this gradient estimator has too much
variance in practice"), "Reparametrization Trick".
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..engine.convergence import Plan
from ..engine.guide_start import start_guide
from ..engine.owned import Owned, is_builder, own
from ..engine.restart import Restart, Settings, Wishes
from ..result import Fit
from ..runner import _check_batches, resolve_device
from ..target.program import check_data, sample_sites
from .gradient_draws import GradientDraws, RandomLoss
from .gradient_moments import Moments, mean_and_error, squared_norm
from .gradient_table import EstimatorCheck, GradientVariance
from .layer_noise import LayerNoise
from .objective import Objective
from .reinforce import Reinforce, is_random

ESTIMATORS = ("reinforce", "reinforce_baseline", "reparametrized", "local", "flipout", "sticking_the_landing")

_NOISE: dict[str, LayerNoise] = {"reparametrized": "shared", "local": "local", "flipout": "flipout"}

#: Error bars come from the spread of so many blocks: an error bar is then itself known to 10 %.
BLOCKS = 50
#: The fewest gradients: ten blocks of four.
FEWEST = 40
#: Losses behind a constant baseline.
PILOTS = 200

#: Sequences of noise beside those of the estimators.
_REFERENCE, _PILOT, _CLOCK = range(len(ESTIMATORS), len(ESTIMATORS) + 3)

_WISHES = Wishes(None, None, (), False, None, False, Plan(), None)


def gradient_variance(
    model: Any,
    guide: Any = None,
    data: Any = None,
    estimators: Sequence[str] | None = None,
    *,
    batch_size: int | None = None,
    num_samples: int = 400,
    num_reference: int | None = None,
    num_particles: int = 1,
    loss: Literal["auto", "monte_carlo", "analytic_kl"] = "auto",
    seed: int = 0,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
) -> GradientVariance:
    """Measures bias and variance of gradient estimators at one setting of the parameters.

    Args:
        model: a Pyro callable; or a `Fit`, measured at its best restart's parameters, with its guide and data.
        guide: a family's name or a builder `(model, data) -> guide`, measured where a fit would begin; or a ready guide,
            measured at the parameters that it has.
        data: a `bayeszoo.data.Data`.
        estimators: names; None takes all that apply.
        batch_size: rows of one gradient; None takes all rows, or for a fit as many as it was trained with.
        num_samples: gradients of each estimator, at least 40; up to 50 blocks of them give the error bars.
        num_reference: gradients of the reference, by default four times as many: reparametrised ones where there are such,
            else REINFORCE with its baseline. All estimators see the reference's batches, so that these drop out of the bias.
        num_particles: draws that one gradient averages; with two or more the baseline is the mean of the others.
        loss: whether `reparametrized`, `local` and `flipout` take the KL from draws or in closed form, as in `bayeszoo.fit`;
            the other estimators need log q of their draws.

    Returns:
        A `GradientVariance`; `print` shows its table.

    Raises:
        ValueError: one sentence for what was wrong, such as an estimator that was asked for and does not apply.
    """
    names = _check_arguments(estimators, num_samples, num_reference, num_particles, batch_size, loss)
    if isinstance(model, Fit):
        if guide is not None or data is not None:
            raise ValueError("a fit brings its own guide and data; leave out guide and data")
        owned, data, settings, begin = model.run.owned, model.data, model.settings, False
        batch_size = settings.batch_size if batch_size is None else batch_size
        wanted = settings.estimator if loss == "auto" else loss
    else:
        if guide is None or data is None:
            raise ValueError("gradient_variance needs a model, a guide and data, or a fit alone")
        check_data(model, data)
        name = guide if isinstance(guide, str) else ""
        guide = _family(guide) if isinstance(guide, str) else guide
        device = resolve_device(device)
        data = data.to(device, dtype)
        owned = own(model, guide, data, data.dtype if dtype is None else dtype, device, seed)
        settings = Settings(name, None, "marginalize", None, None, 1, None, 1, seed, {})
        wanted, begin = None if loss == "auto" else loss, not isinstance(guide, nn.Module) and is_builder(guide)
    batch_size = None if batch_size is not None and batch_size >= len(data) else batch_size
    if batch_size is not None:
        _check_batches(owned.model)
    wanted = None if wanted == "importance_weighted" else wanted
    settings = dataclasses.replace(settings, estimator=wanted, batch_size=batch_size, num_particles=num_particles)
    before = getattr(owned.guide, "path_derivative", None)
    with owned.active(seed), warnings.catch_warnings():
        # Of mapped values `pyro.module` says that they want no gradient.
        warnings.filterwarnings("ignore", ".*was not registered in the param store")
        try:
            return _Measurement(owned, data, settings, num_samples, num_reference, seed, begin).run(names)
        finally:
            if before is not None:
                owned.guide.path_derivative = before


class _DoesNotApply(Exception):
    """Why an estimator cannot be had for this model and guide: part of a sentence."""


@dataclass
class _Candidate:
    """One estimator, ready to be drawn from."""

    loss: RandomLoss
    kl: str
    path_derivative: bool = False


class _Measurement:
    """One call of `gradient_variance`, inside `owned.active`.

    Args:
        begin: whether the guide is to be put where a fit would begin.
    """

    def __init__(
        self, owned: Owned, data: Any, settings: Settings, num: int, num_reference: int | None, seed: int, begin: bool
    ) -> None:
        self.owned, self.data, self.settings, self.seed = owned, data, settings, seed
        blocks = min(BLOCKS, num // 4)
        per_block = -(-num // blocks)
        per_block += per_block % 2 if settings.batch_size is not None else 0  # two draws a batch
        self.num = blocks * per_block
        self.copies = 4 if num_reference is None else max(1, -(-num_reference // self.num))
        self.full: Mapping[str, Any] = data.bind(owned.model)
        self.plain = self._objective("shared")
        if begin:
            start_guide(owned, self.plain, self.full, 0, mode=False)
        self.guide_name = settings.guide or getattr(owned.guide, "family", "") or _name_of(owned.guide)
        self.random = self._random_sites()
        if not self.random:
            raise ValueError(
                f"guide '{self.guide_name}' draws nothing, so there are no gradient estimators to compare; use 'mean_field'"
            )
        self.draws = GradientDraws(owned, data, settings.batch_size, settings.num_particles, blocks, per_block, seed)

    def run(self, names: Sequence[str] | None) -> GradientVariance:
        """The estimators of these names, None for all that apply."""
        found: dict[str, _Candidate] = {}
        absent: dict[str, str] = {}
        for name in ESTIMATORS if names is None else names:
            try:
                found[name] = self._candidate(name)
            except _DoesNotApply as error:
                if names is not None:
                    raise ValueError(f"estimator '{name}' does not apply here: {error}; leave it out") from error
                absent[name] = str(error)
        reference = "reinforce_baseline" if self._without_reparametrization() else "reparametrized"
        aim = self._candidate(reference)
        blocks = self._gradients(aim, _REFERENCE, self.copies)
        truth = torch.stack([g.double().mean(0) for g in blocks]).unflatten(0, (-1, self.copies)).mean(1)
        squared, squared_error = squared_norm(truth)
        return GradientVariance(
            _name_of(self.owned.model),
            self.guide_name,
            "surrogate loss" if self.plain.surrogate else "negative ELBO",
            {name: self._check(name, candidate, truth) for name, candidate in found.items()},
            absent,
            self.num,
            self.settings.num_particles,
            self.settings.batch_size,
            reference,
            self.num * self.copies,
            squared,
            squared_error,
            self.draws.mapped,
            self.seed,
        )

    def _check(self, name: str, candidate: _Candidate, truth: Tensor) -> EstimatorCheck:
        moments = Moments(grouped=self.settings.batch_size is not None)
        for gradients in self._gradients(candidate, ESTIMATORS.index(name)):
            moments.add(gradients)
        if not all(math.isfinite(total) for total in moments.totals):
            raise ValueError(f"the gradient of '{name}' is not finite at these parameters; measure somewhere else")
        squared_bias = squared_norm(torch.stack(moments.means) - truth)
        return EstimatorCheck(
            name,
            candidate.kl,
            *mean_and_error(moments.totals),
            *mean_and_error(moments.within),
            *squared_bias,
            self.draws.split(moments.per_parameter),
            self.draws.seconds(candidate.loss, _CLOCK),
            tuple(moments.totals),
            tuple(moments.within),
        )

    def _gradients(self, candidate: _Candidate, stream: int, copies: int = 1) -> Iterator[Tensor]:
        self._path_derivative(candidate.path_derivative)
        return self.draws.blocks(candidate.loss, stream, copies)

    def _candidate(self, name: str) -> _Candidate:
        """An estimator.

        Raises:
            _DoesNotApply: there is no such estimator here.
        """
        if name in ("reinforce", "reinforce_baseline"):
            return self._reinforce(baseline=name == "reinforce_baseline")
        site = self._without_reparametrization()
        if site:
            raise _DoesNotApply(f"the draws of '{site}' have no reparametrisation")
        if name == "sticking_the_landing":
            return self._sticking_the_landing()
        noise = _NOISE[name]
        if noise != "shared":
            self._require_layers(noise)
        objective = self._objective(noise)
        closed = objective.estimator == "analytic_kl"
        return _Candidate(objective, "none" if objective.surrogate else "closed form" if closed else "drawn")

    def _require_layers(self, noise: LayerNoise) -> None:
        met = dataclasses.replace(self.plain, layer_noise=noise).probe_layers(self.full)
        if met is None or not met.used:
            raise _DoesNotApply(
                f"guide '{self.guide_name}' draws no weights that enter a linear layer or a convolution one by one"
            )

    def _reinforce(self, *, baseline: bool) -> _Candidate:
        if self.plain.surrogate is not None:
            raise _DoesNotApply(f"guide '{self.guide_name}' is trained without a density")
        loss = Reinforce(self.plain.program, self.owned.model, self.owned.guide)
        if baseline and self.settings.num_particles > 1:
            loss.baseline = "others"
        elif baseline:
            self._path_derivative(False)
            loss.baseline = -float(self.draws.losses(loss, _PILOT, PILOTS).mean())
        return _Candidate(loss, "drawn")

    def _sticking_the_landing(self) -> _Candidate:
        if self.plain.surrogate is not None:
            raise _DoesNotApply(f"guide '{self.guide_name}' is trained without a density")
        self._path_derivative(True)
        if not all(hasattr(_unwrapped(site["fn"]), "frozen") for site in self._random_sites().values()):
            raise _DoesNotApply(
                f"guide '{self.guide_name}' has no form of log q that takes no gradient through its own parameters"
            )
        objective = self._objective("shared", estimator="monte_carlo")
        return _Candidate(objective, "drawn", path_derivative=True)

    def _objective(self, layer_noise: LayerNoise, **changes: Any) -> Objective:
        """The loss as the runner makes it; `changes` to the settings."""
        self._path_derivative(False)  # the closed form of a KL needs q as it is
        settings = dataclasses.replace(self.settings, layer_noise=layer_noise, **changes)
        try:
            objective = Restart(0, self.owned, self.data, settings, _WISHES)._objective()
        except ValueError as error:
            if layer_noise == "shared":
                raise
            # What the runner says would be wrong, without the advice that follows.
            raise _DoesNotApply(str(error).split(";")[0]) from error
        finally:
            self._path_derivative(False)
        objective.each.vectorized = False  # particles are looped over: the draws around them are mapped
        return objective

    def _path_derivative(self, on: bool) -> None:
        if hasattr(self.owned.guide, "path_derivative"):
            self.owned.guide.path_derivative = on

    def _random_sites(self) -> dict[str, Any]:
        """The sites that the guide draws, but for those whose states it sums over."""
        trace = self.plain.guide_trace(self.full)
        enumerated = self.plain.program.discrete if self.plain.discrete == "guide" else {}
        return {name: site for name, site in sample_sites(trace) if is_random(site) and name not in enumerated}

    def _without_reparametrization(self) -> str:
        """The first site whose draws carry no gradient, or nothing."""
        return next((name for name, site in self.random.items() if not site["fn"].has_rsample), "")


def _family(name: str) -> Callable[..., Any]:
    """The builder of a family. Inference knows no guides; their names are the package's, which is asked when it is called."""
    guides = importlib.import_module("...guides", __package__)
    guides.get(name)

    def build(model: Callable[..., Any], data: Any) -> Any:
        return guides.build(name, model, data)

    return build


def _unwrapped(fn: Any) -> Any:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def _name_of(part: Any) -> str:
    return type(part).__name__ if isinstance(part, nn.Module) else getattr(part, "__name__", "guide")


def _check_arguments(
    estimators: Sequence[str] | None,
    num_samples: int,
    num_reference: int | None,
    num_particles: int,
    batch_size: int | None,
    loss: str,
) -> tuple[str, ...] | None:
    numbers = {"num_samples": (num_samples, FEWEST), "num_particles": (num_particles, 1)}
    optional = {"num_reference": (num_reference, 1), "batch_size": (batch_size, 1)}
    for name, (value, least) in (numbers | {k: v for k, v in optional.items() if v[0] is not None}).items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if loss not in ("auto", "monte_carlo", "analytic_kl"):
        raise ValueError(f"loss must be 'auto', 'monte_carlo' or 'analytic_kl', which are ELBOs, got {loss!r}")
    if estimators is None:
        return None
    names = (estimators,) if isinstance(estimators, str) else tuple(estimators)
    for name in names:
        if name not in ESTIMATORS:
            near = difflib.get_close_matches(str(name), ESTIMATORS, 1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ValueError(f"unknown gradient estimator {name!r}; {hint}the estimators are {', '.join(ESTIMATORS)}")
    if not names:
        raise ValueError(f"estimators names none; leave it out for all that apply, or choose from {', '.join(ESTIMATORS)}")
    return tuple(dict.fromkeys(names))
