"""Posteriors of the latents of single observations: from an inference network, or from a table.

    q(z | x) = prod_n q(z_n; r_n),    r_n = network(x_n)   or   r_n = row n of a table

| word | r | q of one observation's latents, in unconstrained coordinates |
|---|---|---|
| `amortized` | network | independent normals |
| `amortized_full_rank` | network | a multivariate normal |
| `amortized_iaf` | network | an inverse autoregressive flow with the network's features as its context |
| `per_datum` | table | independent normals |

One network serves all observations, new ones, too, and training takes minibatches. What it loses against a table with a row
for each observation is the amortisation gap (Cremer, Li, Duvenaud 2018); `fit.inference_gap` measures it.
Lecture: "Bayesian Generative Models"; Kingma, Welling 2014 (normals), Kingma et al. 2016 (flow).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import zuko
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import biject_to, constraints
from torch.nn import functional as F

from ..inference.target.program import DATA_PLATE, BoundData, Site, describe, row_tensors
from .continuous import Plates, is_real, normal_in
from .flow import identity_flow
from .own_draws import OwnDraws
from .path_derivative import PathDerivative

#: What is added to the raw scale, so that a network that puts out zeros means a standard deviation of one.
_ONE = math.log(math.e - 1)


class LocalPosterior(PyroModule):
    """Base: which latents there are, how long their unconstrained vector is, and how a draw of it becomes sites.

    Attributes:
        path_derivative: set by the runner where the objective allows it, see `PathDerivative`; None in families without it.
        amortized: whether q can be asked about observations that were not in the training data.
        sites: the continuous latents, all of them inside the data plate.
        sizes: how many unconstrained numbers each has in one observation.
    """

    family = "local"
    objective = "elbo"
    factorized = False
    amortized = True
    path_derivative: bool | None = False

    def __init__(self, model: Callable[..., Any], data: BoundData) -> None:
        super().__init__()
        self.program = describe(model, data)
        shared = [name for name, site in self.program.continuous.items() if not site.local]
        if shared or not self.program.local:
            what = f"'{shared[0]}' is shared by all" if shared else "the model has none"
            raise ValueError(
                f"guide '{self.family}' is for latents of single observations, and {what}; use 'structured', 'mean_field' or 'full_rank'"
            )
        self.sites = self.program.local
        for site in self.sites.values():
            if len(site.batch_shape) != 1:
                raise ValueError(
                    f"site '{site.name}' lies in further plates beside the data's; guide '{self.family}' takes vectors instead, to_event"
                )
        self.shapes = {name: _row_shape(site) for name, site in self.sites.items()}
        self.sizes = {name: shape.numel() for name, shape in self.shapes.items()}
        self.size = sum(self.sizes.values())

    def rows(self, values: Mapping[str, Any], index: Tensor | None = None) -> Tensor:
        """The numbers `(B, R)` that q of these observations is made of: what a network puts out, or rows of a table."""
        raise NotImplementedError

    def draw(self, rows: Tensor, plate: Any) -> None:
        """Draws the latents of observations whose q is made of such numbers.

        Here each site from normals of its own, means and raw scales `(B, 2 size)`; they have a closed-form KL to normal priors.
        """
        loc, raw = rows.chunk(2, -1)
        means, sds = self.split(loc), self.split(positive(raw))
        with plate:
            for name, site in self.sites.items():
                m, s = means[name], sds[name]
                fn = normal_in(site, m, s)
                if self.path_derivative:
                    fn = PathDerivative(fn, normal_in(site, m.detach(), s.detach()))
                pyro.sample(name, fn)

    def forward(self, *args: Any, index: Tensor | None = None, **kwargs: Any) -> None:
        """Draws the latents of these observations."""
        rows = self.rows(kwargs, index)
        self.draw(rows, self.plate(len(rows), index, kwargs))

    def split(self, u: Tensor) -> dict[str, Tensor]:
        """The parts of `(B, size)` that belong to each site, `(B, *shape)`."""
        parts = u.split(list(self.sizes.values()), -1)
        return {n: p.reshape(*p.shape[:-1], *self.shapes[n]) for n, p in zip(self.sites, parts, strict=True)}

    def plate(self, rows: int, index: Tensor | None, values: Mapping[str, Any]) -> Any:
        """The data plate with these observations, which need not be those of the training data."""
        dim = next(iter(self.sites.values())).plates[0].dim
        size = rows if index is None else values.get("num_data") or self.program.num_data
        return Plates(self.program, index).plate(DATA_PLATE, size, index, dim)

    def draw_jointly(self, base: Any, plate: Any) -> None:
        """Draws one vector an observation from `base`, and writes each site as a `Delta` that carries its Jacobian."""
        with plate:
            u = pyro.sample(f"_{self.family}", base, infer={"is_auxiliary": True})
            for name, part in self.split(u).items():
                site = self.sites[name]
                if is_real(site):
                    pyro.sample(name, dist.Delta(part, event_dim=site.event_dim))
                    continue
                transform = biject_to(site.support)
                value = transform(part)
                log_det = transform.log_abs_det_jacobian(part, value)
                density = -log_det.flatten(1).sum(1) if log_det.dim() > 1 else -log_det
                pyro.sample(name, dist.Delta(value, log_density=density, event_dim=site.event_dim))


class Amortized(LocalPosterior):
    """Independent normals whose means and standard deviations a network puts out.

    Args:
        network: body of the inference network, from an observation `(B, ...)` to features `(B, H)`; None takes the model's own
            (`model.inference_network()`), or a multilayer perceptron over all that is known of an observation.
        hidden: widths of that perceptron.
    """

    family = "amortized"
    factorized = True
    #: Networks take smaller steps than parameters in units of posterior sds.
    first_step = 0.002

    def __init__(
        self,
        model: Callable[..., Any],
        data: BoundData,
        *,
        network: nn.Module | None = None,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(model, data)
        self.features = Features(model, data, network, hidden)
        self.head = nn.Linear(self.features.size, self.num_outputs)
        with torch.no_grad():  # begins near a standard normal
            self.head.weight.mul_(0.1)
            self.head.bias.zero_()

    @property
    def num_outputs(self) -> int:
        """Numbers that the network puts out for each observation."""
        return 2 * self.size

    def rows(self, values: Mapping[str, Any], index: Tensor | None = None) -> Tensor:
        """What the network puts out."""
        out: Tensor = self.head(self.features(values))
        return out

    def given(self, values: Mapping[str, Any]) -> Tensor | None:
        """What a body of the user's says of these observations, who may have it look across them; None if the body is ours."""
        return self.features(values) if self.features.foreign else None


