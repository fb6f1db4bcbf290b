"""Standardisation: `(x - mean) / sd` per input column and of the target, and the way back.

Means and standard deviations (of the rows given, divided by N) are float64. A column whose values are only 0
and 1, such as a one-hot column, is left as it is: mean 0 and sd 1 stand for "not scaled", and its coefficient
keeps the meaning "this level instead of the first". The same holds for a target of zeros and ones, and for
class labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor


def is_zero_one(values: Tensor) -> bool:
    """Whether both 0 and 1 occur in the tensor and nothing else does."""
    zero, one = values == 0, values == 1
    return bool((zero | one).all()) and bool(zero.any()) and bool(one.any())


def _moments(label: str, values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and sd of a column, shape `(N,)` to two scalars; refuses a constant one by its name."""
    values = values.detach().to("cpu", torch.float64)
    if bool((values == values[0]).all()):
        raise ValueError(
            f"{label} is constant ({float(values[0]):g} in all {len(values)} rows), so it cannot be "
            "standardised; leave it out, or give more rows or standardize=False"
        )
    mean, sd = values.mean(), values.std(correction=0)
    if not 0.0 < float(sd) < float("inf"):
        raise ValueError(f"{label} has values too extreme for a finite standard deviation; give it in another unit")
    return mean, sd


def wide_dtype(device: torch.device) -> torch.dtype:
    """Returns the dtype to compute in: float64, or float32 on Apple GPUs, which have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _affine(values: Tensor, *, mean: Tensor | None, sd: Tensor, inverse: bool) -> Tensor:
    """Applies or undoes the scaling in float64; floating values keep their dtype, integers become float64."""
    shift = torch.zeros_like(sd) if mean is None else mean
    dtype = wide_dtype(values.device)
    wide, shift, sd = values.to(dtype), shift.to(values.device, dtype), sd.to(values.device, dtype)
    result = wide * sd + shift if inverse else (wide - shift) / sd
    return result.to(values.dtype) if values.is_floating_point() else result


@dataclass(frozen=True, eq=False)
class Scaler:
    """The scale of a standardised table: D input columns and, unless it holds classes, the target.

    Attributes:
        feature_names: names of the D columns.
        input_mean: shape `(D,)`, float64, in each column's own unit; 0 where not scaled.
        input_sd: shape `(D,)`, float64, in each column's own unit; 1 where not scaled.
        scaled: which of the D columns are scaled.
        target_name: name of the target.
        target_mean: shape `()` or `(K,)`, float64, in the target's unit; None where the target is not scaled.
        target_sd: like `target_mean`.
    """

    feature_names: tuple[str, ...]
    input_mean: Tensor
    input_sd: Tensor
    scaled: tuple[bool, ...]
    target_name: str = "target"
    target_mean: Tensor | None = None
    target_sd: Tensor | None = None

    def __post_init__(self) -> None:
        size = (len(self.feature_names),)
        if self.input_mean.shape != size or self.input_sd.shape != size or len(self.scaled) != size[0]:
            raise ValueError(
                f"a scaler needs one mean, sd and flag for each of its {size[0]} columns; make it with Scaler.fit(...)"
            )
        if (self.target_mean is None) != (self.target_sd is None):
            raise ValueError("a scaler needs both target_mean and target_sd, or neither; give the other one")

    @classmethod
    def fit(
        cls,
        x: Tensor,
        y: Tensor | None,
        *,
        feature_names: Sequence[str],
        target_name: str = "target",
        scaled: Sequence[bool] | None = None,
    ) -> Self:
        """Measures means and standard deviations.

        Args:
            x: raw inputs, shape `(N, D)`.
            y: raw target, shape `(N,)` or `(N, K)`; None for one that is not to be scaled.
            feature_names: names of the D columns.
            target_name: name of the target.
            scaled: which columns to scale; by default all but those of zeros and ones.

        Raises:
            ValueError: naming a column that is constant.
        """
        if scaled is None:
            scaled = [not is_zero_one(column) for column in x.T]
        mean = torch.zeros(x.shape[1], dtype=torch.float64)
        sd = torch.ones(x.shape[1], dtype=torch.float64)
        for j, name in enumerate(feature_names):
            if scaled[j]:
                mean[j], sd[j] = _moments(f"column {name!r}", x[:, j])
        target_mean = target_sd = None
        if y is not None:
            columns = y.reshape(len(y), -1).T
            names = (
                [f"target {target_name!r}"]
                if y.ndim == 1
                else [f"column {k + 1} of target {target_name!r}" for k in range(len(columns))]
            )
            moments = [_moments(name, column) for name, column in zip(names, columns, strict=True)]
            target_mean = torch.stack([m for m, _ in moments]).reshape(y.shape[1:])
            target_sd = torch.stack([s for _, s in moments]).reshape(y.shape[1:])
        return cls(tuple(feature_names), mean, sd, tuple(map(bool, scaled)), target_name, target_mean, target_sd)

    @property
    def target_scaled(self) -> bool:
        """Whether the target is scaled at all."""
        return self.target_mean is not None

    def transform_inputs(self, x: Tensor) -> Tensor:
        """Returns standardised inputs of raw ones, shape `(..., D)`."""
        return _affine(x, mean=self.input_mean, sd=self.input_sd, inverse=False)

    def inverse_inputs(self, x: Tensor) -> Tensor:
        """Returns raw inputs of standardised ones, shape `(..., D)`."""
        return _affine(x, mean=self.input_mean, sd=self.input_sd, inverse=True)

    def transform_target(self, y: Tensor) -> Tensor:
        """Returns the standardised target, `(..., N)` or `(..., N, K)`; unchanged if it is not scaled."""
        if self.target_sd is None:
            return y
        return _affine(y, mean=self.target_mean, sd=self.target_sd, inverse=False)

    def inverse_target(self, y: Tensor) -> Tensor:
        """Returns values, means or quantiles of the target in its own unit; unchanged if it is not scaled."""
        if self.target_sd is None:
            return y
        return _affine(y, mean=self.target_mean, sd=self.target_sd, inverse=True)

    def inverse_scale(self, sd: Tensor) -> Tensor:
        """Returns standard deviations of the target in its own unit: multiplied, not shifted."""
        return sd if self.target_sd is None else _affine(sd, mean=None, sd=self.target_sd, inverse=True)

    def to_dict(self) -> dict[str, Any]:
        """Returns lists, numbers and text only, without loss, ready for JSON."""
        return {
            "feature_names": list(self.feature_names),
            "input_mean": self.input_mean.tolist(),
            "input_sd": self.input_sd.tolist(),
            "scaled": list(self.scaled),
            "target_name": self.target_name,
            "target_mean": None if self.target_mean is None else self.target_mean.tolist(),
            "target_sd": None if self.target_sd is None else self.target_sd.tolist(),
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Self:
        """Makes the scaler that `to_dict` described."""

        def tensor(value: Any) -> Tensor:
            return torch.tensor(value, dtype=torch.float64)

        return cls(
            feature_names=tuple(state["feature_names"]),
            input_mean=tensor(state["input_mean"]),
            input_sd=tensor(state["input_sd"]),
            scaled=tuple(state["scaled"]),
            target_name=state["target_name"],
            target_mean=None if state["target_mean"] is None else tensor(state["target_mean"]),
            target_sd=None if state["target_sd"] is None else tensor(state["target_sd"]),
        )
