"""The two ways of running and ending a fit: a given number of steps, or until the averages of the iterates agree."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

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


def checked(word: str, function: Schedule) -> Schedule:
    """A user's function of (step, steps), whose answers are looked at.

    Raises:
        ValueError: it does not take these two, and later where it returns something else than a number that is not negative.
    """
    if not _takes_two(function):
        raise ValueError(f"{word} as a function is called with (step, steps), and this one does not take them")

    def at(step: int, steps: int) -> float:
        value: Any = function(step, steps)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if isinstance(value, str) or not (math.isfinite(number) and number >= 0):
            raise ValueError(
                f"{word}(step, steps) must return a number that is not negative, and at step {step} of {steps} it returned {value!r}"
            )
        return number

    return at


def _takes_two(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(0, 1)
    except TypeError:
        return False
    except ValueError:  # some functions of C have no signature
        pass
    return True


def run_fixed(loop: Loop, steps: int, schedule: Callable[[int, int], float]) -> None:
    """`steps` updates, the learning rate multiplied by `schedule(step, steps)`."""
    history = loop.history
    loop.factor = 1.0 if schedule is constant else lambda k: schedule(k, steps)
    if loop.advance(steps):
        history.stop_reason = f"a callback stopped the fit after {len(history.losses)} steps"
    else:
        history.stop_reason = f"the {steps} steps that were asked for are done"
    reason = history.stop_reason
    for history in loop.histories:
        history.stop_reason = reason
        recent = history.losses[-max(200, len(history.losses) // 4) :]
        falling, gain = loss_still_falls(recent)
        history.converged = not falling
        if falling and math.isfinite(gain):
            history.stop_reason += f"; the loss still fell by {gain:.3g} nats at the end"
        elif falling:
            history.stop_reason += ", too few to tell whether the loss has settled"


def run_automatic(loop: Loop, plan: Plan) -> None:
    """Stages of halved step sizes with averaged iterates, until the averages agree; see `convergence`.

    What must settle is the tail's summary, in units of posterior sds; without one the loss decides. Restarts that are trained
    together go from stage to stage together, when all of them have settled.
    """
    history, tail = loop.history, loop.tail
    assert tail is not None
    by_loss = tail.summary is None
    if tail.size == 0:
        for each in loop.histories:
            each.converged, each.stop_reason = True, "the guide has no parameters to train"
        return
    rate, window = plan.first_step, plan.window
    previous: list[Tensor] | None = None
    differences = [math.inf] * len(loop.histories)
    while True:
        loop.factor = rate / loop.base_rates[0]
        still = False
        for _ in range(plan.most_windows):
            tail.restart()
            if loop.advance(min(window, max(100, plan.max_steps - len(history.losses)))):
                history.stop_reason = f"a callback stopped the fit after {len(history.losses)} steps"
                return
            if by_loss:
                still = all(not loss_still_falls(each.losses[-2 * window :])[0] for each in loop.histories)
            else:
                still = all(stationary(values, plan.tolerance / 10) for values in _summaries(loop))
            if still or len(history.losses) >= plan.max_steps:
                break
        if by_loss:
            current = [torch.tensor(each.losses[-window:], dtype=torch.float64) for each in loop.histories]
        else:
            current = [values.mean(0) for values in _summaries(loop)]
        tolerances = [plan.tolerance] * len(current)
        if previous is not None:
            pairs = list(zip(previous, current, strict=True))
            differences = [abs(float(a.mean() - b.mean())) if by_loss else float((b - a).abs().max()) for a, b in pairs]
            tolerances = [_loss_tolerance(a, b) for a, b in pairs] if by_loss else tolerances
        settled = [still and d < t for d, t in zip(differences, tolerances, strict=True)]
        if all(settled) or len(history.losses) >= plan.max_steps:
            tail.use_average()
            unit = "nats" if by_loss else "posterior sds"
            for each, difference, good in zip(loop.histories, differences, settled, strict=True):
                each.converged = good
                each.stop_reason = (
                    f"converged: successive averages differ by {difference:.2g} {unit}"
                    if good
                    else f"not converged after {len(history.losses)} steps: successive averages still differ by "
                    f"{difference:.2g} {unit}; pass steps=, or a simpler guide"
                )
            return
        previous = current
        rate, window = max(rate / 2, plan.last_step), 2 * window


def _summaries(loop: Loop) -> list[Tensor]:
    """The window of the guide's summary (T, K) of each restart."""
    assert loop.tail is not None
    values = torch.stack(loop.tail.window)
    return [values] if len(loop.histories) == 1 else list(values.unbind(1))


def _loss_tolerance(a: Tensor, b: Tensor) -> float:
    """Two standard errors of the change of the mean loss, or a hundredth of a nat if that is more."""
    return max(0.01, 2 * math.sqrt(float(a.var() / len(a) + b.var() / len(b))))
