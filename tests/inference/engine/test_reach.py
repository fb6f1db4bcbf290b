"""What a model and a guide can reach in Python: what moves is seen, whatever keeps it, and put back; equal things made anew have not moved."""

from __future__ import annotations

import argparse
import bz2
import collections
import contextvars
import csv
import ctypes
import dataclasses
import decimal
import enum
import functools
import gc
import hashlib
import importlib
import io
import itertools
import logging
import math
import mmap
import os
import queue
import re
import sqlite3
import struct
import sys
import types
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from pyro.nn import PyroModule, PyroSample
from torch import Tensor
from two_engines import slope

import bayeszoo as bz
from bayeszoo.inference.engine import attributes


def _link(last: Any, length: int) -> Any:
    """A chain of objects that ends in one."""
    for _ in range(length):
        last = types.SimpleNamespace(next=last)
    return last


_position: contextvars.ContextVar[int] = contextvars.ContextVar("position", default=0)


class Colour(enum.Enum):
    """Whose members can have attributes."""

    RED = 1


class Number(float):
    """Which can have attributes."""


class OwnTensor(Tensor):
    """Whose class counts."""

    n = 0


Colour.RED.n = Number.n = 0  # type: ignore[attr-defined]


class Held:
    """Something to hold weakly."""

    n = 0


_weakly = Held()


def _tick(place: Any, name: str = "n") -> None:
    setattr(place, name, getattr(place, name) + 1)


def _cached() -> Any:
    @functools.lru_cache(None)
    def state() -> dict[str, int]:
        return {"n": 0}

    return state


def _read_by(generator: Any) -> Any:
    return lambda: next(generator)


def _environment() -> None:
    os.environ["BAYESZOO_TEST"] = str(int(os.environ.get("BAYESZOO_TEST", "0")) + 1)


def _frozen(box: dict[str, Any]) -> None:
    box["s"] = dataclasses.replace(box["s"], n=box["s"].n + 1)


@dataclasses.dataclass(frozen=True)
class Count:
    """A number that is replaced by the next."""

    n: int = 0


