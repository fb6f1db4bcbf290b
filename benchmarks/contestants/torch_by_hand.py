"""Torch by hand: the losses of `torch_losses`, one fused Adam over two flat parameters, no value read inside the loop.

Compiled, each loss and its gradient are two graphs of `torch.compile`. They keep torch's own sampler: on a CPU the generated one
takes longer than the rest of a network's step, and with the same numbers the losses are those of the eager loop.
"""

from __future__ import annotations

import copy
import time

import torch

from .. import torch_losses
from ..cases import Case, index_rows
from . import Training, devices


class TorchByHand:
    """What an expert without Pyro would write.

    Args:
        compile: whether the loss goes through `torch.compile`.
    """

    def __init__(self, case: Case, device: str, *, compile: bool = False) -> None:
        self.case, self.device, self.compile = case, devices.ready(device), compile
        self.arrays = case.arrays()
        self.tensors = devices.to_tensors(self.arrays, device)
        self.loss_of = torch_losses.make(case.model, self.arrays).to(device)
        self.start = copy.deepcopy(self.loss_of.state_dict())
        if compile:  # here and not in each run, so that one process compiles once
            self.loss_of.compile(options={"fallback_random": True})

    def train(self, steps: int, seed: int) -> Training:
        began = devices.now(self.device)
        torch.manual_seed(seed)
        size, batch_size = len(self.tensors[self.case.observed]), self.case.batch_size
        loss_of = self.loss_of
        loss_of.load_state_dict(self.start)
        optimizer = torch.optim.Adam(loss_of.parameters(), lr=self.case.learning_rate, fused=True)
        batches = index_rows(size, batch_size, steps, seed) if batch_size else None
        rows = None if batches is None else torch.from_numpy(batches).to(self.device)
        scale = size / (batch_size or size)

        def step(k: int) -> torch.Tensor:
            tensors = self.tensors if rows is None else {name: value[rows[k]] for name, value in self.tensors.items()}
            optimizer.zero_grad()
            loss: torch.Tensor = loss_of(tensors, scale)
            loss.backward()
            optimizer.step()
            return loss.detach()

        losses = [step(0)]  # and the compiler
        looping = devices.now(self.device)
        cpu = time.process_time()
        losses += [step(k) for k in range(1, steps)]
        values = torch.stack(losses).tolist()
        cpu = time.process_time() - cpu
        loop = devices.now(self.device) - looping
        overhead = looping - began
        return Training(overhead, overhead if self.compile else None, loop, steps - 1, values, cpu / loop)

    def device_memory(self) -> float | None:
        return devices.peak_memory(self.device)


make = TorchByHand
