// Whole sequences of an LSTM, a GRU or a plain recurrent network, with Zoneout, forward and backward.
//
// Plain C with the vector types of GCC and Clang; REAL (float or double) is given on the command line. Letters: T
// steps, B rows, I inputs, H hidden units. The loop over time is in here, so a sequence costs one call each way.
//
// A step is a product of small blocks of rows with weights that were packed once per sequence: a "panel" holds, for a
// few units, the weights of all their gates next to each other. When a block's sums are complete, the gates of these
// units are still in the first cache, so the elementwise work follows at once and nothing is written but what the backward
// pass needs. Rows never meet, so threads take ranges of rows.
//
// No -ffast-math: NaN and infinity propagate as in torch.

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

struct Sequence {
    int64_t steps, batch, inputs, hidden, relu;
    int64_t first_row, end_row;        // the rows of this call
    int64_t begin, end;                // backward: the steps of this call
    int64_t keeps_memory;              // forward: c of every step is kept
    double rate_h, rate_c;             // weight of the old value where there is no mask
    const int64_t *lengths;            // (B) or NULL
    const uint8_t *keep_h, *keep_c;    // (T, B, H), 1 = keep the old value, or NULL
    const REAL *x, *h0, *c0;           // (T, B, I), (B, H), (B, H)
    const REAL *wx, *wh, *bias;        // packed by pack()
    REAL *saved;                       // activations of every step, or NULL when there will be no backward
    REAL *out, *c, *hn, *cn;           // (T, B, H), (T, B, H) or (B, H), (B, H), (B, H)
    const REAL *grad_out, *back;       // (T, B, H) or NULL; packed by pack_back()
    REAL *grad_gates;                  // (end - begin, B, gates of the backward pass, H)
    REAL *dh, *dc;                     // (B, H): gradients of the state, in and out
    REAL *db;                          // (gates of the backward pass, H): sums over rows and steps, added to
};

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

// The block of rows that starts at `row`: all blocks of a call are of about equal size.
INLINE int block(const struct Sequence *s, int64_t row) {
    const int64_t left = s->end_row - row, blocks = (left + BLOCK - 1) / BLOCK;
    return (int)((left + blocks - 1) / blocks);
}

INLINE int64_t length(const struct Sequence *s, int64_t row) { return s->lengths ? s->lengths[row] : s->steps; }
INLINE int units(const struct Sequence *s, int64_t u) {
    return s->hidden - u < LANES ? (int)(s->hidden - u) : LANES;
}
INLINE vec weight(const uint8_t *mask, double rate, int64_t at, int n) {
    return mask ? load_flags(mask + at, n) : all((REAL)rate);
}
INLINE const REAL *before(const struct Sequence *s, int64_t t) {  // h before step t
    return t ? s->out + (t - 1) * s->batch * s->hidden : s->h0;
}

// Writes h of one row and one vector of units; at the row's last step it is the final state too.
INLINE void emit(const struct Sequence *s, int64_t t, int64_t row, int64_t u, int n, vec fresh, vec old) {
    int64_t at = (t * s->batch + row) * s->hidden + u;
    vec h = hold(fresh, old, weight(s->keep_h, s->rate_h, at, n));
    store(s->out + at, h, n);
    if (t == length(s, row) - 1) store(s->hn + row * s->hidden + u, h, n);
}

// --- LSTM: gates i, f, g, o; panels of LANES units; saved (T, panels, B, 4, LANES) -----------------------------------

