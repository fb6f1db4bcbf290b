"""Discrete latents in the guide: q(z) in a table, or computed from the inputs; summed exactly, or drawn.

| word | q(z) | its expectation |
|---|---|---|
| `exact` | the posterior given the other latents: no site in the guide, z is summed out of the model | exact |
| `table` | a row of probabilities for each z: one for a shared z, N for one an observation | summed |
| `global` | one row of probabilities, the same for all observations | summed |
| `amortized` | a network of the observation's inputs | summed |
| `reinforce` | the same network | drawn; the gradient is REINFORCE's, with a learned baseline |
| `relaxed` | the same network, a table for a shared z | drawn; the gradient is a concrete draw's, biased (see `relaxed`) |

Where states are summed nothing is drawn, at the same cost as `relaxed`, which runs them all, too. Where observations share one z,
`global` and `table` are the same. Where each has its own, `exact`, `table` and `amortized` let every state answer for the
observations that it explains best; under `global` each state answers for all of them, so that its probabilities are to be relied on
by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from ..inference.target.program import DATA_PLATE, BoundData, Site, describe
from .continuous import Plates
from .relaxed import checked_temperature, straight_through

#: log p(z) of a state below this is that of one that cannot occur, and no guide gives it a chance.
_IMPOSSIBLE = -1e24

WORDS = ("exact", "table", "global", "amortized", "reinforce", "relaxed")


class DiscreteGuide(PyroModule):
    """A continuous family, or none, with q of the discrete sites beside it.

    Attributes:
        continuous: the guide of the continuous latents, or None where the model has none.
        discrete: what the runner does with discrete sites: `guide` sums over those of the guide.
    """

    objective = "elbo"

    def __init__(
        self,
        model: Callable[..., Any],
        data: BoundData,
        build: Callable[..., Any] | None,
        words: Mapping[str, str] | None = None,
        hidden: int = 64,
        temperature: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.program = describe(model, data)
        self.continuous = build(model, data, **options) if build is not None and self.program.continuous else None
        self.family = getattr(self.continuous, "family", "discrete")
        if self.continuous is None and options:
            raise ValueError(
                f"guides of discrete latents have the options hidden and temperature, and no {next(iter(options))!r}"
            )
        if isinstance(hidden, bool) or not isinstance(hidden, int) or hidden < 1:
            raise ValueError(f"hidden is the width of a layer and must be a whole number of at least 1, got {hidden!r}")
        if getattr(self.continuous, "objective", "elbo") == "surrogate":
            raise ValueError(
                f"guide '{self.family}' is a point without a density and cannot enumerate; sum discrete latents out of the model, by "
                "'exact' in their place or discrete='marginalize'"
            )
        words = words or dict.fromkeys(self.program.discrete, "table")
        self.sites = {name: site for name, site in self.program.discrete.items() if words[name] != "exact"}
        drawn = [name for name, word in words.items() if word == "reinforce"]
        if drawn and len(drawn) < len(words):
            raise ValueError(
                f"site '{drawn[0]}' is drawn and the others are summed; give all discrete latents 'reinforce', or none"
            )
        self.discrete = "marginalize" if drawn or not self.sites else "guide"
        self.relaxed = frozenset(name for name, word in words.items() if word == "relaxed")
        if temperature is not None and not self.relaxed:
            raise ValueError("temperature is that of 'relaxed' draws, and no discrete latent has this guide; leave it out")
        self.temperature = checked_temperature(temperature)
        features = _Features(model, data)
        self.parts = nn.ModuleList()
        for name, site in self.sites.items():
            if site.event_dim and site.distribution.event_shape.numel() > 1:
                raise ValueError(
                    f"site '{site.name}' has vector-valued states; write it with Categorical to enumerate it in the guide"
                )
            self.parts.append(_part(words[name], site, features, hidden))
            self.parts[-1].register_buffer("possible", _possible(site), persistent=False)

    def set_tables(self, probs: Mapping[str, Tensor]) -> None:
        """Begins the tables at given probabilities, each (*plates, K); networks begin where they are."""
        for name, part in zip(self.sites, self.parts, strict=True):
            if isinstance(part, Table | Shared):
                part.logits.copy_(part.of(probs[name]).clamp_min(1e-6).log())

    def forward(self, *args: Any, index: Tensor | None = None, **kwargs: Any) -> None:
        """Draws the continuous latents and each discrete one."""
        plates = Plates(self.program, index)
        if self.continuous is not None:
            with plates.lent():
                self.continuous(*args, index=index, **kwargs)
        for (name, site), part in zip(self.sites.items(), self.parts, strict=True):
            logits, infer = part(index, kwargs)
            logits = _masked(part, logits)
            if name in self.relaxed:
                infer = {"relaxed": straight_through(logits, self.temperature)}
            with plates.around(site):
                pyro.sample(name, _over(site, logits), infer=infer)

    def probs(self, name: str, index: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Return q(z) of one discrete site for some inputs: (N, K), or (K,) where all observations share it.

        Args:
            index: (N,) the rows of the training data that the inputs are, which a table needs.

        Raises:
            ValueError: the site has a table, which says nothing of new inputs.
        """
        part = self.parts[list(self.sites).index(name)]
        if isinstance(part, Table) and part.site.local and index is None:
            raise ValueError(
                f"q of '{name}' is a table of the training data and says nothing of new inputs; fit with 'amortized'"
            )
        return torch.softmax(_masked(part, part(index, kwargs)[0]), -1)


