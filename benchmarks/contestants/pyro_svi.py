"""Pyro as its documentation says: `SVI(model, guide, Adam, Trace_ELBO()).step` in a loop, or with `JitTrace_ELBO`."""

from __future__ import annotations

import time
import warnings
from typing import Any

import pyro
import torch
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO

from .. import pyro_models
from ..cases import Case, index_rows
from . import Training, devices


class PyroSVI:
    """Plain `pyro.infer.SVI`.

    Args:
        jit: whether `JitTrace_ELBO` traces the loss; it takes tensors by position only.
        validate: Pyro's default is True.
    """

    def __init__(self, case: Case, device: str, *, jit: bool = False, validate: bool = True) -> None:
        self.case, self.device, self.jit = case, devices.ready(device), jit
        pyro.enable_validation(validate)
        self.tensors = devices.to_tensors(case.arrays(), device)
        if jit:
            warnings.simplefilter("ignore", torch.jit.TracerWarning)

    def train(self, steps: int, seed: int) -> Training:
        began = devices.now(self.device)
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        names, size, batch_size = list(self.tensors), len(self.tensors[self.case.observed]), self.case.batch_size
        pair = pyro_models.make(self.case.model, self.device)
        model, guide = pair.model, pair.guide
        if self.jit:

            def by_position(function: pyro_models.Model) -> pyro_models.Model:
                def call(*tensors: torch.Tensor) -> object:
                    index = tensors[-1] if batch_size else None
                    return function(**dict(zip(names, tensors, strict=False)), num_data=size, index=index)

                return call

            model, guide = by_position(model), by_position(guide)
        optimizers: Any = pyro.optim  # wrappers of torch's optimisers, made as Pyro is imported
        optimizer = optimizers.Adam({"lr": self.case.learning_rate})
        elbo = JitTrace_ELBO() if self.jit else Trace_ELBO()
        svi = SVI(model, guide, optimizer, loss=elbo)
        batches = index_rows(size, batch_size, steps, seed) if batch_size else None
        rows = None if batches is None else torch.from_numpy(batches).to(self.device)

        def step(k: int) -> float:
            index = None if rows is None else rows[k]
            tensors = self.tensors if index is None else {name: value[index] for name, value in self.tensors.items()}
            if self.jit:
                return float(svi.step(*tensors.values(), *([] if index is None else [index])))
            return float(svi.step(**tensors, num_data=size, index=index))

        # The first step builds the guide, and traces and compiles the loss where that is asked for.
        first = devices.now(self.device)
        losses = [step(0)]
        looping = devices.now(self.device)
        cpu = time.process_time()
        losses += [step(k) for k in range(1, steps)]
        cpu = time.process_time() - cpu
        loop = devices.now(self.device) - looping
        return Training(looping - began, looping - first if self.jit else None, loop, steps - 1, losses, cpu / loop)

    def device_memory(self) -> float | None:
        return devices.peak_memory(self.device)


make = PyroSVI
