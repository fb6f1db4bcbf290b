"""Prediction draw by draw, in chunks: what is held at once is bounded, and the numbers do not depend on the chunks.

A thousand draws of a network with 266,610 weights are 1 GB, and its logits for 10,000 images 400 MB more. So latents are drawn
for a chunk of draws, the model runs on them for a block of inputs after another, and of its results only running sums stay:
the mean probabilities, the mean entropy of each draw's, the mean and variance of the likelihood. Each draw has random numbers
of its own (`draw_noise`), the same for any chunk, any number of draws and any inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ..engine.owned import Owned
from ..target.density import guide_values
from ..target.program import Fix, Program, Site, bound_rows
from .draw_noise import DrawNoise, OneDraw
from .likelihoods import Likelihoods, parameters_of
from .new_inputs import Inputs
from .prediction import Prediction, by_class, entropy, outcome, wide
from .tiles import Counted, Tile, bytes_of, tile

#: (first, num) -> the draws `first` .. `first + num - 1` of the global latents, site -> (num, *shape).
type Latents = Callable[[int, int], dict[str, Tensor]]

#: What begins the name of a likelihood's argument among the results of one run.
_ARGUMENT = "argument "


class LatentDraws:
    """Draws of the global latents, chunk by chunk; call inside `owned.active`.

    Args:
        kwargs: the guide's arguments: the training data.
        seed: of the draws; draw s is the same whatever the chunks.
        ready: draws that were made before, (S, *shape), where they cannot be made chunk by chunk.
    """

    def __init__(
        self, owned: Owned, program: Program, kwargs: Mapping[str, Any], seed: int, ready: Mapping[str, Tensor] | None = None
    ) -> None:
        self.owned, self.program, self.kwargs, self.ready = owned, program, kwargs, ready
        self.noise = DrawNoise(seed, owned.dtype, owned.device)
        self.empty = all(site.local for site in program.latents.values())

    def __call__(self, first: int, num: int) -> dict[str, Tensor]:
        """The draws `first` .. `first + num - 1`: site -> (num, *shape)."""
        if self.ready is not None:
            return {k: v[first : first + num] for k, v in self.ready.items()}
        if self.empty:
            return {}
        return self.noise(self._one, {}, first, num)

    def _one(self, _: Mapping[str, Tensor]) -> dict[str, Tensor]:
        trace = poutine.trace(self.owned.guide).get_trace(**self.kwargs)
        values = guide_values(trace)
        return {k: v.clone() for k, v in values.items() if k in self.program.latents and not self.program.latents[k].local}


class Forward:
    """Runs of the model on new inputs, one a draw of the latents; call inside `owned.active`.

    Attributes:
        family: class of the likelihood, once it has run, where it can be made again from its arguments.
    """

    def __init__(self, owned: Owned, site: Site, inputs: Inputs, seed: int, *, arguments: bool) -> None:
        self.owned, self.site, self.inputs, self.arguments = owned, site, inputs, arguments
        self.noise = DrawNoise(seed, owned.dtype, owned.device)
        self.family: type[Any] | None = None

    def one(self, kwargs: Mapping[str, Any]) -> OneDraw:
        """One run: the observed site's `draw`, and `probs` or `mean`, `variance` and the likelihood's arguments."""

        def run(latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
            with Fix(latents):
                trace = poutine.trace(self.owned.model).get_trace(**kwargs)
            node = trace.nodes[self.site.name]
            found = parameters_of(node["fn"]) if self.arguments else None
            out = outcome(node)
            if found is not None and "probs" not in out:
                self.family = found[0]
                out |= {_ARGUMENT + name: value for name, value in found[1].items()}
            return out

        return run

    def tile(self, latents: Latents, num: int) -> Tile:
        """How many draws and rows to run at once."""
        values = latents(0, min(2, num))
        first = {k: v[0] for k, v in values.items()}

        def measure(rows: int) -> tuple[float, float]:
            one = self.one(self.inputs.block(0, rows))
            self.noise.count(one, values, rows)
            with Counted() as counted:
                self.noise(one, values, 0, min(2, num), size=rows)
            if self.noise.mapped:
                return counted.shared, counted.own
            with Counted() as counted:  # draw by draw: nothing is shared
                one(first)
            return 0, counted.shared

        own, divisible = bytes_of(first), self.inputs.divisible(self.site)
        return tile(measure, num, self.inputs.rows, divisible=divisible, latent_bytes=own)

    def chunks(self, latents: Latents, num: int) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """Results of all rows, chunk by chunk of the draws: which draws, and name -> (chunk, N, ...)."""
        cut = self.tile(latents, num)
        for first in range(0, num, cut.draws):
            many = min(cut.draws, num - first)
            values = latents(first, many)
            parts = []
            for part, start in enumerate(range(0, self.inputs.rows, cut.rows)):
                stop = min(start + cut.rows, self.inputs.rows)
                one = self.one(self.inputs.block(start, stop))
                parts.append(self.noise(one, values, first, many, part=part, size=stop - start))
            yield slice(first, first + many), parts[0] if len(parts) == 1 else _join(parts, cut.rows)


def _join(parts: list[dict[str, Tensor]], rows: int) -> dict[str, Tensor]:
    """Blocks of rows behind one another; what has no rows (a shared noise scale) is the same in all."""
    whole = {}
    for name, first in parts[0].items():
        by_row = first.dim() > 1 and first.shape[1] == rows
        whole[name] = torch.cat([part[name] for part in parts], 1) if by_row else first
    return whole


class Moments:
    """Mean and variance over draws that arrive in chunks (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.num = 0
        self.mean = self.squares = torch.zeros(())

    def add(self, values: Tensor) -> None:
        """Takes in (chunk, ...) more."""
        many, mean = len(values), values.mean(0)
        squares = (values - mean).square().sum(0)
        if self.num == 0:
            self.num, self.mean, self.squares = many, mean, squares
            return
        gap, before, self.num = mean - self.mean, self.num, self.num + many
        self.squares = self.squares + squares + gap.square() * (before * many / self.num)
        self.mean = self.mean + gap * (many / self.num)

    def variance(self, correction: int = 0) -> Tensor:
        """Variance with the divisor num - correction; 0 of a single draw."""
        return self.squares / max(1, self.num - correction)


class Tally:
    """What becomes a `Prediction`: running sums over the draws, and outcomes and likelihoods where they are kept.

    Args:
        num: draws in all.
        keep: whether outcomes and likelihoods are kept.
    """

    def __init__(self, num: int, *, keep: bool) -> None:
        self.num, self.keep = num, keep
        self.kept: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.means = Moments()

    def add(self, where: slice, found: Mapping[str, Tensor]) -> None:
        """Takes in a chunk of draws."""
        if "probs" in found:
            self._sum("probs", found["probs"])
            self._sum("own", entropy(by_class(found["probs"], found["draw"])))
        else:
            self.means.add(wide(found.get("mean", found["draw"])))
            if "variance" in found and "mean" in found:
                self._sum("own", wide(found["variance"]))
        if self.keep:
            for name, value in found.items():
                if name == "draw" or name.startswith(_ARGUMENT):
                    if name not in self.kept:
                        self.kept[name] = torch.empty(self.num, *value.shape[1:], dtype=value.dtype, device="cpu")
                    self.kept[name][where] = value.cpu()

    def _sum(self, name: str, value: Tensor) -> None:
        total = value.sum(0)
        self.sums[name] = self.sums[name] + total if name in self.sums else total

    def _average(self, name: str) -> Tensor | None:
        return self.sums[name].cpu().double() / self.num if name in self.sums else None

    def prediction(self, family: type[Any] | None, scaler: Any) -> Prediction:
        """In the target's original units, if a scaler is given that scaled it."""
        scaler = scaler if scaler is not None and getattr(scaler, "target_scaled", False) else None
        own, probs = self._average("own"), self._average("probs")
        draws = self.kept.get("draw")
        if probs is not None and own is not None:
            mean, variance = _of_classes(probs, binary=probs.dim() == own.dim())
            return Prediction(draws, mean, variance.sqrt(), probs, own, None, self.num)
        mean = self.means.mean.cpu().double()
        variance = self.means.variance(correction=1 if own is None else 0).cpu().double()
        variance = variance if own is None else variance + own
        sd = variance.sqrt()
        if scaler is not None:
            draws = None if draws is None else scaler.inverse_target(draws.double())
            mean, sd = scaler.inverse_target(mean), scaler.inverse_scale(sd)
            own = None if own is None else scaler.inverse_scale(own.sqrt()).square()
        arguments = {name.removeprefix(_ARGUMENT): v for name, v in self.kept.items() if name.startswith(_ARGUMENT)}
        likelihoods = Likelihoods(family, arguments, scaler) if family is not None and arguments else None
        return Prediction(draws, mean, sd, None, own, likelihoods, self.num)


def _of_classes(probs: Tensor, *, binary: bool) -> tuple[Tensor, Tensor]:
    """Mean and variance of the class's number."""
    if binary:
        return probs, probs * (1 - probs)
    number = torch.arange(probs.shape[-1], dtype=probs.dtype)
    mean = probs @ number
    return mean, (probs @ number.square() - mean.square()).clamp_min(0.0)


def predictive(run: Any, data: Any, inputs: Inputs, num: int, site: Site, *, seed: int, keep: bool = True) -> Prediction:
    """The posterior predictive of one observed site.

    Args:
        run: one restart of a fit.
        data: the training data, with their scaler.
        inputs: the new observations.
        num: posterior draws.
        seed: of latents and outcomes.
        keep: whether the simulated outcomes and each draw's likelihood are kept.
    """
    tally = Tally(num, keep=keep)
    seeds = seeds_of(seed)
    with run.owned.active(seeds[0]), torch.no_grad():
        latents = latent_draws(run, data, num, seeds[0])
        forward = Forward(run.owned, site, inputs, seeds[1], arguments=keep)
        for where, found in forward.chunks(latents, num):
            tally.add(where, found)
    return tally.prediction(forward.family, data.scaler)


def seeds_of(seed: int) -> tuple[int, int]:
    """Seeds of the latents' draws and of the outcomes'; a fit's other draws have others."""
    return seed * 1009 + 13, seed * 1009 + 17


def latent_draws(run: Any, data: Any, num: int, seed: int) -> LatentDraws:
    """The global latents' draws of one restart given the training data; call inside `owned.active`."""
    program = run.program
    ready = None
    if any(not site.local for site in program.discrete.values()):
        # Discrete latents are drawn given all others and the data, all draws in one go; such models are small.
        drawn = run.draws(data, num, seed, discrete=True, score=False).values
        ready = {k: v for k, v in drawn.items() if not program.latents[k].local}
    return LatentDraws(run.owned, program, bound_rows(run.owned.model, data), seed, ready)
