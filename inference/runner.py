"""The shared SVI runner: one way from (model, data, guide) to a fit."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from .compiled import Mode
from .convergence import Plan
from .objective import ESTIMATORS, Discrete, Estimator
from .owned import GuideBuilder, own
from .restart import Restart, Settings, Wishes
from .result import Fit, Run
from .schedule import Schedule
from .training import Callback, NonFiniteError


def fit(
    model: Callable[..., Any],
    data: Any,
    guide: GuideBuilder,
    *,
    guide_name: str = "",
    loss: Estimator | Literal["auto"] = "auto",
    optimizer: Any = None,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    num_particles: int | None = None,
    schedule: str | Schedule | None = None,
    clip_norm: float | None = None,
    restarts: int = 1,
    seed: int = 0,
    discrete: Discrete = "marginalize",
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
    validation: Any = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    compile: Mode = "auto",
    guide_options: Mapping[str, Any] | None = None,
    plan: Plan | None = None,
) -> Fit:
    """Fits a variational posterior; the front door's `bayeszoo.fit` documents every argument.

    Args:
        guide: a builder `(model, data) -> guide`, or a ready guide (a module, or a function with the model's arguments).
    """
    _check_numbers(steps, epochs, batch_size, num_particles, clip_norm, restarts, loss, discrete)
    device = resolve_device(device)
    began = time.perf_counter()
    check = getattr(model, "check", None)
    if callable(check):
        check(data)
    data = data.to(device, dtype)
    dtype = data.dtype if dtype is None else dtype
    batch_size = None if batch_size is not None and batch_size >= len(data) else batch_size
    if batch_size is not None:
        _check_batches(model)
    if epochs is not None:
        steps = epochs * max(1, len(data) // (batch_size or len(data)))
    settings = Settings(
        guide_name,
        None if loss == "auto" else loss,
        discrete,
        steps,
        batch_size,
        num_particles or 1,
        clip_norm,
        restarts,
        seed,
        dict(guide_options or {}),
    )
    wishes = Wishes(optimizer, schedule, callbacks, progress, validation, compile, plan or Plan())

    def prepared(number: int) -> Restart:
        owned = own(model, guide, data, dtype, device, seed + number)
        with owned.active(seed + 7919 * number):
            restart = Restart(number, owned, data, settings, wishes)
            restart.prepare()
            return restart

    runs: list[Run] = []
    for number in range(restarts):
        restart = prepared(number)
        with restart.owned.active(seed + 7919 * number + 1):
            try:
                restart.train()
            except NonFiniteError as error:
                runs += [restart.partial] if restart.partial is not None else []
                if runs:
                    error.fit = Fit(tuple(runs), _best(runs), data, settings, time.perf_counter() - began)
                raise
            runs.append(restart.finish())
        if restart.interrupted:
            break
    return Fit(tuple(runs), _best(runs), data, settings, time.perf_counter() - began)


def _best(runs: Sequence[Run]) -> int:
    """The run with the lowest loss; a loss that is NaN comes last."""
    return min(range(len(runs)), key=lambda r: (math.isnan(runs[r].loss), runs[r].loss))


def resolve_device(device: str | torch.device) -> torch.device:
    """The device that was asked for; "auto" is the GPU where there is one."""
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.zeros(1, device=resolved)
    except (RuntimeError, AssertionError) as error:
        have = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
        raise ValueError(f"device '{device}' is not there; this machine has {', '.join(have)}") from error
    return resolved


def _check_batches(model: Any) -> None:
    signature = inspect.signature(model.forward if isinstance(model, nn.Module) else model)
    lacking = [name for name in ("num_data", "index") if name not in signature.parameters]
    if lacking:
        raise ValueError(
            f"batch_size needs a model that takes num_data and index, and this one lacks {' and '.join(lacking)}: open its plate as "
            "pyro.plate('data', num_data or len(x), subsample=index), or leave out batch_size"
        )


def _check_numbers(
    steps: int | None,
    epochs: int | None,
    batch_size: int | None,
    num_particles: int | None,
    clip_norm: float | None,
    restarts: int,
    loss: str,
    discrete: str,
) -> None:
    if steps is not None and epochs is not None:
        raise ValueError("pass either steps or epochs, not both")
    for name, value in {
        "steps": steps,
        "epochs": epochs,
        "batch_size": batch_size,
        "num_particles": num_particles,
        "restarts": restarts,
    }.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm is the greatest global norm of the gradient and must be positive, got {clip_norm!r}")
    if loss not in (*ESTIMATORS, "auto"):
        raise ValueError(f"unknown loss '{loss}'; choose 'auto', {', '.join(repr(e) for e in ESTIMATORS)}")
    if discrete not in ("marginalize", "guide"):
        raise ValueError(f"discrete must be 'marginalize' or 'guide', got {discrete!r}")
