// What the kernels of modular layers share: their structs, packed matrices, and products of rows with these.
//
// Letters: T steps, B rows, n modules of d units, K of them active; H input heads with keys of dk and values of dv
// numbers; Hc heads of the communication, with keys of ck and values of cv numbers. All matrices act on the right.

#include "gates.h"

#define AHEAD 64  // steps whose keys and values of the input are made at once, and kept when nothing else is

// What a layer attends to: keys (H dk numbers) beside values (H dv).
struct Slot {
    int64_t source, size;        // a layer, or -1 for the input; numbers in a row of that layer's state
    const REAL *weight, *back;   // packed (size, keys and values), and its transpose
    const REAL *x;               // the input (T, B, size)
    REAL *kv, *grad, *grad_x;    // (T, B, keys and values), (span, B, keys and values), as x or NULL
    REAL *sum;                   // (parts, keys and values, size), added to, or NULL
};

struct Layer {
    int64_t modules, size, active, heads, key, value, slots, gru;  // n, d, K, H, dk, dv
    int64_t comm, comm_heads, comm_key, comm_value;                // comm: whether modules communicate; Hc, ck, cv
    int64_t held, blocked;       // others see the old state of a module that lost; no gradient reaches its candidate
    int64_t keep;                // whether all steps are kept for the backward pass
    double read_scale, comm_scale;                                 // of what dropout keeps
    struct Slot slot[2];
    const REAL *query, *gates, *talk, *delta;                      // packed: n (d, H dk), n (H dv + d, 4 d),
    const REAL *query_back, *gates_back, *talk_back, *delta_back;  // n (d, Hc (2 ck + cv)), (Hc cv, 2 d); transposes
    const REAL *bias, *delta_bias;                                 // (n, 4 d), (2 d)
    const uint8_t *read_mask, *comm_mask;                          // (T, B, n, H dv), (T, B, n, d), or NULL
    const REAL *h0, *c0;         // (B, n, d)
    REAL *h, *c;                 // (T, B, n, d); c of one step when nothing is kept
    // Kept for the backward pass, (T, B, ...), or of one step.
    REAL *alpha, *z, *u;         // (slots, n H), (n, 4 d), (n, d)
    REAL *share, *y, *p;         // (n, K Hc), (K, Hc cv), (K, 2 d)
    int32_t *chosen;             // (K), -1 in rows that have ended
    uint8_t *mask;               // (n), of all steps in either case
    // Space, and gradients.
    REAL *space, *q, *qkv;       // (B, `space_row`), (B, n, H dk), (B, n, Hc (2 ck + cv))
    int32_t *list;               // (B)
    REAL *dh, *dc;               // (B, n, d): gradients of the state, in and out
    int64_t span;                // steps that the following have room for
    REAL *rows, *dz, *dq;        // gathered by modules: what entered the gates (or NULL), gradients of gates and of q
    int64_t *count;              // (parts, n): how many rows each module has there
    REAL *dqkv, *dp;             // (span, B, n, ...), (span, B, K, 2 d)
    // Sums, (parts, ...), added to, or NULL: of the matrices and vectors above, `delta` as (Hc cv, 2 d).
    REAL *sum_query, *sum_gates, *sum_bias, *sum_talk, *sum_delta, *sum_delta_bias;
};

struct Stack {
    struct Sequence cell;        // of it: steps, batch, the rows and the steps of this call, lengths, grad_out
    int64_t part, count;         // which of the calls that share the rows; how many layers
    const struct Layer *layers;
};

INLINE int64_t padded(int64_t columns) { return (columns + LANES - 1) / LANES * LANES; }

// Modules' matrices as panels (k, up to 4 * LANES columns), zeros behind the last column; element (m, i, j) at strides.
void pack_modules(const REAL *w, int64_t modules, int64_t k, int64_t columns, int64_t apart, int64_t row,
                  int64_t column, REAL *packed) {
    for (int64_t m = 0; m < modules; m++, w += apart)
        for (int64_t u = 0; u < columns; u += 4 * LANES) {
            const int64_t n = columns - u < 4 * LANES ? columns - u : 4 * LANES, width = padded(n);
            if (column == 1)
                for (int64_t j = 0; j < k; j++) {
                    memcpy(packed + j * width, w + j * row + u, (size_t)n * sizeof(REAL));
                    memset(packed + j * width + n, 0, (size_t)(width - n) * sizeof(REAL));
                }
            else
                for (int64_t j0 = 0; j0 < k; j0 += 16)  // short runs, so that what is read stays in the first cache
                    for (int64_t l = 0; l < width; l++)
                        for (int64_t j = j0; j < k && j < j0 + 16; j++)
                            packed[j * width + l] = l < n ? w[j * row + (u + l) * column] : 0;
            packed += k * width;
        }
}

