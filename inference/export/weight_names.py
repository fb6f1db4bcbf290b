"""Names for the entries of a network's weights: output and input of their layer, and where a filter has its numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

#: What the dimensions of a layer's weight or bias are, by their number.
_WORDS: dict[int, tuple[str, ...]] = {
    1: ("out",),
    2: ("out", "in"),
    3: ("out", "in", "position"),
    4: ("out", "in", "row", "column"),
    5: ("out", "in", "depth", "row", "column"),
}


def weight_dims(model: Any) -> dict[str, tuple[str, ...]]:
    """site -> names of its dimensions, `fc1.weight_out` and `fc1.weight_in`; nothing for models that are no networks."""
    net = getattr(model, "net", None)
    sites = getattr(model, "sites", None)
    if not isinstance(net, nn.Module) or not isinstance(sites, dict):
        return {}
    shapes = {name: value.shape for name, value in net.named_buffers() if name in sites}
    return {
        name: tuple(f"{name}_{word}" for word in _WORDS[len(shape)]) for name, shape in shapes.items() if len(shape) in _WORDS
    }


def weight_coords(model: Any, data: Any) -> dict[str, np.ndarray]:
    """Columns' names for the inputs of the first layer, classes' names for the outputs of the last.

    Only where the order of a network's parts is that of its computation, in an `nn.Sequential`.
    """
    net, dims = getattr(model, "net", None), weight_dims(model)
    if not isinstance(net, nn.Sequential) or not dims:
        return {}
    coords: dict[str, np.ndarray] = {}
    columns, classes = tuple(getattr(data, "feature_names", ()) or ()), tuple(getattr(data, "class_names", ()) or ())
    layers = [(name, layer) for name, layer in net.named_children() if not isinstance(layer, (nn.Flatten, nn.Identity))]
    first, last = layers[0], layers[-1]
    if isinstance(first[1], nn.Linear) and f"{first[0]}.weight" in dims and first[1].in_features == len(columns):
        coords[f"{first[0]}.weight_in"] = np.asarray(columns)
    if isinstance(last[1], nn.Linear) and last[1].out_features == len(classes):
        names = (f"{last[0]}.weight", f"{last[0]}.bias")
        coords |= {f"{name}_out": np.asarray(classes) for name in names if name in dims}
    return coords
