"""The command line: what it writes, what it prints, and one sentence for wrong input."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import bayeszoo as bz
from bayeszoo.cli import app

runner = CliRunner()


def refused(*words: str) -> str:
    """Runs a command that must fail, and returns its one sentence."""
    result = runner.invoke(app, list(words))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("bayeszoo: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_list_names_models_guides_and_data():
    result = runner.invoke(app, ["list"])
    assert result.exit_code == 0
    for name in ("coin_flip", "hierarchical_coin", "linear_regression", "full_rank", "diabetes"):
        assert name in result.stdout


def test_json_is_one_object_and_nothing_else():
    result = runner.invoke(app, ["fit", "coin_flip", "--guide", "exact", "--json", "--seed", "3"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    wanted = {
        "model",
        "guide",
        "seed",
        "steps",
        "loss",
        "log_evidence",
        "k_hat",
        "posterior",
        "seconds",
        "engine",
        "timings",
        "device",
        "versions",
    }
    assert wanted <= set(found)
    assert (found["model"], found["guide"], found["seed"]) == ("coin_flip", "exact", 3)
    assert found["loss"] == pytest.approx(-found["log_evidence"], rel=1e-8)
    assert found["k_hat"] is None
    assert "every draw" in found["k_hat_note"]
    exact = bz.models.CoinFlip().exact_posterior(bz.data.load("coin_flips"))
    # Four Monte Carlo errors of the mean of 4,000 draws.
    assert abs(found["posterior"]["pi"]["mean"] - float(exact.mean["pi"])) < 4 * float(exact.sd["pi"]) / 4000**0.5


def test_fit_writes_everything_and_never_overwrites_unasked(tmp_path):
    out, table = tmp_path / "run", tmp_path / "house.csv"
    table.write_text("size,price\n" + "".join(f"{10 + i},{30 + 3 * i + i % 2}\n" for i in range(12)))
    command = [
        "fit",
        "linear_regression",
        "--guide",
        "laplace",
        "--data",
        str(table),
        "--target",
        "price",
        "--out",
        str(out),
    ]
    result = runner.invoke(app, [*command, "--quiet"])
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    names = {path.name for path in out.iterdir()}
    assert {"fit.json", "parameters.safetensors", "data.safetensors", "posterior.nc"} <= names
    assert {"losses.png", "posterior.png", "residuals.png"} <= names
    assert bz.load(out).sample(5)["theta"].shape == (5, 2)
    import xarray as xr

    with xr.open_datatree(out / "posterior.nc", engine="h5netcdf") as tree:
        assert list(tree["posterior"].data_vars) == ["theta", "sigma"]
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert "pass --force" in refused(*command)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert runner.invoke(app, [*command, "--force", "--quiet", "--seed", "1"]).exit_code == 0
    assert bz.load(out).seed == 1


def test_csv_with_target(tmp_path):
    path = tmp_path / "house.csv"
    path.write_text("size,rooms,price\n" + "".join(f"{10 + i},{i % 3},{30 + 3 * i + i % 2}\n" for i in range(12)))
    result = runner.invoke(app, ["fit", "linear_regression", "--data", str(path), "--target", "price", "--guide", "laplace"])
    assert result.exit_code == 0, result.output
    assert "laplace" in result.stdout
    assert "theta[size]" in result.stdout


@pytest.mark.parametrize(("text", "mean"), [("heads\n1\n1\n1\n", 0.8), ("heads,total_count\n3,3\n2,6\n", 6 / 11)])
def test_csv_of_flips(tmp_path, text, mean):
    path = tmp_path / "flips.csv"
    path.write_text(text)
    result = runner.invoke(app, ["fit", "coin_flip", "--data", str(path), "--target", "heads", "--guide", "exact", "--json"])
    assert result.exit_code == 0, result.output
    # Four Monte Carlo errors of a mean of 4,000 draws whose sd is below 0.17.
    assert json.loads(result.stdout)["posterior"]["pi"]["mean"] == pytest.approx(mean, abs=0.011)


def test_compare_prints_a_table_or_json():
    command = ["compare", "coin_flip", "--guides", "laplace, exact"]
    result = runner.invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "laplace" in result.stdout
    assert "exact posterior" in result.stdout
    found = json.loads(runner.invoke(app, [*command, "--json"]).stdout)
    assert list(found["guides"]) == ["laplace", "exact"]
    assert abs(found["guides"]["exact"]["gap"]) < 1e-6


@pytest.mark.parametrize(("words", "wanted"), [([], "auto"), (["auto"], "auto"), (["yes"], True), (["no"], False)])
def test_compile_is_passed_on(monkeypatch: pytest.MonkeyPatch, words: list[str], wanted: Any) -> None:
    passed: list[Any] = []

    def instead(*args: Any, compile: Any, **options: Any) -> None:
        passed.append(compile)
        raise ValueError("enough seen")

    monkeypatch.setattr("bayeszoo.fitting.fit", instead)
    assert "enough seen" in refused("fit", "coin_flip", *(["--compile", *words] if words else []))
    assert passed == [wanted]


@pytest.mark.parametrize(
    ("word", "line"),
    [("no", r"^engine eager: \d+\.\d s of steps$"), ("yes", r"^engine compiled: \d+\.\d s of steps, \d+\.\d s of compiling$")],
)
def test_the_summary_says_what_ran_the_steps(word: str, line: str) -> None:
    result = runner.invoke(app, ["fit", "coin_flip", "--guide", "mean_field", "--steps", "20", "--compile", word])
    assert result.exit_code == 0, result.output
    assert re.search(line, result.stdout, re.M), result.stdout


@pytest.mark.parametrize("quiet", [False, True])
def test_a_fit_that_is_not_compiled_says_why_on_stderr(monkeypatch: pytest.MonkeyPatch, quiet: bool) -> None:
    monkeypatch.setattr("bayeszoo.inference.engine.compiled.COMPILE_SECONDS", 0.0)
    monkeypatch.setattr("bayeszoo.inference.engine.compiled.COMPILE_SECONDS_A_NODE", 0.0)
    monkeypatch.setattr("bayeszoo.inference.engine.inductor.shutil.which", lambda _: None)
    command = ["fit", "coin_flip", "--guide", "mean_field", "--steps", "20"]
    result = runner.invoke(app, [*command, "--quiet" if quiet else "--json"])
    assert result.exit_code == 0, result.output
    if quiet:
        assert result.output == ""
        return
    assert json.loads(result.stdout)["engine"] == "eager"
    assert result.stderr.startswith("bayeszoo: the fit runs on the eager engine: there is no C++ compiler")
    assert result.stderr.count("\n") == 1
    assert "no C++ compiler" in refused(*command, "--compile", "yes")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["fit", "--help"]])
def test_help_and_version_load_nothing_slow(words: list[str]) -> None:
    source = """
