"""NumPyro: `SVI.run` as one compiled scan over all steps, or a compiled `SVI.update` called once a step.

`scan=True` is `SVI.run(..., progress_bar=False)`, compiled ahead as a whole: the fastest of NumPyro's ways. `SVI.run` has no
minibatches; for them it is the same scan over the rows' numbers, the batch gathered from the data on the device inside the
scan (`plate(subsample_size=)` would draw a permutation of all rows at every step). `scan=False` is what `SVI.run` does by
default, behind its progress bar: one call of the jitted update a step. `SVI.init` is compiled too: run eagerly it takes longer
than the scan's own compilation.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from numpyro.infer import SVI, Trace_ELBO

from .. import numpyro_models
from ..cases import Case, index_rows
from . import Training


class NumPyroSVI:
    """`numpyro.infer.SVI` with `Trace_ELBO` and `numpyro.optim.Adam`."""

    def __init__(self, case: Case, device: str, *, scan: bool = True, num_particles: int = 1) -> None:
        self.case, self.scan, self.num_particles = case, scan, num_particles
        try:
            self.on = jax.devices("gpu" if device == "cuda" else "cpu")[0]
        except RuntimeError as error:
            raise RuntimeError("jax sees no GPU") from error
        jax.config.update("jax_default_device", self.on)
        self.data = {name: jax.device_put(value, self.on) for name, value in case.arrays().items()}
        self.size = len(self.data[case.observed])
        self.key = jax.random.PRNGKey(0)
        self.start: Any = None
        self.runs: dict[int, Any] = {}

    def _compile(self, steps: int) -> None:
        """Compiles the start and the run over `steps` steps, or over one; data are arguments, not constants."""
        model, guide = numpyro_models.make(self.case.model)
        svi = SVI(model, guide, numpyro.optim.Adam(self.case.learning_rate), Trace_ELBO(num_particles=self.num_particles))
        batch_size, size = self.case.batch_size, self.size

        def start(key: Any, data: Any) -> Any:
            return svi.init(key, **{name: value[:batch_size] for name, value in data.items()}, num_data=size)

        def update(state: Any, data: Any, index: Any) -> Any:
            batch = data if index is None else {name: value[index] for name, value in data.items()}
            return svi.update(state, **batch, num_data=size)

        def run(state: Any, data: Any, rows: Any) -> Any:
            if rows is None:
                return svi.run(self.key, steps, **data, num_data=size, progress_bar=False, init_state=state).losses
            return jax.lax.scan(lambda state, index: update(state, data, index), state, rows)[1]

        self.start = jax.jit(start).lower(self.key, self.data).compile()
        state = self.start(self.key, self.data)
        shape = (steps, batch_size) if self.scan else (batch_size,)
        rows = None if batch_size is None else jax.ShapeDtypeStruct(shape, jnp.int32)
        # The compiled update is called through jit: its dispatch is quicker than that of a function compiled ahead.
        self.runs[steps] = jax.jit(run).lower(state, self.data, rows).compile() if self.scan else jax.jit(update)
        if not self.scan:
            jax.block_until_ready(self.runs[steps](state, self.data, None if rows is None else jnp.zeros(shape, jnp.int32)))

    def train(self, steps: int, seed: int) -> Training:
        began = time.perf_counter()
        compiling = None
        kind = steps if self.scan else 1
        if kind not in self.runs:
            self._compile(kind)
            compiling = time.perf_counter() - began
        run = self.runs[kind]
        state = jax.block_until_ready(self.start(jax.random.PRNGKey(seed), self.data))
        batch_size, rows = self.case.batch_size, None
        if batch_size is not None:
            numbers = index_rows(self.size, batch_size, steps, seed).astype("int32")
            # A call a step takes NumPy rows: slicing a jax array would be a call of its own.
            rows = jax.device_put(numbers, self.on) if self.scan else numbers
        looping = time.perf_counter()
        cpu = time.process_time()
        if self.scan:
            losses = jax.block_until_ready(run(state, self.data, rows))
        else:
            losses = []
            for k in range(steps):
                state, loss = run(state, self.data, None if rows is None else rows[k])
                losses.append(loss)
            jax.block_until_ready(losses)
        cpu = time.process_time() - cpu
        loop = time.perf_counter() - looping
        values = [float(x) for x in jax.device_get(losses)]
        return Training(looping - began, compiling, loop, steps, values, cpu / loop)

    def device_memory(self) -> float | None:
        stats = self.on.memory_stats() if self.on.platform != "cpu" else None
        return stats["peak_bytes_in_use"] / 2**20 if stats else None


make = NumPyroSVI
