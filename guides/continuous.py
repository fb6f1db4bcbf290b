"""What the density families share: the affine frame that the start gives them, and how a flat draw becomes sites.

A continuous family draws v near N(0, I) and returns u = center + frame v in unconstrained coordinates, where `center` and
`frame` (a posterior mode and its curvature) come from the start and are fixed. All trained parameters are therefore in
units of posterior sds, one step size suits every model, and a change of a parameter means the same everywhere.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import constraints

from ..inference.target.program import DATA_PLATE, BoundData, Program, Site, base_of, describe
from ..inference.target.start import DENSE_LIMIT, Start
from ..inference.target.unconstrained import Unconstrained


class ContinuousGuide(PyroModule):
    """Base of the families over continuous latents; each has an `initialize(start)` that puts its frame where the start is.

    Attributes:
        family: the name that people write.
        objective: `elbo`, a proper bound, or `surrogate`.
        scale_free: whether the parameters are in units of posterior sds.
        path_derivative: set by the runner where the objective allows it, see `PathDerivative`; None in families without it.
    """

    family = "continuous"
    objective = "elbo"
    scale_free = True
    factorized = False
    path_derivative: bool | None = False

    def __init__(self, model: Callable[..., Any], data: BoundData) -> None:
        super().__init__()
        self.program: Program = describe(model, data)
        sites = self.program.continuous
        if not sites:
            raise ValueError(
                f"guide '{self.family}' needs continuous latents, and the model has none; its discrete sites "
                f"({', '.join(self.program.discrete) or 'none'}) are summed out or enumerated without it"
            )
        self.space = Unconstrained(sites)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the parameters."""
        return next(iter([*self.parameters(), *self.buffers()])).dtype

    def disperse(self, generator_scale: float = 2.0) -> None:
        """Moves the parameters away from the start, for an independent restart: means by about two posterior sds."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(torch.randn_like(parameter) * generator_scale * (1.0 if parameter is self._offset else 0.1))

    @property
    def _offset(self) -> Tensor | None:
        offset = getattr(self, "offset", None)
        return offset if isinstance(offset, Tensor) else None

    @contextlib.contextmanager
    def widened(self, factor: float) -> Iterator[None]:
        """The same guide with all sds multiplied by `factor`, for as long as the block lasts.

        Draws from the widened guide reach the tails that the fitted one may have cut off, which its own draws cannot show.
        """
        before = {name: p.detach().clone() for name, p in self.named_parameters()}
        with torch.no_grad():
            self._widen(factor)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in self.named_parameters():
                    p.copy_(before[name])

    def _widen(self, factor: float) -> None:
        """Multiplies the sds in place; families whose sds are not parameters leave it out."""

    @property
    def can_widen(self) -> bool:
        """Whether `widened` does anything."""
        return type(self)._widen is not ContinuousGuide._widen

    def refuse_minibatch(self, index: Tensor | None) -> None:
        """A joint density over latents of single observations cannot be subsampled."""
        if index is not None and self.program.local:
            raise ValueError(
                f"guide '{self.family}' is one joint density over all observations' latents ({', '.join(self.program.local)}), "
                "so it cannot be trained on minibatches; use 'mean_field' or 'structured', or leave out batch_size"
            )


def is_real(site: Site) -> bool:
    """Whether a site's values are their own unconstrained coordinates."""
    support = site.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    # By type: a copied guide holds a copy of the constraint.
    return isinstance(support, type(constraints.real))


def normal_in(site: Site, loc: Tensor, scale: Tensor) -> Any:
    """q of one site in its own support, a normal in unconstrained coordinates; `loc` and `scale` have their shape."""
    transform = torch.distributions.biject_to(site.support)
    base = dist.Normal(loc, scale)
    if is_real(site):
        return base.to_event(site.event_dim)
    depth = transform.domain.event_dim
    fn = dist.TransformedDistribution(base.to_event(depth), [transform])
    return fn.to_event(site.event_dim - transform.codomain.event_dim)


def first_basis(center: Tensor, scale: float) -> Tensor:
    """The coordinates in which means move before the start is known: a matrix (D, D), or its diagonal (D,) above `DENSE_LIMIT`.

    In the start's own coordinates no direction is steeper than another.
    """
    return scale * (torch.eye(len(center), dtype=center.dtype) if len(center) <= DENSE_LIMIT else torch.ones_like(center))


