"""Data sets by name: real tables that come with the package or with scikit-learn, and image sets from a folder."""

from __future__ import annotations

import csv
import inspect
from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np
import torch

from .checks import nearest
from .dataset import Data
from .images import fashion_mnist, mnist
from .sampling import seeded_generator
from .table import Standardize, from_arrays

COIN_FLIPS_CITATION = (
    "F. Bartoš et al. (2023). Fair coins tend to land on the same side they started: Evidence from "
    "350,757 flips. arXiv 2310.04153"
)


def coin_flips(form: str = "persons", seed: int = 0) -> Data:
    """Real coin flips of 48 people: how often the coin landed on the side that it started on.

    Args:
        form: "persons": 48 rows, counts `(48,)` with `total_count` flips each; "pooled": one row of totals;
            "sequence": 350,757 single flips of zeros and ones in an order that the seed draws.
        seed: orders the sequence. The published table has counts only, so any order is as good as another to
            exchangeable flips.

    Returns:
        Data with float64 tensors, `observed` in flips (1 stands for "same side").
    """
    text = resources.files(__package__).joinpath("coin_flips.csv").read_text(encoding="utf-8")
    table = list(csv.DictReader(text.splitlines()))
    same_side = torch.tensor([float(row["same_side"]) for row in table], dtype=torch.float64)
    flips = torch.tensor([float(row["flips"]) for row in table], dtype=torch.float64)
    metadata: dict[str, Any] = {
        "name": "coin_flips",
        "origin": COIN_FLIPS_CITATION,
        "licence": "published figures, to be cited",
        "target_name": "same_side",
    }
    if form == "persons":
        return Data(
            inputs={"total_count": flips},
            observed=same_side,
            labels=tuple(row["person"] for row in table),
            observation_dim="person",
            note="48 people; flips that landed on the side they started on, out of total_count",
            **metadata,
        )
    if form == "pooled":
        return Data(
            inputs={"total_count": flips.sum(0, keepdim=True)},
            observed=same_side.sum(0, keepdim=True),
            labels=("all",),
            observation_dim="group",
            note="the flips of all 48 people together",
            **metadata,
        )
    if form == "sequence":
        order = torch.randperm(int(flips.sum()), generator=seeded_generator(seed))
        return Data(
            inputs={},
            observed=(order < int(same_side.sum())).to(torch.float64),
            observation_dim="flip",
            note=f"a permutation drawn with seed {seed}: the published table has counts, no order of the flips",
            **metadata,
        )
    raise ValueError(f"form must be 'persons', 'pooled' or 'sequence', not {form!r}; choose one")


def diabetes(standardize: Standardize = True) -> Data:
    """Disease progression of 442 people one year after ten baseline measurements, in raw units.

    Args:
        standardize: True for inputs and target, "inputs" for the inputs only, False for raw units (age in
            years, body mass index in kg/m^2, blood pressure in mmHg, blood serum values).

    Returns:
        Data with float64 tensors, `x` of shape `(442, 10)` and the progression score of shape `(442,)`.
    """
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    return from_arrays(
        bunch.data,
        bunch.target,
        feature_names=bunch.feature_names,
        target_name="progression",
        standardize=standardize,
        name="diabetes",
        origin="B. Efron, T. Hastie, I. Johnstone, R. Tibshirani (2004), Least Angle Regression, Annals "
        "of Statistics 32(2), 407-499; shipped with scikit-learn",
        licence="BSD-3-Clause (scikit-learn)",
        note="age in years, bmi in kg/m^2, bp (blood pressure) in mmHg, s1 to s6 blood serum; sex is 1 or 2",
    )


def digits() -> Data:
    """Handwritten digits, 1,797 pictures of 8 x 8 pixels.

    Returns:
        Data with `x` of shape `(1797, 64)`, float32 in [0, 1], and the digit of shape `(1797,)`, int64.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # Pixels count the dark cells of a 4 x 4 block: 0 to 16.
    pixels = torch.from_numpy((bunch.data / 16.0).astype(np.float32))
    return Data(
        inputs={"x": pixels},
        observed=torch.from_numpy(bunch.target.astype(np.int64)),
        name="digits",
        origin="E. Alpaydin, C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine "
        "Learning Repository; shipped with scikit-learn",
        licence="CC BY 4.0",
        note="64 grey values of an 8 x 8 picture, row by row, divided by 16",
        feature_names=tuple(f"pixel_{row}_{column}" for row in range(8) for column in range(8)),
        target_name="digit",
        num_classes=10,
        class_names=tuple(map(str, range(10))),
    )


_CATALOG: dict[str, tuple[Callable[..., Data], str]] = {
    "coin_flips": (
        coin_flips,
        "350,757 real coin flips of 48 people (form='persons', 'pooled' or 'sequence')",
    ),
    "diabetes": (diabetes, "disease progression of 442 people from ten measurements (regression)"),
    "digits": (digits, "1,797 handwritten digits of 8 x 8 pixels in ten classes"),
    "mnist": (
        mnist,
        "70,000 handwritten digits of 28 x 28 pixels (split='train' or 'test'), from BAYESZOO_DATA or torchvision",
    ),
    "fashion_mnist": (
        fashion_mnist,
        "70,000 pictures of clothes of 28 x 28 pixels (split='train' or 'test'), from BAYESZOO_DATA, Debian or torchvision",
    ),
}


def available() -> dict[str, str]:
    """Returns the names that `load` knows, each with a line about the data."""
    return {name: line for name, (_, line) in _CATALOG.items()}


def load(name: str, **options: Any) -> Data:
    """Loads a data set by name.

    Args:
        name: one of `available()`.
        **options: those of the data set, such as `form="pooled"` for `coin_flips`.

    Raises:
        ValueError: for an unknown name or option, with the nearest ones.
        FileNotFoundError: for images whose files are nowhere: which folders were looked at, and what to do.
    """
    if name not in _CATALOG:
        raise ValueError(
            f"there is no data set {name!r}; {nearest(str(name), _CATALOG)}there are "
            f"{', '.join(_CATALOG)}; for a file use bz.data.from_csv or bz.data.from_idx"
        )
    loader = _CATALOG[name][0]
    known = list(inspect.signature(loader).parameters)
    for option in options:
        if option not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"data set {name!r} has no option {option!r}; {nearest(option, known)}{has}; leave it out")
    return loader(**options)
