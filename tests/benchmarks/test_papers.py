"""Reproduced figures: what is read, chosen, scored and concluded, on data small enough to know the answers."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bayeszoo as bz
from benchmarks.papers import __main__ as command
from benchmarks.papers import (
    early_exit,
    labels,
    labels_report,
    m2_mnist,
    mean_field_mnist,
    out_of_domain,
    sparse_mnist,
    uci,
    uci_report,
    vae_mnist,
    warm_up,
)
from benchmarks.papers.published import PUBLISHED, beats
from benchmarks.papers.timing import Timing, limit


def linear_table(rows: int = 60, splits: int = 2) -> uci.Table:
    """y = 3 x_1 - x_2 + N(0, 0.5^2), one of five rows a test row."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, 2)) * [1.0, 10.0] + [0.0, 100.0]
    y = 3 * x[:, 0] - x[:, 1] + 0.5 * generator.normal(size=rows)
    return uci.Table("boston", x, y, np.stack([np.arange(rows) % 5 == k for k in range(splits)]))


def test_published_figures_are_the_papers() -> None:
    sets = ("boston", "concrete", "energy", "yacht")
    rows = {key: [paper.figures[name] for name in sets] for key, paper in PUBLISHED.items()}
    assert rows == {
        "pbp": [(3.01, -2.57), (5.67, -3.16), (1.80, -2.04), (1.02, -1.63)],
        "dropout": [(2.90, -2.40), (4.82, -2.93), (0.54, -1.21), (0.67, -1.25)],
        "ensembles": [(3.28, -2.41), (6.03, -3.06), (2.09, -1.38), (1.58, -1.18)],
    }
    assert tuple(uci.FILES) == sets
    assert beats((2.9, -2.5), (3.01, -2.57))
    assert not beats((2.9, -2.6), (3.01, -2.57))
    assert not beats((3.1, -2.5), (3.01, -2.57))


def test_splits_are_unpacked_and_scaled_by_training_rows(tmp_path: Path) -> None:
    table = linear_table(rows=21)
    np.savez(tmp_path / "yacht.npz", x=table.x, y=table.y, test_mask=np.packbits(table.test, axis=1), n=np.int64(21))
    found = uci.read("yacht", tmp_path)
    assert (found.test == table.test).all()
    data = found.training(1)
    rows = ~table.test[1]
    assert isinstance(data.observed, torch.Tensor)
    # float32: means of 16 standardised values
    np.testing.assert_allclose(data.inputs["x"].mean(0), 0.0, atol=1e-6)
    assert float(data.observed.std(correction=0)) == pytest.approx(1.0, abs=1e-6)
    inputs, outcomes = found.held_out(1)
    expected = (table.x[~rows] - table.x[rows].mean(0)) / table.x[rows].std(0)
    np.testing.assert_allclose(data.encode(inputs)["x"], expected, atol=1e-5)
    np.testing.assert_array_equal(outcomes, table.y[~rows])
    with pytest.raises(SystemExit, match=r"energy\.npz"):
        uci.read("energy", tmp_path)


def test_a_point_with_known_noise_has_the_closed_form_score() -> None:
    """One draw of a point is N(net(x), sigma^2): its log likelihood is known from the RMSE alone, in the target's unit."""
    table = linear_table()
    data, (x, y) = table.training(0), table.held_out(0)
    score = uci.fit_and_score(
        data, "map", uci.Setting(1.0, 0.2), data.encode(x), y, steps=200, draws=3, seed=0, timing=Timing(), compile=False
    )
    sigma = 0.2 * table.y[~table.test[0]].std()
    expected = -0.5 * math.log(2 * math.pi * sigma**2) - score.rmse**2 / (2 * sigma**2)
    # float32 means of standardised targets near 1: relative errors of 1e-6 in a residual of some sigma
    assert score.log_likelihood == pytest.approx(expected, abs=1e-4)
    assert 0.3 < score.rmse < 0.5 * table.y.std()  # the noise is 0.5, and guessing the mean has the sd


