"""Few labels: accuracy, NLL and calibration error of point and Bayesian fits against labels per parameter.

The lecture ("Bayesian Neural Networks: Conclusion") claims that Bayesian methods are useful where the data-to-parameters ratio
is low. The same network, 64-50-50-10 for digits and 784-100-10 for MNIST, is fitted by each family to 100, 300 and 1,000 labels
(and 10,000 of MNIST's), five seeds: another split, other labels, other starts. What a family may choose (scale of the prior,
steps of the maximum-likelihood fit) is chosen for every seed by NLL on a held-out fifth of its labelled examples alone.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import bayeszoo as bz

from .. import machine, results
from ..compare import say
from . import labels_report, plots
from .timing import Timing
from .warm_up import ELBO_FAMILIES, kl_weight

HIDDEN = {"digits": (50, 50), "mnist": (100,)}
LABELS = {"digits": (100, 300, 1000), "mnist": (100, 300, 1000, 10_000)}
SEEDS = 5
BATCH = 100
LEARNING_RATE = 0.003
DRAWS, DRAWS_TO_CHOOSE = 200, 100


@dataclass(frozen=True)
class Setting:
    """What validation chooses: steps, standard deviation of the prior (None: the prior plays no part), options of the guide."""

    steps: int
    prior_scale: float | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        prior = () if self.prior_scale is None else (f"prior {self.prior_scale:g}",)
        return ", ".join((*prior, *(f"{k} {v}" for k, v in self.options if k != "l2"), f"{self.steps} steps"))


# Standard deviations of the prior: the same choice for every family.
SCALES = (0.4, 1.0, 3.0, 10.0)
FAMILIES: dict[str, tuple[Setting, ...]] = {
    "mle": tuple(Setting(steps) for steps in (100, 300, 1000, 2000)),
    "map": tuple(Setting(2000, scale) for scale in SCALES),
    "mean_field": tuple(Setting(3000, scale) for scale in SCALES),
    "mc_dropout": tuple(Setting(2000, scale, (("rate", 0.2), ("l2", True))) for scale in SCALES),
    "ensemble": tuple(Setting(2000, scale, (("members", 5),)) for scale in SCALES),
}


def network(name: str, data: bz.data.Data, seed: int) -> torch.nn.Sequential:
    """The data set's network, with the weights that a seed gives."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return bz.models.networks.mlp(data.inputs["x"][0].numel(), list(HIDDEN[name]), 10)


def pool_and_test(name: str, seed: int) -> tuple[bz.data.Data, bz.data.Data]:
    """What labels are taken from, and what is held out: MNIST's own splits, two thirds and a third of digits."""
    if name == "mnist":
        return bz.data.load("mnist", split="train"), bz.data.load("mnist", split="test")
    pool, test = bz.data.load("digits").split(2 / 3, seed=seed)
    return pool, test


def fit_and_score(
    name: str, data: bz.data.Data, test: bz.data.Data, family: str, setting: Setting, *, draws: int, seed: int, timing: Timing,
    compile: bool = True,
) -> dict[str, float]:  # fmt: skip
    """Fits a family to labelled examples and scores it on others: accuracy, nll (nats an observation) and ece."""
    began = time.perf_counter()
    prior = bz.models.weight_priors.Normal("fan_in" if setting.prior_scale is None else setting.prior_scale)
    model = bz.models.BayesianNN(network(name, data, seed), prior=prior)
    fit = bz.fit(
        model, data, family, guide_options=dict(setting.options), steps=setting.steps, batch_size=min(BATCH, len(data)),
        optimizer=LEARNING_RATE, schedule="cosine", kl_weight=kl_weight if family in ELBO_FAMILIES else None, seed=seed,
        device="cpu", progress=False, compile=compile,
    )  # fmt: skip
    draws = 1 if family in ("mle", "map") else draws
    scores: Any = fit.predict(test.inputs, n=draws, keep_draws=False).scores(test)
    timing.add(fit, time.perf_counter() - began)
    return {"accuracy": scores.accuracy, "nll": scores.nll, "ece": scores.ece}


