"""A residual network layer by layer, for one or many draws of its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


class Stages:
    """Stem, layers and exits of a `ResidualNetwork`.

    Args:
        net: the network, with the trained weights of its points.
        weights: site -> draws `(S, *shape)` of latent weights; empty where all are points.
        prior: `(S, L + 1)` p(z) of each draw where it depends on the weights, which then count by it.
    """

    def __init__(self, net: Any, weights: Mapping[str, Tensor], prior: Tensor | None = None) -> None:
        self.net, self.weights = net, dict(weights)
        self.depth: int = net.depth
        # A depth that no draw gives a chance has no answer that counts.
        self.shares = None if prior is None else prior / prior.sum(0).clamp_min(torch.finfo(prior.dtype).tiny)

    def stem(self, x: Tensor) -> Tensor:
        """h_0: `(N, ...)`, or `(S, N, ...)` with draws."""
        return self._each(self.net.stem, "stem.", x, shared=True)

    def block(self, layers: int, h: Tensor) -> Tensor:
        """h after `layers` layers from h after one less."""
        return self._each(self.net.blocks[layers - 1], f"blocks.{layers - 1}.", h)

    def probs(self, layers: int, h: Tensor) -> tuple[Tensor, Tensor]:
        """p(y | x, z = layers), averaged over draws, `(N, K)`; and the size of the logits that it comes from, `(N,)`."""
        out = self._each(_Exit(self.net, layers), "net.", h)
        probs, size = torch.softmax(out, -1), out.abs().amax(-1)
        if not self.weights:
            return probs, size
        mean = probs.mean(0) if self.shares is None else torch.einsum("s,snk->nk", self.shares[:, layers], probs)
        return mean, size.amax(0)

    def keep(self, h: Tensor, rows: Tensor) -> Tensor:
        """Some rows of h."""
        return h[:, rows] if self.weights else h[rows]

    def _each(self, module: nn.Module, prefix: str, h: Tensor, *, shared: bool = False) -> Tensor:
        if not self.weights:
            out: Tensor = module(h)
            return out
        if prefix == "net.":
            mine = {prefix + name: draws for name, draws in self.weights.items()}
        else:
            mine = {name.removeprefix(prefix): draws for name, draws in self.weights.items() if name.startswith(prefix)}
        run: Callable[..., Tensor] = lambda w, one: functional_call(module, w, (one,))  # noqa: E731
        if not mine:
            return torch.vmap(lambda one: run({}, one))(h) if not shared else run({}, h).expand(self._draws, *run({}, h).shape)
        mapped: Tensor = torch.vmap(run, in_dims=(0, None if shared else 0))(mine, h)
        return mapped

    @property
    def _draws(self) -> int:
        return len(next(iter(self.weights.values())))


class _Exit(nn.Module):
    """The answer after some layers as a module, so that its weights have names."""

    def __init__(self, net: Any, layers: int) -> None:
        super().__init__()
        self.net, self.layers = net, layers

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.net.exit(h, self.layers)
        return out


class Cost:
    """Floating-point operations of one input: `first` for the stem, `block[l]` and `exit[l]`."""

    def __init__(self, stages: Stages, x: Tensor) -> None:
        def count(run: Callable[[], Tensor]) -> tuple[int, Tensor]:
            with FlopCounterMode(display=False) as counter:
                out = run()
            return int(counter.get_total_flops()), out

        self.first, h = count(lambda: stages.stem(x[:1]))
        self.exit = [count(lambda: stages.probs(0, h)[0])[0]]
        self.block = [0]
        for layers in range(1, stages.depth + 1):
            flops, h = count(lambda layers=layers, h=h: stages.block(layers, h))  # type: ignore[misc]
            self.block.append(flops)
            self.exit.append(count(lambda layers=layers, h=h: stages.probs(layers, h)[0])[0])  # type: ignore[misc]