def test_the_setting_with_the_highest_validation_score_is_chosen() -> None:
    table = linear_table()
    # A noise of a hundredth of the residuals' size is hopeless, whatever the seed.
    settings = (uci.Setting(1.0, 0.001), uci.Setting(1.0, 0.1))
    recipe = uci.Recipe(100, settings)
    cell = uci.measure(table, "map", recipe, [0, 1], halves=1, compile=False)
    assert cell["chosen"] == ["prior 1, noise 0.1"] * 2
    assert len(cell["validation"]) == 1
    assert len(cell["scores"]) == cell["timing"]["fits"] == cell["choosing"]["fits"] == 2
    each = uci.measure(table, "map", recipe, [0, 1], each=True, halves=1, compile=False)
    assert len(each["validation"]) == 2


def cell(rmse: list[float], density: list[float], **more: Any) -> dict[str, Any]:
    timing = {
        "fits": 2, "seconds": 4.0, "median_fit": 2.0, "first_compile": 9.0, "median_compile": 0.5, "median_steps": 1.2,
        "median_evaluation": 0.1, "step_us": 60.0,
    }  # fmt: skip
    scores = [{"rmse": r, "log_likelihood": d} for r, d in zip(rmse, density, strict=True)]
    made = {
        "steps": 100,
        "splits": [0, 1],
        "chosen": ["prior 1"] * 2,
        "each": False,
        "validation": [{}],
        "scores": scores,
    }
    return made | {"timing": timing, "choosing": {"fits": 0, "seconds": 0.0}} | more


def test_uci_report_says_who_beats_whom() -> None:
    found = {"yacht": {"mean_field": cell([0.5, 0.7], [-1.0, -1.2]), "map": cell([0.5, 0.7], [-3.0, -1.2])}}
    text = uci_report.render(found)
    # mean 0.6, sd sqrt(0.02), standard error 0.1
    assert "| `mean_field` | **0.60 ± 0.10 / -1.10 ± 0.10** |" in text
    assert "| `map` | 0.60 ± 0.10 / -2.10 ± 0.90 |" in text
    assert "| PBP | `mean_field` |" in text
    assert "| dropout, 2018 grid | `mean_field` |" in text
    assert "| PBP | 1.02 / -1.63 |" in text
    assert limit(found["yacht"]["map"]["timing"]) == "steps, 60%"
    assert "on the first split's training rows" not in text
    mixed = {"yacht": found["yacht"] | {"map": cell([1.0, 1.0], [-1.0, -1.0], each=True, chosen=["prior 1", "prior 2"])}}
    assert "each split; 1 of 2: prior 1" in uci_report.render(mixed)


def test_validation_may_choose_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    real = bz.fit
    monkeypatch.setattr(uci.bz, "fit", lambda *args, **options: given.append(options["kl_weight"]) or real(*args, **options))
    recipe = uci.Recipe(5, uci._grid((0.5, 1.0), warm_ups=(False, True)))
    cell = uci.measure(linear_table(splits=1), "mean_field", recipe, [0], halves=1, compile=False)
    assert list(cell["validation"][0]) == ["prior 0.5", "prior 0.5, warm-up", "prior 1", "prior 1, warm-up"]
    assert [weight is not None for weight in given] == [False, True, False, True, "warm-up" in cell["chosen"][0]]
    assert [warm_up.kl_weight(step, 100) for step in (0, 25, 50, 99)] == [0.0, 0.5, 1.0, 1.0]


def test_uci_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = linear_table(splits=20)
    folder = tmp_path / "data/uci"
    folder.mkdir(parents=True)
    np.savez(folder / "yacht.npz", x=table.x, y=table.y, test_mask=np.packbits(table.test, axis=1), n=np.int64(60))
    monkeypatch.setenv("BAYESZOO_DATA", str(tmp_path / "data"))
    short = {name: dataclasses.replace(recipe, steps=5, settings=recipe.settings[:1]) for name, recipe in uci.RECIPES.items()}
    monkeypatch.setattr(uci, "RECIPES", short)
    common = ["uci", "--sets", "yacht", "--splits", "2", "--eager", "--out", str(tmp_path)]
    command.main([*common, "--guides", "map"])
    command.main([*common, "--guides", "mean_field,mc_dropout", "--add"])
    whole = json.loads((tmp_path / "uci.json").read_text())
    assert list(whole["sets"]["yacht"]) == ["map", "mc_dropout", "mean_field"]
    assert all(math.isfinite(s["log_likelihood"]) for c in whole["sets"]["yacht"].values() for s in c["scores"])
    assert (tmp_path / "uci.png").stat().st_size > 1000
    assert (tmp_path / "uci.md").read_text().startswith("# UCI regression")
    with pytest.raises(SystemExit, match="unknown guide 'mean'; choose from"):
        command.main([*common, "--guides", "mean"])
    monkeypatch.delenv("BAYESZOO_DATA")
    with pytest.raises(SystemExit, match="set BAYESZOO_DATA"):
        command.main(common)


