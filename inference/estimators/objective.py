"""The loss: the negative evidence lower bound of the whole data set, in nats, and its relatives.

    loss = -E_q [ log p(x, z) - log q(z) ]  >=  -log p(x)

Every objective is one differentiable function of one batch. Sites that can be reparametrised carry their gradient
themselves (the lecture's reparametrisation trick); for the others the score-function term of REINFORCE is added, whose
companion E_q[grad log q] is zero and so left out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import kl_divergence

from ..engine.noise import Counting, FromRow, Row, kept_generators, vmap_random
from ..target.density import (
    EachDraw,
    Enumerate,
    Factor,
    guide_factors,
    guide_values,
    model_factors,
    model_trace,
    site_factor,
    total,
)
from ..target.program import DATA_PLATE, Fix, Program, is_point, sample_sites
from . import free_bits
from .doubly_reparametrized import weighted_bound
from .layer_noise import AtTheMean, Flipout, LayerNoise, Layers, Local
from .row_scores import row_scores

Estimator = Literal["monte_carlo", "analytic_kl", "importance_weighted"]
Discrete = Literal["marginalize", "guide"]

ESTIMATORS: tuple[Estimator, ...] = ("monte_carlo", "analytic_kl", "importance_weighted")


def where_discrete(guide: Any, wanted: Discrete) -> Discrete:
    """Where discrete latents live: a guide that is made to enumerate them, or to draw them, says so itself."""
    own: Discrete | None = getattr(guide, "discrete", None)
    return wanted if own is None else own


@dataclass
class Objective:
    """The loss of one (model, guide) pair.

    Attributes:
        estimator: `monte_carlo` (log p - log q of the draws), `analytic_kl` (the closed-form KL wherever prior and guide have
            one) or `importance_weighted` (Burda et al. 2016: -log mean exp(log p - log q) over the particles, for each
            observation where all latents are local).
        num_particles: draws a step.
        discrete: where discrete latents live: `marginalize` sums them out of the model, `guide` enumerates the guide's.
        layer_noise: where the noise of a network's weights is drawn; see `layer_noise`.
        at_the_mean: whether the guide draws nothing then, because the noise is the layers' and the KL needs no draw.
        noisy_model: whether the model draws numbers of its own, as networks with dropout do; `count_noise` finds out.
        weights: (B,) what the rows of a batch count beside one another, where it is drawn in streams; None for all the same.
        redrawn: data that every call draws anew: zeros and ones, from chances under these names.
        doubly: whether the importance-weighted bound takes the doubly reparametrised gradient; see `doubly_reparametrized`.
        resample: of how many draws, drawn again by their weights, that gradient is taken then; 0 for all.
        free_bits: nats of KL that each latent number of an observation has at no cost in the gradient; see `free_bits`.
        surrogate: `None` for a bound; `"joint"` (-log p(x, z), the posterior mode's loss) or `"likelihood"` (-log p(x | z)).
    """

    program: Program
    model: Callable[..., Any]
    guide: Callable[..., Any]
    estimator: Estimator = "monte_carlo"
    num_particles: int = 1
    discrete: Discrete = "marginalize"
    surrogate: Literal["joint", "likelihood"] | None = None
    each: EachDraw = field(default_factory=EachDraw)
    layer_noise: LayerNoise = "shared"
    at_the_mean: bool = False
    noisy_model: bool = True
    redrawn: tuple[str, ...] = ()
    weights: Tensor | None = None
    doubly: bool = False
    resample: int = 0
    free_bits: float = 0.0

    def __call__(
        self, kwargs: Mapping[str, Any], noise: Row | None = None, *, kl_weight: Tensor | None = None, strict: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Loss of one batch.

        Args:
            noise: the random numbers to use, (num_particles, n) normal and (num_particles, m) uniform, with n and m as
                `count_noise` says; None takes torch's generator.
            kl_weight: what multiplies log q - log p(z) in the tensor to differentiate; the value to report is never weighted.
            strict: whether to raise where the numbers do not suffice, instead of taking torch's generator for the rest.

        Returns:
            The tensor to differentiate and the value to report: both scalars, equal but for score-function terms.
        """
        kwargs, noise, common = self.given(kwargs, noise)
        if self.doubly and noise is not None and common is not None:
            if self.each.vectorized is None:
                self._check_vectorized(kwargs)
            bound, value = weighted_bound(self, kwargs, noise, common, strict=strict)
            return -bound, -value
        members = getattr(self.guide, "members", None)
        if members is not None:
            parts = self._members(kwargs, noise, strict, members)
        elif self.num_particles == 1:
            row = None if noise is None else Row(noise.normal[0], noise.uniform[0])
            parts = self._particle(kwargs, row, strict)
        else:
            parts = self._particles(kwargs, noise, strict)
        likelihood, kl, score, rows, each, groups, auxiliary = parts
        bound = likelihood - kl
        # REINFORCE: `score` is log q of the draws without a reparametrisation; its gradient is weighted by the bound.
        score = score - score.detach()
        if self.estimator == "importance_weighted":
            if each.shape[-1]:  # every latent belongs to one observation, and so has its own average of weights
                each = each.reshape(self.num_particles, 2, -1)
                value = ((torch.logsumexp(each[:, 0], 0) - math.log(self.num_particles)) * each[0, 1]).sum()
            else:
                value = torch.logsumexp(bound.reshape(-1), 0) - math.log(self.num_particles)
            surrogate = value + value.detach() * score.sum()
        else:
            value = bound.mean()
            if self.free_bits:  # the maximum is of the average over the particles, too
                totals, free = groups.reshape(-1, *groups.shape[-2:]).mean(0)
                value = value - totals.sum()
                kl = kl + torch.maximum(totals, free).sum()
                bound = likelihood - kl
            weighted = bound if kl_weight is None else likelihood - kl_weight.to(kl.dtype) * kl
            surrogate = weighted.mean() + (weighted.detach() * score).mean()
            if rows.shape[-1]:
                weight = 1.0 if kl_weight is None else kl_weight.to(kl.dtype)
                surrogate = surrogate + (rows[..., 0] - weight * rows[..., 1] + rows[..., 2]).mean()
            if members is not None:
                surrogate = weighted.sum()  # each member trains as if it were alone
        if auxiliary.shape[-1]:
            surrogate = surrogate + auxiliary.mean()
        return -surrogate, -value

    def count_noise(self, kwargs: Mapping[str, Any]) -> tuple[int, int]:
        """How many normal and uniform numbers one particle takes."""
        with kept_generators():
            with Counting(differentiated=True) as guide:
                trace = self.guide_trace(kwargs)
            with Counting(differentiated=True) as model:
                self._bound(kwargs, trace)
        self.noisy_model = model.normals + model.uniforms > 0
        return guide.normals + model.normals, guide.uniforms + model.uniforms + self._share(kwargs)

    def given(self, kwargs: Mapping[str, Any], noise: Row | None) -> tuple[Mapping[str, Any], Row | None, Tensor | None]:
        """What guide and model see of a step's data and numbers: the data as drawn, the particles' own numbers, and the rest."""
        common = None
        if noise is not None:
            noise, common = self._apart(kwargs, noise)
        if self.redrawn:
            kwargs, common = self._redraw(kwargs, common)
        return kwargs, noise, common

    def _share(self, kwargs: Mapping[str, Any]) -> int:
        """What each particle's row holds of a step's common uniform numbers: for data drawn anew, and for resampling."""
        common = sum(kwargs[name].numel() for name in self.redrawn)
        if self.resample:
            index = kwargs.get("index")
            rows = self.program.num_data if index is None else len(index)
            common += rows if self.program.local else 1
        return -(-common // self.num_particles)

    def _apart(self, kwargs: Mapping[str, Any], noise: Row) -> tuple[Row, Tensor]:
        """The particles' own numbers, and the step's common ones in one row."""
        share = self._share(kwargs)
        return Row(noise.normal, noise.uniform[:, share:]), noise.uniform[:, :share].reshape(-1)

    def _redraw(self, kwargs: Mapping[str, Any], common: Tensor | None) -> tuple[dict[str, Any], Tensor | None]:
        """Zeros and ones in place of chances, the same for all particles; what is zero or one stays.

        Returns:
            The data, and what is left of the common numbers.
        """
        out = dict(kwargs)
        for name in self.redrawn:
            chance = out[name]
            if common is None:
                u = torch.rand_like(chance)
            else:
                u, common = common[: chance.numel()].reshape(chance.shape), common[chance.numel() :]
            out[name] = (u < chance).to(chance.dtype)
        return out, common

    def _members(self, kwargs: Mapping[str, Any], noise: Row | None, strict: bool, members: int) -> Parts:
        """The bound of each member of an ensemble; a model's own noise is the same for all."""
        row = None if noise is None else Row(noise.normal[0], noise.uniform[0])
        some = next(iter(v for v in kwargs.values() if isinstance(v, Tensor)), torch.zeros(()))

        def one(number: Tensor) -> tuple[Tensor, ...]:
            with self.guide.as_member(number):  # type: ignore[attr-defined]
                return tuple(self._particle(kwargs, row, strict))

        numbers = torch.arange(members, device=some.device)
        if self.each.vectorized is None:
            try:
                vmap_random(one, numbers)
                self.each.vectorized = True
            except Exception as error:  # a model that cannot be mapped is looped over instead
                self.each.vectorized, self.each.reason = False, f"{type(error).__name__}: {error}"
        if self.each.vectorized:
            return Parts(*vmap_random(one, numbers))
        return Parts(*(torch.stack(part) for part in zip(*(one(number) for number in numbers), strict=True)))

    def probe_layers(self, kwargs: Mapping[str, Any], rows: int | None = None) -> Layers | None:
        """One run of guide and model, on so many rows where that is known, and what the layer noise met in it."""
        with kept_generators(), torch.no_grad():
            trace = self.guide_trace(kwargs)
            layers = self.layers(trace, rows)
            if layers is not None:
                with Fix(guide_values(trace)), layers:
                    self.model(**kwargs)
        return layers

    def _particles(self, kwargs: Mapping[str, Any], noise: Row | None, strict: bool) -> Parts:
        if self.each.vectorized is None:
            self._check_vectorized(kwargs)
        if noise is None:
            some = next(iter(v for v in kwargs.values() if isinstance(v, Tensor)), torch.zeros(()))
            blank = torch.zeros(self.num_particles, 0, device=some.device)
            noise = Row(blank, blank)
            strict = False
        if self.each.vectorized:
            return Parts(*vmap_random(lambda row: tuple(self._particle(kwargs, Row(*row), strict)), tuple(noise)))
        each = [self._particle(kwargs, Row(n, u), strict) for n, u in zip(*noise, strict=True)]
        return Parts(*(torch.stack(part) for part in zip(*each, strict=True)))

    def _check_vectorized(self, kwargs: Mapping[str, Any]) -> None:
        """Maps two draws through guide and model, and replays the same draws one by one."""

        def draw(_: Tensor) -> dict[str, Tensor]:
            return guide_values(self.guide_trace(kwargs))

        try:
            with torch.no_grad():
                values = vmap_random(draw, torch.zeros(2))
            probe, *_ = vmap_random(lambda _: tuple(self._particle(kwargs)), torch.zeros(2))
            if probe.requires_grad:
                params = [p for p in _parameters(self.guide) if p.requires_grad]
                torch.autograd.grad(probe.sum(), params, allow_unused=True)
        except Exception as error:  # a guide or model that cannot be mapped is looped over instead
            self.each.vectorized = False
            self.each.reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            return
        with torch.no_grad():
            self.each(lambda v: total(model_factors(self.program, self.model, kwargs, v)), values)

    def guide_trace(self, kwargs: Mapping[str, Any]) -> poutine.Trace:
        """One run of the guide; with `discrete="guide"` its discrete sites hold their whole support."""
        if self.at_the_mean:
            with AtTheMean():
                return poutine.trace(self.guide).get_trace(**kwargs)
        if self.discrete == "guide" and self.program.discrete:
            with Enumerate(self.program.discrete, self.program.max_plate_nesting):
                return poutine.trace(self.guide).get_trace(**kwargs)
        return poutine.trace(self.guide).get_trace(**kwargs)

    def _particle(self, kwargs: Mapping[str, Any], row: Row | None = None, strict: bool = False) -> Parts:
        """The bound of one draw."""
        if row is None:
            return self._bound(kwargs, self.guide_trace(kwargs))
        noise = FromRow(row, strict=strict)
        with noise:
            trace = self.guide_trace(kwargs)
        if not self.noisy_model:  # the mode costs a microsecond an operation
            return self._bound(kwargs, trace)
        with noise:
            return self._bound(kwargs, trace)

    def layers(self, trace: poutine.Trace, rows: int | None = None) -> Layers | None:
        """What replaces the layers that use the guide's draws, None where they stay as they are."""
        if self.layer_noise == "shared":
            return None
        kind = Local if self.layer_noise == "local" else Flipout
        return kind(trace, at_the_mean=self.at_the_mean, rows=rows)

    def _layered(self, trace: poutine.Trace) -> Callable[..., Any]:
        """The model with its layers replaced; log densities are taken outside."""
        layers = self.layers(trace)
        if layers is None:
            return self.model

        def model(**kwargs: Any) -> Any:
            with layers:
                return self.model(**kwargs)

        return model

    def _bound(self, kwargs: Mapping[str, Any], trace: poutine.Trace) -> Parts:
        values = guide_values(trace)
        model = self._layered(trace)
        if self.discrete == "guide" and self.program.discrete:
            return self._enumerated(kwargs, trace, values)
        if self.surrogate == "likelihood":
            factors = model_factors(self.program, model, kwargs, values)
            likelihood = total(factor for factor in factors if factor.observed)
            penalty = getattr(self.guide, "penalty", None)
            kl = torch.zeros_like(likelihood) if penalty is None else penalty()
            zero = torch.zeros_like(likelihood)
            nothing = zero.new_zeros(0)
            return Parts(likelihood, kl, zero, nothing, nothing, nothing, nothing)
        if self.estimator == "analytic_kl":
            return self._analytic(model, kwargs, trace, values)
        factors = model_factors(self.program, model, kwargs, values)
        if self.surrogate is None:
            factors += [f.negative for f in guide_factors(trace)]
        return self._parts(kwargs, trace, factors)

    def _analytic(
        self, model: Callable[..., Any], kwargs: Mapping[str, Any], trace: poutine.Trace, values: dict[str, Tensor]
    ) -> Parts:
        prior = model_trace(model, kwargs, values)
        terms: list[Factor] = []
        known: list[tuple[Factor, int]] = []
        for name, site in sample_sites(prior):
            factor = site_factor(name, site)
            if name not in trace.nodes or site["is_observed"]:
                terms.append(factor)
                continue
            q = trace.nodes[name]
            kl = _kl(q["fn"], site["fn"])
            single = _kl(free_bits.bare(q["fn"]), free_bits.bare(site["fn"])) if self.free_bits and factor.local else None
            if single is not None:
                split = free_bits.split(single, len(site["fn"].batch_shape))
                size = free_bits.bare(site["fn"]).event_shape.numel()
                known.append((Factor(name, -split, factor.plates, factor.scale, False), size))
            elif kl is None:
                log_q = site_factor(name, q)
                terms += [factor, log_q.negative]
            else:
                terms.append(Factor(name, -kl, factor.plates, factor.scale, False))
        # What a guide draws for its sites to follow from has its density there.
        terms += [site_factor(name, q).negative for name, q in sample_sites(trace) if name not in prior.nodes]
        return self._parts(kwargs, trace, terms, known=known)

    def _enumerated(self, kwargs: Mapping[str, Any], trace: poutine.Trace, values: dict[str, Tensor]) -> Parts:
        """Expectation over the guide's discrete sites: each cost weighted by q of the states it depends on.

        A site may bring weights of its own, `infer={"relaxed": weights}` of the shape (*plates, K): those of a draw that carries
        a gradient. The KL of discrete sites stays exact, unless draws are weighted.
        """
        first = -1 - self.program.max_plate_nesting
        names = [name for name, _ in sample_sites(trace) if name in self.program.discrete]
        dims = {name: first - k for k, name in enumerate(names)}
        q = {name: site_factor(name, trace.nodes[name]).log_prob.exp() for name in names}
        infer: dict[str, Any] = {name: trace.nodes[name]["infer"] for name in names}
        drawn = q | {name: _states_at(dims[name], own["relaxed"]) for name, own in infer.items() if "relaxed" in own}
        # Importance weights are of whole draws: a likelihood drawn beside an exact KL bounds nothing under the logarithm.
        exact = drawn if self.estimator == "importance_weighted" else q
        prior = model_trace(self.model, kwargs, values)
        costs = [site_factor(name, site) for name, site in sample_sites(prior)]
        costs += [f.negative for f in guide_factors(trace)]
        expected = [
            replace(cost, log_prob=cost.log_prob * self._weight(cost, exact if cost.name in dims else drawn, dims))
            for cost in costs
        ]
        return self._parts(kwargs, trace, expected, only=[n for n in self.program.continuous if n in trace.nodes])

    def _parts(
        self,
        kwargs: Mapping[str, Any],
        trace: poutine.Trace,
        factors: Sequence[Factor],
        only: Sequence[str] | None = None,
        known: Sequence[tuple[Factor, int]] = (),
    ) -> Parts:
        def weighted(factor: Factor) -> Factor:
            if self.weights is None or kwargs.get("index") is None or not factor.local:
                return factor
            return factor.weighted(self.weights)

        factors = [weighted(factor) for factor in factors]
        likelihood = total(f for f in factors if f.observed)
        groups = likelihood.new_zeros(0)
        if self.free_bits:
            drawn = [f for f in factors if f.local and not f.observed]
            groups = free_bits.in_groups([(weighted(f), size) for f, size in known], drawn, self.program, self.free_bits)
            factors = [f for f in factors if f.observed or not f.local]
        kl = -total(f for f in factors if not f.observed)
        names = [name for name in _without_gradient(trace) if only is None or name in only]
        # One weight for all particles is one for all rows, too.
        rowwise = [] if self.estimator == "importance_weighted" else [n for n in names if self._in_rows(trace.nodes[n])]
        score = _score(trace, likelihood - kl, [n for n in names if n not in rowwise])
        rows = row_scores([(trace.nodes[n], weighted(site_factor(n, trace.nodes[n]))) for n in rowwise], factors, like=kl)
        each = self._each(factors) if self.estimator == "importance_weighted" else kl.new_zeros(0)
        return Parts(likelihood, kl, score, rows, each, groups, _auxiliary(trace, like=kl))

    def _each(self, factors: Sequence[Factor]) -> Tensor:
        """(2, N) the bound of each observation and what it counts; empty where latents are shared."""
        if not all(factor.local for factor in factors):
            return factors[0].log_prob.new_zeros(0)
        each = sum((factor.rows for factor in factors), start=torch.zeros_like(factors[0].rows))
        scale = torch.as_tensor(factors[0].scale, dtype=each.dtype, device=each.device)
        return torch.stack([each, scale.expand_as(each)])

    def _in_rows(self, site: Any) -> bool:
        return any(frame.name == DATA_PLATE for frame in site["cond_indep_stack"])

    def _weight(self, cost: Factor, q: Mapping[str, Tensor], dims: Mapping[str, int]) -> Tensor | float:
        def depends(t: Tensor, dim: int) -> bool:
            return t.dim() >= -dim and t.shape[dim] > 1

        needed = [name for name, dim in dims.items() if depends(cost.log_prob, dim) or name == cost.name]
        closure = list(needed)
        for name in closure:  # grows while it is read: the parents of what the cost depends on
            closure += [n for n, d in dims.items() if n not in closure and depends(q[name], d)]
        if not closure:
            return 1.0
        joint = functools.reduce(torch.mul, (q[name] for name in closure))
        out = [dims[name] for name in closure if name not in needed]
        return joint.sum(out, keepdim=True) if out else joint


class Parts(NamedTuple):
    """The bound of one draw in nats, likelihood - kl.

    Attributes:
        likelihood: log p(x | z).
        kl: log q(z) - log p(z), or its expectation where that is known.
        score: log q of the draws without a reparametrisation.
        rows: what `row_scores` returns for those of them that belong to single observations: zeros with a gradient.
        each: the bound observation by observation, where an importance-weighted one needs it.
        groups: with free bits, what `free_bits.in_groups` returns for the KL that is not in `kl` then.
        auxiliary: what the guide wants maximised beside the bound; empty where it wants nothing.
    """

    likelihood: Tensor
    kl: Tensor
    score: Tensor
    rows: Tensor
    each: Tensor
    groups: Tensor
    auxiliary: Tensor


def _states_at(dim: int, weights: Tensor) -> Tensor:
    """(*plates, K) with the states at one dimension left of all plates."""
    plates = weights.shape[:-1]
    return weights.movedim(-1, 0).reshape(-1, *(1,) * (-dim - 1 - len(plates)), *plates)


def _auxiliary(trace: poutine.Trace, like: Tensor) -> Tensor:
    """`(1,)` the sum of what the guide's sites bring as `infer={"auxiliary": nats}`, `(0,)` where none does."""
    brought = [site["infer"]["auxiliary"] for _, site in sample_sites(trace) if "auxiliary" in site["infer"]]
    return torch.stack(brought).sum(0, keepdim=True) if brought else like.new_zeros(0)


def _score(trace: poutine.Trace, like: Tensor, names: Sequence[str]) -> Tensor:
    """log q of the draws of some sites, unscaled: the bound that it multiplies is the whole data set's."""
    return sum((site_factor(name, trace.nodes[name]).log_prob.sum() for name in names), start=torch.zeros_like(like))


def _without_gradient(trace: poutine.Trace) -> list[str]:
    """Sites whose draws carry no gradient of their own."""
    return [name for name, site in sample_sites(trace) if not (site["is_observed"] or is_point(site) or site["fn"].has_rsample)]


def _kl(q: Any, p: Any) -> Tensor | None:
    """KL(q || p) where torch knows it and both have the same shape; a point's is that of one draw."""
    if isinstance(free_bits.bare(q), Delta) or q.batch_shape != p.batch_shape or q.event_shape != p.event_shape:
        return None
    try:
        kl: Tensor = kl_divergence(q, p)
    except NotImplementedError:
        return None
    return kl if kl.shape == q.batch_shape else None


def analytic_kls(
    program: Program, model: Callable[..., Any], guide: Callable[..., Any], kwargs: Mapping[str, Any]
) -> dict[str, bool]:
    """For each continuous latent, whether the guide's site has a closed-form KL to its prior; empty with discrete latents."""
    if program.discrete:
        return {}
    with torch.no_grad():
        trace = poutine.trace(guide).get_trace(**kwargs)
        prior = model_trace(model, kwargs, guide_values(trace))
    return {
        name: name in trace.nodes and _kl(trace.nodes[name]["fn"], prior.nodes[name]["fn"]) is not None
        for name in program.continuous
    }


def _parameters(guide: Callable[..., Any]) -> list[torch.nn.Parameter]:
    return list(guide.parameters()) if isinstance(guide, torch.nn.Module) else []
