"""A few labelled examples of many, for curves of accuracy against the number of labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .dataset import Data
from .sampling import seeded_generator


def few_labels(data: Data, n: int, seed: int) -> Data:
    """Returns n random examples in which every class has its share, and at least one.

    Shares follow the classes' frequencies in the data. For one seed the sets are nested: the 100 examples are among
    the 300, and those among the 1,000, so that a curve against n is not shaken by new draws.

    Args:
        data: a data set in memory with class labels.
        n: how many examples, at least one for each class that occurs.
        seed: same seed, same examples.

    Raises:
        ValueError: one sentence, for data without class labels, and where n is below the number of classes or above
            that of examples.
    """
    if not isinstance(data, Data):
        raise ValueError(f"few_labels needs a bz.data.Data in memory, not {type(data).__name__}; load the data as a whole")
    observed = data.observed
    if data.num_classes is None or not isinstance(observed, Tensor) or observed.ndim != 1:
        raise ValueError(
            f"few_labels needs one class label for each example, and {data.name} has none (num_classes is "
            f"{data.num_classes}); take some rows with data.select(...) or data.split(...)"
        )
    labels = observed.long().cpu()
    present = len(labels.unique())
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or not present <= n <= len(data):
        raise ValueError(
            f"n must be an integer between {present} (one example for each class that occurs in {data.name}) and "
            f"{len(data)} (all examples), not {n!r}"
        )
    chosen = stratified_order(labels, seed)[: int(n)].sort().values
    note = f"{int(n)} of {len(data)} examples, stratified by class with seed {seed}"
    return replace(data.select(chosen), note=f"{data.note}; {note}" if data.note else note)


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """Returns all row numbers, shape `(N,)`, in an order whose every beginning is a stratified sample.

    The j-th example (from 0) of a class with c examples has the priority c / (2 j + 1). So seats are shared out by the
    method of Sainte-Laguë, which stays near proportional shares without favour to large or small classes; but each
    class's first example comes before all others, and equal priorities are in random order.

    Args:
        labels: class labels, shape `(N,)`, int64.
        seed: of the random order.
    """
    order = torch.randperm(len(labels), generator=seeded_generator(seed))
    shuffled = labels[order]
    priority = torch.empty(len(labels), dtype=torch.float64)
    for label in shuffled.unique():
        rows = (shuffled == label).nonzero()[:, 0]
        priority[rows] = len(rows) / (2.0 * torch.arange(len(rows), dtype=torch.float64) + 1.0)
        priority[rows[0]] = torch.inf
    return order[priority.argsort(descending=True, stable=True)]
