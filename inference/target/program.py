"""What a Pyro callable consists of: its latent sites, its plates, its observations.

Everything that treats models alike (guides, start, objectives, diagnostics) reads a model once, through `describe`,
and from then on works with the `Program` that it returns.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import Independent, constraints
from torch.utils._python_dispatch import TorchDispatchMode

from ..engine.noise import kept_generators

Values = Mapping[str, Tensor]

#: With more latents of single observations than this no ratio of densities over all of them is even.
FEW_LOCAL = 1_000

#: A model of more observations than this is read on so many of them, where it says that they tell: networks hold far more than their data.
MANY, READ = 5_000, 256

#: The plate over the observations, by contract with the models.
DATA_PLATE = "data"


class BoundData(Protocol):
    """The part of `bayeszoo.data.Data` that inference and guides rely on."""

    def __len__(self) -> int: ...

    def bind(self, model: Callable[..., Any], observed: bool = True) -> dict[str, Any]:
        """Keyword arguments that call `model` on all rows."""

    def batch(self, index: Tensor, model: Callable[..., Any]) -> dict[str, Any]:
        """Keyword arguments that call `model` on the rows `index`."""


@dataclass(frozen=True)
class Plate:
    """One `pyro.plate` around a site: `dim` is negative, `size` is that of the full data set."""

    name: str
    dim: int
    size: int
    subsampled: bool = False


@dataclass(frozen=True)
class Site:
    """One sample statement of the model, seen on the full data set.

    `shape` is that of the whole value (plates, then event); `event_dim` counts the event's dimensions; `elements` are the numbers of
    its value or of its distribution's largest parameter, whichever are more: what a draw of it holds in memory.
    """

    name: str
    shape: torch.Size
    event_dim: int
    support: constraints.Constraint
    discrete: bool
    plates: tuple[Plate, ...]
    distribution: Any
    elements: int

    @property
    def local(self) -> bool:
        """Whether there is one latent per observation."""
        return any(plate.name == DATA_PLATE for plate in self.plates)

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the plates alone, as the site's value has it."""
        return self.shape[: len(self.shape) - self.event_dim]


