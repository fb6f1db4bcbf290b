"""The shared SVI runner: one way from (model, data, guide) to a fit."""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.guides import AutoGuide
from torch import Tensor, nn

from .compiled import Compiler, Mode
from .convergence import Plan, Tail
from .density import EachDraw, discrete_marginals, log_joint, model_factors, total
from .noise import kept_generators
from .objective import ESTIMATORS, Discrete, Estimator, Objective, has_analytic_kl
from .owned import Owned
from .program import Program, describe, is_point_estimate, sample_sites
from .progress import progress_callback
from .result import Fit, Run
from .schedule import SCHEDULES, Schedule, constant, cosine, run_automatic, run_fixed
from .start import Start, find_start
from .tables import Tables
from .training import Callback, History, Loop, NonFiniteError

type GuideBuilder = Callable[..., Any]

#: Step size of Adam where the number of steps is given and no optimiser is.
DEFAULT_STEP = 0.02
#: Steps between two looks at held-out data.
VALIDATION_EVERY = 50


@dataclass(frozen=True)
class Settings:
    """What was asked of the runner, as it is recorded in a fit."""

    guide: str
    estimator: Estimator | None
    discrete: Discrete
    steps: int | None
    batch_size: int | None
    num_particles: int
    clip_norm: float | None
    restarts: int
    seed: int
    guide_options: Mapping[str, Any]


