// Vector mathematics and the product of rows with packed weights, for the kernels of this folder.
//
// Plain C with the vector types of GCC and Clang; REAL (float or double) is given on the command line. No -ffast-math:
// NaN and infinity propagate as in torch.

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
// Rows of a block: 4 sums per row, and they should fit the registers.
#if defined(__AVX512F__) || defined(__aarch64__)
#define BLOCK 6
#else
#define BLOCK 3
#endif
#define LANES ((int)(BYTES / sizeof(REAL)))
#define INLINE static inline __attribute__((always_inline))

typedef REAL vec __attribute__((vector_size(BYTES)));
typedef REAL loose __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));
typedef uint8_t flags __attribute__((vector_size(BYTES / sizeof(REAL))));

int64_t lanes(void) { return LANES; }

// --- vectors ---------------------------------------------------------------------------------------------------------

INLINE vec all(REAL a) { return a - (vec){}; }

// The first n numbers at p, the rest zero. Nearly always n == LANES.
INLINE vec load(const REAL *p, int n) {
    if (n == LANES) return *(const loose *)p;
    vec a = {};
    for (int l = 0; l < n; l++) a[l] = p[l];
    return a;
}

INLINE REAL total(vec a) {
    REAL sum[BYTES / sizeof(REAL)];
    *(loose *)sum = a;
    for (int half = LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) sum[l] += sum[l + half];
    return sum[0];
}

INLINE void store(REAL *p, vec a, int n) {
    if (n == LANES) *(loose *)p = a;
    else for (int l = 0; l < n; l++) p[l] = a[l];
}

INLINE vec load_flags(const uint8_t *p, int n) {
    flags a = {};
    memcpy(&a, p, n == LANES ? (size_t)LANES : (size_t)n);
    return __builtin_convertvector(a, vec);
}

#define SELECT(mask, a, b) ((vec)(((mask) & (bits)(a)) | (~(mask) & (bits)(b))))

