"""The eager engine: one loop for every objective, and the two ways of ending it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor

from .convergence import Plan, Tail, loss_still_falls, stationary
from .density import model_factors
from .objective import Objective


class NonFiniteError(RuntimeError):
    """The loss or a gradient is NaN or infinite.

    Attributes:
        fit: the `Fit` with the parameters of the last finite step, or None if the first step failed.
    """

    fit: Any = None


@dataclass(frozen=True)
class Progress:
    """What a callback sees after a step."""

    step: int
    loss: float
    learning_rate: float
    total_steps: int | None
    parameters: tuple[Tensor, ...] = ()


Callback = Callable[[Progress], bool | None]


@dataclass
class History:
    """The record of a run. `losses` are negative ELBOs of the whole data set in nats, one a step."""

    losses: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    converged: bool = False
    stop_reason: str = ""


@dataclass
class Loop:
    """One optimisation run over named parameters.

    `batches` yields the keyword arguments of each step, for ever. `after_step` is called with every `Progress`.
    """

    objective: Objective
    parameters: dict[str, Tensor]
    batches: Iterator[Mapping[str, Any]]
    make_optimizer: Callable[[list[Tensor]], torch.optim.Optimizer]
    clip_norm: float | None = None
    callbacks: Sequence[Callback] = ()
    history: History = field(default_factory=History)
    total_steps: int | None = None

    def __post_init__(self) -> None:
        self.leaves = [p for p in self.parameters.values() if p.requires_grad]
        self.optimizer = self.make_optimizer(self.leaves)
        # The parameters of the last finite loss: an update can be finite and still lead nowhere.
        self.finite = [p.detach().clone() for p in self.leaves]
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]

    def set_rate(self, factor: float) -> None:
        """Learning rates as a multiple of those the optimiser was made with."""
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor

    def step(self) -> bool:
        """One update.

        Returns:
            Whether a callback asked to stop.

        Raises:
            NonFiniteError: naming the site or parameter and the step; nothing was updated.
        """
        kwargs = next(self.batches)
        number = len(self.history.losses) + 1
        self.optimizer.zero_grad(set_to_none=True)
        surrogate, loss = self.objective(kwargs)
        value = float(loss.detach())
        if not math.isfinite(value):
            message = self._blame(kwargs, value, number)
            self._step_back()
            raise NonFiniteError(message)
        surrogate.backward()
        self._check_gradients(number)
        if self.leaves:
            torch._foreach_copy_(self.finite, [p.detach() for p in self.leaves])
        self.optimizer.step()
        self.history.losses.append(value)
        progress = Progress(number, value, self.optimizer.param_groups[0]["lr"], self.total_steps, tuple(self.leaves))
        answers = [callback(progress) for callback in self.callbacks]
        return any(answer is True for answer in answers)

    def _step_back(self) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.leaves, self.finite, strict=True):
                parameter.copy_(value)

    def _check_gradients(self, number: int) -> None:
        grads = [p.grad for p in self.leaves if p.grad is not None]
        if not grads:
            return
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        if not bool(torch.isfinite(norm)):
            bad = [n for n, p in self.parameters.items() if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
            self._step_back()
            raise NonFiniteError(
                f"the gradient of parameter '{bad[0] if bad else '?'}' is not finite at step {number}; the fit stopped with the "
                "parameters of the step before: lower the step size, pass clip_norm, or use dtype=torch.float64"
            )
        if self.clip_norm is not None and float(norm) > self.clip_norm:
            torch._foreach_mul_(grads, self.clip_norm / (float(norm) + 1e-12))

    def _blame(self, kwargs: Mapping[str, Any], value: float, number: int) -> str:
        """Names the site whose log density is not finite, from one more draw."""
        site = "the model"
        with torch.no_grad(), pyro.validation_enabled(False):
            for _ in range(20):
                trace = self.objective.guide_trace(kwargs)
                values: dict[str, Any] = {
                    n: s["value"] for n, s in trace.nodes.items() if s["type"] == "sample" and not s["is_observed"]
                }
                bad = [n for n, v in values.items() if isinstance(v, Tensor) and not bool(torch.isfinite(v).all())]
                if bad:
                    site = f"the guide's draw of site '{bad[0]}'"
                    break
                factors = model_factors(self.objective.program, self.objective.model, kwargs, values)
                names = [f.name for f in factors if not bool(torch.isfinite(f.log_prob).all())]
                if names:
                    site = f"the log density of site '{names[0]}'"
                    break
        what = "NaN" if math.isnan(value) else "infinite"
        return (
            f"the loss is {what} at step {number}, through {site}; the fit stopped with the parameters of the step before: look "
            "at the data's scale and the priors, lower the step size, or use dtype=torch.float64"
        )


def run_fixed(loop: Loop, steps: int, schedule: Callable[[int, int], float]) -> None:
    """`steps` updates, the learning rate multiplied by `schedule(step, steps)`."""
    history = loop.history
    for k in range(steps):
        loop.set_rate(schedule(k, steps))
        if loop.step():
            history.stop_reason = f"a callback stopped the fit after {len(history.losses)} steps"
            break
    else:
        history.stop_reason = f"the {steps} steps that were asked for are done"
    recent = history.losses[-max(200, len(history.losses) // 4) :]
    falling, gain = loss_still_falls(recent)
    history.converged = not falling
    if falling and math.isfinite(gain):
        history.stop_reason += f"; the loss still fell by {gain:.3g} nats at the end"
    elif falling:
        history.stop_reason += ", too few to tell whether the loss has settled"


def run_automatic(loop: Loop, plan: Plan, *, summary: Callable[[], Tensor] | None) -> None:
    """Stages of halved step sizes with averaged iterates, until the averages agree; see `convergence`.

    Args:
        summary: what must settle, in units of posterior sds; without it the loss decides.
    """
    history = loop.history
    tail = Tail(loop.leaves, summary)
    if tail.size == 0:
        history.converged = True
        history.stop_reason = "the guide has no parameters to train"
        return
    rate, window, previous, difference = plan.first_step, plan.window, None, math.inf
    while True:
        loop.set_rate(rate / loop.base_rates[0])
        still = False
        for _ in range(plan.most_windows):
            tail.restart()
            for _ in range(min(window, max(100, plan.max_steps - len(history.losses)))):
                if loop.step():
                    history.stop_reason = f"a callback stopped the fit after {len(history.losses)} steps"
                    return
                tail.add()
            if summary is None:
                still = not loss_still_falls(history.losses[-2 * window :])[0]
            else:
                still = stationary(torch.stack(tail.window), plan.tolerance / 10)
            if still or len(history.losses) >= plan.max_steps:
                break
        current = torch.stack(tail.window).mean(0) if summary is not None else torch.tensor(history.losses[-window:])
        if previous is not None:
            difference = _difference(previous, current, of_losses=summary is None)
        unit = "posterior sds" if summary is not None else "nats"
        if still and difference < (plan.tolerance if summary is not None else _loss_tolerance(previous, current)):
            tail.set(tail.average())
            history.converged = True
            history.stop_reason = f"converged: successive averages differ by {difference:.2g} {unit}"
            return
        if len(history.losses) >= plan.max_steps:
            tail.set(tail.average())
            history.stop_reason = (
                f"not converged after {len(history.losses)} steps: successive averages still differ by {difference:.2g} {unit}; "
                "pass steps=, or a simpler guide"
            )
            return
        previous = current
        rate, window = max(rate / 2, plan.last_step), 2 * window


def _difference(previous: Tensor, current: Tensor, *, of_losses: bool) -> float:
    """How far the last two stages lie apart: the greatest change of the summary, or the change of the mean loss."""
    if of_losses:
        return abs(float(previous.double().mean() - current.double().mean()))
    return float((current - previous).abs().max())


def _loss_tolerance(previous: Tensor | None, current: Tensor) -> float:
    """Two standard errors of the change of the mean loss, or a hundredth of a nat if that is more."""
    if previous is None:
        return 0.0
    a, b = previous.double(), current.double()
    return max(0.01, 2 * math.sqrt(float(a.var() / len(a) + b.var() / len(b))))
