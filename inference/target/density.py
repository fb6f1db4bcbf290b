"""log p(latents, observations) of any Pyro callable, one value a draw, with discrete latents summed out.

The functions here see one draw at a time, exactly as the model was written. Many draws go through `torch.vmap`
(`each_draw`), which keeps the model's own shapes, so a model that would broadcast wrongly under a particle plate is
right here; where a model cannot be mapped (it reads values), the draws are taken one by one.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..engine.noise import vmap_random
from .log_einsum import Ring
from .program import DATA_PLATE, Fix, Program, Values, is_point, sample_sites

log = logging.getLogger("bayeszoo")

#: Draws mapped at once, unless a caller that knows the sizes says otherwise.
CHUNK = 256


class Enumerate(Messenger):
    """Gives discrete sites their whole support, each in a batch dimension of its own left of all plates."""

    def __init__(self, names: Iterable[str], max_plate_nesting: int) -> None:
        super().__init__()
        self.names = frozenset(names)
        self.first = -1 - max_plate_nesting
        self.dims: dict[str, int] = {}

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name not in self.names or msg["is_observed"] or msg["done"]:
            return
        dim = self.first - len(self.dims)
        self.dims[name] = dim
        fn = msg["fn"]
        support = fn.enumerate_support(expand=False)  # (K, 1, ..., 1, *event)
        shape = (support.shape[0],) + (1,) * (-dim - 1) + tuple(fn.event_shape)
        msg["value"] = support.reshape(shape)
        msg["done"] = True


@dataclass(frozen=True)
class Factor:
    """One term of a log density: `log_prob` unscaled over its `plates` (name -> dim), to be multiplied by `scale`.

    Attributes:
        sites: the observed sites that a sum over states has joined in it; none in the term of a single site.
    """

    name: str
    log_prob: Tensor
    plates: Mapping[str, int]
    scale: Any
    observed: bool
    sites: tuple[str, ...] = ()

    @property
    def total(self) -> Tensor:
        """Scaled sum over all plates, a scalar."""
        total = self.log_prob.sum()
        return total if _is_one(self.scale) else (self.log_prob * self.scale).sum()

    @property
    def negative(self) -> Factor:
        """The same term subtracted, as log q is; never an observation's."""
        return Factor(self.name, -self.log_prob, self.plates, self.scale, False)

    def weighted(self, weights: Tensor) -> Factor:
        """The same local term with what each row counts, (B,)."""
        there = weights.reshape(-1, *(1,) * (-self.plates[DATA_PLATE] - 1))
        return replace(self, scale=there * self.scale)

    @property
    def local(self) -> bool:
        """Whether the term belongs to single observations."""
        return DATA_PLATE in self.plates

    @property
    def rows(self) -> Tensor:
        """(N,) the log density of each observation, other plates summed, unscaled; for local terms."""
        value = self.log_prob
        dim = self.plates[DATA_PLATE] % value.dim()
        others = [d for d in range(value.dim()) if d != dim]
        return value.sum(others) if others else value


def _is_one(scale: Any) -> bool:
    return not isinstance(scale, Tensor) and scale == 1


def site_factor(name: str, site: Any) -> Factor:
    """The factor of one sample statement of a trace."""
    log_prob = site["fn"].log_prob(site["value"])
    if site["mask"] is not None:
        mask = site["mask"]
        log_prob = log_prob * mask if isinstance(mask, bool) else torch.where(mask, log_prob, log_prob.new_zeros(()))
    plates = {frame.name: frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}
    return Factor(name, log_prob, plates, site["scale"], bool(site["is_observed"]))


def model_trace(
    model: Callable[..., Any], kwargs: Mapping[str, Any], values: Values, enumerate_: Enumerate | None = None
) -> poutine.Trace:
    """One run of the model with its latent sites fixed to `values` (and others enumerated)."""
    with Fix(values):
        if enumerate_ is None:
            return poutine.trace(model).get_trace(**kwargs)
        with enumerate_:
            return poutine.trace(model).get_trace(**kwargs)


