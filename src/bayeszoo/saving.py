"""Reading fits back: models and guides are rebuilt by name, then filled with what was saved."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from . import data as bzdata
from . import guides
from .catalog import ENTRIES
from .inference import Fit, Run
from .inference.checkpoint import OWN_MODULE, Checkpoint, describe_sites, load_module, read, restore
from .inference.engine.owned import Owned, default_dtype, is_builder, own
from .inference.engine.restart import Settings
from .inference.engine.training import History
from .inference.estimators.objective import Objective, where_discrete
from .inference.runner import resolve_device
from .inference.target.density import EachDraw
from .inference.target.program import Program, bound_rows, describe


def load(
    path: str | os.PathLike[str],
    model: Callable[..., Any] | None = None,
    *,
    guide: Any = None,
    data: Any = None,
    device: str | torch.device | None = None,
    guide_options: Mapping[str, nn.Module] | None = None,
) -> Fit:
    """Reads a fit that `fit.save(path)` wrote; the same calls then give the same numbers.

    Args:
        path: the folder.
        model: the model that was fitted; the zoo's own are rebuilt without it. A module is copied, and its
            parameters are taken from the fit.
        guide: the same kind of guide, or the builder, where the fit was not made with a family's name.
        data: the training data, where they were streamed and so not saved.
        device: where to put it; by default where it was fitted, or the CPU if there is no such device here.
        guide_options: the modules among the guide's options, such as an inference network of your own; copied.

    Raises:
        FileNotFoundError: there is no fit in the folder.
        ValueError: the model, guide or a module of its options is missing, or does not match the fit in its sites, names or shapes.
    """
    saved = read(path)
    record = saved.record
    dtype = getattr(torch, record["dtype"])
    where = resolve_device(device if device is not None else _device(record["device"]))
    rebuilt = _data(saved, data).to(where, dtype)
    model = _model(saved, dtype, rebuilt) if model is None else model
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in record["settings"]["guide_options"].items()}
    options = _with_modules(options, dict(guide_options or {}))
    settings = Settings(**{**record["settings"], "guide_options": options})
    if guide is None and not settings.guide:
        raise ValueError(
            f"the fit in '{path}' was made with its own guide ({record['guide']['class']}), "
            "which has no name to rebuild it by; pass the same kind, bz.load(path, model=..., guide=...)"
        )
    runs = tuple(_run(saved, index, model, guide, rebuilt, settings, dtype, where) for index in range(len(record["runs"])))
    runs[record["best"]].owned.borrowed.give()
    return Fit(runs, record["best"], rebuilt, settings, record["seconds"])


def _with_modules(options: dict[str, Any], given: dict[str, nn.Module]) -> dict[str, Any]:
    """The guide's options with the modules that were not saved as such."""
    kinds = {name: value[OWN_MODULE] for name, value in options.items() if isinstance(value, dict) and OWN_MODULE in value}
    for name in given:
        if name not in kinds:
            raise ValueError(f"guide_options are the modules that the fit was given, and '{name}' is none; leave it out")
    for name, kind in kinds.items():
        if name not in given:
            raise ValueError(
                f"the guide was given a {kind} of its own as '{name}'; pass the same kind, bz.load(path, guide_options={{'{name}': ...}})"
            )
    return {name: given[name] if name in kinds else value for name, value in options.items()}


