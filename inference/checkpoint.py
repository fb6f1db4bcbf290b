"""Fits on disk: tensors in safetensors, everything else in JSON, nothing that runs code when it is read.

    fit.json                 settings, history, versions, the model's class and arguments, notes on the data
    parameters.safetensors   trained values and buffers of every restart r: run<r>.model.*, .guide.*, .param.*
    data.safetensors         the training data: inputs.*, observed.*, constants.*, truth.*, chances.*

What needs the names of models and guides (rebuilding them) is the front door's, `bayeszoo.load`.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .result import Fit
from .run import Run
from .target.program import Program

#: Counts up when files of an older layout can no longer be read.
FORMAT = 1
RECORD, PARAMETERS, DATA = "fit.json", "parameters.safetensors", "data.safetensors"
#: The key under which the record keeps the kind of a module that the guide was given as an option.
OWN_MODULE = "module"


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds.

    Attributes:
        path: the folder.
        record: the content of `fit.json`.
        parameters: trained values and buffers by name.
        data: tensors of the training data by name.
    """

    path: Path
    record: dict[str, Any]
    parameters: dict[str, Tensor]
    data: dict[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The parameters whose names begin with `prefix`, without it."""
        return {k.removeprefix(prefix): v for k, v in self.parameters.items() if k.startswith(prefix)}


def save(fit: Fit, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Writes a fit into a folder, which is made if need be.

    Args:
        path: the folder.
        overwrite: whether a fit that the folder already holds may be replaced.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder holds a fit already, or the path is a file.
        PermissionError: the folder cannot be written.
        ValueError: something in the fit has no form on disk, such as a function among the data's constants.
    """
    folder = Path(path)
    check_folder(folder, overwrite=overwrite)
    tensors, meta = describe_data(fit.data)
    parameters = {f"run{r}.{k}": v for r, run in enumerate(fit.runs) for k, v in state_of(run).items()}
    record = {"format": FORMAT, **record_of(fit), "data": meta}
    try:
        text = json.dumps(to_json(record), indent=1, allow_nan=False, ensure_ascii=False)
    except TypeError as error:
        raise ValueError(f"the fit cannot be saved, because a setting has no form in JSON ({error}); leave it out") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(parameters, folder / f".{PARAMETERS}.new")
        save_file(tensors, folder / f".{DATA}.new")
        (folder / f".{RECORD}.new").write_text(text + "\n", encoding="utf-8")
        # Replaced only when all three are written: an interruption cannot lose the fit that was there.
        for name in (PARAMETERS, DATA, RECORD):
            os.replace(folder / f".{name}.new", folder / name)
    except (OSError, SafetensorError) as error:
        raise PermissionError(f"folder '{folder}' cannot be written ({_reason(error)}); choose another") from None
    return folder


def check_folder(folder: Path, *, overwrite: bool = False) -> None:
    """Raises FileExistsError or PermissionError where `save` would: asked before a long fit begins."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"'{folder}' is a file, but a fit is saved as a folder; choose another name")
    held = [name for name in (RECORD, PARAMETERS, DATA) if (folder / name).exists()]
    if held and not overwrite:
        raise FileExistsError(f"folder '{folder}' already holds a fit ({held[0]}); choose another, or pass overwrite=True")
    above = folder
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"folder '{folder}' cannot be written, because '{above}' may not be changed; choose another")


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a folder that `save` wrote.

    Raises:
        FileNotFoundError: there is no fit.
        ValueError: its files are damaged, or of a later version.
    """
    folder = Path(path)
    for name in (RECORD, PARAMETERS, DATA):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"there is no fit in '{folder}': {name} is missing; give the folder that fit.save(...) wrote"
            )
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"), object_hook=_from_json)
        parameters, data = load_file(folder / PARAMETERS), load_file(folder / DATA)
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"the fit in '{folder}' is damaged ({_reason(error)}); save it again") from None
    version = record.get("format") if isinstance(record, dict) else None
    if version != FORMAT:
        raise ValueError(f"the fit in '{folder}' has format {version!r}, but format {FORMAT} is expected; update bayeszoo")
    return Checkpoint(folder, record, parameters, data)


