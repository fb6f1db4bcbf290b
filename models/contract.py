"""How a model is called: what it asks of its data, and the plate that makes every loss the whole data set's.

    forward(<inputs>, <observed>=None, *, num_data=None, index=None)

A batch comes with `num_data`, the number of observations in all, and `index`, the rows that the batch holds;
the plate then scales the batch's log likelihood by num_data / len(index).
"""

from typing import Any, Protocol

import pyro
from torch import Tensor


class BoundData(Protocol):
    """A data set that knows which tensor is which parameter of the model (`bayeszoo.data.Data` is one)."""

    def bind(self, model: Any, observed: bool = True) -> dict[str, Any]:
        """Return the keyword arguments of the model's call."""
        ...


def data_plate(rows: int | None, num_data: int | None, index: Tensor | None) -> pyro.plate:
    """Return the plate "data" at dim -1.

    Args:
        rows: observations passed in this call; None where none are (a simulation without inputs).
        num_data: observations in the whole data set; None means that the rows are all of them.
        index: `(rows,)` positions of the rows in the whole data set; None means that the rows are all of
            them.

    Raises:
        ValueError: the three numbers contradict each other. Pyro would broadcast or scale wrongly without an
            error.
    """
    size = num_data or rows
    if size is None:
        raise ValueError("there is nothing to simulate: pass inputs, or num_data with the number of observations wanted")
    if index is not None:
        if num_data is None:
            raise ValueError("a batch with index needs num_data, the number of observations in the whole data set")
        if rows is not None and len(index) != rows:
            raise ValueError(f"index names {len(index)} rows but the batch holds {rows}; pass one position for each row")
    elif rows is not None and rows != size:
        raise ValueError(
            f"the call holds {rows} rows of a data set of {size}; pass index with their positions, so that they are scaled"
        )
    return pyro.plate("data", size, subsample=index, dim=-1)