def _run(
    saved: Checkpoint,
    index: int,
    model: Callable[..., Any],
    guide: Any,
    data: Any,
    settings: Settings,
    dtype: torch.dtype,
    device: torch.device,
) -> Run:
    record = saved.record["runs"][index]
    program: list[Program] = []

    def prepare(own_model: Callable[..., Any]) -> None:
        program.append(_check_sites(saved, own_model, data))
        load_module(own_model, saved.part(f"run{index}.model."), "model")

    def build(model: Callable[..., Any], data: Any) -> Any:
        # The guide reads the model while it is built (the exact one solves it), so the model is filled first.
        prepare(model)
        if guide is not None:
            return guide(model, data)
        return guides.build(settings.guide, model, data, discrete=settings.discrete, **settings.guide_options)

    ready = guide is not None and not _builds(guide)
    owned: Owned = own(model, guide if ready else build, data, dtype, device, settings.seed + index)
    with owned.active(settings.seed):
        if ready:
            prepare(owned.model)
        # The first calls make the parameters of lazy guides and of plain functions.
        with torch.no_grad():
            owned.guide(**bound_rows(owned.model, data))
        owned.collect(bound_rows(owned.model, data))
    path_derivative = saved.record["guide"]["path_derivative"]
    if path_derivative is not None:
        rebuilt: Any = owned.guide
        rebuilt.path_derivative = path_derivative
    objective = Objective(
        program[0],
        owned.model,
        owned.guide,
        record["estimator"],
        settings.num_particles,
        where_discrete(owned.guide, settings.discrete),
        record["surrogate"],
    )
    validation = [(step, loss) for step, loss in record["history"]["validation"]]
    run = Run(
        owned=owned,
        program=program[0],
        objective=objective,
        history=History(**{**record["history"], "validation": validation}),
        each=EachDraw(),
        **record["run"],
    )
    run.each.vectorized = record["vectorized"]
    restore(run, saved, index)
    return run


def _builds(guide: Any) -> bool:
    return not isinstance(guide, nn.Module) and is_builder(guide)


def _check_sites(saved: Checkpoint, model: Callable[..., Any], data: Any) -> Program:
    try:
        program = describe(model, data)
    except Exception as error:  # whatever a wrong model raises, it is the wrong model
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"the model cannot be called with the data of the saved fit ({reason}); give the model that was fitted"
        ) from error
    wanted, found = saved.record["sites"], describe_sites(program)
    for kind in ("latents", "observed"):
        if wanted[kind] != found[kind]:
            raise ValueError(
                f"the model does not match the saved fit, whose {kind} are {_shapes(wanted[kind])}; "
                f"this model has {_shapes(found[kind])}; give the model that was fitted"
            )
    return program


def _shapes(sites: dict[str, list[int]]) -> str:
    return ", ".join(f"{name} {tuple(shape)}" for name, shape in sites.items()) or "none"


def _model(saved: Checkpoint, dtype: torch.dtype, data: Any) -> Callable[..., Any]:
    spec = saved.record["model"]
    entry = next(
        (e for e in ENTRIES.values() if (e.build.__module__, e.build.__qualname__) == (spec["module"], spec["class"])), None
    )
    with default_dtype(dtype):
        if entry is not None and spec["arguments"] is not None:
            model: Callable[..., Any] = entry.build(**spec["arguments"])
            return model
        if entry is not None and spec.get("from_catalog"):
            made: Callable[..., Any] = entry.model(data)
            return made
    whose = "of a network of your own in" if entry is not None else "of your own model"
    raise ValueError(
        f"the fit in '{saved.path}' is {whose} '{spec['class']}', which cannot be rebuilt by name; give it, "
        "bz.load(path, model=...)"
    )


def _data(saved: Checkpoint, given: Any) -> Any:
    meta = dict(saved.record["data"])
    if given is not None:
        return given
    if meta.pop("streamed"):
        raise ValueError(
            f"the data '{meta['name']}' were streamed and are not in the checkpoint; give them, bz.load(path, data=...)"
        )
    groups: dict[str, dict[str, Any]] = {
        name: {} for name in ("inputs", "observed", "constants", "truth", "chances", "streams")
    }
    for key, tensor in saved.data.items():
        group, name = key.split(".", 1)
        groups[group][name] = tensor
    for group, values in meta.pop("values").items():
        groups[group] |= values
    observed: Any = groups.pop("observed")
    if meta.pop("bare"):
        observed = observed[""]
    meta["streams"] = groups.pop("streams").get("")
    scaler, schema = meta.pop("scaler"), meta.pop("schema")
    metadata: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in meta.items()}
    metadata |= {"observed": observed, **groups}
    metadata["scaler"] = None if scaler is None else bzdata.Scaler.from_dict(scaler)
    metadata["schema"] = None if schema is None else bzdata.Schema.from_dict(schema)
    return bzdata.Data(**metadata)


def _device(kind: str) -> str:
    return "cuda" if kind == "cuda" and torch.cuda.is_available() else "cpu"
