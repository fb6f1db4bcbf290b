"""Data sets made of a `torch.utils.data.Dataset`: in memory where they fit, else fetched row by row.

An item is `(x, y)`, a tensor alone (observed: an unsupervised model), or a dict of tensors by the model's
parameter names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from . import binding
from .binding import Model
from .checks import check_finite, to_tensor
from .dataset import Data, move_tensor
from .frozen import FrozenDict
from .sampling import batch_indices, split_indices
from .scaler import Scaler
from .schema import Schema

type Observed = Tensor | dict[str, Tensor]

# Leaves room for a model and its gradients on a machine with 8 GB.
IN_MEMORY_LIMIT_BYTES = 2 * 1024**3


def from_dataset(
    dataset: Any,
    *,
    target: str | Sequence[str] | None = None,
    constants: Mapping[str, Any] | None = None,
    in_memory_limit_bytes: int = IN_MEMORY_LIMIT_BYTES,
    name: str = "dataset",
    origin: str = "",
    licence: str = "",
    note: str = "",
    num_classes: int | None = None,
) -> Data | StreamedData:
    """Makes a data set of a map-style dataset.

    Below the limit all items are stacked once (a random transform is thereby drawn once); above it the result
    fetches the rows of each batch. Python integers become int64, Python floats torch's default dtype.

    Args:
        dataset: has `len()` and `[i]`; all items have the same shapes. Items are `(x, y)`, a tensor, or a
            dict.
        target: for dict items, the key (or keys) of the observed values.
        constants: values passed to every call of the model.
        in_memory_limit_bytes: the largest total size, judged by the first item, that is stacked.
        name: name of the data set.
        origin: where it comes from.
        licence: its licence.
        note: anything a reader should know.
        num_classes: number of classes, for class labels.

    Raises:
        ValueError: one sentence, for a dataset without length or rows and for items of other kinds or shapes.
    """
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise ValueError(
            f"the dataset is a {type(dataset).__name__}, but one with len() and [i] is needed, because a "
            "fit must know how many rows there are; use a map-style dataset"
        )
    if len(dataset) == 0:
        raise ValueError("the dataset has no rows, but at least one is needed; give one with observations")
    reader = _Reader(dataset, (target,) if isinstance(target, str) else tuple(target or ()))
    inputs, observed = reader.fetch([0])
    first = Data(inputs=inputs, observed=observed, constants=constants or {})
    size = first.nbytes * len(dataset)
    metadata: dict[str, Any] = {"name": name, "origin": origin, "licence": licence, "note": note}
    metadata["num_classes"] = num_classes
    if size <= in_memory_limit_bytes:
        inputs, observed = reader.fetch(range(len(dataset)))
        return Data(inputs=inputs, observed=observed, constants=first.constants, **metadata)
    return StreamedData(dataset, target=reader.target, constants=first.constants, **metadata)


@dataclass(frozen=True, eq=False, repr=False)
class StreamedData:
    """A data set too large for memory: the calls of `Data` that need some rows only.

    `batch`, `batches`, `select`, `split`, `to` and `len` are those of `Data`; what needs all rows at once
    says so.

    Attributes:
        dataset: has `len()` and `[i]`.
        target: for dict items, the keys of the observed values.
        constants: values passed to every call of the model.
        rows: which items of the dataset these are; None for all.
        to_device: where batches are put.
        to_dtype: what their floating tensors are cast to; None keeps the items' own.
    """

    dataset: Any
    _: KW_ONLY
    target: tuple[str, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[int, ...] | None = None
    to_device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    to_dtype: torch.dtype | None = None
    name: str = "dataset"
    origin: str = ""
    licence: str = ""
    note: str = ""
    num_classes: int | None = None
    observation_dim: str = "observation"

    streamed: ClassVar = True
    feature_names: ClassVar[tuple[str, ...]] = ()
    target_name: ClassVar = ""
    labels: ClassVar[tuple[str, ...]] = ()
    scaler: ClassVar[Scaler | None] = None
    schema: ClassVar[Schema | None] = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "constants", FrozenDict(self.constants))

    def __len__(self) -> int:
        return len(self.dataset) if self.rows is None else len(self.rows)

    def __repr__(self) -> str:
        size = f"{self.nbytes / 1e6:,.0f} MB"
        return f"StreamedData({self.name}: {len(self)} {self.observation_dim}s, {size}, fetched by batch)"

    @property
    def nbytes(self) -> int:
        """Size that all rows would have in memory, in bytes."""
        return self.select([0]).nbytes * len(self)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first floating tensor of a row; torch's default if there is none."""
        return self.select([0]).dtype

    @property
    def device(self) -> torch.device:
        """Where batches are put."""
        return self.to_device

    @property
    def dim(self) -> int:
        """Size of the last dimension of `inputs["x"]`."""
        return self.select([0]).dim

    def _refuse(self, what: str) -> NoReturn:
        raise ValueError(
            f"{what} needs all {len(self)} rows of {self.name} in memory, but they are streamed; give "
            "batch_size=..., take some rows with data.select(...), or raise in_memory_limit_bytes of "
            "from_dataset"
        )

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        """Refused: the full inputs are not in memory."""
        self._refuse("inputs")

    @property
    def observed(self) -> Tensor | Mapping[str, Tensor]:
        """Refused: the full observed values are not in memory."""
        self._refuse("observed")

    def observed_dict(self, model: Model) -> dict[str, Tensor]:
        """Refused: the full observed values are not in memory."""
        self._refuse("observed_dict")

    def bind(self, model: Model, observed: bool = True) -> dict[str, Any]:
        """Refused: a call with all rows needs them in memory."""
        self._refuse("bind")

    def select(self, rows: Tensor | Sequence[int] | slice) -> Data:
        """Returns the data set of some rows, in memory; shape, dtype and finiteness are checked."""
        n = len(self)
        index = torch.arange(n)[rows] if isinstance(rows, slice) else torch.as_tensor(rows)
        numbers = [int(i) for i in index.tolist()]
        if index.ndim != 1 or not numbers or not 0 <= min(numbers) <= max(numbers) < n:
            raise ValueError(f"rows must be a slice or a list of row numbers between 0 and {n - 1}; give at least one")
        items = numbers if self.rows is None else [self.rows[i] for i in numbers]
        inputs, observed = _Reader(self.dataset, self.target).fetch(items)
        data = Data(
            inputs=inputs,
            observed=observed,
            constants=self.constants,
            name=self.name,
            origin=self.origin,
            licence=self.licence,
            note=self.note,
            num_classes=self.num_classes,
            observation_dim=self.observation_dim,
        )
        return data.to(self.to_device, self.to_dtype)

    def batch(self, index: Tensor, model: Model) -> dict[str, Any]:
        """Returns the keyword arguments for the rows `index`, shape `(B,)`, as `Data.batch` does."""
        part = self.select(index)
        values = {**part.inputs, **part.observed_dict(model), **part.constants}
        return binding.bind(model, values, num_data=len(self), index=index.to(self.to_device))

    def batches(self, batch_size: int, seed: int, epoch: int) -> Iterator[Tensor]:
        """Yields row numbers, shape `(batch_size,)`, as `Data.batches` does."""
        return iter(self.epoch(batch_size, seed, epoch))

    def epoch(self, batch_size: int, seed: int, epoch: int) -> Tensor:
        """Returns all batches of an epoch at once, row numbers `(steps, batch_size)`, as `Data.epoch` does."""
        return batch_indices(len(self), batch_size, seed, epoch, self.to_device)

    def split(self, fraction: float, seed: int) -> tuple[StreamedData, StreamedData]:
        """Returns a random part of `round(fraction * N)` rows and the others, both streamed."""
        rows = range(len(self)) if self.rows is None else self.rows
        first, second = split_indices(len(self), fraction, seed)
        return (
            replace(self, rows=tuple(rows[i] for i in first.tolist())),
            replace(self, rows=tuple(rows[i] for i in second.tolist())),
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> StreamedData:
        """Returns the data set with batches on another device or with another floating dtype."""
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating dtype such as torch.float64, not {dtype}; choose one")
        there = move_tensor(torch.empty(0), device, None).device if device is not None else self.to_device
        return replace(self, to_device=there, to_dtype=dtype or self.to_dtype)


@dataclass(frozen=True)
class _Reader:
    """Stacks items of a dataset."""

    dataset: Any
    target: tuple[str, ...]

    def fetch(self, items: Sequence[int]) -> tuple[dict[str, Tensor], Observed]:
        """Returns inputs and observed values of some items, stacked in dimension 0."""
        # Filled in place, because a list of all items besides their stack would take twice the memory.
        stacks: dict[str, Tensor] = {}
        for place, i in enumerate(items):
            for key, value in self._item(i).items():
                if place == 0:
                    stacks[key] = torch.empty((len(items), *value.shape), dtype=value.dtype, device=value.device)
                stack = stacks.get(key)
                if stack is None or stack.shape[1:] != value.shape or stack.dtype != value.dtype:
                    raise ValueError(
                        f"item {i + 1} of the dataset (counted from 1) holds {key or 'a tensor'} of shape "
                        f"{tuple(value.shape)} and {value.dtype}, unlike the first; all items must be alike"
                    )
                stack[place] = value
        for key, stack in stacks.items():
            check_finite(f"{key!r}" if key else "the dataset", stack, rows=items)
        if self.target:
            observed = {key: stacks.pop(key) for key in self.target}
            return stacks, observed
        return {key: stack for key, stack in stacks.items() if key}, stacks[""]

    def _item(self, i: int) -> dict[str, Tensor]:
        """Returns one item by name; "" stands for a bare observed value."""
        item = self.dataset[i]
        if isinstance(item, Mapping):
            missing = [key for key in self.target if key not in item]
            if not self.target or missing:
                raise ValueError(
                    f"the dataset's items have the keys {', '.join(map(str, item))}; name those of the "
                    "observed values among them with target=..."
                )
            return {str(key): _tensor(f"{key!r} of item {i + 1}", value) for key, value in item.items()}
        parts = list(item) if isinstance(item, tuple | list) else [item]
        if self.target or not 1 <= len(parts) <= 2:
            raise ValueError(
                f"the dataset's items are {type(item).__name__}s of {len(parts)}, but (x, y), a tensor, "
                "or a dict with target=... is needed; wrap the dataset into one that gives these"
            )
        names = ("x", "")[-len(parts) :]
        return {k: _tensor(f"item {i + 1}", value) for k, value in zip(names, parts, strict=True)}


def _tensor(label: str, value: Any) -> Tensor:
    """Converts a value of an item; pictures need a transform of the user's."""
    if isinstance(value, bool | int | float):
        return torch.tensor(value)
    if type(value).__module__.startswith("PIL"):
        raise ValueError(f"{label} is a picture, but a tensor is needed; give the dataset transform=ToTensor()")
    return to_tensor(label, value)
