"""The exact posterior of the hierarchical coin: a grid over its two hyperparameters, Betas given both.

The people are integrated out in closed form (Beta-Binomial), so what is left is a smooth density of two
numbers, shaped like a funnel: the larger kappa, the better mu is known. So each kappa has its own range of
mu. Both ranges find themselves, out to where the density has fallen by 45 nats, and the trapezoid rule,
which converges exponentially, is compared with itself on every second node.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyro
import torch
from pyro.distributions import Beta, BetaBinomial, Binomial, Normal
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from .beta_binomial import CountEvidence
from .exact import GridMixture, Guide, SampledDensity
from .quadrature import DROP, inverse_cdf, log_trapezoid, peak_interval, spread

NODES = (
    129,
    257,
    513,
    1025,
    2049,
    4097,
)  # of an axis; the finer grids are taken where the coarser are not enough
TINY = 1e-300  # smallest mu and concentration, so that Beta takes them
NEAR_ONE = 1.0 - 1e-16  # largest mu that is drawn
TOLERANCE = 1e-9  # nats that the log evidence may differ by from that on every second node


class HierarchicalPosterior:
    """p(mu, kappa, pi | x) of the hierarchical coin.

    The density is the closed form over its integral. Draws of kappa, and of mu given kappa, are by inverse
    CDF from the grid, log-linear between nodes: within 0.003 nats of the density, so no moment shows it below
    100,000 draws.

    Args:
        x: `(N,)` successes.
        total_count: `(N,)` trials, or None for single flips.
        alpha: prior weight of heads.
        beta: prior weight of tails.
        loc: prior mean of log kappa.
        scale: prior standard deviation of log kappa.

    Attributes:
        log_evidence: log p(x) in nats, a scalar.

    Raises:
        ValueError: the finest grid is too coarse, as for priors with an alpha or beta below 0.03.
    """

    def __init__(self, x: Tensor, total_count: Tensor | None, alpha: Tensor, beta: Tensor, loc: Tensor, scale: Tensor) -> None:
        self._x = x
        self._total_count = torch.ones_like(x) if total_count is None else total_count
        self._evidence = CountEvidence(x, self._total_count)
        self._alpha, self._beta = alpha, beta
        self._log_kappa_prior = Normal(loc, scale)
        ends = self._kappa_ends(loc, scale)
        self._inner = self._enough(lambda nodes: self._grid_over(*ends, NODES[0] // 2 + 1, nodes), axis=1)
        outer = self._enough(lambda nodes: self._grid_over(*ends, nodes, self._inner), axis=0)
        self._log_kappa, self._ends, self._table, terms = self._grid_over(*ends, outer, self._inner)
        self.log_evidence = torch.logsumexp(terms.flatten(), 0)

        weights = torch.softmax(terms[::2, ::2].flatten(), 0)
        kept = weights > 1e-16 * weights.max()
        self._weights = weights[kept] / weights[kept].sum()
        logit_mu = spread(*self._ends, self._inner)[::2, ::2]
        log_kappa = self._log_kappa[::2].unsqueeze(1).expand_as(logit_mu)
        self._mu, self._kappa = logit_mu.sigmoid().flatten()[kept], log_kappa.exp().flatten()[kept]
        self._a = (logsigmoid(logit_mu) + log_kappa).exp().flatten()[kept].clamp_min(TINY)
        self._b = (logsigmoid(-logit_mu) + log_kappa).exp().flatten()[kept].clamp_min(TINY)

    def _log_joint(self, logit_mu: Tensor, log_kappa: Tensor) -> Tensor:
        """Return log p(x, logit mu, log kappa) in nats, of the broadcast shape."""
        log_heads, log_tails = logsigmoid(logit_mu), logsigmoid(-logit_mu)
        # The changes of variable leave mu^alpha (1 - mu)^beta of the Beta and make the LogNormal a Normal.
        log_prior = self._alpha * log_heads + self._beta * log_tails
        log_prior = log_prior + torch.lgamma(self._alpha + self._beta)
        log_prior = log_prior - torch.lgamma(self._alpha) - torch.lgamma(self._beta)
        log_prior = log_prior + self._log_kappa_prior.log_prob(log_kappa)
        return log_prior + self._evidence(log_heads + log_kappa, log_tails + log_kappa, log_kappa)

    def _mu_ends(self, log_kappa: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ends of logit mu's range for each kappa, found anew: `(*B,)` each.

        As a function of mu the log density is concave, so there is one peak. Beyond it the tails fall at
        least like mu^alpha and (1 - mu)^beta, which bounds the search.
        """
        heads, flips = self._x.sum(), self._total_count.sum()
        centre = torch.logit((heads + self._alpha) / (flips + self._alpha + self._beta))
        reach = (2.0 * DROP + 2.0 * torch.log1p(flips)) * (1.0 + 1.0 / torch.minimum(self._alpha, self._beta))
        low, high = (centre + sign * reach for sign in (-1.0, 1.0))
        rows = log_kappa.unsqueeze(-1)
        low, high = low.expand_as(log_kappa), high.expand_as(log_kappa)
        return peak_interval(lambda logit_mu: self._log_joint(logit_mu, rows), low, high, nodes=17)

    def _kappa_ends(self, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ends of log kappa's range.

        No kappa explains the counts better than a chance of its own for each person, which bounds what the
        likelihood can gain over that at the prior's median, and so how far from it the posterior reaches.
        """

        def log_marginal(log_kappa: Tensor) -> Tensor:
            logit_mu = spread(*self._mu_ends(log_kappa), NODES[0])
            joint = self._log_joint(logit_mu, log_kappa.unsqueeze(-1))
            return torch.logsumexp(log_trapezoid(logit_mu, joint), -1)

        frequency = self._x / self._total_count.clamp_min(1.0)
        best = Binomial(self._total_count, frequency).log_prob(self._x).sum()
        gain = best - log_marginal(loc.reshape(1))[0] + self._log_kappa_prior.log_prob(loc)
        room = 2.0 * (gain + DROP + 1.0)
        low = loc - scale * room.sqrt()
        high = loc + 2.0 * scale.square() + scale * (4.0 * scale.square() + room).sqrt()
        # kappa's tail is heavy: the tilt keeps its second moment within the grid.
        return peak_interval(log_marginal, low, high, nodes=65, tilt=2.0)

    def _grid_over(
        self, low: Tensor, high: Tensor, outer: int, inner: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor, Tensor]:
        """Return log kappa `(O,)`, logit mu's ends for each, log densities `(O, I)`, and the rule's terms."""
        log_kappa = spread(low, high, outer)
        ends = self._mu_ends(log_kappa)
        logit_mu = spread(*ends, inner)
        table = self._log_joint(logit_mu, log_kappa.unsqueeze(-1))
        terms = log_trapezoid(log_kappa, log_trapezoid(logit_mu, table).mT).mT
        return log_kappa, ends, table, terms

    @staticmethod
    def _enough(make: Callable[[int], tuple[Any, Any, Any, Tensor]], axis: int) -> int:
        """Return the first number of nodes on an axis whose every second node gives the same evidence."""
        for nodes in NODES:
            terms = make(nodes)[3]
            halved = terms[::2] if axis == 0 else terms[:, ::2]
            change = halved.flatten().logsumexp(0) + math.log(2.0) - terms.flatten().logsumexp(0)
            if abs(float(change)) < TOLERANCE:
                return nodes
        raise ValueError(
            "the posterior of mu and kappa needs a finer grid than there is; give priors with alpha and beta "
            "above 0.03, or a smaller scale"
        )

    def _log_hyper(self, mu: Tensor, kappa: Tensor) -> Tensor:
        """Return log p(mu, kappa | x) in nats."""
        density = self._log_joint(torch.logit(mu), kappa.log()) - self.log_evidence
        return density - mu.log() - torch.log1p(-mu) - kappa.log()

    def _between(self, log_kappa: Tensor) -> tuple[Tensor, Tensor]:
        """Return the row of the grid below each log kappa, and how far it is towards the next, in [0, 1]."""
        position = (log_kappa - self._log_kappa[0]) / (self._log_kappa[1] - self._log_kappa[0])
        row = position.floor().long().clamp(0, len(self._log_kappa) - 2)
        return row, (position - row).clamp(0.0, 1.0)

    def _mu_nodes(self, log_kappa: Tensor) -> Tensor:
        """Return logit mu's nodes for any kappa, `(*B, I)`, with the ends interpolated between rows."""
        row, part = self._between(log_kappa)
        low, high = (torch.lerp(ends[row], ends[row + 1], part) for ends in self._ends)
        return spread(low, high, self._inner)

    def _kappa_marginal(self) -> SampledDensity:
        """Return p(kappa | x): at any kappa an integral over mu."""
        table = torch.logsumexp(log_trapezoid(spread(*self._ends, self._inner), self._table), -1)

        def log_density(kappa: Tensor) -> Tensor:
            log_kappa = kappa.to(self._x).log()
            logit_mu = self._mu_nodes(log_kappa)
            joint = self._log_joint(logit_mu, log_kappa.unsqueeze(-1))
            marginal = torch.logsumexp(log_trapezoid(logit_mu, joint), -1)
            return marginal - self.log_evidence - log_kappa

        def draw(shape: torch.Size) -> Tensor:
            return inverse_cdf(self._log_kappa, table, self._uniform(shape)).exp()

        return SampledDensity(log_density, draw, torch.Size(), constraints.positive)

    def _mu_given(self, kappa: Tensor) -> SampledDensity:
        """Return p(mu | kappa, x), of batch shape kappa.shape."""
        kappa = kappa.to(self._x)
        log_marginal = self._kappa_marginal().log_prob

        def log_density(mu: Tensor) -> Tensor:
            return self._log_hyper(mu.to(self._x), kappa) - log_marginal(kappa)

        def draw(shape: torch.Size) -> Tensor:
            # The ends move with kappa, so the rows differ little node by node, and interpolate well.
            row, part = self._between(kappa.log())
            table = torch.lerp(self._table[row], self._table[row + 1], part.unsqueeze(-1)).expand(*shape, -1)
            logit_mu = inverse_cdf(self._mu_nodes(kappa.log()), table, self._uniform(shape))
            return logit_mu.sigmoid().clamp(TINY, NEAR_ONE)

        return SampledDensity(log_density, draw, kappa.shape, constraints.unit_interval)

    def _people(self, a: Tensor, b: Tensor, index: Tensor | None = None) -> Beta:
        """Return p(pi_n | mu, kappa, x) for a = mu kappa, b = (1 - mu) kappa, which broadcast with `(N,)`."""
        x, tails = self._x, self._total_count - self._x
        if index is not None:
            x, tails = x[index.to(x.device)], tails[index.to(x.device)]
        return Beta(a.to(x) + x, b.to(x) + tails)

    def _uniform(self, shape: torch.Size) -> Tensor:
        return torch.rand(shape, dtype=self._x.dtype, device=self._x.device)

    def sample(self, n: int) -> dict[str, Tensor]:
        """Return n draws: `mu` `(n,)`, `kappa` `(n,)`, `pi` `(n, N)`, from torch's global generator."""
        kappa = self._kappa_marginal().sample((n,))
        mu = torch.cat([self._mu_given(part).sample() for part in kappa.split(10_000)])
        people = self._people((mu * kappa).unsqueeze(-1), ((1.0 - mu) * kappa).unsqueeze(-1))
        return {"mu": mu, "kappa": kappa, "pi": people.sample()}

    def log_prob(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return log posterior densities `(n,)`, in nats, of `mu` `(n,)`, `kappa` `(n,)`, `pi` `(n, N)`."""
        mu, kappa = values["mu"].to(self._x), values["kappa"].to(self._x)
        people = self._people((mu * kappa).unsqueeze(-1), ((1.0 - mu) * kappa).unsqueeze(-1))
        return self._log_hyper(mu, kappa) + people.log_prob(values["pi"].to(self._x)).sum(-1)

    @property
    def mean(self) -> dict[str, Tensor]:
        """Posterior means: `mu`, `kappa`, and `pi` `(N,)`."""
        return {site: moments[0] for site, moments in self._moments().items()}

    @property
    def sd(self) -> dict[str, Tensor]:
        """Posterior standard deviations: `mu`, `kappa`, and `pi` `(N,)`."""
        return {site: moments[1] for site, moments in self._moments().items()}

    def _moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        result = {}
        for site, values in (("mu", self._mu), ("kappa", self._kappa)):
            mean = self._weights @ values
            result[site] = mean, (self._weights @ (values - mean).square()).sqrt()
        pairs = []
        for index in self._chunks():
            given = self._people(self._a.unsqueeze(-1), self._b.unsqueeze(-1), index)
            mean = self._weights @ given.mean
            pairs.append((mean, (self._weights @ (given.variance + (given.mean - mean).square())).sqrt()))
        result["pi"] = torch.cat([mean for mean, _ in pairs]), torch.cat([sd for _, sd in pairs])
        return result

    def _chunks(self) -> Iterator[Tensor]:
        """Yield the people's rows in groups that keep nodes times people near a million."""
        group = max(1, 1_000_000 // len(self._weights))
        yield from torch.arange(len(self._x), device=self._x.device).split(group)

    def predictive(self, total_count: int, index: Tensor | None = None) -> GridMixture:
        """Return heads among further flips of the people `index` `(M,)`, or of a new one where it is None."""
        a, b = self._a, self._b
        if index is not None:
            given = self._people(a, b, index.unsqueeze(-1))
            a, b = given.concentration1, given.concentration0
        return GridMixture(BetaBinomial, self._weights, a, b, torch.full_like(self._mu, float(total_count)))

    def as_guide(self) -> Guide:
        """Return a guide that draws kappa, mu given it, and the people given both.

        Of the arguments it is called with it reads only `index`, the people of a batch.
        """

        def guide(*args: Any, index: Tensor | None = None, **kwargs: Any) -> None:
            kappa = pyro.sample("kappa", self._kappa_marginal())
            mu = pyro.sample("mu", self._mu_given(kappa))
            with pyro.plate("data", len(self._x), subsample=index, dim=-1):
                pyro.sample("pi", self._people(mu * kappa, (1.0 - mu) * kappa, index))

        return guide
