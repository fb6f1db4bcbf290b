"""Products of small matrices by our own code, against double precision."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
import torch._inductor.config as inductor_config

import bayeszoo as bz
from bayeszoo.inference.engine import native, products, replay

needs_code = pytest.mark.skipif(products._library() is None, reason="this processor's BLAS is left to it")

SHAPES = [
    (4, 2, 2), (5, 7, 3), (6, 16, 64), (12, 3, 16), (13, 31, 17), (24, 5, 33), (25, 64, 65), (31, 9, 48), (40, 600, 9), (33, 257, 16), (50, 256, 64),
    (50, 256, 10), (256, 50, 50), (100, 20, 129), (1000, 20, 2), (7, 1000, 20), (1, 40, 100), (256, 100, 1), (9, 17, 1), (100, 256, 1), (1, 5, 17),
    (2, 20, 1000), (3, 4, 70), (2, 2, 2), (3001, 100, 1), (1, 5000, 100), (1, 300, 190), (1, 4100, 77), (2051, 130, 1), (1, 2049, 9),
]  # fmt: skip


def _stored(rows: int, columns: int, by: str) -> torch.Tensor:
    if by == "rows":
        return torch.randn(rows, columns)
    if by == "columns":
        return torch.randn(columns, rows).t()
    return torch.randn(2 * rows, 3 * columns)[::2, ::3]


@needs_code
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize(("first", "second"), [("rows", "rows"), ("columns", "rows"), ("rows", "columns"), ("apart", "apart")])
def test_products_to_rounding(first: str, second: str, add: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """|error| <= (k + 1) u |A| |B| for a sum of k rounded terms, u = 2^-24, element by element (Higham 2002, section 3.1)."""
    for name in ("MOST_COLUMNS", "MOST_WIDE"):  # right also where BLAS is as fast
        monkeypatch.setattr(products, name, 10**6)
    torch.manual_seed(0)
    for m, k, n in SHAPES:
        a, b = _stored(m, k, first), _stored(k, n, second)
        begin = torch.randn(m, n)
        # What lies behind the result must stay as it was.
        room = torch.full((m * n + 64,), 7.0)
        out = room[: m * n].view(m, n)
        out.copy_(begin)
        if products.call(a, b, out, add=add) is None:
            assert (first, min(m, n)) == ("apart", 1)  # neither rows nor columns to run along
            continue
        calls = [replay._product(a, b, out, add=add)]
        loop = replay._loop(calls)
        assert loop is not None
        addresses = [t.data_ptr() for t in calls[0].tensors]
        loop(
            0, 1, (ctypes.c_void_p * 1)(calls[0].function), (ctypes.c_void_p * 3)(*addresses), (ctypes.c_long * 3)(0, 0, 0)
        )  # fmt: skip
        exact = a.double() @ b.double() + (begin.double() if add else 0)
        bound = (a.double().abs() @ b.double().abs() + (begin.double().abs() if add else 0)) * (k + 2) * 2.0**-24
        assert bool(((out.double() - exact).abs() <= bound).all()), (m, k, n)
        assert bool((room[m * n :] == 7).all()), (m, k, n)


@needs_code
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize(("m", "k"), [(2, 2), (3, 7), (256, 100), (9, 16), (17, 33), (5, 1500), (40, 3), (12, 48), (7, 65)])
def test_products_of_gathered_rows_to_rounding(m: int, k: int, add: bool) -> None:
    """The bound of `test_products_to_rounding`; numbers of rows may count from the end, and nothing behind the results is touched."""
    torch.manual_seed(0)
    table, vector, begin = torch.randn(50, k), torch.randn(k, 1), torch.randn(m, 1)
    index = torch.randint(-50, 50, (m,))
    index[0], index[-1] = -50, 49
    room, copied = torch.full((m + 64,), 7.0), torch.full((m * k + 64,), 7.0)
    out, rows = room[:m].view(m, 1), copied[: m * k].view(m, k)
    out.copy_(begin)
    joined = products.call_of_rows(table, index, rows, vector, out, add=add)
    assert joined is not None
    call = replay.Call(*joined)
    loop = replay._loop([call])
    assert loop is not None
    addresses = [t.data_ptr() for t in call.tensors]
    loop(0, 1, (ctypes.c_void_p * 1)(call.function), (ctypes.c_void_p * 5)(*addresses), (ctypes.c_long * 5)(*[0] * 5))
    assert torch.equal(rows, table[index])
    a, b, c = table[index].double(), vector.double(), begin.double() if add else torch.zeros(m, 1).double()
    bound = (a.abs() @ b.abs() + c.abs()) * (k + 2) * 2.0**-24
    assert bool(((out.double() - (a @ b + c)).abs() <= bound).all())
    assert bool((room[m:] == 7).all())
    assert bool((copied[m * k :] == 7).all())


@needs_code
def test_gathered_rows_are_multiplied_on_their_way() -> None:
    """Only by a vector, only where nothing else was recorded in between, and only where they are what is multiplied."""
    table, index, vector = torch.randn(50, 6), torch.arange(9), torch.randn(6, 1)

    def recorded(*, between: bool = False, other: bool = False, columns: int = 1) -> int:
        calls: list[replay.Call] = []
        rows = replay._Torch(calls)._rows(table, index)
        if between:
            replay._Torch(calls)._rows(torch.randn(50), index)
        replay._Products(calls).mm(torch.randn(9, 6) if other else rows, torch.randn(6, columns), out=torch.empty(9, columns))
        return len(calls)

    assert recorded() == 1
    assert recorded(between=True) == 3
    assert recorded(other=True) == 2
    assert recorded(columns=2) == 2
    assert (
        products.call_of_rows(table.double(), index, table[index].double(), vector.double(), torch.empty(9, 1), add=False)
        is None
    )


@needs_code
@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.randn(20, 40)[:, ::2], torch.randn(20, 1)),
        (torch.randn(8, 8).double(), torch.randn(8, 8).double()),
    ],
)
def test_what_blas_keeps(a: torch.Tensor, b: torch.Tensor) -> None:
    assert products.call(a, b, torch.empty(len(a), b.shape[1], dtype=a.dtype), add=False) is None


@needs_code
@pytest.mark.skipif(products.vectors() != "AVX2", reason="the whole product is ours here")
@pytest.mark.parametrize(
    ("shape", "kept"),
    [
        ((256, 50, 10), False),
        ((256, 50, 50), True),
        ((1000, 20, 1), False),
        ((100_000, 100, 1), False),
        ((1, 3000, 3000), True),
    ],
)
def test_short_vectors_take_what_is_thin(shape: tuple[int, int, int], kept: bool) -> None:
    m, k, n = shape
    assert (products.call(torch.randn(m, k), torch.randn(k, n), torch.empty(m, n), add=False) is None) is kept


def test_without_a_compiler_blas_does_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(products, "vectors", lambda: "AVX2")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    products._library.cache_clear()
    try:
        with inductor_config.patch({"cpp.cxx": (str(tmp_path / "no-compiler"),)}):
            assert native.load("int x;", ("-O1",)) is None
            assert products.call(torch.randn(9, 9), torch.randn(9, 9), torch.empty(9, 9), add=False) is None
    finally:
        products._library.cache_clear()


@needs_code
def test_a_network_trains_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same losses as with BLAS, to the rounding of single precision, over 50 steps."""
    made = []
    plain = products.call
    monkeypatch.setattr(products, "call", lambda *args, **kwargs: made.append(plain(*args, **kwargs)) or made[-1])
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    data = bz.data.Data(inputs={"x": x}, observed=(x[:, 0] > 0).long())
    model = bz.models.BayesianNN(bz.models.networks.mlp(8, [20], 2))

    def losses(*, own: bool) -> torch.Tensor:
        if not own:
            monkeypatch.setattr(products, "call", lambda *args, **kwargs: None)
        fit = bz.fit(model, data, guide="mean_field", estimator="shared", steps=50, seed=0, compile=True, progress=False)
        return torch.tensor(fit.losses)

    ours = losses(own=True)
    assert any(made)
    assert torch.allclose(ours, losses(own=False), rtol=1e-4)
