"""UCI regression: test RMSE and log likelihood of guide families beside published figures.

    w ~ N(0, prior_scale^2),  y_n ~ N(net_w(x_n), sigma^2)     one hidden layer of 50 rectified units

Boston, concrete, energy (heating load) and yacht with the 20 standard splits. Inputs and target are standardised with the
training rows of each split alone; figures are in the target's unit. `mean_field` and `low_rank` infer sigma ~ HalfNormal(1) with
the weights. A point for sigma follows the residuals of the training rows down to nothing, so the families that fit points take
it from a grid, as the literature on dropout does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bayeszoo as bz

from .. import machine, results
from ..compare import say
from . import plots, uci_report
from .timing import Timing
from .warm_up import kl_weight

FILES = {"boston": "bostonHousing", "concrete": "concrete", "energy": "energy", "yacht": "yacht"}
SPLITS = 20
HIDDEN = 50
BATCH = 128
LEARNING_RATE = 0.01
#: Posterior draws behind a test score, and behind a score that only chooses.
DRAWS, DRAWS_TO_CHOOSE = 500, 200


@dataclass(frozen=True)
class Setting:
    """What validation chooses.

    Attributes:
        prior_scale: standard deviation of weights and biases.
        noise_scale: known sigma in sds of the target; None infers it.
        options: the guide's.
        warm_up: whether the KL's weight rises from 0 to 1 over the first half of the steps.
    """

    prior_scale: float
    noise_scale: float | None = None
    options: tuple[tuple[str, float], ...] = ()
    warm_up: bool = False

    def __str__(self) -> str:
        noise = () if self.noise_scale is None else (("noise", self.noise_scale),)
        numbers = (f"{name} {value:g}" for name, value in (("prior", self.prior_scale), *noise, *self.options))
        return ", ".join([*numbers, "warm-up"] if self.warm_up else numbers)


@dataclass(frozen=True)
class Recipe:
    """One guide family: how long it trains, and what it may choose from."""

    steps: int
    settings: tuple[Setting, ...]


def _grid(
    priors: Sequence[float],
    noises: Sequence[float | None] = (None,),
    warm_ups: Sequence[bool] = (False,),
    **options: Sequence[float],
) -> tuple[Setting, ...]:
    chosen = [tuple(zip(options, values, strict=True)) for values in itertools.product(*options.values())]
    return tuple(Setting(p, n, o, w) for o in chosen for p in priors for n in noises for w in warm_ups)


NOISES = (0.05, 0.15, 0.3)
RECIPES: dict[str, Recipe] = {
    "map": Recipe(3000, _grid((0.3, 1.0), NOISES)),
    "ensemble": Recipe(3000, _grid((0.3, 1.0), NOISES, members=(5,))),
    "mc_dropout": Recipe(5000, _grid((1.0,), NOISES, rate=(0.01, 0.05))),
    "concrete_dropout": Recipe(5000, _grid((1.0,), NOISES)),
    "mean_field": Recipe(10_000, _grid((0.5, 1.0, 2.0), warm_ups=(False, True))),
    "low_rank": Recipe(10_000, _grid((0.5, 1.0), warm_ups=(False, True), rank=(10,))),
}


@dataclass(frozen=True)
class Table:
    """A data set with its splits.

    Attributes:
        x: inputs (N, D), y: target (N,), both in their own units.
        test: (splits, N), true for the test rows.
    """

    name: str
    x: np.ndarray[Any, Any]
    y: np.ndarray[Any, Any]
    test: np.ndarray[Any, Any]

    def training(self, split: int) -> bz.data.Data:
        """The training rows of one split, standardised with their own means and sds."""
        rows = ~self.test[split]
        return bz.data.from_arrays(self.x[rows], self.y[rows], standardize=True, dtype=torch.float32, name=self.name)

    def held_out(self, split: int) -> tuple[np.ndarray[Any, Any], torch.Tensor]:
        """The test rows of one split, raw: inputs and target."""
        rows = self.test[split]
        return self.x[rows], torch.as_tensor(self.y[rows])


def read(name: str, folder: Path) -> Table:
    """A data set from its file: `x`, `y`, and `test_mask` packed by `np.packbits(axis=1)` for `n` rows.

    Raises:
        SystemExit: naming the folder where the file is missing.
    """
    path = folder / f"{FILES[name]}.npz"
    if not path.exists():
        raise SystemExit(f"there is no {path.name} in '{folder}': set BAYESZOO_DATA to the folder that holds uci/{path.name}")
    with np.load(path) as file:
        mask = np.unpackbits(file["test_mask"], axis=1)[:, : int(file["n"])].astype(bool)
        return Table(name, file["x"], file["y"], mask)


@dataclass(frozen=True)
class Score:
    """RMSE in the target's unit, and log predictive density in nats an observation."""

    rmse: float
    log_likelihood: float


def fit_and_score(
    data: bz.data.Data, guide: str, setting: Setting, inputs: Any, outcomes: Any, *, steps: int, draws: int, seed: int,
    timing: Timing, compile: bool = True,
) -> Score:  # fmt: skip
    """Fits a family to training rows and scores it.

    Args:
        data: training rows, standardised.
        inputs: of the rows to score, on the scale of the training rows.
        outcomes: of the same rows: `Data` on that scale, or numbers in the target's unit.
    """
    began = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = bz.models.networks.mlp(data.dim, [HIDDEN], 1)
    prior = bz.models.weight_priors.Normal(setting.prior_scale)
    model = bz.models.BayesianNN(net, "gaussian", prior=prior, noise_scale=setting.noise_scale)
    fit = bz.fit(
        model, data, guide, guide_options=dict(setting.options), steps=steps, batch_size=min(BATCH, len(data)), optimizer=LEARNING_RATE,
        schedule="cosine", kl_weight=kl_weight if setting.warm_up else None, seed=seed, device="cpu", progress=False,
        compile=compile,
    )  # fmt: skip
    scores: Any = fit.predict(inputs, n=draws).scores(outcomes)
    timing.add(fit, time.perf_counter() - began)
    return Score(scores.rmse, scores.log_density)


