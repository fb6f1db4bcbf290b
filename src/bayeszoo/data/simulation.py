"""Data drawn from a model: its prior draws the latents, its likelihood the observed values.

The seed governs everything, and the global generators of torch, numpy and Python, and Pyro's parameter store,
are left as they were.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from . import binding
from .binding import Model
from .checks import RESERVED, to_tensor
from .dataset import Data


def simulate(model: Model, n: int, seed: int, *, inputs: Mapping[str, Any] | None = None) -> Data:
    """Draws n observations from a model.

    The model is called once with nothing observed. The observed values are those of the sample sites that
    bear the name of a parameter with default None; if there is none, the model's return value.

    Args:
        model: a module or any other callable; it gets `num_data=n` if it takes `num_data`.
        n: number of observations.
        seed: non-negative integer; the same seed gives the same data.
        inputs: inputs with n rows, by parameter name. A model that needs only `x` and has an integer
            attribute `dim` gets standard normal ones, shape `(n, dim)`, if none are given.

    Returns:
        The data, with the latent values that made them in `truth`, by site name (those with one row for each
        observation are listed in `local_sites`).

    Raises:
        ValueError: one sentence, if n or the inputs do not fit, or the model gives no n observed values.
    """
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise ValueError(f"n must be an integer of at least 1, not {n!r}; give the number of observations to draw")
    n = int(n)
    name = binding.model_name(model)
    given = {k: to_tensor(f"input {k!r}", v) for k, v in (inputs or {}).items()}
    for key, value in given.items():
        if value.ndim == 0 or len(value) != n:
            raise ValueError(f"input {key!r} has shape {tuple(value.shape)}, but n={n}; give n rows, or ask for that many")
    with _isolated(seed), torch.no_grad():
        if not given and _needs_only_x(model):
            given = {"x": torch.randn(n, model.dim, **_like(model))}  # type: ignore[attr-defined]
        call = binding.bind(model, given, num_data=n)
        trace = pyro.poutine.trace(model).get_trace(**call)
    drawn: dict[str, Any] = {
        site: node
        for site, node in trace.nodes.items()
        if node["type"] == "sample" and not node["is_observed"] and not site_is_subsample(node)
    }
    free = binding.open_parameters(model, given)
    observed: Any = {site: drawn.pop(site)["value"].detach().clone() for site in free if site in drawn}
    if not observed:
        observed = trace.nodes["_RETURN"]["value"]
        drawn = {site: node for site, node in drawn.items() if node["value"] is not observed}
    elif list(observed) == free[:1]:
        observed = observed[free[0]]
    for value in observed.values() if isinstance(observed, Mapping) else (observed,):
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != n:
            got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"model {name} gave {got} instead of {n} observed values; let its data plate have the "
                "size num_data, and name its observed site like the parameter that takes the data, or "
                "return the values"
            )
    return Data(
        inputs=given,
        observed=observed,
        name=f"{name} simulation",
        origin=f"drawn from {name} with seed {seed}",
        note="simulated: the latent values that made it are in truth",
        truth={site: node["value"].detach().clone() for site, node in drawn.items()},
        local_sites=tuple(site for site, node in drawn.items() if _has_row_each(node, n)),
    )


def _needs_only_x(model: Model) -> bool:
    required = [
        name for name, p in binding.model_parameters(model).items() if p.default is p.empty and name not in ("**", *RESERVED)
    ]
    return required == ["x"] and isinstance(getattr(model, "dim", None), int)


def _like(model: Model) -> dict[str, Any]:
    """Returns dtype and device of the model's first floating parameter or buffer, else the defaults."""
    if isinstance(model, nn.Module):
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            if tensor.is_floating_point():
                return {"dtype": tensor.dtype, "device": tensor.device}
    return {}


def _has_row_each(node: dict[str, Any], n: int) -> bool:
    """Whether a site stands in a plate of n whose rows are dimension 0 of its value."""
    value = node["value"]
    batch = value.ndim - node["fn"].event_dim
    plates = [frame for frame in node["cond_indep_stack"] if frame.vectorized]
    return any(frame.size == n and frame.dim == -batch for frame in plates) and value.shape[:1] == (n,)


@contextmanager
def _isolated(seed: int) -> Iterator[None]:
    """Seeds all generators inside; restores them and the parameter store afterwards."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer between 0 and 2**32 - 1, not {seed!r}; choose one")
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    # Seeding an uninitialised CUDA would be queued and act on the user's generators later.
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    store = pyro.get_param_store()
    try:
        with torch.random.fork_rng(devices), store.scope(store.get_state()):
            torch.default_generator.manual_seed(int(seed))
            if devices:
                torch.cuda.manual_seed_all(int(seed))
            random.seed(int(seed))
            # Models may call numpy's global generator, so it is seeded here and restored below.
            np.random.seed(int(seed))  # noqa: NPY002
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
