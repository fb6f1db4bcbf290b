"""What a tensor must be before it enters a data set: dense, real, finite, with rows in dimension 0.

Every refusal is one sentence that names the column and the row. Rows count from 1, like the data rows of a
file.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Parameters that the data set passes itself; no input, observed value or constant may use these names.
RESERVED = ("num_data", "index")

# numpy kinds that torch can hold: boolean, integer, unsigned integer, floating.
_REAL_KINDS = "biuf"
_WIDE_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns "did you mean 'a' or 'b'? " for the known names closest to `name`, else an empty text."""
    folded = {k.casefold(): k for k in known}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(repr(folded[c]) for c in close)}? " if close else ""


def to_tensor(label: str, value: Any) -> Tensor:
    """Converts a numpy array (copied) or a tensor (detached, not copied) to a dense real tensor.

    Args:
        label: how messages name the value, such as "input 'x'".
        value: a tensor or a numpy array of any shape. Unsigned 16- to 64-bit integers become int64.

    Raises:
        ValueError: for lists, data frames, and arrays of objects, text, dates or complex numbers.
    """
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in _REAL_KINDS:
            raise ValueError(
                f"{label} has dtype {value.dtype}, but numbers are needed; convert it with .astype(float), "
                "or give a table with text columns to bz.data.from_frame"
            )
        if value.dtype.kind == "u" and value.dtype.itemsize > 1:
            value = value.astype(np.int64)
        if value.dtype.kind == "f" and value.dtype.itemsize > 8:
            value = value.astype(np.float64)
        # A copy in native byte order and positive strides, so that later changes to the array stay outside.
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{label} is a {type(value).__name__}, but a torch tensor or a numpy array is needed; "
            "convert it with torch.as_tensor(...), or use bz.data.from_frame for a table"
        )
    if value.layout != torch.strided:
        raise ValueError(f"{label} is a sparse tensor, but a dense one is needed; call .to_dense() on it")
    if value.is_complex():
        raise ValueError(f"{label} has dtype {value.dtype}, but real numbers are needed; give its .real and .imag parts")
    value = value.detach()
    return value.long() if value.dtype in _WIDE_UNSIGNED else value


def check_rows(label: str, tensor: Tensor) -> None:
    """Refuses a tensor without a first dimension that counts at least one observation."""
    if tensor.ndim == 0:
        raise ValueError(
            f"{label} is a single number, but its dimension 0 must count the observations; "
            "give a tensor of shape (N, ...), or put it into constants={...}"
        )
    if tensor.numel() == 0:
        raise ValueError(f"{label} is empty: its shape is {tuple(tensor.shape)}, but at least one value is needed")


def check_finite(label: str, tensor: Tensor, columns: Sequence[str] = (), rows: Sequence[int] | None = None) -> None:
    """Refuses NaN and Inf, naming the column and the row of the first one.

    Args:
        label: how the message names the tensor, such as "input 'x'".
        tensor: shape `(N, ...)`.
        columns: names of the D columns of a tensor of shape `(N, D)`.
        rows: the row number, from 0, of each of the N rows where they are not 0, 1, 2, ...
    """
    if not tensor.is_floating_point():
        return
    bad = ~torch.isfinite(tensor)
    if not bool(bad.any()):
        return
    where = [int(i) for i in bad.nonzero()[0]]
    value = float(tensor[tuple(where)])
    shown = "NaN" if value != value else "Inf" if value > 0 else "-Inf"
    place = label
    if len(where) == 2:
        column = repr(columns[where[1]]) if columns else str(where[1] + 1)
        place = f"column {column} of {label}"
    elif len(where) > 2:
        place = f"element {tuple(where[1:])} of {label}"
    row = (where[0] if rows is None else rows[where[0]]) + 1
    raise ValueError(
        f"{place} holds {shown} in row {row} (rows count from 1), but every value must be finite; remove that row or fill it in"
    )


def check_keys(inputs: Mapping[str, Any], observed: Mapping[str, Any], constants: Mapping[str, Any]) -> None:
    """Refuses a name that stands in two of the three dicts or is passed by the data set itself."""
    if not observed:
        raise ValueError("observed is an empty dict, but a model needs something to explain; give a tensor")
    seen: dict[str, str] = {}
    for group, keys in (("inputs", inputs), ("observed", observed), ("constants", constants)):
        for key in keys:
            if key in seen:
                raise ValueError(
                    f"the name {key!r} stands in both {seen[key]} and {group}, but a model's parameter takes "
                    "one value; remove one of them"
                )
            if key in RESERVED:
                raise ValueError(
                    f"the name {key!r} in {group} is reserved, because the data set passes it to the model "
                    "by itself; rename or remove that entry"
                )
            seen[key] = group


def check_same_rows(tensors: Mapping[str, Tensor], columns: Mapping[str, Sequence[str]]) -> None:
    """Refuses tensors that are empty, not finite, or differ in length or device.

    Args:
        tensors: shape `(N, ...)` each, by the label that messages use.
        columns: column names of some of them, by the same label.
    """
    first, reference = next(iter(tensors.items()))
    for label, tensor in tensors.items():
        check_rows(label, tensor)
        if len(tensor) != len(reference):
            raise ValueError(
                f"{label} has {len(tensor)} rows, but {first} has {len(reference)}; dimension 0 of all "
                "inputs and observed tensors must count the same observations (or be constants)"
            )
        if tensor.device != reference.device:
            raise ValueError(f"{label} is on {tensor.device}, but {first} is on {reference.device}; move both to one device")
        # Names that do not fit the columns are refused later, once the tensors are known to be sound.
        names = columns.get(label, ())
        check_finite(label, tensor, names if tensor.shape[1:] == (len(names),) else ())


def texts(field_name: str, names: Any) -> tuple[str, ...]:
    """Returns a list of names as a tuple; refuses a single text."""
    if isinstance(names, str):
        raise ValueError(f"{field_name} must be a list of texts, not the text {names!r}; write [{names!r}]")
    return tuple(str(name) for name in names)


def named_values(field_name: str, value: Any) -> dict[str, Any]:
    """Returns a copy of a dict whose keys are text."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(
            f"{field_name} must be a dict whose keys are parameter names of the model, not "
            f"{type(value).__name__}; write {field_name}={{'x': ...}}"
        )
    return dict(value)
