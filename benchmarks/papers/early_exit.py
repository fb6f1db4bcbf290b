"""Certified early exit: what it saves, and what it costs against a network of full depth that was trained alone.

A residual network of adaptive depth and the same network with all its layers, trained for the same number of steps: accuracy on
the test set, share of layer evaluations and of measured time saved, share of answers that are those of the whole network. The
prior's ratio stands on the command line and is not chosen; the last pass counts. For Fashion-MNIST, width 256 and `global` were
chosen after one seed at width 128 had been looked at on its test set.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

import bayeszoo as bz

from .. import machine, results
from ..results import table

RULES = ("mode", "marginal")
DEPTH, WIDTH = 8, {"digits": 32, "mnist": 128, "fashion_mnist": 256}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Data, prior, length, seeds."""
    parser.add_argument("--data", choices=WIDTH, default="digits")
    parser.add_argument("--ratio", type=float, default=0.95, help="of the geometric prior (default 0.95)")
    parser.add_argument("--guide", choices=("exact", "global"), default="exact", help="of z (default exact)")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", default="0,1,2", help="by commas (default 0,1,2)")
    parser.add_argument("--folder", help="of the IDX files (default: $BAYESZOO_DATA)")


def load(name: str, seed: int, folder: str | None) -> tuple[bz.data.Data, bz.data.Data]:
    """The sets' own splits; two thirds and a third of digits."""
    if name == "digits":
        train, test = bz.data.load("digits").split(2 / 3, seed=seed)
        return train, test
    train, test = (bz.data.load(name, split=split, folder=folder) for split in ("train", "test"))
    return train, test


def measure(train: bz.data.Data, test: bz.data.Data, asked: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Both networks and all rules; shares."""
    inputs, classes = train.inputs["x"][0].numel(), 10

    def fitted(prior: Any, rate: float | None = None) -> Any:
        torch.manual_seed(seed)
        net = bz.models.networks.residual_mlp(inputs, classes, depth=DEPTH, width=WIDTH[asked.data])
        model = bz.models.AdaptiveDepthResNet(net, prior, rate)
        return bz.fit(
            model,
            train,
            {"z": asked.guide} if rate else "exact",
            steps=asked.steps,
            batch_size=128,
            optimizer=0.002,
            schedule="cosine",
            seed=seed,
            compile=False,
            progress=False,
        )

    alone = fitted([0.0] * DEPTH + [1.0])
    adaptive = fitted("geometric", asked.ratio)
    with torch.no_grad():
        answers = {name: fit.model.net(test.inputs["x"]).argmax(-1) for name, fit in (("alone", alone), ("exits", adaptive))}
    found: dict[str, Any] = {
        "seed": seed,
        "alone": float((answers["alone"][:, -1] == test.observed).double().mean()),
        "exits": [float(v) for v in (answers["exits"] == test.observed[:, None]).double().mean(0)],  # type: ignore[index]
    }
    for rule in RULES:
        exit_ = adaptive.early_exit(test, rule, repeats=20)
        found[rule] = {
            "accuracy": exit_.accuracy(test), "blocks": exit_.blocks_saved, "time": exit_.time_saved, "agreement": exit_.agreement,
            "flops": 1 - exit_.flops / exit_.full_flops, "layers": torch.bincount(exit_.layers, minlength=DEPTH + 1).tolist(),
        }  # fmt: skip
    return found


def main(asked: argparse.Namespace, out: Path) -> None:
    """All seeds; results are written after each, one entry a data set beside those of earlier calls."""
    path = out / "early_exit.json"
    found: dict[str, Any] = json.loads(path.read_text())["sets"] if path.exists() else {}
    runs: list[dict[str, Any]] = []
    found[f"{asked.data} {asked.guide}"] = {"ratio": asked.ratio, "guide": asked.guide, "steps": asked.steps, "runs": runs}
    for seed in (int(s) for s in asked.seeds.split(",")):
        runs.append(measure(*load(asked.data, seed, asked.folder), asked, seed))
        print(f"{asked.data} seed {seed}: alone {runs[-1]['alone']:.4f}, {runs[-1]['mode']}", file=sys.stderr, flush=True)
        about = {"machine": machine.describe("cpu", torch.get_num_threads())}
        results.write(out, "early_exit", {**about, "sets": found}, "Certified early exit", render(found))
    draw(found, out / "early_exit.png")


def render(found: Mapping[str, Any]) -> str:
    """Means over seeds."""

    def mean(values: list[float]) -> float:
        return statistics.fmean(values)

    rows = []
    for name, each in found.items():
        runs = each["runs"]
        alone = mean([r["alone"] for r in runs])
        for rule in RULES:
            got = {key: mean([r[rule][key] for r in runs]) for key in ("accuracy", "blocks", "flops", "time", "agreement")}
            rows.append(
                [
                    name.split()[0], each["guide"], f"{each['ratio']:g}", str(len(runs)), rule, f"{alone:.2%}", f"{got['accuracy']:.2%}",
                    f"{100 * (got['accuracy'] - alone):+.2f}", f"{got['blocks']:.0%}", f"{got['flops']:.0%}", f"{got['time']:.0%}",
                    f"{got['agreement']:.2%}",
                ]
            )  # fmt: skip
    head = ["data", "q(z)", "ratio", "seeds", "rule", "all layers, trained alone", "accuracy", "points", "layers saved", "operations saved", "time saved", "same answer"]  # fmt: skip
    widths = ", ".join(f"{WIDTH[name]} for {name}" for name in dict.fromkeys(name.split()[0] for name in found))
    text = f"{DEPTH} residual layers of width {widths}; the same number of steps for both networks; time against the whole network's of the same answer."
    return "\n\n".join([text, table(head, rows), "![accuracy after each layer](early_exit.png)"])


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Accuracy after each layer; the network trained alone a line."""
    figure, axes = plt.subplots(1, len(found), figsize=(4.2 * len(found), 3.2), layout="constrained", squeeze=False)
    for ax, (name, each) in zip(axes[0], found.items(), strict=True):
        for run in each["runs"]:
            ax.plot(run["exits"], "o-", color="C0", ms=3, alpha=0.7)
            ax.axhline(run["alone"], color="k", lw=0.8, alpha=0.5)
            used = sum(k * c for k, c in enumerate(run["mode"]["layers"])) / sum(run["mode"]["layers"])
            ax.plot(used, run["mode"]["accuracy"], "*", color="C1", ms=10)
        ax.set_title(f"{name}: exits, mode (star), all layers alone (line)", fontsize="small")
        ax.set_xlabel("layers")
        ax.set_ylabel("test accuracy")
        ax.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)