def fit(
    model: Callable[..., Any],
    data: Any,
    guide: GuideBuilder,
    *,
    guide_name: str = "",
    loss: Estimator | Literal["auto"] = "auto",
    optimizer: Any = None,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    num_particles: int | None = None,
    schedule: str | Schedule | None = None,
    clip_norm: float | None = None,
    restarts: int = 1,
    seed: int = 0,
    discrete: Discrete = "marginalize",
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
    validation: Any = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    compile: Mode = "auto",
    guide_options: Mapping[str, Any] | None = None,
    plan: Plan | None = None,
) -> Fit:
    """Fits a variational posterior; the front door's `bayeszoo.fit` documents every argument.

    Args:
        guide: a builder `(model, data) -> guide`, or a ready guide (a module, or a function with the model's arguments).
    """
    _check_numbers(steps, epochs, batch_size, num_particles, clip_norm, restarts, loss, discrete)
    device = resolve_device(device)
    began = time.perf_counter()
    check = getattr(model, "check", None)
    if callable(check):
        check(data)
    data = data.to(device, dtype)
    dtype = data.dtype if dtype is None else dtype
    batch_size = None if batch_size is not None and batch_size >= len(data) else batch_size
    if batch_size is not None:
        _check_batches(model)
    if epochs is not None:
        steps = epochs * max(1, len(data) // (batch_size or len(data)))
    settings = Settings(
        guide_name,
        None if loss == "auto" else loss,
        discrete,
        steps,
        batch_size,
        num_particles or 1,
        clip_norm,
        restarts,
        seed,
        dict(guide_options or {}),
    )
    runs = []
    for restart in range(restarts):
        owned = _own(model, guide, data, dtype, device, seed + restart)
        with owned.active(seed + 7919 * restart):
            runner = _Runner(
                owned, data, settings, optimizer, schedule, callbacks, progress, plan or Plan(), validation, compile
            )
            try:
                runs.append(runner.run(restart))
            except NonFiniteError as error:
                if runner.partial is not None:
                    runs.append(runner.partial)
                if runs:
                    error.fit = Fit(tuple(runs), _best(runs), data, settings, time.perf_counter() - began)
                raise
            if runner.interrupted:
                break
    best = _best(runs)
    return Fit(runs=tuple(runs), best=best, data=data, settings=settings, seconds=time.perf_counter() - began)


def _best(runs: Sequence[Run]) -> int:
    """The run with the lowest loss; a loss that is NaN comes last."""
    return min(range(len(runs)), key=lambda r: (math.isnan(runs[r].loss), runs[r].loss))


def _own(model: Any, guide: GuideBuilder, data: Any, dtype: torch.dtype, device: torch.device, seed: int) -> Owned:
    """Private copies of model and guide on the device; a builder makes its guide from the copy."""
    ready = isinstance(guide, nn.Module) or not _is_builder(guide)
    shared = {"model": model, "guide": guide if ready else None}
    # Copied together, so that a module which both of them hold stays one module.
    originals = {k: v for k, v in shared.items() if isinstance(v, nn.Module)}
    with _whole_autoguides(originals.get("guide")) as links:
        shared = copy.deepcopy(originals)
    own_model = shared.get("model", model)
    for part, wrapped in zip(shared["guide"].modules() if links else (), links, strict=True):
        if wrapped is not None:
            part._model = (own_model if wrapped is model else wrapped,)
    if isinstance(own_model, nn.Module):
        own_model.to(device=device, dtype=dtype)
    owned = Owned(own_model, shared.get("guide", guide), dtype, device)
    if ready:
        if isinstance(owned.guide, nn.Module):
            owned.guide.to(device=device, dtype=dtype)
        return owned
    with owned.active(seed):
        owned.guide = guide(own_model, data)
        if isinstance(owned.guide, nn.Module):
            owned.guide.to(device=device, dtype=dtype)
    return owned


def _has_auxiliary(trace: Any) -> bool:
    """Whether the guide draws through an auxiliary site, as joint densities do: its `Delta` sites are then no points."""
    return any(site["infer"].get("is_auxiliary") for _, site in sample_sites(trace))


@contextlib.contextmanager
def _whole_autoguides(guide: nn.Module | None) -> Iterator[list[Any]]:
    """Pyro's autoguides lose their model and master when they are copied, the original too: this puts the original's back.

    Yields:
        For each submodule of the guide, the model that it wraps, or None.
    """
    parts = list(guide.modules()) if guide is not None else []
    kept = [(part, part._model, part.master) for part in parts if isinstance(part, AutoGuide)]
    links = {id(part): model[0] for part, model, _ in kept if model is not None}
    yield [links.get(id(part)) for part in parts]
    for part, model, master in kept:
        part._model, part.master = model, master


def _is_builder(guide: Any) -> bool:
    """A builder's first two parameters are `model` and `data`; anything else is a guide."""
    if isinstance(guide, functools.partial):
        return _is_builder(guide.func)
    try:
        names = list(inspect.signature(guide).parameters)
    except (TypeError, ValueError):
        return False
    return names[:2] == ["model", "data"] or (inspect.isclass(guide) and len(names) >= 1 and names[0] == "model")


class _Runner:
    """One restart."""

    def __init__(
        self,
        owned: Owned,
        data: Any,
        settings: Settings,
        optimizer: Any,
        schedule: str | Schedule | None,
        callbacks: Sequence[Callback],
        progress: bool,
        plan: Plan,
        validation: Any,
        compile: Mode,
    ) -> None:
        self.owned, self.data, self.settings = owned, data, settings
        self.optimizer, self.schedule, self.callbacks, self.plan = optimizer, schedule, list(callbacks), plan
        self.progress, self.validation = progress, validation
        self.program: Program = describe(owned.model, data)
        self.full: Mapping[str, Any] = data.bind(owned.model)
        self.compiler = Compiler(compile, (owned.model, owned.guide), bool(getattr(data, "streamed", False)))
        self.partial: Run | None = None
        self.interrupted = False

    def run(self, restart: int) -> Run:
        began = time.perf_counter()
        owned, settings = self.owned, self.settings
        guide = owned.guide
        objective = self._objective()
        start = self._start(objective, restart)
        history = History()
        history.seconds["start"] = time.perf_counter() - began
        evidence_only = start is not None and objective.surrogate is not None and self.optimizer is None
        if evidence_only and settings.steps is None and settings.batch_size is None:
            assert start is not None
            history.losses = [float(x) for x in start.losses]
            history.converged = start.converged
            history.stop_reason = (
                "converged: the gradient is gone"
                if start.converged
                else f"not converged: {start.note or 'the climb had not ended'}"
            )
        else:
            self._train(objective, history, start, restart)
        run = Run(owned, self.program, objective, history, restart, time.perf_counter() - began, getattr(guide, "family", ""))
        began = time.perf_counter()
        run.evaluate(self.data, settings.seed)
        history.seconds["evaluation"] = time.perf_counter() - began
        if start is not None and objective.surrogate is None and not history.losses:
            history.losses = [float(x) for x in start.losses] or [run.loss]
            history.converged = start.converged
            history.stop_reason = "converged: the mode was found" if start.converged else f"not converged: {start.note}"
        elif not history.losses:
            history.losses = [run.loss]
        return run

    def _objective(self) -> Objective:
        owned, settings, program = self.owned, self.settings, self.program
        guide = owned.guide
        # The first call makes lazy guides build their parameters.
        trace = poutine.trace(guide).get_trace(**self.full)
        surrogate = self._check_guide(trace)
        estimator = settings.estimator
        if estimator is None:
            analytic = getattr(guide, "factorized", False) and has_analytic_kl(program, owned.model, guide, self.full)
            estimator = "analytic_kl" if analytic else "monte_carlo"
        if surrogate is not None and settings.estimator is not None:
            raise ValueError(
                f"loss='{settings.estimator}' is a bound on the evidence, and guide '{settings.guide}' is a point without a "
                "density; leave out loss"
            )
        if estimator == "monte_carlo" and hasattr(guide, "path_derivative"):
            guide.path_derivative = True
        return Objective(
            program, owned.model, guide, estimator, settings.num_particles, settings.discrete, surrogate, EachDraw()
        )

    def _check_guide(self, trace: Any) -> Literal["joint", "likelihood"] | None:
        """The guide's sites against the model's; returns the surrogate that a point guide stands for."""
        drawn = {n: s for n, s in sample_sites(trace) if not s["is_observed"] and not s["infer"].get("is_auxiliary")}
        missing = [n for n in self.program.continuous if n not in drawn]
        if missing:
            raise ValueError(
                f"the guide has no site for the continuous latent '{missing[0]}'; every continuous latent of the model "
                f"needs one (it draws: {', '.join(drawn) or 'nothing'})"
            )
        extra = [n for n in drawn if n not in self.program.latents]
        if extra:
            close = difflib.get_close_matches(extra[0], list(self.program.latents), 1)
            hint = f"did you mean '{close[0]}'?" if close else "mark it infer={'is_auxiliary': True} if that is meant"
            raise ValueError(f"the guide draws '{extra[0]}', which is no latent site of the model; {hint}")
        if self.settings.discrete == "guide":
            without = [n for n in self.program.discrete if n not in drawn]
            if without:
                raise ValueError(
                    f"discrete='guide' enumerates the guide's discrete sites, and the guide has none for '{without[0]}'; add "
                    "one, or use discrete='marginalize'"
                )
        surrogate: Literal["joint", "likelihood"] | None = getattr(self.owned.guide, "surrogate", None)
        points = [is_point_estimate(trace.nodes[name]) for name in self.program.continuous]
        if surrogate is None and points and all(points) and not _has_auxiliary(trace):
            return "joint"
        return surrogate

    def _start(self, objective: Objective, restart: int) -> Start | None:
        """The quasi-Newton start, for guides that take one."""
        guide = self.owned.guide
        if isinstance(getattr(guide, "continuous", None), nn.Module):
            guide = guide.continuous  # the discrete tables follow from the continuous start
        if not hasattr(guide, "initialize") or not hasattr(guide, "space") or getattr(self.data, "streamed", False):
            return None
        space, program, model = guide.space, self.program, self.owned.model

        def log_density(u: Tensor) -> Tensor:
            if objective.surrogate == "likelihood":
                factors = model_factors(program, model, self.full, space.constrain(u))
                return total(factor for factor in factors if factor.observed)
            values, log_det = {}, torch.zeros(())
            for name, (value, part) in space.constrain_with_log_det(u).items():
                values[name] = value
                log_det = log_det + part.sum()
            log_p = log_joint(program, model, self.full, values)
            return log_p if objective.surrogate == "joint" else log_p + log_det

        each = EachDraw()

        def batched(points: Tensor) -> Tensor:
            result: Tensor = each(lambda v: log_density(v["u"]), {"u": points})
            return result

        u = guide.center.detach().clone()
        if restart:
            u = u + 2.0 * torch.rand_like(u) * torch.sign(torch.randn_like(u))
        with _frozen(self.owned):
            if not math.isfinite(float(log_density(u).detach())):
                u = _finite_point(log_density, u)

            def elsewhere() -> Tensor:
                # Unconstrained coordinates have unit scale for standardised models; a prior's own sd where it has one.
                point = guide.center + torch.randn_like(u) * _prior_scale(space)
                return point if math.isfinite(float(log_density(point))) else _finite_point(log_density, u)

            start = find_start(log_density, u, batched=batched, others=[elsewhere] * (4 if objective.surrogate is None else 2))
        guide.initialize(start)
        if guide is not self.owned.guide:
            with torch.no_grad():
                self.owned.guide.set_tables(discrete_marginals(program, model, self.full, space.constrain(start.mean)))
        if restart and objective.surrogate is None:
            guide.disperse()
        return start

    def _train(self, objective: Objective, history: History, start: Start | None, restart: int) -> None:
        owned, settings = self.owned, self.settings
        objective(self.full)  # plain functions make their parameters in the first call
        named = {n: p for n, p in owned.parameters().items() if p.requires_grad}
        if not named:
            history.converged = start is None
            history.stop_reason = "the guide has no parameters to train"
            return
        scale_free = hasattr(owned.guide, "summary") and start is not None and all(n.startswith("guide.") for n in named)
        automatic = settings.steps is None
        rate = self.plan.first_step if automatic and scale_free else DEFAULT_STEP
        # Near an optimum that the family reaches, Adam divides small gradients by eps: the step must not outgrow the curvature (1).
        make, own_rate = _optimizer(self.optimizer, rate, 0.04 if scale_free else 1e-8)
        plan = self.plan
        if automatic and (self.optimizer is not None or not scale_free):
            chosen: Any = own_rate or getattr(owned.guide, "first_step", rate)
            first = float(chosen)
            plan = Plan(first_step=first, last_step=first / 16, max_steps=plan.max_steps, window=200)
        tail = Tail(list(named.values()), owned.guide.summary if scale_free else None) if automatic else None
        loop = Loop(
            objective,
            named,
            self._batch,
            self._tables(objective, tail),
            make(list(named.values())),
            settings.clip_norm,
            history=history,
            total_steps=settings.steps,
            tail=tail,
            callbacks=list(self.callbacks),
            compile=self.compiler,
        )
        if self.validation is not None:
            loop.watchers, loop.pause = [self._validator(objective, history)], VALIDATION_EVERY
        began = time.perf_counter()
        with progress_callback(self.progress, settings.guide or "guide", settings.steps, restart, settings.restarts) as shown:
            loop.watchers = [*loop.watchers, *shown]
            try:
                if automatic:
                    run_automatic(loop, plan)
                else:
                    assert settings.steps is not None
                    run_fixed(loop, settings.steps, self._schedule())
            except NonFiniteError as error:
                history.stop_reason = f"not converged: {error}"
                if history.losses:
                    self.partial = Run(
                        owned, self.program, objective, history, restart, math.nan, getattr(owned.guide, "family", "")
                    )
                    self.partial.loss = history.losses[-1]
                raise
            except KeyboardInterrupt:
                self.interrupted = True
                history.stop_reason = f"interrupted after {len(history.losses)} steps"
            finally:
                seconds = time.perf_counter() - began
                history.seconds |= {"compile": self.compiler.seconds, "steps": seconds - self.compiler.seconds}

    def _batch(self, index: Tensor | None) -> Mapping[str, Any]:
        return self.full if index is None else self.data.batch(index, self.owned.model)

    def _tables(self, objective: Objective, tail: Tail | None) -> Tables:
        size, summary = self.settings.batch_size, tail.summary if tail is not None else None
        index = None if size is None else torch.arange(size, device=self.owned.device)
        normals, uniforms = objective.count_noise(self._batch(index))
        return Tables(
            (self.settings.num_particles,),
            normals,
            uniforms,
            batches=None if size is None else self._indices(size),
            batch_size=size or 0,
            summary_shape=None if summary is None else summary().shape,
            dtype=self.owned.dtype,
            device=self.owned.device,
            seed=int(torch.randint(2**62, ())),
        )

    def _indices(self, size: int) -> Iterator[Tensor]:
        epoch = 0
        while True:
            yield from self.data.batches(size, self.settings.seed, epoch)
            epoch += 1

    def _schedule(self) -> Schedule:
        schedule = self.schedule
        if schedule is None:
            return cosine if self.optimizer is None else constant
        if callable(schedule):
            return schedule
        if schedule not in SCHEDULES:
            raise ValueError(
                f"unknown schedule '{schedule}'; choose one of {', '.join(SCHEDULES)}, or pass a function (step, steps) -> factor"
            )
        return SCHEDULES[schedule]

    def _validator(self, objective: Objective, history: History) -> Callback:
        """Records -E_q log p(y | z) a held-out observation, in nats, every 50 steps."""
        held_out = self.validation.to(self.owned.device, self.data.dtype)
        kwargs = held_out.bind(self.owned.model)

        def callback(progress: Any) -> None:
            if progress.step % VALIDATION_EVERY and progress.step != 1:
                return
            with torch.no_grad(), kept_generators():
                values = []
                for _ in range(16):
                    trace = objective.guide_trace(self.full)
                    drawn = {
                        n: s["value"]
                        for n, s in sample_sites(trace)
                        if n in self.program.latents and not self.program.latents[n].local
                    }
                    factors = model_factors(self.program, self.owned.model, kwargs, drawn)
                    values.append(sum(float(f.log_prob.sum()) for f in factors if f.observed))
            history.validation.append((progress.step, -sum(values) / len(values) / len(held_out)))

        return callback


class _frozen:
    """The model's own parameters take no gradient while the start climbs over the latents."""

    def __init__(self, owned: Owned) -> None:
        self.parameters = [p for p in owned.parameters().values() if p.requires_grad]

    def __enter__(self) -> None:
        for p in self.parameters:
            p.requires_grad_(False)

    def __exit__(self, *error: object) -> None:
        for p in self.parameters:
            p.requires_grad_(True)


def _prior_scale(space: Any) -> Tensor:
    """(D,) each real-valued site's prior sd, one in the unconstrained coordinates of other sites."""
    parts = []
    for name, shape in space.shapes.items():
        site = space.sites[name]
        scale = torch.ones(shape)
        if shape == site.shape:
            with contextlib.suppress(NotImplementedError, AttributeError, ValueError):
                sd = site.distribution.variance.sqrt().expand(shape)
                if site.support.event_dim <= 1 and bool(torch.isfinite(sd).all()) and site.support.check(-sd).all():
                    scale = sd
        parts.append(scale.reshape(-1))
    return torch.cat(parts)


def _finite_point(log_density: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    for scale in (0.0, 0.1, 0.5, 1.0, 2.0):
        for _ in range(10):
            trial = torch.randn_like(u) * scale
            if math.isfinite(float(log_density(trial).detach())):
                return trial
    raise ValueError(
        "the log density is not finite anywhere near the prior's mean: look for observations outside the likelihood's "
        "support, NaN in the data, or a prior without mass"
    )


def _optimizer(
    optimizer: Any, rate: float, eps: float = 1e-8
) -> tuple[Callable[[list[Any]], torch.optim.Optimizer], float | None]:
    """A maker of torch optimisers from what people pass: nothing, a number, a class, or a partial."""
    if optimizer is None:
        return functools.partial(torch.optim.Adam, lr=rate, betas=(0.9, 0.99), eps=eps), None
    if isinstance(optimizer, (int, float)) and not isinstance(optimizer, bool):
        if not optimizer > 0:
            raise ValueError(f"optimizer={optimizer} is a learning rate of Adam, which must be positive")
        return functools.partial(torch.optim.Adam, lr=float(optimizer)), float(optimizer)
    if isinstance(optimizer, pyro.optim.PyroOptim):
        raise ValueError(
            f"optimizer is a Pyro optimiser ({type(optimizer).__name__}); pass torch's own, as functools.partial(torch.optim.Adam, lr=0.01)"
        )
    if callable(optimizer) and not isinstance(optimizer, torch.optim.Optimizer):
        probe = optimizer([nn.Parameter(torch.zeros(1))])
        return optimizer, float(probe.param_groups[0]["lr"])
    raise ValueError(
        "optimizer must be a learning rate, a torch.optim class or a functools.partial of one: the runner makes the optimiser "
        "itself, once the guide's parameters exist"
    )


def resolve_device(device: str | torch.device) -> torch.device:
    """The device that was asked for; "auto" is the GPU where there is one."""
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.zeros(1, device=resolved)
    except (RuntimeError, AssertionError) as error:
        have = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
        raise ValueError(f"device '{device}' is not there; this machine has {', '.join(have)}") from error
    return resolved


def _check_batches(model: Any) -> None:
    signature = inspect.signature(model.forward if isinstance(model, nn.Module) else model)
    lacking = [name for name in ("num_data", "index") if name not in signature.parameters]
    if lacking:
        raise ValueError(
            f"batch_size needs a model that takes num_data and index, and this one lacks {' and '.join(lacking)}: open its plate as "
            "pyro.plate('data', num_data or len(x), subsample=index), or leave out batch_size"
        )


def _check_numbers(
    steps: int | None,
    epochs: int | None,
    batch_size: int | None,
    num_particles: int | None,
    clip_norm: float | None,
    restarts: int,
    loss: str,
    discrete: str,
) -> None:
    if steps is not None and epochs is not None:
        raise ValueError("pass either steps or epochs, not both")
    for name, value in {
        "steps": steps,
        "epochs": epochs,
        "batch_size": batch_size,
        "num_particles": num_particles,
        "restarts": restarts,
    }.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm is the greatest global norm of the gradient and must be positive, got {clip_norm!r}")
    if loss not in (*ESTIMATORS, "auto"):
        raise ValueError(f"unknown loss '{loss}'; choose 'auto', {', '.join(repr(e) for e in ESTIMATORS)}")
    if discrete not in ("marginalize", "guide"):
        raise ValueError(f"discrete must be 'marginalize' or 'guide', got {discrete!r}")
