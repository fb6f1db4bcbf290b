"""When the answer cannot change any more.

J(y, z) = p(y | x, z) p(z) is known for z = 0 .. l after l layers. Two answers have certificates:

    mode      the largest J(y, z): no deeper z can win once the best so far is at least max_{z > l} p(z), since p(y | x, z) <= 1
    marginal  the largest sum_z J(y, z): certain once the leader's sum exceeds the runner-up's by all the mass of z > l

Ties go to the smallest z, then to the smallest y. A product of matrices differs in its last bits with the number of rows, so
a certificate must hold with a margin; where two classes are nearer than that among what was computed, all layers are run for
this row alone, so that its answer is always the same. With many draws of the weights p(y | x, z) is their average, which is at most 1, too.
Rounding of the logits is relative to their size, and becomes the relative error of p(y | x, z).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

#: Rounding of p(y | x, z) in units of the precision's epsilon, for logits of at most `SIZE` in absolute value: of the matrix
#: products that differ with the number of rows. Ten times what networks with logits of some thousands show.
ROUNDING, SIZE = 1000.0, 10.0


def rounding(size: Tensor) -> Tensor:
    """Relative error of p(y | x, z) from logits of some size, both `(N,)`."""
    return ROUNDING * torch.finfo(size.dtype).eps * (size / SIZE).clamp_min(1.0)


class Rule(Protocol):
    """What is known of some inputs so far, one row each."""

    def update(self, layers: int, probs: Tensor, size: Tensor) -> Tensor:
        """Takes p(y | x, z = layers), `(N, K)`, and the size of its logits, `(N,)`; returns which rows are certain, `(N,)`."""

    def keep(self, rows: Tensor) -> None:
        """Goes on with these rows only."""

    def answer(self) -> tuple[Tensor, Tensor]:
        """The class `(N,)` and its J or sum of J `(N,)`."""

    def close(self) -> Tensor:
        """Which rows have another class so near that rounding decides between them, `(N,)`."""


class Mode:
    """The most probable pair of class and depth."""

    def __init__(self, prior: Tensor, rows: int, classes: int) -> None:
        self.prior = prior
        self.best = prior.new_full((rows,), -1.0)
        self.label = torch.zeros(rows, dtype=torch.long, device=prior.device)
        self.most = prior.new_full((rows, classes), -1.0)  # the largest J of each class
        self.deeper = torch.cat([prior, prior.new_zeros(1)]).flip(0).cummax(0).values.flip(0)[1:]
        self.margin = prior.new_zeros(rows)

    def update(self, layers: int, probs: Tensor, size: Tensor) -> Tensor:
        """See `Rule`."""
        self.margin = torch.maximum(self.margin, rounding(size))
        joint = self.prior[layers] * probs
        self.most = torch.maximum(self.most, joint)
        value, label = joint.max(1)
        better = value > self.best  # strictly: a tie belongs to fewer layers
        self.best = torch.where(better, value, self.best)
        self.label = torch.where(better, label, self.label)
        return self.best >= self.deeper[layers] * (1 + self.margin)

    def keep(self, rows: Tensor) -> None:
        """See `Rule`."""
        self.best, self.label, self.most, self.margin = self.best[rows], self.label[rows], self.most[rows], self.margin[rows]

    def answer(self) -> tuple[Tensor, Tensor]:
        """See `Rule`."""
        return self.label, self.best

    def close(self) -> Tensor:
        """See `Rule`."""
        second = self.most.scatter(1, self.label.unsqueeze(1), -1.0).max(1).values
        return second >= self.best * (1 - self.margin)


class Marginal:
    """The most probable class, the depth summed out."""

    def __init__(self, prior: Tensor, rows: int, classes: int) -> None:
        self.prior = prior
        self.sums = prior.new_zeros(rows, classes)
        self.left = torch.cat([prior, prior.new_zeros(1)]).flip(0).cumsum(0).flip(0)[1:]
        self.margin = prior.new_zeros(rows)

    def update(self, layers: int, probs: Tensor, size: Tensor) -> Tensor:
        """See `Rule`."""
        self.margin = torch.maximum(self.margin, rounding(size))
        self.sums = self.sums + self.prior[layers] * probs
        if layers == len(self.prior) - 1:
            return torch.ones(len(probs), dtype=torch.bool, device=probs.device)
        first, second = self.sums.topk(2, 1).values.unbind(1)
        return first - second > self.left[layers] * (1 + self.margin) + self.margin * first

    def keep(self, rows: Tensor) -> None:
        """See `Rule`."""
        self.sums, self.margin = self.sums[rows], self.margin[rows]

    def answer(self) -> tuple[Tensor, Tensor]:
        """See `Rule`."""
        value, label = self.sums.max(1)
        return label, value

    def close(self) -> Tensor:
        """See `Rule`."""
        first, second = self.sums.topk(2, 1).values.unbind(1)
        return first - second <= self.margin * first


class Given:
    """The class at a depth that is chosen before."""

    def __init__(self, depth: Tensor) -> None:
        self.depth = depth
        self.label = torch.zeros(len(depth), dtype=torch.long, device=depth.device)
        self.prob = torch.zeros(len(depth), device=depth.device)

    def update(self, layers: int, probs: Tensor, size: Tensor) -> Tensor:
        """See `Rule`."""
        here = self.depth == layers
        value, label = probs.max(1)
        self.label = torch.where(here, label, self.label)
        self.prob = torch.where(here, value.to(self.prob), self.prob)
        return self.depth <= layers

    def keep(self, rows: Tensor) -> None:
        """See `Rule`."""
        self.depth, self.label, self.prob = self.depth[rows], self.label[rows], self.prob[rows]

    def answer(self) -> tuple[Tensor, Tensor]:
        """See `Rule`."""
        return self.label, self.prob

    def close(self) -> Tensor:
        """See `Rule`; nothing is claimed of the answer."""
        return torch.zeros_like(self.label, dtype=torch.bool)