// The first n numbers at p, the rest zero, and back: as load() and store(), which are slow where n < LANES.
#ifdef __AVX512BW__
#include <immintrin.h>
#ifdef DOUBLE
INLINE vec some_of(const REAL *p, int n) { return (vec)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p); }
INLINE void put_some(REAL *p, vec a, int n) { _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)a); }
#else
INLINE vec some_of(const REAL *p, int n) { return (vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }
INLINE void put_some(REAL *p, vec a, int n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)a); }
#endif
#else
INLINE vec some_of(const REAL *p, int n) { return load(p, n); }
INLINE void put_some(REAL *p, vec a, int n) { store(p, a, n); }
#endif
INLINE vec take(const REAL *p, int n) {
    if (n == LANES) return *(const loose *)p;
    return some_of(p, n);
}
INLINE void put(REAL *p, vec a, int n) {
    if (n == LANES) *(loose *)p = a;
    else put_some(p, a, n);
}

INLINE int left(int64_t size, int64_t u) { return size - u < LANES ? (int)(size - u) : LANES; }
#define VECTORS(u, size) for (int64_t u = 0; u < (size); u += LANES)

// f(some, count, ...) with constants, 1 to BLOCK and 1 to 4, so that its sums stay in registers.
#define SIZED(f, some, count, ...)                     \
    switch (some) {                                    \
        case 1: f(1, count, __VA_ARGS__); break;       \
        case 2: f(2, count, __VA_ARGS__); break;       \
        case 3: f(3, count, __VA_ARGS__); break;       \
        case 4: f(ROWS(4), count, __VA_ARGS__); break; \
        case 5: f(ROWS(5), count, __VA_ARGS__); break; \
        default: f(BLOCK, count, __VA_ARGS__);         \
    }
#define ALL_SIZED(f, some, count, ...)                    \
    if ((count) == 4) SIZED(f, some, 4, __VA_ARGS__)      \
    else if ((count) == 3) SIZED(f, some, 3, __VA_ARGS__) \
    else if ((count) == 2) SIZED(f, some, 2, __VA_ARGS__) \
    else SIZED(f, some, 1, __VA_ARGS__)

