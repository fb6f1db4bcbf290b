"""What a model and a guide keep in Python: what changes there from call to call is found, and the fit stays eager."""

from __future__ import annotations

import collections
import enum
import functools
import io
import itertools
import random
import types
import warnings
from typing import Any

import numpy as np
import pandas  # noqa: F401
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor
from tqdm import tqdm
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


def test_a_part_of_a_tensor_that_is_updated_is_refused(eager_is_dear: None) -> None:
    """A graph has two inputs there, and may read one before it writes the other."""
    state = torch.zeros(2, dtype=torch.float64)
    part = state[:1]

    def model(x: Tensor, y: Tensor | None = None) -> None:
        state.add_(0.1)
        a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", dist.Normal(a + part[0], 1.0), obs=y)

    _, data = slope()
    with pytest.raises(ValueError, match="reads another that shares its memory"):
        bz.fit(model, data, "mean_field", steps=60, progress=False, compile=True)


@pytest.mark.parametrize("compile", [True, "auto"])
def test_parameters_that_a_model_moves_itself_are_not_moved_by_a_trial(
    compile: Any, uncompiled: None, eager_is_dear: None
) -> None:
    _, data = slope()

    def model(x: Tensor, y: Tensor | None = None) -> None:
        mean = pyro.param("mean", torch.zeros((), dtype=torch.float64))
        with torch.no_grad():
            mean.add_(0.01)  # never at rest, so that one call more shows
        w = pyro.sample("w", dist.Normal(mean.detach(), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)

    options: dict[str, Any] = {"steps": 30, "progress": False}
    eager = bz.fit(model, data, "mean_field", **options, compile=False)
    assert bz.fit(model, data, "mean_field", **options, compile=compile).losses == pytest.approx(eager.losses, rel=1e-9)


BAR = tqdm(disable=False, file=io.StringIO(), total=10_000)


def looks_at_its_bar(x: Tensor, y: Tensor | None = None) -> None:
    BAR.update(1)
    w = pyro.sample("w", dist.Normal(0.0, 1.0 if BAR.n < 5_000 else 0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)


def test_what_another_library_cannot_save_is_compared_by_its_numbers(eager_is_dear: None) -> None:
    """A progress bar holds locks; what it has counted shows in its attributes, and is put back after a trial."""
    _, data = slope()
    options: dict[str, Any] = {"steps": 30, "progress": False}
    with pytest.raises(ValueError, match="'BAR' changes at every call"):
        bz.fit(looks_at_its_bar, data, "mean_field", **options, compile=True)
    counts = []
    for compile in (False, "auto"):
        BAR.reset()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotCompiledWarning)
            bz.fit(looks_at_its_bar, data, "mean_field", **options, compile=compile)  # type: ignore[arg-type]
        counts.append(BAR.n)
    assert counts[0] == counts[1]


def test_what_shows_nothing_of_itself_is_not_compiled() -> None:
    class Sealed:
        """As an object of C++ is: no attributes, and not to be saved."""

        __slots__ = ()

        def __reduce__(self) -> Any:
            raise TypeError("cannot be pickled")

    sealed = Sealed()
    assert attributes.Attributes([lambda: sealed]).unseen == ""  # a class of the user's
    Sealed.__module__ = "pandas.core.frame"
    assert attributes.Attributes([lambda: sealed]).unseen == "sealed"
    with attributes.kept_attributes([lambda: sealed]) as moving:
        assert moving == "sealed"
