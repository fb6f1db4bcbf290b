"""Free bits: so many nats of KL cost nothing, so that a generator does not learn to do without its codes.

    sum_j max(f, 1/B sum_n KL_nj)    in place of    1/B sum_n sum_j KL_nj

KL_nj is what number j of the latents of observation n adds to KL(q || p(z)), averaged over the batch before the maximum is
taken (Kingma et al. 2016, "Improving variational inference with inverse autoregressive flow", on free bits). A number that
has less than f nats feels no pull towards the prior; one that has more feels all of it. Where the KL of single numbers has no
closed form (correlated normals, flows), all d latent numbers of an observation are one group with d f nats, and its KL is that
of the draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ..target.density import Factor
from ..target.program import DATA_PLATE, Program, sample_sites
from .reinforce import is_random


def bare(fn: Any) -> Any:
    """The distribution whose events are made of independent ones."""
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return fn


def split(kl: Tensor, batch_dims: int) -> Tensor:
    """KL of single numbers `(*batch, *event)` with the event in front, where the plates of a factor do not count."""
    return kl.permute(*range(batch_dims, kl.dim()), *range(batch_dims))


def in_groups(known: Sequence[tuple[Factor, int]], drawn: Sequence[Factor], program: Program, free_bits: float) -> Tensor:
    """(2, G): the KL of each group, scaled to the whole data set, and what of it costs nothing, both in nats.

    Args:
        known: minus the closed-form KL of sites in the data plate, events `split`, and how many numbers each element is of.
        drawn: log p - log q of the draws of all others there, one group.
        free_bits: nats a number and observation.
    """
    totals, numbers = [], []
    for factor, size in known:
        kl = -(factor.log_prob * factor.scale)
        totals.append(kl.sum(factor.plates[DATA_PLATE]).reshape(-1))
        numbers += [size] * totals[-1].numel()
    if drawn:
        totals.append(-sum((factor.total for factor in drawn[1:]), start=drawn[0].total).reshape(1))
        sizes = {name: site.shape.numel() // program.num_data for name, site in program.local.items()}
        numbers.append(sum(size for name, size in sizes.items() if name not in {factor.name for factor, _ in known}))
    kls = torch.cat(totals)
    return torch.stack([kls, kls.new_tensor(numbers) * (free_bits * program.num_data)])


def check_number(free_bits: Any) -> None:
    """Refuses what is no amount of nats."""
    number = isinstance(free_bits, Real) and not isinstance(free_bits, bool)
    if not number or not 0 <= float(free_bits) < math.inf:
        raise ValueError(
            f"free_bits is the nats that each latent number may have at no cost, finite and not negative, got {free_bits!r}"
        )


def check_fit(program: Program, trace: poutine.Trace, estimator: str, surrogate: str | None, guide: str) -> None:
    """Refuses fits without a KL of single observations' latents, or whose gradient it has no part in.

    Args:
        trace: a run of the guide.
        guide: its name.
    """
    if surrogate is not None or estimator == "importance_weighted":
        kind = "an importance-weighted bound" if surrogate is None else "a surrogate"
        raise ValueError(f"free_bits is for an ELBO, and {kind} has no KL term that could cost nothing; leave it out")
    if program.discrete:
        raise ValueError(
            f"free_bits is for models whose latents are all continuous, and '{next(iter(program.discrete))}' is discrete; leave it out, "
            "or use kl_weight"
        )
    if not program.local:
        raise ValueError(
            f"free_bits is for latents of single observations, and '{next(iter(program.latents))}' is shared by all; leave it out, or use "
            "kl_weight"
        )
    drawn = {name: site for name, site in sample_sites(trace) if is_random(site)}
    in_rows = {n for n, s in drawn.items() if any(frame.name == DATA_PLATE for frame in s["cond_indep_stack"])}
    auxiliary = any(drawn[name]["infer"].get("is_auxiliary") for name in in_rows)
    without = [name for name in program.local if name not in in_rows and not auxiliary]
    if without:
        raise ValueError(
            f"guide '{guide}' has no density of single observations' '{without[0]}', so there is no KL to average over them; use "
            "'amortized' or 'mean_field'"
        )
    scored = [name for name in in_rows if not drawn[name]["fn"].has_rsample]
    if scored:
        raise ValueError(
            f"free_bits takes draws that carry a gradient, and guide '{guide}' draws '{scored[0]}' without one; leave it out"
        )
