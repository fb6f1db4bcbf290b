"""One network, k networks, the mean weights: what averaging buys, and what it costs.

Lecture: "Bayesian Neural Networks: Conclusion": an ensemble of k models is k times as slow, and a single network also works. Here
both halves of the sentence are measured on the same inputs: accuracy and negative log likelihood of the probabilities averaged
over k draws, seconds of running these k networks, and the same of the one network whose weights are the posterior's means.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..draws import seed_of
from ..engine.noise import vmap_random
from ..estimators.layer_noise import AtTheMean
from ..target.program import Site
from .new_inputs import Inputs, check_scale, new_inputs, observed_site
from .prediction import by_class
from .predictive import Forward, Latents, latent_draws, seeds_of
from .scores import labels

if TYPE_CHECKING:
    from ..result import Fit

#: Draws that the mean weights average, where the guide does not know its mean; their error is then 3 % of a posterior sd.
MEAN_DRAWS = 1000

#: Inputs that are timed.
TIMED = 1000

#: Numbers that are drawn at once for their mean.
_NUMBERS_AT_ONCE = 10_000_000


@dataclass(frozen=True)
class AveragingRow:
    """One way to predict.

    Attributes:
        networks: k; 1 for the mean weights too.
        accuracy: share of right answers, averaged over the groups.
        nll: negative log probability of the right class in nats an observation, averaged over the groups.
        accuracy_sd: standard deviation of the accuracy between groups, NaN of a single one.
        nll_sd: the same of the negative log probability.
        groups: how many disjoint groups of k draws were measured.
        seconds: for 1000 inputs, the weights being drawn already.
    """

    networks: int
    accuracy: float
    nll: float
    accuracy_sd: float
    nll_sd: float
    groups: int
    seconds: float


@dataclass(frozen=True)
class AveragingCurve:
    """Accuracy and time against the number of averaged networks.

    Attributes:
        rows: one a k, in increasing order.
        mean_weights: the single network with the posterior means as weights.
        num: observations that were predicted.
    """

    rows: tuple[AveragingRow, ...]
    mean_weights: AveragingRow
    num: int

    def __str__(self) -> str:
        lines = [f"{'networks':>12}  {'accuracy':>8}  {'nll (nats)':>10}  {'ms per 1000 inputs':>18}"]
        for name, row in [*((str(row.networks), row) for row in self.rows), ("mean weights", self.mean_weights)]:
            lines.append(f"{name:>12}  {row.accuracy:8.4f}  {row.nll:10.4f}  {1000 * row.seconds:18.3g}")
        return "\n".join(lines)


def averaging_curve(
    fit: Fit, data: Any, ks: Sequence[int] = (1, 2, 5, 10, 30, 100), *, repeats: int = 3, seed: int | None = None
) -> AveragingCurve:
    """Measures predictions by k draws for several k, and by the mean weights.

    As many draws are made as the largest k; for a smaller k they form disjoint groups, whose scores are averaged.

    Args:
        fit: of a model of classes, with a network or without.
        data: `Data` with known classes, of the kind that the fit was made from.
        ks: numbers of draws.
        repeats: how often each time is taken; the median counts.
        seed: by default the fit's own.

    Raises:
        ValueError: for outcomes that are no classes, or a k below 1.
    """
    for k in (*ks, repeats):
        if isinstance(k, bool) or not isinstance(k, Integral) or k < 1:
            raise ValueError(f"ks and repeats must be whole numbers of at least 1, got {k!r}")
    ks = sorted(set(ks))
    if not ks:
        raise ValueError("ks is empty; give the numbers of networks to average, such as (1, 10, 100)")
    check_scale(fit.data, data)
    site, run = observed_site(fit.program, None), fit.run
    inputs = new_inputs(fit.data, fit.model, data.inputs, None if data.inputs else len(data))
    seeds = seeds_of(seed_of(fit, seed))
    with run.owned.active(seeds[0]), torch.no_grad():
        latents = latent_draws(run, fit.data, ks[-1], seeds[0])
        forward = Forward(run.owned, site, inputs, seeds[1], arguments=False)
        groups = {k: _Groups(k) for k in ks}
        label: Tensor | None = None
        for probs in _each_draw(forward, latents, ks[-1]):
            label = labels(data, probs) if label is None else label
            for group in groups.values():
                group.add(probs, label)
        assert label is not None
        mean = mean_latents(run.owned.guide, latents)
        single = _Groups(1)
        single.add(next(_each_draw(forward, _fixed(mean), 1)), label)
        clock = _Clock(
            Forward(run.owned, site, inputs.first(_timed(inputs, site)), seeds[1], arguments=False), latents, repeats
        )
        rows = tuple(groups[k].row(clock.seconds(k)) for k in ks)
        return AveragingCurve(rows, single.row(clock.seconds(1, mean)), inputs.rows)


def mean_latents(guide: Any, latents: Latents, num: int = MEAN_DRAWS) -> dict[str, Tensor]:
    """E_q z of the global latents, site -> (*shape): exact for factorised normals, else the average of `num` draws."""
    with AtTheMean() if getattr(guide, "factorized", False) else contextlib.nullcontext():
        each = sum(v.numel() for v in latents(0, 1).values())
        chunk = max(1, min(num, _NUMBERS_AT_ONCE // max(1, each)))
        sums: dict[str, Tensor] = {}
        for first in range(0, num, chunk):
            for name, value in latents(first, min(chunk, num - first)).items():
                sums[name] = sums[name] + value.sum(0) if name in sums else value.sum(0)
    return {name: total / num for name, total in sums.items()}


class _Groups:
    """Scores of probabilities averaged over disjoint groups of k draws."""

    def __init__(self, k: int) -> None:
        self.k, self.num = k, 0
        self.total: Tensor | None = None
        self.accuracy: list[float] = []
        self.nll: list[float] = []

    def add(self, probs: Tensor, label: Tensor) -> None:
        """Takes in one draw's probabilities (N, K)."""
        self.total = probs if self.total is None else self.total + probs
        self.num += 1
        if self.num == self.k:
            self.accuracy.append(float((self.total.argmax(1) == label).double().mean()))
            self.nll.append(-float((self.total.gather(1, label[:, None]) / self.k).log().mean()) + 0.0)
            self.num, self.total = 0, None

    def row(self, seconds: float) -> AveragingRow:
        """The scores' means and standard deviations."""
        spread = [statistics.stdev(x) if len(x) > 1 else math.nan for x in (self.accuracy, self.nll)]
        accuracy, nll = statistics.fmean(self.accuracy), statistics.fmean(self.nll)
        return AveragingRow(self.k, accuracy, nll, spread[0], spread[1], len(self.accuracy), seconds)


