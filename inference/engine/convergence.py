"""When stochastic optimisation may stop, from the iterates alone.

At a fixed step size the iterates of a stochastic gradient method wander around the optimum. Each stage keeps the step size
until they do (the halves of a window agree, as R-hat demands of chains), averages them (Polyak), and halves the step. The
fit has converged when successive averages agree to a small fraction of a posterior sd; a guide whose parameters have no
such unit (a network) is judged by its loss. Welandawe et al. 2022, "Robust, automated, and accurate black-box
variational inference", is the model for this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    """Step sizes and windows of the automatic schedule.

    Attributes:
        first_step, last_step: step sizes of the first and the last stage; each stage halves the one before. At the last step
            size the windows double instead: the noise of an average falls with its length, not with the step size.
        window: steps of the first window; windows grow as steps shrink, since an iterate forgets after 1 / step steps.
        most_windows: a stage moves on after so many windows, stationary or not.
        tolerance: greatest difference of successive averages, in posterior sds (and of log scales).
        max_steps: the fit stops here, not converged.
    """

    first_step: float = 0.04
    last_step: float = 0.01
    window: int = 100
    most_windows: int = 5
    tolerance: float = 0.05
    max_steps: int = 20_000


def stationary(values: Tensor, still: float) -> bool:
    """Whether the two halves of a window (T, K) look like draws of one distribution.

    Split R-hat, averaged over the columns, below 1.1: the difference of the half means is small against the spread within the halves. Movements below
    `still` count as none.
    """
    half = len(values) // 2
    a, b = values[:half], values[half : 2 * half]
    within = (a.var(0) + b.var(0)) / 2
    between = (a.mean(0) - b.mean(0)).square() / 2
    ratio = (within + between + still**2) / (within + still**2)
    return float(ratio.sqrt().mean()) < 1.1


def loss_still_falls(losses: Sequence[float]) -> tuple[bool, float]:
    """Whether the second half of the losses is lower than the first by more than its Monte Carlo error.

    Returns:
        The verdict and the difference of the means, in nats. The error of a mean allows for autocorrelation through the
        means of ten blocks.
    """
    values = np.asarray(losses, dtype=float)
    half = len(values) // 2
    if half < 20:
        return True, math.nan
    a, b = values[:half], values[half : 2 * half]

    def mean_error(x: np.ndarray) -> float:
        blocks = x[: len(x) // 10 * 10].reshape(10, -1).mean(1)
        return float(blocks.std(ddof=1) / math.sqrt(10))

    gain = float(a.mean() - b.mean())
    error = math.hypot(mean_error(a), mean_error(b))
    rounding = 1e-6 * abs(float(b.mean()))
    return gain > 2.0 * error + rounding, gain


class Tail:
    """The mean of the parameters over a window, and the window of what must settle."""

    def __init__(self, parameters: Sequence[Tensor], summary: Callable[[], Tensor] | None = None) -> None:
        self.parameters = list(parameters)
        self.summary = summary
        self.size = sum(p.numel() for p in self.parameters)
        self.sums = [torch.zeros_like(p, requires_grad=False) for p in self.parameters]
        self.window: list[Tensor] = []
        self.count = 0

    def accumulate(self) -> None:
        """Adds the current parameters to the sums; all that a step does on the device."""
        with torch.no_grad():
            torch._foreach_add_(self.sums, self.parameters)

    def note(self, summaries: Sequence[Tensor], steps: int) -> None:
        """Takes note of steps that were accumulated, with the guide's summary after each."""
        self.window += summaries
        self.count += steps

    def restart(self) -> None:
        """Forgets the window: the iterates were still on their way."""
        torch._foreach_zero_(self.sums)
        self.window, self.count = [], 0

    def use_average(self) -> None:
        """Writes the mean since the last restart into the parameters."""
        if not self.count:
            return
        with torch.no_grad():
            for p, total in zip(self.parameters, self.sums, strict=True):
                p.copy_(total / self.count)
