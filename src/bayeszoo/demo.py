"""The demonstration: real data, real fits, and how far each is from the exact answer, in about a minute."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import data as bzdata
from . import models, outputs
from .catalog import ENTRIES
from .fitting import fit

if TYPE_CHECKING:
    from rich.console import Console

#: Tells a folder that the demonstration may replace from anybody else's.
MARK = "demo.txt"


def run(folder: Path, *, console: Console, overwrite: bool = False) -> list[Path]:
    """Fits the coins and the regression, prints summaries and verdicts, writes figures and fits.

    Args:
        folder: where to; an earlier demonstration there is replaced, anything else is not.

    Returns:
        The figures.

    Raises:
        FileExistsError: the folder holds something else.
        PermissionError: the folder cannot be written.
    """
    _check(folder, overwrite)
    began = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text("Written by 'bayeszoo demo', which replaces what is in this folder.\n", encoding="utf-8")

    flips = bzdata.load("coin_flips")
    _title(
        console,
        "One coin",
        f"{flips.inputs['total_count'].sum():,.0f} real flips of 48 people, one chance pi for all",
    )
    coin = _fit(console, models.CoinFlip(), flips, ENTRIES["coin_flip"].guide, folder / "coin_flip")

    _title(
        console,
        "Many people",
        "each person's chance pi is drawn from a population with mean mu and concentration kappa",
    )
    people = _fit(
        console,
        models.HierarchicalCoin(),
        flips,
        ENTRIES["hierarchical_coin"].guide,
        folder / "hierarchical_coin",
        ["mu", "kappa"],
    )

    table = bzdata.load("diabetes")
    _title(
        console,
        "A regression",
        f"progression of diabetes in {len(table)} people from {table.dim} measurements, standardised",
    )
    regression = _fit(
        console,
        models.BayesianLinearRegression(table.dim),
        table,
        ENTRIES["linear_regression"].guide,
        folder / "linear_regression",
    )

    written = _figures(folder, coin, people, regression)
    console.print(f"\n[bold]Done in {time.perf_counter() - began:.0f} s.[/bold] Figures:")
    for path in written:
        console.print(f"  {path}", soft_wrap=True)
    console.print("Fits (posterior.nc for ArviZ, a checkpoint for bz.load, more figures):")
    for name in ("coin_flip", "hierarchical_coin", "linear_regression"):
        console.print(f"  {folder / name}", soft_wrap=True)
    return written


def _fit(console: Console, model: Any, data: Any, guide: str, folder: Path, summary: list[str] | None = None) -> Any:
    import arviz as az

    from .inference.diagnosis.reference import reference

    result = fit(model, data, guide=guide, seed=0)
    console.print(repr(result), markup=False, soft_wrap=True)
    outputs.write(result, folder, overwrite=True)
    tree = result.to_arviz(predictive=False, prior=False, log_likelihood=False)
    table = az.summary(tree, kind="stats", var_names=summary, round_to="none")
    console.print("\nArviZ summary, az.summary(fit.to_arviz()):", style="bold")
    console.print(table.to_string(float_format="{:.4g}".format), markup=False, soft_wrap=True)
    console.print("\nAgainst the exact answer, fit.diagnose(bz.reference(model, data)):", style="bold")
    console.print(str(result.diagnose(reference(model, data))), markup=False, soft_wrap=True)
    return result


def _figures(folder: Path, coin: Any, people: Any, regression: Any) -> list[Path]:
    from . import plots

    flips = bzdata.load("coin_flips", form="sequence", seed=0).select(slice(0, 10_000))
    mean_field = fit(regression.model, regression.data, guide="mean_field", steps=1500)
    point = fit(regression.model, regression.data, guide="map", progress=False)
    names = regression.data.feature_names
    # s1 and s2 are correlated by 0.9; the intercept stands before them.
    pair = (1 + names.index("s1"), 1 + names.index("s2"))
    guides = {"map": point, "mean_field": mean_field, regression.settings.guide: regression}
    drawn = {
        "coin_prior_to_posterior": plots.plot_coin_updates(flips, at=(0, 1, 3, 10, 100, 1000)),
        "coin_three_answers": plots.plot_coin_answers(flips),
        "coin_against_exact": plots.plot_posterior(coin, "pi"),
        "people": plots.plot_people(people),
        "regression_bmi": plots.plot_regression(regression, "bmi"),
        "regression_guides": plots.plot_contours(guides, "theta", pair),
        "regression_residuals": plots.plot_residual_check(regression),
        "regression_losses": plots.plot_losses(regression),
    }
    return plots.save(drawn, folder)


def _title(console: Console, title: str, line: str) -> None:
    console.print()
    console.rule(f"[bold]{title}", align="left")
    console.print(line)


def _check(folder: Path, overwrite: bool) -> None:
    outputs.check(folder, overwrite=overwrite)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).exists() and not overwrite:
        raise FileExistsError(f"folder '{folder}' holds other files; choose another with --out, or pass --force")
