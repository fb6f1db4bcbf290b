"""The columns of a table as the model sees them, kept so that new raw rows are encoded in the same way.

A text column with levels a, b, c becomes the columns `name=b` and `name=c` of zeros and ones. The first level
has no
column: with an intercept in the model a full set would be collinear, so a coefficient reads "b instead of a".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .checks import check_finite, nearest, to_tensor
from .columns import codes, numbers
from .scaler import Scaler


def as_frame(rows: Any) -> pd.DataFrame:
    """Returns a frame with text names, of a frame or of a mapping from names to lists (or to scalars)."""
    if isinstance(rows, Mapping):
        columns = {str(k): v.detach().cpu().numpy() if isinstance(v, Tensor) else v for k, v in rows.items()}
        if all(np.ndim(v) == 0 for v in columns.values()):
            columns = {k: [v] for k, v in columns.items()}
        try:
            rows = pd.DataFrame(columns)
        except ValueError:
            sizes = ", ".join(f"{k} {np.size(v)}" for k, v in columns.items())
            raise ValueError(
                f"the columns of a table must be equally long lists, but they have lengths {sizes}; "
                "give every column one value for each row"
            ) from None
    if not isinstance(rows, pd.DataFrame):
        raise ValueError(
            f"a table must be a pandas DataFrame or a mapping from column names to lists, not a "
            f"{type(rows).__name__}; convert it, or use bz.data.from_arrays for arrays"
        )
    names = [str(c) for c in rows.columns]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the table has two columns named {name!r}; rename one of them")
    return rows.set_axis(names, axis=1)


@dataclass(frozen=True)
class Column:
    """A raw column: a number, or text with the listed levels."""

    name: str
    levels: tuple[str, ...] = ()

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the columns that the model sees: all levels but the first for text."""
        return tuple(f"{self.name}={level}" for level in self.levels[1:]) or (self.name,)


@dataclass(frozen=True)
class Schema:
    """The raw input columns in order, and the name of the dtype they are encoded to, such as "float64"."""

    columns: tuple[Column, ...]
    dtype: str = "float64"

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the D encoded columns."""
        return tuple(feature for column in self.columns for feature in column.features)

    def encode(self, rows: Any, scaler: Scaler | None = None) -> dict[str, Tensor]:
        """Encodes raw rows as the table that this schema came from was encoded.

        Args:
            rows: a data frame, a mapping from column names to values, or, where all columns are numbers, an
                array of shape `(N, D)`. Columns that the schema does not know are ignored.
            scaler: standardises the encoded columns, if given.

        Returns:
            `{"x": tensor}`, shape `(N, D)`.

        Raises:
            ValueError: for a missing column, an unknown category, text, or a value that is missing or
                infinite.
        """
        dtype = getattr(torch, self.dtype)
        if isinstance(rows, np.ndarray | Tensor):
            x = self._from_array(to_tensor("the array of new rows", rows)).to(dtype)
        else:
            x = self._from_frame(as_frame(rows)).to(dtype)
        check_finite("the table", x, self.feature_names)
        return {"x": x if scaler is None else scaler.transform_inputs(x)}

    def _from_array(self, rows: Tensor) -> Tensor:
        texts = [column.name for column in self.columns if column.levels]
        if texts:
            raise ValueError(
                f"column {texts[0]!r} holds text, so the new rows must be a data frame or a mapping with "
                "column names, not an array"
            )
        if rows.ndim != 2 or rows.shape[1] != len(self.columns):
            names = ", ".join(column.name for column in self.columns)
            raise ValueError(
                f"the new rows have shape {tuple(rows.shape)}, but (N, {len(self.columns)}) is needed, "
                f"with the columns {names}; give one column for each"
            )
        return rows

    def _from_frame(self, frame: pd.DataFrame) -> Tensor:
        if len(frame) == 0:
            raise ValueError("the table has no rows, but at least one is needed; give one or more")
        blocks = []
        for column in self.columns:
            if column.name not in frame.columns:
                raise ValueError(
                    f"the table has no column {column.name!r}; {nearest(column.name, frame.columns)}it needs "
                    f"{', '.join(c.name for c in self.columns)}; add the missing column"
                )
            cells = frame[column.name]
            if column.levels:
                level = codes(column.name, cells, column.levels)[:, None]
                blocks.append((level == np.arange(1, len(column.levels))).astype(np.float64))
            else:
                blocks.append(numbers(column.name, cells).astype(np.float64)[:, None])
        return torch.from_numpy(np.concatenate(blocks, axis=1))

    def to_dict(self) -> dict[str, Any]:
        """Returns lists and text only, ready for JSON."""
        columns = [{"name": column.name, "levels": list(column.levels)} for column in self.columns]
        return {"columns": columns, "dtype": self.dtype}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Self:
        """Makes the schema that `to_dict` described."""
        columns = tuple(Column(c["name"], tuple(c["levels"])) for c in state["columns"])
        return cls(columns, state["dtype"])