def stepping() -> dict[str, Any]:
    """By what keeps it: a function whose every call moves something."""
    long_list, long_dict, array = [0] * 200, {(k, "k"): 0 for k in range(200)}, np.zeros(20_000)
    objects, many = [Held() for _ in range(150)], types.SimpleNamespace(**{f"a{k}": k for k in range(150)}, n=0)
    number, box, options = [decimal.Decimal(0)], {"s": Count()}, argparse.Namespace(n=0)
    logger, log = logging.getLogger("bayeszoo.test"), [0]
    proxy, state, byte, c = weakref.proxy(_weakly), _cached(), memoryview(bytearray(2)), ctypes.c_int(0)
    texts, waiting, of_objects = io.StringIO(), queue.Queue(), np.array([0, None], dtype=object)  # type: ignore[var-annotated]
    waiting.put(0)
    logger.n, tensor = 0, torch.zeros(1)  # type: ignore[attr-defined]
    tensor.meta_ = {"n": 0}  # type: ignore[attr-defined]
    shared = types.SimpleNamespace(n=0)
    chain, frame = types.SimpleNamespace(far=_link(shared, 9), near=shared), pandas.DataFrame({"n": [0, 1]})
    other = types.ModuleType("other")
    other.n = 0  # type: ignore[attr-defined]
    file, mapped, number_of_its_own = io.BufferedReader(io.BytesIO(bytes(100))), mmap.mmap(-1, 100), Number(0.5)
    own_tensor = torch.zeros(1).as_subclass(OwnTensor)
    seeds, bits, masked = np.random.SeedSequence(0), np.random.PCG64(0), np.ma.zeros(50)
    sparse = xarray.DataArray(np.zeros(3))

    def next_free(a: Any) -> int:
        return int(np.ma.count_masked(a))

    append, seed = log.append, torch.Generator().manual_seed(0)

    def add(place: Any, key: Any, by: Any = 1) -> Any:
        return lambda: place.__setitem__(key, place[key] + by)

    return {
        "item 150 of a list": add(long_list, 150),
        "a tuple as key": add(long_dict, (150, "k")),
        "a large array": add(array, 15_000),
        "an array of objects": add(of_objects, 0),
        "an object far down a list": lambda: _tick(objects[120]),
        "the 151st attribute": lambda: _tick(many),
        "a decimal": add(number, 0, decimal.Decimal(1)),
        "a frozen dataclass": lambda: _frozen(box),
        "an argparse namespace": lambda: _tick(options),
        "a logger": lambda: _tick(logger),
        "a weak proxy": lambda: _tick(proxy),
        "what a cached function returned": lambda: add(state(), "n")(),
        "a view of memory": add(byte, 0),
        "a number of C's": lambda: _tick(c, "value"),
        "a text in memory": lambda: texts.write("a"),
        "a file that is read": lambda: file.read(1),
        "a file in memory that is read": mapped.read_byte,
        "a member of an enumeration": lambda: _tick(Colour.RED),
        "a number with attributes": lambda: _tick(number_of_its_own),
        "the class of a tensor": lambda: _tick(type(own_tensor)),
        "a queue": lambda: waiting.put(waiting.get() + 1),
        "a context variable": lambda: _position.set(_position.get() + 1),
        "a dictionary on a tensor": lambda: add(tensor.meta_, "n")(),  # type: ignore[attr-defined]
        "a near object that a long way leads to as well": lambda: _tick(chain.near),
        "a data frame": lambda: frame.iloc.__setitem__((0, 0), int(frame.iloc[0, 0]) + 1),
        "a module made by hand": lambda: _tick(other),
        "a method of a list": lambda: append(1),
        "the environment": _environment,
        "a list's iterator": _read_by(iter([0.0] * 1000)),
        "a counter": _read_by(itertools.count()),
        "a cycle": _read_by(itertools.cycle([1, 2, 3])),
        "a generator with a loop": _read_by(k for k in [0.0] * 1000),
        "a generator that delegates": _read_by(_delegates()),
        "a generator that only waits": _read_by(_waits()),
        "an iterator of NumPy's": _read_by(array.flat),
        "an iterator over indices": _read_by(np.ndindex(30, 30)),
        "an iterator that numbers": _read_by(np.ndenumerate(array)),
        "an iterator over arrays": _read_by(np.nditer(array)),
        "an iterator over a table": _read_by(csv.reader(["1"] * 1000)),
        "a generator of seeds": lambda: seeds.spawn(1),
        "bits": lambda: bits.random_raw(),
        "a masked array": lambda: masked.__setitem__(next_free(masked), np.ma.masked),
        "an object with slots of a library": lambda: sparse.data.__setitem__(0, sparse.data[0] + 1),
        "a seed": lambda: seed.manual_seed(seed.initial_seed() + 1),
    }


def _delegates() -> Iterator[float]:
    yield from itertools.repeat(0.0, 1000)


def _waits() -> Iterator[None]:
    yield
    yield
    yield


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("where", stepping())
def test_what_moves_is_seen_whatever_keeps_it(where: str) -> None:
    """All would be frozen in a graph; no time is given them to show."""
    step = stepping()[where]
    step()
    before = attributes.Attributes([step])
    assert before.changed() == ""
    step()
    assert before.changed()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "where", [name for name in stepping() if not any(w in name for w in ("iterator", "counter", "cycle", "generator"))]
)
def test_what_moves_is_put_back(where: str) -> None:
    step = stepping()[where]
    step()
    before = attributes.Attributes([step])
    with attributes.kept_attributes([step]):
        step()
        assert before.changed()
    assert before.changed() == ""


class Settings(dict[str, int]):
    """Whose items are attributes; what it lacks raises a KeyError."""

    __getattr__ = dict.__getitem__


class Behind:
    """Counts behind a slot with a private name, a property that can be set, and a method of the class."""

    __slots__ = ("__n",)
    settings = Settings(n=0)
    history: tuple[int, ...] = ()
    total = 0

    def __init__(self) -> None:
        self.__n = 0

    def tick(self) -> None:
        self.__n += 1

    def lengthen(self) -> None:
        Behind.history = (*Behind.history, 1)

    @property
    def level(self) -> int:
        _levels[0] += 1
        return _levels[0]

    @level.setter
    def level(self, value: int) -> None:
        raise AttributeError

    @classmethod
    def count(cls) -> None:
        cls.total += 1


class Lately:
    """Works something out when it is first asked."""

    level = functools.cached_property(lambda _: _tick(_at_hand))

    def ask(self) -> None:
        vars(self).pop("level", None)
        return self.level


_levels, _at_hand, _behind, _turns = [0], types.SimpleNamespace(n=0), Behind(), collections.OrderedDict(a=[1], b=[2])


