"""A trained pair of model and guide with the settings that they run under.

Modules hold their parameters themselves. Plain functions keep theirs in Pyro's global store; each fit owns a private copy
of that store, so fits in one process never see each other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from .program import quiet


@dataclass
class Owned:
    """Model, guide and the `pyro.param` values of plain functions."""

    model: Any
    guide: Any
    dtype: torch.dtype
    device: torch.device
    store: Any = field(default_factory=lambda: {"params": {}, "constraints": {}})

    _entered: bool = False

    @contextlib.contextmanager
    def active(self, seed: int | None = None) -> Iterator[None]:
        """Runs a block with this pair's parameters, precision and device, validation off, global generators untouched."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(quiet(seed))
            stack.enter_context(default_dtype(self.dtype))
            if self.device.type != "cpu":
                stack.enter_context(torch.device(self.device))
            if self._entered:  # the store in use is already this pair's, newer than the saved state
                yield
                return
            self.store = stack.enter_context(pyro.get_param_store().scope(self.store))
            self._entered = True
            stack.callback(setattr, self, "_entered", False)
            yield

    def parameters(self) -> dict[str, Tensor]:
        """Every trained tensor by name, each once: the guide's, the model's, then the store's. Call inside `active`."""
        found: dict[str, Tensor] = {}
        seen: set[int] = set()
        for prefix, part in (("guide", self.guide), ("model", self.model)):
            if isinstance(part, nn.Module):
                for name, parameter in part.named_parameters():
                    if id(parameter) not in seen:
                        seen.add(id(parameter))
                        found[f"{prefix}.{name}"] = parameter
        for name, value in pyro.get_param_store().named_parameters():
            if id(value) not in seen:
                seen.add(id(value))
                found[f"param.{name}"] = value
        return found


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Makes tensors that a model creates, such as `torch.ones(3)`, take the fit's precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
