// What the attention wrappers share: rows times packed weights, additive scores over listed entries, and their gradients.
//
// Every entry that is attended to is a row of the trajectory, which is kept once: values (B, room, H) and keys
// (B, room, A), first what came with the state, then what the sequence adds. A step knows its entries by their places in
// there, so nothing is copied, and the gradients of values and keys are added up in place. Letters as in gates.h; A is
// the size of keys.

#include "gates.h"

struct Attention {
    struct Sequence cell;
    int64_t kind, size, room;               // which of `cells`; A; places of a row
    const REAL *key, *query, *score;        // (H, A) twice, packed by pack_back(); (A)
    const REAL *key_back, *query_back;      // (A, H) twice, packed by pack_back()
    REAL *values, *keys;                    // (B, room, H), (B, room, A)
    REAL *queries;                          // (T, B, A) or, with query_step 0, (B, A)
    int64_t query_step;
    REAL *weights;                          // attention, row b of step t at offset[t] + b * width[t]
    const int64_t *offset, *width;          // (T)
    int32_t *list;                          // (B, room): space
    REAL *energy;                           // (B, room): space
    REAL *arrived;                          // (B, H): space for the gradient of h
    const REAL *grad_out;                   // (T, B, outputs) or NULL
    REAL *grad_values, *grad_keys;          // as values and keys, added to
    REAL *grad_queries;                     // (end - begin, B, A)
    REAL *grad_score;                       // as score, added to
};

// out[b] = add[b] + a[b] w for the rows of this call; w is (k, width), packed by pack_back(). `add` may be NULL, or out.
static void times(const struct Sequence *s, REAL *out, int64_t out_row, const REAL *add, int64_t add_row, const REAL *a,
                  int64_t a_row, const REAL *w, int64_t k, int64_t width) {
    for (int64_t u = 0; u < width; u += 4 * LANES) {
        const int count = width - u < 4 * LANES ? (int)((width - u + LANES - 1) / LANES) : 4;
        const int last = (int)(width - u - (count - 1) * LANES) < LANES ? (int)(width - u - (count - 1) * LANES) : LANES;
        for (int64_t row = s->first_row; row < s->end_row; row += block(s, row)) {
            const int rows = block(s, row);
            vec sum[BLOCK][4];
            for (int r = 0; r < rows; r++)
                for (int v = 0; v < count; v++)
                    sum[r][v] = add ? load(add + (row + r) * add_row + u + v * LANES, v == count - 1 ? last : LANES) : (vec){};
            product(rows, count, sum, count - 1, a + row * a_row, a_row, w + u * k, k);
            for (int r = 0; r < rows; r++)
                for (int v = 0; v < count; v++)
                    store(out + (row + r) * out_row + u + v * LANES, sum[r][v], v == count - 1 ? last : LANES);
        }
    }
}

static void forward_gates(const struct Attention *s, int64_t t) {
    const struct Gates *gates = &cells[s->kind];
    for (int64_t panel = 0; panel * gates->width * LANES < s->cell.hidden; panel++)
        for (int64_t row = s->cell.first_row; row < s->cell.end_row; row += block(&s->cell, row))
            gates->block(block(&s->cell, row), &s->cell, t, panel, row);
}

// From the gradients of h in `arrived` to those of the gates, of c, and of what the cell was fed (in dh).
static void backward_gates(const struct Attention *s, int64_t t) {
    const struct Sequence *c = &s->cell;
    const struct Gates *gates = &cells[s->kind];
    const int64_t H = c->hidden;
    for (int64_t b = c->first_row; b < c->end_row; b++)
        for (int64_t u = 0; u < H; u += LANES)
            gates->units(c, t, b, u, units(c, u), load(s->arrived + b * H + u, units(c, u)));
    const REAL *g = c->grad_gates + (t - c->begin) * c->batch * gates->gates * H;
    for (int64_t u = 0; u < H; u += 4 * LANES) {
        const int count = H - u < 4 * LANES ? (int)((H - u + LANES - 1) / LANES) : 4;
        for (int64_t row = c->first_row; row < c->end_row; row += block(c, row)) {
            const int rows = block(c, row);
            vec sum[BLOCK][4];
            for (int r = 0; r < rows; r++)
                for (int v = 0; v < count; v++)
                    sum[r][v] = load(c->dh + (row + r) * H + u + v * LANES, units(c, u + v * LANES));
            gates->behind(rows, count, sum, H, g + row * gates->gates * H, c->back + u * gates->used * H);
            for (int r = 0; r < rows; r++)
                for (int v = 0; v < count; v++)
                    store(c->dh + (row + r) * H + u + v * LANES, sum[r][v], units(c, u + v * LANES));
        }
    }
}

// --- one row ---------------------------------------------------------------------------------------------------------

