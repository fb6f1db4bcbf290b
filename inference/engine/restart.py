"""One restart of a fit: start, loop, evaluation."""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from ..estimators.doubly_reparametrized import check_resampling
from ..estimators.free_bits import check_fit
from ..estimators.independence import check_independent_rows
from ..estimators.layer_noise import LayerNoise, by_layer
from ..estimators.objective import Discrete, Estimator, Objective, analytic_kls, where_discrete
from ..estimators.reinforce import is_random
from ..run import Run
from ..target.density import EachDraw, guide_factors, model_factors
from ..target.program import Program, base_of, bound_rows, check_data, describe, is_point_estimate, sample_sites, some_rows
from ..target.start import CLIMB_LIMIT, DENSE_LIMIT, Start
from .compiled import Compiler, Mode
from .convergence import Plan, Tail
from .guide_start import start_guide
from .interrupts import heard_between_steps
from .noise import kept_generators
from .owned import Owned
from .places import is_family
from .progress import progress_callback
from .schedule import SCHEDULES, Schedule, checked, constant, cosine, run_automatic, run_fixed
from .tables import Tables
from .training import Callback, History, Loop, NonFiniteError

#: Step size of Adam where the number of steps is given and no optimiser is.
DEFAULT_STEP = 0.02
#: The same for models that say where to begin, networks: their weights move in their own units.
NETWORK_STEP = 0.003
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
    layer_noise: LayerNoise | Literal["auto"] = "auto"


def _has_auxiliary(trace: Any) -> bool:
    """Whether the guide draws through an auxiliary site, as joint densities do: its `Delta` sites are then no points."""
    return any(site["infer"].get("is_auxiliary") for _, site in sample_sites(trace))


@dataclass(frozen=True)
class Wishes:
    """What was asked of the runner and is not recorded in the fit."""

    optimizer: Any
    schedule: str | Schedule | None
    callbacks: Sequence[Callback]
    progress: bool
    validation: Any
    compile: Mode
    plan: Plan
    kl_weight: float | Schedule | None
    free_bits: float = 0.0
    resample: int = 0


