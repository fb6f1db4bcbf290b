"""Several restarts as one optimisation, over a leading dimension of every parameter.

The model is written for one fit; `torch.vmap` maps it over the stacked parameters, buffers and noise. Each restart keeps its
own noise, so it takes the same steps as it would alone. Restarts that cannot be stacked are trained one after another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .noise import Row, kept_generators, vmap_random
from .owned import GlobalStore, Owned, in_place
from .restart import Restart
from .tables import StepInputs
from .training import History, Loop

#: Optimisers that treat every element of a parameter by itself.
_ELEMENTWISE = (
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.ASGD,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Rprop,
    torch.optim.SGD,
)


def stack(restarts: Sequence[Restart]) -> StackedLoop | None:
    """One loop for prepared restarts, or None where they must be trained one after another.

    To be called inside the first restart's `owned.active`.
    """
    loops = [restart.loop for restart in restarts]
    first = loops[0]
    if first is None or any(loop is None or type(loop.optimizer) not in _ELEMENTWISE for loop in loops):
        return None
    if first.callbacks or first.pause is not None or restarts[0].streamed:
        return None
    if first.objective.doubly:  # weights the gradient on its way back, where vmap no longer is
        return None
    try:
        stacked = StackedLoop.of(restarts, [loop for loop in loops if loop is not None])
        return stacked if stacked.agrees() else None
    except (RuntimeError, ValueError, NotImplementedError, AttributeError, TypeError):
        # A model that cannot be mapped (it reads values, or draws what vmap has no rule for).
        return None


@dataclass
class StackedLoop(Loop):
    """A loop whose parameters, losses and noise have the restarts in front."""

    restarts: Sequence[Restart] = ()
    loops: Sequence[Loop] = ()
    holders: list[tuple[Any, str]] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, restarts: Sequence[Restart], loops: Sequence[Loop]) -> StackedLoop:
        """Stacks what differs between the restarts.

        Raises:
            ValueError: they do not have the same parameters, or share some.
        """
        slots = [_slots(restart.owned, inside=k == 0) for k, restart in enumerate(restarts)]
        if any(list(s) != list(slots[0]) for s in slots):
            raise ValueError("the restarts have different parameters")
        stacked: dict[int, Tensor] = {}
        holders: list[tuple[dict[str, Any], str]] = []
        values: list[Tensor] = []
        for name, (holder, key) in slots[0].items():
            each = [s[name][0][s[name][1]] for s in slots]
            trained = each[0].requires_grad
            if len({id(t) for t in each}) < len(each):
                if trained:
                    raise ValueError(f"the restarts share the parameter {name}")
                continue
            if not trained and all(torch.equal(t, each[0]) for t in each[1:]):
                continue
            if id(each[0]) not in stacked:
                value = torch.stack([t.detach() for t in each])
                stacked[id(each[0])] = nn.Parameter(value) if trained else value
            holders.append((holder, key))
            values.append(stacked[id(each[0])])
        first = loops[0]
        if any(id(p) not in stacked for p in first.parameters.values()):
            raise ValueError("a parameter is kept where no slot is known, in a module that a function calls")
        # In the order of the first loop's parameters, which its optimiser has.
        parameters = {name: stacked[id(p)] for name, p in first.parameters.items()}
        optimizer = restarts[0].make_optimizer(list(parameters.values()))
        loop = cls(
            first.objective,
            parameters,
            first.batch,
            first.tables.stacked([loop.tables.seeds[0] for loop in loops]),
            optimizer,
            first.clip_norm,
            history=first.history,
            total_steps=first.total_steps,
            kl_weight=first.kl_weight,
            compile=first.compile,
            restarts=restarts,
            loops=loops,
            holders=holders,
            values=values,
        )
        if first.tail is not None:
            loop.tail = type(first.tail)(list(parameters.values()), loop.summaries if first.tail.summary else None)
        return loop

    @property
    def histories(self) -> list[History]:
        """The records of the restarts."""
        return [loop.history for loop in self.loops]

    def record(self, losses: Tensor) -> None:
        """Takes note of losses, (steps, restarts)."""
        for history, column in zip(self.histories, losses.unbind(1), strict=True):
            history.losses += column.tolist()

    def evaluate(self, kwargs: Mapping[str, Any], inputs: StepInputs, *, strict: bool = False) -> tuple[Tensor, Tensor]:
        """The sum of what to differentiate, and the losses (restarts,)."""

        weight = None if self.kl_weight is None else inputs.kl_weight

        def one(normal: Tensor, uniform: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
            with in_place(self.holders, values):
                return self.objective(kwargs, Row(normal, uniform), kl_weight=weight, strict=strict)

        surrogates, losses = vmap_random(one, inputs.noise.normal, inputs.noise.uniform, *self.values)
        return surrogates.sum(), losses

    def summaries(self) -> Tensor:
        """The guide's summary for each restart, (restarts, K)."""

        def one(*values: Tensor) -> Tensor:
            with in_place(self.holders, values):
                assert self.loops[0].tail is not None
                assert self.loops[0].tail.summary is not None
                return self.loops[0].tail.summary()

        result: Tensor = torch.vmap(one)(*self.values)
        return result

    def sums(self, tensor: Tensor) -> Tensor:
        """The sum over a parameter's elements for each restart."""
        return tensor.reshape(len(self.restarts), -1).sum(1)

    def agrees(self) -> bool:
        """Whether the mapped restarts have the losses and gradients that they have one by one, and steps move no buffer.

        A mapped step would move copies of the buffers, as batch norm does.
        """
        with _kept_buffers(self.restarts) as moved:
            agree = self._agrees()
        return agree and not moved

    def _agrees(self) -> bool:
        row = self.tables.rows[0]
        row.kl_weight.fill_(0.5)
        row.noise.normal.normal_()
        row.noise.uniform.uniform_()
        if row.index is not None:
            row.index.copy_(torch.arange(len(row.index)))
        kwargs = self.batch(row.index)
        with kept_generators():
            surrogate, losses = self.evaluate(kwargs, row)
            grads = torch.autograd.grad(surrogate, self.leaves, allow_unused=True)
        for k, (restart, loop) in enumerate(zip(self.restarts, self.loops, strict=True)):
            with restart.owned.active() if k else contextlib.nullcontext(), kept_generators():
                own_row = replace(row, noise=Row(row.noise.normal[k], row.noise.uniform[k]))
                alone, loss = loop.evaluate(loop.batch(row.index), own_row)
                own = torch.autograd.grad(alone, loop.leaves, allow_unused=True)
            if not _close(losses[k].detach(), loss.detach()):
                return False
            if any(
                (a is None) != (b is None) or (a is not None and not _close(a[k], b)) for a, b in zip(grads, own, strict=True)
            ):
                return False
        return True

    def unstack(self) -> None:
        """Writes the parameters back into the restarts."""
        with torch.no_grad():
            for stacked, *each in zip(self.leaves, *(loop.leaves for loop in self.loops), strict=True):
                for k, parameter in enumerate(each):
                    parameter.copy_(stacked[k])