def state_of(run: Run) -> dict[str, Tensor]:
    """Everything that training changed, and all buffers: `model.*`, `guide.*`, `param.*`, on the CPU."""
    state: dict[str, Tensor] = {}
    for prefix, part in (("model", run.owned.model), ("guide", run.owned.guide)):
        if isinstance(part, nn.Module):
            state |= {f"{prefix}.{k}": v for k, v in part.state_dict().items()}
    with run.owned.active():  # where what functions hold has this fit's values
        state |= {f"param.{k}": v for k, v in _of_statements(run).items()}
        return {k: _plain(v) for k, v in state.items()}


def restore(run: Run, checkpoint: Checkpoint, index: int) -> None:
    """Puts saved values into a rebuilt pair, bit for bit; call once model and guide have run once.

    Raises:
        ValueError: naming the first value that has another name or shape.
    """
    for prefix, part in (("model", run.owned.model), ("guide", run.owned.guide)):
        load_module(part, checkpoint.part(f"run{index}.{prefix}."), prefix)
    saved = checkpoint.part(f"run{index}.param.")
    with run.owned.active(), torch.no_grad():
        present = _of_statements(run)
        _compare("model or guide", {k: v.shape for k, v in present.items()}, saved)
        for name, value in saved.items():
            present[name].copy_(value)


def _of_statements(run: Run) -> dict[str, Tensor]:
    """What `pyro.param` statements have made, of functions and in modules, and what functions hold; call inside `owned.active`."""
    local = {name: store[key] for name, (store, key) in run.owned.local_slots().items()}
    return (
        local
        | dict(pyro.get_param_store().named_parameters())
        | {k.removeprefix("param."): v for k, v in run.owned.reached.items()}
        | run.owned.borrowed.named_buffers()
    )


def load_module(part: Any, saved: Mapping[str, Tensor], what: str) -> None:
    """Copies saved values into the parameters and buffers of a module; plain functions have none."""
    state = part.state_dict() if isinstance(part, nn.Module) else {}
    _compare(what, {k: v.shape for k, v in state.items()}, saved)
    if isinstance(part, nn.Module):
        part.load_state_dict(saved)


def _compare(what: str, shapes: Mapping[str, torch.Size], saved: Mapping[str, Tensor]) -> None:
    for name in [*saved, *shapes]:
        have = f"the shape {tuple(shapes[name])}" if name in shapes else "none of that name"
        kept = f"the shape {tuple(saved[name].shape)}" if name in saved else "none of that name"
        if have != kept:
            raise ValueError(
                f"the {what} does not match the saved fit: parameter '{name}' has {kept} in the fit and "
                f"{have} here; give the one that was fitted"
            )


def record_of(fit: Fit) -> dict[str, Any]:
    """Settings, history, versions and the model's description: a checkpoint's text, without the data."""
    return {
        "model": describe_model(fit.model),
        "guide": {
            "name": fit.settings.guide,
            "options": _options(fit.settings.guide_options),
            "class": type(fit.guide).__name__,
            "path_derivative": getattr(fit.guide, "path_derivative", None),
        },
        "sites": describe_sites(fit.program),
        "settings": {f.name: getattr(fit.settings, f.name) for f in dataclasses.fields(fit.settings)}
        | {"guide_options": _options(fit.settings.guide_options)},
        "seed": fit.seed,
        "dtype": str(fit.dtype).removeprefix("torch."),
        "device": fit.device.type,
        "objective": fit.objective,
        "estimator": fit.estimator,
        "loss": fit.loss,
        "loss_error": fit.loss_error,
        "converged": fit.converged,
        "stop_reason": fit.stop_reason,
        "seconds": fit.seconds,
        "best": fit.best,
        "versions": versions(),
        "runs": [_run_record(run) for run in fit.runs],
    }


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """A guide's options; of a module only its kind, since its parameters are the guide's."""
    return {k: {OWN_MODULE: type(v).__name__} if isinstance(v, nn.Module) else v for k, v in given.items()}


