"""Predictions of a network of adaptive depth that run as few layers as they need.

Lecture: "Bayesian Control Flow", which asks how to decide upon the number of layers at test time: by the mode of
p(y, z | x) = p(y | x, z) p(z), or by a sample of it. While y is unseen p(z | x) = p(z), so a sample from the prior never
adapts to x; the mode does, and so does a learned q(z | x).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..prediction.new_inputs import check_scale
from .rules import Given, Marginal, Mode, Rule
from .stages import Cost, Stages

RULES = ("mode", "marginal", "sample", "amortized")

#: Rules whose answer is that of the full computation, always.
CERTIFIED = ("mode", "marginal")


@dataclass(frozen=True)
class EarlyExit:
    """Answers, and what they cost.

    Attributes:
        rule: how the depth was decided.
        label: (N,) classes.
        layers: (N,) layers that each input went through.
        depth: layers of the whole network.
        prob: (N,) J(y, z) of the answer (`mode`), p(y | x) as far as it was summed (`marginal`), or p(y | x, z).
        flops: floating-point operations of one input on average.
        full_flops: those of the full computation.
        seconds: for all inputs, the shortest of some runs, other work on the machine being what makes them differ.
        full_seconds: for the full computation of the same answer.
        agreement: the share of inputs whose class is that of the full computation.
    """

    rule: str
    label: Tensor
    layers: Tensor
    depth: int
    prob: Tensor
    flops: float
    full_flops: float
    seconds: float
    full_seconds: float
    agreement: float

    @property
    def blocks_saved(self) -> float:
        """The share of layer evaluations that were not made."""
        return 1.0 - float(self.layers.double().mean()) / self.depth

    @property
    def time_saved(self) -> float:
        """The share of the full computation's time."""
        return 1.0 - self.seconds / self.full_seconds

    def accuracy(self, y: Any) -> float:
        """The share of right classes: `Data` or a tensor (N,)."""
        y = torch.as_tensor(getattr(y, "observed", y))
        if y.dim() != 1 or len(y) != len(self.label):
            raise ValueError(
                f"there are {len(self.label)} answers, and labels of the shape {tuple(y.shape)}; give those of the same inputs"
            )
        return float((self.label == y.to(self.label.device)).double().mean())

    def __str__(self) -> str:
        rows = [
            (
                "layers",
                f"{float(self.layers.double().mean()):.2f} of {self.depth} on average",
                f"{self.blocks_saved:.0%} saved",
            ),
            ("operations", f"{self.flops:,.0f} of {self.full_flops:,.0f}", f"{1 - self.flops / self.full_flops:.0%} saved"),
            ("time", f"{1e3 * self.seconds:.1f} of {1e3 * self.full_seconds:.1f} ms", f"{self.time_saved:.0%} saved"),
            ("same answer", f"{self.agreement:.2%} of {len(self.label)}", "certified" if self.rule in CERTIFIED else ""),
        ]
        wide = max(len(row[1]) for row in rows)
        return "\n".join([f"early exit by {self.rule}", *(f"  {a:<12} {b:<{wide}}  {c}".rstrip() for a, b, c in rows)])


def early_exit(
    fit: Any, x: Any, rule: str = "mode", *, n: int = 30, batch_size: int = 512, repeats: int = 3, seed: int = 0
) -> EarlyExit:
    """Predicts classes with as few layers as the rule allows; `Fit.early_exit` documents the arguments."""
    model = fit.model
    if not hasattr(model, "depth_posterior"):
        raise ValueError(
            f"early_exit needs a network of adaptive depth (AdaptiveDepthResNet), and the model is {type(model).__name__}; use predict"
        )
    if rule not in RULES:
        raise ValueError(f"unknown rule '{rule}'; choose one of {', '.join(RULES)}")
    for name, value in {"n": n, "batch_size": batch_size, "repeats": repeats}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    run = fit.run
    with run.owned.active(seed), torch.no_grad():
        x = _inputs(fit, x)
        draws = run.draws(fit.data, n, seed, discrete=False, score=False).values if model.sites else {}
        weights = {name: draws[name] for name in model.sites}
        prior, each = _prior(fit, weights)
        stages = Stages(model.net, weights, each)
        make = _maker(fit, rule, x, prior)
        answer = functools.partial(_run, stages, make, x, batch_size, len(prior) - 1)
        label, layers, prob = answer(early=True)
        full, _, _ = answer(early=False)
        seconds = _times([lambda: answer(early=True), lambda: answer(early=False)], repeats)
        cost = Cost(stages, x)
    spent = torch.tensor([float(cost.first)] + [float(b) for b in cost.block[1:]]).cumsum(0)
    exits = torch.tensor([float(e) for e in cost.exit])
    # A depth that was chosen before needs its own exit only.
    used = spent[layers.cpu()] + (exits.cumsum(0)[layers.cpu()] if rule in CERTIFIED else exits[layers.cpu()])
    whole = float(spent[-1] + (exits.sum() if rule in CERTIFIED else exits[-1]))
    return EarlyExit(
        rule, label.cpu(), layers.cpu(), stages.depth, prob.cpu(), float(used.mean()), whole, seconds[0], seconds[1],
        float((label == full).double().mean()),
    )  # fmt: skip


