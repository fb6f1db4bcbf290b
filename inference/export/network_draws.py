"""Draws of a network, chunk by chunk: of each chunk its function values and likelihoods stay, and few of its weights.

A thousand draws of 266,610 weights are 1 GB; nothing here ever holds more than a few of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..draws import Draws, chunk_size, draw
from ..target.density import EachDraw, model_factors, total
from ..target.program import Values
from .function_space import F, Functions, at_once
from .tree_arrays import Arrays, Collected, fill, simulated

if TYPE_CHECKING:
    from ..result import Fit
    from ..run import Run


@dataclass(frozen=True)
class Wanted:
    """What is kept of each draw.

    Attributes:
        keep: of the latents.
        functions: values of f, if any.
        part: the fit on the observations whose likelihood is computed, if any; see `chosen_rows.on_rows`. Where they are all
            observations, log p of each draw is kept.
        log_likelihood: whether log p(y_n | w) of these observations is kept.
        predictive: whether these observations are simulated.
    """

    keep: Callable[[Mapping[str, Tensor]], Arrays]
    functions: Functions | None
    part: Fit | None
    log_likelihood: bool = True
    predictive: bool = False


def draw_seed(fit: Fit, run: Run, seed: int) -> int:
    """Of one restart's draws; with the fit's own seed those of the best restart are `fit.sample(n)`."""
    return seed * 1009 + 11 + 104_729 * ((run.restart - fit.run.restart) % len(fit.runs))


def collect_network(fit: Fit, n: int, seed: int, wanted: Wanted) -> Collected:
    """What `n` draws of every restart say."""
    found = Collected()
    for chain in range(len(fit.runs)):
        _Chain(fit, chain, n, seed, wanted, found).run()
    return found


class _Chain:
    """Takes in the draws of one restart."""

    def __init__(self, fit: Fit, chain: int, n: int, seed: int, wanted: Wanted, found: Collected) -> None:
        self.fit, self.chain, self.n, self.seed, self.wanted, self.found = fit, chain, n, seed, wanted, found
        self.restart = fit.runs[chain]
        self.site = next(iter(fit.program.observed))
        self.likelihood = None if wanted.part is None else _Likelihood(wanted.part, self.restart)

    def run(self) -> None:
        """Draws, and fills the chain's place in all arrays."""
        stream(self.fit, self.restart, self.n, draw_seed(self.fit, self.restart, self.seed), self._take)

    def _fill(self, arrays: Arrays, parts: Arrays, where: slice) -> None:
        for name, part in parts.items():
            fill(arrays, name, part, len(self.fit.runs), self.n, self.chain, where)

    def _take(self, where: slice, draws: Draws) -> None:
        wanted, found = self.wanted, self.found
        self._fill(found.posterior, wanted.keep(draws.values), where)
        if wanted.functions is not None:
            self._fill(found.posterior, {F: wanted.functions(self.restart.owned, draws.values).numpy()}, where)
        if self.likelihood is not None and wanted.part is not None:
            whole = len(wanted.part.data) == len(self.fit.data)
            if whole or wanted.log_likelihood:
                log_p, each = self.likelihood(draws.values)
                if whole:
                    self._fill(found.stats, _numbers(log_p=log_p.double()), where)
                if wanted.log_likelihood:
                    self._fill(found.log_likelihood, _numbers(**{self.site: each}), where)
            if wanted.predictive:
                self._predict(wanted.part, self.likelihood, draws.values, where.start)
        if draws.log_q is not None:
            self._fill(found.stats, _numbers(log_q=draws.log_q.double()), where)

    def _predict(self, part: Fit, likelihood: _Likelihood, values: Values, first: int) -> None:
        # A generator of its own, so that the weights are the same with and without simulated outcomes.
        with self.restart.owned.active(self.seed * 1009 + 19 + self.restart.restart + 7919 * first):
            for cut, some in likelihood.cuts(values):
                self._fill(
                    self.found.predictive, simulated(part, self.restart, some), slice(first + cut.start, first + cut.stop)
                )


def stream(fit: Fit, run: Run, n: int, seed: int, take: Callable[[slice, Draws], None]) -> None:
    """Hands out the draws of `run.draws(fit.data, n, seed)` chunk by chunk, without log p."""
    program = run.program
    # As many at once as `draws.draw` maps: in other chunks the same seed would give other draws.
    chunk = min(n, chunk_size(program.num_data, torch.finfo(run.owned.dtype).bits // 8, program.width))
    with run.owned.active(seed):
        parts = run.parts(fit.data, whole=bool(program.discrete))
        for first in range(0, n, chunk):
            num = min(chunk, n - first)
            take(slice(first, first + num), draw(run.owned, program, parts, num, run.each, point=run.point, score=False))


class _Likelihood:
    """log p(w, y) and log p(y_n | w) of draws, on a part of the observations; call inside `owned.active`."""

    def __init__(self, part: Fit, run: Run) -> None:
        self.run, self.program = run, part.program
        self.kwargs = part.data.bind(run.owned.model)
        self.each = EachDraw()
        self.chunk = 0

    def cuts(self, values: Values) -> Iterator[tuple[slice, Values]]:
        """Pieces of the draws whose runs of the model fit into memory at once."""
        if not self.chunk:
            with torch.no_grad():
                self.chunk = at_once(self._one, values)
        num = len(next(iter(values.values())))
        for first in range(0, num, self.chunk):
            cut = slice(first, min(num, first + self.chunk))
            yield cut, {name: value[cut] for name, value in values.items()}

    def _one(self, values: Values) -> tuple[Tensor, Tensor]:
        factors = model_factors(self.program, self.run.owned.model, self.kwargs, values)
        return total(factors), next(factor.log_prob for factor in factors if factor.observed)

    def __call__(self, values: Values) -> tuple[Tensor, Tensor]:
        """(S,) and (S, N), in nats."""
        with torch.no_grad():
            parts = [self.each(self._one, some) for _, some in self.cuts(values)]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _numbers(**tensors: Tensor) -> Arrays:
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