def model_factors(
    program: Program,
    model: Callable[..., Any],
    kwargs: Mapping[str, Any],
    values: Values,
    *,
    nudge: Values | None = None,
) -> list[Factor]:
    """The factors of log p(values, observations); discrete latents missing from `values` are summed out.

    Args:
        nudge: for the summed-out sites, tensors added to their log probabilities. The gradient of the result with respect
            to them is the posterior probability of each state, which is how `draw_discrete` samples.
    """
    missing = [name for name in program.discrete if name not in values]
    if not missing:
        trace = model_trace(model, kwargs, values)
        return [site_factor(name, site) for name, site in sample_sites(trace)]
    enumerate_ = Enumerate(missing, program.max_plate_nesting)
    trace = model_trace(model, kwargs, values, enumerate_)
    factors = [site_factor(name, site) for name, site in sample_sites(trace)]
    return _sum_out(factors, enumerate_.dims, nudge or {})


def _sum_out(factors: list[Factor], dims: Mapping[str, int], nudge: Values) -> list[Factor]:
    """Replaces the factors that depend on enumerated sites by their sum over all states."""
    symbols = {dim: chr(ord("A") + k) for k, dim in enumerate(dims.values())}
    plate_symbols: dict[str, str] = {}
    frames: dict[str, int] = {}
    kept: list[Factor] = []
    groups: list[_Joined] = []
    for factor in factors:
        log_prob = factor.log_prob
        if factor.name in nudge:
            log_prob = log_prob + nudge[factor.name]
        own = [d for d in symbols if log_prob.dim() >= -d and log_prob.shape[d] > 1]
        if not own and factor.name not in dims:
            kept.append(factor)
            continue
        mapping = {d: symbols[d] for d in own}
        for name, dim in factor.plates.items():
            mapping[dim] = plate_symbols.setdefault(name, chr(ord("a") + len(plate_symbols)))
            frames[name] = dim
        term = packed.pack(log_prob, mapping)
        ordinal = frozenset(plate_symbols[name] for name in factor.plates)
        over = {symbols[d] for d in own} or {symbols[dims[factor.name]]}
        joined = _Joined(over, [(factor, ordinal, term)])
        for group in [g for g in groups if g.over & over]:
            groups.remove(group)
            joined = _Joined(joined.over | group.over, group.terms + joined.terms)
        groups.append(joined)
    names = {symbol: name for name, symbol in plate_symbols.items()}
    for group in groups:
        scale = group.scale()
        sites = tuple(factor.name for factor, *_ in group.terms if factor.observed)
        tree: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
        for _, ordinal, term in group.terms:
            tree.setdefault(ordinal, []).append(term)
        for ordinal, terms in contract_tensor_tree(tree, group.over, ring=Ring()).items():
            plates = {names[s]: frames[names[s]] for s in ordinal}
            for term in terms:
                name = sites[0] if sites else group.terms[0][0].name
                kept.append(Factor(name, _unpack(term, plates, plate_symbols), plates, scale, observed=True, sites=sites))
    return kept


@dataclass(frozen=True)
class _Joined:
    """Factors that sums over the same states join: these states' symbols, and the factors with their plates and packed terms."""

    over: set[str]
    terms: list[tuple[Factor, frozenset[str], Tensor]]

    def scale(self) -> Any:
        """What all of them are multiplied by."""
        first, *others = (factor for factor, *_ in self.terms)
        for other in others:
            if other.scale is not first.scale and not bool(torch.as_tensor(other.scale == first.scale)):
                raise ValueError(
                    f"site '{first.name}' is discrete and shared by all observations, but '{other.name}' is seen in minibatches, and "
                    "the sum over the one does not commute with the subsample of the other; leave out batch_size, or give the site a "
                    f"guide: discrete='guide', or by word guide={{'{first.name}': 'global'}}"
                )
        return first.scale


def _unpack(term: Tensor, plates: Mapping[str, int], symbols: Mapping[str, str]) -> Tensor:
    order: str = term._pyro_dims  # type: ignore[attr-defined]
    present = sorted((dim, symbols[name]) for name, dim in plates.items() if symbols[name] in order)
    out = term.permute([order.index(symbol) for _, symbol in present]) if present else term
    shape = [1] * max([0, *(-dim for dim, _ in present)])
    for (dim, _), size in zip(present, out.shape, strict=True):
        shape[dim] = size
    return out.reshape(shape)