class Table(nn.Module):
    """Free probabilities."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site
        self.logits = nn.Parameter(0.01 * torch.randn(*site.batch_shape, _states(site)))

    @staticmethod
    def of(probs: Tensor) -> Tensor:
        """What the table holds of given probabilities (*plates, K): all of them."""
        return probs

    def forward(self, index: Tensor | None, inputs: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Logits (*plates, K) of the batch's rows."""
        if index is None or not self.site.local:
            return self.logits, {}
        return self.logits.index_select(_data_dim(self.site), index), {}


class Shared(nn.Module):
    """Free probabilities, the same for all observations, each of which has its own z."""

    def __init__(self, site: Site, features: _Features) -> None:
        super().__init__()
        self.site, self.features = site, features
        self.logits = nn.Parameter(0.01 * torch.randn(_states(site)))

    @staticmethod
    def of(probs: Tensor) -> Tensor:
        """The mean of given probabilities (*plates, K)."""
        return probs.flatten(0, -2).mean(0)

    def forward(self, index: Tensor | None, inputs: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Logits (*plates, K) of the batch's rows."""
        shape = list(self.site.batch_shape)
        of_rows = [inputs[name] for name in self.features.names if name in inputs] + ([] if index is None else [index])
        if of_rows:
            shape[_data_dim(self.site)] = len(of_rows[0])
        return self.logits.expand(*shape, -1), {}


class Amortized(nn.Module):
    """Probabilities from the inputs, by one hidden layer; with a baseline for REINFORCE from another."""

    def __init__(self, site: Site, features: _Features, hidden: int, *, baseline: bool) -> None:
        super().__init__()
        if not site.local or len(site.batch_shape) != 1:
            raise ValueError(
                f"site '{site.name}' is shared by all observations, so nothing of one observation's inputs can tell it; use 'global', "
                "one table of probabilities"
            )
        self.features = features
        self.net = _small_net(features.size, hidden, _states(site))
        self.baseline = _small_net(features.size, hidden, 1) if baseline else None

    def forward(self, index: Tensor | None, inputs: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Logits (N, K) of these rows."""
        x = self.features(inputs)
        return self.net(x), {} if self.baseline is None else {"baseline": self.baseline(x).squeeze(-1)}


class _Features:
    """The inputs of each observation as one row of numbers: all tensors of the model's call but what it observes."""

    def __init__(self, model: Callable[..., Any], data: BoundData) -> None:
        self.names = [
            name
            for name, value in data.bind(model, observed=False).items()
            if isinstance(value, Tensor) and value.dim() >= 1 and len(value) == len(data) and name != "index"
        ]
        rows = [data.bind(model, observed=False)[name][:1] for name in self.names]
        self.size = sum(row.numel() for row in rows)

    def __call__(self, inputs: Mapping[str, Any]) -> Tensor:
        rows = [inputs[name].reshape(len(inputs[name]), -1) for name in self.names]
        return rows[0] if len(rows) == 1 else torch.cat(rows, -1)


def _part(word: str, site: Site, features: _Features, hidden: int) -> nn.Module:
    if word == "global" and site.local:
        return Shared(site, features)
    if word in ("table", "global") or (word == "relaxed" and not site.local):
        return Table(site)
    if not features.size:
        raise ValueError(f"guide '{word}' for '{site.name}' is a network of the model's inputs, and it has none; use 'table'")
    return Amortized(site, features, hidden, baseline=word == "reinforce")


def _small_net(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    last = nn.Linear(hidden, outputs)
    with torch.no_grad():  # begins near the uniform distribution
        last.weight.mul_(0.1)
        nn.init.zeros_(last.bias)
    net = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), last)
    return net


def _data_dim(site: Site) -> int:
    return next(len(site.batch_shape) + p.dim for p in site.plates if p.name == DATA_PLATE)


def _possible(site: Site) -> Tensor | None:
    """Which states the prior allows, (K,); None where it allows all of them."""
    with torch.no_grad():
        log_p = site.distribution.log_prob(site.distribution.enumerate_support(expand=False))
    allowed = (log_p > _IMPOSSIBLE).reshape(len(log_p), -1).any(1)
    return None if bool(allowed.all()) else allowed


def _masked(part: Any, logits: Tensor) -> Tensor:
    return logits if part.possible is None else logits.masked_fill(~part.possible, 10 * _IMPOSSIBLE)


def _states(site: Site) -> int:
    return int(site.distribution.enumerate_support(expand=False).shape[0])


class Drawn(dist.Categorical):
    """A categorical whose draws come from one uniform number each, which both engines read from their table of noise."""

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """The first state at which the cumulated probabilities exceed a uniform number."""
        u = torch.rand(torch.Size(sample_shape) + self.batch_shape, dtype=self.probs.dtype, device=self.probs.device)
        states: Tensor = (u.unsqueeze(-1) >= self.probs.cumsum(-1)).sum(-1)
        return states.clamp_max(self.probs.shape[-1] - 1)


def _over(site: Site, logits: Tensor) -> Any:
    """A distribution over the site's own states with the given logits."""
    if isinstance(site.distribution, dist.Bernoulli) or "Bernoulli" in type(site.distribution).__name__:
        return dist.Bernoulli(logits=logits[..., 1] - logits[..., 0])
    return Drawn(logits=logits)