@dataclass(frozen=True)
class Program:
    """The static structure of a model on a data set.

    Attributes:
        row_elements: numbers that one run of the model makes for each observation, hidden layers included; 0 where it was run on
            all of them at once, because they are few or some do not tell (`some_rows`).
    """

    latents: dict[str, Site]
    observed: dict[str, Site]
    max_plate_nesting: int
    num_data: int
    row_elements: int = 0

    @property
    def continuous(self) -> dict[str, Site]:
        """Latent sites that a density guide covers, in the model's order."""
        return {name: site for name, site in self.latents.items() if not site.discrete}

    @property
    def discrete(self) -> dict[str, Site]:
        """Latent sites with finite support: summed out, or enumerated in the guide."""
        return {name: site for name, site in self.latents.items() if site.discrete}

    @property
    def width(self) -> int:
        """Numbers that one draw of the largest site holds for each observation."""
        sites = (*self.latents.values(), *self.observed.values())
        return max([1, *(site.elements // max(1, self.num_data) for site in sites)])

    @property
    def all_local(self) -> bool:
        """Whether all latents belong to single observations, and some are continuous."""
        return bool(self.local) and all(site.local for site in self.latents.values())

    @property
    def num_local(self) -> int:
        """Numbers in the continuous latents of single observations, all together."""
        return sum(site.shape.numel() for site in self.local.values())

    @property
    def local(self) -> dict[str, Site]:
        """Continuous latent sites inside the data plate."""
        return {name: site for name, site in self.continuous.items() if site.local}


class Fix(Messenger):
    """Gives latent sites the values of a dictionary; they stay latent."""

    def __init__(self, values: Values) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        value = self.values.get(msg["name"])
        if value is not None and not msg["is_observed"]:
            msg["value"] = value
            msg["done"] = True


@contextlib.contextmanager
def quiet(seed: int | None = None) -> Iterator[None]:
    """Runs a block with validation off and leaves every global random generator as it was found."""
    with kept_generators(), pyro.validation_enabled(False):
        if seed is not None:
            pyro.set_rng_seed(int(seed) % 2**32)  # as NumPy has it
        yield


def sample_sites(trace: poutine.Trace) -> Iterator[tuple[str, Any]]:
    """The sample statements of a trace, without those that plates make."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not isinstance(site["fn"], _Subsample):
            yield name, site


def is_point(site: Any) -> bool:
    """Whether a site of a trace is a `Delta` without a density: a deterministic value or a point estimate."""
    fn = site["fn"]
    while hasattr(fn, "base_dist") and not isinstance(fn, pyro.distributions.Delta):
        fn = fn.base_dist
    return isinstance(fn, pyro.distributions.Delta) and is_identically_zero(fn.log_density)


def is_point_estimate(site: Any) -> bool:
    """The same, also where the zero density has been written out as a tensor; reads values, so not for mapped code."""
    fn = site["fn"]
    while hasattr(fn, "base_dist") and not isinstance(fn, pyro.distributions.Delta):
        fn = fn.base_dist
    return isinstance(fn, pyro.distributions.Delta) and not bool(torch.as_tensor(fn.log_density != 0).any())


def base_of(fn: Any) -> Any:
    """A distribution without the wrapper that counts its event dimensions."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn


def require_data(data: Any) -> None:
    """Raises ValueError for what are no data."""
    if not hasattr(data, "bind"):
        raise ValueError(
            f"data must be bz.data.Data, or anything with its methods, got {type(data).__name__}; make them with bz.data.Data({{'x': x}}, y), "
            "or bz.data.Data({}, x) for a model without inputs"
        )


def check_data(model: Any, data: Any, *, new: bool = False) -> None:
    """Lets a model refuse data, in the words of its own `check`.

    Args:
        new: whether it is only asked about them. Where a model cannot learn from all such data (a single class, no label) it has a
            `check_new` beside its `check`.
    """
    require_data(data)
    check = getattr(model, "check", None)
    if getattr(data, "streamed", False):  # some rows, which may lack a class that others have
        data, new = data.select(_spread(data)), True
    if new:
        check = getattr(model, "check_new", check)
    if callable(check):
        check(data)


def some_rows(model: Callable[..., Any], data: BoundData) -> Tensor | None:
    """Evenly spaced observations that a large data set can be read by; None where the model has to see all.

    Of a streamed set nobody sees more than some at a time.

    A model has to say so, `by_rows = True`: it takes num_data and index, its shared latents are the same whatever rows it sees,
    latents of single observations have one prior, and it has no parameter for each row.
    """
    if getattr(data, "streamed", False):
        return _spread(data)
    if len(data) <= MANY or getattr(data, "streams", None) is not None or not getattr(model, "by_rows", False):
        return None
    return _spread(data)


def _spread(data: BoundData) -> Tensor:
    return torch.linspace(0, len(data) - 1, min(READ, len(data))).round().long()


def bound_rows(model: Callable[..., Any], data: BoundData) -> Mapping[str, Any]:
    """The model's arguments: all rows, and of a streamed set, which is never in memory as a whole, some."""
    return data.batch(_spread(data), model) if getattr(data, "streamed", False) else data.bind(model)


def row_tensors(model: Callable[..., Any], data: BoundData) -> dict[str, Tensor]:
    """The model's arguments that have a row for each observation, in those rows that `bound_rows` takes; what is constant has none."""
    streamed, constant = getattr(data, "streamed", False), getattr(data, "constants", {})
    size = len(_spread(data)) if streamed else len(data)
    return {
        name: value
        for name, value in bound_rows(model, data).items()
        if isinstance(value, Tensor) and value.dim() >= 1 and len(value) == size and name != "index" and name not in constant
    }


def some_trace(model: Callable[..., Any], data: BoundData, rows: Tensor | None = None) -> poutine.Trace:
    """A run of the model on all rows or on some, its latents at any values: where the model says to begin, or draws from the prior.

    An improper prior has no draws.
    """
    begin = getattr(model, "initial_values", None)
    values = {} if begin is None else {name: value for name, (value, _) in begin().items()}
    with Fix(values):
        return poutine.trace(model).get_trace(**(data.bind(model) if rows is None else data.batch(rows, model)))


class _Counting(TorchDispatchMode):
    """Counts the numbers that operations put out."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not func.is_view:
            self.numbers += out.numel()
        return out


def describe(model: Callable[..., Any], data: BoundData) -> Program:
    """Runs the model once and reads off its structure on the full data.

    Raises:
        ValueError: if a latent site is neither continuous nor enumerable, if the model has no latent site at all, or if it
            draws its own subsample around a latent site.
    """
    with quiet(seed=0), torch.no_grad():
        rows = some_rows(model, data)
        if rows is not None and getattr(data, "streamed", False):
            return _from_two_runs(rows, model, data)
        program = None if rows is None else _read_on(rows, model, data)
        return program or _described(some_trace(model, data), len(data))


def _read_on(rows: Tensor, model: Callable[..., Any], data: BoundData) -> Program | None:
    """The program on all rows as some of them tell it; None where the model does not run on so few."""
    try:
        return _from_two_runs(rows, model, data)
    except (RuntimeError, ValueError):  # batch norm, say, takes no single row; what else is wrong all rows show again
        return None


def _from_two_runs(rows: Tensor, model: Callable[..., Any], data: BoundData) -> Program:
    found = []
    for part in (rows, rows[:1]):
        with _Counting() as counting:
            trace = some_trace(model, data, part)
        found.append((_described(trace, len(part)), counting.numbers))
    (program, numbers), (single, numbers_of_one) = found

    def longer(name: str, site: Site) -> Site:
        if not site.local:
            return site
        whole = _longer(site, len(rows), len(data))
        if name not in single.latents:
            return whole
        return dataclasses.replace(whole, distribution=single.latents[name].distribution.expand(whole.batch_shape))

    latents, observed = (
        {name: longer(name, site) for name, site in part.items()} for part in (program.latents, program.observed)
    )
    # What a run makes of its shared latents it makes once, whatever the rows.
    each = (numbers - numbers_of_one) // max(1, len(rows) - 1)
    return Program(latents, observed, program.max_plate_nesting, len(data), max(1, each))


def _longer(site: Site, rows: int, num_data: int) -> Site:
    """A local site with the shape that it has on all rows."""
    plate = next(plate for plate in site.plates if plate.name == DATA_PLATE)
    shape = list(site.shape)
    shape[len(site.batch_shape) + plate.dim] = num_data
    return dataclasses.replace(site, shape=torch.Size(shape), elements=-(-site.elements // rows) * num_data)


def _described(trace: poutine.Trace, rows: int) -> Program:
    latents: dict[str, Site] = {}
    observed: dict[str, Site] = {}
    depth = 0
    for name, site in sample_sites(trace):
        plates = _plates(site, rows)
        depth = max([depth, *(-plate.dim for plate in plates)])
        if site["is_observed"]:
            if not site["infer"].get("_deterministic"):
                observed[name] = _site(name, site, plates, discrete=False)
            continue
        if any(plate.subsampled for plate in plates):
            raise ValueError(
                f"site '{name}' lies in plate '{plates[0].name}', which draws its own subsample: open the plate with "
                "subsample=index and take num_data and index as arguments, so that guide and model see the same rows"
            )
        fn = site["fn"]
        if fn.has_enumerate_support:
            latents[name] = _site(name, site, plates, discrete=True)
        elif not fn.support.is_discrete:
            latents[name] = _site(name, site, plates, discrete=False)
        else:
            raise ValueError(
                f"site '{name}' is discrete with infinite support, so it can be neither summed out nor drawn by a "
                "continuous guide; write the model with a finite or continuous latent instead"
            )
    if not latents and not observed:
        raise ValueError("the model has no pyro.sample statement, so there is nothing to infer")
    return Program(latents, observed, depth, rows)


def _plates(site: Any, rows: int) -> tuple[Plate, ...]:
    """The plates around a site; a data plate that was given its rows draws no subsample of its own."""
    return tuple(
        Plate(frame.name, frame.dim, frame.full_size or frame.size, subsampled=_subsampled(frame, rows))
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    )


def _subsampled(frame: Any, rows: int) -> bool:
    return (frame.full_size or frame.size) != frame.size and not (frame.name == DATA_PLATE and frame.size == rows)


def _site(name: str, site: Any, plates: tuple[Plate, ...], discrete: bool) -> Site:
    fn = site["fn"]
    value = site["value"]
    shape = torch.Size(value.shape) if isinstance(value, Tensor) else torch.Size()
    return Site(
        name, shape, fn.event_dim, _without_mixture(fn.support), discrete, plates, fn, max(shape.numel(), _parameters(fn))
    )


def _parameters(fn: Any) -> int:
    """Numbers of a distribution's largest parameter: a categorical pixel has as many as levels."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return max((value.numel() for value in vars(fn).values() if isinstance(value, Tensor)), default=0)


def _without_mixture(support: Any) -> constraints.Constraint:
    """A mixture's support is that of its components, but torch knows no map from the reals to it under its own name."""
    if isinstance(support, constraints.independent):
        inner = _without_mixture(support.base_constraint)
        return (
            support if inner is support.base_constraint else constraints.independent(inner, support.reinterpreted_batch_ndims)
        )
    if type(support).__name__ == "MixtureSameFamilyConstraint":
        components: constraints.Constraint = support.base_constraint
        return components
    plain: constraints.Constraint = support
    return plain
