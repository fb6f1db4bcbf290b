"""The shared SVI runner: one way from (model, data, guide) to a fit."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, SupportsFloat

import torch

from .asked_rows import lacking_numbers
from .engine.compiled import Mode
from .engine.convergence import Plan
from .engine.interrupts import heard_between_steps
from .engine.owned import GuideBuilder, Owned, own
from .engine.places import PACKAGE
from .engine.progress import progress_callback
from .engine.restart import Restart, Settings, Wishes
from .engine.schedule import Schedule
from .engine.stacked import stack
from .engine.training import Callback, NonFiniteError
from .estimators.free_bits import check_number
from .estimators.layer_noise import LAYER_NOISES, LayerNoise
from .estimators.objective import ESTIMATORS, Discrete, Estimator
from .result import Fit
from .run import Run
from .target.program import check_data


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
    estimator: LayerNoise | Literal["auto"] = "auto",
    schedule: str | Schedule | None = None,
    clip_norm: float | None = None,
    kl_weight: float | Schedule | None = None,
    free_bits: float = 0.0,
    resample: int | None = None,
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
    _check_numbers(steps, epochs, batch_size, num_particles, clip_norm, restarts, loss, discrete, kl_weight, compile, estimator)
    check_number(free_bits)
    _check_whole("resample", resample)
    device = resolve_device(device)
    began = time.perf_counter()
    check_data(model, data)
    data = data.to(device, dtype)
    dtype = data.dtype if dtype is None else dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"fits run in single or double precision, and this one would in {dtype}; pass dtype=torch.float32")
    if batch_size is not None and batch_size >= len(data):
        batch_size = len(data) if getattr(data, "streamed", False) else None
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
        estimator,
    )
    wishes = Wishes(
        optimizer, schedule, callbacks, progress, validation, compile, plan or Plan(), kl_weight, free_bits, resample or 0
    )

    def prepared(number: int) -> Restart:
        owned = own(model, guide, data, dtype, device, seed + number)
        with owned.active(seed + 7919 * number):
            restart = Restart(number, owned, data, settings, wishes)
            restart.prepare()
            if number == 0:
                _warn_of_modules(owned)
            return restart

    if restarts > 1 and not callbacks and validation is None:
        together = [prepared(number) for number in range(restarts)]
        if _train_together(together, wishes):
            runs = []
            for restart in together:
                with restart.owned.active(seed + 7919 * restart.number + 1):
                    runs.append(restart.finish())
            return _ended(runs, data, settings, began)
    else:
        together = []

    runs = []
    for number in range(restarts):
        restart = together[number] if together else prepared(number)
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
    return _ended(runs, data, settings, began)


def _warn_of_modules(owned: Owned) -> None:
    """Says what nobody sees of modules that model and guide call, and that are no part of them."""
    lines = []
    if owned.borrowed.continued:
        lines.append(
            f"parameters of a {owned.borrowed.continued} that is no submodule begin where an earlier fit has left them; make the module anew, "
            "or hold it in a PyroModule that is passed, for a fit that knows nothing of earlier ones"
        )
    untrained = owned.borrowed.untrained({id(p) for p in owned.parameters().values()})
    if untrained:
        lines.append(
            f"a {untrained} that is called without being a submodule stays as it is, as Pyro trains what it has been told of: add "
            "pyro.module('net', net) where it is called, or net.requires_grad_(False) where that is meant"
        )
    for line in lines:
        warnings.warn(line, stacklevel=2, skip_file_prefixes=PACKAGE)


def _ended(runs: Sequence[Run], data: Any, settings: Settings, began: float) -> Fit:
    best = _best(runs)
    runs[best].owned.borrowed.give()
    return Fit(tuple(runs), best, data, settings, time.perf_counter() - began)


def _train_together(restarts: Sequence[Restart], wishes: Wishes) -> bool:
    """Trains prepared restarts as one loop; False, and nothing trained, where that cannot be."""
    first = restarts[0]
    with first.owned.active(first.settings.seed + 1):
        loop = stack(restarts)
        if loop is None or first.ending is None:
            return False
        began = time.perf_counter()
        name = first.settings.guide or "guide"
        with progress_callback(wishes.progress, name, first.settings.steps, 0, 1) as shown:
            loop.watchers = shown
            try:
                with heard_between_steps() as loop.ask:
                    first.ending(loop)
            except NonFiniteError:
                for history in loop.histories:
                    history.losses.clear()
                return False  # one after another, so that the failure is told of the restart that it belongs to
            except KeyboardInterrupt:
                for restart, history in zip(restarts, loop.histories, strict=True):
                    restart.interrupted = True
                    history.stop_reason = f"interrupted after {len(history.losses)} steps"
        loop.unstack()
        seconds = time.perf_counter() - began
        for restart in restarts:
            share = {"compile": first.compiler.seconds, "steps": seconds - first.compiler.seconds}
            restart.history.seconds |= {key: value / len(restarts) for key, value in share.items()}
            restart.seconds += seconds / len(restarts)
    return True


def _best(runs: Sequence[Run]) -> int:
    """The run with the lowest loss of the kind that was trained; a loss that is NaN comes last."""

    def loss(run: Run) -> float:
        recent = run.history.losses[-max(1, len(run.history.losses) // 10) :]
        weighted = run.objective.estimator == "importance_weighted" and recent
        return sum(recent) / len(recent) if weighted else run.loss

    return min(range(len(runs)), key=lambda r: (math.isnan(loss(runs[r])), loss(runs[r])))


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
    lacking = lacking_numbers(model)
    if lacking:
        raise ValueError(
            f"batch_size needs a model that takes num_data and index, and this one lacks {' and '.join(lacking)}: open its plate as "
            "pyro.plate('data', num_data or len(x), subsample=index), or leave out batch_size"
        )


def _check_whole(name: str, value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def _check_numbers(
    steps: int | None,
    epochs: int | None,
    batch_size: int | None,
    num_particles: int | None,
    clip_norm: float | None,
    restarts: int,
    loss: str,
    discrete: str,
    kl_weight: float | Schedule | None,
    compile: Mode,
    estimator: str,
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
        _check_whole(name, value)
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm is the greatest global norm of the gradient and must be positive, got {clip_norm!r}")
    number = isinstance(kl_weight, SupportsFloat) and not isinstance(kl_weight, bool | type)
    if kl_weight is not None and not number and (not callable(kl_weight) or isinstance(kl_weight, type)):
        raise ValueError(f"kl_weight is a number or a function (step, steps) -> weight, got {kl_weight!r}")
    if number and not 0 <= float(kl_weight) < math.inf:  # type: ignore[arg-type]
        raise ValueError(
            f"kl_weight multiplies the KL term and must be a finite number that is not negative, got {kl_weight!r}"
        )
    if compile not in (True, False, "auto"):
        raise ValueError(f"compile must be True, False or 'auto', got {compile!r}")
    if loss not in (*ESTIMATORS, "auto"):
        raise ValueError(f"unknown loss '{loss}'; choose 'auto', {', '.join(repr(e) for e in ESTIMATORS)}")
    if estimator not in (*LAYER_NOISES, "auto"):
        raise ValueError(f"unknown estimator '{estimator}'; choose 'auto', {', '.join(repr(e) for e in LAYER_NOISES)}")
    if discrete not in ("marginalize", "guide"):
        raise ValueError(f"discrete must be 'marginalize' or 'guide', got {discrete!r}")
