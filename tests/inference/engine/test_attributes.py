"""What a model and a guide keep in Python: what changes there from call to call is found, and the fit stays eager."""

from __future__ import annotations

import argparse
import collections
import contextvars
import ctypes
import dataclasses
import decimal
import enum
import functools
import gc
import io
import itertools
import logging
import math
import os
import queue
import random
import sys
import types
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor
from two_engines import Slope, assert_same, slope

import bayeszoo as bz
from bayeszoo.inference import NotCompiledWarning
from bayeszoo.inference.engine import attributes

_seen = [0]


def test_attribute_that_counts_is_named() -> None:
    class Counter(Slope):
        calls = 0

        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            self.calls += 1
            return super().forward(x, y)

    _, data = slope()
    with pytest.raises(ValueError, match="the attribute 'calls' changes at every call"):
        bz.fit(Counter(), data, "mean_field", steps=60, progress=False, compile=True)


def later(calls: int) -> float:
    """Nothing for a long time, so that no replay shows it."""
    return 0.0 if calls < 10_000 else 1.0


def counted(x: Tensor, y: Tensor | None, calls: int) -> None:
    a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("y", dist.Normal(a + later(calls), 1.0), obs=y)


class Counting:
    """Counts in an attribute, which `__call__` and `method` see, or in one of the class."""

    everywhere = 0

    def __init__(self) -> None:
        self.n = 0

    def __call__(self, x: Tensor, y: Tensor | None = None) -> None:
        self.n += 1
        counted(x, y, self.n)

    def method(self, x: Tensor, y: Tensor | None = None) -> None:
        self.n += 1
        counted(x, y, self.n)

    def of_the_class(self, x: Tensor, y: Tensor | None = None) -> None:
        Counting.everywhere += 1
        counted(x, y, Counting.everywhere)


class Shadowed(PyroModule):
    """Counts on the instance what the class has too."""

    n = 0

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        self.n += 1
        counted(x, y, self.n)


class Slotted:
    """Counts without a dictionary, behind a property."""

    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0

    @property
    def next(self) -> int:
        self.n += 1
        return self.n


_slotted, _namespace = Slotted(), types.SimpleNamespace(n=0)
_array, _deque = np.zeros(3, dtype=int), collections.deque([0], maxlen=1)


def counts_in_a_slot(x: Tensor, y: Tensor | None = None) -> None:
    counted(x, y, _slotted.next)


def counts_in_a_namespace(x: Tensor, y: Tensor | None = None) -> None:
    _namespace.n += 1
    counted(x, y, _namespace.n)


def counts_in_an_array(x: Tensor, y: Tensor | None = None) -> None:
    _array[1] += 1
    counted(x, y, int(_array[1]))


def counts_in_a_deque(x: Tensor, y: Tensor | None = None) -> None:
    _deque.append(_deque[0] + 1)
    counted(x, y, _deque[0])


def counts_in_an_argument(state: dict[str, int], x: Tensor, y: Tensor | None = None) -> None:
    state["n"] += 1
    counted(x, y, state["n"])


def counts_in_a_default(x: Tensor, y: Tensor | None = None, *, state: Any = types.SimpleNamespace(held=[0])) -> None:  # noqa: B008
    state.held[0] += 1
    counted(x, y, state.held[0])


def counts_in_a_list(x: Tensor, y: Tensor | None = None) -> None:
    _seen[0] += 1
    counted(x, y, _seen[0])


def tally() -> int:
    _seen[0] += 1
    return _seen[0]


def counts_in_a_helper(x: Tensor, y: Tensor | None = None) -> None:
    counted(x, y, tally())


def counts_on_itself(x: Tensor, y: Tensor | None = None) -> None:
    counts_on_itself.calls = getattr(counts_on_itself, "calls", 0) + 1  # type: ignore[attr-defined]
    counted(x, y, counts_on_itself.calls)  # type: ignore[attr-defined]


def counts_in_a_closure() -> Any:
    n, state = 0, Counting()

    def rebinds(x: Tensor, y: Tensor | None = None) -> None:
        nonlocal n
        n += 1
        counted(x, y, n)

    def asks(x: Tensor, y: Tensor | None = None) -> None:
        state.n += 1
        counted(x, y, state.n)

    return rebinds, asks


def wrapped() -> Any:
    @functools.wraps(counts_in_a_list)
    def outer(x: Tensor, y: Tensor | None = None) -> None:
        counts_in_a_list(x, y)

    return outer


class Named(list[float]):
    """A list with an attribute."""

    n = 0


_number = {"n": np.int64(0)}
_user_dict, _bytes, _named, _marked = collections.UserDict({"n": 0}), bytearray(1), Named([1.0]), torch.zeros(1)
_marked.n = 0  # type: ignore[attr-defined]


def counts_by_a_number_of_numpys(x: Tensor, y: Tensor | None = None) -> None:
    _number["n"] = _number["n"] + 1
    counted(x, y, int(_number["n"]))


def counts_in_a_user_dict(x: Tensor, y: Tensor | None = None) -> None:
    _user_dict["n"] += 1
    counted(x, y, _user_dict["n"])


