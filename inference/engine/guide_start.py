"""How a guide begins: a climb of the model's log density in the guide's own coordinates."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..estimators.objective import Objective
from ..target.density import EachDraw, discrete_marginals, log_joint, model_factors, total
from ..target.start import Start, find_start
from .owned import Owned


def start_guide(
    owned: Owned, objective: Objective, full: Mapping[str, Any], restart: int, *, mode: bool = True
) -> Start | None:
    """Begins a guide where the log density has its mode; None for guides that take no start.

    Args:
        full: the keyword arguments of model and guide on all rows.
        restart: the first begins at the prior's centre, the others around it.
        mode: whether the mode is wanted of models that say themselves where to begin, as networks do.
    """
    guide = owned.guide
    if isinstance(getattr(guide, "continuous", None), nn.Module):
        guide = guide.continuous  # the discrete tables follow from the continuous start
    if not hasattr(guide, "initialize") or not hasattr(guide, "space"):
        return None
    space, program, model = guide.space, objective.program, owned.model
    begin = getattr(model, "initial_values", None)
    given: Start | None = None
    if begin is not None:
        given = _as_told(begin(restart), space)
        members = getattr(guide, "members", None)
        if members is not None:
            guide.initialize_members([_as_told(begin(restart * members + k), space) for k in range(members)])
            return given
        if not mode:
            guide.initialize(given)
            return given

    def log_density(u: Tensor) -> Tensor:
        if objective.surrogate == "likelihood":
            factors = model_factors(program, model, full, space.constrain(u))
            return total(factor for factor in factors if factor.observed)
        values, log_det = {}, torch.zeros(())
        for name, (value, part) in space.constrain_with_log_det(u).items():
            values[name] = value
            log_det = log_det + part.sum()
        log_p = log_joint(program, model, full, values)
        return log_p if objective.surrogate == "joint" else log_p + log_det

    each = EachDraw()

    def batched(points: Tensor) -> Tensor:
        result: Tensor = each(lambda v: log_density(v["u"]), {"u": points})
        return result

    u = guide.center.detach().clone() if given is None else given.mean
    if restart and given is None:
        u = u + 2.0 * torch.rand_like(u) * torch.sign(torch.randn_like(u))
    with _frozen(owned):
        if not math.isfinite(float(log_density(u).detach())):
            u = _finite_point(log_density, u)

        def elsewhere() -> Tensor:
            # Unconstrained coordinates have unit scale for standardised models; a prior's own sd where it has one.
            point = guide.center + torch.randn_like(u) * _prior_scale(space)
            return point if math.isfinite(float(log_density(point).detach())) else _finite_point(log_density, u)

        # Of a network as a point nothing counts but the objective; elsewhere the density may have poles, where nothing is learnt.
        highest = given is not None and getattr(guide, "is_point", False)
        others = [elsewhere] * (4 if objective.surrogate is None else 2)
        start = find_start(log_density, u, batched=batched, others=others, highest=highest)
    if given is not None and getattr(guide, "starts_at_mode", False) and not start.converged:
        # Weights of hidden layers have ridges and saddles instead of a mode, whose curvature would mislead.
        guide.initialize(given)
        return given
    guide.initialize(start)
    if guide is not owned.guide:
        with torch.no_grad():
            owned.guide.set_tables(discrete_marginals(program, model, full, space.constrain(start.mean)))
    if restart and objective.surrogate is None:
        guide.disperse()
    return start


def _as_told(values: Mapping[str, tuple[Tensor, Tensor]], space: Any) -> Start:
    """The start that a model asks for, in its latents' own units."""
    mean = space.join({name: value for name, (value, _) in values.items()})
    sd = torch.cat([values[name][1].reshape(-1) for name in space.sites])
    return Start(mean, None, sd, (), False, "the fit began where the model says", raw=True)


@contextlib.contextmanager
def _frozen(owned: Owned) -> Iterator[None]:
    """The model's own parameters take no gradient while the start climbs over the latents."""
    parameters = [p for p in owned.parameters().values() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", ".*was not registered in the param store because requires_grad=False", UserWarning
            )
            yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


def _prior_scale(space: Any) -> Tensor:
    """(D,) each real-valued site's prior sd, one in the unconstrained coordinates of other sites."""
    parts = []
    for name, shape in space.shapes.items():
        site = space.sites[name]
        scale = torch.ones(shape)
        if shape == site.shape:
            with contextlib.suppress(NotImplementedError, AttributeError, ValueError):
                sd = site.distribution.variance.sqrt().expand(shape)
                if site.support.event_dim <= 1 and bool(torch.isfinite(sd).all()) and site.support.check(-sd).all():
                    scale = sd
        parts.append(scale.reshape(-1))
    return torch.cat(parts)


def _finite_point(log_density: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    for scale in (0.0, 0.1, 0.5, 1.0, 2.0):
        for _ in range(10):
            trial = torch.randn_like(u) * scale
            if math.isfinite(float(log_density(trial).detach())):
                return trial
    raise ValueError(
        "the log density is not finite anywhere near the prior's mean: look for observations outside the likelihood's "
        "support, NaN in the data, or a prior without mass"
    )
