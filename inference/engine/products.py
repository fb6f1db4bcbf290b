"""Products of small matrices in single precision, faster than BLAS where BLAS is not made for the processor.

A network's step on a batch is a dozen products of matrices with some tens of rows. torch's BLAS, MKL, runs them at a third of
what an AMD processor with 512-bit vectors can do, and calling oneDNN costs more than they take. Here a tile of the result, 6 rows
of 64 numbers, is held in registers while the inner dimension runs past; nothing is packed unless the second matrix is stored
by columns. On one thread the same code is as fast as oneDNN for large matrices.
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

#: Shorter sums are all overhead: those BLAS does as well.
LEAST_INNER = 2

#: out (m, n) = a (m, k) b (k, n), or += with `add`; any strides but the result's, which is stored by rows.
_SOURCE = r"""
#include <immintrin.h>
#include <stdlib.h>

template <int MR, int NR>
static void tile(const float *a, long down, long across, const float *b, long ldb, long k, float *c, long ldc, __mmask16 last, int add) {
  __m512 sum[MR][NR];
#pragma GCC unroll 24
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 8
    for (int j = 0; j < NR; j++) sum[i][j] = _mm512_setzero_ps();
  for (long p = 0; p < k; p++, a += across, b += ldb) {
    __m512 row[NR];
#pragma GCC unroll 8
    for (int j = 0; j + 1 < NR; j++) row[j] = _mm512_loadu_ps(b + 16 * j);
    row[NR - 1] = _mm512_maskz_loadu_ps(last, b + 16 * (NR - 1));
#pragma GCC unroll 24
    for (int i = 0; i < MR; i++) {
      __m512 x = _mm512_set1_ps(a[i * down]);
#pragma GCC unroll 8
      for (int j = 0; j < NR; j++) sum[i][j] = _mm512_fmadd_ps(x, row[j], sum[i][j]);
    }
  }
#pragma GCC unroll 24
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 8
    for (int j = 0; j < NR; j++) {
      float *to = c + i * ldc + 16 * j;
      __mmask16 mask = j + 1 < NR ? (__mmask16)-1 : last;
      _mm512_mask_storeu_ps(to, mask, add ? _mm512_add_ps(sum[i][j], _mm512_maskz_loadu_ps(mask, to)) : sum[i][j]);
    }
}

// 16 rows of 16 numbers into 16 columns.
static inline void transpose(__m512 r[16]) {
  __m512 t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
      __m512d x = _mm512_castps_pd(t[i + j]), y = _mm512_castps_pd(t[i + j + 2]);
      r[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
      r[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
    }
#pragma GCC unroll 8
  for (int i = 0; i < 4; i++)
#pragma GCC unroll 2
    for (int j = 0; j < 16; j += 8) {
      t[i + j] = _mm512_shuffle_f32x4(r[i + j], r[i + j + 4], 0x88);
      t[i + j + 4] = _mm512_shuffle_f32x4(r[i + j], r[i + j + 4], 0xdd);
    }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
  }
}

// (k, wide) that is stored by columns, into rows of 64.
static void pack(const float *from, long across, long k, long wide, float *to) {
  for (long t = 0; t < wide; t += 16)
    for (long p = 0; p < k; p += 16) {
      __mmask16 mask = k - p < 16 ? (__mmask16)((1u << (k - p)) - 1) : (__mmask16)-1;
      __m512 r[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) r[i] = _mm512_maskz_loadu_ps(t + i < wide ? mask : (__mmask16)0, from + (t + i < wide ? t + i : t) * across + p);
      transpose(r);
      long rows = k - p < 16 ? k - p : 16;
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++)
        if (i < rows) _mm512_storeu_ps(to + (p + i) * 64 + t, r[i]);
    }
}

template <int NR>
static void panel(const float *a, long down, long across, const float *b, long ldb, long m, long k, float *c, long ldc, __mmask16 last, int add) {
  constexpr int MR = NR == 1 ? 12 : 24 / NR;
  long i = 0;
  for (; i + MR <= m; i += MR) tile<MR, NR>(a + i * down, down, across, b, ldb, k, c + i * ldc, ldc, last, add);
  for (; i + 4 <= m; i += 4) tile<4, NR>(a + i * down, down, across, b, ldb, k, c + i * ldc, ldc, last, add);
  for (; i < m; i++) tile<1, NR>(a + i * down, down, across, b, ldb, k, c + i * ldc, ldc, last, add);
}

extern "C" void product(const float *a, const float *b, float *c, long m, long n, long k, long a_down, long a_across, long b_down, long b_across, int add) {
  static thread_local float *packed = nullptr;
  static thread_local long room = 0;
  if (b_across != 1 && room < k * 64) {
    free(packed);
    room = k * 64;
    packed = (float *)malloc(room * sizeof(float));
  }
  for (long j = 0; j < n; j += 64) {
    long wide = n - j < 64 ? n - j : 64, vectors = (wide + 15) / 16, ldb = b_down;
    __mmask16 last = (__mmask16)((1u << (wide - 16 * (vectors - 1))) - 1);
    const float *from = b + j * b_across;
    if (b_across != 1) {
      ldb = 64;
      if (b_down == 1) {
        pack(from, b_across, k, wide, packed);
      } else {
        for (long t = 0; t < wide; t++)
          for (long p = 0; p < k; p++) packed[p * 64 + t] = from[t * b_across + p * b_down];
      }
      from = packed;
    }
    float *to = c + j;
    switch ((int)vectors) {
      case 1: panel<1>(a, a_down, a_across, from, ldb, m, k, to, n, last, add); break;
      case 2: panel<2>(a, a_down, a_across, from, ldb, m, k, to, n, last, add); break;
      case 3: panel<3>(a, a_down, a_across, from, ldb, m, k, to, n, last, add); break;
      default: panel<4>(a, a_down, a_across, from, ldb, m, k, to, n, last, add);
    }
  }
}

