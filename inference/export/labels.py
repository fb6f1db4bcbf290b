"""Names for ArviZ: of variables, of dimensions, of coordinates.

Site names and dimensions are the model's own words; netCDF forbids a slash in them and xarray a variable with
the name of a dimension, so such names are changed, and the variable's attribute `site` keeps the original.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..target.program import DATA_PLATE, Plate, Program, Site
from .weight_names import weight_coords, weight_dims

SAMPLE_DIMS = ("chain", "draw")


def safe(name: str) -> str:
    """A name that netCDF allows: slashes, which separate groups there, become dots."""
    return name.replace("/", ".").strip() or "unnamed"


def observation_plate(site: Site, num_data: int) -> Plate | None:
    """The plate over the observations around a site: "data", or another one as long as the data set."""
    for plate in site.plates:
        if plate.name == DATA_PLATE:
            return plate
    return next((plate for plate in site.plates if plate.size == num_data), None)


class Labels:
    """Names of everything in the tree of one model on one data set.

    Attributes:
        observation: the dimension of the observations.
        variables: site -> variable name.
        dims: site -> names of the dimensions of its value, plates first.
        coords: dimension -> coordinate values.
    """

    def __init__(self, program: Program, model: Any, data: Any) -> None:
        self.observation = safe(getattr(data, "observation_dim", "") or "observation")
        names = tuple(getattr(data, "labels", ()) or ())
        self.coords: dict[str, np.ndarray] = {self.observation: np.asarray(names) if names else np.arange(program.num_data)}
        self.sizes: dict[str, int] = {"chain": -1, "draw": -1, self.observation: program.num_data}
        describe = getattr(model, "coords", None)
        for dim, values in {**weight_coords(model, data), **(describe(data) if callable(describe) else {})}.items():
            if safe(dim) not in self.sizes:
                self.coords[safe(dim)] = np.asarray(values)
                self.sizes[safe(dim)] = len(self.coords[safe(dim)])
        declared = getattr(model, "dims", None)
        own = {**weight_dims(model), **(declared if isinstance(declared, Mapping) else {})}
        sites = {**program.latents, **program.observed}
        self.dims = {name: self._site_dims(site, list(own.get(name, ())), program.num_data) for name, site in sites.items()}
        self.variables = self._variables(list(sites))

    def _site_dims(self, site: Site, declared: list[str], num_data: int) -> tuple[str, ...]:
        rank, batch = len(site.shape), len(site.batch_shape)
        words: list[str | None] = [None] * rank
        over = observation_plate(site, num_data)
        for plate in site.plates:
            axis = batch + plate.dim
            if 0 <= axis < batch:
                words[axis] = self.observation if plate is over else safe(plate.name)
        if len(declared) == rank:
            words = [safe(word) for word in declared]
        elif len(declared) == site.event_dim:
            words[batch:] = [safe(word) for word in declared]
        taken: list[str] = []
        for axis, (word, size) in enumerate(zip(words, site.shape, strict=True)):
            taken.append(self._dim(word or f"{safe(site.name)}_dim_{axis}", site, axis, size, taken))
        return tuple(taken)

    def _dim(self, word: str, site: Site, axis: int, size: int, taken: list[str]) -> str:
        """The word where its size is right and it stands once in the variable, else one of the site's own."""
        if word in taken or self.sizes.get(word, size) != size:
            word = f"{safe(site.name)}_dim_{axis}"
            while self.sizes.get(word, size) != size:
                word += "_"
        self.sizes.setdefault(word, size)
        self.coords.setdefault(word, np.arange(size))
        return word

    def _variables(self, sites: list[str]) -> dict[str, str]:
        used = set(self.sizes)
        names: dict[str, str] = {}
        for site in sites:
            names[site] = _free(safe(site), used)
            used.add(names[site])
        return names

    def choose(self, site: str, positions: Tensor) -> None:
        """Leaves some entries of a site, in one dimension whose coordinates are their places: `fc1.weight[17,203]`.

        Args:
            positions: (k,) in the flattened value.
        """
        dim = f"{safe(site)}_entry"
        while dim in self.sizes:
            dim += "_"
        shape = [self.sizes[name] for name in self.dims[site]]
        places = torch.unravel_index(positions.cpu(), shape) if shape else []
        words = [self.coords[name][place.numpy()] for name, place in zip(self.dims[site], places, strict=True)]
        self.coords[dim] = np.asarray([",".join(str(word) for word in entry) for entry in zip(*words, strict=True)])
        self.sizes[dim] = len(positions)
        self.dims[site] = (dim,)

    def add(self, key: str, word: str, dims: Mapping[str, np.ndarray]) -> None:
        """Names a variable that is no site: by the word unless something else has it, the same for its dimensions.

        Args:
            key: under which `variables` and `dims` hold the names.
            dims: dimension -> coordinates.
        """
        taken = {*self.sizes, *self.variables.values()}
        self.variables[key] = _free(word, taken)
        taken.add(self.variables[key])
        names = []
        for dim, values in dims.items():
            names.append(_free(dim, taken))
            self.coords[names[-1]], self.sizes[names[-1]] = values, len(values)
            taken.add(names[-1])
        self.dims[key] = tuple(names)

    def scalars(self, site: str) -> list[str]:
        """The names of a site's entries, in the order of its flattened value: `theta[intercept]`."""
        names = [""]
        for dim in self.dims[site]:
            names = [f"{left},{value}" if left else str(value) for left in names for value in self.coords[dim]]
        return [f"{site}[{name}]" if name else site for name in names]


def _free(word: str, taken: set[str]) -> str:
    while word in taken:
        word += "_"
    return word


def whole_numbers(value: Tensor, site: Site) -> np.ndarray:
    """A CPU array; int64 where the site is discrete and holds whole numbers (summaries fail on booleans)."""
    value = value.detach().cpu()
    discrete = site.discrete or bool(getattr(site.support, "is_discrete", False)) or value.dtype.is_floating_point is False
    if discrete and value.dtype.is_floating_point and not bool((value == value.round()).all()):
        discrete = False
    array: np.ndarray = (value.long() if discrete else value).numpy()
    return array
