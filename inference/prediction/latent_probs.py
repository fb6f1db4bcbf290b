"""What an amortised guide believes of a discrete latent of new observations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..target.program import check_data, require_data
from .new_inputs import new_inputs, new_observations

if TYPE_CHECKING:
    from ..result import Fit


def latent_probs(fit: Fit, data: Any, site: str | None) -> Tensor:
    """q of a discrete latent, (N, K) on the CPU; `Fit.latent_probs` documents the arguments."""
    probs, sites = getattr(fit.guide, "probs", None), list(fit.program.discrete)
    if probs is None or not sites:
        raise ValueError(
            f"guide '{fit.settings.guide or fit.run.family}' has no q of a discrete latent to ask about new observations; fit a "
            "SemiSupervisedVAE with 'semi_supervised', or a discrete site with guide={'z': 'amortized'}"
        )
    if site is None and len(sites) > 1:
        raise ValueError(f"say which discrete latent with site=, one of {', '.join(sites)}")
    if site is not None and site not in sites:
        raise ValueError(f"{site!r} is no discrete latent of the model; choose site={' or '.join(map(repr, sites))}")
    kwargs = _seen(fit, data)
    with fit.run.owned.active(0), torch.no_grad():
        found: Tensor = probs(site or sites[0], **kwargs)
    return found.cpu()


def _seen(fit: Fit, data: Any) -> dict[str, Any]:
    """The model's arguments for what the guide's network is to look at."""
    if isinstance(data, np.ndarray):
        data = torch.as_tensor(data)
    if not isinstance(data, Tensor):
        require_data(data)
        data = data.to(fit.device, fit.dtype)
        check_data(fit.model, data, new=True)
        return dict(data.bind(fit.model))
    if getattr(fit.data, "inputs", {}):
        return dict(new_inputs(fit.data, fit.model, data, None).kwargs)
    if not len(data):
        raise ValueError("there are no observations; give at least one")
    # A network may look at more than the model can draw, such as grey levels where pixels are 0 or 1.
    check = getattr(fit.model, "check_encoded", None)
    data = data.to(fit.device, fit.dtype if data.is_floating_point() else None)
    if callable(check):
        check(data)
    return dict(new_observations(fit.data, data).bind(fit.model))
