"""A network seen as a distribution of functions: f = net_w(x) at a few inputs x, one value a draw of the weights.

Single weights of a network mean little: hidden units can be exchanged, and signs flipped, without changing any function, so
means of weights differ between restarts that agree about every prediction. Values of f can be compared: between restarts,
with a reference, with other models.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..engine.noise import vmap_random
from ..engine.owned import Owned
from ..prediction.new_inputs import check_scale
from ..prediction.tiles import TILE_BYTES, Counted
from ..target.density import EachDraw
from ..target.program import Program, base_of

if TYPE_CHECKING:
    from ..result import Fit

#: Inputs at which f is looked at unless others are given: the first rows of the training data.
MOST_INPUTS = 100

#: What f is called among a model's sites; no site has such a name.
F = "f(x)"


def is_network(model: Any, program: Program) -> bool:
    """Whether a model has `outputs(weights, x)` and `sites`, and one outcome an observation, as `BayesianNN` has."""
    outputs = getattr(model, "outputs", None)
    if not callable(outputs) or not isinstance(getattr(model, "sites", None), Mapping) or len(program.observed) != 1:
        return False
    site = next(iter(program.observed.values()))
    known = list(inspect.signature(outputs).parameters) == ["weights", "x"] and all(
        s in program.continuous for s in model.sites
    )
    return known and site.local and len(site.batch_shape) == 1 and not program.local and not program.discrete


def num_shared(program: Program) -> int:
    """Latent values that all observations share."""
    return sum(site.shape.numel() for site in program.continuous.values() if not site.local)


@dataclass(frozen=True)
class Functions:
    """Values of f at given inputs.

    Attributes:
        x: (M, ...) inputs on the fit's device, scaled as the training data.
        inputs: names of the M inputs.
        outputs: names of the K outputs: classes, where the data name them.
        kind: what f is: `classes` (logits), `binary` (log odds) or `numbers` (means).
        chunk: draws that are run at once.
    """

    x: Tensor
    inputs: np.ndarray
    outputs: np.ndarray
    kind: str
    chunk: int
    each: EachDraw = field(default_factory=EachDraw)

    def __call__(self, owned: Owned, values: Mapping[str, Tensor]) -> Tensor:
        """f for draws of the weights: (S, M, K), on the CPU.

        Args:
            values: site -> (S, *shape).
        """
        model = owned.model
        weights = {name: values[name] for name in model.sites}
        with owned.active(), torch.no_grad():
            f: Tensor = self.each(lambda w: _outputs(model, w, self.x), weights, chunk=self.chunk)
        return f.cpu()

    def outcome(self, f: Tensor) -> Tensor:
        """The likelihood's mean given f: class probabilities (S, M, K), probabilities of a one, or f itself; float64."""
        wide = f.double()
        return torch.softmax(wide, -1) if self.kind == "classes" else torch.sigmoid(wide) if self.kind == "binary" else wide

    def scalars(self, name: str = "f") -> list[str]:
        """Names of the M K values in the order of (M, K): `f[3,cat]`, `f[3]` where there is one output."""
        if len(self.outputs) == 1:
            return [f"{name}[{i}]" for i in self.inputs]
        return [f"{name}[{i},{k}]" for i in self.inputs for k in self.outputs]


def functions_at(fit: Fit, inputs: Any = None, most: int | None = None) -> Functions:
    """f at some inputs.

    Args:
        inputs: (M, ...), `{"x": (M, ...)}` or `Data`, scaled as the training data; None takes the first `MOST_INPUTS` of these.
        most: takes the first ones only.

    Raises:
        ValueError: for inputs that the network cannot take, in one sentence.
    """
    data, program = fit.data, fit.program
    labels: tuple[str, ...] = ()
    if inputs is None:
        x, labels, most = data.inputs["x"], tuple(data.labels), min(MOST_INPUTS, most or MOST_INPUTS)
    else:
        if hasattr(inputs, "inputs"):
            check_scale(data, inputs)
            labels, inputs = tuple(getattr(inputs, "labels", ()) or ()), inputs.inputs
        x = _checked(inputs["x"] if isinstance(inputs, Mapping) and list(inputs) == ["x"] else inputs, data.inputs["x"])
    x, labels = x[:most], labels[:most]
    model = fit.model
    with fit.run.owned.active(0), torch.no_grad():
        weights = {name: torch.zeros(1, *program.continuous[name].shape, device=x.device) for name in model.sites}
        width = _outputs(model, {name: value[0] for name, value in weights.items()}, x[:2]).shape[1]
        chunk = at_once(lambda w: _outputs(model, w, x), weights)
    site = next(iter(program.observed.values()))
    return Functions(
        x=x,
        inputs=np.asarray(labels) if labels else np.arange(len(x)),
        outputs=_output_names(data, width),
        kind=_kind(base_of(site.distribution)),
        chunk=chunk,
    )


def at_once(function: Callable[[Mapping[str, Tensor]], Any], values: Mapping[str, Tensor]) -> int:
    """How many draws a function of one draw may map at once, for the memory that it takes.

    Args:
        values: at least one draw, site -> (S, *shape).
    """
    try:
        with Counted() as counted:
            vmap_random(function, {name: value[:1] for name, value in values.items()})
    except Exception:  # what cannot be mapped is called draw by draw anyway
        return 1
    # What is the same for all draws (a frozen backbone) is computed again for each chunk, and must leave room for some draws.
    return int(max(1, max(TILE_BYTES - counted.shared, TILE_BYTES // 2) // max(1, counted.own)))


def _outputs(model: Any, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """(M, K)."""
    out: Tensor = model.outputs(dict(weights), x)
    return out.reshape(len(x), -1)


def _checked(inputs: Any, like: Tensor) -> Tensor:
    wanted = f"(M, {', '.join(str(size) for size in like.shape[1:])})" if like.dim() > 1 else "(M,)"
    try:
        x = torch.as_tensor(inputs)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"functions must be inputs x of the shape {wanted}, a dict with x alone, or Data, got {type(inputs).__name__}"
        ) from None
    if x.dim() != like.dim() or x.shape[1:] != like.shape[1:] or not len(x):
        raise ValueError(
            f"functions must be inputs of the shape {wanted} that the model was fitted with, at least one, got {tuple(x.shape)}"
        )
    x = x.to(device=like.device, dtype=like.dtype)
    if not bool(torch.isfinite(x).all()):
        raise ValueError("functions holds NaN or Inf, and f is looked at for finite inputs only; leave these rows out")
    return x


def _output_names(data: Any, size: int) -> np.ndarray:
    classes = tuple(getattr(data, "class_names", ()) or ())
    if len(classes) == size > 1:
        return np.asarray(classes)
    target = getattr(data, "target_name", "")
    return np.asarray([target]) if size == 1 and target else np.arange(size)


def _kind(likelihood: Any) -> str:
    name = type(likelihood).__name__
    return "classes" if name.startswith("Categorical") else "binary" if name.startswith("Bernoulli") else "numbers"
