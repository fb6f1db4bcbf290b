"""One column of a table: is it a number or text, and is every row of it usable?

Refusals name the column and the first offending row, counted from 1 like the data rows of a file.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def refuse_missing(name: str, column: pd.Series) -> None:
    """Refuses a column with an empty, NaN or NA cell."""
    missing = column.isna().to_numpy()
    if missing.any():
        raise ValueError(
            f"column {name!r} has no value in row {int(missing.argmax()) + 1} (data rows count from 1), "
            "but every row needs one; fill it in or remove the row"
        )


def _parsed(column: pd.Series) -> NDArray[np.float64]:
    """Returns the column's cells as numbers, NaN where a cell is not one."""
    return pd.to_numeric(column.astype(str), errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)


def is_text(name: str, column: pd.Series) -> bool:
    """Whether the column holds text (or is declared categorical); refuses dates and mixtures.

    Raises:
        ValueError: for missing cells, dates, complex numbers, and text among numbers.
    """
    refuse_missing(name, column)
    kind = column.dtype
    if isinstance(kind, pd.CategoricalDtype):
        return True
    if pd.api.types.is_bool_dtype(kind):
        return False
    if pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_complex_dtype(kind):
        return False
    if not (pd.api.types.is_string_dtype(kind) or pd.api.types.is_object_dtype(kind)):
        raise ValueError(
            f"column {name!r} has dtype {kind}, but numbers or text are needed; turn it into a number "
            "first, such as the days since a first date"
        )
    if all(isinstance(cell, bool | np.bool_) for cell in column):
        return False
    numeric = ~np.isnan(_parsed(column))
    if numeric.any() and not numeric.all():
        row = int(numeric.argmin())
        raise ValueError(
            f"column {name!r} has text among its numbers: {column.iloc[row]!r} in row {row + 1} (data "
            "rows count from 1); correct that cell, or leave the column out with features=[...]"
        )
    return not bool(numeric.all())


def refuse_text(name: str, column: pd.Series) -> None:
    """Refuses a text column, showing its first row."""
    raise ValueError(
        f"column {name!r} holds text ({str(column.iloc[0])!r} in row 1, data rows counted from 1), but "
        "numbers are needed; give categories='one_hot', or leave the column out with features=[...]"
    )


def numbers(name: str, column: pd.Series) -> NDArray[np.generic]:
    """Returns a column of numbers as an array: bool, int64 or float64.

    Raises:
        ValueError: naming column and row, for missing cells, text, dates and infinite values.
    """
    if is_text(name, column):
        refuse_text(name, column)
    if column.dtype == object or pd.api.types.is_string_dtype(column.dtype):
        # Python objects and numbers written as text; booleans among objects stay booleans.
        boolean = all(isinstance(cell, bool | np.bool_) for cell in column)
        column = column.astype(bool) if boolean else pd.to_numeric(column.astype(str))
    if pd.api.types.is_bool_dtype(column.dtype):
        return column.to_numpy(dtype=np.bool_)
    if pd.api.types.is_integer_dtype(column.dtype):
        return column.to_numpy(dtype=np.int64)
    values = column.to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        row = int(np.isfinite(values).argmin())
        raise ValueError(
            f"column {name!r} holds {values[row]} in row {row + 1} (data rows count from 1), but every "
            "value must be finite; correct or remove that row"
        )
    return values


def text_levels(name: str, column: pd.Series) -> tuple[str, ...]:
    """Returns the levels that occur in a text column: in declared order if categorical, else sorted.

    Raises:
        ValueError: if there is only one.
    """
    if isinstance(column.dtype, pd.CategoricalDtype):
        present = set(column.astype(str))
        levels = tuple(level for level in map(str, column.cat.categories) if level in present)
    else:
        levels = tuple(sorted(set(column.astype(str))))
    if len(levels) < 2:
        raise ValueError(
            f"column {name!r} holds {levels[0]!r} in every row, and one level says nothing; leave the "
            "column out with features=[...]"
        )
    return levels


def codes(name: str, column: pd.Series, levels: tuple[str, ...]) -> NDArray[np.int64]:
    """Returns each row's position in `levels`, shape `(N,)`.

    Raises:
        ValueError: naming column and row, for missing cells and for a level that is not listed.
    """
    refuse_missing(name, column)
    place = {level: k for k, level in enumerate(levels)}
    found = np.array([place.get(str(cell), -1) for cell in column], dtype=np.int64)
    if (found < 0).any():
        row = int((found < 0).argmax())
        shown = ", ".join(levels[:8]) + (", ..." if len(levels) > 8 else "")
        raise ValueError(
            f"column {name!r} holds the unknown category {str(column.iloc[row])!r} in row {row + 1} (data "
            f"rows count from 1), but only {shown} were there when the table was first encoded; correct or "
            "remove it"
        )
    return found