def total(factors: Iterable[Factor]) -> Tensor:
    """Scaled sum of all factors: an unbiased log density of the whole data set, in nats."""
    return sum((factor.total for factor in factors), start=torch.zeros(()))


def log_joint(program: Program, model: Callable[..., Any], kwargs: Mapping[str, Any], values: Values) -> Tensor:
    """log p(values, observations), a scalar in nats."""
    return total(model_factors(program, model, kwargs, values))


def log_likelihood(
    program: Program, model: Callable[..., Any], kwargs: Mapping[str, Any], values: Values
) -> dict[tuple[str, ...], Tensor]:
    """log p(observation | values) for every observed site, over the observations; sites that a sum joins have one value.

    Inside the data plate the result has shape (N,), other plates of the site being summed; elsewhere it has the site's own
    batch shape. A local discrete latent that is missing from `values` is summed out, and then all that it touches is one entry.
    """
    out: dict[tuple[str, ...], Tensor] = {}
    for factor in model_factors(program, model, kwargs, values):
        if not factor.observed:
            continue
        log_prob = factor.log_prob
        if factor.local:
            dim = factor.plates[DATA_PLATE] % log_prob.dim() if log_prob.dim() else 0
            others = [d for d in range(log_prob.dim()) if d != dim]
            log_prob = log_prob.sum(others) if others else log_prob
        sites = factor.sites or (factor.name if factor.name in program.observed else next(iter(program.observed)),)
        out[sites] = out[sites] + log_prob if sites in out else log_prob
    return out


def joined_message(site: str, sites: Sequence[str]) -> str:
    """Why one of the sites that a sum joins has no value of its own, and how to ask for theirs."""
    return (
        f"'{site}' is summed together with {', '.join(other for other in sites if other != site)}, so it has no log likelihood of its own; "
        f"ask for that of all, site='{'_'.join(sites)}'"
    )


def guide_factors(trace: poutine.Trace) -> list[Factor]:
    """The factors of log q. Deterministic values contribute nothing."""
    return [site_factor(name, site) for name, site in sample_sites(trace) if not site["is_observed"] and not is_point(site)]


def guide_values(trace: poutine.Trace) -> dict[str, Tensor]:
    """What the guide drew, auxiliary sites left out."""
    return {
        name: site["value"]
        for name, site in sample_sites(trace)
        if not site["is_observed"] and not site["infer"].get("is_auxiliary")
    }


class EachDraw:
    """Maps a function of one draw over the leading dimension of many: `torch.vmap` where the model allows it.

    The first call compares the mapped result with the same draws taken one by one; on a mismatch or an error the draws are
    taken one by one from then on, and `reason` says why.
    """

    def __init__(self) -> None:
        self.vectorized: bool | None = None
        self.reason = ""

    def __call__(self, function: Callable[..., Any], values: Values, *, chunk: int = CHUNK) -> Any:
        """`function(values of one draw)` for every draw, stacked; tensors or dicts of tensors."""
        num = len(next(iter(values.values())))
        if self.vectorized is None:
            self._check(function, values)
        if self.vectorized:
            return _join(
                [vmap_random(function, {k: v[i : i + chunk] for k, v in values.items()}) for i in range(0, num, chunk)],
                torch.cat,
            )
        return _join([function({k: v[s] for k, v in values.items()}) for s in range(num)], torch.stack)

    def _check(self, function: Callable[..., Any], values: Values) -> None:
        two = {k: v[:2].detach() for k, v in values.items()}
        try:
            mapped = vmap_random(function, two)
        except Exception as error:  # whatever a user's model raises, the answer is to take draws one by one
            self.vectorized = False
            self.reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            log.info("draws are taken one by one: %s", self.reason)
            return
        single = _join([function({k: v[s] for k, v in two.items()}) for s in range(len(next(iter(two.values()))))], torch.stack)
        self.vectorized = _agree(mapped, single)
        if not self.vectorized:
            self.reason = "the mapped model gave other values than the same draws one by one"
            log.warning("draws are taken one by one: %s", self.reason)


def _join(parts: list[Any], how: Callable[[list[Tensor]], Tensor]) -> Any:
    if isinstance(parts[0], dict):
        return {key: _join([part[key] for part in parts], how) for key in parts[0]}
    if isinstance(parts[0], tuple):
        return tuple(_join([part[k] for part in parts], how) for k in range(len(parts[0])))
    return how(parts)


