"""REINFORCE: gradients of the ELBO that never look inside the model.

    grad E_q[f] = E_q[ f grad log q ] + E_q[ grad f ],   f = log p(x, z) - log q(z)

The lecture leaves out the second term. It may: with respect to the guide's parameters it is -E_q[grad log q], and
E_q[grad log q] = integral of grad q = grad 1 = 0. The same fact allows a baseline: E_q[(f - b) grad log q] is the same for
every b that does not depend on the draw, and its variance is smaller where b is near f.
Williams 1992; Ranganath, Gerrish, Blei 2014; leave-one-out baseline: Kool, van Hoof, Welling 2019.
Lecture: "Gradient-Based Variational Inference".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..engine.noise import FromRow, Row
from ..target.density import guide_values, model_factors, site_factor, total
from ..target.program import Program, is_point, sample_sites


def is_random(site: Any) -> bool:
    """Whether a site of a trace, or a message, draws: not a `Delta`, with or without a density."""
    fn = site["fn"]
    while hasattr(fn, "base_dist") and not isinstance(fn, Delta):
        fn = fn.base_dist
    return not site["is_observed"] and not isinstance(fn, Delta)


class Detached(Messenger):
    """Draws carry no gradient, although they could; values that follow from them or from parameters keep theirs."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["value"] is not None or not is_random(msg):  # a plate's rows come with their value
            return
        msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"]).detach()
        msg["done"] = True


@dataclass
class Reinforce:
    """The loss of one (model, guide) pair with score-function gradients for every draw of the guide.

    Parameters of the model have no score; they keep the gradient of log p(x, z) at the draws.

    Attributes:
        baseline: a constant b in nats; or `others`, for each particle the mean of f over the other ones.
    """

    program: Program
    model: Callable[..., Any]
    guide: Callable[..., Any]
    baseline: float | Literal["others"] = 0.0

    def __call__(self, kwargs: Mapping[str, Any], noise: Row) -> tuple[Tensor, Tensor]:
        """Loss of one batch.

        Args:
            noise: the random numbers, (num_particles, n) normal and (num_particles, m) uniform; where they do not suffice,
                torch's generator serves the rest.

        Returns:
            The tensor to differentiate and the loss in nats, both scalars.
        """
        each = [self._particle(kwargs, Row(n, u)) for n, u in zip(*noise, strict=True)]
        bound, direct, score = (torch.stack(part) for part in zip(*each, strict=True))
        weight = bound.detach()
        if self.baseline == "others":
            if len(each) < 2:
                raise ValueError("the mean of the other particles needs num_particles of at least 2; give a constant instead")
            weight = weight - (weight.sum() - weight) / (len(each) - 1)
        else:
            weight = weight - self.baseline
        return -(direct + weight * score).mean(), -bound.mean()

    def _particle(self, kwargs: Mapping[str, Any], row: Row) -> tuple[Tensor, Tensor, Tensor]:
        """f of one draw; what of f is differentiated as it stands; and log q, all scalars in nats."""
        with FromRow(row):
            with Detached():
                trace = poutine.trace(self.guide).get_trace(**kwargs)
            log_p = total(model_factors(self.program, self.model, kwargs, guide_values(trace)))
        log_q = score = volume = torch.zeros_like(log_p)
        for name, site in sample_sites(trace):
            if site["is_observed"] or is_point(site):
                continue
            factor = site_factor(name, site)
            if is_random(site):
                log_q = log_q + factor.total
                # A batch scales its rows up in f; each row's draw still has its own density, unscaled.
                score = score + factor.log_prob.sum()
            else:  # the density that a transform of a draw carries
                volume = volume + factor.total
        return log_p - log_q - volume, log_p - volume, score
