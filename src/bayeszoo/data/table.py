"""Data sets from a CSV file, a data frame or arrays: one row an observation, one column an input.

The inputs become one tensor `x`, shape `(N, D)`, and the target the observed tensor, shape `(N,)`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .checks import nearest, texts, to_tensor
from .columns import codes, is_text, numbers, refuse_text, text_levels
from .dataset import Data, apply_scaler
from .scaler import Scaler, is_zero_one
from .schema import Column, Schema, as_frame

type Standardize = bool | Literal["inputs"]
type Categories = Literal["one_hot"] | None


def from_csv(
    path: str | Path,
    target: str,
    *,
    features: Sequence[str] | None = None,
    standardize: Standardize = False,
    categories: Categories = None,
    dtype: torch.dtype = torch.float64,
    name: str | None = None,
) -> Data:
    """Reads a comma-separated file with a header line.

    Args:
        path: the file, UTF-8.
        target: name of the column to predict.
        features: names of the input columns; by default all others.
        standardize: True gives inputs and target mean 0 and sd 1, "inputs" the inputs only. Columns and
            targets of zeros and ones stay as they are, and so do class labels: a text target, or an integer
            one whose codes 0..K-1 each occur at least twice. The scale stands in `data.scaler`.
        categories: "one_hot" turns text columns into columns of zeros and ones, one for each level but the
            first (in alphabetical order), and a text target into class numbers with `data.class_names`.
            Without it text is refused.
        dtype: floating dtype of the inputs and of a target that is not made of integers.
        name: name of the data set; by default the file's.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: one sentence that names the column and the data row (counted from 1).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}; give the path of a CSV file with a header line")
    try:
        with warnings.catch_warnings():
            # With index_col=False pandas warns where rows are longer than the header line, and drops cells.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(path, encoding="utf-8-sig", skipinitialspace=True, low_memory=False, index_col=False)
    except pd.errors.ParserWarning:
        raise ValueError(f"the rows of {path.name} have more cells than its header line has names; name every column") from None
    except pd.errors.EmptyDataError:
        raise ValueError(f"{path.name} is empty; give a CSV file with a header line and at least one row") from None
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[-1].removeprefix("Error tokenizing data. C error: ")
        raise ValueError(
            f"{path.name} is not a readable CSV file ({reason}); save it as UTF-8 text with commas between the columns"
        ) from None
    frame.columns = [str(c).strip() for c in frame.columns]
    return from_frame(
        frame,
        target,
        features=features,
        standardize=standardize,
        categories=categories,
        dtype=dtype,
        name=name or path.stem,
        origin=path.name,
    )


def from_frame(
    frame: Any,
    target: str,
    *,
    features: Sequence[str] | None = None,
    standardize: Standardize = False,
    categories: Categories = None,
    dtype: torch.dtype = torch.float64,
    name: str = "table",
    origin: str = "",
    licence: str = "",
    note: str = "",
) -> Data:
    """Makes a data set of a pandas DataFrame or a mapping from column names to lists.

    Args:
        frame: the table, one row an observation.
        target: name of the column to predict.
        features: names of the input columns; by default all others.
        standardize: as in `from_csv`.
        categories: as in `from_csv`; the levels of a pandas categorical column keep their declared order.
        dtype: floating dtype of the inputs and of a target that is not made of integers.
        name: name of the data set.
        origin: where it comes from.
        licence: its licence.
        note: anything a reader should know.

    Raises:
        ValueError: one sentence that names the column and the row (counted from 1).
    """
    _check_options(standardize, categories, dtype)
    frame = as_frame(frame)
    known = list(frame.columns)
    if isinstance(features, str):
        raise ValueError(f"features must be a list of column names, not the text {features!r}; write [{features!r}]")
    names = [c for c in known if c != target] if features is None else list(features)
    for column in (target, *names):
        if column not in known:
            raise ValueError(
                f"the table has no column {column!r}; {nearest(str(column), known)}it has "
                f"{', '.join(known)}; choose target and features among them"
            )
    if target in names:
        raise ValueError(f"column {target!r} is both the target and a feature; leave it out of features")
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"the features {names} must be at least one column, each once; give features=[...] with other columns")
    if len(frame) == 0:
        raise ValueError("the table has no rows, but at least one is needed; give a table with observations")
    columns = []
    for column in names:
        text = is_text(column, frame[column])
        if text and categories is None:
            refuse_text(column, frame[column])
        columns.append(Column(column, text_levels(column, frame[column]) if text else ()))
    schema = Schema(tuple(columns), str(dtype).removeprefix("torch."))
    y, class_names = _target(target, frame[target], categories, dtype)
    return _assemble(
        schema.encode(frame)["x"],
        y,
        standardize,
        schema=schema,
        feature_names=schema.feature_names,
        target_name=target,
        class_names=class_names,
        name=name,
        origin=origin,
        licence=licence,
        note=note,
    )