static void lstm_block(int rows, const struct Sequence *s, int64_t t, int64_t panel, int64_t row) {
    const int64_t H = s->hidden, I = s->inputs, B = s->batch, u = panel * LANES;
    const REAL *h = before(s, t);
    const int n = units(s, u);
    vec a[BLOCK][4];
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < 4; g++) a[r][g] = *(const loose *)(s->bias + (panel * 4 + g) * LANES);
    product(rows, 4, a, 3, s->x + (t * B + row) * I, I, s->wx + panel * I * 4 * LANES, I);
    product(rows, 4, a, 3, h + row * H, H, s->wh + panel * H * 4 * LANES, H);
    for (int r = 0; r < rows; r++) {
        const int64_t b = row + r, at = (t * B + b) * H + u;
        if (t >= length(s, b)) {
            store(s->out + at, (vec){}, n);
            continue;
        }
        vec i = sigmoid(a[r][0]), f = sigmoid(a[r][1]), g = tanh_(a[r][2]), o = sigmoid(a[r][3]);
        const REAL *old = t ? (s->keeps_memory ? s->c + at - B * H : s->c + b * H + u) : s->c0 + b * H + u;
        vec memory = load(old, n), fresh = f * memory + i * g;
        vec c = hold(fresh, memory, weight(s->keep_c, s->rate_c, at, n));
        store(s->keeps_memory ? s->c + at : s->c + b * H + u, c, n);
        if (s->keeps_memory && t == length(s, b) - 1) store(s->cn + b * H + u, c, n);
        emit(s, t, b, u, n, o * tanh_(fresh), load(h + b * H + u, n));
        if (s->saved) {
            loose *keep = (loose *)(s->saved + ((t * ((H + LANES - 1) / LANES) + panel) * B + b) * 4 * LANES);
            keep[0] = i, keep[1] = f, keep[2] = g, keep[3] = o;
        }
    }
}

void lstm_forward(const struct Sequence *s) {
    for (int64_t t = 0; t < s->steps; t++)
        for (int64_t panel = 0; panel * LANES < s->hidden; panel++)
            for (int64_t row = s->first_row; row < s->end_row; row += block(s, row))
                lstm_block(block(s, row), s, t, panel, row);
}

// One row, one vector of units: dh has arrived from the step behind; the gradients of the gates go out.
static void lstm_units(const struct Sequence *s, int64_t t, int64_t b, int64_t u, int n, vec dh) {
    const int64_t H = s->hidden, B = s->batch, at = (t * B + b) * H + u;
    REAL *out = s->grad_gates + ((t - s->begin) * B + b) * 4 * H + u;
    if (t >= length(s, b)) {
        for (int g = 0; g < 4; g++) store(out + g * H, (vec){}, n);
        store(s->dh + b * H + u, dh, n);
        return;
    }
    const loose *keep = (const loose *)(s->saved + ((t * ((H + LANES - 1) / LANES) + u / LANES) * B + b) * 4 * LANES);
    const vec i = keep[0], f = keep[1], g = keep[2], o = keep[3];
    const vec memory = load(t ? s->c + at - B * H : s->c0 + b * H + u, n), th = tanh_(f * memory + i * g);
    vec e = dh, dc = load(s->dc + b * H + u, n);
    if (s->grad_out) e += load(s->grad_out + at, n);
    const vec kept_h = weight(s->keep_h, s->rate_h, at, n) * e, kept_c = weight(s->keep_c, s->rate_c, at, n) * dc;
    e -= kept_h;
    const vec d = dc - kept_c + e * o * (1 - th * th);
    const vec di = d * g * i * (1 - i), df = d * memory * f * (1 - f), dg = d * i * (1 - g * g);
    const vec dout = e * th * o * (1 - o);
    store(out, di, n), store(out + H, df, n), store(out + 2 * H, dg, n), store(out + 3 * H, dout, n);
    store(s->dc + b * H + u, kept_c + d * f, n);
    store(s->dh + b * H + u, kept_h, n);
    REAL *db = s->db + u;
    store(db, load(db, n) + di, n), store(db + H, load(db + H, n) + df, n);
    store(db + 2 * H, load(db + 2 * H, n) + dg, n), store(db + 3 * H, load(db + 3 * H, n) + dout, n);
}

// --- GRU: gates r, z, n; panels of LANES units; saved (T, panels, B, 4, LANES): r, z, n and q = W_hn h + b_hn --------