def counts_in_bytes(x: Tensor, y: Tensor | None = None) -> None:
    _bytes[0] = (_bytes[0] + 1) % 256
    counted(x, y, _bytes[0])


def counts_on_a_list(x: Tensor, y: Tensor | None = None) -> None:
    _named.n += 1
    counted(x, y, _named.n)


def counts_on_a_tensor(x: Tensor, y: Tensor | None = None) -> None:
    _marked.n += 1  # type: ignore[attr-defined]
    counted(x, y, _marked.n)  # type: ignore[attr-defined]


COUNTERS = {
    "number of NumPy's": lambda: (counts_by_a_number_of_numpys, "_number"),
    "user's dictionary": lambda: (counts_in_a_user_dict, "_user_dict"),
    "bytes": lambda: (counts_in_bytes, "_bytes"),
    "list's attribute": lambda: (counts_on_a_list, "_named"),
    "tensor's attribute": lambda: (counts_on_a_tensor, "_marked"),
    "object": lambda: (Counting(), "n"),
    "method": lambda: (Counting().method, "n"),
    "class": lambda: (Counting().of_the_class, "Counting.everywhere|everywhere"),
    "partial": lambda: (functools.partial(counts_in_an_argument, {"n": 0}), "args"),
    "class and instance": lambda: (Shadowed(), "n"),
    "slot": lambda: (counts_in_a_slot, "_slotted.n"),
    "namespace": lambda: (counts_in_a_namespace, "_namespace.n"),
    "array": lambda: (counts_in_an_array, "_array"),
    "deque": lambda: (counts_in_a_deque, "_deque"),
    "list": lambda: (counts_in_a_list, "_seen"),
    "helper": lambda: (counts_in_a_helper, "_seen"),
    "function": lambda: (counts_on_itself, "calls"),
    "closure": lambda: (counts_in_a_closure()[0], "n"),
    "object in a closure": lambda: (counts_in_a_closure()[1], "state.n"),
    "decorated": lambda: (wrapped(), "_seen"),
}


@pytest.mark.parametrize("where", COUNTERS)
def test_counters_are_found_wherever_they_stand(where: str, eager_is_dear: None) -> None:
    """Seen only after thousands of steps: what is kept gives them away, and is put back after the attempt."""
    model, name = COUNTERS[where]()
    _, data = slope()
    with pytest.raises(ValueError, match=f"the attribute '[^']*({name})[^']*' changes at every call"):
        bz.fit(model, data, "mean_field", steps=60, progress=False, compile=True)


def _link(last: Any, length: int) -> Any:
    """A chain of objects that ends in one."""
    for _ in range(length):
        last = types.SimpleNamespace(next=last)
    return last


_position: contextvars.ContextVar[int] = contextvars.ContextVar("position", default=0)


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
class Frozen1:
    """A value that is replaced."""

    n: int = 0


def stepping() -> dict[str, Any]:
    """By what keeps it: a function whose every call moves something."""
    long_list, long_dict, array = [0] * 200, {(k, "k"): 0 for k in range(200)}, np.zeros(20_000)
    objects, many = [Held() for _ in range(150)], types.SimpleNamespace(**{f"a{k}": k for k in range(150)}, n=0)
    number, box, options = [decimal.Decimal(0)], {"s": Frozen1()}, argparse.Namespace(n=0)
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
        "a seed": lambda: seed.manual_seed(seed.initial_seed() + 1),
    }


def _delegates() -> Iterator[float]:
    yield from itertools.repeat(0.0, 1000)


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
    if where == "a data frame":
        pytest.skip("what other libraries' objects hold is compared, and not put back")
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
        return _levels[0]

    @level.setter
    def level(self, value: int) -> None:
        raise AttributeError

    @classmethod
    def count(cls) -> None:
        cls.total += 1


_levels, _behind, _turns = [0], Behind(), collections.OrderedDict(a=[1], b=[2])


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
        "a method of the class": Behind.count,
        "turns in an ordered dictionary": lambda: _turns.move_to_end(next(iter(_turns))),
        "a prior of another family": lambda: prior.update(p=dist.Cauchy(0.0, 1.0)),
        "training switched": lambda: net.train(not net.training),
        "a hook": add_a_hook,
        "a layer put in": lambda: net.append(torch.nn.Identity()),
        "a parameter's attribute": lambda: _tick(marked),
        "a model in a handler": reparametrised,
        "batch norm": lambda: normed(torch.rand(5, 1)),
        "a buffer's data": lambda: buffer.data.add_(1),
    }


def _hook(*_: Any) -> None:
    return None


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


@pytest.mark.parametrize("make", [lambda: iter([1, 2]), lambda: (k for k in range(3)), itertools.count])
def test_an_iterator_is_not_tried_where_that_would_show(make: Any) -> None:
    held = {"plan": make()}
    assert attributes.lasting([lambda: held]) == "held.plan"
    assert attributes.lasting([lambda: sys.stdout]) == ""


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


