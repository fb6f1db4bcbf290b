"""How data meet a model: tensors by the names of its parameters.

A model is a `torch.nn.Module` (its `forward` counts) or any other callable. Inputs, observed values and
constants are passed by keyword; `num_data` and `index` only to a model whose signature names them.
"""

from __future__ import annotations

import inspect
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from .checks import RESERVED, nearest

type Model = Callable[..., Any]

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def model_name(model: Model) -> str:
    """Returns the class name of a module, or the name of a function, for messages."""
    name = getattr(model, "__name__", None)
    return name if isinstance(name, str) else type(model).__name__


def model_parameters(model: Model) -> dict[str, inspect.Parameter]:
    """Returns the parameters that can be passed by name, in order; `**kwargs` stands under "**".

    Raises:
        ValueError: if the model is not callable, or is a class instead of an instance.
    """
    if isinstance(model, type):
        raise ValueError(f"the model is the class {model.__name__}, but an instance is needed; write {model.__name__}(...)")
    if not callable(model):
        raise ValueError(
            f"the model is a {type(model).__name__}, but a PyroModule or a function is needed; give one that can be called"
        )
    called = model.forward if isinstance(model, nn.Module) else model
    if isinstance(called, types.FunctionType):
        return _named(called, model)
    if not isinstance(called, types.MethodType) or not isinstance(called.__func__, types.FunctionType):
        return _read(called, model)
    return _named(called.__func__, model, called)


#: Every step of a fit on minibatches asks, and reading takes as long as a tenth of the step.
_known: weakref.WeakKeyDictionary[types.FunctionType, dict[bool, dict[str, inspect.Parameter]]] = weakref.WeakKeyDictionary()


def _named(function: types.FunctionType, model: Model, method: types.MethodType | None = None) -> dict[str, inspect.Parameter]:
    """The parameters of a function, or of it as a method, read once."""
    known = _known.setdefault(function, {})
    if (method is not None) not in known:
        known[method is not None] = _read(method or function, model)
    return known[method is not None]


def _read(called: Callable[..., Any], model: Model) -> dict[str, inspect.Parameter]:
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):
        raise ValueError(
            f"the signature of model {model_name(model)} cannot be read; wrap it into a Python function "
            "whose parameters are named"
        ) from None
    named = {name: p for name, p in signature.parameters.items() if p.kind in _NAMED}
    for p in signature.parameters.values():
        if p.kind is inspect.Parameter.VAR_KEYWORD:
            named["**"] = p
    return named


def takes_num_data(model: Model) -> bool:
    """Whether the model's signature names `num_data` (`**kwargs` alone does not count)."""
    return "num_data" in model_parameters(model)


def takes_index(model: Model) -> bool:
    """Whether the model's signature names `index`, as minibatches need (`**kwargs` alone does not count)."""
    return "index" in model_parameters(model)


def open_parameters(model: Model, given: Mapping[str, Any]) -> list[str]:
    """Returns the parameters with default None that may take observed values: neither given nor reserved."""
    return [
        name for name, p in model_parameters(model).items() if p.default is None and name not in given and name not in RESERVED
    ]


def name_observed(model: Model, observed: Tensor | Mapping[str, Tensor], given: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the observed values by parameter name; a bare tensor goes to the first open parameter.

    Args:
        model: the model.
        observed: a tensor of shape `(N, ...)`, or such tensors by parameter name.
        given: inputs and constants, whose names are taken.

    Raises:
        ValueError: if a bare tensor finds no parameter with default None.
    """
    if isinstance(observed, Mapping):
        return dict(observed)
    names = open_parameters(model, given)
    if not names:
        raise ValueError(
            f"model {model_name(model)} has no free parameter with default None that takes the "
            "observed tensor; give it one (def model(x, y=None)), or name it: observed={'y': ...}"
        )
    return {names[0]: observed}


def bind(
    model: Model, values: Mapping[str, Any], *, num_data: int | None = None, index: Tensor | None = None
) -> dict[str, Any]:
    """Returns the keyword arguments for one call of the model, after checking their names.

    Args:
        model: the model.
        values: inputs, observed values and constants by parameter name.
        num_data: number of observations of the whole data set, passed if the model takes it.
        index: row numbers of a batch, shape `(B,)`, passed if the model takes them.

    Raises:
        ValueError: if a name is not a parameter of the model, or a required parameter has no value.
    """
    parameters = model_parameters(model)
    known = [name for name in parameters if name != "**" and name not in RESERVED]
    for name in values:
        if name not in parameters and "**" not in parameters:
            has = f"it has {', '.join(known)}" if known else "it takes no data"
            raise ValueError(
                f"model {model_name(model)} has no parameter {name!r}; {nearest(name, known)}{has}; "
                "the names in inputs, observed and constants must be parameters of the model"
            )
    call = dict(values)
    if num_data is not None and "num_data" in parameters:
        call["num_data"] = num_data
    if index is not None and "index" in parameters:
        call["index"] = index
    for name, parameter in parameters.items():
        if name != "**" and name not in call and parameter.default is inspect.Parameter.empty:
            given = ", ".join(values) or "nothing"
            raise ValueError(
                f"model {model_name(model)} needs a value for {name!r}, and the data give {given}; "
                f"add {name!r} to the inputs or constants, or give the parameter a default"
            )
    return call
