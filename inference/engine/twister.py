"""The numbers of torch's CPU generator in single precision, drawn a vector at a time.

torch draws from its Mersenne twister one number after the other, and a step of a Bayesian network takes one for each weight
or activation. Here the same sequence comes out of loops that a compiler turns into vectors: uniform numbers are those of
torch to the last bit, normal ones (Box and Muller 1958, in torch's order) up to the rounding of logarithm and cosine. The
generator's state moves on as torch would move it, so that the two may take turns.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from . import native

#: torch does not use Box and Muller for fewer.
LEAST = 16

#: `state` is that of `torch.Generator.get_state`: seed (8 bytes), left (4), seeded (4), next (8), 624 words of 8 bytes each, and what
#: belongs to samplers of single numbers. The twister is Matsumoto and Nishimura's MT19937.
#: The polynomials have the least largest error on their intervals, found by weighted least squares (Lawson's iteration): relative
#: 3e-8 for the logarithm and 3e-9 for the sine, absolute 5e-11 for the cosine.
_SOURCE = r"""
#include <string.h>
typedef unsigned int u32;
typedef float v8 __attribute__((vector_size(32)));
typedef int i8 __attribute__((vector_size(32)));

enum { N = 624, M = 397 };
typedef struct { u32 word[N]; long at; } Twister;

static void take(Twister *t, const char *state) {
  int left;
  memcpy(&left, state + 8, 4);
  t->at = N + 1 - left;
  for (int i = 0; i < N; i++) memcpy(&t->word[i], state + 24 + 8 * i, 4);
}

static void put(const Twister *t, char *state) {
  int left = (int)(N + 1 - t->at);
  unsigned long long next = t->at, word;
  memcpy(state + 8, &left, 4);
  memcpy(state + 16, &next, 8);
  for (int i = 0; i < N; i++) { word = t->word[i]; memcpy(state + 24 + 8 * i, &word, 8); }
}

static inline u32 mixed(u32 a, u32 b) { return (((a & 0x80000000u) | (b & 0x7fffffffu)) >> 1) ^ (-(b & 1u) & 0x9908b0dfu); }

static void twist(u32 *s) {
  for (int i = 0; i < N - M; i++) s[i] = s[i + M] ^ mixed(s[i], s[i + 1]);
#pragma GCC ivdep
  for (int i = N - M; i < N - 1; i++) s[i] = s[i + M - N] ^ mixed(s[i], s[i + 1]);
  s[N - 1] = s[M - 1] ^ mixed(s[N - 1], s[0]);
}

static void uniforms(Twister *t, float *to, long n) {
  while (n > 0) {
    if (t->at == N) { twist(t->word); t->at = 0; }
    long m = N - t->at < n ? N - t->at : n;
    const u32 *word = t->word + t->at;
    for (long i = 0; i < m; i++) {
      u32 y = word[i];
      y ^= y >> 11;
      y ^= (y << 7) & 0x9d2c5680u;
      y ^= (y << 15) & 0xefc60000u;
      y ^= y >> 18;
      to[i] = (float)(int)(y & 0xffffffu) * 0x1p-24f;
    }
    t->at += m; to += m; n -= m;
  }
}

#define CHOSEN(mask, a, b) (v8)(((i8)(a) & (mask)) | ((i8)(b) & ~(mask)))