def from_arrays(
    X: Any,
    y: Any,
    *,
    feature_names: Sequence[str] | None = None,
    target_name: str = "y",
    standardize: Standardize = False,
    dtype: torch.dtype | None = None,
    name: str = "arrays",
    origin: str = "",
    licence: str = "",
    note: str = "",
) -> Data:
    """Makes a data set of two numpy arrays or torch tensors.

    Args:
        X: inputs, shape `(N, D)`, or `(N, ...)` without standardisation and feature names.
        y: target, shape `(N,)` or `(N, K)` with K > 1. Integers stay int64 unless they are standardised.
        feature_names: names of the D columns; by default x1, ..., xD.
        target_name: name of the target.
        standardize: as in `from_csv`.
        dtype: floating dtype of inputs and target; by default X's where it is floating, else float64.
        name: name of the data set.
        origin: where it comes from.
        licence: its licence.
        note: anything a reader should know.

    Raises:
        ValueError: one sentence, for wrong shapes or dtypes and for NaN or Inf, naming column and row.
    """
    x, y = to_tensor("X", X), to_tensor("y", y)
    if dtype is None:
        dtype = x.dtype if x.is_floating_point() else torch.float64
    _check_options(standardize, None, dtype)
    if x.ndim < 2:
        raise ValueError(f"X has shape {tuple(x.shape)}, but (N, D) is needed; write X[:, None] for a single column")
    if y.ndim == 0 or (y.ndim == 2 and y.shape[1] == 1):
        raise ValueError(
            f"y has shape {tuple(y.shape)}, but (N,) is needed (a column would broadcast against rows); write y.reshape(-1)"
        )
    if x.ndim > 2 and (standardize or feature_names is not None):
        raise ValueError(
            f"X has shape {tuple(x.shape)}, but standardize and feature_names need a table of shape (N, D); "
            "flatten it or leave them out"
        )
    schema, names = None, tuple(f"x{j + 1}" for j in range(x.shape[1]) if x.ndim == 2)
    if x.ndim == 2:
        names = names if feature_names is None else texts("feature_names", feature_names)
        schema = Schema(tuple(Column(n) for n in names), str(dtype).removeprefix("torch."))
    if y.is_floating_point() or y.dtype == torch.bool:
        y = y.to(dtype)
    elif y.dtype != torch.int64:
        y = y.long()
    return _assemble(
        x.to(dtype),
        y,
        standardize,
        schema=schema,
        feature_names=names,
        target_name=target_name,
        name=name,
        origin=origin,
        licence=licence,
        note=note,
    )


def _check_options(standardize: object, categories: object, dtype: torch.dtype) -> None:
    if standardize not in (True, False, "inputs"):
        raise ValueError(f"standardize must be True, False or 'inputs', not {standardize!r}; choose one")
    if categories not in (None, "one_hot"):
        raise ValueError(f"categories must be None or 'one_hot', not {categories!r}; choose one")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating dtype such as torch.float64, not {dtype}; choose one")


def _target(name: str, column: pd.Series, categories: Categories, dtype: torch.dtype) -> tuple[Tensor, tuple[str, ...]]:
    """Returns the target, shape `(N,)`, and its class names (empty unless it is text or boolean)."""
    if is_text(name, column):
        if categories is None:
            raise ValueError(
                f"target {name!r} holds text ({str(column.iloc[0])!r} in row 1, data rows counted from "
                "1), but numbers are needed; give categories='one_hot' to turn it into class labels"
            )
        levels = text_levels(name, column)
        return torch.from_numpy(codes(name, column, levels)), levels
    values = numbers(name, column)
    if values.dtype == np.bool_:
        return to_tensor(name, values).to(dtype), ("False", "True")
    tensor = to_tensor(name, values)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor, ()


def _num_classes(y: Tensor) -> int | None:
    """Returns K for a target of class labels, by the rule in `from_csv`, else None."""
    if y.ndim != 1 or is_zero_one(y):
        return 2 if y.ndim == 1 else None
    if y.is_floating_point() or int(y.min()) != 0 or int(y.max()) >= len(y):
        return None
    counts = torch.bincount(y)
    return len(counts) if len(counts) > 1 and int(counts.min()) >= 2 else None


def _assemble(x: Tensor, y: Tensor, standardize: Standardize, *, class_names: tuple[str, ...] = (), **metadata: Any) -> Data:
    """Validates the raw table first, so that NaN is named by row, and then scales it."""
    data = Data(inputs={"x": x}, observed=y, class_names=class_names, **metadata)
    data = replace(data, num_classes=len(class_names) or _num_classes(y))
    if not standardize:
        return data
    target = y if standardize != "inputs" and data.num_classes is None else None
    names = data.feature_names
    return apply_scaler(data, Scaler.fit(x, target, feature_names=names, target_name=data.target_name))