@contextlib.contextmanager
def _kept_buffers(restarts: Sequence[Restart]) -> Iterator[list[str]]:
    """Puts the buffers of all modules back; the names of those that the steps inside have moved or replaced."""
    moved: list[str] = []
    held = [
        (module, key, value, value.clone())
        for restart in restarts
        for part in (restart.owned.guide, restart.owned.model)
        for module in (part.modules() if isinstance(part, nn.Module) else ())
        for key, value in module._buffers.items()
        if value is not None
    ]
    try:
        yield moved
    finally:  # a map may fail when some have been moved
        for module, key, value, before in held:
            if module._buffers.get(key) is not value or not torch.equal(value, before):
                moved.append(key)
                module._buffers[key] = value
                value.detach().copy_(before)


def _slots(owned: Owned, *, inside: bool) -> dict[str, tuple[Any, str]]:
    """Where each tensor of a pair is kept, by name: the modules' own dictionaries, and the parameter store's.

    Args:
        inside: whether the pair is active, so that its store is Pyro's.
    """
    found: dict[str, tuple[Any, str]] = dict(owned.local_slots())
    for prefix, part in (("guide", owned.guide), ("model", owned.model)):
        for path, module in part.named_modules() if isinstance(part, nn.Module) else ():
            for holder in (module._parameters, module._buffers):
                for key, value in holder.items():
                    if value is not None:
                        found[f"{prefix}.{path}.{key}"] = (holder, key)
    store: Any = GlobalStore() if inside else owned.store["params"]
    return found | {f"param.{key}": (store, key) for key, _ in store.items()}


def _close(a: Tensor, b: Tensor) -> bool:
    share = 1e-8 if a.dtype == torch.float64 else 1e-3
    return bool(
        torch.allclose(a, b, rtol=share, atol=share * (1.0 + float(b.abs().max()) if b.numel() else 1.0), equal_nan=True)
    )