static void gru_block(int rows, const struct Sequence *s, int64_t t, int64_t panel, int64_t row) {
    const int64_t H = s->hidden, I = s->inputs, B = s->batch, u = panel * LANES;
    const REAL *h = before(s, t);
    const int n = units(s, u);
    vec a[BLOCK][4];
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < 4; g++) a[r][g] = *(const loose *)(s->bias + (panel * 4 + g) * LANES);
    product(rows, 3, a, 2, s->x + (t * B + row) * I, I, s->wx + panel * I * 3 * LANES, I);
    product(rows, 3, a, 3, h + row * H, H, s->wh + panel * H * 3 * LANES, H);
    for (int k = 0; k < rows; k++) {
        const int64_t b = row + k;
        if (t >= length(s, b)) {
            store(s->out + (t * B + b) * H + u, (vec){}, n);
            continue;
        }
        vec r = sigmoid(a[k][0]), z = sigmoid(a[k][1]), q = a[k][3], fresh = tanh_(a[k][2] + r * q);
        vec old = load(h + b * H + u, n);
        emit(s, t, b, u, n, hold(fresh, old, z), old);
        if (s->saved) {
            loose *keep = (loose *)(s->saved + ((t * ((H + LANES - 1) / LANES) + panel) * B + b) * 4 * LANES);
            keep[0] = r, keep[1] = z, keep[2] = fresh, keep[3] = q;
        }
    }
}

void gru_forward(const struct Sequence *s) {
    for (int64_t t = 0; t < s->steps; t++)
        for (int64_t panel = 0; panel * LANES < s->hidden; panel++)
            for (int64_t row = s->first_row; row < s->end_row; row += block(s, row))
                gru_block(block(s, row), s, t, panel, row);
}

static void gru_units(const struct Sequence *s, int64_t t, int64_t b, int64_t u, int count, vec dh) {
    const int64_t H = s->hidden, B = s->batch, at = (t * B + b) * H + u;
    REAL *out = s->grad_gates + ((t - s->begin) * B + b) * 4 * H + u;
    if (t >= length(s, b)) {
        for (int g = 0; g < 4; g++) store(out + g * H, (vec){}, count);
        store(s->dh + b * H + u, dh, count);
        return;
    }
    const loose *keep = (const loose *)(s->saved + ((t * ((H + LANES - 1) / LANES) + u / LANES) * B + b) * 4 * LANES);
    const vec r = keep[0], z = keep[1], n = keep[2], q = keep[3];
    vec e = dh;
    if (s->grad_out) e += load(s->grad_out + at, count);
    const vec kept = weight(s->keep_h, s->rate_h, at, count) * e;
    e -= kept;
    const vec dz = e * (load(before(s, t) + b * H + u, count) - n) * z * (1 - z);
    const vec dn = e * (1 - z) * (1 - n * n), dr = dn * q * r * (1 - r), dq = dn * r;
    store(out, dr, count), store(out + H, dz, count), store(out + 2 * H, dn, count), store(out + 3 * H, dq, count);
    store(s->dh + b * H + u, kept + e * z, count);
    REAL *db = s->db + u;
    store(db, load(db, count) + dr, count), store(db + H, load(db + H, count) + dz, count);
    store(db + 2 * H, load(db + 2 * H, count) + dn, count), store(db + 3 * H, load(db + 3 * H, count) + dq, count);
}

// --- plain: panels of 4 * LANES units; saved (T, B, H): the values before Zoneout ------------------------------------

static void rnn_block(int rows, const struct Sequence *s, int64_t t, int64_t panel, int64_t row) {
    const int64_t H = s->hidden, I = s->inputs, B = s->batch;
    const REAL *h = before(s, t);
    vec a[BLOCK][4];
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < 4; g++) a[r][g] = *(const loose *)(s->bias + (panel * 4 + g) * LANES);
    product(rows, 4, a, 3, s->x + (t * B + row) * I, I, s->wx + panel * I * 4 * LANES, I);
    product(rows, 4, a, 3, h + row * H, H, s->wh + panel * H * 4 * LANES, H);
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < 4; v++) {
            const int64_t b = row + r, u = (panel * 4 + v) * LANES;
            if (u >= H) break;
            const int n = units(s, u);
            if (t >= length(s, b)) {
                store(s->out + (t * B + b) * H + u, (vec){}, n);
                continue;
            }
            vec fresh = s->relu ? SELECT(a[r][v] < 0, (vec){}, a[r][v]) : tanh_(a[r][v]);
            emit(s, t, b, u, n, fresh, load(h + b * H + u, n));
            if (s->saved) store(s->saved + (t * B + b) * H + u, fresh, n);
        }
}

