"""A fit as an ArviZ `DataTree`.

    chain = restart, draw = draw from that restart's guide

Groups: posterior, posterior_predictive, prior, prior_predictive, log_likelihood, observed_data, constant_data
and sample_stats (`log_p`, `log_q` of every draw). Large groups are filled slice by slice, so that little is
held beside them.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from pyro import poutine
from torch import Tensor

from .draws import Draws, chunk_size, map_random
from .labels import SAMPLE_DIMS, Labels, observation_plate, whole_numbers
from .prediction import simulate_observed
from .program import Program, Site, sample_sites, some_trace

if TYPE_CHECKING:
    from .result import Fit, Run

#: A group's slice that is computed at once, in bytes; a few copies of it are held beside the group.
SLICE_BYTES = 20_000_000

Arrays = dict[str, np.ndarray]


def to_arviz(
    fit: Fit,
    n: int = 1000,
    *,
    log_likelihood: bool = True,
    predictive: bool = True,
    prior: bool = True,
    seed: int | None = None,
) -> xr.DataTree:
    """The fit as a tree of data sets with named dimensions.

    Args:
        n: draws a chain; chains are the fit's restarts.
        log_likelihood: whether to store one value an observation and draw, in nats, local discrete latents
            summed out.
        predictive: whether to simulate the training data from every draw.
        prior: whether to draw from the prior, and the data that it predicts (if `predictive`).
        seed: by default the fit's own; then the first chain is `fit.sample(n)`.

    Returns:
        The tree, in the model's units (attribute `units`). Attributes `..._note` say why a group is absent.

    Raises:
        ValueError: no draws asked for, a model without latents, or data that are not in memory.
    """
    check_draws(fit, n)
    labels = Labels(fit.program, fit.model, fit.data)
    all_draws = [run_draws(fit, run, n, seed) for run in fit.runs]
    attributes = describe_fit(fit)
    groups: dict[str, xr.Dataset] = {"posterior": _samples(labels, fit.program.latents, _chains(fit.program, all_draws))}
    if predictive:
        arrays, note = _predictive(fit, all_draws, seed)
        groups["posterior_predictive"] = _samples(labels, fit.program.observed, arrays)
        attributes |= {"posterior_predictive_note": note} if note else {}
    if log_likelihood:
        arrays, note = log_likelihoods(fit, list(fit.runs), all_draws)
        groups["log_likelihood"] = _log_likelihood(labels, fit.program, arrays)
        attributes |= {"log_likelihood_note": note} if note else {}
    groups["sample_stats"] = _stats(all_draws)
    if prior:
        latents, observed, note = _prior(fit, n, seed, predictive)
        groups["prior"] = _samples(labels, fit.program.latents, latents)
        groups["prior_predictive"] = _samples(labels, fit.program.observed, observed)
        attributes |= {"prior_note": note} if note else {}
    groups["observed_data"] = _observed(fit, labels)
    groups["constant_data"] = _constants(fit, labels)
    filled = {name: group for name, group in groups.items() if group.data_vars}
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attributes), **filled})


def check_draws(fit: Fit, n: int, least: int = 1) -> None:
    """Raises ValueError unless the fit can give `n` draws with their densities."""
    if isinstance(n, bool) or not isinstance(n, int) or n < least:
        raise ValueError(f"n must be a whole number of draws, at least {least}, got {n!r}")
    if not fit.program.latents:
        raise ValueError("the model has no latent site, so there is no posterior to look at; use fit.predict")
    if getattr(fit.data, "streamed", False):
        raise ValueError(
            "the training data are streamed, and log p of all of them needs them in memory; use fit.sample "
            "and fit.predict, "
            "or fit a part, data.select(rows)"
        )


def run_draws(fit: Fit, run: Run, n: int, seed: int | None) -> Draws:
    """`n` draws of one restart with log p and log q; those of the best one are `fit.sample(n)`."""
    offset = 11 + 104_729 * ((run.restart - fit.run.restart) % len(fit.runs))
    return run.draws(fit.data, n, (fit.seed if seed is None else seed) * 1009 + offset)


def _chains(program: Program, all_draws: list[Draws]) -> Arrays:
    """site -> (C, n, *shape)."""
    return {
        name: np.stack([whole_numbers(draws.values[name], site) for draws in all_draws])
        for name, site in program.latents.items()
        if all(name in draws.values for draws in all_draws)
    }


def _slices(num: int, row_bytes: int) -> Iterator[slice]:
    step = max(1, SLICE_BYTES // max(1, row_bytes))
    return (slice(i, min(num, i + step)) for i in range(0, num, step))


def _fill(out: np.ndarray | None, part: np.ndarray, chains: int, num: int, chain: int, where: slice) -> np.ndarray:
    """Writes one slice into its place, making room for all of them first."""
    if out is None:
        out = np.empty((chains, num, *part.shape[1:]), dtype=part.dtype)
    elif out.dtype != part.dtype:  # a slice of whole numbers among others that are not
        out = out.astype(np.result_type(out.dtype, part.dtype))
    out[chain, where] = part
    return out


def log_likelihoods(fit: Fit, runs: list[Run], all_draws: list[Draws]) -> tuple[Arrays, str]:
    """log p(observation | draw), observed site -> (C, n, N), and a note on what is missing."""
    out: Arrays = {}
    notes = []
    num = len(all_draws[0].log_p)
    for name, site in fit.program.observed.items():
        plate = observation_plate(site, len(fit.data))
        if plate is None:
            notes.append(
                f"'{name}' lies in no plate over the {len(fit.data)} observations, so it has no log likelihood for each"
            )
            continue
        array: np.ndarray | None = None
        try:
            for chain, (run, draws) in enumerate(zip(runs, all_draws, strict=True)):
                for where in _slices(num, 8 * site.batch_shape.numel()):
                    part = fit.pointwise(run, {k: v[where] for k, v in draws.values.items()}, name)
                    keep = {0, part.dim() + plate.dim} if plate.name != "data" else {0, 1}
                    rest = [d for d in range(part.dim()) if d not in keep]
                    part = part.sum(rest) if rest else part
                    array = _fill(array, part.numpy(), len(runs), num, chain, where)
        except KeyError:
            notes.append(f"'{name}' is summed together with the other observed sites, whose log likelihood includes it")
            continue
        assert array is not None
        out[name] = array
    return out, "; ".join(notes)


def _predictive(fit: Fit, all_draws: list[Draws], seed: int | None) -> tuple[Arrays, str]:
    """The training data simulated again, all latents kept: observed site -> (C, n, *shape), and a note."""
    program, num = fit.program, len(all_draws[0].log_p)
    size = sum(site.shape.numel() for site in program.observed.values())
    out: Arrays = {}
    try:
        for chain, (run, draws) in enumerate(zip(fit.runs, all_draws, strict=True)):
            with run.owned.active((fit.seed if seed is None else seed) * 1009 + 19 + run.restart):
                kwargs = fit.data.bind(run.owned.model, observed=False)
                for where in _slices(num, 32 * size):
                    values = {k: v[where] for k, v in draws.values.items()}
                    found = simulate_observed(run.owned, program, kwargs, values, rows=program.num_data)
                    for name, site in program.observed.items():
                        part = whole_numbers(found[name]["draw"], site)
                        if part.shape[1:] != tuple(site.shape):
                            raise ValueError(f"'{name}' was simulated with shape {part.shape[1:]}, not {tuple(site.shape)}")
                        out[name] = _fill(out.get(name), part, len(fit.runs), num, chain, where)
    except Exception as error:  # whatever a model raises when it is called without its observations
        return {}, f"the model could not be run without its observations: {_first_line(error)}"
    return out, ""


def _prior(fit: Fit, n: int, seed: int | None, predictive: bool) -> tuple[Arrays, Arrays, str]:
    """Draws of the latents and, if wanted, of the observations from the model itself; one chain."""
    run, program = fit.run, fit.program

    def simulate(kwargs: Mapping[str, Any], sites: Mapping[str, Site]) -> Arrays:
        def one() -> dict[str, Tensor]:
            trace = poutine.trace(run.owned.model).get_trace(**kwargs)
            return {k: s["value"] for k, s in sample_sites(trace) if k in sites}

        size = sum(site.shape.numel() for site in sites.values())
        out: Arrays = {}
        for where in _slices(n, 16 * size):
            num = where.stop - where.start
            found = map_random(one, num, fit.device, min(num, chunk_size(size, 8)))
            for name, site in sites.items():
                part = whole_numbers(found[name], site)
                if part.shape[1:] != tuple(site.shape):
                    raise ValueError(f"'{name}' was simulated with shape {part.shape[1:]}, not {tuple(site.shape)}")
                out[name] = _fill(out.get(name), part, 1, n, 0, where)
        return out

    with run.owned.active((fit.seed if seed is None else seed) * 1009 + 23), torch.no_grad():
        note = ""
        if predictive:
            try:
                kwargs = fit.data.bind(run.owned.model, observed=False)
                both = simulate(kwargs, {**program.latents, **program.observed})
                return {k: both[k] for k in program.latents}, {k: both[k] for k in program.observed}, ""
            except Exception as error:  # whatever a model raises when it is called without its observations
                note = f"no prior predictive: the model needs its observations to run: {_first_line(error)}"
        try:
            return simulate(fit.data.bind(run.owned.model), program.latents), {}, note
        except Exception as error:  # an improper prior has no draws
            return {}, {}, f"the prior cannot be drawn from: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _dataset(labels: Labels, variables: Mapping[str, tuple[tuple[str, ...], Any, str]]) -> xr.Dataset:
    """Variables as name -> (dims, values, site), with the coordinates of the dimensions that they use."""
    data = {}
    sizes: dict[str, int] = {}
    for name, (dims, values, site) in variables.items():
        data[name] = xr.Variable(dims, values, {} if site in ("", name) else {"site": site})
        sizes |= dict(zip(dims, np.shape(values), strict=True))
    coords: dict[str, Any] = {}
    for dim, size in sizes.items():
        values = labels.coords.get(dim) if dim not in SAMPLE_DIMS else None
        coords[dim] = values if values is not None and len(values) == size else np.arange(size)
    return xr.Dataset(data, coords=coords)


def _samples(labels: Labels, sites: Mapping[str, Site], arrays: Arrays) -> xr.Dataset:
    return _dataset(
        labels,
        {labels.variables[k]: ((*SAMPLE_DIMS, *labels.dims[k]), arrays[k], k) for k in sites if k in arrays},
    )


def _log_likelihood(labels: Labels, program: Program, arrays: Arrays) -> xr.Dataset:
    return _dataset(labels, {labels.variables[k]: ((*SAMPLE_DIMS, labels.observation), v, k) for k, v in arrays.items()})


def log_likelihood_tree(fit: Fit, labels: Labels, run: Run, draws: Draws) -> tuple[xr.DataTree, str]:
    """A tree of log_likelihood and sample_stats for one restart, and a note on what is missing."""
    arrays, note = log_likelihoods(fit, [run], [draws])
    groups = {"log_likelihood": _log_likelihood(labels, fit.program, arrays), "sample_stats": _stats([draws])}
    return xr.DataTree.from_dict(groups), note


def _stats(all_draws: list[Draws]) -> xr.Dataset:
    def stack(pick: Callable[[Draws], Tensor | None]) -> np.ndarray | None:
        parts = [pick(draws) for draws in all_draws]
        return (
            None
            if any(p is None for p in parts)
            else np.stack([p.detach().cpu().double().numpy() for p in parts if p is not None])
        )

    log_p, log_q = stack(lambda d: d.log_p), stack(lambda d: d.log_q)
    variables = {"log_p": xr.Variable(SAMPLE_DIMS, log_p, {"units": "nats"})}
    if log_q is not None:
        variables["log_q"] = xr.Variable(SAMPLE_DIMS, log_q, {"units": "nats"})
    first = next(iter(variables.values()))
    return xr.Dataset(variables, coords={dim: np.arange(size) for dim, size in zip(SAMPLE_DIMS, first.shape, strict=True)})


def observed_values(fit: Fit, data: Any) -> dict[str, Tensor]:
    """What the model sees at its observed sites when it is called with the data, in the model's units."""
    with fit.run.owned.active(0), torch.no_grad():
        trace = some_trace(fit.model, data)
    return {k: site["value"] for k, site in sample_sites(trace) if k in fit.program.observed}