extern "C" void row_times(const float *a, const float *b, float *c, long n, long k, long a_across, long b_down, int add) {
  for (long j = 0; j < n; j += 128) {
    long wide = n - j < 128 ? n - j : 128, vectors = (wide + 15) / 16;
    __mmask16 last = (__mmask16)((1u << (wide - 16 * (vectors - 1))) - 1);
    switch ((int)vectors) {
      case 1: tile<1, 1>(a, 0, a_across, b + j, b_down, k, c + j, n, last, add); break;
      case 2: tile<1, 2>(a, 0, a_across, b + j, b_down, k, c + j, n, last, add); break;
      case 3: tile<1, 3>(a, 0, a_across, b + j, b_down, k, c + j, n, last, add); break;
      case 4: tile<1, 4>(a, 0, a_across, b + j, b_down, k, c + j, n, last, add); break;
      case 5: tile<1, 5>(a, 0, a_across, b + j, b_down, k, c + j, n, last, add); break;
      case 6: tile<1, 6>(a, 0, a_across, b + j, b_down, k, c + j, n, last, add); break;
      case 7: tile<1, 7>(a, 0, a_across, b + j, b_down, k, c + j, n, last, add); break;
      default: tile<1, 8>(a, 0, a_across, b + j, b_down, k, c + j, n, last, add);
    }
  }
}

template <int MR>
static void dots_of(const float *a, long down, const float *x, long k, float *y, int add) {
  __m512 sum[MR];
#pragma GCC unroll 8
  for (int i = 0; i < MR; i++) sum[i] = _mm512_setzero_ps();
  for (long p = 0; p < k; p += 16) {
    __mmask16 mask = k - p < 16 ? (__mmask16)((1u << (k - p)) - 1) : (__mmask16)-1;
    __m512 part = _mm512_maskz_loadu_ps(mask, x + p);
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++) sum[i] = _mm512_fmadd_ps(part, _mm512_maskz_loadu_ps(mask, a + i * down + p), sum[i]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < MR; i++) y[i] = (add ? y[i] : 0) + _mm512_reduce_add_ps(sum[i]);
}

extern "C" void dots(const float *a, const float *x, float *y, long m, long k, long down, int add) {
  long i = 0;
  for (; i + 8 <= m; i += 8) dots_of<8>(a + i * down, down, x, k, y + i, add);
  for (; i < m; i++) dots_of<1>(a + i * down, down, x, k, y + i, add);
}
"""


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The functions; None where BLAS is left to it, or there is no compiler."""
    return native.load(_SOURCE, ("-O2", "-mavx512f", "-mavx512vl", "-mavx512dq", "-mfma")) if _worth_it() else None


def _worth_it() -> bool:
    """AMD's processors with 512-bit vectors: MKL uses those on Intel's alone."""
    if sys.platform != "linux" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def available() -> bool:
    """Whether there are such functions for this processor."""
    return _library() is not None


def call(a: Tensor, b: Tensor, out: Tensor, *, add: bool) -> tuple[int, str, tuple[Tensor, ...]] | None:
    """out = a b, or out += a b: a function, C that calls it as {f} with the addresses {0}, {1}, {2} of the tensors; None for what
    BLAS does as well."""
    (m, k), n = a.shape, b.shape[1]
    library = _library()
    if library is None or a.dtype != torch.float32 or (out.stride() != (n, 1) and m * n > 1) or k < LEAST_INNER:
        return None
    if n == 1 or m == 1:
        # A thin product is a row times a matrix, or as many scalar products as the matrix has rows.
        matrix, vector, length = (a, b[:, 0], m) if n == 1 else (b.t(), a[0], n)
        if matrix.stride(0) == 1 and length > 1:
            return _called(library.row_times, (vector, matrix, out), length, k, vector.stride(0), matrix.stride(1), int(add))
        if matrix.stride(1) == 1 and vector.stride(0) == 1:
            return _called(library.dots, (matrix, vector, out), length, k, matrix.stride(0), int(add))
        return None
    return _called(library.product, (a, b, out), m, n, k, *a.stride(), *b.stride(), int(add))


def _called(function: Any, tensors: tuple[Tensor, ...], *numbers: int) -> tuple[int, str, tuple[Tensor, ...]]:
    types = ", ".join(["void *"] * 3 + ["long"] * (len(numbers) - 1) + ["int"])
    code = f"((void (*)({types})) {{f}})({{0}}, {{1}}, {{2}}, {', '.join(map(str, numbers))});"
    return ctypes.cast(function, ctypes.c_void_p).value or 0, code, tensors