def choose(
    name: str, data: bz.data.Data, family: str, settings: Sequence[Setting], *, seed: int, timing: Timing, compile: bool
) -> Setting:
    """The setting with the lowest NLL on a held-out fifth of the labelled examples."""
    if len(settings) == 1:
        return settings[0]
    part, rest = data.split(0.8, seed=seed)
    found = [
        fit_and_score(
            name, part, rest, family, setting, draws=DRAWS_TO_CHOOSE, seed=seed, timing=timing, compile=compile
        )["nll"]
        for setting in settings
    ]  # fmt: skip
    return settings[min(range(len(settings)), key=lambda k: found[k] if math.isfinite(found[k]) else math.inf)]


def measure(
    name: str, family: str, count: int, settings: Sequence[Setting], seeds: Sequence[int], *, compile: bool = True
) -> dict[str, Any]:
    """One family with one number of labels: scores of every seed, and what each chose."""
    timing, choosing = Timing(), Timing()
    scores, chosen = [], []
    for seed in seeds:
        pool, test = pool_and_test(name, seed)
        data = bz.data.few_labels(pool, count, seed)
        setting = choose(name, data, family, settings, seed=seed, timing=choosing, compile=compile)
        scores.append(fit_and_score(name, data, test, family, setting, draws=DRAWS, seed=seed, timing=timing, compile=compile))
        chosen.append(str(setting))
    return {"scores": scores, "chosen": chosen, "timing": timing.summary(), "choosing": choosing.summary()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's options."""
    parser.add_argument("--data", choices=list(HIDDEN), default="digits", help="digits (shipped), or mnist from BAYESZOO_DATA")
    parser.add_argument("--labels", help="numbers of labels by commas (default 100,300,1000, on MNIST 10000 as well)")
    parser.add_argument("--families", help=f"by commas: {', '.join(FAMILIES)}")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--eager", action="store_true", help="do not compile the steps")
    parser.add_argument("--add", action="store_true", help="keep what the results hold of other families and numbers of labels")


def main(asked: argparse.Namespace, out: Path) -> None:
    """Measures, and writes after each family and number of labels."""
    counts = [int(n) for n in asked.labels.split(",")] if asked.labels else list(LABELS[asked.data])
    families = asked.families.split(",") if asked.families else list(FAMILIES)
    unknown = [f for f in families if f not in FAMILIES]
    if unknown or asked.seeds < 1:
        wrong = f"unknown family '{unknown[0]}'; choose from {', '.join(FAMILIES)}" if unknown else "--seeds must be at least 1"
        raise SystemExit(wrong)
    torch.set_num_threads(1)
    recorded = out / f"labels_{asked.data}.json"
    found: dict[str, Any] = (
        json.loads(recorded.read_text(encoding="utf-8"))["points"] if asked.add and recorded.exists() else {}
    )
    for count in counts:
        for family in families:
            began = time.perf_counter()
            cell = measure(asked.data, family, count, FAMILIES[family], range(asked.seeds), compile=not asked.eager)
            found.setdefault(str(count), {})[family] = cell
            means = {key: statistics.fmean(s[key] for s in cell["scores"]) for key in cell["scores"][0]}
            figures = ", ".join(f"{key} {value:.3f}" for key, value in means.items())
            say(f"{asked.data} {count} {family}: {figures}; {cell['chosen'][0]}; {time.perf_counter() - began:.0f} s")
            keep(asked.data, found, out)


def keep(name: str, found: Mapping[str, Any], out: Path) -> None:
    """Writes what was found so far."""
    ordered = {n: {f: found[n][f] for f in FAMILIES if f in found[n]} for n in sorted(found, key=int)}
    pool, _ = pool_and_test(name, 0)
    parameters = sum(p.numel() for p in network(name, pool, 0).parameters())
    whole = {"machine": machine.describe("cpu", 1), "data": name, "parameters": parameters, "points": ordered}
    stem = f"labels_{name}"
    layers = "-".join(map(str, (pool.inputs["x"][0].numel(), *HIDDEN[name], 10)))
    body = f"{labels_report.render(ordered, layers, parameters)}\n\n![scores against labels per parameter]({stem}.png)"
    results.write(out, stem, whole, f"Few labels: {name}", body)
    plots.labels(labels_report.summary(ordered), labels_report.SCORES, parameters, out / f"{stem}.png")
