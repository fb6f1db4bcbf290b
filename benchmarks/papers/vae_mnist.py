"""Test log likelihood of autoencoders on MNIST beside Burda, Grosse, Salakhutdinov 2016: one stochastic layer of 50.

Two deterministic layers of 200 (tanh) on either side, pixels drawn anew for every batch with their grey values as chances, Adam
with epsilon 1e-4. log p(x) of test pictures that are binarised once, by importance sampling. The paper trains for 3,280 passes
with batches of 20 and a rate that falls from 1e-3 to 1e-4 in stages (`--form long`, for a GPU); the short form has batches of 100
and a cosine. The evening form is for the bound of 50 weights on a CPU: under one cosine, 2,400 passes with one weight and then 350
with all and the gradient of one draw, drawn by its weight; `--form more --begin` goes on from what it has kept. The last pass
counts, nothing is chosen on the test set.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

import bayeszoo as bz

from .. import machine, results
from ..results import table

LATENTS, HIDDEN = 50, (200, 200)
#: Number of weights that the bound averages over -> published test log likelihood in nats (table 1).
PUBLISHED = {1: -86.76, 5: -85.54, 50: -84.78}
#: What a fit here is to reach, in nats.
WANTED = {1: -86.8, 50: -84.8}


@dataclass(frozen=True)
class Stage:
    """A part of the training: how long, in batches of what size, at which learning rate.

    Attributes:
        most: weights in the bound, if fewer than are asked for.
        resample: whether gradients are those of one draw, drawn by its weight.
    """

    epochs: int
    batch: int
    schedule: str | Callable[[int, int], float]
    most: int | None = None
    resample: bool = False


def stages(step: int, steps: int) -> float:
    """The paper's rates: 3^i passes at 1e-3 * 10^(-i/7), i from 0 to 7."""
    done = 3280 * step / steps
    # Stage i begins after (3^i - 1) / 2 passes; logarithms of these would round to the wrong side.
    stage = sum(2 * done + 1 >= 3**i for i in range(1, 8))
    return float(10 ** (-stage / 7))


def part_of_cosine(step: int, steps: int, *, begin: float, end: float) -> float:
    """A cosine that several stages share."""
    return (1 + math.cos(math.pi * (begin + (end - begin) * step / steps))) / 2


FORMS = {
    "short": (Stage(120, 100, "cosine"),),
    "long": (Stage(3280, 20, stages),),
    "evening": (
        Stage(2400, 100, functools.partial(part_of_cosine, begin=0.0, end=0.7), most=1),
        Stage(350, 100, functools.partial(part_of_cosine, begin=0.7, end=1.0), resample=True),
    ),
    "more": (Stage(130, 100, "cosine", resample=True),),
}


