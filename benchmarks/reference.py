"""The loss that a family can reach where no closed form tells: a long run whose learning rate falls to zero."""

from __future__ import annotations

import math

import torch

from . import torch_losses
from .cases import CASES, Case, index_rows


def long_run(case: Case, steps: int) -> tuple[float, float]:
    """Mean loss of the last tenth of the steps, and its standard error, in nats.

    Uses the hand-written loss, whose expectation is that of all others (a test says so).
    """
    torch.manual_seed(0)
    arrays = case.arrays()
    tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
    size = len(arrays[case.observed])
    batch_size = case.batch_size or size
    rows = torch.from_numpy(index_rows(size, batch_size, steps, seed=0)) if case.batch_size else None
    loss_of = torch_losses.make(case.model, arrays)
    optimizer = torch.optim.Adam(loss_of.parameters(), lr=case.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for k in range(steps):
        batch = tensors if rows is None else {name: value[rows[k]] for name, value in tensors.items()}
        optimizer.zero_grad()
        loss = loss_of(batch, size / batch_size)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    tail = torch.stack(losses[-steps // 10 :]).double()
    return float(tail.mean()), float(tail.std()) / math.sqrt(len(tail))


def main(names: list[str]) -> None:
    """Prints one line a case: its recorded best loss beside that of a run of twenty times its steps (six times the VAE's)."""
    for name in names:
        case = CASES[name]
        steps = case.steps * (20 if case.small else 6)
        found, error = long_run(case, steps)
        recorded = case.target - case.tolerance
        closed = "closed form" if callable(case.best) else "recorded"
        print(f"{name:14} {steps} steps: {found:.3f} +- {error:.3f} nats; {closed}: {recorded:.3f}", flush=True)