def points(**scores: list[float]) -> dict[str, Any]:
    """Cells in which all three scores follow one list: high is good."""
    return {
        family: cell([], []) | {"scores": [{"accuracy": v, "nll": 1 - v, "ece": 0.1} for v in values]}
        for family, values in scores.items()
    }


def test_verdicts_are_paired_tests() -> None:
    base = [0.80, 0.85, 0.90, 0.95, 0.99]
    assert labels_report.verdict([b + 0.01 + 0.001 * k for k, b in enumerate(base)], base, "accuracy") == "wins"
    assert labels_report.verdict([b + 0.01 + 0.001 * k for k, b in enumerate(base)], base, "nll") == "loses"
    assert labels_report.verdict([0.99, 0.80, 0.95, 0.85, 0.90], base, "accuracy") == "no difference"
    # gains 1, 1, 1, 1, 0 of mean 0.8 and standard error 0.2: t = 4 > 2.78; with one more zero t = 2.45 < 2.78
    assert labels_report.verdict([1, 1, 1, 1, 0], [0] * 5, "accuracy") == "wins"
    assert labels_report.verdict([1, 1, 1, 0, 0], [0] * 5, "accuracy") == "no difference"
    assert labels_report.verdict([0.9], [0.1], "accuracy") == "no difference"


def test_labels_report_says_where_bayes_does_not_win() -> None:
    few = points(mle=[0.5, 0.6, 0.7], map=[0.6, 0.7, 0.8], mean_field=[0.7, 0.81, 0.9], ensemble=[0.5, 0.59, 0.7])
    many = points(mle=[0.9, 0.9, 0.9], map=[0.8, 0.8, 0.8], mean_field=[0.8, 0.95, 0.9])
    text = labels_report.render({"100": few, "1000": many}, "64-50-50-10", 6310)
    line = re.search(r"- \*\*accuracy\.\*\* (.*)", text)
    assert line is not None
    won, rest = line[1].split(" It does not win with ")
    even, lost = rest.split(" It loses with ")
    assert won == "Bayes wins with `mean_field` at 100 (over `map`)."
    assert "`mean_field` at 1,000 (over `mle`)" in even
    assert lost == "`ensemble` at 100 (over `map`)."
    # Gains of 0.10, 0.11, 0.10 and of -0.10, 0.05, 0.00 over the same seeds.
    assert "+0.103 ± 0.003 with 100 labels, -0.017 ± 0.044 with 1,000; larger with few labels, as the claim has it." in text
    assert "100 labels (0.0158 a parameter)" in text
    assert "Bayes wins nowhere" in text  # the calibration errors are all equal


def test_labels_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = {
        name: tuple(dataclasses.replace(s, steps=5) for s in settings[: 2 if name == "map" else 1])
        for name, settings in labels.FAMILIES.items()
    }
    monkeypatch.setattr(labels, "FAMILIES", short)
    given = ["labels", "--seeds", "2", "--eager", "--out", str(tmp_path)]
    command.main([*given, "--labels", "20,40", "--families", "map"])
    command.main([*given, "--labels", "40", "--families", "mc_dropout", "--add"])
    whole = json.loads((tmp_path / "labels_digits.json").read_text())
    assert whole["parameters"] == 64 * 50 + 50 + 50 * 50 + 50 + 50 * 10 + 10
    assert list(whole["points"]) == ["20", "40"]
    assert list(whole["points"]["40"]) == ["map", "mc_dropout"]
    assert (tmp_path / "labels_digits.png").stat().st_size > 1000
    assert "64-50-50-10 with 6,310 weights" in (tmp_path / "labels_digits.md").read_text()
    with pytest.raises(SystemExit, match="unknown family 'mep'"):
        command.main([*given, "--families", "mep"])


