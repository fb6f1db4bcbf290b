"""Exponential and logarithm inside Inductor's loops: the library's values to the last place, wherever a kernel comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from bayeszoo.inference.engine import inductor, inlined
from bayeszoo.inference.engine.capture import Graph

pytestmark = pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="no vectors for it")


def compiled(function: Callable[..., Sequence[Tensor]], *inputs: Tensor) -> tuple[Sequence[Tensor], str]:
    """A function as a step's graph: its values and its code."""
    values = [torch.empty_like(value) for value in function(*inputs)]

    def step(*tensors: Tensor) -> None:
        for place, value in zip(tensors, function(*tensors[len(values) :]), strict=False):
            place.copy_(value)

    tensors = (*values, *inputs)
    module = make_fx(step)(*tensors)
    found = inductor._compile(Graph(module, tensors, ""), 1)
    found.call(*tensors)
    return values, found.output.source_code


def every(step: int) -> Tensor:
    """Each `step`-th of all numbers in single precision, negative ones, infinities and what is no number included."""
    bits = np.arange(0, 2**32, step, dtype=np.uint64).astype(np.uint32)
    ends = np.array([0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FC00000, 1, 0x007FFFFF, 0x00800000], dtype=np.uint32)
    return torch.from_numpy(np.concatenate([bits, ends]).view(np.float32).copy())


def test_within_one_unit_in_the_last_place() -> None:
    x = every(9973)
    x = torch.cat([x, torch.linspace(-110, 95, 200_001), torch.linspace(0.25, 4, 200_001)])
    x = x[len(x) % 16 :]  # whole vectors: the rest of a row is done one by one, by the library
    values, code = compiled(lambda x: (x.exp(), x.log()), x)
    assert "bayeszoo::exp" in code
    assert "bayeszoo::log" in code
    for value, exact in zip(values, (x.double().exp(), x.double().log()), strict=True):
        nearest = exact.float()
        ends = ~nearest.isfinite() | (nearest == 0)
        torch.testing.assert_close(value[ends], nearest[ends], rtol=0, atol=0, equal_nan=True)
        unit = torch.from_numpy(np.spacing(nearest[~ends].abs().numpy())).double()
        assert float(((value[~ends].double() - exact[~ends]).abs() / unit).max()) < 1


def test_other_precisions_are_the_librarys() -> None:
    x = torch.linspace(0.1, 3, 64)

    def function(double: Tensor, half: Tensor) -> tuple[Tensor, ...]:
        return double.exp(), double.log(), half.exp(), (half.log() + 1).float().exp()

    inputs = x.double(), x.bfloat16()
    values, _ = compiled(function, *inputs)
    for value, expected, error in zip(values, function(*inputs), (1e-15, 1e-15, 0.01, 0.02), strict=True):
        torch.testing.assert_close(value, expected, rtol=error, atol=error)


def test_beside_other_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kernels in one source, of which one calls a function."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    x, w = torch.rand(300, 40), torch.rand(40, 40)
    values, code = compiled(lambda x, w: (((x + 1) @ w).exp().sum(0), (x * 2 - 1).t() @ x), x, w)
    assert code.count("async_compile.cpp_pybinding") > 1
    assert "bayeszoo::exp" in code
    assert len(list(tmp_path.rglob("*.main.cpp"))) == 1  # a source that does not compile leaves each kernel to itself
    torch.testing.assert_close(values[0], ((x + 1) @ w).exp().sum(0))
    torch.testing.assert_close(values[1], (x * 2 - 1).t() @ x)


def test_code_without_them_stays_as_it_is() -> None:
    kernel = "#include <cmath>\nvoid kernel(float* x) { x[0] = std::exp(x[0]); }"
    assert inlined.with_source(kernel) == kernel
    kernel = kernel.replace("std::", "bayeszoo::")
    assert inlined.with_source(kernel).startswith(f"#include <cmath>\n{inlined.SOURCE}")


def test_torch_compile_gets_the_library() -> None:
    """What is replaced while a fit compiles is back afterwards."""
    from torch._inductor.codegen.cpp import CppVecOverrides

    before = CppVecOverrides.exp
    with inlined.functions():
        assert CppVecOverrides.exp is not before
    assert CppVecOverrides.exp is before
