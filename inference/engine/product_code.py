"""The C++ of `products`: tiles of a product held in registers, for vectors of 512 and of 256 bits.

    product    c (m, n) = a (m, k) b (k, n), any strides but the result's, which is stored by rows
    row_times  c (n) = a (k) b (k, n), b stored by rows
    dots       y (m) = a (m, k) x (k), a stored by rows
    row_dots   the same with rows of a larger matrix, which are copied on the way

With `add` they add to what is there. Nothing is packed for 512 bits unless b is stored by columns; for 256 bits the panels of b
are, where many rows use them.
"""

SOURCE = r"""
#include <immintrin.h>
#include <stdlib.h>

// More numbers than the second cache holds.
enum { FAR = 1 << 18 };

#ifdef __AVX512F__
// 32 registers of 16 numbers: tiles are 64 wide.
enum { LANES = 16, WIDEST = 4, ACCUMULATORS = 24, ALONE = 12, INNER = 0, LONG = 0, ROW = 13 };
typedef __m512 vec;
typedef __mmask16 some;
static inline some first(long count) { return (some)((1u << count) - 1); }
static inline vec zero() { return _mm512_setzero_ps(); }
static inline vec all(float x) { return _mm512_set1_ps(x); }
static inline vec load(const float *from) { return _mm512_loadu_ps(from); }
static inline vec load(some which, const float *from) { return _mm512_maskz_loadu_ps(which, from); }
static inline void store(float *to, vec x) { _mm512_storeu_ps(to, x); }
static inline void store(float *to, some which, vec x) { _mm512_mask_storeu_ps(to, which, x); }
static inline vec times_plus(vec x, vec y, vec z) { return _mm512_fmadd_ps(x, y, z); }
static inline vec plus(vec x, vec y) { return _mm512_add_ps(x, y); }
static inline float total(vec x) { return _mm512_reduce_add_ps(x); }
static inline void totals(const vec x[8], float *to, int add) {
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) to[i] = (add ? to[i] : 0) + total(x[i]);
}

// 16 rows of 16 numbers into 16 columns.
static inline void transpose(vec r[16]) {
  vec t[16];
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
#else
// 16 registers of 8 numbers: tiles are 16 wide, and what they read again and again must lie in the nearest cache.
enum { LANES = 8, WIDEST = 2, ACCUMULATORS = 12, ALONE = 12, INNER = 256, LONG = 32, ROW = 13 };
typedef __m256 vec;
struct some { __m256i lanes; int count; };
static const int flags[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
static inline some first(long count) { return {_mm256_loadu_si256((const __m256i *)(flags + 8 - count)), (int)count}; }
static inline vec zero() { return _mm256_setzero_ps(); }
static inline vec all(float x) { return _mm256_set1_ps(x); }
static inline vec load(const float *from) { return _mm256_loadu_ps(from); }
static inline vec load(some which, const float *from) { return _mm256_maskload_ps(from, which.lanes); }
static inline void store(float *to, vec x) { _mm256_storeu_ps(to, x); }
static inline void store(float *to, some which, vec x) { // AMD's masked stores take twenty cycles
  if (which.count == 8) return _mm256_storeu_ps(to, x);
  __m128 part = _mm256_castps256_ps128(x);
  if (which.count & 4) {
    _mm_storeu_ps(to, part);
    part = _mm256_extractf128_ps(x, 1);
    to += 4;
  }
  if (which.count & 2) {
    _mm_storel_pi((__m64 *)to, part);
    part = _mm_movehl_ps(part, part);
    to += 2;
  }
  if (which.count & 1) _mm_store_ss(to, part);
}
static inline vec times_plus(vec x, vec y, vec z) { return _mm256_fmadd_ps(x, y, z); }
static inline vec plus(vec x, vec y) { return _mm256_add_ps(x, y); }
static inline float total(vec x) {
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
static inline void totals(const vec x[8], float *to, int add) {
  vec low = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
  vec high = _mm256_hadd_ps(_mm256_hadd_ps(x[4], x[5]), _mm256_hadd_ps(x[6], x[7]));
  vec sum = plus(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
  store(to, add ? plus(sum, load(to)) : sum);
}

// 8 rows of 8 numbers into 8 columns.
static inline void transpose(vec r[8]) {
  vec t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
      __m256d x = _mm256_castps_pd(t[i + j]), y = _mm256_castps_pd(t[i + j + 2]);
      r[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(x, y));
      r[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(x, y));
    }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    vec x = r[i], y = r[i + 4];
    r[i] = _mm256_permute2f128_ps(x, y, 0x20);
    r[i + 4] = _mm256_permute2f128_ps(x, y, 0x31);
  }
}
#endif

enum { WIDE = LANES * WIDEST };

template <int MR, int NR>
static void tile(const float *a, long down, long across, const float *b, long ldb, long k, float *c, long ldc, some last, int add) {
  vec sum[MR][NR];
#pragma GCC unroll 24
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 8
    for (int j = 0; j < NR; j++) sum[i][j] = zero();
  for (long p = 0; p < k; p++, a += across, b += ldb) {
    vec row[NR];
#pragma GCC unroll 8
    for (int j = 0; j + 1 < NR; j++) row[j] = load(b + LANES * j);
    row[NR - 1] = load(last, b + LANES * (NR - 1));
#pragma GCC unroll 24
    for (int i = 0; i < MR; i++) {
      vec x = all(a[i * down]);
#pragma GCC unroll 8
      for (int j = 0; j < NR; j++) sum[i][j] = times_plus(x, row[j], sum[i][j]);
    }
  }
#pragma GCC unroll 24
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 8
    for (int j = 0; j < NR; j++) {
      float *to = c + i * ldc + LANES * j;
      some mask = j + 1 < NR ? first(LANES) : last;
      store(to, mask, add ? plus(sum[i][j], load(mask, to)) : sum[i][j]);
    }
}

// (k, wide) that is stored by columns, into rows of WIDE.
static void pack(const float *from, long across, long k, long wide, float *to) {
  for (long t = 0; t < wide; t += LANES)
    for (long p = 0; p < k; p += LANES) {
      some mask = first(k - p < LANES ? k - p : LANES);
      vec r[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) r[i] = load(t + i < wide ? mask : first(0), from + (t + i < wide ? t + i : t) * across + p);
      transpose(r);
      long rows = k - p < LANES ? k - p : LANES;
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++)
        if (i < rows) store(to + (p + i) * WIDE + t, r[i]);
    }
}

template <int NR>
static void panel(const float *a, long down, long across, const float *b, long ldb, long m, long k, float *c, long ldc, some last, int add) {
  constexpr int MR = NR == 1 ? ALONE : ACCUMULATORS / NR;
  long i = 0;
  for (; i + MR <= m; i += MR) tile<MR, NR>(a + i * down, down, across, b, ldb, k, c + i * ldc, ldc, last, add);
  for (; i + 4 <= m; i += 4) tile<4, NR>(a + i * down, down, across, b, ldb, k, c + i * ldc, ldc, last, add);
  for (; i < m; i++) tile<1, NR>(a + i * down, down, across, b, ldb, k, c + i * ldc, ldc, last, add);
}

static void columns(const float *a, const float *b, float *c, long m, long n, long k, long a_down, long a_across, long b_down, long b_across, int add) {
  static thread_local float *packed = nullptr;
  static thread_local long room = 0;
  const bool packs = b_across != 1 || (LONG > 0 && m >= LONG);
  if (packs && room < k * WIDE) {
    free(packed);
    room = k * WIDE;
    packed = (float *)malloc(room * sizeof(float));
  }
  for (long j = 0; j < n; j += WIDE) {
    long wide = n - j < WIDE ? n - j : WIDE, vectors = (wide + LANES - 1) / LANES, ldb = b_down;
    some last = first(wide - LANES * (vectors - 1));
    const float *from = b + j * b_across;
    if (packs) {
      ldb = WIDE;
      if (b_across == 1) {
        for (long p = 0; p < k; p++) {
          for (long t = 0; t + 1 < vectors; t++) store(packed + p * WIDE + t * LANES, load(from + p * b_down + t * LANES));
          store(packed + p * WIDE + (vectors - 1) * LANES, load(last, from + p * b_down + (vectors - 1) * LANES));
        }
      } else if (b_down == 1) {
        pack(from, b_across, k, wide, packed);
      } else {
        for (long t = 0; t < wide; t++)
          for (long p = 0; p < k; p++) packed[p * WIDE + t] = from[t * b_across + p * b_down];
      }
      from = packed;
    }
    float *to = c + j;
    switch ((int)vectors) {
      case 1: panel<1>(a, a_down, a_across, from, ldb, m, k, to, n, last, add); break;
#ifdef __AVX512F__
      case 2: panel<2>(a, a_down, a_across, from, ldb, m, k, to, n, last, add); break;
      case 3: panel<3>(a, a_down, a_across, from, ldb, m, k, to, n, last, add); break;
#endif
      default: panel<WIDEST>(a, a_down, a_across, from, ldb, m, k, to, n, last, add);
    }
  }
}

extern "C" void product(const float *a, const float *b, float *c, long m, long n, long k, long a_down, long a_across, long b_down, long b_across, int add) {
  const long inner = INNER > 0 ? INNER : k;
  for (long p = 0; p < k; p += inner)
    columns(a + p * a_across, b + p * b_down, c, m, n, k - p < inner ? k - p : inner, a_down, a_across, b_down, b_across, add || p);
}

// A row of few columns: as many sums at once as it takes for none to wait for itself.
template <int NR>
static void row_of(const float *a, long across, const float *b, long ldb, long k, float *c, some last, int add) {
  constexpr int SUMS = NR >= 8 ? 1 : NR >= 4 ? 2 : 4;
  vec sum[SUMS][NR];
#pragma GCC unroll 4
  for (int u = 0; u < SUMS; u++)
#pragma GCC unroll 13
    for (int j = 0; j < NR; j++) sum[u][j] = zero();
  long p = 0;
  for (; p + SUMS <= k; p += SUMS, b += SUMS * ldb)
#pragma GCC unroll 4
    for (int u = 0; u < SUMS; u++) {
      vec x = all(a[(p + u) * across]);
#pragma GCC unroll 13
      for (int j = 0; j + 1 < NR; j++) sum[u][j] = times_plus(x, load(b + u * ldb + LANES * j), sum[u][j]);
      sum[u][NR - 1] = times_plus(x, load(last, b + u * ldb + LANES * (NR - 1)), sum[u][NR - 1]);
    }
  for (; p < k; p++, b += ldb) {
    vec x = all(a[p * across]);
#pragma GCC unroll 13
    for (int j = 0; j + 1 < NR; j++) sum[0][j] = times_plus(x, load(b + LANES * j), sum[0][j]);
    sum[0][NR - 1] = times_plus(x, load(last, b + LANES * (NR - 1)), sum[0][NR - 1]);
  }
#pragma GCC unroll 13
  for (int j = 0; j < NR; j++) {
    vec whole = sum[0][j];
#pragma GCC unroll 4
    for (int u = 1; u < SUMS; u++) whole = plus(whole, sum[u][j]);
    some mask = j + 1 < NR ? first(LANES) : last;
    float *to = c + LANES * j;
    store(to, mask, add ? plus(whole, load(mask, to)) : whole);
  }
}

template <int NR>
static void row_of_any(long vectors, const float *a, long across, const float *b, long ldb, long k, float *c, some last, int add) {
  if (vectors == NR) return row_of<NR>(a, across, b, ldb, k, c, last, add);
  row_of_any<NR - 1>(vectors, a, across, b, ldb, k, c, last, add);
}
template <>
void row_of_any<0>(long, const float *, long, const float *, long, long, float *, some, int) {}

// As many columns at once as there are registers for, so that a large matrix is read once, from its first number to its last. The rows
// are summed in blocks: one sum over a hundred thousand of them would lose two digits.
extern "C" void row_times(const float *a, const float *b, float *c, long n, long k, long a_across, long b_down, int add) {
  const long all = (n + LANES - 1) / LANES, passes = (all + ROW - 1) / ROW, each = (all + passes - 1) / passes, block = 2048;
  for (long p = 0; p < k; p += block) {
    const long rows = k - p < block ? k - p : block;
    for (long j = 0; j < n; j += each * LANES) {
      long wide = n - j < each * LANES ? n - j : each * LANES, vectors = (wide + LANES - 1) / LANES;
      some last = first(wide - LANES * (vectors - 1));
      const float *from = b + p * b_down + j, *by = a + p * a_across;
      row_of_any<ROW>(vectors, by, a_across, from, b_down, rows, c + j, last, add || p);
    }
  }
}

template <int MR>
static void dots_of(const float *a, long down, const float *x, long k, float *y, int add) {
  vec sum[MR];
#pragma GCC unroll 8
  for (int i = 0; i < MR; i++) sum[i] = zero();
  long p = 0;
  for (; p + LANES <= k; p += LANES) {
    vec part = load(x + p);
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++) sum[i] = times_plus(part, load(a + i * down + p), sum[i]);
  }
  if (p < k) {
    some mask = first(k - p);
    vec part = load(mask, x + p);
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++) sum[i] = times_plus(part, load(mask, a + i * down + p), sum[i]);
  }
  if (MR == 8) return totals(sum, y, add);
  for (int i = 0; i < MR; i++) y[i] = (add ? y[i] : 0) + total(sum[i]);
}

extern "C" void dots(const float *a, const float *x, float *y, long m, long k, long down, int add) {
  long i = 0;
  if (m * k > FAR)  // eight rows from far away are too many places at once
    for (; i + 4 <= m; i += 4) dots_of<4>(a + i * down, down, x, k, y + i, add);
  for (; i + 8 <= m; i += 8) dots_of<8>(a + i * down, down, x, k, y + i, add);
  for (; i < m; i++) dots_of<1>(a + i * down, down, x, k, y + i, add);
}

// Rows lie anywhere in memory: those to come are asked for early, as many as the nearest cache has room for.
extern "C" void row_dots(const float *table, const long *index, const float *x, float *a, float *y, long rows, long m, long k, int add) {
  const long room = 4096, size = k * (long)sizeof(float), asked = size < room ? size : room, whole = room / size;
  const long ahead = whole > 8 ? 8 : whole > 1 ? whole : 1;
  for (long i = 0; i < m; i++, a += k) {
    if (i + ahead < m) {
      long next = index[i + ahead] < 0 ? index[i + ahead] + rows : index[i + ahead];
      for (long c = 0; c < asked; c += 64) __builtin_prefetch((const char *)(table + next * k) + c);
    }
    const float *from = table + (index[i] < 0 ? index[i] + rows : index[i]) * k;
    vec even = zero(), odd = zero();
    long p = 0;
    for (; p + 2 * LANES <= k; p += 2 * LANES) {
      vec one = load(from + p), two = load(from + p + LANES);
      store(a + p, one);
      store(a + p + LANES, two);
      even = times_plus(one, load(x + p), even);
      odd = times_plus(two, load(x + p + LANES), odd);
    }
    for (; p < k; p += LANES) {
      some mask = first(k - p < LANES ? k - p : LANES);
      vec part = load(mask, from + p);
      store(a + p, mask, part);
      even = times_plus(part, load(mask, x + p), even);
    }
    y[i] = (add ? y[i] : 0) + total(plus(even, odd));
  }
}
"""