def _agree(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return all(_agree(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return all(_agree(x, y) for x, y in zip(a, b, strict=True))
    if a.shape != b.shape:
        return False
    # Sums over many terms are reordered by mapping: allow the rounding of the values' own precision.
    rtol = 1e-8 if a.dtype == torch.float64 else 2e-3
    return bool(torch.allclose(a, b, rtol=rtol, atol=rtol, equal_nan=True))


def draw_discrete(
    program: Program,
    model: Callable[..., Any],
    kwargs: Mapping[str, Any],
    values: Values,
    each: EachDraw,
    num: int = 1,
) -> dict[str, Tensor]:
    """Draws the summed-out discrete latents from p(z | values, observations), exactly, site after site.

    Given the sites drawn before it, the posterior marginal of a site is the gradient of the log density, the rest summed
    out, with respect to the site's log probabilities.

    Args:
        values: continuous latents, each (S, *shape).
        num: S where the model has no continuous latent.

    Returns:
        One int64 (or the support's own) tensor a discrete site, (S, *shape).
    """
    known = dict(values)
    num = len(next(iter(values.values()))) if values else num
    drawn: dict[str, Tensor] = {}
    for name, site in program.discrete.items():
        support = site.distribution.enumerate_support(expand=False)
        states = support.reshape(support.shape[0], *site.distribution.event_shape)
        blank = _blank_nudge(program, model, kwargs, {k: v[0] for k, v in known.items()}, name)
        # Without continuous latents all draws of the first site come from one distribution.
        nudge = blank.expand(num if known else 1, *blank.shape).clone().requires_grad_()

        def marginal(draw: Values, name: str = name) -> Tensor:
            rest = {k: v for k, v in draw.items() if k != "__nudge__"}
            return total(model_factors(program, model, kwargs, rest, nudge={name: draw["__nudge__"]}))

        with torch.enable_grad():
            log_z = each(marginal, {**known, "__nudge__": nudge})
            (probs,) = torch.autograd.grad(log_z.sum(), nudge)
        probs = probs.detach().clamp_min(0.0).movedim(1, -1)  # (S, K, *plates) -> (S, *plates, K)
        index = torch.distributions.Categorical(probs=probs.expand(num, *probs.shape[1:])).sample()
        index = index.reshape(num, *site.batch_shape)
        drawn[name] = known[name] = states[index]
    return drawn


def discrete_marginals(
    program: Program, model: Callable[..., Any], kwargs: Mapping[str, Any], values: Values
) -> dict[str, Tensor]:
    """p(z = k | values, observations) of every summed-out site, each (*plates, K)."""
    with torch.enable_grad():
        nudge = {n: _blank_nudge(program, model, kwargs, values, n).requires_grad_() for n in program.discrete}
        log_z = total(model_factors(program, model, kwargs, values, nudge=nudge))
        grads = torch.autograd.grad(log_z, list(nudge.values()))
    dims = {name: -1 - program.max_plate_nesting - k for k, name in enumerate(program.discrete)}  # as `Enumerate` gives them
    out = {}
    for (name, site), grad in zip(program.discrete.items(), grads, strict=True):
        states = len(site.distribution.enumerate_support(expand=False))
        # A site that depends on others has a probability for each of their states, too: together with its own.
        others = [dim for other, dim in dims.items() if other != name and grad.dim() >= -dim]
        probs = grad.detach().sum(others, keepdim=True) if others else grad.detach()
        probs = probs.movedim(dims[name], -1) if grad.dim() >= -dims[name] else probs.unsqueeze(-1)
        out[name] = probs.clamp_min(0.0).reshape(*site.batch_shape, states)
    return out


def _blank_nudge(program: Program, model: Callable[..., Any], kwargs: Mapping[str, Any], values: Values, name: str) -> Tensor:
    """Zeros of the shape that the enumerated site's log probability has."""
    missing = [n for n in program.discrete if n not in values]
    enumerate_ = Enumerate(missing, program.max_plate_nesting)
    with torch.no_grad():
        trace = model_trace(model, kwargs, values, enumerate_)
    return torch.zeros_like(site_factor(name, trace.nodes[name]).log_prob)
