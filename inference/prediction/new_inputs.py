"""New observations for a fitted model: checked against the training data, and cut into blocks of rows."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..target.program import Program, Site


@dataclass(frozen=True)
class Inputs:
    """The arguments of the model for new observations.

    Attributes:
        kwargs: all of them, without the observed.
        names: which of them have one row an observation.
        rows: N.
    """

    kwargs: Mapping[str, Any]
    names: tuple[str, ...]
    rows: int

    def block(self, start: int, stop: int) -> Mapping[str, Any]:
        """The arguments for the rows `start` .. `stop - 1`."""
        if (start, stop) == (0, self.rows):
            return self.kwargs
        part = {name: self.kwargs[name][start:stop] for name in self.names}
        return {**self.kwargs, **part, "num_data": stop - start}

    def first(self, rows: int) -> Inputs:
        """The first rows alone."""
        return Inputs(self.block(0, rows), self.names, rows)

    def divisible(self, site: Site) -> bool:
        """Whether the model runs on part of the rows: it does so for minibatches, where it takes `num_data`."""
        return bool(self.names) and "num_data" in self.kwargs and site.local and len(site.batch_shape) == 1


def new_observations(data: Any, observed: Tensor) -> Any:
    """Observations of a model without inputs, as data like those that it was fitted with."""
    if getattr(data, "streamed", False):
        data = data.select([0])
    plain: dict[str, Any] = {"chances": {}, "streams": None, "stream_sizes": ()} if hasattr(data, "chances") else {}
    return replace(data, inputs={}, observed=observed, labels=(), truth={}, local_sites=(), **plain)


def new_inputs(data: Any, model: Any, inputs: Any, num_data: int | None) -> Inputs:
    """The model's arguments for new observations, on the device and in the precision of the training data.

    Args:
        data: the training data.
        model: the fit's model.
        inputs: by name, or one tensor for a model with one input; None for a model without inputs.
        num_data: how many observations, for a model without inputs.

    Raises:
        ValueError: for unknown or missing names, other shapes, or two numbers of rows.
    """
    if getattr(data, "streamed", False):
        data = data.select([0])  # one row shows what the others are like
    template = data.bind(model, observed=False)
    wanted = list(data.inputs)
    if isinstance(inputs, Tensor):
        if len(wanted) != 1:
            raise ValueError(f"the model has the inputs {', '.join(wanted) or '(none)'}; pass a dict with these names")
        inputs = {wanted[0]: inputs}
    if hasattr(inputs, "bind"):
        raise ValueError(f"predict takes the inputs of new observations, not {type(inputs).__name__}; give test.inputs")
    inputs = dict(inputs or {})
    unknown = [name for name in inputs if name not in wanted]
    lacking = [name for name in wanted if name not in inputs]
    if unknown or lacking:
        raise ValueError(
            f"predict needs the inputs {', '.join(wanted) or '(none)'} and got {', '.join(inputs) or 'none'}; pass a dict with these names"
        )
    moved = {}
    for name, value in inputs.items():
        like = data.inputs[name]
        value = torch.as_tensor(value)
        if value.dim() != like.dim() or value.shape[1:] != like.shape[1:]:
            raise ValueError(
                f"input '{name}' must have the shape (N, {', '.join(str(s) for s in like.shape[1:])}) that the model was fitted with, got {tuple(value.shape)}"
                if like.dim() > 1
                else f"input '{name}' must have one dimension, as the model was fitted with, got shape {tuple(value.shape)}"
            )
        moved[name] = value.to(device=like.device, dtype=like.dtype)
    rows = len(next(iter(moved.values()))) if moved else (num_data or 1)
    if moved and num_data is not None and num_data != rows:
        raise ValueError(f"num_data={num_data}, but the inputs have {rows} rows; leave num_data out")
    if rows == 0:
        raise ValueError("the inputs have no rows, so there is nothing to predict; give at least one observation")
    lengths = {name: len(value) for name, value in moved.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"the inputs have different lengths ({', '.join(f'{k}: {v}' for k, v in lengths.items())}); give one row an observation"
        )
    kwargs = {**template, **moved}
    if "num_data" in kwargs:
        kwargs["num_data"] = rows
    return Inputs(kwargs, tuple(wanted), rows)


def observed_site(program: Program, name: str | None) -> Site:
    """The observed site with this name, or the only one.

    Raises:
        ValueError: for an unknown name, or none where there are several sites.
    """
    names = list(program.observed)
    if name is None:
        if len(names) != 1:
            raise ValueError(f"the model observes {', '.join(names)}; say which one with site=")
        name = names[0]
    elif name not in names:
        near = difflib.get_close_matches(name, names, 1)
        raise ValueError(
            f"unknown observed site '{name}'{f', did you mean {near[0]!r}?' if near else ''}; the model observes {', '.join(names)}"
        )
    return program.observed[name]


def check_scale(data: Any, test: Any) -> None:
    """Whether a test set is standardised as the training data.

    Raises:
        ValueError: if not; its inputs would then mean something else to the model.
    """
    ours, theirs = (getattr(each, "scaler", None) for each in (data, test))
    same = ours is theirs or (ours is not None and theirs is not None and ours.to_dict() == theirs.to_dict())
    if not same:
        raise ValueError(
            "the test data are standardised otherwise than the training data, so the model would misread them; make both with "
            "data.split(...)"
        )