def choose(
    data: bz.data.Data, guide: str, recipe: Recipe, *, halves: int, seed: int, timing: Timing, compile: bool
) -> tuple[Setting, dict[str, float]]:
    """The setting with the highest log likelihood on a held-out fifth of the training rows.

    Args:
        halves: random 80/20 splits of these rows that are averaged.

    Returns:
        The setting, and the log likelihood of each in nats an observation.
    """
    if len(recipe.settings) == 1:
        return recipe.settings[0], {}
    found: dict[str, float] = {}
    for setting in recipe.settings:
        values = []
        for half in range(halves):
            part, rest = data.split(0.8, seed=1000 * seed + half)
            score = fit_and_score(
                part, guide, setting, rest.inputs, rest,
                steps=recipe.steps, draws=DRAWS_TO_CHOOSE, seed=seed, timing=timing, compile=compile,
            )  # fmt: skip
            values.append(score.log_likelihood)
        found[str(setting)] = statistics.fmean(values)
    best = max(recipe.settings, key=lambda s: (not math.isnan(found[str(s)]), found[str(s)]))
    return best, found


def measure(
    table: Table,
    guide: str,
    recipe: Recipe,
    splits: Sequence[int],
    *,
    each: bool = False,
    halves: int = 2,
    compile: bool = True,
) -> dict[str, Any]:
    """One family on one data set: the chosen setting, and both scores of every split.

    Args:
        each: whether every split chooses for itself; otherwise the first one's training rows choose for all.
    """
    timing, choosing = Timing(), Timing()
    scores: list[Score] = []
    chosen: list[str] = []
    looked: list[dict[str, float]] = []
    setting: Setting | None = None
    for split in splits:
        data = table.training(split)
        if setting is None or each:
            setting, values = choose(data, guide, recipe, halves=halves, seed=split, timing=choosing, compile=compile)
            looked.append(values)
        x, y = table.held_out(split)
        score = fit_and_score(
            data, guide, setting, data.encode(x), y,
            steps=recipe.steps, draws=DRAWS, seed=split, timing=timing, compile=compile,
        )  # fmt: skip
        scores.append(score)
        chosen.append(str(setting))
    return {
        "steps": recipe.steps, "splits": list(splits), "chosen": chosen, "each": each, "validation": looked,
        "scores": [asdict(s) for s in scores], "timing": timing.summary(), "choosing": choosing.summary(),
    }  # fmt: skip


def names(given: str | None, known: Sequence[str], what: str) -> list[str]:
    """The names that were asked for by commas, in the known order; all by default."""
    asked = list(known) if given is None else given.split(",")
    for name in asked:
        if name not in known:
            raise SystemExit(f"unknown {what} '{name}'; choose from {', '.join(known)}")
    return [name for name in known if name in asked]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's options."""
    parser.add_argument("--sets", help=f"by commas: {', '.join(FILES)}")
    parser.add_argument("--guides", help=f"by commas: {', '.join(RECIPES)}")
    parser.add_argument("--splits", type=int, default=SPLITS, help="how many of the 20 standard splits (default all)")
    parser.add_argument("--halves", type=int, default=2, help="random 80/20 splits that choose a setting (default 2)")
    parser.add_argument("--each", action="store_true", help="every split chooses for itself: twenty times the fits")
    parser.add_argument("--eager", action="store_true", help="do not compile the steps")
    parser.add_argument("--add", action="store_true", help="keep what the results hold of other sets and families")


def main(asked: argparse.Namespace, out: Path) -> None:
    """Measures, and writes after each data set."""
    if not 1 <= asked.splits <= SPLITS or asked.halves < 1:
        raise SystemExit(f"--splits must be between 1 and {SPLITS} and --halves at least 1")
    sets, guides = names(asked.sets, list(FILES), "data set"), names(asked.guides, list(RECIPES), "guide")
    root = os.environ.get("BAYESZOO_DATA")
    if not root:
        raise SystemExit("set BAYESZOO_DATA to the folder that holds uci/ with the four files")
    torch.set_num_threads(1)
    recorded = out / "uci.json"
    found: dict[str, Any] = json.loads(recorded.read_text(encoding="utf-8"))["sets"] if asked.add and recorded.exists() else {}
    for name in sets:
        table = read(name, Path(root) / "uci")
        found.setdefault(name, {})
        for guide in guides:
            began = time.perf_counter()
            found[name][guide] = cell = measure(
                table, guide, RECIPES[guide], range(asked.splits), each=asked.each, halves=asked.halves, compile=not asked.eager
            )
            rmse, density = (uci_report.mean_and_error(cell, key) for key in ("rmse", "log_likelihood"))
            took = time.perf_counter() - began
            say(f"{name} {guide}: {rmse[0]:.3f} / {density[0]:.3f}, {cell['chosen'][0]}, {took:.0f} s")
        keep(found, out)


def keep(found: Mapping[str, Any], out: Path) -> None:
    """Writes what was found so far."""
    ordered = {name: {g: found[name][g] for g in RECIPES if g in found[name]} for name in FILES if name in found}
    whole = {"machine": machine.describe("cpu", 1), "sets": ordered}
    body = f"{uci_report.render(ordered)}\n\n![RMSE and log likelihood](uci.png)"
    results.write(out, "uci", whole, "UCI regression beside published figures", body)
    plots.uci(ordered, out / "uci.png")
