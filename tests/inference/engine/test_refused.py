"""What no graph can hold is refused with the line of the model, or left to the eager engine with one warning."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from two_engines import fit_slope

from bayeszoo.inference import NotCompiledWarning


def control_flow(a: Tensor, b: Tensor) -> Tensor:
    if a > 0.3:
        return a - 1.0
    return b


def reads_numpy(a: Tensor, b: Tensor) -> float:
    return float(np.tanh(a.detach().numpy()))


def draws_numpy(a: Tensor, b: Tensor) -> float:
    return float(np.random.randn())  # noqa: NPY002


def draws_python(a: Tensor, b: Tensor) -> float:
    return random.random()


def masks(a: Tensor, b: Tensor) -> Tensor:
    both = torch.stack([a, b])
    return both[both > 0.3].sum()


_own_generator = np.random.default_rng(0)


def draws_own_generator(a: Tensor, b: Tensor) -> float:
    return float(_own_generator.standard_normal())


_calls: list[int] = []


def counts(a: Tensor, b: Tensor) -> float:
    _calls.append(1)
    return 1.0 / len(_calls)


def shape_of_where(a: Tensor, b: Tensor) -> float:
    return 0.1 * torch.where(torch.stack([a, b]) > 0.3)[0].numel()


def catches(a: Tensor, b: Tensor) -> Tensor:
    try:
        return a if a > 0.3 else b
    except Exception:
        return b


_torch_generator = torch.Generator().manual_seed(0)


def draws_own_torch_generator(a: Tensor, b: Tensor) -> Tensor:
    return torch.randn((), generator=_torch_generator, dtype=torch.float64)


def asks_whether_it_is_compiled(a: Tensor, b: Tensor) -> Tensor:
    return a if torch.compiler.is_compiling() else 5 * a


_numbers = (1.0 / k for k in range(1, 1_000_000))


def takes_the_next(a: Tensor, b: Tensor) -> float:
    return next(_numbers)


def asks_the_clock(a: Tensor, b: Tensor) -> float:
    return time.perf_counter() % 1.0


def reads_a_file(a: Tensor, b: Tensor) -> float:
    return float(len(Path(__file__).read_text()) > 10)


_buffer = torch.zeros(2)


def counts_through_numpy(a: Tensor, b: Tensor) -> Tensor:
    _buffer.numpy()[0] += 1
    return 0.1 * _buffer[0]


def prints(a: Tensor, b: Tensor) -> float:
    return float(repr(a.detach()).startswith("tensor(0.4"))


def hands_over(a: Tensor, b: Tensor) -> float:
    return float(np.from_dlpack(a.detach()) > 0.4)


def writes_where_a_draw_is_large(a: Tensor, b: Tensor) -> Tensor:
    both = torch.stack([a, b])
    both[both > 0.3] = a * b
    return both.sum()


def chooses_a_function(a: Tensor, b: Tensor) -> Tensor:
    return torch.cond(a > 0.3, lambda a: a + 1.0, lambda a: 1.0 * a, (a,))


_steps = torch.zeros(())


def takes_a_tensor_for_a_number(a: Tensor, b: Tensor) -> Tensor:
    number = torch.full((), _steps)
    _steps.add_(1.0)
    return number


def scales_by_a_draw(a: Tensor, b: Tensor) -> Tensor:
    return torch.add(a, b, alpha=b.detach())  # type: ignore[call-overload, no-any-return]


def makes_a_tensor_of_tensors(a: Tensor, b: Tensor) -> Tensor:
    _steps.add_(1.0)
    return torch.tensor([_steps, 1.0]).sum()


REFUSED = {
    takes_a_tensor_for_a_number: r"a value is read from a tensor that the step updates.*what an operator takes for a number .*torch.full",
    scales_by_a_draw: "",
    makes_a_tensor_of_tensors: r"a value is read from a tensor that the step updates.*torch.tensor of tensors .*line \d+: return torch.tensor",
    prints: r"printing a tensor .*line \d+: return float\(repr",
    hands_over: r"from_dlpack .*line \d+: return float\(np.from_dlpack",
    writes_where_a_draw_is_large: r"depends on values \(test_refused.py, line \d+: both\[both > 0.3\] = a \* b",
    chooses_a_function: "torch.cond",
    asks_whether_it_is_compiled: "the model asks torch.compiler whether it is compiled",
    shape_of_where: r"torch.where with a condition alone .*line \d+: return 0.1 \* torch.where",
    catches: r"bool\(\) of a tensor .*line \d+: return a if a > 0.3 else b",
    draws_own_torch_generator: "the attribute '_torch_generator' changes at every call",
    control_flow: r"bool\(\) of a tensor .*test_refused.py, line \d+: if a > 0.3:",
    reads_numpy: r"\.numpy\(\) .*line \d+: return float\(np.tanh",
    draws_numpy: r"random generator \(test_refused.py, line \d+: return float\(np.random.randn",
    draws_python: r"random generator \(test_refused.py, line \d+: return random.random",
    masks: r"indexing with a mask .*line \d+: return both\[both > 0.3\]",
    takes_the_next: "the attribute '_numbers' changes at every call",
    reads_a_file: r"the model opens a file.*line \d+: return float\(len\(Path\(__file__",
    counts_through_numpy: r"a value is read from a tensor that the step updates.*\.numpy\(\) .*line \d+: _buffer.numpy",
    asks_the_clock: "reads the clock, and a graph holds one time",
    draws_own_generator: "the attribute '_own_generator' changes at every call",
    counts: "the attribute '_calls' changes at every call",
}


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.cond's own
@pytest.mark.parametrize("extra", REFUSED, ids=lambda f: f.__name__)
def test_what_cannot_be_a_graph_is_refused(extra: Any) -> None:
    with pytest.raises(ValueError, match="compile=True, but the step cannot be compiled: .*" + REFUSED[extra]):
        fit_slope(extra, compile=True)


@pytest.mark.parametrize("extra", [control_flow, reads_numpy, masks], ids=lambda f: f.__name__)
def test_auto_falls_back_with_one_warning(extra: Any, eager_is_dear: None) -> None:
    with pytest.warns(NotCompiledWarning, match=REFUSED[extra]) as caught:
        fit = fit_slope(extra)
    assert len(caught) == 1
    assert fit.engine == "eager"
    assert fit.losses == fit_slope(extra, compile=False).losses