def _observed(fit: Fit, labels: Labels) -> xr.Dataset:
    values = observed_values(fit, fit.data)
    return _dataset(
        labels,
        {labels.variables[k]: (labels.dims[k], whole_numbers(values[k], site), k) for k, site in fit.program.observed.items()},
    )


def _constants(fit: Fit, labels: Labels) -> xr.Dataset:
    """The model's inputs and the constants that are numbers or tensors."""
    variables: dict[str, tuple[tuple[str, ...], Any, str]] = {}
    taken = set(labels.variables.values()) | set(labels.sizes) | {"column"}
    features = tuple(getattr(fit.data, "feature_names", ()) or ())
    for kind, items in (("input", fit.data.inputs), ("constant", fit.data.constants)):
        for key, value in items.items():
            if not isinstance(value, (Tensor, int, float)):
                continue
            array = torch.as_tensor(value).detach().cpu()
            numbers = (array.long() if array.dtype == torch.bool else array).numpy()
            name = f"{key}_" if key in taken else key
            dims = [f"{name}_dim_{d}" for d in range(numbers.ndim)]
            if kind == "input":
                dims[0] = labels.observation
                if key == "x" and numbers.ndim == 2 and len(features) == numbers.shape[1]:
                    dims[1] = "column"
                    labels.coords["column"] = np.asarray(features)
            variables[name] = (tuple(dims), numbers, key)
    return _dataset(labels, variables)


def describe_fit(fit: Fit) -> dict[str, Any]:
    """What was fitted, how, and how it went: text and numbers only, structures as JSON."""
    data, scaler = fit.data, fit.data.scaler
    config = getattr(fit.model, "config", None)
    packages = ("bayeszoo", "torch", "pyro-ppl", "arviz", "numpy")
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
        "guide": fit.settings.guide or fit.run.family or type(fit.guide).__name__,
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
        "versions": _json({name: _version(name) for name in packages}),
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


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _json(value: Any) -> str:
    return json.dumps(value, default=str)
