"""Sparse variational dropout on MNIST beside Molchanov, Ashukha, Vetrov 2017: test error and compression of two LeNets.

The paper's protocol: Adam 1e-3 falling to 0 within 200 epochs, batches of 100, KL weight 0 for 5 epochs and 1 from epoch 20,
log sigma^2 from -10, weights with log alpha > 3 removed at the end. What the paper leaves open is as in its authors' programs
(github.com/bayesgroup/variational-dropout-sparsifies-dnn): weights above the threshold have mean zero while they are trained, too, and
the rate falls from the start for LeNet-5, from half of the epochs on for LeNet-300-100. Weights begin as torch's layers do.
Nothing is chosen on the test set: the last epoch counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import nn

import bayeszoo as bz

from .. import machine, results
from ..results import table


@dataclass(frozen=True)
class Published:
    """A network and what the paper found.

    Attributes:
        error: of the test set in percent.
        held: for which share of the epochs the rate is held before it falls linearly.
    """

    net: Callable[[], nn.Module]
    error: float
    compression: float
    held: float


NETWORKS = {
    "lenet-300-100": Published(bz.models.networks.lenet_300_100, 1.92, 68.0, held=0.5),
    "lenet-5-caffe": Published(bz.models.networks.lenet_5_caffe, 0.75, 280.0, held=0.0),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The networks, the seeds and the length."""
    parser.add_argument("--nets", default=",".join(NETWORKS), help=f"by commas: {', '.join(NETWORKS)}")
    parser.add_argument("--seeds", default="0,1,2", help="by commas (default 0,1,2)")
    parser.add_argument("--epochs", type=int, default=200, help="the paper's 200")
    parser.add_argument("--add", action="store_true", help="keep what the results hold of other networks and seeds")
    parser.add_argument("--folder", help="of the IDX files (default: $BAYESZOO_DATA/mnist)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")


def measure(published: Published, train: bz.data.Data, test: bz.data.Data, epochs: int, seed: int, device: str = "auto") -> Any:
    """Fits, prunes and tests one network; percent, ratios and seconds."""
    torch.manual_seed(seed)
    model = bz.models.BayesianNN(published.net(), prior="log_uniform")
    fit = bz.fit(
        model,
        train,
        guide="sparse_vd",
        epochs=epochs,
        batch_size=100,
        optimizer=1e-3,
        schedule=lambda step, steps: min(1.0, (1 - step / steps) / (1 - published.held)),
        estimator="local",
        seed=seed,
        device=device,
        progress=False,
    )
    sparse = fit.sparsify()
    labels = test.observed
    assert isinstance(labels, torch.Tensor)
    with torch.no_grad():
        guesses = torch.cat([sparse.network(part).argmax(1) for part in test.inputs["x"].split(500)])
    wrong = int((guesses != labels).sum())
    return {
        "seed": seed,
        "error": 100 * wrong / len(test),
        "compression": sparse.compression,
        "sparsity": {layer.name: 100 * layer.sparsity for layer in sparse.layers},
        "bytes": [sparse.dense_bytes, sparse.bytes],
        "seconds_an_input": [sparse.dense_seconds, sparse.seconds],
        "seconds": fit.seconds,
        "step": fit.timings["steps"] / len(fit.losses),
        "engine": fit.engine,
        "loss": fit.loss,
    }


def main(asked: argparse.Namespace, out: Path) -> None:
    """All networks and seeds; results are written after each run."""
    train, test = (bz.data.load("mnist", split=split, folder=asked.folder) for split in ("train", "test"))
    about = {
        "machine": machine.describe("cpu" if asked.device == "auto" else asked.device, torch.get_num_threads()),
        "epochs": asked.epochs,
    }
    runs = recorded(out, asked.epochs) if asked.add else {}
    for name in asked.nets.split(","):
        for seed in (int(s) for s in asked.seeds.split(",")):
            found = measure(NETWORKS[name], train, test, asked.epochs, seed, asked.device)
            others = [run for run in runs.get(name, []) if run["seed"] != seed]
            runs[name] = sorted([*others, found], key=lambda run: run["seed"])
            said = (
                f"{name} seed {seed}: {found['error']:.2f} %, compression {found['compression']:.1f}x, {found['seconds']:.0f} s"
            )
            print(said, file=sys.stderr, flush=True)
            results.write(
                out, "sparse_mnist", {**about, "runs": runs}, "Sparse variational dropout on MNIST", render(runs, asked.epochs)
            )
    draw(runs, out / "sparse_mnist.png")


def recorded(out: Path, epochs: int) -> dict[str, list[Any]]:
    """The runs that the results hold.

    Raises:
        SystemExit: they are of another length.
    """
    file = out / "sparse_mnist.json"
    if not file.exists():
        return {}
    before = json.loads(file.read_text(encoding="utf-8"))
    if before["epochs"] != epochs:
        raise SystemExit(f"{file} holds runs of {before['epochs']} epochs, not {epochs}; give another folder with --out")
    runs: dict[str, list[Any]] = before["runs"]
    return runs


def render(runs: Mapping[str, list[Any]], epochs: int) -> str:
    """Medians over the seeds beside the paper's figures, then every run."""
    head = [
        "network",
        "seeds",
        "test error",
        "paper",
        "compression",
        "paper",
        "sparsity of the layers",
        "bytes on disk",
        "us an input",
    ]
    rows = []
    for name, found in runs.items():
        published = NETWORKS[name]
        middle = sorted(found, key=lambda run: run["compression"])[len(found) // 2]
        rows.append(
            [
                name,
                str(len(found)),
                f"{statistics.median(r['error'] for r in found):.2f} %",
                f"{published.error} %",
                f"{statistics.median(r['compression'] for r in found):.1f}x",
                f"{published.compression:.0f}x",
                " / ".join(f"{value:.1f}" for value in middle["sparsity"].values()),
                " → ".join(f"{value:,}" for value in middle["bytes"]),
                " → ".join(f"{1e6 * value:.2f}" for value in middle["seconds_an_input"]),
            ]
        )
    every = [
        [
            name,
            str(r["seed"]),
            f"{r['error']:.2f} %",
            f"{r['compression']:.1f}x",
            f"{r['seconds']:.0f} s",
            f"{1e3 * r['step']:.2f} ms",
        ]
        for name, found in runs.items()
        for r in found
    ]
    return "\n\n".join(
        [
            f"{epochs} epochs; the median over seeds, the last epoch of each, nothing chosen on the test set. Compression is all weights "
            "over those that are left, biases not counted, as in the paper.",
            table(head, rows),
            table(["network", "seed", "test error", "compression", "time", "a step"], every),
            "![test error and compression](sparse_mnist.png)",
        ]
    )


def draw(runs: Mapping[str, list[Any]], path: Path) -> None:
    """Each run a point, the paper a cross."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for k, (name, found) in enumerate(runs.items()):
        axes.plot([r["compression"] for r in found], [r["error"] for r in found], "o", color=f"C{k}", label=name)
        axes.plot(NETWORKS[name].compression, NETWORKS[name].error, "x", ms=9, color=f"C{k}", label=f"{name}, the paper")
    axes.set_xlabel("all weights / weights left")
    axes.set_ylabel("test error (%)")
    axes.set_xlim(0, 1.2 * axes.dataLim.x1)
    axes.set_ylim(0, 1.2 * axes.dataLim.y1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="lower left")
    figure.savefig(path, dpi=130)
    plt.close(figure)
