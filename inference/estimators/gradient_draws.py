"""Many independent gradients of one random loss, at one setting of the parameters.

`torch.vmap` maps the loss over noise, batches and copies of the parameters, so that the gradient of the sum has every draw's
own gradient; what cannot be mapped is called draw by draw.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.noise import Counting, Row, kept_generators, vmap_random
from ..engine.owned import GlobalStore, Owned, in_place, local_stores

#: (keyword arguments of model and guide, noise (num_particles, n)) -> tensor to differentiate, value to report.
type RandomLoss = Callable[[Mapping[str, Any], Row], tuple[Tensor, Tensor]]

#: Numbers of all gradients, and rows of all batches, that one mapped call may hold.
_NUMBERS, _ROWS = 2**22, 2**15
#: Draws of one mapped call at most.
_CHUNK = 256
#: Gradients that are timed one by one.
_TIMED = 20


class GradientDraws:
    """Gradients with respect to everything that is trained, in blocks; to be used inside `owned.active`.

    Args:
        batch_size: rows of one gradient, None for all. Draws 2 i and 2 i + 1 of a block then see the same rows.
        num_blocks, per_block: how many blocks, and gradients in each.
        seed: of the noise, and of the batches, which are the same for all losses.

    Attributes:
        parameters: the trained tensors by name.
        mapped: whether all gradients so far were mapped.
    """

    def __init__(
        self,
        owned: Owned,
        data: Any,
        batch_size: int | None,
        num_particles: int,
        num_blocks: int,
        per_block: int,
        seed: int,
    ) -> None:
        self.owned, self.data, self.batch_size, self.num_particles = owned, data, batch_size, num_particles
        self.num_blocks, self.per_block, self.seed = num_blocks, per_block, seed
        self.full: Mapping[str, Any] = data.bind(owned.model)
        owned.collect(self.full)
        self.parameters = {name: p for name, p in owned.parameters().items() if p.requires_grad}
        if not self.parameters:
            raise ValueError("neither the guide nor the model has parameters to train, so there is no gradient to measure")
        self.size = sum(p.numel() for p in self.parameters.values())
        self.holders = _holders(owned, list(self.parameters.values()))
        self.mapped = True

    def blocks(self, loss: RandomLoss, stream: int, copies: int = 1) -> Iterator[Tensor]:
        """Gradients (per_block, P) of each block, `copies` times on the same batches and with new noise.

        Args:
            stream: which sequence of noise to use.
        """
        normals, uniforms = self._count(loss)
        generator = self._generator(stream)
        rows = len(self.data) if self.batch_size is None else self.batch_size
        at_once = min(_CHUNK, _NUMBERS // self.size, _ROWS // rows) // self.per_block
        vectorized: bool | None = None
        units = [block for block in range(self.num_blocks) for _ in range(copies)]
        for first in range(0, len(units), max(1, at_once)):
            some = units[first : first + max(1, at_once)]
            batches = [kwargs for block in some for kwargs in self._batches(block)]
            noise = self._noise(len(some) * self.per_block, normals, uniforms, generator)
            if vectorized is None:
                vectorized = self._can_be_mapped(loss, batches, noise)
                self.mapped = self.mapped and vectorized
            found = self._mapped(loss, batches, noise)[0] if vectorized else self._one_by_one(loss, batches, noise)
            yield from found.split(self.per_block)

    def losses(self, loss: RandomLoss, stream: int, num: int) -> Tensor:
        """Values (num,) of the loss itself, each for a batch of its own."""
        generator = self._generator(stream)
        normals, uniforms = self._count(loss)
        values = []
        with torch.no_grad():
            for _ in range(num):
                noise = self._noise(1, normals, uniforms, generator)
                values.append(loss(self._batch(generator), Row(noise.normal[0], noise.uniform[0]))[1])
        return torch.stack(values)

    def seconds(self, loss: RandomLoss, stream: int) -> float:
        """Wall time of one gradient alone, the least of a few: other work on the machine only adds to it."""
        generator = self._generator(stream)
        normals, uniforms = self._count(loss)
        times = []
        for _ in range(_TIMED):
            batches, noise = [self._batch(generator)], self._noise(1, normals, uniforms, generator)
            began = time.perf_counter()
            self._one_by_one(loss, batches, noise)
            if self.owned.device.type == "cuda":
                torch.cuda.synchronize(self.owned.device)
            times.append(time.perf_counter() - began)
        return min(times)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """A vector (P,) as one tensor a parameter."""
        parts = flat.split([p.numel() for p in self.parameters.values()])
        return {name: part.reshape(p.shape) for (name, p), part in zip(self.parameters.items(), parts, strict=True)}

    def _generator(self, stream: int) -> torch.Generator:
        return torch.Generator(self.owned.device).manual_seed((self.seed * 1009 + stream) % 2**63)

    def _noise(self, num: int, normals: int, uniforms: int, generator: torch.Generator) -> Row:
        like: dict[str, Any] = {"generator": generator, "dtype": self.owned.dtype, "device": self.owned.device}
        shape = (num, self.num_particles)
        return Row(torch.randn(*shape, normals, **like), torch.rand(*shape, uniforms, **like))

    def _count(self, loss: RandomLoss) -> tuple[int, int]:
        """How many normal and uniform numbers one particle takes."""
        blank = torch.zeros(self.num_particles, 0, dtype=self.owned.dtype, device=self.owned.device)
        with kept_generators(), Counting() as counted:
            loss(self._batch(self._generator(0)), Row(blank, blank))
        return counted.normals // self.num_particles, counted.uniforms // self.num_particles

    def _batch(self, generator: torch.Generator) -> Mapping[str, Any]:
        if self.batch_size is None:
            return self.full
        index = torch.randperm(len(self.data), generator=generator, device=self.owned.device)[: self.batch_size]
        batch: Mapping[str, Any] = self.data.batch(index, self.owned.model)
        return batch

    def _batches(self, block: int) -> list[Mapping[str, Any]]:
        """The arguments of each draw of a block."""
        if self.batch_size is None:
            return [self.full] * self.per_block
        generator = self._generator(100_003 + block)
        each = [self._batch(generator) for _ in range(self.per_block // 2)]
        return [kwargs for kwargs in each for _ in range(2)]

    def _can_be_mapped(self, loss: RandomLoss, batches: Sequence[Mapping[str, Any]], noise: Row) -> bool:
        """Maps the first and the last draw, and takes them one by one."""
        two, ends = Row(noise.normal[[0, -1]], noise.uniform[[0, -1]]), [batches[0], batches[-1]]
        with kept_generators():
            try:
                mapped = self._mapped(loss, ends, two)[0]
            except Exception:  # a guide or model that cannot be mapped, whatever it raises, is called draw by draw
                return False
        with kept_generators():
            alone = self._one_by_one(loss, ends, two)
        share = 1e-8 if alone.dtype == torch.float64 else 1e-3
        slack = share * (1.0 + float(alone.nan_to_num().abs().max()))
        return bool(torch.allclose(mapped, alone, rtol=share, atol=slack, equal_nan=True))

    def _mapped(self, loss: RandomLoss, batches: Sequence[Mapping[str, Any]], noise: Row) -> tuple[Tensor, Tensor]:
        same = {k: v for k, v in batches[0].items() if not isinstance(v, Tensor) or all(other[k] is v for other in batches)}
        other = {k: torch.stack([kwargs[k] for kwargs in batches]) for k in batches[0] if k not in same}
        num = len(batches)
        copies = [p.detach().expand(num, *p.shape).clone().requires_grad_() for p in self.parameters.values()]

        def one(normal: Tensor, uniform: Tensor, batch: Mapping[str, Any], *values: Tensor) -> tuple[Tensor, Tensor]:
            with self._in_place(values):
                return loss({**same, **batch}, Row(normal, uniform))

        surrogates, values = vmap_random(one, noise.normal, noise.uniform, other, *copies)
        return self._flat(torch.autograd.grad(surrogates.sum(), copies, allow_unused=True), num), values.detach()

    def _one_by_one(self, loss: RandomLoss, batches: Sequence[Mapping[str, Any]], noise: Row) -> Tensor:
        leaves = list(self.parameters.values())
        found = []
        for kwargs, normal, uniform in zip(batches, *noise, strict=True):
            surrogate, _ = loss(kwargs, Row(normal, uniform))
            grads = torch.autograd.grad(surrogate, leaves, allow_unused=True)
            found.append(self._flat([None if g is None else g.unsqueeze(0) for g in grads], 1))
        return torch.cat(found)

    def _flat(self, grads: Sequence[Tensor | None], num: int) -> Tensor:
        parts = [
            torch.zeros(num, p.numel(), dtype=p.dtype, device=p.device) if g is None else g.reshape(num, -1)
            for g, p in zip(grads, self.parameters.values(), strict=True)
        ]
        return torch.cat(parts, dim=1).detach()

    def _in_place(self, values: Sequence[Tensor]) -> contextlib.AbstractContextManager[None]:
        """Other tensors in the place of the parameters."""
        places = [(place, value) for held, value in zip(self.holders, values, strict=True) for place in held]
        return in_place([place for place, _ in places], [value for _, value in places])


def _holders(owned: Owned, parameters: Sequence[Tensor]) -> list[list[tuple[Any, str]]]:
    """For each parameter the dictionaries that hold it: modules' own, and Pyro's parameter store."""
    dictionaries: list[Any] = [GlobalStore()]
    for part in (owned.guide, owned.model):
        dictionaries += [m._parameters for m in part.modules()] if isinstance(part, nn.Module) else []
        dictionaries += local_stores(part).values()
    for part in owned.borrowed.modules():
        dictionaries += [part._parameters, *local_stores(part).values()]
    places: dict[int, list[tuple[Any, str]]] = {id(p): [] for p in parameters}
    seen: set[int] = set()
    for holder in dictionaries:
        if id(holder) in seen:
            continue
        seen.add(id(holder))
        for key, value in holder.items():
            if id(value) in places:
                places[id(value)].append((holder, key))
    return list(places.values())
