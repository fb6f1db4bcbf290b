"""What was fitted, how, and how it went, as attributes of a file: text and numbers only, structures as JSON."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ..result import Fit

_PACKAGES = ("bayeszoo", "torch", "pyro-ppl", "arviz", "numpy")


def describe_fit(fit: Fit) -> dict[str, Any]:
    """The attributes of the tree's root; those without a value are left out."""
    data, scaler = fit.data, fit.data.scaler
    config = getattr(fit.model, "config", None)
    units = "as in the data"
    if scaler is not None:
        units = (
            f"the model's own: the table's inputs{' and target' if scaler.target_scaled else ''} were "
            f"standardised, and nothing here "
            "is undone; fit.sample(n, units='original') and fit.predict answer in original units"
        )
    attributes: dict[str, Any] = {
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(),
        "creation_library": "bayeszoo",
        "inference_library": "pyro-ppl",
        "model": model_name(fit.model),
        "model_config": _json(config()) if callable(config) else "",
        "guide": guide_name(fit),
        "objective": fit.objective,
        "estimator": fit.estimator,
        "loss_name": fit.loss_name,
        "loss": fit.loss,
        "loss_error": fit.loss_error,
        "losses": _json([run.history.losses for run in fit.runs]),
        "restart_losses": _json([run.loss for run in fit.runs]),
        "best_chain": fit.best,
        "converged": int(fit.converged),
        "stop_reason": fit.stop_reason,
        "seed": fit.seed,
        "seconds": fit.seconds,
        "device": str(fit.device),
        "dtype": str(fit.dtype).removeprefix("torch."),
        "settings": _json(dataclasses.asdict(fit.settings)),
        "versions": _json({name: _version(name) for name in _PACKAGES}),
        "units": units,
        "data": data.name,
        "data_origin": data.origin,
        "data_licence": data.licence,
        "num_data": len(data),
    }
    return {k: v for k, v in attributes.items() if v != ""}


def model_name(model: Any) -> str:
    """The class of a module, the name of a function."""
    return type(model).__name__ if isinstance(model, torch.nn.Module) else getattr(model, "__name__", "model")


def guide_name(fit: Fit) -> str:
    """The family, or the class of a guide of one's own."""
    return str(fit.settings.guide or fit.run.family or type(fit.guide).__name__)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _json(value: Any) -> str:
    return json.dumps(value, default=str)
