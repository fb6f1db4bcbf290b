"""bayeszoo, given the same Pyro model and the same Pyro guide as plain Pyro, on its eager or its compiled engine."""

from __future__ import annotations

import functools
import importlib
import time
from typing import Any

import torch

import bayeszoo as bz

from .. import pyro_models
from ..cases import Case
from . import Training, devices


class Ours:
    """`bayeszoo.fit` with the steps, optimiser and estimator of the other contestants.

    The VAE's networks are trained in place, so only its first fit in a process starts from the common weights; time until accurate is
    taken from first fits alone, and a step costs the same wherever it starts.

    Args:
        guide: a family of bayeszoo's own in place of Pyro's guide.
        num_particles: draws a step.
    """

    def __init__(self, case: Case, device: str, *, compile: bool, guide: str | None = None, num_particles: int = 1) -> None:
        if guide is not None and case.model == "vae":
            raise ValueError("the VAE's guide is its encoder")
        self.case, self.device, self.compile, self.num_particles = case, devices.ready(device), compile, num_particles
        if compile:
            importlib.import_module("torch._inductor.compile_fx")  # as `Module.compile` does for torch by hand, and jax its own
        tensors = devices.to_tensors(case.arrays(), device)
        observed = {case.observed: tensors.pop(case.observed)}
        self.data = bz.data.Data(inputs=tensors, observed=observed)
        pair = pyro_models.make(case.model, device)
        self.model: Any = pair.model
        self.guide: Any = guide or pair.guide
        self.estimator: Any = "monte_carlo"
        self.fit = bz.fit  # found here, so that its imports are not timed

    def train(self, steps: int, seed: int) -> Training:
        began = devices.now(self.device)
        cpu = time.process_time()
        fit: Any = self.fit(
            self.model,
            self.data,
            self.guide,
            loss=self.estimator,
            optimizer=functools.partial(torch.optim.Adam, lr=self.case.learning_rate),
            steps=steps,
            schedule="constant",
            batch_size=self.case.batch_size,
            num_particles=self.num_particles,
            compile=self.compile,
            device=self.device,
            progress=False,
            seed=seed,
        )
        total = devices.now(self.device) - began
        cores = (time.process_time() - cpu) / total
        seconds = fit.timings
        overhead = total - seconds["steps"] - seconds["evaluation"]
        losses = [float(loss) for loss in fit.losses]
        compiling = seconds["compile"] if self.compile else None
        return Training(overhead, compiling, seconds["steps"], steps, losses, cores)

    def device_memory(self) -> float | None:
        return devices.peak_memory(self.device)


make = Ours
