"""Normal and uniform numbers drawn by vectors are those of torch's own generator."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import bayeszoo as bz
from bayeszoo.inference.engine import native, twister

pytestmark = pytest.mark.skipif(twister._library() is None, reason="no compiler, or another generator in this torch")

#: Below, at and beyond one turn of the twister (624 words) and one part of the loop (4096 numbers), and not multiples of 16.
SIZES = (16, 17, 31, 623, 624, 625, 4096, 4103, 100_001)


def exact(count: int, seed: int) -> Tensor:
    """Box and Muller in double precision, of torch's uniform numbers."""
    u = torch.empty(count).uniform_(generator=torch.Generator().manual_seed(seed)).double().reshape(-1, 2, 8)
    radius, angle = (-2 * torch.log1p(-u[:, 0])).sqrt(), 2 * torch.pi * u[:, 1]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1).flatten()


def test_the_sequence_is_torchs_and_goes_on_as_torchs_does() -> None:
    ours, theirs = torch.Generator().manual_seed(2**40 + 3), torch.Generator().manual_seed(2**40 + 3)
    for n, single in itertools.product(SIZES, (0, 1, 3)):
        # torch's own cosine of an angle in single precision is 1.6e-6 off, ours a third of that.
        torch.testing.assert_close(
            twister.normal_(torch.empty(n), ours), torch.empty(n).normal_(generator=theirs), rtol=0, atol=4e-6
        )
        assert torch.equal(twister.uniform_(torch.empty(n), ours), torch.empty(n).uniform_(generator=theirs))
        assert torch.equal(ours.get_state(), theirs.get_state())
        # Numbers that torch draws in between come from the same sequence.
        assert torch.equal(torch.rand(single, generator=ours), torch.rand(single, generator=theirs))


def test_a_million_numbers_are_exact_to_single_precision() -> None:
    drawn = twister.normal_(torch.empty(2**20), torch.Generator().manual_seed(4)).double()
    # At most 5.8, whose unit in the last place is 4.8e-7: two of them.
    assert float((drawn - exact(2**20, 4)).abs().max()) < 1e-6


@pytest.mark.parametrize(
    "table",
    [torch.empty(15), torch.empty(64, dtype=torch.float64), torch.empty(40, 2)[:, 0]],
    ids=["short", "double", "strided"],
)
def test_everything_else_is_left_to_torch(table: Tensor) -> None:
    drawn = twister.normal_(table.clone() if table.is_contiguous() else table, torch.Generator().manual_seed(5))
    expected = torch.empty_strided(table.shape, table.stride(), dtype=table.dtype).normal_(
        generator=torch.Generator().manual_seed(5)
    )
    assert torch.equal(drawn, expected)


def test_without_a_compiler_torch_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda source, flags: None)
    twister._library.cache_clear()
    try:
        drawn = twister.normal_(torch.empty(100), torch.Generator().manual_seed(6))
    finally:
        twister._library.cache_clear()
    assert torch.equal(drawn, torch.empty(100).normal_(generator=torch.Generator().manual_seed(6)))


def test_another_generator_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    library = twister._library()
    assert library is not None
    assert twister._agrees(library)
    fill = twister._fill
    monkeypatch.setattr(twister, "_fill", lambda *arguments: (fill(*arguments), arguments[2].mul_(1.001)))
    assert not twister._agrees(library)


def test_a_compiled_fit_has_the_eager_fits_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    data = bz.data.Data({"x": x}, (x[:, 0] > 0).long())
    filled: list[int] = []
    fill = twister._fill

    def noted(library: Any, kind: str, table: Tensor, generator: torch.Generator) -> None:
        filled.append(table.numel())
        fill(library, kind, table, generator)

    monkeypatch.setattr(twister, "_fill", noted)
    losses = []
    for compile in (True, False):
        torch.manual_seed(1)
        model = bz.models.BayesianNN(bz.models.networks.mlp(8, [16], 2))
        fit = bz.fit(model, data, "mean_field", steps=400, dtype=torch.float32, compile=compile, progress=False, seed=1)
        assert fit.engine == ("compiled" if compile else "eager")
        losses.append(torch.tensor(fit.losses))
    assert filled  # by the compiled fit, after the table that its first, eager step had filled
    # Measured: 2e-7, the rounding of a loss. Another seed's losses differ by 0.3 %.
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