def test_no_test_image_is_among_the_labelled() -> None:
    pool, test = labels.pool_and_test("digits", 3)
    seen = {row.numpy().tobytes() for row in pool.inputs["x"]}
    # digits has no two equal pictures: a row in both parts would be one example
    assert not any(row.numpy().tobytes() in seen for row in test.inputs["x"])
    assert len(pool) + len(test) == 1797


def test_every_benchmark_has_a_line_and_its_options() -> None:
    for name, module in command.BENCHMARKS.items():
        assert (module.__doc__ or "").splitlines()[0].endswith("."), name
        module.add_arguments(argparse.ArgumentParser())
    assert command.arguments(["labels", "--data", "mnist"]).data == "mnist"


def test_rates_of_the_autoencoders_are_the_papers() -> None:
    passes = [3**i for i in range(8)]
    begin, factors = 0, []
    for length in passes:
        factors += [vae_mnist.stages(begin, 3280), vae_mnist.stages(begin + length - 1, 3280)]
        begin += length
    assert begin == 3280
    assert factors == pytest.approx([10 ** (-i / 7) for i in range(8) for _ in range(2)])


def test_autoencoders_are_measured_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bz.data.load("digits")
    digits = dataclasses.replace(whole, inputs={"x": whole.inputs["x"].reshape(-1, 1, 8, 8)}, feature_names=())
    parts = dict(zip(("train", "test"), digits.split(2 / 3, seed=0), strict=True))
    monkeypatch.setattr(vae_mnist.bz.data, "load", lambda name, split, folder: parts[split])
    monkeypatch.setattr(vae_mnist, "LATENTS", 5)
    monkeypatch.setattr(vae_mnist, "HIDDEN", (20,))
    given = ["vae_mnist", "--eager", "--epochs", "3", "--pictures", "40", "--draws", "50", "--out", str(tmp_path)]
    command.main([*given, "--k", "1,5"])
    command.main([*given, "--seed", "1"])
    runs = json.loads((tmp_path / "vae_mnist.json").read_text())["runs"]
    assert list(runs) == ["short 1 3", "short 1 3 seed 1", "short 5 3"]
    kept = [*given, "--keep", str(tmp_path / "fits")]
    command.main(kept)
    begin = str(tmp_path / "fits/short_1_3")
    command.main([*kept, "--begin", begin, "--k", "5", "--rate", "1e-4"])
    after = json.loads((tmp_path / "vae_mnist.json").read_text())["runs"]["short 5 3 after short_1_3"]
    assert after["log_p"] > runs["short 1 3"]["log_p"]
    assert "| k = 1, 3 passes, rate 0.0001 |" in (tmp_path / "vae_mnist.md").read_text()
    monkeypatch.setattr(vae_mnist.bz, "fit", None)  # what was kept is not trained again
    command.main(kept)
    again = json.loads((tmp_path / "vae_mnist.json").read_text())["runs"]["short 1 3"]
    assert again["log_p"] == runs["short 1 3"]["log_p"]
    # 64 pixels of one bit each: nobody who has learned anything is below that, and 50 draws tighten the bound.
    assert all(-64 * math.log(2) < run["elbo"] < run["log_p"] < 0 for run in runs.values())
    assert all(1 < run["ess"] <= 50 for run in runs.values())
    assert (tmp_path / "vae_mnist.png").stat().st_size > 1000


def test_a_report_of_autoencoders_says_what_is_reached() -> None:
    assert vae_mnist.reached({"k": 1, "log_p": -86.79}) == "-86.8: reached"
    assert vae_mnist.reached({"k": 50, "log_p": -84.9}) == "-84.8: 0.10 short"
    assert vae_mnist.reached({"k": 5, "log_p": -80.0}) == ""


