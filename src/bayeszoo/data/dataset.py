"""A data set in memory: what a model conditions on, by the names of the model's parameters.

`inputs` and `observed` share dimension 0, the N observations; `constants` are passed to the model as they are
and are never batched. Keys are parameter names of the model; a bare observed tensor goes to the first
parameter whose default is None. Everything is frozen: methods return new data sets. All fields after the
constants are metadata, which describe the data and change nothing in a model's call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import binding
from .binding import Model
from .checks import check_keys, check_same_rows, named_values, texts, to_tensor
from .frozen import FrozenDict
from .sampling import batch_indices, seeded_generator, split_indices, stream_batches
from .scaler import Scaler, wide_dtype
from .schema import Schema


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """Inputs, observed values and constants of one model, with what is known about them.

    Boolean observed values become floating, as Bernoulli likelihoods need; others keep their dtype.

    Attributes:
        inputs: tensors of shape `(N, ...)` that the model is conditioned on, by parameter name.
        observed: the values that the model explains, shape `(N, ...)`: one tensor, or several by name.
        constants: values passed to every call of the model.
        name: name of the data set.
        origin: where it comes from.
        licence: its licence.
        note: anything a reader should know.
        feature_names: names of the D columns of `inputs["x"]`.
        target_name: name of a bare observed tensor.
        labels: names of the N observations, such as persons.
        observation_dim: what an observation is, such as "person".
        scaler: the scale of standardised inputs and target, None for raw ones.
        schema: the columns of the table that it was made from, for `encode`.
        num_classes: number of classes of the target, None for other targets.
        class_names: names of the classes.
        truth: latent values that a simulation drew, by site name.
        local_sites: the sites in `truth` with one row for each observation.
        chances: by name of an observed tensor of zeros and ones, the chance of each one: every training step draws anew from them
            (see `binarized`), everything else sees the observed values.
        streams, stream_sizes: which stream (N,) a row belongs to, and how many rows of each stream are in a batch (see
            `in_streams`); None for batches of all rows alike.

    Raises:
        ValueError: one sentence, naming the column and the row (counted from 1), for NaN, Inf, empty tensors,
            different lengths, and what is neither a tensor nor a numpy array of real numbers.
    """

    inputs: Mapping[str, Tensor]
    observed: Tensor | Mapping[str, Tensor]
    constants: Mapping[str, Any] = field(default_factory=dict)
    _: KW_ONLY
    name: str = "data"
    origin: str = ""
    licence: str = ""
    note: str = ""
    feature_names: tuple[str, ...] = ()
    target_name: str = ""
    labels: tuple[str, ...] = ()
    observation_dim: str = "observation"
    scaler: Scaler | None = None
    schema: Schema | None = None
    num_classes: int | None = None
    class_names: tuple[str, ...] = ()
    truth: Mapping[str, Tensor] = field(default_factory=dict)
    local_sites: tuple[str, ...] = ()
    chances: Mapping[str, Tensor] = field(default_factory=dict)
    streams: Tensor | None = None
    stream_sizes: tuple[int, ...] = ()

    streamed = False

    def __post_init__(self) -> None:
        for name in ("feature_names", "labels", "class_names", "local_sites"):
            self._set(name, texts(name, getattr(self, name)))
        for name in ("inputs", "constants", "truth", "chances"):
            self._set(name, FrozenDict(named_values(name, getattr(self, name))))
        self._set("inputs", FrozenDict({k: to_tensor(f"input {k!r}", v) for k, v in self.inputs.items()}))
        if isinstance(self.observed, Mapping):
            named = {k: to_tensor(f"observed {k!r}", v) for k, v in named_values("observed", self.observed).items()}
            self._set("observed", FrozenDict({k: _numeric(v) for k, v in named.items()}))
        else:
            self._set("observed", _numeric(to_tensor(self._observed_label, self.observed)))
        observed = self.observed if isinstance(self.observed, Mapping) else {"": self.observed}
        check_keys(self.inputs, observed, self.constants)
        check_same_rows(
            {**{f"input {k!r}": v for k, v in self.inputs.items()}, **self._observed_tensors()},
            columns={"input 'x'": self.feature_names},
        )
        self._check_metadata()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def _observed_label(self) -> str:
        return f"observed {self.target_name!r}" if self.target_name else "the observed tensor"

    def _observed_tensors(self) -> dict[str, Tensor]:
        """The observed tensors by the label that messages use."""
        if isinstance(self.observed, Mapping):
            return {f"observed {k!r}": v for k, v in self.observed.items()}
        return {self._observed_label: self.observed}

    def _check_metadata(self) -> None:
        x, names = self.inputs.get("x"), len(self.feature_names)
        if names and (x is None or x.ndim != 2 or x.shape[1] != names):
            shape = "there is no input 'x'" if x is None else f"input 'x' has shape {tuple(x.shape)}"
            raise ValueError(f"feature_names has {names} names, but {shape}; give one name for each column of 'x'")
        if len(set(self.feature_names)) < names:
            twice = next(name for name in self.feature_names if self.feature_names.count(name) > 1)
            raise ValueError(f"two columns of input 'x' are named {twice!r}; give each its own name")
        if self.labels and len(self.labels) != len(self):
            raise ValueError(f"labels has {len(self.labels)} names for {len(self)} observations; give one each")

    def __len__(self) -> int:
        return len(next(iter(self._observed_tensors().values())))

    def __repr__(self) -> str:
        def shown(name: str, tensor: Tensor) -> str:
            return f"{name} {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"

        parts = [f"{len(self)} {self.observation_dim}{'s' if len(self) != 1 else ''}"]
        if self.inputs:
            parts.append("inputs " + ", ".join(shown(k, v) for k, v in self.inputs.items()))
        observed = self.observed
        named = observed if isinstance(observed, Mapping) else {self.target_name or "tensor": observed}
        parts.append("observed " + ", ".join(shown(k, v) for k, v in named.items()))
        if self.constants:
            parts.append("constants " + ", ".join(self.constants))
        if self.scaler:
            parts.append(f"standardised {'inputs and target' if self.scaler.target_scaled else 'inputs'}")
        if self.device.type != "cpu":
            parts.append(f"on {self.device}")
        return f"Data({self.name}: {'; '.join(parts)})"

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first floating tensor, inputs before observed; torch's default if there is none."""
        for tensor in (*self.inputs.values(), *self._observed_tensors().values()):
            if tensor.is_floating_point():
                return tensor.dtype
        return torch.get_default_dtype()

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(iter(self._observed_tensors().values())).device

    @property
    def nbytes(self) -> int:
        """Memory of inputs and observed values, in bytes."""
        tensors = (*self.inputs.values(), *self._observed_tensors().values())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @property
    def dim(self) -> int:
        """Number of columns of `inputs["x"]`."""
        x = self.inputs.get("x")
        if x is None or x.ndim < 2:
            has = "there is no such input" if x is None else f"it has shape {tuple(x.shape)}"
            raise ValueError(f"dim counts the columns of input 'x', but {has}; give inputs={{'x': (N, D) tensor}}")
        return x.shape[-1]

    def observed_dict(self, model: Model) -> dict[str, Tensor]:
        """Returns the observed tensors by the model's parameter names."""
        return binding.name_observed(model, self.observed, {**self.inputs, **self.constants})

    def bind(self, model: Model, observed: bool = True) -> dict[str, Any]:
        """Returns the keyword arguments that call the model on all rows.

        Args:
            model: a module or any other callable.
            observed: False leaves the observed values out, so that the model simulates them.

        Raises:
            ValueError: if a name is not a parameter of the model, or a required parameter has no value.
        """
        values = {**self.inputs, **(self.observed_dict(model) if observed else {}), **self.constants}
        return binding.bind(model, values, num_data=len(self))

    def batch(self, index: Tensor, model: Model) -> dict[str, Any]:
        """Returns the keyword arguments that call the model on the rows `index`, shape `(B,)`.

        `num_data` stays the number of all rows, and `index` is passed to a model that takes it: so the
        model's plate scales the batch to the whole data set. A model that takes no `index` gets the rows
        alone.
        """
        index = index.to(self.device)
        inputs = {k: v[index] for k, v in self.inputs.items()}
        observed = {k: v[index] for k, v in self.observed_dict(model).items()}
        return binding.bind(model, {**inputs, **observed, **self.constants}, num_data=len(self), index=index)

    def training_batch(self, index: Tensor | None, model: Model) -> dict[str, Any]:
        """Returns what one step trains on: `batch`, or `bind` without an index, with chances in place of what is drawn anew."""
        kwargs = self.bind(model) if index is None else self.batch(index, model)
        names = list(self.observed_dict(model))
        for name, chance in self.chances.items():
            kwargs[name or names[0]] = chance if index is None else chance[index.to(self.device)]
        return kwargs

    def redrawn(self, model: Model) -> tuple[str, ...]:
        """Returns the names of the model's parameters that every training step draws anew."""
        names = list(self.observed_dict(model))
        return tuple(name or names[0] for name in self.chances)

    def batches(self, batch_size: int, seed: int, epoch: int) -> Iterator[Tensor]:
        """Yields row numbers, shape `(batch_size,)`, of a permutation that (seed, epoch) fixes.

        A short last batch is dropped (other rows in each epoch), so that all batches have one shape. With streams a batch holds
        the first stream's rows, then the second's.

        Raises:
            ValueError: if the batch size is not between 1 and the number of rows, or not that of the streams.
        """
        if self.streams is None:
            return iter(self.epoch(batch_size, seed, epoch))
        if batch_size != sum(self.stream_sizes):
            raise ValueError(
                f"these data come in streams of {' and '.join(map(str, self.stream_sizes))} rows a batch, so batch_size must be "
                f"{sum(self.stream_sizes)}, not {batch_size!r}"
            )
        streams = [(self.streams == number).nonzero()[:, 0] for number in range(len(self.stream_sizes))]
        return stream_batches(streams, self.stream_sizes, seed, epoch, self.device)

    def epoch(self, batch_size: int, seed: int, epoch: int) -> Tensor:
        """Returns all batches of an epoch at once, row numbers `(steps, batch_size)`; see `batches`."""
        if self.streams is None:
            return batch_indices(len(self), batch_size, seed, epoch, self.device)
        return torch.stack(list(self.batches(batch_size, seed, epoch)))

    def row_weights(self) -> Tensor | None:
        """Returns what each row of a batch counts beside one another, `(batch_size,)` of mean one; None without streams.

        A batch of B of N rows counts N / B times; with B_s of the N_s rows of a stream, these count N_s / B_s.
        """
        if self.streams is None:
            return None
        rows = torch.bincount(self.streams, minlength=len(self.stream_sizes)).double()
        sizes = torch.tensor(self.stream_sizes, dtype=torch.float64)
        weights = (rows / sizes) / (len(self) / sizes.sum())
        return weights.repeat_interleave(sizes.long()).to(device=self.device, dtype=self.dtype)

    def in_streams(self, first: Tensor, sizes: tuple[int, int]) -> Data:
        """Returns the data in two streams, each with a number of rows in every batch and a scale of its own.

        Few labelled rows among many others would hardly ever be seen together: with `data.in_streams(y >= 0, (50, 150))` every
        batch of 200 holds 50 of them. Losses stay those of the whole data set.

        Args:
            first: (N,) whether a row belongs to the first stream.
            sizes: rows of the first and the second stream in a batch.

        Raises:
            ValueError: a stream with fewer rows than its share of a batch.
        """
        if not isinstance(sizes, Sequence) or len(sizes) != 2:
            raise ValueError(
                f"sizes are the rows of the first and the second stream in a batch, such as (50, 150), got {sizes!r}"
            )
        try:
            first = torch.as_tensor(first).cpu()
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"first must say True or False for each of the {len(self)} rows, got {first!r}") from None
        if first.shape != (len(self),) or first.dtype != torch.bool:
            raise ValueError(f"first must say True or False for each of the {len(self)} rows, got shape {tuple(first.shape)}")
        for name, many, size in (("first", int(first.sum()), sizes[0]), ("second", int((~first).sum()), sizes[1])):
            if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= many:
                if not many:
                    raise ValueError(f"the {name} stream has no rows; say True for some rows and False for others")
                raise ValueError(
                    f"the {name} stream has {many} rows, so between 1 and {many} of them make up a batch, not {size!r}"
                )
        return replace(self, streams=(~first).long(), stream_sizes=tuple(sizes))

    def select(self, rows: Tensor | Sequence[int] | slice) -> Data:
        """Returns the data set of some rows: row numbers (tensor or list), a boolean tensor, or a slice."""
        n = len(self)
        index = torch.arange(n)[rows] if isinstance(rows, slice) else _row_numbers(rows).cpu()
        if index.dtype == torch.bool and index.shape == (n,):
            index = index.nonzero()[:, 0]
        if index.ndim != 1 or index.is_floating_point() or index.dtype == torch.bool:
            raise ValueError("rows must be a slice, a list of row numbers, or a mask with one entry for each row")
        if len(index) and not -n <= int(index.min()) <= int(index.max()) < n:
            raise ValueError(
                f"rows must lie between 0 and {n - 1}, but they reach from {int(index.min())} to {int(index.max())}"
            )
        index = index.long() % n
        near = index.to(self.device)
        observed: Tensor | dict[str, Tensor]
        if isinstance(self.observed, Mapping):
            observed = {k: v[near] for k, v in self.observed.items()}
        else:
            observed = self.observed[near]
        return replace(
            self,
            inputs={k: v[near] for k, v in self.inputs.items()},
            observed=observed,
            labels=tuple(self.labels[i] for i in index.tolist()) if self.labels else (),
            truth={k: v[index.to(v.device)] if k in self.local_sites else v for k, v in self.truth.items()},
            chances={k: v[near] for k, v in self.chances.items()},
            streams=None if self.streams is None else self.streams[index],
        )

    def split(self, fraction: float, seed: int) -> tuple[Data, Data]:
        """Returns a random part of `round(fraction * N)` rows and the others, in their old order.

        A standardised table is taken back to its units, split, and both parts are standardised with the mean
        and sd of the first part alone, so that nothing of the second is known to a fit.
        """
        raw = self.unscaled()
        first, second = (raw.select(rows) for rows in split_indices(len(self), fraction, seed))
        if self.scaler is None:
            return first, second
        target = first.observed if self.scaler.target_scaled and isinstance(first.observed, Tensor) else None
        scaler = Scaler.fit(
            first.inputs["x"],
            target,
            feature_names=self.scaler.feature_names,
            target_name=self.scaler.target_name,
            scaled=self.scaler.scaled,
        )
        return self._rescale(first, scaler), self._rescale(second, scaler)

    def _rescale(self, part: Data, scaler: Scaler) -> Data:
        """Standardises an unscaled part of this data set, in this data set's dtypes."""
        part = apply_scaler(part, scaler)
        observed = part.observed
        if isinstance(observed, Tensor) and isinstance(self.observed, Tensor):
            observed = observed.to(self.observed.dtype)
        inputs = {**part.inputs, "x": part.inputs["x"].to(self.inputs["x"].dtype)}
        return replace(part, inputs=inputs, observed=observed)

    def unsupervised(self) -> Data:
        """Returns the inputs "x" as what a model explains; a bare target is kept as the truth of "y"."""
        if set(self.inputs) != {"x"}:
            has = f"the inputs {', '.join(self.inputs)}" if self.inputs else "no inputs"
            raise ValueError(f"unsupervised() makes the input 'x' the observed values, and {self.name} has {has}")
        x, y = self.inputs["x"], self.observed
        truth = {"y": y} if isinstance(y, Tensor) else dict(y)
        return replace(
            self, inputs={}, observed=x, feature_names=(), target_name="x", scaler=None, truth=truth, local_sites=tuple(truth)
        )

    def partly_labelled(self, rows: Tensor | Sequence[int]) -> Data:
        """Returns inputs "x" and classes as observed "x" and "y", y = -1 but for these rows; all classes are the truth of "c".

        Raises:
            ValueError: there are no pictures with classes, or the rows are not numbers of rows.
        """
        y = self.observed
        if set(self.inputs) != {"x"} or not isinstance(y, Tensor) or y.is_floating_point():
            raise ValueError("partly_labelled() is for classified pictures: inputs 'x', and one whole number each observed")
        try:
            index = _row_numbers(rows).to(y.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"labelled rows are whole numbers from 0 to {len(y) - 1}, got {rows!r}") from error
        if not index.numel() or not (index.is_floating_point() or index.is_complex() or index.dtype == torch.bool):
            index = index.long()  # of bytes torch makes a mask, and an empty list is of floats
        if index.dtype == torch.bool and index.shape == y.shape:
            index = index.nonzero()[:, 0]
        wrong = index if index.is_floating_point() or index.dtype == torch.bool else index[(index < 0) | (index >= len(y))]
        if wrong.numel():
            raise ValueError(f"labelled rows are whole numbers from 0 to {len(y) - 1}, got {wrong.flatten()[0].item()}")
        labels = torch.full_like(y, -1)
        labels[index] = y[index]
        return replace(
            self, inputs={}, observed={"x": self.inputs["x"], "y": labels}, feature_names=(), target_name="", scaler=None,
            truth={"c": y}, local_sites=("c",),
        )  # fmt: skip

    def binarized(self, seed: int, fresh: bool = True) -> Data:
        """Returns the observed grey values as zeros and ones, each one with its grey value as chance.

        Args:
            seed: of the draw that stands for the data: what losses, log p(x) and predictions speak of.
            fresh: whether every training step draws anew (dynamic binarisation, as Burda et al. 2016 train), which
                keeps a network from learning one draw by heart.

        Raises:
            ValueError: a value is not between 0 and 1.
        """
        named = isinstance(self.observed, Mapping) and "x" in self.observed
        x = self.observed["x"] if isinstance(self.observed, Mapping) and named else self.observed
        if not isinstance(x, Tensor) or not x.is_floating_point() or float(x.min()) < 0 or float(x.max()) > 1:
            raise ValueError(
                "binarized() draws zeros and ones with the observed grey values as chances, which must be numbers from 0 to 1; for the "
                "inputs of labelled data call unsupervised() first, and divide bytes by 255"
            )
        u = torch.rand(x.shape, generator=seeded_generator(seed), dtype=x.dtype).to(x.device)
        drawn = (u < x).to(x.dtype)
        observed = {**self.observed, "x": drawn} if isinstance(self.observed, Mapping) else drawn
        return replace(self, observed=observed, chances={"x" if named else "": x} if fresh else {})

    def unscaled(self) -> Data:
        """Returns the data in their own units; what was standardised becomes float64, to lose no digit."""
        if self.scaler is None:
            return self
        wide, observed = wide_dtype(self.device), self.observed
        if self.scaler.target_scaled and isinstance(observed, Tensor):
            observed = self.scaler.inverse_target(observed.to(wide))
        inputs = {**self.inputs, "x": self.scaler.inverse_inputs(self.inputs["x"].to(wide))}
        return replace(self, inputs=inputs, observed=observed, scaler=None)

    def encode(self, rows: Any) -> dict[str, Tensor]:
        """Returns the inputs for new raw rows, in the columns, categories, scale and dtype of these data.

        Args:
            rows: a data frame, a mapping from column names to values, or, where all columns are numbers, an
                array of shape `(M, D)`.

        Raises:
            ValueError: for a missing column, an unknown category or a value that is missing or not finite.
        """
        if self.schema is None:
            raise ValueError(
                f"{self.name} was not made from a table, so it cannot encode new rows; give the model's "
                "inputs as a dict of tensors, or make the data with bz.data.from_frame"
            )
        x = self.inputs["x"]
        return {k: v.to(x) for k, v in self.schema.encode(rows, self.scaler).items()}

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Data:
        """Returns the data on another device, floating tensors (constants too) in another dtype.

        Raises:
            ValueError: if the device is not there or the dtype is not floating.
        """
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating dtype such as torch.float64, not {dtype}; choose one")

        def move(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return move_tensor(value, device, dtype if value.is_floating_point() else None)

        observed = self.observed
        return replace(
            self,
            inputs={k: move(v) for k, v in self.inputs.items()},
            observed={k: move(v) for k, v in observed.items()} if isinstance(observed, Mapping) else move(observed),
            constants={k: move(v) for k, v in self.constants.items()},
            chances={k: move(v) for k, v in self.chances.items()},
        )


def move_tensor(tensor: Tensor, device: torch.device | str | None, dtype: torch.dtype | None) -> Tensor:
    """Returns the tensor on a device; one sentence if there is no such device."""
    try:
        return tensor.to(device=device, dtype=dtype)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used here ({reason}); choose 'cpu'") from None


def apply_scaler(data: Data, scaler: Scaler) -> Data:
    """Returns raw data standardised by the scaler, which stands in the result."""
    observed = data.observed
    if scaler.target_scaled and isinstance(observed, Tensor):
        observed = scaler.transform_target(observed if observed.is_floating_point() else observed.to(data.dtype))
    inputs = {**data.inputs, "x": scaler.transform_inputs(data.inputs["x"])}
    return replace(data, inputs=inputs, observed=observed, scaler=scaler)


def _numeric(observed: Tensor) -> Tensor:
    return observed.to(torch.get_default_dtype()) if observed.dtype == torch.bool else observed


def _row_numbers(rows: Any) -> Tensor:
    return to_tensor("rows", rows) if isinstance(rows, np.ndarray) else torch.as_tensor(rows)