import sys
from bayeszoo.cli import main
try:
    main()
finally:
    slow = {"torch", "pyro", "pandas", "arviz", "matplotlib"} & set(sys.modules)
    assert not slow, slow
"""
    done = subprocess.run([sys.executable, "-c", source, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (done.stdout == f"bayeszoo {bz.__version__}\n") is (words == ["--version"])


def test_wrong_input_is_one_sentence(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("a,b,y\n1,2,3\n2,1,x\n3,3,4\n")
    assert "did you mean 'coin_flip'" in refused("fit", "coin_flp")
    assert "did you mean 'full_rank'" in refused("fit", "coin_flip", "--guide", "ful_rank")
    assert "diabetes" in refused("fit", "linear_regression", "--data", "diabetis")
    assert "no file" in refused("fit", "linear_regression", "--data", "nowhere.csv", "--target", "y").replace(
        "there is no file", "no file"
    )
    assert "--target" in refused("fit", "linear_regression", "--data", str(table))
    assert "row 2" in refused("fit", "linear_regression", "--data", str(table), "--target", "y")
    assert "no column 'z'" in refused("fit", "coin_flip", "--data", str(table), "--target", "z")
    assert "--compile must be auto, yes or no, got 'maybe'" in refused("fit", "coin_flip", "--compile", "maybe")
    assert "at least 1" in refused("fit", "coin_flip", "--steps", "0")
    assert "not there" in refused("fit", "coin_flip", "--device", "cuda:77")
    assert "guide 'beta' is for latents in" in refused("fit", "linear_regression", "--guide", "beta")
    assert "at least one guide" in refused("compare", "coin_flip", "--guides", ",")
    taken = tmp_path / "taken"
    taken.write_text("mine")
    assert "is a file" in refused("fit", "coin_flip", "--out", str(taken))
    assert taken.read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the administrator may write everywhere")
def test_a_folder_that_may_not_be_changed(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert "cannot be written" in refused("fit", "coin_flip", "--out", str(locked / "run"))


def test_missing_argument_exits_with_two():
    result = runner.invoke(app, ["fit"])
    assert result.exit_code == 2
    assert "MODEL" in result.stderr


def test_demo_refuses_a_folder_of_somebody_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    assert "holds other files" in refused("demo", "--out", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_demo_runs_twice_into_the_same_folder(tmp_path):
    for _ in range(2):
        result = runner.invoke(app, ["demo", "--out", str(tmp_path / "demo")])
        assert result.exit_code == 0, result.output
        assert "Against the exact answer" in result.stdout
        figures = [Path(line.strip()) for line in result.stdout.splitlines() if line.strip().endswith(".png")]
        assert len(figures) == 8
        assert all(path.is_file() for path in figures)


def test_a_real_process_prints_json_on_stdout_alone(tmp_path):
    command = [sys.executable, "-c", "from bayeszoo.cli import main; main()"]
    done = subprocess.run(
        [*command, "fit", "coin_flip", "--guide", "exact", "--json"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    found = json.loads(done.stdout)
    assert found["guide"] == "exact"
    failed = subprocess.run([*command, "fit", "nothing"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert failed.stderr.startswith("bayeszoo: unknown model 'nothing'")
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("model", ["bayesian_nn", "adaptive_depth"])
def test_a_network_of_the_catalogue_is_read_back_without_it(model: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = runner.invoke(app, ["fit", model, "--steps", "20", "--compile", "no", "--quiet", "--out", str(out)])
    assert result.exit_code == 0, result.output
    again = bz.load(out)
    x = again.data.inputs["x"][:5]
    assert again.predict(x, n=10).probs.shape == (5, 10)
    own = bz.models.BayesianNN(bz.models.networks.mlp(64, [7], 10))
    bz.fit(own, again.data, steps=2, compile=False, progress=False).save(tmp_path / "own")
    with pytest.raises(ValueError, match="is of a network of your own in 'BayesianNN'"):
        bz.load(tmp_path / "own")


def test_an_autoencoder_of_the_catalogue(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = runner.invoke(app, ["fit", "vae", "--steps", "20", "--compile", "no", "--quiet", "--out", str(out)])
    assert result.exit_code == 0, result.output
    again = bz.load(out)
    assert again.model.decode(again.sample(2)["z"][0][:3]).shape == (3, 64)
    assert again.model.pixels.levels == 17
    pictures = {"losses", "codes", "samples", "reconstructions", "traversals", "plane"}
    assert {path.stem for path in out.glob("*.png")} == pictures


def test_a_semi_supervised_autoencoder_of_the_catalogue(tmp_path: Path) -> None:
    out = tmp_path / "run"
    given = ["fit", "semi_supervised_vae", "--steps", "20", "--compile", "no", "--quiet", "--out", str(out)]
    result = runner.invoke(app, given)
    assert result.exit_code == 0, result.output
    again = bz.load(out)
    assert torch.bincount(again.data.observed["y"] + 1)[1:].tolist() == [10] * 10
    assert again.latent_probs(again.data.observed["x"][:3]).shape == (3, 10)