def versions() -> dict[str, str]:
    """Versions of what a fit's numbers depend on, without importing any of it."""
    names = {
        "bayeszoo": "bayeszoo",
        "torch": "torch",
        "pyro": "pyro-ppl",
        "arviz": "arviz",
        "safetensors": "safetensors",
    }
    found = {"python": platform.python_version()}
    for name, package in names.items():
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def _run_record(run: Run) -> dict[str, Any]:
    """A restart's numbers and words: all its fields that are no objects, its history, its objective."""
    values = {f.name: getattr(run, f.name) for f in dataclasses.fields(run)}
    return {
        "run": {k: v for k, v in values.items() if isinstance(v, bool | int | float | str)},
        "history": dataclasses.asdict(run.history),
        "estimator": run.objective.estimator,
        "surrogate": run.objective.surrogate,
        "vectorized": run.each.vectorized,
    }


def describe_model(model: Any) -> dict[str, Any]:
    """Module and class (or function) name, and the constructor's arguments where they can be read back."""
    kind = model if not isinstance(model, nn.Module) else type(model)
    return {
        "class": getattr(kind, "__qualname__", type(kind).__name__),
        "module": getattr(kind, "__module__", ""),
        "arguments": constructor_arguments(model) if isinstance(model, nn.Module) else None,
        # The zoo's own way to make such a model for a data set, where it was made that way: networks have no other.
        "from_catalog": bool(getattr(model, "from_catalog", False)),
    }


def constructor_arguments(model: nn.Module) -> dict[str, Any] | None:
    """`model.config()`, or the attributes named as the constructor's parameters; None if neither will do."""
    config = getattr(model, "config", None)
    found: dict[str, Any] = dict(config()) if callable(config) else {}
    for name, parameter in () if found else inspect.signature(type(model).__init__).parameters.items():
        if name == "self":
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or not hasattr(model, name):
            return None
        value = getattr(model, name)
        found[name] = value.tolist() if isinstance(value, Tensor) else value
    try:
        json.dumps(found)
    except (TypeError, ValueError):
        return None
    return found


def describe_sites(program: Program) -> dict[str, dict[str, list[int]]]:
    """Shapes of latent and observed sites, by which a given model is checked."""
    return {
        "latents": {name: list(site.shape) for name, site in program.latents.items()},
        "observed": {name: list(site.shape) for name, site in program.observed.items()},
    }


def describe_data(data: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a data set by name, and the rest as JSON; a streamed data set is only named."""
    if getattr(data, "streamed", False):
        return {}, {"streamed": True, "name": data.name, "rows": len(data)}
    tensors: dict[str, Tensor] = {}
    meta: dict[str, Any] = {"streamed": False, "bare": isinstance(data.observed, Tensor), "values": {}}
    for field in dataclasses.fields(data):
        value = getattr(data, field.name)
        if isinstance(value, Tensor):  # observed by its position, or which stream a row belongs to
            value = {"": value}
        if isinstance(value, Mapping):
            for key, entry in value.items():
                if isinstance(entry, Tensor):
                    tensors[f"{field.name}.{key}"] = _plain(entry)
                else:
                    meta["values"].setdefault(field.name, {})[key] = _json_value(f"{field.name}[{key!r}]", entry)
        elif hasattr(value, "to_dict"):
            meta[field.name] = value.to_dict()
        else:
            meta[field.name] = value
    return tensors, meta


def _json_value(label: str, value: Any) -> Any:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"the data's {label} is a {type(value).__name__}, which cannot be saved; make it a tensor, a number or a text"
        ) from None
    return value


def _plain(tensor: Tensor) -> Tensor:
    """A copy of its own on the CPU: safetensors refuses views and shared memory."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error).splitlines()[0]


def to_json(value: Any) -> Any:
    """The same with tuples as lists, and with `{"float": "nan"}` for the numbers that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    return value


def _from_json(value: dict[str, Any]) -> Any:
    return float(value["float"]) if list(value) == ["float"] else value