def _inputs(fit: Any, x: Any) -> Tensor:
    """The rows of `Data`, of a dictionary, or of a tensor, checked against those of the fit."""
    if hasattr(x, "inputs"):
        check_scale(fit.data, x)
    x = getattr(x, "inputs", x)
    try:
        x = torch.as_tensor(x["x"] if isinstance(x, Mapping) else x)
    except (KeyError, TypeError, ValueError, RuntimeError):
        raise ValueError("early_exit takes Data, a tensor of inputs (N, ...), or a dictionary with inputs under 'x'") from None
    seen = fit.data.inputs["x"]
    if x.shape[1:] != seen.shape[1:] or not len(x):
        raise ValueError(
            f"the network takes inputs of shape (N, {', '.join(map(str, seen.shape[1:]))}), and these have {tuple(x.shape)}; give data "
            "of the size that it was fitted to"
        )
    bad = (~torch.isfinite(x.flatten(1)).all(1)).nonzero()
    if len(bad):
        raise ValueError(f"row {int(bad[0]) + 1} of the inputs holds a value that is not finite; no depth has an answer for it")
    out: Tensor = x.to(device=fit.run.owned.device, dtype=fit.run.owned.dtype)
    return out


def _prior(fit: Any, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """p(z) `(L + 1,)` for a new input, and `(S, L + 1)` for each draw of the weights where it depends on them.

    It is the prior; where all inputs share z, its posterior given the training data: q(z) where the guide has one. Otherwise z was
    summed out, and each draw of the weights has its own.
    """
    model, guide = fit.model, fit.run.owned.guide
    prior: Tensor = model.probs.to(dtype=fit.run.owned.dtype, device=fit.run.owned.device)
    if model.scope == "input":
        return prior, None
    if "z" in getattr(guide, "sites", {}):
        q: Tensor = guide.probs("z")
        return q, None
    bound = fit.data.bind(model)
    draws = [
        {name: values[s] for name, values in weights.items()}
        for s in range(len(next(iter(weights.values()))) if weights else 1)
    ]
    each = torch.stack([model.depth_posterior(model.run(one, bound["x"]), bound["y"]) for one in draws])
    return each.mean(0), each if weights else None


def _maker(fit: Any, rule: str, x: Tensor, prior: Tensor) -> Callable[[slice], Rule]:
    classes = int(fit.model.run({n: b for n, (b, _) in fit.model.initial_values().items()}, x[:1]).shape[-1])
    if rule == "mode":
        return lambda rows: Mode(prior, len(x[rows]), classes)
    if rule == "marginal":
        return lambda rows: Marginal(prior, len(x[rows]), classes)
    if rule == "sample":
        depth = torch.distributions.Categorical(prior).sample((len(x),))
        return lambda rows: Given(depth[rows])
    guide = fit.run.owned.guide
    if fit.model.scope != "input":
        raise ValueError(
            "rule 'amortized' asks q(z | x) of each input for its depth, and here all inputs share one; use rule 'mode'"
        )
    if "z" not in getattr(guide, "sites", {}) or not hasattr(guide, "probs"):
        raise ValueError(
            "rule 'amortized' asks q(z | x) for the depth, and the fit has none; fit with guide={'z': 'amortized'}, or use rule 'mode'"
        )
    depth = guide.probs("z", x=x).argmax(-1)
    return lambda rows: Given(depth[rows])


def _run(
    stages: Stages, make: Callable[[slice], Rule], x: Tensor, batch_size: int, depth: int, *, early: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Class, layers used and probability of every input; rows leave the batch when they are certain, if `early`."""
    found = (
        torch.zeros(len(x), dtype=torch.long, device=x.device),
        torch.full((len(x),), depth, device=x.device),
        torch.zeros(len(x), dtype=x.dtype, device=x.device),
    )
    near: list[int] = []
    for begin in range(0, len(x), batch_size):
        near += _batch(stages, make, x, slice(begin, begin + batch_size), depth, found, early=early)
    for row in near:  # alone, so that no other row moves its last bits
        _batch(stages, make, x, slice(row, row + 1), depth, found, early=False)
    return found


def _batch(
    stages: Stages,
    make: Callable[[slice], Rule],
    x: Tensor,
    where: slice,
    depth: int,
    found: tuple[Tensor, ...],
    *,
    early: bool,
) -> list[int]:
    """Writes the answers of some rows, and returns those that rounding could turn."""
    label, layers, prob = found
    near: list[Tensor] = []
    rule = make(where)
    # A chosen depth is chosen in the full computation, too; what that computes beyond it is not its answer.
    rows = torch.arange(where.start, min(where.stop, len(x)), device=x.device)
    h = stages.stem(x[where])
    for number in range(depth + 1):
        h = stages.block(number, h) if number else h
        if isinstance(rule, Given) and number < depth and not bool((rule.depth == number).any()):
            continue
        done = rule.update(number, *stages.probs(number, h))
        if number < depth and not (early and bool(done.any())):
            continue
        gone = done if number < depth else torch.ones_like(done)
        classes, value = rule.answer()
        label[rows[gone]], prob[rows[gone]] = classes[gone], value[gone].to(prob)
        layers[rows[gone]] = number
        near.append(rows[gone & rule.close()])
        stay = (~gone).nonzero().squeeze(1)
        if not len(stay):
            break
        rule.keep(stay)
        rows, h = rows[stay], stages.keep(h, stay)
    out: list[int] = torch.cat(near).tolist()
    return out


def _times(runs: list[Callable[[], Any]], repeats: int) -> list[float]:
    """The least seconds of each, run in turn."""
    found: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, taken in zip(runs, found, strict=True):
            began = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
    return [min(taken) for taken in found]
