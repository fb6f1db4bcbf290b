"""The two ways of running and ending a fit: a given number of steps, or until the averages of the iterates agree."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from .convergence import Plan, loss_still_falls, stationary
from .training import Loop

type Schedule = Callable[[int, int], float]


def constant(step: int, steps: int) -> float:
    """Learning rate as given."""
    return 1.0


def cosine(step: int, steps: int) -> float:
    """From the given learning rate down to a hundredth along half a cosine."""
    return 0.01 + 0.99 * (1 + math.cos(math.pi * step / max(1, steps - 1))) / 2


def linear(step: int, steps: int) -> float:
    """From the given learning rate down to a hundredth in equal steps."""
    return 1 - 0.99 * step / max(1, steps - 1)


SCHEDULES: dict[str, Schedule] = {"constant": constant, "cosine": cosine, "linear": linear}


def run_fixed(loop: Loop, steps: int, schedule: Callable[[int, int], float]) -> None:
    """`steps` updates, the learning rate multiplied by `schedule(step, steps)`."""
    history = loop.history
    loop.factor = lambda k: schedule(k, steps)
    if loop.advance(steps):
        history.stop_reason = f"a callback stopped the fit after {len(history.losses)} steps"
    else:
        history.stop_reason = f"the {steps} steps that were asked for are done"
    recent = history.losses[-max(200, len(history.losses) // 4) :]
    falling, gain = loss_still_falls(recent)
    history.converged = not falling
    if falling and math.isfinite(gain):
        history.stop_reason += f"; the loss still fell by {gain:.3g} nats at the end"
    elif falling:
        history.stop_reason += ", too few to tell whether the loss has settled"


def run_automatic(loop: Loop, plan: Plan) -> None:
    """Stages of halved step sizes with averaged iterates, until the averages agree; see `convergence`.

    What must settle is the tail's summary, in units of posterior sds; without one the loss decides.
    """
    history, tail = loop.history, loop.tail
    assert tail is not None
    summary = tail.summary
    if tail.size == 0:
        history.converged = True
        history.stop_reason = "the guide has no parameters to train"
        return
    rate, window, previous, difference = plan.first_step, plan.window, None, math.inf
    while True:
        loop.factor = functools.partial(_constant_factor, rate / loop.base_rates[0])
        still = False
        for _ in range(plan.most_windows):
            tail.restart()
            if loop.advance(min(window, max(100, plan.max_steps - len(history.losses)))):
                history.stop_reason = f"a callback stopped the fit after {len(history.losses)} steps"
                return
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
            tail.use_average()
            history.converged = True
            history.stop_reason = f"converged: successive averages differ by {difference:.2g} {unit}"
            return
        if len(history.losses) >= plan.max_steps:
            tail.use_average()
            history.stop_reason = (
                f"not converged after {len(history.losses)} steps: successive averages still differ by {difference:.2g} {unit}; "
                "pass steps=, or a simpler guide"
            )
            return
        previous = current
        rate, window = max(rate / 2, plan.last_step), 2 * window


def _constant_factor(factor: float, step: int) -> float:
    return factor


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