class Restart:
    """One restart, in three parts: `prepare`, `train`, `finish`, each to be called inside `owned.active`."""

    def __init__(self, number: int, owned: Owned, data: Any, settings: Settings, wishes: Wishes) -> None:
        self.number, self.owned, self.data, self.settings, self.wishes = number, owned, data, settings, wishes
        self.program: Program = describe(owned.model, data)
        self.streamed = bool(getattr(data, "streamed", False))
        by_batch = self.streamed and settings.batch_size is not None
        self.full: Mapping[str, Any] = bound_rows(owned.model, data) if by_batch else data.bind(owned.model)
        self.some = self._some()
        owned.collect(self.some)
        self.history = History()
        self.compiler = Compiler(wishes.compile, (owned.model, owned.guide), self.streamed, owned.borrowed.buffers)
        self.partial: Run | None = None
        self.interrupted = False
        self.loop: Loop | None = None
        self.ending: Callable[[Loop], None] | None = None
        self.seconds = 0.0

    def _some(self) -> Mapping[str, Any]:
        """What to call guide and model with to see what they are made of: all rows, or some of a large data set."""
        rows = some_rows(self.owned.model, self.data) if self.program.row_elements else None
        # A guide that is not ours may make a parameter for each row that it first sees; a sum over states is over all rows or none.
        ours = is_family(self.owned.guide)
        shared = any(not site.local for site in self.program.discrete.values())
        return self.full if rows is None or not ours or shared else self.data.batch(rows, self.owned.model)

    def prepare(self) -> None:
        """Starts the guide and makes the loop, if there is anything left to train."""
        began = time.perf_counter()
        self.objective = self._objective()
        start = self.start = self._start()
        self.history.seconds["start"] = time.perf_counter() - began
        if start is not None and self._climb_is_all():
            self._kl_weight()  # which refuses one: there is no loop that would
            self.history.losses = [float(x) for x in start.losses]
            self.history.converged = start.converged
            self.history.stop_reason = (
                "converged: the gradient is gone"
                if start.converged
                else f"not converged: {start.note or 'the climb had not ended'}"
            )
        else:
            self._make_loop()
        self.owned.borrowed.looks = False
        self.seconds += time.perf_counter() - began

    def _start(self) -> Start | None:
        # A network's mode is of interest only as an answer: it overfits, and a posterior is better begun small.
        named = {n for n, p in self.owned.parameters().items() if p.requires_grad}
        points = sorted(n for n in named if not n.startswith("guide."))
        made = getattr(self.owned.guide, "continuous", self.owned.guide)
        if self.streamed:
            self._refuse_streamed(made)
        if points and getattr(made, "made_at_mode", False):
            raise ValueError(made.why_not(points[0].partition(".")[2]))
        space = getattr(self.owned.guide, "space", None)
        curved = getattr(self.owned.guide, "starts_at_mode", False) and space is not None and space.size <= DENSE_LIMIT
        mode = not self.streamed and (not named or curved or self._climb_is_all())
        return start_guide(self.owned, self.objective, self.full, self.number, mode=mode)

    def _refuse_streamed(self, guide: Any) -> None:
        family = guide.family if is_family(guide) else ""
        if getattr(guide, "made_at_mode", False):
            raise ValueError(
                f"guide '{family}' is made at the mode of the log density of all data, and these are streamed, never in memory as a whole; "
                "use 'mean_field' or 'full_rank', or fit a part, data.select(rows)"
            )
        if family and self.program.local and not hasattr(guide, "amortized"):
            raise ValueError(
                f"guide '{family}' holds the latents of single observations ({', '.join(self.program.local)}) all together, and these data are "
                "streamed; use 'amortized' or a guide of your own where these are all the latents, or fit a part, data.select(rows)"
            )

    def _climb_is_all(self) -> bool:
        """Whether nothing is left to train after the climb: a point, asked for without a word on how, and nothing beside it."""
        settings, guide = self.settings, self.owned.guide
        guide = getattr(guide, "continuous", guide)
        asked = settings.steps is not None or settings.batch_size is not None or self.wishes.optimizer is not None
        if asked or not getattr(guide, "is_point", False) or guide.space.size > CLIMB_LIMIT:
            return False
        return all(n.startswith("guide.") for n, p in self.owned.parameters().items() if p.requires_grad)

    def train(self) -> None:
        """Runs the loop to its end.

        Raises:
            NonFiniteError: `partial` then holds the last finite state.
        """
        if self.loop is None or self.ending is None:
            return
        began = time.perf_counter()
        settings, history, loop = self.settings, self.history, self.loop
        with progress_callback(
            self.wishes.progress, settings.guide or "guide", settings.steps, self.number, settings.restarts
        ) as shown:
            loop.watchers = [*loop.watchers, *shown]
            try:
                with heard_between_steps() as loop.ask:
                    self.ending(loop)
            except NonFiniteError as error:
                history.stop_reason = f"not converged: {error}"
                if history.losses:
                    self.partial = self._run()
                    self.partial.loss = history.losses[-1]
                raise
            except KeyboardInterrupt:
                self.interrupted = True
                history.stop_reason = f"interrupted after {len(history.losses)} steps"
            finally:
                seconds = time.perf_counter() - began
                history.seconds |= {"compile": self.compiler.seconds, "steps": seconds - self.compiler.seconds}
                self.seconds += seconds

    def finish(self) -> Run:
        """Evaluates the trained guide."""
        history, start, run = self.history, self.start, self._run()
        began = time.perf_counter()
        run.evaluate(self.data, self.settings.seed)
        history.seconds["evaluation"] = time.perf_counter() - began
        if start is not None and self.objective.surrogate is None and not history.losses and not self.interrupted:
            history.losses = [float(x) for x in start.losses] or [run.loss]
            history.converged = start.converged
            history.stop_reason = "converged: the mode was found" if start.converged else f"not converged: {start.note}"
        elif not history.losses:
            history.losses = [run.loss]
        return run

    def _run(self) -> Run:
        family = getattr(self.owned.guide, "family", "")
        return Run(self.owned, self.program, self.objective, self.history, self.number, self.seconds, family)

    def _objective(self) -> Objective:
        owned, settings, program = self.owned, self.settings, self.program
        guide = owned.guide
        if getattr(guide, "path_derivative", None) is not None:
            guide.path_derivative = False  # an earlier fit may have chosen it for another objective
        # The first call makes lazy guides build their parameters.
        trace = poutine.trace(guide).get_trace(**self.some)
        surrogate = self._check_guide(trace)
        estimator = settings.estimator
        closed: dict[str, bool] = {}
        if getattr(guide, "factorized", False) and surrogate is None:
            closed = analytic_kls(program, owned.model, guide, self.some)
        if estimator is None:
            # In a network the weights decide; a noise scale may keep its Monte Carlo term.
            matter = (
                [n for n in closed if by_layer(trace.nodes[n]["fn"])]
                if hasattr(owned.model, "initial_values")
                else list(closed)
            )
            estimator = "analytic_kl" if matter and all(closed[n] for n in matter) else "monte_carlo"
        if surrogate is not None and settings.estimator is not None:
            raise ValueError(
                f"loss='{settings.estimator}' is a bound on the evidence, and guide '{settings.guide}' is a point without a "
                "density; leave out loss"
            )
        if getattr(guide, "made_at_mode", False):
            told = {
                "loss='importance_weighted'": estimator == "importance_weighted",
                "kl_weight": self.wishes.kl_weight not in (None, 1.0),
            }
            for word in (word for word, given in told.items() if given):
                raise ValueError(
                    f"{word} changes what is trained, and guide '{settings.guide or 'given'}' is made at the mode and not trained; leave it out"
                )
        objective = Objective(
            program,
            owned.model,
            guide,
            estimator,
            settings.num_particles,
            where_discrete(guide, settings.discrete),
            surrogate,
            EachDraw(),
        )
        if self.wishes.free_bits:
            check_fit(program, trace, estimator, surrogate, settings.guide or "given")
            objective.free_bits = float(self.wishes.free_bits)
        if getattr(self.data, "chances", None):
            objective.redrawn = self.data.redrawn(owned.model)
        if getattr(self.data, "streams", None) is not None and settings.batch_size is not None:
            self.data.batches(settings.batch_size, 0, 0)  # refuses a size that is not the streams'
            objective.weights = self.data.row_weights()
        drawn_by_layer = [n for n in program.continuous if n in trace.nodes and by_layer(trace.nodes[n]["fn"])]
        exact = estimator == "analytic_kl" and all(closed.get(n, False) for n in drawn_by_layer)
        objective.layer_noise = self._layer_noise(objective, exact or surrogate == "likelihood")
        objective.at_the_mean = objective.layer_noise == "local" and (exact or surrogate == "likelihood")
        if (
            estimator == "monte_carlo"
            and getattr(guide, "path_derivative", None) is not None
            and objective.layer_noise == "shared"
        ):
            guide.path_derivative = True
        if estimator == "importance_weighted":
            if objective.num_particles > 1:
                check_independent_rows(objective, self.some)
            self._reparametrize_twice(objective)
        if self.wishes.resample:
            check_resampling(objective, self.wishes.resample, settings.guide or "given")
            objective.resample = self.wishes.resample
        return objective

    def _reparametrize_twice(self, objective: Objective) -> None:
        """Chooses the gradient with less noise where guide and model have one; see `doubly_reparametrized`."""
        guide = objective.guide
        if getattr(guide, "path_derivative", None) is None or objective.num_particles == 1 or objective.weights is not None:
            return
        objective.count_noise(self.some)
        if objective.noisy_model or objective.layer_noise != "shared":
            return
        guide.path_derivative = True  # type: ignore[attr-defined]
        sites = dict(sample_sites(objective.guide_trace(self.some)))
        random = [base_of(site["fn"]) for site in sites.values() if is_random(site)]
        objective.doubly = bool(random) and all(hasattr(fn, "frozen") for fn in random)
        guide.path_derivative = objective.doubly  # type: ignore[attr-defined]

    def _layer_noise(self, objective: Objective, without_draws: bool) -> LayerNoise:
        """Where a network's noise is drawn; unless it was asked for, in the layers wherever that changes nothing but the variance."""
        wanted = self.settings.layer_noise
        if wanted == "shared" or (wanted == "auto" and not getattr(self.owned.guide, "factorized", False)):
            return "shared"
        choice: LayerNoise = "local" if wanted == "auto" else wanted
        objective.layer_noise, objective.at_the_mean = choice, choice == "local" and without_draws
        few = self.settings.batch_size is not None
        rows = min(7, len(self.data)) if few else len(self.data)
        batch = self.data.batch(torch.arange(rows), self.owned.model) if few else self.full
        try:
            met = objective.probe_layers(batch, rows)
        except ValueError:
            if wanted == "auto":
                return "shared"
            raise
        assert met is not None
        if wanted == "auto":
            exact = all(hasattr(q, "per_example") for q in met.q.values())
            return "local" if met.used and not met.again and (exact or not met.places) else "shared"
        masks = [name for name, site in zip(met.names.values(), met.q.values(), strict=True) if hasattr(site, "per_example")]
        if choice == "flipout" and masks:
            raise ValueError(
                f"estimator='flipout' turns the signs of noise that is symmetric around zero, and guide '{self.settings.guide or 'given'}' "
                f"draws masks of '{masks[0]}', which are not; use estimator='local', masks of its own for each example"
            )
        if not met.used:
            raise ValueError(
                f"estimator='{wanted}' draws the noise of weights in the layers that use them, and guide "
                f"'{self.settings.guide or 'given'}' draws no independent normals that enter a linear layer or a convolution; use "
                "estimator='shared', or guide 'mean_field'"
            )
        return choice

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
        if where_discrete(self.owned.guide, self.settings.discrete) == "guide":
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

    def _make_loop(self) -> None:
        owned, settings, wishes, history, objective = self.owned, self.settings, self.wishes, self.history, self.objective
        objective(self.some)  # plain functions make their parameters in the first call
        named = {n: p for n, p in owned.parameters().items() if p.requires_grad}
        if not named:
            history.converged = self.start is None
            history.stop_reason = "the guide has no parameters to train"
            return
        start = self.start
        begun = start is not None and not start.raw
        scale_free = hasattr(owned.guide, "summary") and begun and all(n.startswith("guide.") for n in named)
        automatic, plan = settings.steps is None, wishes.plan
        rate = plan.first_step if automatic and scale_free else DEFAULT_STEP
        if start.raw if start is not None else hasattr(owned.model, "initial_values"):
            rate = NETWORK_STEP
        # Near an optimum that the family reaches, Adam divides small gradients by eps: the step must not outgrow the curvature (1).
        self.make_optimizer, own_rate = _optimizer(wishes.optimizer, rate, 0.04 if scale_free else 1e-8)
        if automatic and (wishes.optimizer is not None or not scale_free):
            chosen: Any = own_rate or getattr(owned.guide, "first_step", rate)
            first = float(chosen)
            plan = Plan(first_step=first, last_step=first / 16, max_steps=plan.max_steps, window=200)
        tail = Tail(list(named.values()), owned.guide.summary if scale_free else None) if automatic else None
        self.loop = Loop(
            objective,
            named,
            self._batch,
            self._tables(tail),
            self.make_optimizer(list(named.values())),
            settings.clip_norm,
            history=history,
            total_steps=settings.steps,
            kl_weight=self._kl_weight(),
            tail=tail,
            callbacks=list(wishes.callbacks),
            compile=self.compiler,
            streamed=self.streamed,
        )
        if wishes.validation is not None:
            self.loop.watchers, self.loop.pause = [self._validator()], VALIDATION_EVERY
        if automatic:
            self.ending = functools.partial(run_automatic, plan=plan)
        elif settings.steps is not None:
            self.ending = functools.partial(run_fixed, steps=settings.steps, schedule=self._schedule())

    def _batch(self, index: Tensor | None) -> Mapping[str, Any]:
        if self.objective.redrawn:
            batch: Mapping[str, Any] = self.data.training_batch(index, self.owned.model)
            return batch
        return self.full if index is None else self.data.batch(index, self.owned.model)

    def _tables(self, tail: Tail | None) -> Tables:
        size, summary = self.settings.batch_size, tail.summary if tail is not None else None
        index = None if size is None else torch.arange(size, device=self.owned.device)
        normals, uniforms = self.objective.count_noise(self._batch(index))
        return Tables(
            self.settings.num_particles,
            normals,
            uniforms,
            batches=None if size is None else functools.partial(self._indices, size),
            batch_size=size or 0,
            summary_shape=None if summary is None else summary().shape,
            dtype=self.owned.dtype,
            device=self.owned.device,
            seeds=[int(torch.randint(2**62, ()))],
        )

    def _indices(self, size: int) -> Iterator[Tensor]:
        for epoch in itertools.count():
            yield self.data.epoch(size, self.settings.seed, epoch)

    def _schedule(self) -> Schedule:
        schedule = self.wishes.schedule
        if schedule is None:
            return cosine if self.wishes.optimizer is None else constant
        if callable(schedule) and not isinstance(schedule, type):
            return checked("schedule", schedule)
        if schedule not in SCHEDULES:
            raise ValueError(
                f"unknown schedule {schedule!r}; choose one of {', '.join(SCHEDULES)}, or pass a function (step, steps) -> factor"
            )
        return SCHEDULES[schedule]

    def _kl_weight(self) -> Callable[[int], float] | None:
        weight, steps = self.wishes.kl_weight, self.settings.steps
        if weight is None and steps is not None:
            weight = getattr(self.owned.guide, "kl_weight", None)
        if weight is None or (not callable(weight) and weight == 1.0):
            return None
        penalized = hasattr(self.owned.guide, "penalty")
        if (self.objective.surrogate is not None and not penalized) or self.objective.estimator == "importance_weighted":
            kind = "an importance-weighted bound" if self.objective.surrogate is None else "a point estimate"
            raise ValueError(f"kl_weight is for an ELBO, and {kind} has no KL term to weight; leave it out")
        if not callable(weight):
            return lambda step: float(weight)
        if steps is None:
            raise ValueError("kl_weight as a function of (step, steps) needs the number of steps: pass steps or epochs")
        each, last = checked("kl_weight", weight), steps
        return lambda step: each(step, last)

    def _validator(self) -> Callback:
        """Records a held-out observation's loss in nats every 50 steps: -E_q log p(y | z), or its negative ELBO where all of z is its own."""
        objective, history, guide = self.objective, self.history, self.owned.guide
        latents = self.program.latents
        if not getattr(guide, "amortized", True):
            raise ValueError(
                f"guide '{guide.family}' knows the observations of the training data alone and has no q for those of validation; leave it out, "
                "or fit with guide='amortized'"
            )
        if getattr(self.wishes.validation, "streamed", False):
            raise ValueError(
                "validation data are looked at as a whole, and these are streamed; give a part of them, data.select(rows)"
            )
        held_out = self.wishes.validation.to(self.owned.device, self.data.dtype)
        check_data(self.owned.model, held_out, new=True)
        kwargs = held_out.bind(self.owned.model)
        own = hasattr(guide, "amortized") and all(site.local for site in latents.values())

        def callback(progress: Any) -> None:
            if progress.step % VALIDATION_EVERY and progress.step != 1:
                return
            with torch.no_grad(), kept_generators(), evaluated(self.owned.model, guide, *self.owned.borrowed.modules()):
                values = []
                for _ in range(16):
                    trace = poutine.trace(guide).get_trace(**kwargs) if own else objective.guide_trace(self.some)
                    drawn = {n: s["value"] for n, s in sample_sites(trace) if n in latents and (own or not latents[n].local)}
                    factors = model_factors(self.program, self.owned.model, kwargs, drawn)
                    found = (
                        [*factors, *(f.negative for f in guide_factors(trace))] if own else [f for f in factors if f.observed]
                    )
                    values.append(sum(float(f.log_prob.sum()) for f in found))
            history.validation.append((progress.step, -sum(values) / len(values) / len(held_out)))

        return callback


