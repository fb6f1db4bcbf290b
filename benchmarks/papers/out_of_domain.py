"""What does not belong: MNIST against Fashion-MNIST in both directions, noise, inverted and turned pictures, three scores.

An autoencoder of grey pictures (256 levels, a logistic cut into bins) learns one set. Test pictures of that set and strangers are
ranked by -log p(x), by -log p(x) - L(x) with L the length of the picture as a PNG (Serra et al. 2020), and by the typicality test:
how far log p(x), or its mean over ten pictures of a kind, lies from the training data's mean (Nalisnick et al. 2019). That plain
likelihood may prefer strangers was found by Nalisnick et al. 2018. Nothing is chosen on test pictures.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from PIL import Image
from torch import Tensor

import bayeszoo as bz
from bayeszoo.inference import auroc

from .. import machine, results
from ..results import table

SETS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
LEVELS, LATENTS, HIDDEN = 256, 20, (200, 200)
#: Pictures that a typicality test of several looks at together.
GROUP = 10
SCORES = ("-log p(x)", "-log p(x) - L(x)", "typicality", f"typicality of {GROUP}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Length of training and test, folders."""
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--pictures", type=int, default=1000, help="test pictures of each kind (default 1000)")
    parser.add_argument("--draws", type=int, default=100, help="of each picture's log p(x) (default 100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="of MNIST's IDX files (default: $BAYESZOO_DATA/mnist)")
    parser.add_argument(
        "--fashion-folder", help="of Fashion-MNIST's IDX files (default: $BAYESZOO_DATA, then Debian's package)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")


def strangers(own: Tensor, other: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Pictures (N, 1, H, W) that the model of `own` has not learned from."""
    return {
        "the other set": other,
        "noise": torch.randint(LEVELS, own.shape, generator=generator) / (LEVELS - 1),
        "inverted": 1 - own,
        "turned": own.rot90(1, (-2, -1)),
    }


def code_lengths(x: Tensor) -> Tensor:
    """Length (N,) in nats of grey pictures (N, 1, H, W) as PNG files."""
    lengths = []
    for picture in (x * (LEVELS - 1)).round().to(torch.uint8)[:, 0]:
        file = io.BytesIO()
        Image.fromarray(picture.numpy()).save(file, "PNG", optimize=True)
        lengths.append(8 * math.log(2) * len(file.getvalue()))
    return torch.tensor(lengths, dtype=torch.float64)


def pictures(data: bz.data.Data) -> Tensor:
    """What an unsupervised model observes, (N, 1, H, W)."""
    assert isinstance(data.observed, Tensor)
    return data.observed


def scores(log_p: Tensor, lengths: Tensor, typical: float) -> dict[str, Tensor]:
    """How strange each picture is, or ten of them are: higher for strangers.

    Args:
        log_p: (N,) nats.
        lengths: (N,) nats.
        typical: mean log p(x) of training pictures.
    """
    groups = log_p[: len(log_p) // GROUP * GROUP].reshape(-1, GROUP).mean(1)
    return dict(zip(SCORES, (-log_p, -log_p - lengths, (log_p - typical).abs(), (groups - typical).abs()), strict=True))


def measure(
    name: str, data: Mapping[str, tuple[bz.data.Data, bz.data.Data]], asked: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Learns one set, and ranks test pictures of it, of the other, and of its own distorted.

    Returns:
        What is recorded, and log p(x) (N,) of every kind in nats.
    """
    train, test = data[name]
    (other,) = (test for known, (_, test) in data.items() if known != name)
    own, foreign = pictures(test), pictures(other)
    shape = tuple(own.shape[1:])
    torch.manual_seed(asked.seed)
    model = bz.models.VAE(shape, LATENTS, "logistic", HIDDEN, levels=LEVELS)
    fit = bz.fit(
        model, train, "amortized", epochs=asked.epochs, batch_size=100, optimizer=1e-3, schedule="cosine", seed=asked.seed,
        device=asked.device, progress=False,
    )  # fmt: skip
    kinds = {"held out": own} | strangers(own, foreign, torch.Generator().manual_seed(asked.seed))
    typical = fit.log_marginal(train.select(slice(0, asked.pictures)), k=asked.draws, k_hat=False).mean
    found = {kind: fit.log_marginal(x, k=asked.draws, k_hat=False) for kind, x in kinds.items()}
    lengths = {kind: code_lengths(x) for kind, x in kinds.items()}
    strange = {kind: scores(found[kind].values, lengths[kind], typical) for kind in kinds}
    near = strange.pop("held out")
    log_p = {kind: each.values for kind, each in found.items()}
    run = {
        "typical": typical, "epochs": asked.epochs, "pictures": len(test), "draws": asked.draws, "seconds": fit.seconds,
        "dims": math.prod(shape), "log_p": {kind: each.mean for kind, each in found.items()},
        "gap": {kind: each.gap for kind, each in found.items()},
        "lengths": {kind: float(each.mean()) for kind, each in lengths.items()},
        "auroc": {kind: {score: auroc(near[score], each[score]) for score in SCORES} for kind, each in strange.items()},
    }  # fmt: skip
    return run, log_p


def main(asked: argparse.Namespace, out: Path) -> None:
    """Both directions; results are written after each."""
    folders = {"mnist": asked.folder, "fashion_mnist": asked.fashion_folder}
    data = {}
    for name, folder in folders.items():
        train, test = (bz.data.load(name, split=split, folder=folder).unsupervised() for split in ("train", "test"))
        data[name] = train, test.select(slice(0, asked.pictures))
    runs: dict[str, Any] = {}
    log_p: dict[str, dict[str, Tensor]] = {}
    for name in SETS:
        runs[name], log_p[name] = measure(name, data, asked)
        print(f"learned from {SETS[name]}: {runs[name]['auroc']}, {runs[name]['seconds']:.0f} s", file=sys.stderr, flush=True)
        about = {"machine": machine.describe("cpu" if asked.device == "auto" else asked.device, torch.get_num_threads())}
        results.write(out, "out_of_domain", {**about, "runs": runs}, "What does not belong", render(runs))
        draw(runs, log_p, out / "out_of_domain.png")


def titled(kind: str, learned: str) -> str:
    """A kind of strangers by name."""
    other = next(title for name, title in SETS.items() if name != learned)
    return other if kind == "the other set" else kind


def render(runs: Mapping[str, Any]) -> str:
    """AUROC of every score, bits a pixel, and where plain likelihood takes strangers for its own."""
    rows, fooled = [], []
    for name, run in runs.items():
        bit = run["dims"] * math.log(2)

        def about(kind: str, run: Any = run, bit: float = bit) -> list[str]:
            return [f"{-run['log_p'][kind] / bit:.3f}", f"{run['lengths'][kind] / bit:.3f}", f"{run['gap'][kind]:.1f}"]

        rows.append([SETS[name], "held out", *about("held out"), *[""] * len(SCORES)])
        for kind, areas in run["auroc"].items():
            rows.append([SETS[name], titled(kind, name), *about(kind), *(f"{areas[score]:.3f}" for score in SCORES)])
            if areas[SCORES[0]] < 0.5:
                fooled.append(f"learned from {SETS[name]}, {titled(kind, name)} ({areas[SCORES[0]]:.3f})")
    one = next(iter(runs.values()))
    text = (
        f"AUROC: the chance that a stranger gets the higher score of a pair; below 0.5 it looks more at home than the set's own. "
        f"{one['pictures']:,} pictures of each kind, {one['epochs']} passes, log p(x) from {one['draws']:,} draws of q(z | x). q has not learned from "
        "strangers, so theirs is the looser bound; the gap is log p(x) - ELBO in nats."
    )
    said = (
        "Plain likelihood prefers strangers: " + "; ".join(fooled) if fooled else "Plain likelihood prefers no strangers here"
    )
    head = ["learned from", "pictures", "bits a pixel", "as PNG", "gap", *SCORES]
    return "\n\n".join([text, f"{said}.", table(head, rows), "![log p(x) and AUROC](out_of_domain.png)"])


def draw(runs: Mapping[str, Any], log_p: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
    """For each direction histograms of bits a pixel, and the AUROC of every score."""
    figure, axes = plt.subplots(len(runs), 2, figsize=(10, 3.2 * len(runs)), layout="constrained", squeeze=False)
    for (left, right), (name, run) in zip(axes, runs.items(), strict=True):
        bits = {kind: -v / (run["dims"] * math.log(2)) for kind, v in log_p[name].items()}
        far = max(float(v.quantile(0.99)) for kind, v in bits.items() if kind != "noise")
        bins = torch.linspace(min(float(v.min()) for v in bits.values()), far, 60).numpy()
        for k, (kind, values) in enumerate(bits.items()):
            if kind != "noise":  # lies far to the right
                style: dict[str, Any] = (
                    {"alpha": 0.4, "color": "k"} if not k else {"histtype": "step", "lw": 1.5, "color": f"C{k - 1}"}
                )
                left.hist(values, bins, label=titled(kind, name), **style)
        left.set(xlabel="-log2 p(x), bits a pixel", yticks=[], title=f"learned from {SETS[name]}")
        left.legend(frameon=False, fontsize="small")
        width = 0.8 / len(SCORES)
        for k, score in enumerate(SCORES):
            heights = [areas[score] for areas in run["auroc"].values()]
            right.bar([j + (k - 1.5) * width for j in range(len(heights))], heights, width, label=score)
        right.axhline(0.5, color="k", lw=0.8)
        right.set_xticks(range(len(run["auroc"])), [titled(kind, name) for kind in run["auroc"]])
        right.set(ylabel="AUROC", ylim=(0, 1))
    axes[0, 1].legend(frameon=False, fontsize="small", ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(path, dpi=130)
    plt.close(figure)
