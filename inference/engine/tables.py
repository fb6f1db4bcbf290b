"""What differs from one step to the next, laid out for many steps at once.

Both engines read row k of each table at step k: normal and uniform noise, the rows of the batch, the learning rate's
factor; and write row k: the loss, and the summary of the guide that tells whether it has settled. A compiled step therefore
takes nothing from the host but a row number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import twister
from .noise import Row

#: Noise is drawn for so many numbers at once, in as many steps as they serve.
_NUMBERS = 2**17
_MOST_NUMBERS = 2**23
_MOST_STEPS, _LEAST_STEPS = 4096, 16
#: Rows on a GPU begin at multiples of so many numbers, as compiled code expects of its inputs there.
_ALIGNED = 16


@dataclass(frozen=True)
class StepInputs:
    """Row k of every table, as views."""

    noise: Row
    index: Tensor | None
    factor: Tensor
    kl_weight: Tensor
    scalars: Tensor | None
    loss: Tensor
    summary: Tensor | None

    def tensors(self) -> dict[str, Tensor]:
        """The rows that exist, by the name of their table."""
        rows = {
            "normal": self.noise.normal,
            "uniform": self.noise.uniform,
            "index": self.index,
            "factor": self.factor,
            "kl_weight": self.kl_weight,
            "scalars": self.scalars,
            "loss": self.loss,
            "summary": self.summary,
        }
        return {name: row for name, row in rows.items() if row is not None}


class _Rows(dict[int, StepInputs]):
    """Rows, made when they are first asked for."""

    def __init__(self, make: Callable[[int], StepInputs]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, k: int) -> StepInputs:
        self[k] = self.make(k)
        return self[k]


class Tables:
    """The tables of one optimisation run.

    Args:
        particles: draws a step.
        normals, uniforms: numbers that one particle takes.
        batches: begins an endless series of row numbers (S, B), for S steps each; None where every step sees all rows.
        batch_size: B.
        summary_shape: of the guide's summary; None for none.
        seeds: of the noise; several where that many restarts are one step, whose noise and losses then have them in front.
    """

    def __init__(
        self,
        particles: int,
        normals: int,
        uniforms: int,
        *,
        batches: Callable[[], Iterator[Tensor]] | None,
        batch_size: int,
        summary_shape: Sequence[int] | None,
        dtype: torch.dtype,
        device: torch.device,
        seeds: Sequence[int],
    ) -> None:
        numbers = particles * (normals + uniforms)
        steps = max(1, min(_MOST_STEPS, _NUMBERS // max(1, numbers)))
        if steps < _LEAST_STEPS and _LEAST_STEPS * numbers <= _MOST_NUMBERS:
            steps = _LEAST_STEPS
        self.steps = steps
        self.batches = None if batches is None else batches()
        self._coming = torch.empty(0, batch_size, dtype=torch.int64, device=device)
        self._arguments: dict[str, Any] = {
            "particles": particles,
            "normals": normals,
            "uniforms": uniforms,
            "batches": batches,
            "batch_size": batch_size,
            "dtype": dtype,
            "device": device,
        }
        self.seeds = tuple(seeds)
        #: Whether noise is drawn by compiled code, which an eager fit does not wait for.
        self.compiled = False
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        stack = () if len(seeds) == 1 else (len(seeds),)

        def table(row: Sequence[int], dtype: torch.dtype = dtype, parts: int = 1) -> Tensor:
            size = torch.Size(row).numel()
            padded = size if device.type == "cpu" else -(-size // _ALIGNED) * _ALIGNED
            return torch.zeros(steps, parts * padded, dtype=dtype, device=device)

        self._normal = table((particles, normals), parts=len(seeds))
        self._uniform = table((particles, uniforms), parts=len(seeds))
        self._index = None if batches is None else table((batch_size,), torch.int64)
        self._factor, self._kl_weight = table((1,), torch.float64), table((1,), torch.float64)
        self._loss = table(stack)
        self._summary = None if summary_shape is None else table(summary_shape)
        self.storages = {
            "normal": self._normal,
            "uniform": self._uniform,
            "index": self._index,
            "factor": self._factor,
            "kl_weight": self._kl_weight,
            "loss": self._loss,
            "summary": self._summary,
        }

        self._shapes = {"normal": (*stack, particles, normals), "uniform": (*stack, particles, uniforms)}
        self._parts = len(seeds)
        self._scalars: Tensor | None = None
        self._scalars_shape: tuple[int, ...] = ()
        self.rows = _Rows(self._row)
        self._losses, self._summaries = stack, tuple(summary_shape or ())
        self.position = self.steps

    def _row(self, k: int) -> StepInputs:
        def view(storage: Tensor | None, shape: Sequence[int] = ()) -> Tensor | None:
            return None if storage is None else storage[k, : torch.Size(shape).numel()].reshape(tuple(shape))

        def noise(kind: str, storage: Tensor) -> Tensor:
            *_, particles, count = shape = self._shapes[kind]
            return storage[k].reshape(self._parts, -1)[:, : particles * count].reshape(shape)

        factor, weight, loss = view(self._factor), view(self._kl_weight), view(self._loss, self._losses)
        assert factor is not None
        assert weight is not None
        assert loss is not None
        return StepInputs(
            Row(noise("normal", self._normal), noise("uniform", self._uniform)),
            view(self._index, (self._arguments["batch_size"],)),
            factor,
            weight,
            view(self._scalars, self._scalars_shape),
            loss,
            view(self._summary, self._summaries),
        )

    def add_scalars(self, shape: tuple[int, ...]) -> None:
        """Makes room for an optimiser's scalars of each step."""
        self._scalars_shape = shape
        width = -(-torch.Size(shape).numel() // _ALIGNED) * _ALIGNED
        self._scalars = torch.zeros(self.steps, width, dtype=self._loss.dtype, device=self._loss.device)
        self.storages["scalars"] = self._scalars
        self.rows.clear()

    def set_scalars(self, first: int, values: Tensor) -> None:
        """The optimiser's scalars of the next steps, (steps, *shape)."""
        assert self._scalars is not None
        flat = values.flatten(1)
        self._scalars[first : first + len(flat), : flat.shape[1]] = flat.to(self._scalars)

    def stacked(self, seeds: Sequence[int]) -> Tables:
        """Tables for several restarts in one step, with the noise that each of these seeds has alone."""
        summary = None if self._summary is None else (len(seeds), *self._summaries)
        return Tables(**self._arguments, summary_shape=summary, seeds=seeds)

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
        normal, uniform = (twister.normal_, twister.uniform_) if self.compiled else (Tensor.normal_, Tensor.uniform_)
        for table, draw in ((self._normal, normal), (self._uniform, uniform)):
            if not table.numel():
                continue
            if len(self.generators) == 1:
                draw(table, generator=self.generators[0])
                continue
            # Each restart draws as it would alone.
            parts = table.view(self.steps, len(self.generators), -1)
            for k, generator in enumerate(self.generators):
                parts[:, k] = draw(torch.empty_like(parts[:, k]).contiguous(), generator=generator)
        if self.batches is not None and self._index is not None:
            filled = 0
            while filled < self.steps:
                if not len(self._coming):
                    self._coming = next(self.batches)
                some = self._coming[: self.steps - filled]
                self._index[filled : filled + len(some), : some.shape[1]] = some
                self._coming = self._coming[len(some) :]
                filled += len(some)

    def set(self, first: int, count: int, factors: float | Sequence[float], kl_weights: Sequence[float] | None) -> None:
        """The next steps' learning rates, as multiples of the optimiser's own, and weights of the KL."""
        for table, values in ((self._factor, factors), (self._kl_weight, kl_weights)):
            rows = table[first : first + count, 0]
            if isinstance(values, (int, float)):
                rows.fill_(values)
            elif values is not None:
                rows.copy_(torch.tensor(values, dtype=torch.float64))

    def losses(self, first: int, count: int) -> Tensor:
        """(count, *losses) what the steps wrote, on the host, in double precision."""
        size = torch.Size(self._losses).numel()
        return self._loss[first : first + count, :size].double().cpu().reshape(count, *self._losses)

    def finite(self, first: int, count: int) -> bool:
        """Whether the losses that the steps wrote are numbers."""
        return bool(torch.isfinite(self._loss[first : first + count]).all())

    def summaries(self, first: int, count: int) -> Tensor:
        """(count, *summary) what the steps wrote, on the device."""
        assert self._summary is not None
        size = torch.Size(self._summaries).numel()
        return self._summary[first : first + count, :size].clone().reshape(count, *self._summaries)