// Sixteen numbers: eight radii and eight angles.
static void polar(float *x) {
  v8 u, v;
  memcpy(&u, x, 32); memcpy(&v, x + 8, 32);
  // -2 log(1 - u), the mantissa between sqrt(1/2) and sqrt 2 (0x3f3504f3 is the former)
  i8 bits = (i8)(1.0f - u) - 0x3f3504f3;
  v8 k = __builtin_convertvector(bits >> 23, v8), f = (v8)((bits & 0x7fffff) + 0x3f3504f3) - 1.0f;
  v8 r = f * 0.0870037824f - 0.142674759f;
  r = r * f + 0.149147868f;
  r = r * f - 0.16577588f;
  r = r * f + 0.199630618f;
  r = r * f - 0.250013381f;
  r = r * f + 0.333339095f;
  v8 radius = -2.0f * ((k * -2.1219444e-4f + r * f * f * f) - 0.5f * f * f + f + k * 0.693359375f);
  float root[8];
  memcpy(root, &radius, 32);
  for (int i = 0; i < 8; i++) root[i] = __builtin_sqrtf(root[i]);
  memcpy(&radius, root, 32);
  // cosine and sine of 2 pi v: v is a number of quarters and a rest of at most an eighth
  i8 quarter = __builtin_convertvector(4.0f * v + 0.5f, i8), odd = -(quarter & 1);
  v8 t = v - 0.25f * __builtin_convertvector(quarter, v8), tt = t * t;
  v8 sine = t * (((tt * -75.4020615f + 81.5925522f) * tt - 41.3416634f) * tt + 6.28318548f);
  v8 cosine = (((tt * 59.2204056f - 85.4428558f) * tt + 64.9393158f) * tt - 19.7392082f) * tt + 1.0f;
  v8 a = radius * (v8)((i8)CHOSEN(odd, sine, cosine) ^ (((quarter + 1) & 2) << 30));
  v8 b = radius * (v8)((i8)CHOSEN(odd, cosine, sine) ^ ((quarter & 2) << 30));
  memcpy(x, &a, 32); memcpy(x + 8, &b, 32);
}

extern "C" void uniform(char *state, float *to, long n) {
  Twister t;
  take(&t, state);
  uniforms(&t, to, n);
  put(&t, state);
}

extern "C" void normal(char *state, float *to, long n) {
  Twister t;
  take(&t, state);
  for (long i = 0; i < n; i += 4096) {  // what is still in the nearest cache
    long m = n - i < 4096 ? n - i : 4096;
    uniforms(&t, to + i, m);
    for (long j = 0; j + 16 <= m; j += 16) polar(to + i + j);
  }
  if (n % 16) {  // as torch does: the last sixteen anew
    uniforms(&t, to + n - 16, 16);
    polar(to + n - 16);
  }
  put(&t, state);
}
"""

#: The instructions that torch itself uses on this machine.
_FLAGS = {"AVX512": ("-mavx512f", "-mavx512vl", "-mavx512dq", "-mfma"), "AVX2": ("-mavx2", "-mfma")}


def normal_(table: Tensor, generator: torch.Generator) -> Tensor:
    """`table.normal_(generator=generator)`."""
    return table if _filled("normal", table, generator) else table.normal_(generator=generator)


def uniform_(table: Tensor, generator: torch.Generator) -> Tensor:
    """`table.uniform_(generator=generator)`."""
    return table if _filled("uniform", table, generator) else table.uniform_(generator=generator)


def _filled(kind: str, table: Tensor, generator: torch.Generator) -> bool:
    if table.device.type != "cpu" or table.dtype != torch.float32 or not table.is_contiguous() or table.numel() < LEAST:
        return False
    library = _library()
    if library is None:
        return False
    _fill(library, kind, table, generator)
    return True


def _fill(library: ctypes.CDLL, kind: str, table: Tensor, generator: torch.Generator) -> None:
    state = generator.get_state()
    function: Any = getattr(library, kind)
    function(ctypes.c_void_p(state.data_ptr()), ctypes.c_void_p(table.data_ptr()), ctypes.c_long(table.numel()))
    generator.set_state(state)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The functions; None without a compiler, and where this torch's generator is another one."""
    flags = _FLAGS.get(torch.backends.cpu.get_cpu_capability(), ())
    library = native.load(_SOURCE, ("-O3", "-fno-math-errno", "-Wno-psabi", *flags))
    return library if library is not None and _agrees(library) else None


def _agrees(library: ctypes.CDLL) -> bool:
    """Whether torch's numbers come out, and leave its generator where torch does."""
    theirs, ours = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    if theirs.get_state().numel() < 24 + 8 * 624:
        return False
    for kind, count in (("normal", 700), ("uniform", 33)):
        expected, actual = torch.empty(count), torch.empty(count)
        getattr(expected, f"{kind}_")(generator=theirs)
        _fill(library, kind, actual, ours)
        if not torch.allclose(expected, actual, rtol=0, atol=1e-5):
            return False
    return torch.equal(theirs.get_state(), ours.get_state())
