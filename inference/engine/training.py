"""The loop over steps, and the eager engine, which runs each step as it is written.

The compiled engine (`compiled.py`) replaces `Loop.step_eagerly` by a graph of the same step. Both read their noise, batches
and learning rates from the same tables, so a fit gives the same losses on either, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyro
import torch
from torch import Tensor

from ..estimators.objective import Objective
from ..target.density import model_factors
from . import adam
from .convergence import Tail
from .noise import FromRow, Row
from .tables import StepInputs, Tables


class NonFiniteError(RuntimeError):
    """The loss or a gradient is NaN or infinite.

    Attributes:
        fit: the `Fit` with the parameters of the last finite step, or None if the first step failed.
    """

    fit: Any = None


@dataclass(frozen=True)
class Progress:
    """What a callback sees after a step.

    Attributes:
        step: how many are done.
        loss: of this step, in nats.
        learning_rate: of this step.
        total_steps: how many there will be; None for a fit to convergence.
        parameters: what is trained, by name: `guide.` or `model.` and the name in that module, `param.` and the name of a
            `pyro.param`. The tensors are the fit's own: clone what you keep.
        guide: the guide that is trained, with the methods of its family, such as `log_alpha()` of `sparse_vd`.
    """

    step: int
    loss: float
    learning_rate: float
    total_steps: int | None
    parameters: Mapping[str, Tensor]
    guide: Any


Callback = Callable[[Progress], bool | None]


@dataclass
class History:
    """The record of a run.

    Attributes:
        losses: negative ELBOs of the whole data set in nats, one a step.
        validation: (step, loss) on held-out data.
        engine: what ran the steps, `eager` or `compiled`.
        seconds: what the time went into.
    """

    losses: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    converged: bool = False
    stop_reason: str = ""
    engine: str = "eager"
    seconds: dict[str, float] = field(default_factory=dict)


class Engine(Protocol):
    """What runs the steps of a loop once they are compiled."""

    def advance(self, first: int, count: int) -> bool:
        """Runs rows first, ..., first + count - 1 of the tables; False (and nothing changed) if a number was not finite."""


@dataclass
class Loop:
    """One optimisation run over named parameters.

    Attributes:
        batch: the keyword arguments of a step, from the row numbers of its batch (None: all rows).
        tables: what differs between steps.
        factor: the learning rate as a multiple of the optimiser's own: a number, or a function of the step (from 0).
        kl_weight: the weight of the KL in step k; None for the ELBO itself.
        tail: sums of the iterates, where the run averages them.
        callbacks: called after every step.
        watchers: called after every block of steps.
        pause: blocks end at multiples of so many steps, and after the first.
        compile: asked for the engine before each block of steps, until it has made one.
        streamed: whether a batch is drawn as it is fetched; then the last eager step's is kept, `recent`.
        flags: what a step that is captured met beside its numbers; where one is true the loss is NaN, and an eager step says why.
        ask: raises KeyboardInterrupt where Ctrl-C has been pressed; called where losses and parameters are of the same step.
    """

    objective: Objective
    parameters: dict[str, Tensor]
    batch: Callable[[Tensor | None], Mapping[str, Any]]
    tables: Tables
    optimizer: torch.optim.Optimizer
    clip_norm: float | None = None
    callbacks: Sequence[Callback] = ()
    watchers: Sequence[Callback] = ()
    pause: int | None = None
    history: History = field(default_factory=History)
    total_steps: int | None = None
    factor: float | Callable[[int], float] = 1.0
    kl_weight: Callable[[int], float] | None = None
    tail: Tail | None = None
    engine: Engine | None = None
    compile: Callable[[Loop], Engine | None] | None = None
    streamed: bool = False
    recent: Mapping[str, Any] | None = field(default=None, init=False)
    flags: list[Tensor] = field(default_factory=list, init=False)
    ask: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.leaves = [p for p in self.parameters.values() if p.requires_grad]
        # The parameters of the last finite loss: an update can be finite and still lead nowhere.
        self.finite = [p.detach().clone() for p in self.leaves]
        self.base_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        shape = adam.scalars_needed(self.optimizer)
        self.tabled = shape is not None
        if shape is not None:
            self.tables.add_scalars(shape)

    def advance(self, steps: int) -> bool:
        """Up to `steps` updates.

        Returns:
            Whether a callback asked to stop.

        Raises:
            NonFiniteError: naming the site or parameter and the step; the parameters are those of the last finite loss.
        """
        while steps > 0:
            self.ask()
            done = len(self.history.losses)
            if self.engine is None and self.compile is not None and done:
                self.engine = self.compile(self)
                self.ask()
            most = steps if self.pause is None else min(steps, self.pause - done % self.pause)
            first, count = self.tables.prepare(1 if self.callbacks or not done else most)
            factors = [self.factor(done + k) for k in range(count)] if callable(self.factor) else self.factor
            weights = None if self.kl_weight is None else [self.kl_weight(done + k) for k in range(count)]
            self.tables.set(first, count, factors, weights)
            if self.tabled and self.engine is not None:
                self.tables.set_scalars(first, adam.scalars(self.optimizer, self.base_rates, done, count, factors))
            if self.engine is None or not self.engine.advance(first, count):
                for k in range(count):
                    self.ask()
                    self.step_eagerly(first + k, factors[k] if isinstance(factors, list) else factors)
            else:
                for history in self.histories:
                    history.engine = "compiled"
                self.record(self.tables.losses(first, count))
                if self.tail is not None:
                    self.tail.note(self.tables.summaries(first, count).unbind() if self.tail.summary else (), count)
            self.tables.position += count
            steps -= count
            if self._tell(factors[-1] if isinstance(factors, list) else factors):
                return True
        return False

    def _tell(self, factor: float) -> bool:
        if not (self.callbacks or self.watchers):
            return False
        losses = self.history.losses
        rate = factor * self.base_rates[0]
        progress = Progress(len(losses), losses[-1], rate, self.total_steps, self.parameters, self.objective.guide)
        answers = [callback(progress) for callback in (*self.callbacks, *self.watchers)]
        return any(answer is True for answer in answers)

    def step_eagerly(self, row: int, factor: float) -> None:
        """One update, operation by operation."""
        inputs = self.tables.rows[row]
        kwargs = self.batch(inputs.index)
        self.recent = kwargs if self.streamed else None
        number = len(self.history.losses) + 1
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.zero_grad(set_to_none=True)
        surrogate, loss = self.evaluate(kwargs, inputs)
        value = float(loss.detach().sum())
        if not math.isfinite(value):
            message = self._blame(kwargs, inputs.noise, value, number)
            self._step_back()
            raise NonFiniteError(message)
        surrogate.backward()
        self._check_gradients(number)
        if self.leaves:
            torch._foreach_copy_(self.finite, [p.detach() for p in self.leaves])
        self.optimizer.step()
        self.record(loss.detach().double().cpu().unsqueeze(0))
        if self.tail is not None:
            self.tail.accumulate()
            self.tail.note([self.tail.summary().detach()] if self.tail.summary else (), 1)

    def step_traceably(self, inputs: StepInputs, kwargs: Mapping[str, Any], rates: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The same update with nothing decided on the host: what the compiled engine captures.

        The optimiser must be in a state that takes tensors as learning rates, `rates`, one a parameter group.

        Returns:
            Loss and gradients, with which a capture is checked.
        """
        self.flags.clear()
        surrogate, loss = self.evaluate(kwargs, inputs, strict=True)
        if self.flags:
            loss = loss.masked_fill(torch.stack(self.flags).any(), math.nan)
            self.flags.clear()
        grads = torch.autograd.grad(surrogate, self.leaves, allow_unused=True)
        some = [g for g in grads if g is not None]
        with torch.no_grad():
            if self.clip_norm is not None:
                some = self.clipped(some)
            given = iter(some)
            for p, g in zip(self.leaves, grads, strict=True):
                p.grad = None if g is None else next(given)
            if inputs.scalars is not None:
                adam.update(self.optimizer, inputs.scalars)
            else:
                for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate
                self.optimizer.step()
            if self.tail is not None:
                for total, p in zip(self.tail.sums, self.leaves, strict=True):
                    total.add_(p)
                if self.tail.summary is not None and inputs.summary is not None:
                    inputs.summary.copy_(self.tail.summary())
            inputs.loss.copy_(loss.detach())
        return (loss.detach(), *some)

    @property
    def histories(self) -> list[History]:
        """The records of all restarts that this loop trains."""
        return [self.history]

    def record(self, losses: Tensor) -> None:
        """Takes note of losses, (steps,)."""
        self.history.losses += losses.tolist()

    def evaluate(self, kwargs: Mapping[str, Any], inputs: StepInputs, *, strict: bool = False) -> tuple[Tensor, Tensor]:
        """What to differentiate, and the loss."""
        weight = None if self.kl_weight is None else inputs.kl_weight
        return self.objective(kwargs, inputs.noise, kl_weight=weight, strict=strict)

    def sums(self, tensor: Tensor) -> Tensor:
        """The sum over a parameter's elements."""
        return tensor.sum()

    def clipped(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """Gradients with a global norm of at most `clip_norm`, nothing read from them."""
        assert self.clip_norm is not None
        norm = torch.stack([self.sums(g.square()) for g in grads]).sum(0).sqrt()
        shrink = torch.where(norm > self.clip_norm, self.clip_norm / (norm + 1e-12), torch.ones_like(norm))
        return [g * shrink.reshape(shrink.shape + (1,) * (g.dim() - shrink.dim())) for g in grads]

    def _step_back(self) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.leaves, self.finite, strict=True):
                parameter.copy_(value)

    def _check_gradients(self, number: int) -> None:
        grads = [p.grad for p in self.leaves if p.grad is not None]
        if not grads:
            return
        norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))))
        if not math.isfinite(norm):
            bad = [n for n, p in self.parameters.items() if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
            if bad:  # else the norm's square overflowed, and no element did
                self._step_back()
                raise NonFiniteError(
                    f"the gradient of parameter '{bad[0]}' is not finite at step {number}; the fit stopped with the parameters of "
                    "the step before: lower the step size, pass clip_norm, or use dtype=torch.float64"
                )
        if self.clip_norm is not None and norm > self.clip_norm:
            with torch.no_grad():
                torch._foreach_copy_(grads, self.clipped(grads))

    def _blame(self, kwargs: Mapping[str, Any], noise: Row, value: float, number: int) -> str:
        """Names the site whose log density is not finite, from the same draws once more."""
        site = "the model"
        seen, own, _ = self.objective.given(kwargs, noise)
        assert own is not None
        with torch.no_grad(), pyro.validation_enabled(False):
            for row in zip(*own, strict=True):
                with FromRow(Row(*row)):
                    trace = self.objective.guide_trace(seen)
                    values: dict[str, Any] = {
                        n: s["value"] for n, s in trace.nodes.items() if s["type"] == "sample" and not s["is_observed"]
                    }
                    factors = model_factors(self.objective.program, self.objective.model, seen, values)
                bad = [n for n, v in values.items() if isinstance(v, Tensor) and not bool(torch.isfinite(v).all())]
                names = [f.name for f in factors if not bool(torch.isfinite(f.log_prob).all())]
                if bad or names:
                    site = f"the guide's draw of site '{bad[0]}'" if bad else f"the log density of site '{names[0]}'"
                    break
        what = "NaN" if math.isnan(value) else "infinite"
        return (
            f"the loss is {what} at step {number}, through {site}; the fit stopped with the parameters of the step before: look "
            "at the data's scale and the priors, lower the step size, or use dtype=torch.float64"
        )
