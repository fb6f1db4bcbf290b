"""The kernels of a step as one source: the same functions, one library, and what happens where they do not go together."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor.codecache import CppPythonBindingsCodeCache

import bayeszoo as bz
from bayeszoo.inference.engine import inductor, joined

SCALE = """
#include <cmath>
extern "C"  void  kernel(float* out_ptr0, const float* in_ptr0)
{
    for (int i = 0; i < 4; i++) out_ptr0[i] = 2.0f * std::fabs(in_ptr0[i]);
}
"""
SHIFT = """
#include <cmath>
extern "C"  void  kernel(float* in_out_ptr0)
{
    for (int i = 0; i < 4; i++) in_out_ptr0[i] += 1.0f;
}
"""


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Inductor's folder, with nothing in it."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(inductor, "_compiled", {})
    return tmp_path


def waiting(*sources: str) -> list[joined._Kernel]:
    types = {SCALE: ["float*", "const float*"]}
    return [joined._Kernel(types.get(source, ["float*"]), source, lambda k=k: f"alone {k}") for k, source in enumerate(sources)]  # type: ignore[misc]


@pytest.mark.parametrize("processors", [1, 2])
def test_each_function_does_its_own_work(empty_cache: Path, monkeypatch: pytest.MonkeyPatch, processors: int) -> None:
    monkeypatch.setattr(joined, "ALONE", len(SCALE))  # so that two processors get two sources
    scale, shift = joined._compiled(waiting(SCALE, SHIFT), processors)
    x, out = torch.tensor([1.0, -2.0, 3.0, -4.0]), torch.zeros(4)
    scale(out, x)
    shift(out)
    assert out.tolist() == [3.0, 5.0, 7.0, 9.0]
    assert len({f.__self__.__file__ for f in (scale, shift)}) == processors
    assert len(list(empty_cache.rglob("*.main.cpp"))) == processors
    with pytest.raises(RuntimeError, match="requires 2 args"):
        scale(out)


def test_kernels_that_define_the_same_name_are_compiled_alone(empty_cache: Path) -> None:
    helper = 'static int helper() { return 1; }\nextern "C" void kernel(float* x) { x[0] = helper(); }'
    assert joined._compiled(waiting(helper, helper + "\n"), 1) == ["alone 0", "alone 1"]


def test_macros_do_not_reach_other_kernels(empty_cache: Path) -> None:
    assert joined._compiled(waiting("#define TWO 2\n" + SHIFT, SHIFT), 1) == ["alone 0", "alone 1"]


def test_what_others_compile_meanwhile_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is between Inductor's two calls when a fit's compiling ends, and a second fit that begins before the first ends."""
    from torch._inductor.async_compile import AsyncCompile

    monkeypatch.setattr(AsyncCompile, "cpp_pybinding", lambda self, types, source: "Inductor's own")
    before = AsyncCompile.cpp_pybinding, AsyncCompile.wait
    found: list[Any] = []
    with joined.kernels(1):
        assert isinstance(AsyncCompile().cpp_pybinding(["float*"], SHIFT), joined._Kernel)
        other = threading.Thread(target=lambda: found.append(AsyncCompile().cpp_pybinding(["float*"], SHIFT)))
        other.start()
        other.join()
        assert found == ["Inductor's own"]

        def second() -> None:
            with joined.kernels(1):
                found.append(AsyncCompile.wait is not before[1])

        waits = threading.Thread(target=second)
        waits.start()
        waits.join(0.2)
        assert waits.is_alive()
    waits.join()
    assert found[1:] == [True]
    assert (AsyncCompile.cpp_pybinding, AsyncCompile.wait) == before


def test_one_kernel_is_left_to_inductor() -> None:
    assert joined._compiled(waiting(SCALE), 2) == ["alone 0"]


@pytest.mark.parametrize(
    ("sizes", "processors", "groups"),
    [
        ([10, 20, 30], 4, [[2, 1, 0]]),  # less than the headers
        ([600_000, 500_000, 100_000], 2, [[0], [1, 2]]),
        ([600_000, 500_000, 100_000], 1, [[0, 1, 2]]),
        ([9_000_000], 8, [[0]]),
    ],
)
def test_long_kernels_share_the_processors(sizes: list[int], processors: int, groups: list[list[int]]) -> None:
    assert joined._groups(sizes, processors) == groups


def _network() -> tuple[Any, Any]:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    model = bz.models.BayesianNN(net, likelihood="categorical")
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    return model, bz.data.Data(inputs={"x": x}, observed={"y": x[:, :3].argmax(1)})


def test_a_fit_compiles_one_source_and_later_finds_it(empty_cache: Path) -> None:
    def fit() -> bz.inference.Fit:
        model, data = _network()
        return bz.fit(model, data, "mean_field", steps=20, compile=True, seed=0, progress=False)

    first = fit()
    (source,) = empty_cache.rglob("*.main.cpp")
    assert len(re.findall(r"^#define kernel kernel_\d+$", source.read_text(), re.MULTILINE)) >= 3
    inductor._compiled.clear()
    assert fit().losses == first.losses
    assert list(empty_cache.rglob("*.main.cpp")) == [source]
    # Nothing outlives the cache that it was found in.
    CppPythonBindingsCodeCache.cache_clear()
    assert not [name for name in sys.modules if re.search(r"\.kernel_\d+$", name)]