class AmortizedFullRank(Amortized):
    """A multivariate normal for each observation, mean and factor from a network; options as `amortized`."""

    family = "amortized_full_rank"
    factorized = False

    @property
    def num_outputs(self) -> int:
        """The mean, and a square of which the lower triangle counts."""
        return self.size + self.size**2

    def draw(self, rows: Tensor, plate: Any) -> None:
        """Draws from means and factors."""
        loc, square = rows[..., : self.size], rows[..., self.size :].unflatten(-1, (self.size, self.size))
        factor = square.tril(-1) + torch.diag_embed(positive(square.diagonal(dim1=-2, dim2=-1)))
        base: Any = OwnDraws(loc, scale_tril=factor)
        if self.path_derivative:
            base = PathDerivative(base, OwnDraws(loc.detach(), scale_tril=factor.detach()))
        self.draw_jointly(base, plate)


class AmortizedFlow(Amortized):
    """Normals of a network bent by an inverse autoregressive flow whose networks see the features, too.

    Args:
        network, hidden: as `amortized`.
        transforms: number of transforms.
        widths: of each transform's hidden layers.
    """

    family = "amortized_iaf"
    factorized = False
    path_derivative = None

    def __init__(
        self,
        model: Callable[..., Any],
        data: BoundData,
        *,
        network: nn.Module | None = None,
        hidden: Sequence[int] = (64, 64),
        transforms: int = 2,
        widths: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(model, data, network=network, hidden=hidden)
        if transforms < 1:
            raise ValueError(f"transforms must be at least 1, got {transforms}")
        made = zuko.flows.MAF(self.size, self.features.size, transforms=transforms, hidden_features=tuple(widths))
        self.flow = identity_flow(zuko.flows.Flow(made.transform.inv, made.base))

    def rows(self, values: Mapping[str, Any], index: Tensor | None = None) -> Tensor:
        """What the network puts out, and its features, the flow's context."""
        features = self.features(values)
        return torch.cat([self.head(features), features], -1)

    def draw(self, rows: Tensor, plate: Any) -> None:
        """Draws from normals and bends them."""
        loc, raw, context = rows.split([self.size, self.size, self.features.size], -1)
        self.draw_jointly(_FlowedRows(self.flow(context), loc, positive(raw)), plate)


class PerDatum(LocalPosterior):
    """Independent normals with free means and standard deviations for each observation of the training data."""

    family = "per_datum"
    factorized = True
    amortized = False

    def __init__(self, model: Callable[..., Any], data: BoundData) -> None:
        super().__init__(model, data)
        self.table = nn.Parameter(0.01 * torch.randn(len(data), 2 * self.size))

    def rows(self, values: Mapping[str, Any], index: Tensor | None = None) -> Tensor:
        """Rows of the table."""
        return self.table if index is None else self.table[index]

    def select(self, rows: Tensor) -> PerDatum:
        """The same posteriors for some rows of the training data."""
        part = copy.deepcopy(self)
        part.table = nn.Parameter(self.table.detach()[rows])
        return part


def feature_count(network: Any, seen: Tensor, names: Sequence[str]) -> int:
    """How many features the body of an inference network puts out.

    Args:
        network: from observations to features `(N, H)`.
        seen: one or two observations.
        names: what they are called together.

    Raises:
        ValueError: it takes others, or puts out anything but features.
    """
    if not isinstance(network, nn.Module):
        raise ValueError(f"the body of an inference network is a torch.nn.Module, got {type(network).__name__}")
    try:
        with torch.no_grad():
            out: Tensor = network(seen)
    except RuntimeError as error:
        other = ", or use guide='semi_supervised' for SemiSupervisedVAE" if {"x", "y"} <= set(names) else ""
        raise ValueError(
            f"the body of the inference network does not take {' and '.join(names)} of an observation, {tuple(seen.shape[1:])} numbers "
            f"({str(error).splitlines()[0]}); give one that does, guide_options={{'network': ...}}{other}"
        ) from error
    if out.dim() != 2 or len(out) != len(seen):
        raise ValueError(
            f"the body of an inference network puts out features (N, H), and this one puts out {tuple(out.shape)} for {len(seen)} "
            "observations; end it with nn.Flatten()"
        )
    return int(out.shape[1])


class Features(nn.Module):
    """What an inference network sees of each observation: inputs and observed values, through a body of hidden layers.

    Attributes:
        foreign: whether the body is a user's, who may have it look across the rows.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, model: Callable[..., Any], data: BoundData, network: nn.Module | None, hidden: Sequence[int]) -> None:
        super().__init__()
        rows = row_tensors(model, data)
        if not rows:
            raise ValueError("an inference network needs something to look at, and these data have no tensor with a row each")
        self.names = list(rows)
        own = getattr(model, "inference_network", None)
        zoo = type(model).__module__.partition(".")[0] == __name__.partition(".")[0]
        self.foreign = network is not None or (own is not None and not zoo)
        if network is None and own is not None:
            network = own()
        self.pictures = network is not None
        if network is None:
            widths = [sum(v[0].numel() for v in rows.values()), *hidden]
            network = nn.Sequential()
            for a, b in itertools.pairwise(widths):
                network.extend([nn.Linear(a, b), nn.ReLU()])
        self.network = network
        seen = self._seen({name: value.to(torch.get_default_dtype()) for name, value in rows.items()})
        # One scale for all, so that a pixel which is nearly always black does not shout.
        self.register_buffer("center", seen.mean(0))
        self.register_buffer("scale", (seen - seen.mean(0)).square().mean().sqrt().clamp_min(1e-6))
        self.size = feature_count(self.network, ((seen[:2] - self.center) / self.scale).to(seen.dtype), self.names)

    def _seen(self, values: Mapping[str, Any]) -> Tensor:
        if len(self.names) == 1 and self.pictures:
            x: Tensor = values[self.names[0]]
            return x
        return torch.cat([values[name].reshape(len(values[name]), -1) for name in self.names], -1)

    def forward(self, values: Mapping[str, Any]) -> Tensor:
        """Features `(B, H)` of these observations."""
        out: Tensor = self.network((self._seen(values) - self.center) / self.scale)
        return out


class _FlowedRows(dist.TorchDistribution):
    """u = loc + scale f(e), row by row, with one evaluation of the flow a draw; it scores its own draws alone."""

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, flow: Any, loc: Tensor, scale: Tensor) -> None:
        self.flow, self.loc, self.scale = flow, loc, scale
        self._draw: tuple[Tensor, Tensor] | None = None
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _FlowedRows:
        """The rows are what they are."""
        return self

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """A draw with a gradient."""
        v, log_prob = self.flow.rsample_and_log_prob(sample_shape)
        u = self.loc + self.scale * v
        self._draw = (u, log_prob - self.scale.log().sum(-1))
        return u

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, of any value."""
        if self._draw is not None and self._draw[0] is value:
            return self._draw[1]
        log_prob: Tensor = self.flow.log_prob((value - self.loc) / self.scale) - self.scale.log().sum(-1)
        return log_prob


def positive(raw: Tensor) -> Tensor:
    """A standard deviation of any size; one at zero."""
    return F.softplus(raw + _ONE) + 1e-6


def _row_shape(site: Site) -> torch.Size:
    """Shape of one observation's latent in unconstrained coordinates."""
    return torch.Size(biject_to(site.support).inverse_shape(site.shape)[1:])
