"""KL weight from 0 to 1 over the first half of a fit: the last half maximises the untempered bound.

From the first step on, the KL alone would pull most hidden units of a network with few data to the prior before they have learned
anything, and a unit whose outgoing weights are at the prior does not come back (Sønderby et al. 2016 on the same in autoencoders).
"""

from __future__ import annotations

#: Families whose loss has a KL that a weight applies to.
ELBO_FAMILIES = ("mean_field", "low_rank")


def kl_weight(step: int, steps: int) -> float:
    """The weight at a step."""
    return min(1.0, step / (0.5 * steps))