// out = start + a w for some rows and count vectors of columns, `last` numbers in the last; start is NULL for zeros.
INLINE void fixed_multiply(int some, int count, const REAL *a, int64_t a_row, const REAL *w, int64_t k,
                           const REAL *start, int64_t start_row, REAL *out, int64_t out_row, int last) {
    vec sum[BLOCK][4];
#pragma GCC unroll 6
    for (int i = 0; i < some; i++)
#pragma GCC unroll 4
        for (int v = 0; v < count; v++)
            sum[i][v] = start ? take(start + i * start_row + v * LANES, v == count - 1 ? last : LANES) : (vec){};
    for (int64_t j = 0; j < k; j++) {
        vec b[4];
#pragma GCC unroll 4
        for (int v = 0; v < count; v++) b[v] = *(const loose *)(w + (j * count + v) * LANES);
#pragma GCC unroll 6
        for (int i = 0; i < some; i++) {
            const vec one = all(a[i * a_row + j]);
#pragma GCC unroll 4
            for (int v = 0; v < count; v++) sum[i][v] += one * b[v];
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < some; i++)
#pragma GCC unroll 4
        for (int v = 0; v < count; v++) put(out + i * out_row + v * LANES, sum[i][v], v == count - 1 ? last : LANES);
}

static void multiply_block(int some, int count, const REAL *a, int64_t a_row, const REAL *w, int64_t k,
                           const REAL *start, int64_t start_row, REAL *out, int64_t out_row, int last) {
    ALL_SIZED(fixed_multiply, some, count, a, a_row, w, k, start, start_row, out, out_row, last)
}

// out = start + a w for some rows; start is a vector for all rows, or what is in `out` already, or zero.
static void multiply(int64_t rows, const REAL *a, int64_t a_row, const REAL *w, int64_t k, int64_t columns, REAL *out,
                     int64_t out_row, const REAL *start, int add) {
    for (int64_t u = 0; u < columns; u += 4 * LANES) {
        const int count = columns - u < 4 * LANES ? (int)((columns - u + LANES - 1) / LANES) : 4;
        const int last = left(columns, u + (count - 1) * LANES);
        for (int64_t row = 0, some; row < rows; row += some) {
            const int64_t blocks = (rows - row + BLOCK - 1) / BLOCK;
            some = (rows - row + blocks - 1) / blocks;
            REAL *to = out + row * out_row + u;
            multiply_block((int)some, count, a + row * a_row, a_row, w + u * k, k, add ? to : start ? start + u : NULL,
                           add ? out_row : 0, to, out_row, last);
        }
    }
}

// sum (some, count vectors) += x^T g over the rows of x and g. Whole vectors of g are read.
INLINE void fixed_outer(int some, int count, int64_t rows, const REAL *x, int64_t x_row, const REAL *g, int64_t g_row,
                        REAL *sum, int64_t columns, int last) {
    vec a[BLOCK][4];
#pragma GCC unroll 6
    for (int i = 0; i < some; i++)
#pragma GCC unroll 4
        for (int v = 0; v < count; v++) a[i][v] = (vec){};
    for (int64_t r = 0; r < rows; r++) {
        vec b[4];
#pragma GCC unroll 4
        for (int v = 0; v < count; v++) b[v] = *(const loose *)(g + r * g_row + v * LANES);
#pragma GCC unroll 6
        for (int i = 0; i < some; i++) {
            const vec one = all(x[r * x_row + i]);
#pragma GCC unroll 4
            for (int v = 0; v < count; v++) a[i][v] += one * b[v];
        }
    }
    for (int i = 0; i < some; i++)
        for (int v = 0; v < count; v++) {
            const int n = v == count - 1 ? last : LANES;
            REAL *out = sum + i * columns + v * LANES;
            put(out, take(out, n) + a[i][v], n);
        }
}

static void outer(int some, int count, int64_t rows, const REAL *x, int64_t x_row, const REAL *g, int64_t g_row,
                  REAL *sum, int64_t columns, int last) {
    ALL_SIZED(fixed_outer, some, count, rows, x, x_row, g, g_row, sum, columns, last)
}

#define NEAR 128  // rows that are gone through at once, so that they are still in the cache for the next columns

// sum (k, columns) += x^T g for some rows of x (k) and g (columns).
static void add_outer(int64_t rows, const REAL *x, int64_t x_row, int64_t k, const REAL *g, int64_t g_row,
                      int64_t columns, REAL *sum) {
    // Vectors behind a row's last column reach into the rows below it, and of the last rows beyond what is there.
    const int64_t over = padded(columns) - columns, reach = (over + g_row - 1) / g_row;
    const int64_t sure = rows > reach ? rows - reach : 0;
    REAL end[LANES][4 * LANES];  // these rows, some columns at a time
    for (int64_t row = 0, some; row < rows; row += some) {
        some = row >= sure ? rows - row : sure - row < NEAR ? sure - row : NEAR;
        for (int64_t u = 0; u < columns; u += 4 * LANES) {
            const int64_t n = columns - u < 4 * LANES ? columns - u : 4 * LANES;
            const int count = (int)((n + LANES - 1) / LANES), last = left(columns, u + (count - 1) * LANES);
            const REAL *from = g + row * g_row + u;
            int64_t apart = g_row;
            if (row >= sure) {
                for (int64_t r = 0; r < some; r++) memcpy(end[r], from + r * g_row, (size_t)n * sizeof(REAL));
                from = end[0], apart = 4 * LANES;
            }
            for (int64_t i = 0; i < k; i += BLOCK)
                outer(k - i < BLOCK ? (int)(k - i) : BLOCK, count, some, x + row * x_row + i, x_row, from, apart,
                      sum + i * columns + u, columns, last);
        }
    }
}

static void add_rows(int64_t rows, const REAL *g, int64_t columns, REAL *sum) {
    VECTORS(u, columns) {
        const int n = left(columns, u);
        vec a = take(sum + u, n);
        for (int64_t r = 0; r < rows; r++) a += take(g + r * columns + u, n);
        put(sum + u, a, n);
    }
}

// --- many sums at once -----------------------------------------------------------------------------------------------

#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLES
#endif
#endif

#ifdef SHUFFLES
#if BYTES == 64 && !defined(DOUBLE)
#define EVEN(a, b) __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
#define ODD(a, b) __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)
#elif (BYTES == 64) || (BYTES == 32 && !defined(DOUBLE))
#define EVEN(a, b) __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14)
#define ODD(a, b) __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15)
#elif (BYTES == 32) || !defined(DOUBLE)
#define EVEN(a, b) __builtin_shufflevector(a, b, 0, 2, 4, 6)
#define ODD(a, b) __builtin_shufflevector(a, b, 1, 3, 5, 7)
#else
#define EVEN(a, b) __builtin_shufflevector(a, b, 0, 2)
#define ODD(a, b) __builtin_shufflevector(a, b, 1, 3)
#endif
#endif

// The sums of LANES vectors, one in each place; `part` is overwritten.
INLINE vec totals(vec *part) {
#ifdef SHUFFLES
    for (int count = LANES; count > 1; count /= 2)  // neighbours are added, and half as many vectors remain
        for (int i = 0; i < count / 2; i++) {
            const vec a = part[2 * i], b = part[2 * i + 1];
            part[i] = EVEN(a, b) + ODD(a, b);
        }
    return part[0];
#else
    vec sums;
    for (int l = 0; l < LANES; l++) sums[l] = total(part[l]);
    return sums;
#endif
}

INLINE REAL sum_of(vec a) {
#ifdef SHUFFLES
    for (int width = LANES; width > 1; width /= 2) a = EVEN(a, a) + ODD(a, a);
    return a[0];
#else
    return total(a);
#endif
}

// out[i] = scale * total(part[i]) for `count` vectors; there is room up to a multiple of LANES, in both.
INLINE void write_totals(REAL *out, vec *part, int64_t count, REAL scale) {
    for (int64_t i = count; i < padded(count); i++) part[i] = (vec){};
    VECTORS(i, count) put(out + i, scale * totals(part + i), LANES);
}

// The products of which a dot product is the sum, as one vector.
INLINE vec products(const REAL *a, const REAL *b, int64_t size) {
    vec sum = {};
    VECTORS(u, size) sum += take(a + u, left(size, u)) * take(b + u, left(size, u));
    return sum;
}

INLINE void add_scaled(REAL *out, REAL scale, const REAL *a, int64_t size) {
    VECTORS(u, size) {
        const int n = left(size, u);
        put(out + u, take(out + u, n) + scale * take(a + u, n), n);
    }
}

INLINE vec dropped(const uint8_t *mask, int64_t at, double scale, int n) {
    return mask ? load_flags(mask + at, n) * (REAL)scale : all(1);
}

// e^x for x that is not positive, right to its own last bits: the order of small numbers decides who wins, and exp_ is
// right to those of 1 only. 0 where no normal number is near.
#ifdef DOUBLE
#define LEAST 708
#else
#define LEAST 87
#endif
INLINE vec power(vec x) {
    const vec low = all(-LEAST);
    vec r, scale;
    split(SELECT(x < low, low, x), &r, &scale);
    return SELECT(x < low, (vec){}, scale + scale * (reduced(r) * r * r + r));
}

// Where a step is kept.
INLINE int64_t kept(const struct Layer *l, int64_t t) { return l->keep ? t : 0; }
INLINE int64_t kv_size(const struct Layer *l) { return l->heads * (l->key + l->value); }
INLINE int64_t talk_size(const struct Layer *l) { return l->comm_heads * (2 * l->comm_key + l->comm_value); }
INLINE REAL *keys_at(const struct Layer *l, const struct Stack *s, int64_t slot, int64_t t, int64_t b) {
    const struct Slot *one = &l->slot[slot];
    const int64_t at = l->keep ? t : one->source < 0 ? t % AHEAD : 0;
    return one->kv + (at * s->cell.batch + b) * kv_size(l);
}
INLINE const REAL *h_before(const struct Layer *l, const struct Stack *s, int64_t t, int64_t b) {
    const int64_t row = l->modules * l->size;
    return t ? l->h + ((t - 1) * s->cell.batch + b) * row : l->h0 + b * row;
}
INLINE const REAL *c_before(const struct Layer *l, const struct Stack *s, int64_t t, int64_t b) {
    const int64_t row = l->modules * l->size;
    return t ? l->c + (kept(l, t - 1) * s->cell.batch + b) * row : l->c0 + b * row;
}
// What a slot reads at a step: the input, the new state of a layer below, or the old one of a layer above.
INLINE const REAL *read_rows(const struct Stack *s, int64_t layer, const struct Slot *slot, int64_t t, int64_t b) {
    if (slot->source < 0) return slot->x + (t * s->cell.batch + b) * slot->size;
    const struct Layer *other = &s->layers[slot->source];
    return slot->source < layer ? other->h + (t * s->cell.batch + b) * slot->size : h_before(other, s, t, b);
}
