"""The C loop and our own operators give torch's numbers, in every layout."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from typing import Any

import pytest
import test_contract as contract
import torch
from torch import Tensor

import bayeszoo as bz
from bayeszoo.inference.engine import compiled, replay

DTYPES = [torch.float32, torch.float64]


def run(calls: list[replay.Call], steps: int = 1, strides: dict[int, int] | None = None) -> None:
    """Makes the calls, as a recorded step does; `strides` gives the bytes from step to step by address."""
    loop = replay._loop(calls)
    assert loop is not None
    addresses = [t.data_ptr() for call in calls for t in call.tensors]
    loop(
        0,
        steps,
        (ctypes.c_void_p * len(calls))(*[call.function for call in calls]),
        (ctypes.c_void_p * len(addresses))(*addresses),
        (ctypes.c_long * len(addresses))(*[(strides or {}).get(a, 0) for a in addresses]),
    )


def layouts(rows: int, columns: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """A matrix by rows, by columns, and as parts of greater ones."""
    yield torch.randn(rows, columns, dtype=dtype)
    yield torch.randn(columns, rows, dtype=dtype).T
    yield torch.randn(rows, columns + 3, dtype=dtype)[:, :columns]
    yield torch.randn(columns + 2, rows + 1, dtype=dtype).T[:rows, :columns]


def test_what_has_no_form_in_c_is_not_recorded() -> None:
    a, b, out = torch.randn(3, 4), torch.randn(4, 5), torch.empty(3, 5)
    products, operators = replay._Products([]), replay._Torch([])
    for refused in (
        lambda: products.addmm(torch.tensor(1.0), a, b, out=out),
        lambda: products.addmm(torch.randn(3, 1), a, b, out=out),
        lambda: operators.rows.default(torch.empty(0, 4), torch.empty(0, dtype=torch.int64)),
    ):
        with pytest.raises(replay._CannotRecord):
            refused()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 7, 2), (6, 1, 3), (5, 4, 1), (1, 1, 1), (1, 5, 1)])
def test_products(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    m, k, n = shape
    for a in layouts(m, k, dtype):
        for b in layouts(k, n, dtype):
            out, sum_out = torch.full((2, m, n), 9.0, dtype=dtype)
            bias = torch.randn(n, dtype=dtype)
            calls: list[replay.Call] = []
            products = replay._Products(calls)
            products.mm(a, b, out=out)
            products.addmm(bias, a, b, out=sum_out)
            run(calls)
            torch.testing.assert_close(out, a @ b)
            torch.testing.assert_close(sum_out, bias + a @ b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("size", [1, 2, 9])
def test_triangular_solves(size: int, upper: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for a in layouts(size, size, dtype):
        a = a + 3 * torch.eye(size, dtype=dtype)  # only one triangle is read
        b = torch.randn(size, 1, dtype=dtype)
        calls: list[replay.Call] = []
        out = replay._Torch(calls)._solve(a, b, upper=upper)
        out.fill_(9.0)
        run(calls)
        torch.testing.assert_close(out, torch.linalg.solve_triangular(a, b, upper=upper))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(20, 3), (20,), (20, 2, 4), (20, 2000), (20, 0)])
def test_rows_and_steps(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randint(2, shape).to(dtype) if dtype == torch.bool else (9 * torch.randn(shape)).to(dtype)
    table = torch.randint(-20, 20, (4, 11))
    calls: list[replay.Call] = []
    out = replay._Torch(calls)._rows(x, table[0])
    for steps in (1, 4):
        out.zero_()
        run(calls, steps, {table.data_ptr(): table.stride(0) * 8})
        torch.testing.assert_close(out, x[table[steps - 1]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(30, 20, 10), (1000, 8, 1), (1, 50, 60), (8, 1000, 1)])
def test_own_product(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    m, k, n = shape
    for a in layouts(m, k, dtype):
        for b in layouts(k, n, dtype):
            torch.testing.assert_close(torch.ops.bayeszoo.matmul(a, b), a @ b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["unknown-mean_field", "known-batch", "unknown-full_rank"])
def test_small_models_run_in_the_loop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engines: list[Any] = []
    original = compiled.Engine.__init__

    def watch(self: Any, *args: Any) -> None:
        original(self, *args)
        engines.append(self)

    monkeypatch.setattr(compiled.Engine, "__init__", watch)
    looped = contract.run(contract.CASES[name], compile=True)
    assert engines[0].replay is not None, "the step is called from Python"
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "record", lambda *args: None)
        called = contract.run(contract.CASES[name], compile=True)
    assert engines[1].replay is None
    # The same kernels, but products by the C interface of the same BLAS.
    assert looped.losses == pytest.approx(called.losses, rel=1e-6)


@pytest.mark.slow
def test_memory_does_not_grow() -> None:
    import psutil

    def megabytes() -> float:
        gc.collect()
        return float(psutil.Process().memory_info().rss) / 2**20

    def steps(number: int) -> None:
        fit = contract.run(contract.CASES["unknown-mean_field"], compile=True, steps=number)
        assert fit.engine == "compiled"

    steps(100_000)
    before = megabytes()
    steps(400_000)
    # 400,000 losses as Python numbers take 13 MB while the fit lives, and the allocator keeps some tens of MB of what other
    # tests freed; one tensor a step that is not freed (500 bytes) would take 200 MB.
    assert megabytes() - before < 60


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name", ["unknown-mean_field", "known-batch", "unknown-full_rank", "known-importance", "mixture-guide", "coin-iaf"]
)
def test_cuda_equals_eager(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and there is none")
    fits: list[bz.inference.Fit] = [
        contract.run(contract.CASES[name], device="cuda", dtype=torch.float64, compile=c, steps=100) for c in (False, True)
    ]
    assert [fit.engine for fit in fits] == ["eager", "compiled"]
    assert fits[1].losses == pytest.approx(fits[0].losses, rel=1e-8)