@contextlib.contextmanager
def evaluated(*parts: Any) -> Iterator[None]:
    """Inside, modules are as in evaluation: dropout does nothing, and batch norm does not learn from held-out rows."""
    modules = [module for part in parts if isinstance(part, nn.Module) for module in part.modules()]
    before = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training


def _optimizer(
    optimizer: Any, rate: float, eps: float = 1e-8
) -> tuple[Callable[[list[Any]], torch.optim.Optimizer], float | None]:
    """A maker of torch optimisers from what people pass: nothing, a number, a class, or a partial."""
    if optimizer is None:
        return functools.partial(torch.optim.Adam, lr=rate, betas=(0.9, 0.99), eps=eps), None
    if isinstance(optimizer, Real) and not isinstance(optimizer, bool):
        if not float(optimizer) > 0:
            raise ValueError(f"optimizer={optimizer} is a learning rate of Adam, which must be positive")
        return functools.partial(torch.optim.Adam, lr=float(optimizer), eps=eps), float(optimizer)
    if isinstance(optimizer, pyro.optim.PyroOptim):
        raise ValueError(
            f"optimizer is a Pyro optimiser ({type(optimizer).__name__}); pass torch's own, as functools.partial(torch.optim.Adam, lr=0.01)"
        )
    if callable(optimizer) and not isinstance(optimizer, torch.optim.Optimizer):
        probe = optimizer([nn.Parameter(torch.zeros(1))])
        closure = inspect.signature(probe.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise ValueError(
                f"{type(probe).__name__} evaluates the loss several times a step, which a loss with new draws does not allow; take an "
                "optimiser that steps along one gradient, torch.optim.Adam, say"
            )
        return optimizer, float(probe.param_groups[0]["lr"])
    raise ValueError(
        "optimizer must be a learning rate, a torch.optim class or a functools.partial of one: the runner makes the optimiser "
        "itself, once the guide's parameters exist"
    )
