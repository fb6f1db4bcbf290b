"""What a fit leaves behind in a folder, and the one JSON object that describes it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .catalog import entry_of
from .inference import Fit
from .inference.checkpoint import check_folder, save, versions
from .inference.prediction.picture_statistics import plane
from .models import VAE, SemiSupervisedVAE

#: Latents with more values than this are left out of the JSON object; the netCDF file has them.
MOST_VALUES = 10_000


def record(fit: Fit, n: int = 4000) -> dict[str, Any]:
    """Model, guide, loss, k-hat, posterior means and sds (in the model's units) of a fit, ready for JSON."""
    entry = entry_of(fit.model)
    k_hat, note = _k_hat(fit)
    evidence = float(fit.model.log_evidence(fit.data)) if hasattr(fit.model, "log_evidence") else None
    draws = fit.sample(n)
    posterior = {name: summary for name, values in draws.items() if (summary := _summary(fit, name, values)) is not None}
    found = {
        "model": entry.name if entry is not None else type(fit.model).__name__,
        "data": fit.data.name,
        "guide": fit.settings.guide or fit.run.family,
        "objective": fit.objective,
        "loss_name": fit.loss_name,
        "seed": fit.seed,
        "steps": len(fit.losses),
        "restarts": len(fit.runs),
        "loss": fit.loss,
        "loss_error": fit.loss_error,
        "log_evidence": evidence,
        "k_hat": k_hat,
        "k_hat_note": note,
        "converged": fit.converged,
        "stop_reason": fit.stop_reason,
        "posterior": posterior,
        "posterior_left_out": [name for name in draws if name not in posterior],
        "units": "standardised" if fit.data.scaler is not None else "as in the data",
        "seconds": fit.seconds,
        "engine": fit.engine,
        "timings": fit.timings,
        "device": str(fit.device),
        "dtype": str(fit.dtype).removeprefix("torch."),
        "versions": versions(),
    }
    cleaned: dict[str, Any] = _finite(found)
    return cleaned


def _summary(fit: Fit, name: str, values: Tensor) -> dict[str, Any] | None:
    """What JSON tells of a latent's draws `(n, *shape)`: mean and sd, of categories (whose numbers have no mean) how often each was drawn."""
    site = fit.program.latents[name]
    if site.discrete and not site.event_dim:
        states = site.distribution.enumerate_support(expand=False).flatten().to(values)
        if len(states) > 2:
            if len(states) * values[0].numel() > MOST_VALUES:
                return None
            return {
                "states": states.tolist(),
                "probs": torch.stack([(values == state).double().mean(0) for state in states], -1).tolist(),
            }
    if values[0].numel() > MOST_VALUES:
        return None
    return {"mean": values.double().mean(0).tolist(), "sd": values.double().std(0).tolist()}


def write(fit: Fit, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Writes the checkpoint, `posterior.nc` and figures.

    Returns:
        The files.

    Raises:
        FileExistsError: the folder holds a fit, and `overwrite` is not set.
        PermissionError: the folder cannot be written.
    """
    check(folder, overwrite=overwrite)
    save(fit, folder, overwrite=overwrite)
    posterior = folder / "posterior.nc"
    posterior.unlink(missing_ok=True)
    fit.to_arviz().to_netcdf(posterior, engine="h5netcdf")
    return [
        *sorted(folder.glob("*.json")),
        *sorted(folder.glob("*.safetensors")),
        posterior,
        *figures(fit, folder),
    ]


def check(folder: Path, *, overwrite: bool = False) -> None:
    """Raises where `write` would, before a fit is made."""
    check_folder(folder, overwrite=overwrite)
    if (folder / "posterior.nc").exists() and not overwrite:
        raise FileExistsError(f"folder '{folder}' already holds a fit (posterior.nc); choose another, or force it")


def figures(fit: Fit, folder: Path) -> list[Path]:
    """Saves the figures that suit a fit: losses, marginals, people, residuals, an autoencoder's pictures and codes."""
    from . import plots

    drawn: dict[str, Any] = {"losses": plots.plot_losses(fit)}
    shared = {name: site for name, site in fit.program.continuous.items() if not site.local and site.shape.numel() <= 12}
    if shared:
        drawn["posterior"] = _marginals(fit, shared)
    if "total_count" in fit.data.inputs and any(len(s.shape) == 1 for s in fit.program.local.values()):
        site = next(name for name, s in fit.program.local.items() if len(s.shape) == 1)
        drawn["people"] = plots.plot_people(fit, site=site)
    if "x" in fit.data.inputs and next(iter(fit.program.observed.values())).support.__class__.__name__ == "_Real":
        drawn["residuals"] = plots.plot_residual_check(fit)
    if isinstance(fit.model, VAE):
        drawn |= _autoencoder(fit)
    if isinstance(fit.model, SemiSupervisedVAE) and _square(fit.model.shape):
        drawn["styles"] = plots.plot_styles(fit)
    return plots.save(drawn, folder)


def _autoencoder(fit: Fit) -> dict[str, Any]:
    """Pictures, where the pixels lie in rows and columns, and codes."""
    from . import plots

    drawn: dict[str, Any] = {}
    if fit.model.latents >= 2:
        drawn["codes"] = plots.plot_codes(fit)
    if not _square(fit.model.shape):
        return drawn
    drawn |= {
        "samples": plots.plot_samples(fit),
        "reconstructions": plots.plot_reconstructions(fit),
        "traversals": plots.plot_traversals(fit),
    }
    if fit.model.latents == 2:
        drawn["plane"] = plots.plot_plane(fit)
    return drawn


def _square(shape: tuple[int, ...]) -> bool:
    """Whether pictures of this shape can be shown: their pixels lie in rows and columns, or are as many as those of a square."""
    try:
        plane(shape, None)
    except ValueError:
        return False
    return True


def _marginals(fit: Fit, sites: dict[str, Any]) -> Any:
    """One small figure a value of the given sites, beside the exact posterior; returns the first axes."""
    import matplotlib.pyplot as plt
    import numpy as np

    from . import plots

    exact = fit.model.exact_posterior(fit.data) if hasattr(fit.model, "exact_posterior") else None
    draws = fit.sample(4000)
    where = [(name, tuple(map(int, index))) for name, site in sites.items() for index in np.ndindex(*site.shape)]
    columns = min(4, len(where))
    rows = math.ceil(len(where) / columns)
    size = (max(6.4, 3.1 * columns), 2.6 * rows if rows > 1 else 4.0)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for ax, (name, index) in zip(axes.flat, where, strict=False):
        plots.plot_posterior(fit, name, index, exact=exact, draws=draws, ax=ax)
        ax.set_ylabel("density")
        if ax is not axes.flat[0]:
            ax.get_legend().remove()
    for ax in list(axes.flat)[len(where) :]:
        ax.remove()
    return figure.axes[0]


def _k_hat(fit: Fit) -> tuple[float | None, str | None]:
    if fit.objective == "surrogate":
        return None, "a point has no density q, and so no k-hat"
    if fit.run.k_hat == -math.inf:
        return None, "the guide is the posterior: log p - log q is the same for every draw"
    if math.isnan(fit.run.k_hat):
        return None, "k-hat was not computed for this fit"
    return fit.run.k_hat, None


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinities: null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return value