def _one(x: Tensor) -> Tensor:
    return x


def _two(x: Tensor) -> Tensor:
    return x + 1


def _turning() -> dict[str, Any]:
    """What takes more than one look to see."""
    shapes, net, normed = {"f": _one}, torch.nn.Sequential(torch.nn.Linear(1, 1)), torch.nn.BatchNorm1d(1)
    prior, marked, buffer = {"p": dist.Normal(torch.zeros(()), 1.0)}, torch.nn.Parameter(torch.zeros(1)), torch.zeros(3)
    marked.n = 0  # type: ignore[attr-defined]
    reparametrised = pyro.poutine.reparam(_counts_at_a_site, config={})

    def add_a_hook() -> None:
        net[0].register_forward_hook(_hook)

    return {
        "another function": lambda: shapes.update(f=_two if shapes["f"] is _one else _one),
        "a function of torch's": lambda: shapes.update(f=torch.relu if shapes["f"] is torch.tanh else torch.tanh),
        "a private slot": _behind.tick,
        "a tuple of the class": _behind.lengthen,
        "what reading a property counts": lambda: _behind.level,
        "a method of the class": Behind.count,
        "what is worked out when it is first asked": Lately().ask,
        "turns in an ordered dictionary": lambda: _turns.move_to_end(next(iter(_turns))),
        "a prior of another family": lambda: prior.update(p=dist.Cauchy(0.0, 1.0)),
        "training switched": lambda: net.train(not net.training),
        "a hook": add_a_hook,
        "a layer put in": lambda: net.append(torch.nn.Identity()),
        "a parameter's attribute": lambda: _tick(marked),
        "a model in a handler": reparametrised,
        "a prior that counts": Weighted(_counting_prior),
        "a prior that counts, as a method": Decorated(),
        "batch norm": lambda: normed(torch.rand(5, 1)),
        "a buffer's data": lambda: buffer.data.add_(1),
    }


def _hook(*_: Any) -> None:
    return None


def _counting_prior(module: Any) -> Any:
    _levels[0] += 1
    return dist.Normal(0.0, 1.0)


class Weighted(PyroModule):
    """A weight whose prior is made by a function that it is given."""

    def __init__(self, prior: Any) -> None:
        super().__init__()
        self.weight = PyroSample(prior)

    def forward(self) -> Any:
        return self.weight


class Decorated(PyroModule):
    """A weight whose prior is a method."""

    @PyroSample
    def weight(self) -> Any:
        return _counting_prior(self)

    def forward(self) -> Any:
        return self.weight