def passes(asked: argparse.Namespace) -> list[int]:
    """How many passes each stage takes."""
    parts = [stage.epochs for stage in FORMS[asked.form]]
    return parts if asked.epochs is None else [max(1, round(part * asked.epochs / sum(parts))) for part in parts]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Form, bounds, length of the test."""
    parser.add_argument("--form", choices=FORMS, default="short")
    parser.add_argument("--k", default="1", help=f"weights a bound, by commas, of {', '.join(map(str, PUBLISHED))} (default 1)")
    parser.add_argument("--epochs", type=int, help="instead of the form's own")
    parser.add_argument("--pictures", type=int, default=10_000, help="test pictures (default all)")
    parser.add_argument("--draws", type=int, default=5000, help="of each picture's log p(x) (default 5000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="of the IDX files (default: $BAYESZOO_DATA/mnist)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--rate", type=float, default=1e-3, help="the first learning rate (default 1e-3)")
    parser.add_argument("--begin", help="a kept fit that training goes on from, with the bound and for the passes of this call")
    parser.add_argument(
        "--keep", help="folder where trained fits are kept, some 200 MB each, and taken from instead of training anew"
    )


def name_of(k: int, asked: argparse.Namespace) -> str:
    """What a run is called in the results."""
    begin = f" after {Path(asked.begin).name}" if asked.begin else ""
    return f"{asked.form} {k} {sum(passes(asked))}{f' seed {asked.seed}' if asked.seed else ''}{begin}"


def inference_network(model: Any, data: bz.data.Data) -> Any:
    """The guide of every fit here; a fit that begins at another's weights has no family's name to be read back by."""
    return bz.guides.build("amortized", model, data)


def trained(k: int, train: bz.data.Data, asked: argparse.Namespace) -> tuple[bz.inference.Fit, float]:
    """Fits one autoencoder, or reads what an earlier call kept: hours of training survive whatever goes wrong later.

    Returns:
        The fit, and the seconds that all stages took.
    """
    assert isinstance(train.observed, torch.Tensor)
    torch.manual_seed(asked.seed)
    model: Any = bz.models.VAE(tuple(train.observed.shape[1:]), LATENTS, "bernoulli", HIDDEN)
    guide: Any = inference_network
    if asked.begin:
        begun = bz.load(asked.begin, guide=inference_network)
        model, guide = begun.model, begun.guide
    seconds, last = 0.0, len(FORMS[asked.form])
    for number, (stage, epochs) in enumerate(zip(FORMS[asked.form], passes(asked), strict=True), 1):
        part = "" if number == last else f" stage {number}"
        kept = None if asked.keep is None else Path(asked.keep) / f"{name_of(k, asked)}{part}".replace(" ", "_")
        if kept is not None and kept.exists():
            fit = bz.load(kept, guide=inference_network)
        else:
            weights = min(k, stage.most or k)
            options: dict[str, Any] = {} if weights == 1 else {"loss": "importance_weighted", "num_particles": weights}
            if stage.resample and weights > 1:
                options["resample"] = 1
            adam = functools.partial(torch.optim.Adam, lr=asked.rate, eps=1e-4)
            fit = bz.fit(
                model, train, guide, epochs=epochs, batch_size=stage.batch, schedule=stage.schedule, optimizer=adam, seed=asked.seed,
                device=asked.device, compile=not asked.eager, progress=False, **options,
            )  # fmt: skip
            if kept is not None:
                fit.save(kept)
        seconds += fit.seconds
        model, guide = fit.model, fit.guide
    return fit, seconds


def measure(k: int, train: bz.data.Data, test: bz.data.Data, asked: argparse.Namespace) -> dict[str, Any]:
    """Fits one autoencoder and scores the test pictures; nats."""
    fit, seconds = trained(k, train, asked)
    began = time.perf_counter()
    found = fit.log_marginal(test, k=asked.draws, k_hat=False)
    return {
        "k": k, "form": asked.form, "batch": FORMS[asked.form][-1].batch, "epochs": sum(passes(asked)), "log_p": found.mean, "error": found.error,
        "spread": found.spread, "ess": float(found.ess.median()), "elbo": float(found.elbo.mean()), "pictures": len(test), "draws": asked.draws, "seconds": seconds,
        "step": fit.timings["steps"] / len(fit.losses), "test_seconds": time.perf_counter() - began, "engine": fit.engine,
        "device": str(fit.device), "rate": asked.rate, "begin": Path(asked.begin).name if asked.begin else "",
        "before": ", ".join(f"k = {min(k, s.most or k)}, {n:,} of the passes" for s, n in zip(FORMS[asked.form][:-1], passes(asked), strict=False)),
    }  # fmt: skip


def main(asked: argparse.Namespace, out: Path) -> None:
    """One fit for each bound; results are written after each, beside those of earlier calls."""
    if asked.form == "more" and not asked.begin:
        raise SystemExit("more goes on from a kept fit; name its folder: --begin fits/evening_50_2750")
    train, test = (
        bz.data.load("mnist", split=split, folder=asked.folder).unsupervised().binarized(seed=0) for split in ("train", "test")
    )
    test = test.select(slice(0, asked.pictures))
    path = out / "vae_mnist.json"
    found: dict[str, Any] = json.loads(path.read_text())["runs"] if path.exists() else {}
    for k in (int(k) for k in asked.k.split(",")):
        run = measure(k, train, test, asked)
        found[name_of(k, asked)] = run
        found = dict(sorted(found.items(), key=lambda item: (item[1]["k"], item[1]["epochs"])))
        print(
            f"k = {k}: log p(x) {run['log_p']:.2f}, ELBO {run['elbo']:.2f}, {run['seconds']:.0f} s", file=sys.stderr, flush=True
        )
        about = {"machine": machine.describe("cpu" if asked.device == "auto" else asked.device, torch.get_num_threads())}
        results.write(out, "vae_mnist", {**about, "runs": found}, "Autoencoders on MNIST", render(found))
    draw(found, out / "vae_mnist.png")


def begun(run: Mapping[str, Any]) -> str:
    """Where training began: nothing for new weights, or the weights and passes of an earlier stage or run."""
    if not run.get("begin"):
        return str(run.get("before", ""))
    _, k, passes = run["begin"].split("_")[:3]
    return f"k = {k}, {int(passes):,} passes, rate {run['rate']:g}"


def render(found: Mapping[str, Any]) -> str:
    """Every run beside the paper's figure."""
    head = [
        "weights in the bound", "batches of", "passes", "begun at", "log p(x)", "paper", "wanted", "ELBO", "pictures", "draws", "effective", "training",
        "scoring", "a step",
    ]  # fmt: skip
    rows = [
        [
            str(r["k"]), str(r["batch"]), f"{r['epochs']:,}", begun(r), f"{r['log_p']:.2f} ± {r['error']:.2g}",
            f"{PUBLISHED.get(r['k'], math.nan):.2f}", reached(r), f"{r['elbo']:.2f}", f"{r['pictures']:,}", f"{r['draws']:,}",
            f"{r['ess']:.0f}" if "ess" in r else "", f"{r['seconds']:.0f} s", f"{r['test_seconds']:.0f} s", f"{1e3 * r['step']:.2f} ms",
        ]
        for r in found.values()
    ]  # fmt: skip
    text = (
        "Nats a picture, of test pictures binarised once; the error is that of importance sampling, other pictures would move the mean by at most "
        f"{max((r['spread'] for r in found.values()), default=0):.2g}. The paper's figures are after 3,280 passes in batches of 20. Effective "
        "draws are the median over pictures, where they were noted."
    )
    return "\n\n".join([text, table(head, rows), "![log p(x)](vae_mnist.png)"])


def reached(run: Mapping[str, Any]) -> str:
    """Whether a fit is as good as wanted."""
    wanted = WANTED.get(run["k"])
    if wanted is None:
        return ""
    short = wanted - run["log_p"]
    return f"{wanted:.1f}: reached" if short <= 0 else f"{wanted:.1f}: {short:.2f} short"


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Bars of log p(x) and ELBO, the paper a line."""
    figure, axes = plt.subplots(figsize=(max(5.0, 0.95 * len(found)), 3.2), layout="constrained")
    for place, run in enumerate(found.values()):
        axes.plot(place, run["log_p"], "o", color="C0", label="log p(x)" if not place else None)
        axes.plot(place, run["elbo"], "s", color="C1", label="ELBO" if not place else None)
        axes.plot(
            place, PUBLISHED.get(run["k"], math.nan), "x", ms=9, color="k", label="the paper's log p(x)" if not place else None
        )
    axes.set_xticks(
        range(len(found)),
        [f"k = {run['k']}\n{run['epochs']}{'+' if run.get('begin') else ''} passes" for run in found.values()],
        size=8,
    )
    axes.set_ylabel("nats a test picture")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=130)
    plt.close(figure)