def test_a_value_read_from_a_tensor_that_counts_is_refused(eager_is_dear: None) -> None:
    _, data = slope()
    for order in ("before", "after"):
        calls = torch.zeros(())

        def model(x: Tensor, y: Tensor | None = None, calls: Tensor = calls, order: str = order) -> None:
            if order == "before":
                calls.add_(1)
            counted(x, y, int(calls))
            if order == "after":
                calls.detach().add_(1)

        with pytest.raises(
            ValueError, match=r"a value is read from a tensor that the step updates.*int\(\) of a tensor \(test_attributes.py"
        ):
            bz.fit(model, data, "mean_field", steps=60, progress=False, compile=True)


def test_an_iterator_is_left_where_it_was_by_auto(eager_is_dear: None) -> None:
    _, data = slope()
    ends = []
    for compile in (False, "auto"):
        ticks = itertools.count()

        def model(x: Tensor, y: Tensor | None = None, ticks: Any = ticks) -> None:
            counted(x, y, next(ticks))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotCompiledWarning)
            bz.fit(model, data, "mean_field", steps=60, progress=False, compile=compile)
        ends.append(next(ticks))
    assert ends[0] == ends[1]


class Level(enum.IntEnum):
    HIGH = 2


class Frozen(dict[str, Any]):
    """As configurations that may not be written to."""

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError("frozen")

    update = __setitem__  # type: ignore[assignment]


_config, _system, _base = Frozen(scale=1.0), random.SystemRandom(), torch.zeros(1)
_wide = _base.expand(2)


def reaches_what_cannot_be_written(x: Tensor, y: Tensor | None = None) -> None:
    assert _system is not None
    _base.add_(0.0)
    a = pyro.sample("a", dist.Normal(x.new_zeros(()), _config["scale"]))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("y", dist.Normal(a * int(Level.HIGH) + _wide.sum().to(x), 1.0), obs=y)


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


def test_what_cannot_be_written_to_is_left_alone(uncompiled: None) -> None:
    _, data = slope()
    a, b = (
        bz.fit(reaches_what_cannot_be_written, data, "mean_field", steps=60, progress=False, compile=c) for c in (False, True)
    )
    assert b.engine == "compiled"
    assert_same(a, b)


def test_what_an_attempt_counted_is_put_back(eager_is_dear: None) -> None:
    _, data = slope()
    ends = []
    for compile in (False, "auto"):
        model = Counting()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotCompiledWarning)
            fit = bz.fit(model, data, "mean_field", steps=60, progress=False, compile=compile)
        assert fit.engine == "eager"
        ends.append(max(model.n, fit.model.n))
    assert ends[0] == ends[1]


def test_a_tensor_that_counts_in_a_closure(uncompiled: None) -> None:
    """The graph goes on counting, from where the attempt found it."""
    _, data = slope()
    fits = []
    for compile in (False, True):
        calls = torch.zeros((), dtype=torch.float64)

        def model(x: Tensor, y: Tensor | None = None, calls: Tensor = calls) -> None:
            calls.add_(1.0)
            a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("y", dist.Normal(a + 0.01 * calls, 1.0), obs=y)

        fits.append(bz.fit(model, data, "mean_field", steps=60, progress=False, compile=compile))
    assert fits[1].engine == "compiled"
    assert_same(*fits)


class Rebinds(Slope):
    """Puts another tensor in the place of its buffer, of an attribute, or of one in a dictionary."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.last = where, torch.zeros((), dtype=torch.float64)
        self.kept = {"mean": self.last}
        self.register_buffer("mean", self.last)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        held = {"mean": self.mean, "last": self.last, "kept": self.kept["mean"], "unread": torch.zeros(())}[self.where]
        new = 0.9 * held + 0.1 * x.mean() + 0.01
        if self.where == "mean":
            self.mean = new
        elif self.where == "kept":
            self.kept = {"mean": new}
        else:
            self.last = new
        return super().forward(x + new, y)


@pytest.mark.parametrize("where", ["mean", "last", "kept"])
def test_a_tensor_that_is_replaced_instead_of_updated_is_named(where: str, eager_is_dear: None) -> None:
    _, data = slope()
    fits = []
    with pytest.raises(ValueError, match=f"the attribute '{where}(.mean)?' is another tensor after every call"):
        bz.fit(Rebinds(where), data, "mean_field", steps=60, progress=False, compile=True)
    for compile in (False, "auto"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", bz.inference.NotCompiledWarning)
            fits.append(bz.fit(Rebinds(where), data, "mean_field", steps=60, progress=False, compile=compile))
    # What the attempt replaced has been put back.
    assert fits[0].losses == fits[1].losses
    assert torch.equal(fits[0].model.mean, fits[1].model.mean)


def test_a_tensor_that_is_kept_and_never_read_may_be_replaced(uncompiled: None) -> None:
    _, data = slope()
    a, b = (bz.fit(Rebinds("unread"), data, "mean_field", steps=60, progress=False, compile=c) for c in (False, True))
    assert b.engine == "compiled"
    assert b.losses == pytest.approx(a.losses, rel=1e-8)
