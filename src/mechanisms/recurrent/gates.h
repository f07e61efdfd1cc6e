// One step of an LSTM, a GRU or a plain recurrent network, with Zoneout, forward and backward, for some rows and units.
//
// Letters: T steps, B rows, I inputs, H hidden units. A step is a product of small blocks of rows with weights that were
// packed once per sequence: a "panel" holds, for a few units, the weights of all their gates next to each other. When a
// block's sums are complete, the gates of these units are still in the first cache, so the elementwise work follows at
// once and nothing is written but what the backward pass needs.

#include "vectors.h"

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
    REAL *out, *c, *hn, *cn;           // (T, B, H) or (B, H), (T, B, H) or (B, H), (B, H), (B, H)
    const REAL *fed;                   // (T, B, at least H): what the next step sees in place of h; mostly it is `out`
    int64_t out_step, fed_row;         // numbers between steps of `out` (0: one step is kept), and between rows of `fed`
    const REAL *grad_out, *back;       // (T, B, H) or NULL; packed by pack_back()
    REAL *grad_gates;                  // (end - begin, B, gates of the backward pass, H)
    REAL *dh, *dc;                     // (B, H): gradients of the state, in and out
    REAL *db;                          // (gates of the backward pass, H): sums over rows and steps, added to
};

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
// h of a row before step t, and the numbers from there to the next row's.
INLINE const REAL *before(const struct Sequence *s, int64_t t, int64_t row) {
    return t ? s->fed + ((t - 1) * s->batch + row) * s->fed_row : s->h0 + row * s->hidden;
}
INLINE int64_t before_row(const struct Sequence *s, int64_t t) { return t ? s->fed_row : s->hidden; }
INLINE REAL *output(const struct Sequence *s, int64_t t, int64_t row) {
    return s->out + t * s->out_step + row * s->hidden;
}

// Writes h of one row and one vector of units; at the row's last step it is the final state too.
INLINE void emit(const struct Sequence *s, int64_t t, int64_t row, int64_t u, int n, vec fresh, vec old) {
    int64_t at = (t * s->batch + row) * s->hidden + u;
    vec h = hold(fresh, old, weight(s->keep_h, s->rate_h, at, n));
    store(output(s, t, row) + u, h, n);
    if (t == length(s, row) - 1) store(s->hn + row * s->hidden + u, h, n);
}

// --- LSTM: gates i, f, g, o; panels of LANES units; saved (T, panels, B, 4, LANES) -----------------------------------

static void lstm_block(int rows, const struct Sequence *s, int64_t t, int64_t panel, int64_t row) {
    const int64_t H = s->hidden, I = s->inputs, B = s->batch, u = panel * LANES;
    const REAL *h = before(s, t, row);
    const int64_t apart = before_row(s, t);
    const int n = units(s, u);
    vec a[BLOCK][4];
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < 4; g++) a[r][g] = *(const loose *)(s->bias + (panel * 4 + g) * LANES);
    product(rows, 4, a, 3, s->x + (t * B + row) * I, I, s->wx + panel * I * 4 * LANES, I);
    product(rows, 4, a, 3, h, apart, s->wh + panel * H * 4 * LANES, H);
    for (int r = 0; r < rows; r++) {
        const int64_t b = row + r, at = (t * B + b) * H + u;
        if (t >= length(s, b)) {
            store(output(s, t, b) + u, (vec){}, n);
            continue;
        }
        vec i = sigmoid(a[r][0]), f = sigmoid(a[r][1]), g = tanh_(a[r][2]), o = sigmoid(a[r][3]);
        const REAL *old = t ? (s->keeps_memory ? s->c + at - B * H : s->c + b * H + u) : s->c0 + b * H + u;
        vec memory = load(old, n), fresh = f * memory + i * g;
        vec c = hold(fresh, memory, weight(s->keep_c, s->rate_c, at, n));
        store(s->keeps_memory ? s->c + at : s->c + b * H + u, c, n);
        if (s->keeps_memory && t == length(s, b) - 1) store(s->cn + b * H + u, c, n);
        emit(s, t, b, u, n, o * tanh_(fresh), load(h + r * apart + u, n));
        if (s->saved) {
            loose *keep = (loose *)(s->saved + ((t * ((H + LANES - 1) / LANES) + panel) * B + b) * 4 * LANES);
            keep[0] = i, keep[1] = f, keep[2] = g, keep[3] = o;
        }
    }
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
    const REAL *h = before(s, t, row);
    const int64_t apart = before_row(s, t);
    const int n = units(s, u);
    vec a[BLOCK][4];
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < 4; g++) a[r][g] = *(const loose *)(s->bias + (panel * 4 + g) * LANES);
    product(rows, 3, a, 2, s->x + (t * B + row) * I, I, s->wx + panel * I * 3 * LANES, I);
    product(rows, 3, a, 3, h, apart, s->wh + panel * H * 3 * LANES, H);
    for (int k = 0; k < rows; k++) {
        const int64_t b = row + k;
        if (t >= length(s, b)) {
            store(output(s, t, b) + u, (vec){}, n);
            continue;
        }
        vec r = sigmoid(a[k][0]), z = sigmoid(a[k][1]), q = a[k][3], fresh = tanh_(a[k][2] + r * q);
        vec old = load(h + k * apart + u, n);
        emit(s, t, b, u, n, hold(fresh, old, z), old);
        if (s->saved) {
            loose *keep = (loose *)(s->saved + ((t * ((H + LANES - 1) / LANES) + panel) * B + b) * 4 * LANES);
            keep[0] = r, keep[1] = z, keep[2] = fresh, keep[3] = q;
        }
    }
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
    const vec dz = e * (load(before(s, t, b) + u, count) - n) * z * (1 - z);
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
    const REAL *h = before(s, t, row);
    const int64_t apart = before_row(s, t);
    vec a[BLOCK][4];
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < 4; g++) a[r][g] = *(const loose *)(s->bias + (panel * 4 + g) * LANES);
    product(rows, 4, a, 3, s->x + (t * B + row) * I, I, s->wx + panel * I * 4 * LANES, I);
    product(rows, 4, a, 3, h, apart, s->wh + panel * H * 4 * LANES, H);
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < 4; v++) {
            const int64_t b = row + r, u = (panel * 4 + v) * LANES;
            if (u >= H) break;
            const int n = units(s, u);
            if (t >= length(s, b)) {
                store(output(s, t, b) + u, (vec){}, n);
                continue;
            }
            vec fresh = s->relu ? SELECT(a[r][v] < 0, (vec){}, a[r][v]) : tanh_(a[r][v]);
            emit(s, t, b, u, n, fresh, load(h + r * apart + u, n));
            if (s->saved) store(s->saved + (t * B + b) * H + u, fresh, n);
        }
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


// The three cells by number, for loops that serve all of them: 0 LSTM, 1 GRU, 2 plain.
struct Gates {
    void (*block)(int rows, const struct Sequence *s, int64_t t, int64_t panel, int64_t row);
    void (*units)(const struct Sequence *s, int64_t t, int64_t row, int64_t u, int n, vec dh);
    void (*behind)(int rows, int count, vec (*a)[4], int64_t H, const REAL *g, const REAL *w);
    int width;         // vectors of units in a panel
    int gates, used;   // vectors of H in grad_gates, and those of the recurrent weights
};
static const struct Gates cells[] = {
    {lstm_block, lstm_units, lstm_behind, 1, 4, 4},
    {gru_block, gru_units, gru_behind, 1, 4, 3},
    {rnn_block, rnn_units, rnn_behind, 4, 1, 1},
};
