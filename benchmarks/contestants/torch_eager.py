"""Torch by hand: the losses of `torch_losses`, one fused Adam over two flat parameters, no value read inside the loop."""

from __future__ import annotations

import time

import torch

from .. import torch_losses
from ..cases import Case, index_rows
from . import Training, devices


class TorchEager:
    """What an expert without Pyro would write."""

    def __init__(self, case: Case, device: str) -> None:
        self.case, self.device = case, devices.ready(device)
        self.arrays = case.arrays()
        self.tensors = devices.to_tensors(self.arrays, device)

    def train(self, steps: int, seed: int) -> Training:
        began = devices.now(self.device)
        torch.manual_seed(seed)
        size, batch_size = len(self.tensors[self.case.observed]), self.case.batch_size
        loss_of = torch_losses.make(self.case.model, self.arrays).to(self.device)
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

        losses = [step(0)]
        looping = devices.now(self.device)
        cpu = time.process_time()
        losses += [step(k) for k in range(1, steps)]
        values = torch.stack(losses).tolist()
        cpu = time.process_time() - cpu
        loop = devices.now(self.device) - looping
        return Training(looping - began, None, loop, steps - 1, values, cpu / loop)

    def device_memory(self) -> float | None:
        return devices.peak_memory(self.device)


make = TorchEager
