"""Draws of a discrete latent that carry a gradient: the straight-through concrete distribution.

    g_k ~ Gumbel,  s = softmax((log q + g) / temperature),  z = argmax(log q + g) ~ q
    weights = onehot(z) + s - [s],  [.] without a gradient

A bound that is a sum over states, sum_k q_k f_k, is estimated by sum_k weights_k f_k. Its value is f_z of a draw of the
discrete z itself, so the loss stays the negative ELBO of the discrete model, and f's own parameters get an unbiased gradient.
That of q is sum_k f_k grad s_k, whose mean is sum_k f_k grad E[s_k] where grad q_k is wanted: biased, the less so the lower the
temperature, while its variance grows. (The concrete densities that Maddison et al. put in the place of q and the prior
bound another model's evidence.)

Maddison, Mnih, Teh 2017; Jang, Gu, Poole 2017. Lecture: "Bayesian Control Flow".
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

#: Where the annealing of Jang et al. ends.
TEMPERATURE = 0.5


def checked_temperature(value: Any) -> float:
    """The temperature, `TEMPERATURE` where it is None.

    Raises:
        ValueError: it is not a positive number.
    """
    value = TEMPERATURE if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"temperature must be a positive number, got {value!r}")
    return float(value)


def straight_through(logits: Tensor, temperature: float) -> Tensor:
    """Return weights of the states, those of one draw in value and of the concrete draw in gradient, both `(..., K)`.

    Args:
        logits: of q, `(..., K)`.
    """
    tiny = torch.finfo(logits.dtype).tiny  # a uniform number may be 0, whose Gumbel is minus infinity
    u = torch.rand(logits.shape, dtype=logits.dtype, device=logits.device).clamp_min(tiny)
    scores = torch.log_softmax(logits, -1) - torch.log(-torch.log(u))
    soft = torch.softmax(scores / temperature, -1)
    hard = torch.zeros_like(soft).scatter(-1, scores.argmax(-1, keepdim=True), 1.0)
    return hard + soft - soft.detach()