void rnn_forward(const struct Sequence *s) {
    for (int64_t t = 0; t < s->steps; t++)
        for (int64_t panel = 0; panel * 4 * LANES < s->hidden; panel++)
            for (int64_t row = s->first_row; row < s->end_row; row += block(s, row))
                rnn_block(block(s, row), s, t, panel, row);
}

static void rnn_units(const struct Sequence *s, int64_t t, int64_t b, int64_t u, int n, vec dh) {
    const int64_t H = s->hidden, B = s->batch, at = (t * B + b) * H + u;
    REAL *out = s->grad_gates + ((t - s->begin) * B + b) * H + u;
    if (t >= length(s, b)) {
        store(out, (vec){}, n);
        store(s->dh + b * H + u, dh, n);
        return;
    }
    const vec fresh = load(s->saved + at, n);
    vec e = dh;
    if (s->grad_out) e += load(s->grad_out + at, n);
    const vec kept = weight(s->keep_h, s->rate_h, at, n) * e;
    e -= kept;
    const vec d = s->relu ? SELECT(fresh <= 0, (vec){}, e) : e * (1 - fresh * fresh);
    store(out, d, n);
    store(s->dh + b * H + u, kept, n);
    store(s->db + u, load(s->db + u, n) + d, n);
}

// --- backward: at every step a product with the gradients of the step behind, then the step's own elementwise part ---

static void lstm_behind(int rows, int count, vec (*a)[4], int64_t H, const REAL *g, const REAL *w) {
    product(rows, count, a, count - 1, g, 4 * H, w, 4 * H);
}

// The gradients lie as r, z, n, q; the recurrent weights belong to r, z and q.
static void gru_behind(int rows, int count, vec (*a)[4], int64_t H, const REAL *g, const REAL *w) {
    product(rows, count, a, count - 1, g, 4 * H, w, 2 * H);
    product(rows, count, a, count - 1, g + 3 * H, 4 * H, w + 2 * H * count * LANES, H);
}

static void rnn_behind(int rows, int count, vec (*a)[4], int64_t H, const REAL *g, const REAL *w) {
    product(rows, count, a, count - 1, g, H, w, H);
}

// `gates` are those of grad_gates, `used` those that meet the recurrent weights. After the steps [begin, end) comes one
// more product, so that dh is complete and a later call can go on from there.
#define BACKWARD(cell, gates, used)                                                                                \
    void cell##_backward(const struct Sequence *s) {                                                               \
        const int64_t H = s->hidden;                                                                               \
        for (int64_t t = s->end - 1; t >= s->begin - 1; t--)                                                       \
            for (int64_t u = 0; u < H; u += 4 * LANES)                                                             \
                for (int64_t row = s->first_row; row < s->end_row; row += block(s, row)) {                         \
                    const int rows = block(s, row);                                                                \
                    const int count = H - u < 4 * LANES ? (int)((H - u + LANES - 1) / LANES) : 4;                  \
                    vec a[BLOCK][4];                                                                               \
                    for (int r = 0; r < rows; r++)                                                                 \
                        for (int v = 0; v < count; v++)                                                            \
                            a[r][v] = load(s->dh + (row + r) * H + u + v * LANES, units(s, u + v * LANES));        \
                    if (t + 1 < s->end)                                                                            \
                        cell##_behind(rows, count, a, H,                                                           \
                                      s->grad_gates + ((t + 1 - s->begin) * s->batch + row) * (gates) * H,         \
                                      s->back + u * (used) * H);                                                   \
                    for (int r = 0; r < rows; r++)                                                                 \
                        for (int v = 0; v < count; v++) {                                                          \
                            const int64_t unit = u + v * LANES;                                                    \
                            if (t < s->begin) store(s->dh + (row + r) * H + unit, a[r][v], units(s, unit));        \
                            else cell##_units(s, t, row + r, unit, units(s, unit), a[r][v]);                       \
                        }                                                                                          \
                }                                                                                                  \
    }

BACKWARD(lstm, 4, 4)
BACKWARD(gru, 4, 3)
BACKWARD(rnn, 1, 1)