INLINE void add(REAL *to, const REAL *from, int64_t size) {
    for (int64_t u = 0; u < size; u++) to[u] += from[u];
}

// energy[j] = score . tanh(key of entry j + query)
static void score_entries(const struct Attention *s, int64_t b, const REAL *query, const int32_t *list, int64_t count,
                          REAL *energy) {
    const int64_t A = s->size, whole = A / LANES * LANES;
    const int rest = (int)(A - whole);
    for (int64_t j = 0; j < count; j++) {
        const REAL *key = s->keys + (b * s->room + list[j]) * A;
        vec sum = {};
#pragma GCC unroll 4
        for (int64_t u = 0; u < whole; u += LANES)
            sum += load(s->score + u, LANES) * tanh_(load(key + u, LANES) + load(query + u, LANES));
        if (rest) sum += load(s->score + whole, rest) * tanh_(load(key + whole, rest) + load(query + whole, rest));
        energy[j] = total(sum);
    }
}

// Gradients of keys, query and score from those of the energies.
static void score_back(const struct Attention *s, int64_t b, const REAL *query, const int32_t *list, int64_t count,
                       const REAL *grad, REAL *grad_query) {
    const int64_t A = s->size;
    const REAL *keys = s->keys + b * s->room * A;
    REAL *grad_keys = s->grad_keys + b * s->room * A;
    for (int64_t u = 0; u < A; u += LANES) {
        const int n = A - u < LANES ? (int)(A - u) : LANES;
        const vec q = load(query + u, n), v = load(s->score + u, n);
        vec dq = {}, dv = {};
        for (int64_t j = 0; j < count; j++) {
            const int64_t at = list[j] * A + u;
            const vec z = tanh_(load(keys + at, n) + q), d = grad[j] * v * (1 - z * z);
            store(grad_keys + at, load(grad_keys + at, n) + d, n);
            dq += d;
            dv += grad[j] * z;
        }
        store(grad_query + u, dq, n);
        store(s->grad_score + u, load(s->grad_score + u, n) + dv, n);
    }
}

static void softmax(REAL *energy, int64_t count) {
    REAL most = energy[0];
    for (int64_t j = 1; j < count; j++) most = energy[j] > most ? energy[j] : most;
    vec sum = {};
    for (int64_t j = 0; j < count; j += LANES) {
        const int n = count - j < LANES ? (int)(count - j) : LANES;
        const vec e = exp_(load(energy + j, n) - most);
        store(energy + j, e, n);
        sum += load(energy + j, n);  // again, so that what is behind the last entry counts nothing
    }
    const REAL scale = 1 / total(sum);
    for (int64_t j = 0; j < count; j++) energy[j] *= scale;
}

// to = sum of weight[j] times the value of entry j
static void attend(const struct Attention *s, int64_t b, const int32_t *list, int64_t count, const REAL *weight,
                   REAL *to) {
    const int64_t H = s->cell.hidden, whole = H / (4 * LANES) * (4 * LANES);
    const REAL *values = s->values + b * s->room * H;
    for (int64_t u = 0; u < whole; u += 4 * LANES) {
        vec sum[4] = {};
        for (int64_t j = 0; j < count; j++)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) sum[v] += weight[j] * load(values + list[j] * H + u + v * LANES, LANES);
        for (int v = 0; v < 4; v++) store(to + u + v * LANES, sum[v], LANES);
    }
    for (int64_t u = whole; u < H; u += LANES) {
        vec sum = {};
        for (int64_t j = 0; j < count; j++) sum += weight[j] * load(values + list[j] * H + u, units(&s->cell, u));
        store(to + u, sum, units(&s->cell, u));
    }
}

// grad[j] = d . value of entry j; weight[j] d is added to the gradient of the value.
static void attend_back(const struct Attention *s, int64_t b, const int32_t *list, int64_t count, const REAL *weight,
                        const REAL *d, REAL *grad) {
    const int64_t H = s->cell.hidden;
    for (int64_t j = 0; j < count; j++) {
        const int64_t at = (b * s->room + list[j]) * H;
        vec sum = {};
        for (int64_t u = 0; u < H; u += LANES) {
            const int n = units(&s->cell, u);
            const vec one = load(d + u, n);
            sum += one * load(s->values + at + u, n);
            store(s->grad_values + at + u, load(s->grad_values + at + u, n) + weight[j] * one, n);
        }
        grad[j] = total(sum);
    }
}

// From gradients of softmax's weights to those of the energies, in place.
static void softmax_back(const REAL *weight, REAL *grad, int64_t count) {
    REAL mean = 0;
    for (int64_t j = 0; j < count; j++) mean += weight[j] * grad[j];
    for (int64_t j = 0; j < count; j++) grad[j] = weight[j] * (grad[j] - mean);
}
