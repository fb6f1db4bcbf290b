"""Exponential and logarithm in single precision as code inside the loops that Inductor writes.

Inductor calls a library (Sleef) for them, for each vector of numbers: the call takes longer than the function, and what the loop holds in
registers goes to memory and back around it. Here they are polynomials after the usual reduction of the argument, within one
unit in the last place, with the library's values at the ends: infinities, numbers below the normal ones, and what is no number.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from .patched import patched

#: The polynomials have the least largest relative error of the function on their intervals, found by weighted least squares
#: (Lawson's iteration): 3e-9 for the exponential, 6e-9 for the logarithm.
SOURCE = r"""
namespace bayeszoo {
template <typename T> inline T exp(const T &x) { return x.exp(); }
template <typename T> inline T log(const T &x) { return x.log(); }

#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
using floats = at::vec::Vectorized<float>;
using whole = at::vec::Vectorized<int32_t>;

inline floats times_plus(const floats &a, const floats &b, const floats &c) { return at::vec::fmadd(a, b, c); }
inline floats power_of_two(const whole &k) { return at::vec::cast<float>((k + whole(127)) << whole(23)); }

// exp x = 2^k exp r with |r| at most log(2) / 2; 2^k in two steps, as exp x may be below what a power of two can be
template <> inline floats exp(const floats &x) {
  floats in = at::vec::clamp(x, floats(-104.0f), floats(89.0f));
  floats times = (in * floats(1.44269504f)).round();
  floats r = times_plus(times, floats(-0.693145752f), in);
  r = times_plus(times, floats(-1.42860677e-6f), r);
  floats p = times_plus(floats(0.00138145406f), r, floats(0.00836874545f));
  p = times_plus(p, r, floats(0.041668389f));
  p = times_plus(p, r, floats(0.166665211f));
  p = times_plus(p, r, floats(0.49999994f));
  p = times_plus(p, r * r, r) + floats(1.0f);
  whole k = at::vec::convert_to_int_of_same_size(times), half = k >> whole(1);
  return p * power_of_two(half) * power_of_two(k - half);
}

// log x = k log 2 + log(1 + f) with 1 + f between the roots of 1/2 (0x3f3504f3) and of 2
template <> inline floats log(const floats &x) {
  floats least(1.17549435e-38f), small = x < least;
  floats in = floats::blendv(x, x * floats(0x1p25f), small);
  whole bits = at::vec::cast<int32_t>(in) - whole(0x3f3504f3);
  floats k = at::vec::convert_to_fp_of_same_size<float>(bits >> whole(23)) - (small & floats(25.0f));
  floats f = at::vec::cast<float>((bits & whole(0x7fffff)) + whole(0x3f3504f3)) - floats(1.0f);
  floats p = times_plus(floats(-0.0763449892f), f, floats(0.12761578f));
  p = times_plus(p, f, floats(-0.131601825f));
  p = times_plus(p, f, floats(0.142017573f));
  p = times_plus(p, f, floats(-0.166233569f));
  p = times_plus(p, f, floats(0.200012267f));
  p = times_plus(p, f, floats(-0.250008196f));
  p = times_plus(p, f, floats(0.333333313f));
  floats square = f * f, rest = times_plus(k, floats(-2.12194440e-4f), p * f * square);
  floats value = times_plus(k, floats(0.693359375f), times_plus(floats(-0.5f), square, rest) + f);
  value = floats::blendv(value, floats(-INFINITY), x == floats(0.0f));
  value = floats::blendv(value, x, x == floats(INFINITY));
  return floats::blendv(value, floats(NAN), (x < floats(0.0f)) | (x != x));
}
#endif
}
"""

#: What tells code that counts on this source from code that does not, in the keys of Inductor's cache.
VERSION = hashlib.sha256(SOURCE.encode()).hexdigest()[:16]

_FIRST_INCLUDE = re.compile(r"^\s*#include.*$", re.MULTILINE)


@contextmanager
def functions() -> Iterator[None]:
    """Inside, Inductor writes calls of these functions for vectors of single precision; `with_source` adds what they call."""
    from torch._inductor.codegen.cpp import CppVecOverrides

    def inlined(name: str) -> Callable[[Any], str]:
        library: Callable[[Any], str] = getattr(CppVecOverrides, name)
        return lambda x: f"bayeszoo::{name}({x})" if x.dtype == torch.float32 else library(x)

    with ExitStack() as stack:
        for name in ("exp", "log"):
            stack.enter_context(patched(CppVecOverrides, name, inlined(name)))
        yield


def used(source: str) -> bool:
    """Whether a kernel calls the functions."""
    return "bayeszoo::" in source


def with_source(kernel: str) -> str:
    """A kernel's source with what it calls."""
    return _FIRST_INCLUDE.sub(lambda line: f"{line.group()}\n{SOURCE}", kernel, count=1) if used(kernel) else kernel