// e^x - 1 = 2^n (e^r - 1) + (2^n - 1), |r| <= log(2) / 2: accurate near zero too. x must be within +-LIMIT.
#ifdef DOUBLE
typedef int64_t bits __attribute__((vector_size(BYTES)));
#define LIMIT 700
#define FLAT 20  // beyond it tanh is 1
INLINE vec reduced(vec r) {  // (e^r - 1 - r) / r^2, by Taylor's series
    vec p = all(1.0 / 6227020800.0);
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    return p * r + 0.5;
}
INLINE void split(vec x, vec *r, vec *scale) {
    const vec shift = all(0x1.8p52);  // adding it leaves the nearest integer in the low bits
    vec z = x * 0x1.71547652b82fep+0 + shift, n = z - shift;
    *r = (x - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;
    *scale = (vec)(((bits)z + 1023) << 52);
}
#else
typedef int32_t bits __attribute__((vector_size(BYTES)));
#define LIMIT 80
#define FLAT 10
INLINE vec reduced(vec r) {  // the same by a polynomial of minimal error
    vec p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    return p * r + 5.0000001201e-1f;
}
INLINE void split(vec x, vec *r, vec *scale) {
    const vec shift = all(0x1.8p23f);
    vec z = x * 1.44269504f + shift, n = z - shift;
    *r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    *scale = (vec)(((bits)z + 127) << 23);
}
#endif

INLINE vec expm1_(vec x) {
    vec r, scale;
    split(x, &r, &scale);
    vec p = reduced(r) * r * r + r;
    return scale * p + (scale - 1);
}

INLINE vec at_most(vec x, REAL most) { return SELECT(x > most, all(most), x); }  // NaN stays

INLINE vec sigmoid(vec x) {
    vec y = at_most(-x, LIMIT);
    y = SELECT(y < -LIMIT, all(-LIMIT), y);
    return 1 / (2 + expm1_(y));
}

INLINE vec tanh_(vec x) {
    const bits sign = (bits)all((REAL)-0.0);
    vec size = at_most((vec)((bits)x & ~sign), FLAT);
    vec e = expm1_(2 * size);
    return (vec)((bits)(e / (e + 2)) | ((bits)x & sign));
}

// e^x for x that is not positive; 0 where that is too small to tell.
INLINE vec exp_(vec x) {
    const vec low = all(-LIMIT);
    return SELECT(x < low, (vec){}, 1 + expm1_(SELECT(x < low, low, x)));
}

// torch.lerp(fresh, old, keep), rounding included: exact at 0 and 1.
INLINE vec hold(vec fresh, vec old, vec keep) {
    vec d = old - fresh;
    return SELECT(keep < (REAL)0.5, fresh + keep * d, old - d * (1 - keep));
}

// --- products --------------------------------------------------------------------------------------------------------

INLINE void fixed_product(int rows, int count, vec *const sum[BLOCK], int last, const REAL *a, int64_t stride,
                          const REAL *w, int64_t k) {
    vec s[BLOCK][4];  // in registers, since rows and count are constants here
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < count; v++) s[r][v] = sum[r][v == count - 1 ? last : v];
    for (int64_t j = 0; j < k; j++) {
        vec b[4];
#pragma GCC unroll 4
        for (int v = 0; v < count; v++) b[v] = *(const loose *)(w + (j * count + v) * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            const vec one = all(a[r * stride + j]);
#pragma GCC unroll 4
            for (int v = 0; v < count; v++) s[r][v] += one * b[v];
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < count; v++) sum[r][v == count - 1 ? last : v] = s[r][v];
}

#define ROWS(n) ((n) < BLOCK ? (n) : BLOCK)

// sum[r][v] += a[r, :] w[:, v] for 1 to BLOCK rows; w is (k, count, LANES), its last vector is added to sum[r][last].
static void product(int rows, int count, vec (*sums)[4], int last, const REAL *a, int64_t stride, const REAL *w,
                    int64_t k) {
    vec *sum[BLOCK];
    for (int r = 0; r < BLOCK; r++) sum[r] = sums[r];
#define CASES(count)                                                                     \
    switch (rows) {                                                                      \
        case 1: fixed_product(1, count, sum, last, a, stride, w, k); break;              \
        case 2: fixed_product(2, count, sum, last, a, stride, w, k); break;              \
        case 3: fixed_product(3, count, sum, last, a, stride, w, k); break;              \
        case 4: fixed_product(ROWS(4), count, sum, last, a, stride, w, k); break;        \
        case 5: fixed_product(ROWS(5), count, sum, last, a, stride, w, k); break;        \
        default: fixed_product(BLOCK, count, sum, last, a, stride, w, k);                \
    }
    if (count == 4) CASES(4)
    else if (count == 3) CASES(3)
    else if (count == 2) CASES(2)
    else CASES(1)
}

// Weights (gates * H, k) as (panels, k, gates, width), zeros behind the last unit.
void pack(const REAL *w, int64_t gates, int64_t hidden, int64_t k, int64_t width, REAL *packed) {
    for (int64_t u = 0; u < hidden; u += width, packed += k * gates * width)
        for (int64_t j0 = 0; j0 < k; j0 += 16)  // short runs, so that what is written stays in the first cache
            for (int64_t g = 0; g < gates; g++)
                for (int64_t l = 0; l < width; l++)
                    for (int64_t j = j0; j < k && j < j0 + 16; j++)
                        packed[(j * gates + g) * width + l] = u + l < hidden ? w[(g * hidden + u + l) * k + j] : 0;
}

// Weights (rows, H) as panels (rows, up to 4 * LANES units), zeros behind the last unit.
void pack_back(const REAL *w, int64_t rows, int64_t hidden, REAL *packed) {
    for (int64_t u = 0; u < hidden; u += 4 * LANES) {
        int64_t n = hidden - u < 4 * LANES ? hidden - u : 4 * LANES, width = (n + LANES - 1) / LANES * LANES;
        for (int64_t j = 0; j < rows; j++, packed += width) {
            memcpy(packed, w + j * hidden + u, (size_t)n * sizeof(REAL));
            memset(packed + n, 0, (size_t)(width - n) * sizeof(REAL));
        }
    }
}

