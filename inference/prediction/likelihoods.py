"""The likelihood of every posterior draw, kept as its parameters: with it new observations can be scored.

    log p(y_n | x_n, D) ~ log 1/S sum_s p(y_n | x_n, z_s)

For a normal likelihood that is a mixture of S normals (Gal and Ghahramani 2016, appendix 4.4), not the normal with the mixture's
mean and variance.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..target.program import base_of


@dataclass(frozen=True)
class Likelihoods:
    """S distributions of the same N observations.

    Attributes:
        family: a distribution's class.
        parameters: its arguments by name, each (S, ...), on the CPU, in the model's units.
        scaler: takes targets to the model's units; None where the two are the same.
    """

    family: type[Any]
    parameters: dict[str, Tensor]
    scaler: Any = None

    def log_density(self, y: Tensor) -> Tensor:
        """log 1/S sum_s p(y_n | draw s) of targets in their original units, (N,), in nats (of a density: per original unit).

        Args:
            y: (N, ...), as the model's outcome.
        """
        inner = y.double() if self.scaler is None else self.scaler.transform_target(y.double())
        total: Tensor | None = None
        num = len(next(iter(self.parameters.values())))
        for s in range(num):
            arguments = {k: v[s].double() if v.is_floating_point() else v[s] for k, v in self.parameters.items()}
            each = self.family(**arguments, validate_args=False).log_prob(inner)
            each = each.sum(tuple(range(1, each.dim()))) if each.dim() > 1 else each
            total = each if total is None else torch.logaddexp(total, each)
        assert total is not None
        out = total - math.log(num)
        if self.scaler is not None:
            # A density of y / sd is sd times that of y.
            sd = self.scaler.inverse_scale(torch.ones((), dtype=torch.float64)).log()
            out = out - (sd.sum() if sd.dim() else sd * math.prod(y.shape[1:]))
        return out


def parameters_of(fn: Any) -> tuple[type[Any], dict[str, Tensor]] | None:
    """Class and arguments that make a distribution again, or None where it is not made of plain arguments.

    Counting event dimensions aside, as a site in one plate does; masked, transformed and mixed ones are None.
    """
    inner = base_of(fn)
    family = type(inner)
    try:
        takes = inspect.signature(family.__init__).parameters
        names = [name for name in getattr(inner, "arg_constraints", {}) if name in takes]
        given = [name for name in names if name in vars(inner)]
        # Of two ways to say the same an instance holds the one it was made with; made with logits and sampled, both.
        if "logits" in given and "probs" in given:
            given.remove("probs")
        found = {name: getattr(inner, name) for name in given or names}
        if not found or not all(isinstance(value, Tensor) for value in found.values()):
            return None
        family(**found, validate_args=False)
    except (TypeError, ValueError, NotImplementedError, AttributeError):
        return None
    return family, found