def _counts_at_a_site() -> None:
    _levels[0] += 1
    pyro.sample("a", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize("where", _turning())
def test_what_is_kept_in_unusual_places_is_seen_and_put_back(where: str) -> None:
    step = _turning()[where]
    before = attributes.Attributes([step])
    values = [t.detach().clone() for t in _tensors_of(step)]
    with attributes.kept_attributes([step]):
        step()
        if where not in ("batch norm", "a buffer's data"):  # which graphs see
            assert before.changed()
    assert before.changed() == ""
    assert all(torch.equal(a, b) for a, b in zip(values, _tensors_of(step), strict=True))


def _tensors_of(step: Any) -> list[Tensor]:
    held = [cell.cell_contents for cell in getattr(step, "__closure__", None) or ()]
    return [
        t
        for h in held
        for t in ([h] if isinstance(h, Tensor) else h.state_dict().values() if isinstance(h, torch.nn.Module) else [])
    ]


PACKAGE = {
    "__init__": "",
    "state": "n = 0\nheld = [0]\n",
    "model": "from .state import held\n\ndef counts():\n    held[0] += 1\n\n"
    "def imports():\n    from . import state\n    state.n += 1\n\n"
    "from torch import nn\n\nclass Net(nn.Module):\n    def forward(self, x):\n        held[0] += 1\n        return x\n",
}


@pytest.mark.parametrize("how", ["as it is", "in a handler", "as a layer", "imported inside"])
def test_models_of_installed_packages(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package beside torch in site-packages is the user's where the model comes from it."""
    package = tmp_path / "site-packages" / "counting_models"
    package.mkdir(parents=True)
    for name, text in PACKAGE.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(package.parent)
    model = importlib.import_module("counting_models.model")
    net = torch.nn.Sequential(model.Net())
    part, step = {
        "as it is": (model.counts, model.counts),
        "in a handler": (pyro.poutine.scale(model.counts, scale=2.0),) * 2,
        "as a layer": (net, lambda: net(torch.zeros(1))),
        "imported inside": (model.imports, model.imports),
    }[how]
    step()
    before = attributes.Attributes([part])
    with attributes.kept_attributes([part]):
        step()
        assert before.changed()
    assert before.changed() == ""
    for name in [name for name in sys.modules if name.startswith("counting_models")]:
        monkeypatch.delitem(sys.modules, name)


def test_classes_are_not_kept_alive() -> None:
    class Local:
        __slots__ = ("n",)

    attributes.Attributes([functools.partial(print, [Local()])])
    there = weakref.ref(Local)
    del Local
    gc.collect()
    assert there() is None


def test_modules_that_load_when_they_are_asked_are_not_asked() -> None:
    class Lazy(types.ModuleType):
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError("loaded")

    held = {"lazy": Lazy("lazy"), "plain": types.SimpleNamespace()}
    vars(held["plain"])[("a", 1)] = [1]  # type: ignore[index]
    vars(held["plain"])[("a",)] = [1]  # type: ignore[index]
    before = attributes.Attributes([lambda: held])
    vars(held["plain"])[("a",)].append(2)  # type: ignore[index]
    assert before.changed()


def test_a_loop_over_lines_says_nothing_of_where_it_stands() -> None:
    lines = io.TextIOWrapper(io.BytesIO(b"1\n" * 5000))
    assert attributes.Attributes([_read_by(lines)]).changed() == ""
    next(lines)
    assert attributes.Attributes([_read_by(lines)]).changed()
    with attributes.kept_attributes([_read_by(lines)]) as moving:
        assert moving == "generator"


@pytest.mark.parametrize(
    "make",
    [
        lambda: iter([1, 2]),
        lambda: (k for k in range(3)),
        itertools.count,
        lambda: np.zeros(3).flat,
        lambda: csv.reader([]),
        lambda: np.random.SeedSequence(0),
        lambda: sqlite3.connect(":memory:"),
    ],
)
def test_what_nothing_sends_back_is_not_tried_where_that_would_show(make: Any) -> None:
    held = {"plan": make()}
    with attributes.kept_attributes([lambda: held]) as moving:
        assert moving == "held.plan"
    if isinstance(held["plan"], sqlite3.Connection):
        held["plan"].close()
    with attributes.kept_attributes([lambda: sys.stdout]) as moving:
        assert moving == ""


@pytest.mark.parametrize(
    "make",
    [
        lambda: re.finditer("a", "aaa"),
        lambda: sqlite3.connect(":memory:").cursor(),
        zlib.decompressobj,
        bz2.BZ2Compressor,
        lambda: os.scandir("."),
    ],
)
def test_what_moves_without_a_trace_is_named(make: Any) -> None:
    held = {"plan": make()}
    assert attributes.Attributes([lambda: held]).unseen.startswith("held.plan")
    with attributes.kept_attributes([lambda: held]) as moving:
        assert moving.startswith("held.plan")
    if hasattr(held["plan"], "close"):
        held["plan"].close()
    held["plan"] = [
        iter([1]),
        csv.reader([]),
        struct.iter_unpack("d", bytes(80)),
        np.zeros(3).flat,
        zip(),
        {}.items(),
        map(str, []),
    ]
    assert attributes.Attributes([lambda: held]).unseen == ""


@pytest.mark.parametrize("make", [hashlib.md5, hashlib.shake_128, lambda: struct.iter_unpack("d", bytes(80))])
def test_checksums_and_unpackers_are_compared(make: Any) -> None:
    held = make()
    before = attributes.Attributes([lambda: held])
    assert before.changed() == ""
    next(held, None) if hasattr(held, "__next__") else held.update(b"a")
    assert before.changed() == "held"


def test_hooks_and_parameters_of_modules_are_seen() -> None:
    class Hook:
        n = 0

        def __call__(self, *_: Any) -> None:
            self.n += 1

    net = torch.nn.Linear(1, 1)
    net.register_forward_hook(Hook())
    net.fixed = torch.nn.Parameter(torch.zeros(()), requires_grad=False)
    net(torch.zeros(1, 1))
    before = attributes.Attributes([net])
    net(torch.zeros(1, 1))
    assert before.changed() == "forward_hooks.n"
    old = net.fixed
    net.fixed = torch.nn.Parameter(torch.ones(()), requires_grad=False)
    assert before.replaced([old]) == "fixed"
    assert before.replaced([]) == ""


def test_a_tensor_with_other_memory_is_another() -> None:
    held = {"n": torch.zeros(())}
    before = attributes.Attributes([lambda: held])
    with attributes.kept_attributes([lambda: held]):
        held["n"].data = held["n"].data + 1
        assert before.replaced([held["n"]]) == "held.n"
    assert float(held["n"]) == 0


def test_equal_objects_made_anew_have_not_changed() -> None:
    """A model that keeps its last result keeps another object after every call."""

    @dataclasses.dataclass
    class Result:
        mean: Tensor
        name: str = "x"

    kept: dict[str, Any] = {}

    def step() -> None:
        kept["last"], kept["space"] = (
            Result(torch.rand(3)),
            types.SimpleNamespace(parts=[torch.rand(2), {"a": (1, math.nan)}], set={1}),
        )

    step()
    before = attributes.Attributes([step])
    step()
    assert before.changed() == ""
    kept["space"].parts[1]["a"] = (2, math.nan)
    assert before.changed() == "kept.space.parts[1]"


class Incomparable(str):
    """A text that refuses to be compared."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not now")


class Stubborn:
    """Raises at whatever it is asked."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    @property
    def __class__(self) -> Any:
        raise RuntimeError("class")

    def __len__(self) -> int:
        raise RuntimeError("len")


def test_objects_that_raise_are_left_alone() -> None:
    held = {"text": Incomparable("a"), "stubborn": Stubborn(), "loop": []}
    held["loop"].append(held)  # type: ignore[attr-defined]
    held["space"] = types.SimpleNamespace(text=Incomparable("b"))
    before = attributes.Attributes([lambda: held])
    with attributes.kept_attributes([lambda: held]):
        assert before.changed() == ""


def test_more_objects_than_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [[k] for k in range(50)]
    monkeypatch.setattr("bayeszoo.inference.engine.reach.MOST", 40)
    with pytest.raises(attributes.Unwatched, match="more than 40 objects"):
        attributes.Attributes([lambda: held])


def test_a_large_tensor_that_was_updated_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"small": torch.zeros(3), "large": torch.zeros(9)}
    monkeypatch.setattr("bayeszoo.inference.engine.contents._KEPT_ELEMENTS", 5)
    with attributes.kept_attributes([lambda: held]):
        held["small"].add_(1)
    assert float(held["small"].sum()) == 0
    with (
        pytest.raises(attributes.Unwatched, match="which is too large"),
        attributes.kept_attributes([lambda: held]),
    ):
        held["large"].add_(1)


class Unreadable(list[int]):
    """Cannot be looked at."""

    def __iter__(self) -> Iterator[int]:
        raise RuntimeError("not now")


def test_what_cannot_be_read_is_left_alone() -> None:
    held = types.SimpleNamespace(held=Unreadable([1]), n=1)
    before = attributes.Attributes([held])
    assert before.changed() == ""
    held.n = 2
    assert before.changed() == "n"


class Counting(torch.nn.Module):
    """Adds how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.n += 0.01  # type: ignore[operator]
        return x + self.n  # type: ignore[operator]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
def test_buffers_of_scripted_modules_are_followed_and_put_back() -> None:
    scripted = torch.jit.script(torch.nn.Sequential(Counting()))
    buffer = next(scripted.buffers())
    picture = attributes.Attributes([lambda: scripted]).picture
    assert any(node.value is buffer and node.name.endswith("0.n") for node in picture.nodes)
    with attributes.kept_attributes([lambda: scripted]):
        scripted(torch.zeros(()))
        assert buffer > 0.0
    assert buffer == 0.0


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
def test_a_scripted_network_that_counts_is_fitted_alike(eager_is_dear: None) -> None:
    _, data = slope()
    fits = []
    for compile in (False, True, "auto"):
        scripted = torch.jit.script(Counting())

        def model(x: Tensor, y: Tensor | None = None, net: Any = scripted) -> Tensor:
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                return pyro.sample("y", dist.Normal(net(x * w), 1.0), obs=y)

        fit = bz.fit(model, data, "mean_field", steps=40, seed=0, progress=False, compile=compile)  # type: ignore[arg-type]
        fits.append((*fit.losses, next(scripted.buffers()).item()))
    assert fits[1] == pytest.approx(fits[0], rel=1e-6)
    assert fits[2] == pytest.approx(fits[0], rel=1e-6)