class _Clock:
    """Times networks whose weights are at hand."""

    def __init__(self, forward: Forward, latents: Latents, repeats: int) -> None:
        self.forward, self.latents, self.repeats = forward, latents, repeats
        inputs = forward.inputs
        self.cut = forward.tile(latents, 2)
        self.blocks = [inputs.block(i, min(i + self.cut.rows, inputs.rows)) for i in range(0, inputs.rows, self.cut.rows)]

    def seconds(self, k: int, weights: Mapping[str, Tensor] | None = None) -> float:
        """Median seconds for 1000 inputs and k draws, or these weights."""
        times = [self._once(k, weights) for _ in range(self.repeats + 1)][1:]  # the first one warms up
        return statistics.median(times) * 1000 / self.forward.inputs.rows

    def _once(self, k: int, weights: Mapping[str, Tensor] | None) -> float:
        spent = 0.0
        for first in range(0, k, self.cut.draws):
            many = min(self.cut.draws, k - first)
            values = self.latents(first, many) if weights is None else {n: v[None] for n, v in weights.items()}
            start = self._now()
            for kwargs in self.blocks:
                self._run(kwargs, values, many).sum(0)
            spent += self._now() - start
        return spent

    def _run(self, kwargs: Mapping[str, Any], values: Mapping[str, Tensor], many: int) -> Tensor:
        network = _network(self.forward, kwargs)
        if many > 1 and self.forward.noise.mapped:
            out: Tensor = vmap_random(network, dict(values))
            return out
        return torch.stack([network({name: v[s] for name, v in values.items()}) for s in range(many)])

    def _now(self) -> float:
        if self.forward.owned.device.type == "cuda":
            torch.cuda.synchronize(self.forward.owned.device)
        return time.perf_counter()


def _network(forward: Forward, kwargs: Mapping[str, Any]) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Weights -> probabilities: the model's bare network where it has one, as `BayesianNN.outputs`, else a run of the model."""
    outputs, sites = getattr(forward.owned.model, "outputs", None), getattr(forward.owned.model, "sites", ())
    if not callable(outputs) or "x" not in kwargs:
        run = forward.one(kwargs)
        return lambda weights: run(weights)["probs"]

    def network(weights: Mapping[str, Tensor]) -> Tensor:
        out: Tensor = outputs({name: w for name, w in weights.items() if name in sites}, kwargs["x"])
        return torch.softmax(out, -1) if out.dim() > 1 else torch.sigmoid(out)

    return network


def _each_draw(forward: Forward, latents: Latents, num: int) -> Iterator[Tensor]:
    """Class probabilities (N, K) of one draw after another, on the CPU."""
    for _, found in forward.chunks(latents, num):
        if "probs" not in found:
            raise ValueError(
                f"the averaging curve compares class probabilities, and '{forward.site.name}' is a number; compare the scores of "
                "predict with several n instead"
            )
        yield from by_class(found["probs"], found["draw"]).cpu()


def _fixed(values: Mapping[str, Tensor]) -> Latents:
    """The same latents in every draw."""
    return lambda first, num: {name: value.expand(num, *value.shape) for name, value in values.items()}


def _timed(inputs: Inputs, site: Site) -> int:
    return min(TIMED, inputs.rows) if inputs.divisible(site) else inputs.rows
