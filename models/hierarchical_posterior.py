"""The exact posterior of the hierarchical coin: a grid over its two hyperparameters, Betas given both.

The people are integrated out in closed form (Beta-Binomial), so what is left is a smooth density of two
numbers. Its grid finds itself: it widens until the density has fallen by 40 nats on every side and is
narrowed where it is empty; the trapezoid rule on it converges exponentially, and is compared with the rule on
every second node.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pyro
import torch
from pyro.distributions import Beta, BetaBinomial, Normal
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from .beta_binomial import CountEvidence
from .exact import GridMixture, Guide, SampledDensity
from .quadrature import inverse_cdf, log_trapezoid

EDGE = 40.0  # nats below the peak that every edge of the grid lies: e^-40 = 4e-18 of its height
EMPTY = 50.0  # nats below the peak where the grid is cut; above EDGE, or cutting and widening could alternate
TOLERANCE = 1e-9  # nats that the log evidence may differ by from that on every second node
NODES = (129, 257, 513)  # on each axis; a finer grid is taken where the coarser one is not enough


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
    """

    def __init__(
        self, x: Tensor, total_count: Tensor | None, alpha: Tensor, beta: Tensor, loc: Tensor, scale: Tensor
    ) -> None:
        self._x = x
        self._total_count = torch.ones_like(x) if total_count is None else total_count
        self._evidence = CountEvidence(x, self._total_count)
        self._log_kappa_prior = Normal(loc, scale)
        self._alpha, self._beta = alpha, beta
        box = self._find_box(loc, scale)
        for nodes in NODES:
            self._logit_mu, self._log_kappa = _axes(box, nodes)
            self._grid = self._log_joint(self._logit_mu.unsqueeze(1), self._log_kappa)
            terms = _terms(self._logit_mu, self._log_kappa, self._grid)
            coarse = _terms(self._logit_mu[::2], self._log_kappa[::2], self._grid[::2, ::2])
            self.log_evidence = torch.logsumexp(terms.flatten(), 0)
            if abs(float(self.log_evidence - torch.logsumexp(coarse.flatten(), 0))) < TOLERANCE:
                terms = coarse
                break
        stride = (nodes - 1) // (len(terms) - 1)
        weights = (terms - torch.logsumexp(terms.flatten(), 0)).exp().flatten()
        kept = weights > 1e-16 * weights.max()
        mu, kappa = torch.broadcast_tensors(
            self._logit_mu[::stride].sigmoid().unsqueeze(1), self._log_kappa[::stride].exp()
        )
        self._weights = weights[kept] / weights[kept].sum()
        self._mu, self._kappa = mu.flatten()[kept], kappa.flatten()[kept]

    def _log_joint(self, logit_mu: Tensor, log_kappa: Tensor) -> Tensor:
        """Return log p(x, logit mu, log kappa) in nats, of the broadcast shape."""
        log_heads, log_tails = logsigmoid(logit_mu), logsigmoid(-logit_mu)
        # The changes of variable leave mu^alpha (1 - mu)^beta of the Beta and make the LogNormal a Normal.
        log_prior = self._alpha * log_heads + self._beta * log_tails
        log_prior = log_prior + torch.lgamma(self._alpha + self._beta)
        log_prior = log_prior - torch.lgamma(self._alpha) - torch.lgamma(self._beta)
        log_prior = log_prior + self._log_kappa_prior.log_prob(log_kappa)
        return log_prior + self._evidence((log_heads + log_kappa).exp(), (log_tails + log_kappa).exp())

    def _find_box(self, loc: Tensor, scale: Tensor) -> Tensor:
        """Return the grid's ends `(2, 2)`: rows are logit mu and log kappa, columns low and high."""
        heads, flips = self._x.sum(), self._total_count.sum()
        centre = torch.logit((heads + self._alpha) / (flips + self._alpha + self._beta))
        box = torch.stack(
            [torch.stack([centre - 4.0, centre + 4.0]), torch.stack([loc - 8.0 * scale, loc + 8.0 * scale])]
        )
        for _ in range(100):
            axes = _axes(box, 65)
            density = self._log_joint(axes[0].unsqueeze(1), axes[1])
            # kappa's tail is heavy: its second moment, too, must lie within the grid.
            heavy = density + 2.0 * axes[1]
            below = torch.minimum(density.max() - density, heavy.max() - heavy)
            moved = box.clone()
            settled = True
            for axis in (0, 1):
                profile = below.amin(1 - axis)
                inside = (profile < EMPTY).nonzero().flatten()
                first, last = int(inside[0]), int(inside[-1])
                width = box[axis, 1] - box[axis, 0]
                step = width / (len(profile) - 1)
                low_open, high_open = bool(profile[0] < EDGE), bool(profile[-1] < EDGE)
                settled &= not low_open and not high_open and 4 * (last - first) > len(profile)
                moved[axis, 0] += -width / 2 if low_open else step * max(first - 1, 0)
                moved[axis, 1] += width / 2 if high_open else -step * max(len(profile) - 2 - last, 0)
            if settled:
                return box
            box = moved
        raise ArithmeticError(
            "the posterior of mu and kappa found no grid; give a narrower prior of kappa (scale)"
        )

    def _log_hyper(self, mu: Tensor, kappa: Tensor) -> Tensor:
        """Return log p(mu, kappa | x) in nats."""
        density = self._log_joint(torch.logit(mu), kappa.log()) - self.log_evidence
        return density - mu.log() - torch.log1p(-mu) - kappa.log()

    def _kappa_marginal(self) -> SampledDensity:
        """Return p(kappa | x): at any kappa an integral over mu on the grid's nodes."""
        table = torch.logsumexp(log_trapezoid(self._logit_mu, self._grid.mT), -1)

        def log_density(kappa: Tensor) -> Tensor:
            log_kappa = kappa.to(self._x).log()
            joint = self._log_joint(self._logit_mu, log_kappa.unsqueeze(-1))
            marginal = torch.logsumexp(log_trapezoid(self._logit_mu, joint), -1)
            return marginal - self.log_evidence - log_kappa

        def draw(shape: torch.Size) -> Tensor:
            return inverse_cdf(self._log_kappa, table, self._uniform(shape)).exp()

        return SampledDensity(log_density, draw, torch.Size(), constraints.positive)

    def _mu_given(self, kappa: Tensor) -> SampledDensity:
        """Return p(mu | kappa, x), of batch shape kappa.shape."""
        kappa = kappa.to(self._x)
        log_marginal = self._kappa_marginal().log_prob

        def log_density(mu: Tensor) -> Tensor:
            mu = mu.to(self._x)
            return self._log_hyper(mu, kappa) - log_marginal(kappa)

        def draw(shape: torch.Size) -> Tensor:
            rows = self._log_kappa
            position = (kappa.log() - rows[0]) / (rows[1] - rows[0])
            cell = position.floor().long().clamp(0, len(rows) - 2)
            part = (position - cell).clamp(0.0, 1.0).unsqueeze(-1)
            table = (1.0 - part) * self._grid.mT[cell] + part * self._grid.mT[cell + 1]
            table = table.expand(*shape, -1)
            return inverse_cdf(self._logit_mu, table, self._uniform(shape)).sigmoid()

        return SampledDensity(log_density, draw, kappa.shape, constraints.unit_interval)

    def _people(self, mu: Tensor, kappa: Tensor, index: Tensor | None = None) -> Beta:
        """Return p(pi_n | mu, kappa, x), of the broadcast shape of mu, kappa and `(N,)`."""
        x, total_count = self._x, self._total_count
        if index is not None:
            x, total_count = x[index.to(x.device)], total_count[index.to(x.device)]
        mu, kappa = mu.to(x), kappa.to(x)
        return Beta(mu * kappa + x, (1.0 - mu) * kappa + total_count - x)

    def _uniform(self, shape: torch.Size) -> Tensor:
        return torch.rand(shape, dtype=self._x.dtype, device=self._x.device)

    def sample(self, n: int) -> dict[str, Tensor]:
        """Return n draws: `mu` `(n,)`, `kappa` `(n,)`, `pi` `(n, N)`, from torch's global generator."""
        kappa = self._kappa_marginal().sample((n,))
        mu = torch.cat([self._mu_given(part).sample() for part in kappa.split(10_000)])
        return {"mu": mu, "kappa": kappa, "pi": self._people(mu.unsqueeze(-1), kappa.unsqueeze(-1)).sample()}

    def log_prob(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return log posterior densities `(n,)`, in nats, of `mu` `(n,)`, `kappa` `(n,)`, `pi` `(n, N)`."""
        mu, kappa = values["mu"].to(self._x), values["kappa"].to(self._x)
        people = self._people(mu.unsqueeze(-1), kappa.unsqueeze(-1))
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
            given = self._people(self._mu.unsqueeze(-1), self._kappa.unsqueeze(-1), index)
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
        a, b = self._mu * self._kappa, (1.0 - self._mu) * self._kappa
        if index is not None:
            given = self._people(self._mu, self._kappa.clone(), index.unsqueeze(-1))
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
                pyro.sample("pi", self._people(mu, kappa, index))

        return guide


def _axes(box: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    part = torch.linspace(0.0, 1.0, nodes, dtype=box.dtype, device=box.device)
    low, high = box[:, :1], box[:, 1:]
    axes = low + (high - low) * part
    return axes[0], axes[1]


def _terms(logit_mu: Tensor, log_kappa: Tensor, grid: Tensor) -> Tensor:
    """Return the two-dimensional trapezoid rule's terms; their logsumexp is the log integral."""
    return log_trapezoid(logit_mu, log_trapezoid(log_kappa, grid).mT).mT
