"""Products of small matrices in single precision, faster than BLAS where BLAS is not made for the processor.

A network's step on a batch is a dozen products of matrices with some tens of rows. torch's BLAS, MKL, runs them at a third of
what an AMD processor with 512-bit vectors can do, and calling oneDNN costs more than they take. Here a tile of the result, 6 rows
of 64 numbers, is held in registers while the inner dimension runs past. On one thread the same code is as fast as oneDNN for
large matrices. With 256-bit vectors MKL leaves little to gain but where the result has few columns (ten classes, the
particles of a regression), which ours does at two to five times the speed, and in products with a vector: those ours does as fast as
the matrix can be read, a third to a half faster than MKL where it comes from memory.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import native
from .product_code import SOURCE

#: Shorter sums are all overhead: those BLAS does as well.
LEAST_INNER = 2

#: With 256-bit vectors: wider results BLAS does as well, and a row times a matrix that is wider than this and larger than the second cache.
MOST_COLUMNS, MOST_WIDE, MOST_NUMBERS = 16, 512, 2**18

_FLAGS = {"AVX512": ("-mavx512f", "-mavx512vl", "-mavx512dq", "-mfma"), "AVX2": ("-mavx2", "-mfma")}


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The functions; None where BLAS is left to it, or there is no compiler."""
    flags = _FLAGS.get(vectors())
    return None if flags is None else native.load(SOURCE, ("-O2", *flags))


@functools.cache
def vectors() -> str:
    """The vectors of an AMD processor, "AVX512" or "AVX2"; nothing for others: MKL is made for Intel's."""
    if sys.platform != "linux":
        return ""
    try:
        ours = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    return torch.backends.cpu.get_cpu_capability() if ours else ""


def large_too() -> bool:
    """Whether they serve large matrices as well as oneDNN does."""
    return _library() is not None and vectors() == "AVX512"


def call(a: Tensor, b: Tensor, out: Tensor, *, add: bool) -> tuple[int, str, tuple[Tensor, ...]] | None:
    """out = a b, or out += a b: a function, C that calls it as {f} with the addresses {0}, {1}, {2} of the tensors; None for what
    BLAS does as well."""
    (m, k), n = a.shape, b.shape[1]
    library = _library()
    if library is None or a.dtype != torch.float32 or (out.stride() != (n, 1) and m * n > 1) or k < LEAST_INNER:
        return None
    short = vectors() != "AVX512"
    if short and min(m, n) > 1 and n > MOST_COLUMNS:
        return None
    if n == 1 or m == 1:
        # A thin product is a row times a matrix, or as many scalar products as the matrix has rows.
        matrix, vector, length = (a, b[:, 0], m) if n == 1 else (b.t(), a[0], n)
        if matrix.stride(0) == 1 and length > 1:
            if short and length > MOST_WIDE and length * k > MOST_NUMBERS:
                return None
            return _called(library.row_times, (vector, matrix, out), length, k, vector.stride(0), matrix.stride(1), int(add))
        if matrix.stride(1) == 1 and vector.stride(0) == 1:
            return _called(library.dots, (matrix, vector, out), length, k, matrix.stride(0), int(add))
        return None
    return _called(library.product, (a, b, out), m, n, k, *a.stride(), *b.stride(), int(add))


def call_of_rows(
    table: Tensor, index: Tensor, rows: Tensor, b: Tensor, out: Tensor, *, add: bool
) -> tuple[int, str, tuple[Tensor, ...]] | None:
    """rows = table[index], and out = rows b or out += rows b: as `call`, for a vector b and all tensors but the index in single
    precision, each stored by rows; None for anything else."""
    library = _library()
    if library is None or any(t.dtype != torch.float32 for t in (table, b, out)) or index.dtype != torch.int64:
        return None
    (m, k), n = rows.shape, b.shape[1]
    if n != 1 or m < 2 or k < LEAST_INNER or b.stride(0) != 1 or not all(t.is_contiguous() for t in (table, index, rows, out)):
        return None
    return _called(library.row_dots, (table, index, b, rows, out), len(table), m, k, int(add))


def _called(function: Any, tensors: tuple[Tensor, ...], *numbers: int) -> tuple[int, str, tuple[Tensor, ...]]:
    types = ", ".join(["void *"] * len(tensors) + ["long"] * (len(numbers) - 1) + ["int"])
    places = ", ".join(f"{{{k}}}" for k in range(len(tensors)))
    code = f"((void (*)({types})) {{f}})({places}, {', '.join(map(str, numbers))});"
    return ctypes.cast(function, ctypes.c_void_p).value or 0, code, tensors