def test_early_exit_is_measured_and_told(tmp_path: Path) -> None:
    asked = command.arguments(["early_exit", "--steps", "20", "--seeds", "0", "--out", str(tmp_path)])
    early_exit.main(asked, tmp_path)
    run = json.loads((tmp_path / "early_exit.json").read_text())["sets"]["digits exact"]["runs"][0]
    assert run["mode"]["agreement"] == run["marginal"]["agreement"] == 1.0
    assert sum(run["mode"]["layers"]) == 599
    assert "100.00%" in (tmp_path / "early_exit.md").read_text()
    assert (tmp_path / "early_exit.png").exists()


def test_a_report_of_mean_field_names_what_was_chosen() -> None:
    run = {"prior": "normal 0.1", "epochs": 2, "error": 1.5, "nll": 0.05, "ece": 0.01, "seconds": 9.0, "step": 0.01}
    text = mean_field_mnist.render({"map": {"pilots": [{**run, "prior": "normal 0.3"}], "run": run}})
    assert "| map | normal 0.1 | 2 | 1.50 % |" in text
    assert "normal 0.3" in text


def test_strangers_scores_by_hand() -> None:
    log_p = torch.tensor([-10.0, -30.0, *[-20.0] * 18], dtype=torch.float64)
    found = out_of_domain.scores(log_p, torch.full((20,), 5.0), typical=-19.0)
    assert [float(found[name][0]) for name in out_of_domain.SCORES] == [10.0, 5.0, 9.0, 1.0]
    assert len(found[f"typicality of {out_of_domain.GROUP}"]) == 2
    own = torch.zeros(1, 1, 2, 3)
    own[0, 0, 0, 2] = 1.0
    kinds = out_of_domain.strangers(own, own, torch.Generator().manual_seed(0))
    assert kinds["turned"].tolist() == [[[[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]]]
    assert kinds["inverted"].sum() == 5
    noise = kinds["noise"] * 255
    assert torch.equal(noise, noise.round())


def test_a_picture_of_noise_is_as_long_as_its_bytes() -> None:
    both = torch.stack([torch.zeros(1, 40, 40), torch.randint(256, (1, 40, 40)) / 255])
    empty, noise = (out_of_domain.code_lengths(both) / (8 * math.log(2))).tolist()
    # Bytes: noise cannot be packed, and PNG adds its head, a byte a row and some sixty more.
    assert 1600 <= noise < 1600 + 40 + 100
    assert empty < 120


def test_what_does_not_belong_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bright and dark stripes in the place of digits and clothes."""

    def load(name: str, split: str, folder: str | None) -> bz.data.Data:
        x = torch.zeros(60, 1, 8, 8)
        x[:, :, ::2] = 1.0 if name == "mnist" else 0.4
        x = (x + 0.1 * torch.rand(x.shape, generator=torch.Generator().manual_seed(len(split)))).clamp(0, 1)
        return bz.data.Data({"x": (x * 255).round() / 255}, torch.zeros(60, dtype=torch.int64))

    monkeypatch.setattr(bz.data, "load", load)
    command.main(["out_of_domain", "--epochs", "60", "--pictures", "40", "--draws", "20", "--out", str(tmp_path)])
    runs = json.loads((tmp_path / "out_of_domain.json").read_text())["runs"]
    assert list(runs) == ["mnist", "fashion_mnist"]
    # Every picture of noise is less probable than every held-out one, even after 60 steps.
    assert all(run["auroc"]["noise"]["-log p(x)"] == pytest.approx(1.0) for run in runs.values())
    assert all(run["log_p"]["held out"] > run["log_p"]["noise"] for run in runs.values())
    text = (tmp_path / "out_of_domain.md").read_text()
    assert "| Fashion-MNIST | MNIST |" in text
    assert ("prefers strangers: " in text) == any(
        areas["-log p(x)"] < 0.5 for run in runs.values() for areas in run["auroc"].values()
    )
    assert (tmp_path / "out_of_domain.png").stat().st_size > 1000


def test_few_labels_are_balanced_and_follow_the_seed() -> None:
    y = torch.arange(10).repeat_interleave(torch.arange(30, 40))
    rows = m2_mnist.balanced(y, 100, 0)
    assert torch.bincount(y[rows]).tolist() == [10] * 10
    assert len(rows.unique()) == 100
    assert torch.equal(rows, m2_mnist.balanced(y, 100, 0))
    # Two random hundreds of 345 share about 29.
    assert len(set(rows.tolist()) & set(m2_mnist.balanced(y, 100, 1).tolist())) < 50


@pytest.mark.parametrize("classifier", ["dense", "conv"])
def test_pictures_without_labels_are_measured_and_told(
    classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bz.data.load("digits")
    digits = dataclasses.replace(whole, inputs={"x": whole.inputs["x"].reshape(-1, 1, 8, 8)}, feature_names=())
    parts = dict(zip(("train", "test"), digits.split(2 / 3, seed=0), strict=True))
    monkeypatch.setattr(m2_mnist.bz.data, "load", lambda name, split, folder: parts[split])
    monkeypatch.setattr(m2_mnist, "HIDDEN", 50)
    given = ["m2_mnist", "--classifier", classifier, "--epochs", "6", "--eager", "--out", str(tmp_path)]
    command.main([*given, "--seeds", "0"])
    command.main([*given, "--seeds", "1"])
    runs = json.loads((tmp_path / "m2_mnist.json").read_text())["runs"]
    assert list(runs) == [f"{classifier} 0", f"{classifier} 1"]
    # Guessing is wrong nine times of ten; M2 has only begun after so few steps.
    assert all(run["alone"] < 30 and run["error"] < 80 for run in runs.values())
    assert f"| {classifier} | 2 |" in (tmp_path / "m2_mnist.md").read_text()
    assert (tmp_path / "m2_mnist.png").stat().st_size > 1000


def test_a_report_of_few_labels_says_whether_the_paper_is_met() -> None:
    run = {
        "classifier": "conv", "seed": 0, "alone": 15.0, "error": 11.0, "epochs": 2, "alpha": 50.0, "loss": 120.0, "seconds": 9.0,
        "step": 0.05, "engine": "compiled",
    }  # fmt: skip
    # sd of 11.00 and 12.00 is 0.71, their mean 11.50; the paper's is 11.97
    text = m2_mnist.render({"conv 0": run, "conv 1": run | {"seed": 1, "error": 12.0}})
    assert "| conv | 2 | 15.00 ± 0.00 % | 11.50 ± 0.71 % | met, 0.9 standard errors off |" in text
    assert "| conv | 1 | 15.00 % | 13.00 % | missed |" in m2_mnist.render({"conv 0": run | {"error": 13.0}})


def test_sparse_runs_of_other_networks_and_seeds_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(published: Any, train: Any, test: Any, epochs: int, seed: int, device: str) -> dict[str, Any]:
        size = sum(p.numel() for p in published.net().parameters())
        return {
            "seed": seed, "error": 1.0, "compression": float(size), "sparsity": {"fc1": 98.0}, "bytes": [10, 1],
            "seconds_an_input": [1e-6, 1e-7], "seconds": 1.0, "step": 1e-3, "engine": "eager", "loss": 1.0,
        }  # fmt: skip

    monkeypatch.setattr(sparse_mnist, "measure", measure)
    monkeypatch.setattr(bz.data, "load", lambda *args, **kwargs: None)
    ask = ["sparse_mnist", "--out", str(tmp_path), "--epochs", "7"]
    command.main([*ask, "--nets", "lenet-300-100", "--seeds", "0,2"])
    command.main([*ask, "--add", "--nets", "lenet-300-100", "--seeds", "1,2"])
    command.main([*ask, "--add", "--nets", "lenet-5-caffe", "--seeds", "0"])
    runs = json.loads((tmp_path / "sparse_mnist.json").read_text())["runs"]
    assert {name: [run["seed"] for run in found] for name, found in runs.items()} == {
        "lenet-300-100": [0, 1, 2],
        "lenet-5-caffe": [0],
    }
    assert "| lenet-300-100 | 3 |" in (tmp_path / "sparse_mnist.md").read_text()
    with pytest.raises(SystemExit, match="runs of 7 epochs, not 8; give another folder"):
        command.main([*ask[:-1], "8", "--add", "--nets", "lenet-5-caffe", "--seeds", "1"])
    command.main([*ask, "--nets", "lenet-5-caffe", "--seeds", "0"])
    assert list(json.loads((tmp_path / "sparse_mnist.json").read_text())["runs"]) == ["lenet-5-caffe"]
