"""What pruning a network gives: the network, what became of each layer, and a table for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn


@dataclass(frozen=True)
class PrunedLayer:
    """What became of one layer; numbers of weights do not include biases.

    Attributes:
        form: `dense`, `gathered` (some inputs are picked, then dense), `sparse`, or `in place` (zeros kept in the old shape).
        shape, shape_left: of its weights before and after.
        weights, nonzero: all, and those that are not zero after thresholding.
        left: those that are not zero in the result, where constant and unread units are gone.
        stored: numbers that the result keeps for them, zeros included.
        seconds: for one input, of each form that was tried.
    """

    name: str
    form: str
    shape: tuple[int, ...]
    shape_left: tuple[int, ...]
    weights: int
    nonzero: int
    left: int
    stored: int
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        """Share of zeros among all weights."""
        return 1 - self.nonzero / self.weights


@dataclass(frozen=True, repr=False)
class SparseNetwork:
    """A network without its superfluous weights, beside the same network with zeros in their place.

    Attributes:
        network: torch's own modules only, on the CPU, in evaluation mode; it returns what the model's `net` returns.
        threshold: of log alpha; None where masks were given.
        layers: one entry for each layer whose weights were pruned.
        batch_size, threads: under which the times were taken.
        dense_bytes, bytes: of the saved `state_dict`, with zeros and without.
        dense_seconds, seconds: for one input, with zeros and without.
        max_difference: the largest between the outputs of both.
        notes: one sentence for each thing that could not be removed.
    """

    network: nn.Module
    threshold: float | None
    layers: tuple[PrunedLayer, ...]
    batch_size: int
    threads: int
    dense_bytes: int
    bytes: int
    dense_seconds: float
    seconds: float
    max_difference: float
    notes: tuple[str, ...]

    @property
    def weights(self) -> int:
        """All weights of the pruned layers."""
        return sum(layer.weights for layer in self.layers)

    @property
    def nonzero(self) -> int:
        """Weights that are not zero after thresholding."""
        return sum(layer.nonzero for layer in self.layers)

    @property
    def left(self) -> int:
        """Weights that are not zero in the result."""
        return sum(layer.left for layer in self.layers)

    @property
    def stored(self) -> int:
        """Numbers that the result keeps for its weights, zeros included."""
        return sum(layer.stored for layer in self.layers)

    @property
    def compression(self) -> float:
        """All weights by those that are not zero after thresholding, as Molchanov et al. 2017 count."""
        return self.weights / self.nonzero if self.nonzero else math.inf

    @property
    def speedup(self) -> float:
        """Time of the network with zeros by that of the result."""
        return self.dense_seconds / self.seconds

    def __str__(self) -> str:
        what = "masks" if self.threshold is None else f"log alpha <= {self.threshold:g}"
        lines = [
            f"{self.nonzero:,} of {self.weights:,} weights ({what}), compression {self.compression:.1f}x; biases not counted"
        ]
        lines += ["", *_columns(self._layer_table(), left=2), "", *_columns(self._cost_table(), left=1, last=True)]
        return "\n".join([*lines, *(f"note: {text}" for text in self.notes)])

    __repr__ = __str__

    def _layer_table(self) -> list[list[str]]:
        rows = [["layer", "form", "shape", "shape left", "weights", "non-zero", "sparsity", "left", "stored"]]
        parts: list[PrunedLayer | SparseNetwork] = [*self.layers, self]
        for part in parts:
            own = [part.name, part.form, _shape(part.shape), _shape(part.shape_left)] if isinstance(part, PrunedLayer) else None
            zeros = f"{1 - part.nonzero / part.weights:.1%}"
            counts = [f"{part.weights:,}", f"{part.nonzero:,}", zeros, f"{part.left:,}", f"{part.stored:,}"]
            rows.append([*(own or ["all", "", "", ""]), *counts])
        return rows

    def _cost_table(self) -> list[list[str]]:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        where = f"CPU, {threads}, batches of {self.batch_size}"
        times = [f"{1e6 * seconds:.3g} us" for seconds in (self.dense_seconds, self.seconds)]
        return [
            ["", "with zeros", "without", ""],
            ["bytes on disk", f"{self.dense_bytes:,}", f"{self.bytes:,}", f"{self.dense_bytes / self.bytes:.1f}x smaller"],
            ["time an input", *times, f"{self.speedup:.1f}x faster ({where})"],
            ["largest difference", "", f"{self.max_difference:.1g}", "between their outputs"],
        ]


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _columns(rows: list[list[str]], *, left: int, last: bool = False) -> list[str]:
    """Aligned columns: the first `left` (and the last one) to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def align(k: int) -> Callable[[str, int], str]:
        return str.ljust if k < left or (last and k == len(widths) - 1) else str.rjust

    aligned = [[align(k)(cell, width) for k, (cell, width) in enumerate(zip(row, widths, strict=True))] for row in rows]
    return ["  " + "  ".join(row).rstrip() for row in aligned]
