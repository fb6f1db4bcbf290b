"""Mean field on MNIST beside Blundell et al. 2015: 784-400-400-10, test error, NLL and calibration against the same net's MAP.

Each guide chooses its prior by NLL on 10,000 of the training pictures, in short runs on the other 50,000, mean field also whether
the KL's weight rises from 0 to 1 over a part of the epochs: the ELBO at the end is not tempered either way. The long run
then takes all 60,000, with Adam whose rate is held for half of the epochs and then falls linearly. The last epoch counts, nothing
is chosen on the test set. MAP is run twice: under the prior that suits it best, and, `same`, under mean field's, as the
mode of the very posterior that mean field approximates.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

import bayeszoo as bz

from .. import machine, results
from ..results import table

Normal, ScaleMixture = bz.models.weight_priors.Normal, bz.models.weight_priors.ScaleMixture
PRIORS: dict[str, Any] = {
    "normal 0.1": Normal(0.1),
    "normal 0.3": Normal(0.3),
    "mixture 1, 0.0025": ScaleMixture(0.5, (1.0, 0.0025)),
    "mixture 0.4, 0.02": ScaleMixture(0.5, (0.4, 0.02)),
}
#: Over which share of the epochs the KL's weight rises from 0 to 1, for mean field under the priors that begin best.
WARM_UPS = {", warm-up over a half": 0.5, ", warm-up over three quarters": 0.75}
WARMED = ("normal 0.3", "mixture 1, 0.0025")
#: Test error in percent: Blundell et al. 2015, table 1, two layers of 400, a normal and a mixture prior.
PUBLISHED = {"Bayes by backprop, normal prior": 2.04, "Bayes by backprop, scale mixture": 1.32, "dropout": 1.51, "SGD": 1.83}
GUIDES = ("mean_field", "map", "same")
DRAWS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Guides, length, seed."""
    parser.add_argument("--guides", default=",".join(GUIDES), help=f"by commas (default {','.join(GUIDES)})")
    parser.add_argument("--epochs", type=int, default=100, help="of the long run")
    parser.add_argument("--pilot", type=int, default=10, help="epochs of the runs that choose the prior")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="of the IDX files (default: $BAYESZOO_DATA/mnist)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")


def measure(
    guide: str, prior: str, train: bz.data.Data, test: bz.data.Data, epochs: int, asked: argparse.Namespace
) -> dict[str, Any]:
    """Fits and scores one network; error in percent, NLL in nats."""
    torch.manual_seed(asked.seed)
    plain, comma, words = prior.partition(", warm-up")
    model = bz.models.BayesianNN(bz.models.networks.mlp(784, [400, 400], 10), prior=PRIORS[plain])
    rise = WARM_UPS.get(comma + words)
    fit = bz.fit(
        model, train, guide=guide, epochs=epochs, batch_size=100, optimizer=1e-3, seed=asked.seed, device=asked.device,
        schedule=lambda step, steps: min(1.0, 2 - 2 * step / steps), compile=True, progress=False,
        kl_weight=None if rise is None else lambda step, steps: min(1.0, step / (rise * steps)),
    )  # fmt: skip
    scores: Any = fit.predict(test.inputs["x"], n=1 if guide == "map" else DRAWS, keep_draws=False).scores(test.observed)
    return {
        "prior": prior, "epochs": epochs, "error": 100 * (1 - scores.accuracy), "nll": scores.nll, "ece": scores.ece, "loss": fit.loss,
        "seconds": fit.seconds, "step": fit.timings["steps"] / len(fit.losses), "engine": fit.engine,
    }  # fmt: skip


def main(asked: argparse.Namespace, out: Path) -> None:
    """Chooses priors, then the long runs; results are written after each guide, beside those of earlier calls."""
    train, test = (bz.data.load("mnist", split=split, folder=asked.folder) for split in ("train", "test"))
    part, held_out = train.split(5 / 6, seed=asked.seed)
    path = out / "mean_field_mnist.json"
    found: dict[str, Any] = json.loads(path.read_text())["runs"] if path.exists() else {}
    for guide in asked.guides.split(","):
        pilots: list[dict[str, Any]] = []
        if guide == "same":
            if "mean_field" not in found:
                raise SystemExit("same is MAP under the prior that mean field has chosen; run --guides mean_field,same")
            prior = next(p for p in PRIORS if found["mean_field"]["run"]["prior"].startswith(p))
            found["map, mean field's prior"] = {
                "pilots": pilots,
                "run": measure("map", prior, train, test, asked.epochs, asked),
            }
            _say("map", found["map, mean field's prior"]["run"], "test")
        else:
            warmed = [prior + words for prior in WARMED for words in WARM_UPS] if guide == "mean_field" else []
            for prior in [*PRIORS, *warmed]:
                pilots.append(measure(guide, prior, part, held_out, asked.pilot, asked))
                _say(guide, pilots[-1], "held out")
            best = min(pilots, key=lambda run: run["nll"])["prior"]
            found[guide] = {"pilots": pilots, "run": measure(guide, best, train, test, asked.epochs, asked)}
            _say(guide, found[guide]["run"], "test")
        about = {"machine": machine.describe("cpu" if asked.device == "auto" else asked.device, torch.get_num_threads())}
        results.write(out, "mean_field_mnist", {**about, "runs": found}, "Mean field on MNIST, 784-400-400-10", render(found))
    draw(found, out / "mean_field_mnist.png")


def _say(guide: str, run: Mapping[str, Any], where: str) -> None:
    said = f"{guide}, {run['prior']}: {where} error {run['error']:.2f} %, NLL {run['nll']:.4f}, ECE {run['ece']:.4f}, {run['seconds']:.0f} s"
    print(said, file=sys.stderr, flush=True)


def render(found: Mapping[str, Any]) -> str:
    """The long runs, what was published, and the runs that chose."""

    def row(guide: str, run: Mapping[str, Any]) -> list[str]:
        return [
            guide, run["prior"], str(run["epochs"]), f"{run['error']:.2f} %", f"{run['nll']:.4f}", f"{run['ece']:.4f}",
            f"{run['seconds']:.0f} s", f"{1e3 * run['step']:.1f} ms",
        ]  # fmt: skip

    head = ["guide", "prior", "epochs", "error", "NLL", "ECE", "time", "a step"]
    return "\n\n".join(
        [
            f"The ELBO is not tempered at the end; {DRAWS} draws predict, one of MAP. The last epoch, nothing chosen on the test set.",
            table(head, [row(guide, each["run"]) for guide, each in found.items()]),
            "Published test errors (Blundell et al. 2015): " + ", ".join(f"{k} {v} %" for k, v in PUBLISHED.items()) + ".",
            "Held-out scores of the short runs that chose the prior:",
            table(head, [row(guide, run) for guide, each in found.items() for run in each["pilots"]]),
            "![scores](mean_field_mnist.png)",
        ]
    )


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Error, NLL and calibration error side by side."""
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.2), layout="constrained")
    for ax, (key, title) in zip(
        axes, {"error": "test error (%)", "nll": "NLL (nats)", "ece": "calibration error"}.items(), strict=True
    ):
        names = [name.replace("_", " ").replace(", ", ",\n") for name in found]
        ax.barh(names, [each["run"][key] for each in found.values()], color=[f"C{k}" for k in range(len(found))])
        ax.invert_yaxis()
        if ax is not axes[0]:
            ax.set_yticklabels([])
        ax.set_title(title)
    figure.savefig(path, dpi=130)
    plt.close(figure)