def set_basis(basis: Tensor, start: Start) -> None:
    """Takes the start's coordinates: its covariance's Cholesky factor, its scales, or the latents' own units."""
    diagonal = torch.ones_like(start.mean) if start.raw else start.conditional_sd
    if basis.dim() == 1:
        basis.copy_(diagonal)
    else:
        basis.copy_(torch.diag(diagonal) if start.scale_tril is None else start.scale_tril)


def moved(basis: Tensor, offset: Tensor) -> Tensor:
    """The step (D,) that an offset (D,) means in the latents' coordinates."""
    return basis * offset if basis.dim() == 1 else basis @ offset


def prior_scale_values(program: Program, space: Unconstrained) -> Tensor:
    """A starting point u (D,): each site's prior mean where it has one, else a value inside its support."""
    values = {}
    for name, site in space.sites.items():
        values[name] = _central(site)
    return space.join(values)


def _central(site: Site) -> Tensor:
    fn = site.distribution
    try:
        mean = fn.mean
        if isinstance(mean, Tensor) and bool(torch.isfinite(mean).all()) and bool(fn.support.check(mean).all()):
            return mean.expand(site.shape).clone()
    except (NotImplementedError, AttributeError, ValueError):
        pass
    transform = torch.distributions.biject_to(site.support)
    shape = transform.inverse_shape(site.shape)
    like = next(iter(v for v in vars(fn).values() if isinstance(v, Tensor) and v.is_floating_point()), torch.zeros(()))
    value: Tensor = transform(torch.zeros(shape, dtype=like.dtype, device=like.device))
    return value


#: The plates that a guide has opened and lends to one of its parts; in a trace each must stand once.
_LENT: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar("plates", default=None)


class Plates:
    """Opens the model's plates in a guide, each once, the data plate with the batch's rows."""

    def __init__(self, program: Program, index: Tensor | None) -> None:
        self.program = program
        self.index = index
        lent = _LENT.get()
        self.open: dict[str, Any] = {} if lent is None else lent

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Inside, a part of the guide takes these plates for its own."""
        token = _LENT.set(self.open)
        try:
            yield
        finally:
            _LENT.reset(token)

    @contextlib.contextmanager
    def around(self, site: Site) -> Iterator[None]:
        """The plates of one site, as nested contexts."""
        with contextlib.ExitStack() as stack:
            for plate in site.plates:
                rows = self.index if plate.name == DATA_PLATE else None
                stack.enter_context(self.plate(plate.name, plate.size, rows, plate.dim))
            yield

    def plate(self, name: str, size: int, rows: Tensor | None, dim: int) -> Any:
        """One plate, made when it is first wanted: making it is what a trace records."""
        if name not in self.open:
            self.open[name] = pyro.plate(name, size, subsample=rows, dim=dim)
        return self.open[name]

    def rows(self, site: Site, value: Tensor) -> Tensor:
        """The batch's rows of a per-observation tensor whose leading dimensions are the site's plates."""
        if self.index is None or not site.local:
            return value
        dim = next(plate.dim for plate in site.plates if plate.name == DATA_PLATE)
        return value.index_select(len(site.batch_shape) + dim, self.index)


def sample_joint(guide: ContinuousGuide, base: Any, plates: Plates) -> dict[str, Tensor]:
    """Draws the flat vector from `base` and writes each site as a `Delta` that carries the Jacobian of its transform."""
    u = pyro.sample(f"_{guide.family}", base, infer={"is_auxiliary": True})
    values = {}
    for name, (value, log_det) in guide.space.constrain_with_log_det(u).items():
        site = guide.space.sites[name]
        with plates.around(site):
            density = -log_det if site.support is not torch.distributions.constraints.real else 0.0
            delta = dist.Delta(value, log_density=density, event_dim=site.event_dim)
            values[name] = pyro.sample(name, delta)
    return values


def refuse_poles(guide: ContinuousGuide) -> None:
    """Raises ValueError where a prior's density is infinite somewhere, which a search for the highest density would find."""
    for name, site in guide.space.sites.items():
        if getattr(base_of(site.distribution), "improper", False):
            raise ValueError(
                f"guide '{guide.family}' looks for the highest density, and the prior of '{name}' has it at zero, where it is infinite; use "
                "'sparse_vd', which is made for this prior, or 'mle', which does not look at it"
            )
