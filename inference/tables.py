"""What differs from one step to the next, laid out for many steps at once.

Both engines read row k of each table at step k: normal and uniform noise, the rows of the batch, the learning rate's
factor; and write row k: the loss, and the summary of the guide that tells whether it has settled. A compiled step therefore
takes nothing from the host but a row number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .noise import Row

#: Noise is drawn for so many numbers at once, in as many steps as they serve.
_NUMBERS = 2**17
_MOST_NUMBERS = 2**23
_MOST_STEPS, _LEAST_STEPS = 256, 16
#: Rows begin at multiples of so many numbers, as compiled code expects of its inputs on a GPU.
_ALIGNED = 16


@dataclass(frozen=True)
class StepInputs:
    """Row k of every table, as views."""

    noise: Row
    index: Tensor | None
    factor: Tensor
    loss: Tensor
    summary: Tensor | None

    def tensors(self) -> dict[str, Tensor]:
        """The rows that exist, by the name of their table."""
        rows = {
            "normal": self.noise.normal,
            "uniform": self.noise.uniform,
            "index": self.index,
            "factor": self.factor,
            "loss": self.loss,
            "summary": self.summary,
        }
        return {name: row for name, row in rows.items() if row is not None}


class Tables:
    """The tables of one optimisation run.

    Args:
        shape: leading dimensions of the noise: (particles,), or (restarts, particles).
        normals, uniforms: numbers that one particle takes.
        batches: row numbers (B,) of each step, for ever; None where every step sees all rows.
        batch_size: B.
        summary_size: length of the guide's summary; 0 for none.
        losses: shape of one step's loss.
        seed: of the noise.
    """

    def __init__(
        self,
        shape: Sequence[int],
        normals: int,
        uniforms: int,
        *,
        batches: Iterator[Tensor] | None,
        batch_size: int,
        summary_shape: Sequence[int] | None,
        losses: Sequence[int] = (),
        dtype: torch.dtype,
        device: torch.device,
        seed: int,
    ) -> None:
        particles = torch.Size(shape).numel()
        numbers = particles * (normals + uniforms)
        steps = max(1, min(_MOST_STEPS, _NUMBERS // max(1, numbers)))
        if steps < _LEAST_STEPS and _LEAST_STEPS * numbers <= _MOST_NUMBERS:
            steps = _LEAST_STEPS
        self.steps = steps
        self.batches = batches
        self.generator = torch.Generator(device).manual_seed(seed)

        def table(row: Sequence[int], dtype: torch.dtype = dtype) -> Tensor:
            size = torch.Size(row).numel()
            padded = -(-size // _ALIGNED) * _ALIGNED
            return torch.zeros(steps, padded, dtype=dtype, device=device)

        self._normal, self._uniform = table((*shape, normals)), table((*shape, uniforms))
        self._index = None if batches is None else table((batch_size,), torch.int64)
        self._factor = table((1,), torch.float64)
        self._loss = table(losses)
        self._summary = None if summary_shape is None else table(summary_shape)
        self.storages = {
            "normal": self._normal,
            "uniform": self._uniform,
            "index": self._index,
            "factor": self._factor,
            "loss": self._loss,
            "summary": self._summary,
        }

        def rows(storage: Tensor, row: Sequence[int]) -> list[Tensor]:
            size = torch.Size(row).numel()
            return [storage[k, :size].reshape(tuple(row)) for k in range(steps)]

        normal, uniform = rows(self._normal, (*shape, normals)), rows(self._uniform, (*shape, uniforms))
        index = [None] * steps if self._index is None else rows(self._index, (batch_size,))
        factor = rows(self._factor, ())
        loss = rows(self._loss, losses)
        summary = [None] * steps if self._summary is None else rows(self._summary, summary_shape or ())
        self.rows = [
            StepInputs(Row(n, u), i, f, v, s)
            for n, u, i, f, v, s in zip(normal, uniform, index, factor, loss, summary, strict=True)
        ]
        self._losses, self._summaries = tuple(losses), tuple(summary_shape or ())
        self.position = self.steps

    def prepare(self, most: int) -> tuple[int, int]:
        """Fills the tables where they are used up.

        Returns:
            The first of the next rows, and how many there are, at most `most`.
        """
        if self.position == self.steps:
            self.fill()
            self.position = 0
        return self.position, min(most, self.steps - self.position)

    def fill(self) -> None:
        """New noise and new batches in every row."""
        if self._normal.numel():
            self._normal.normal_(generator=self.generator)
        if self._uniform.numel():
            self._uniform.uniform_(generator=self.generator)
        if self.batches is not None and self._index is not None:
            indices = torch.stack([next(self.batches) for _ in range(self.steps)])
            self._index[:, : indices.shape[1]] = indices

    def set_factors(self, first: int, factors: Sequence[float]) -> None:
        """The learning rate of the next steps, as a multiple of the optimiser's own."""
        self._factor[first : first + len(factors), 0] = torch.tensor(factors, dtype=torch.float64)

    def losses(self, first: int, count: int) -> Tensor:
        """(count, *losses) what the steps wrote, on the host, in double precision."""
        size = torch.Size(self._losses).numel()
        return self._loss[first : first + count, :size].double().cpu().reshape(count, *self._losses)

    def summaries(self, first: int, count: int) -> Tensor:
        """(count, *summary) what the steps wrote, on the device."""
        assert self._summary is not None
        size = torch.Size(self._summaries).numel()
        return self._summary[first : first + count, :size].clone().reshape(count, *self._summaries)
