// Sparse attentive backtracking around an LSTM, a GRU or a plain network: whole sequences, or segments of them, both ways.
//
// All stored states are scored, and nothing is kept of that but which were chosen and what they weigh: the others have
// a gradient of exactly zero. Rows never meet, so threads take ranges of rows.

#include "attention.h"

#define EPSILON ((REAL)1e-7)  // weights that sum to nothing stay nothing

struct Reminding {
    struct Attention attention;
    int64_t cut, every;              // steps between cuts of the gradient (0: none), and between stored states
    int64_t top, rank;               // entries that may have a weight; the bar is the rank-th largest score
    int64_t most;                    // entries that are seen: the latest so many
    int64_t raw;                     // up to `top` entries the scores are the weights, without a softmax
    int64_t linear, own;             // the score is that of the entry alone; that of the present state is added
    int64_t blocked;                 // no gradient from the scores to the states
    int64_t both;                    // the output is (h, attended), else h
    int64_t replay;                  // what the segment stores is there already
    double margin;                   // added to the bar
    const int64_t *taken, *held;     // (B): steps before the sequence, entries that came with the state
    int64_t start;                   // of these steps: where the segment begins
    REAL *out;                       // (T, B, H or 2H), which is `fed` of the cell
    int32_t *chosen;                 // (T, B, rank), or (B, rank) when `kept` is 0
    int64_t kept;
    REAL *fresh;                     // (B, A): space for the keys of a step
};

// Entries of a row before step t of the segment.
INLINE int64_t stored(const struct Reminding *s, int64_t t, int64_t b) {
    const int64_t taken = s->taken[b];
    return s->held[b] + (taken + s->start + t) / s->every - taken / s->every;
}
INLINE int stores(const struct Reminding *s, int64_t t, int64_t b) {
    return (s->taken[b] + s->start + t + 1) % s->every == 0;
}
INLINE int cuts(const struct Reminding *s, int64_t t, int64_t b) {
    return s->cut && (s->taken[b] + s->start + t + 1) % s->cut == 0;
}
// How many entries the row sees, listed from the oldest.
INLINE int64_t seen(const struct Reminding *s, int64_t t, int64_t b, int32_t *list) {
    const int64_t last = stored(s, t, b), first = last > s->most ? last - s->most : 0;
    for (int64_t p = first; p < last; p++) list[p - first] = (int32_t)p;
    return last - first;
}
INLINE int32_t *choice(const struct Reminding *s, int64_t t, int64_t b) {
    return s->chosen + ((s->kept ? t * s->attention.cell.batch : 0) + b) * s->rank;
}

static REAL dot_tanh(const REAL *h, const REAL *w, int64_t size) {
    vec sum = {};
    for (int64_t u = 0; u < size; u += LANES) {
        const int n = size - u < LANES ? (int)(size - u) : LANES;
        sum += load(w + u, n) * tanh_(load(h + u, n));
    }
    return total(sum);
}

// Gradients of dot_tanh; dh may be NULL.
static void dot_tanh_back(const REAL *h, const REAL *w, int64_t size, REAL d, REAL *dh, REAL *dw) {
    for (int64_t u = 0; u < size; u += LANES) {
        const int n = size - u < LANES ? (int)(size - u) : LANES;
        const vec z = tanh_(load(h + u, n));
        store(dw + u, load(dw + u, n) + d * z, n);
        if (dh) store(dh + u, load(dh + u, n) + d * load(w + u, n) * (1 - z * z), n);
    }
}

// The `rank` largest energies, the largest first: their places go to `chosen`, they themselves to `top`.
static void choose(const struct Reminding *s, const int32_t *list, const REAL *energy, int64_t count, int32_t *chosen,
                   REAL *top) {
    int64_t found = 0;
    REAL all = 0;
    for (int64_t j = 0; j < count; j++) {
        const REAL e = energy[j];
        all += e;
        if (found == s->rank && !(e > top[found - 1])) continue;
        int64_t at = found < s->rank ? found++ : found - 1;
        for (; at && e > top[at - 1]; at--) top[at] = top[at - 1], chosen[at] = chosen[at - 1];
        top[at] = e, chosen[at] = list[j];
    }
    if (all != all) top[0] = all;  // no comparison finds NaN, but it must not be lost
}

static void reminding_row(const struct Reminding *s, int64_t t, int64_t b) {
    const struct Attention *a = &s->attention;
    const int64_t H = a->cell.hidden, B = a->cell.batch, row = a->cell.fed_row;
    int32_t *list = a->list + b * a->room;
    REAL *weight = a->weights + a->offset[t] + b * a->width[t], *energy = a->energy + b * a->room;
    const REAL *fresh = output(&a->cell, t, b);
    const int64_t count = seen(s, t, b, list);
    const int dense = count <= s->top;
    if (dense) energy = weight;
    if (s->linear) {
        const REAL own = s->own ? dot_tanh(fresh, a->score, H) : 0;
        for (int64_t j = 0; j < count; j++) energy[j] = a->keys[b * a->room + list[j]] + own;
    } else score_entries(a, b, a->queries + t * a->query_step + b * a->size, list, count, energy);
    int64_t used = count;
    if (!dense) {
        list = choice(s, t, b), used = s->rank;
        choose(s, a->list + b * a->room, energy, count, list, weight);
        const REAL bar = weight[used - 1] + (REAL)s->margin;
        REAL sum = EPSILON;
        for (int64_t j = 0; j < used; j++) {
            const REAL above = weight[j] - bar;
            weight[j] = above < 0 ? 0 : above;
            sum += weight[j];
        }
        for (int64_t j = 0; j < used; j++) weight[j] /= sum;
        weight[used] = sum;
    } else if (!s->raw) softmax(weight, count);
    REAL *h = s->out + (t * B + b) * row;
    REAL *attended = s->both ? h + H : a->arrived + b * H;
    attend(a, b, list, used, weight, attended);
    for (int64_t u = 0; u < H; u++) h[u] = fresh[u] + attended[u];
}

static void store_row(const struct Reminding *s, int64_t t, int64_t b) {
    const struct Attention *a = &s->attention;
    const int64_t H = a->cell.hidden, A = a->size, at = b * a->room + stored(s, t, b);
    const REAL *h = s->out + (t * a->cell.batch + b) * a->cell.fed_row;
    memcpy(a->values + at * H, h, (size_t)H * sizeof(REAL));
    if (s->linear) a->keys[at] = dot_tanh(h, a->score + H, H);
    else memcpy(a->keys + at * A, s->fresh + b * A, (size_t)A * sizeof(REAL));
}

void reminding_forward(const struct Reminding *s) {
    const struct Attention *a = &s->attention;
    const struct Sequence *c = &a->cell;
    const int64_t H = c->hidden, A = a->size;
    for (int64_t t = 0; t < c->steps; t++) {
        forward_gates(a, t);
        if (!s->linear)
            times(c, a->queries + t * a->query_step, A, NULL, 0, output(c, t, 0), H, a->query, H, A);
        int any = 0;
        for (int64_t b = c->first_row; b < c->end_row; b++) {
            reminding_row(s, t, b);
            any |= stores(s, t, b);
        }
        if (!any || s->replay) continue;
        if (!s->linear)
            times(c, s->fresh, A, NULL, 0, s->out + t * c->batch * c->fed_row, c->fed_row, a->key, H, A);
        for (int64_t b = c->first_row; b < c->end_row; b++)
            if (stores(s, t, b)) store_row(s, t, b);
    }
}

// What reaches h from later steps is in dh of the cell; what reaches it as an entry is added, but for the key's part.
static void collect(const struct Reminding *s, int64_t t, int64_t b) {
    const struct Attention *a = &s->attention;
    const int64_t H = a->cell.hidden, A = a->size, row = a->cell.fed_row, at = b * a->room + stored(s, t, b);
    REAL *dh = a->cell.dh + b * H;
    if (a->grad_out) add(dh, a->grad_out + (t * a->cell.batch + b) * row, H);
    if (!s->linear) memset(s->fresh + b * A, 0, (size_t)A * sizeof(REAL));
    if (!stores(s, t, b)) return;
    add(dh, a->grad_values + at * H, H);
    if (s->linear)
        dot_tanh_back(s->out + (t * a->cell.batch + b) * row, a->score + H, H, a->grad_keys[at], s->blocked ? NULL : dh,
                      a->grad_score + H);
    else memcpy(s->fresh + b * A, a->grad_keys + at * A, (size_t)A * sizeof(REAL));
}

static void reminding_row_back(const struct Reminding *s, int64_t t, int64_t b) {
    const struct Attention *a = &s->attention;
    const int64_t H = a->cell.hidden, B = a->cell.batch, A = a->size;
    int32_t *list = a->list + b * a->room;
    const REAL *weight = a->weights + a->offset[t] + b * a->width[t], *dh = a->cell.dh + b * H;
    REAL *grad = a->energy + b * a->room, *d = a->arrived + b * H;
    REAL *grad_query = s->linear ? NULL : a->grad_queries + ((t - a->cell.begin) * B + b) * A;
    memcpy(d, dh, (size_t)H * sizeof(REAL));
    if (a->grad_out && s->both) add(d, a->grad_out + (t * B + b) * 2 * H + H, H);
    int64_t count = seen(s, t, b, list);
    const int dense = count <= s->top;
    if (!dense) list = choice(s, t, b), count = s->rank;
    attend_back(a, b, list, count, weight, d, grad);
    if (!dense) {
        REAL mean = 0, bar = 0;
        for (int64_t j = 0; j < count; j++) mean += weight[j] * grad[j];
        for (int64_t j = 0; j < count; j++) {
            grad[j] = weight[j] == 0 ? 0 : (grad[j] - mean) / weight[count];
            bar += grad[j];
        }
        grad[count - 1] -= bar;
    } else if (!s->raw) softmax_back(weight, grad, count);
    memcpy(d, dh, (size_t)H * sizeof(REAL));
    if (!s->linear) {
        score_back(a, b, a->queries + t * a->query_step + b * A, list, count, grad, grad_query);
        return;
    }
    REAL own = 0;
    for (int64_t j = 0; j < count; j++) a->grad_keys[b * a->room + list[j]] += grad[j], own += grad[j];
    if (s->own) dot_tanh_back(output(&a->cell, t, b), a->score, H, own, s->blocked ? NULL : d, a->grad_score);
}

// dh of the cell carries the gradient of h.
void reminding_backward(const struct Reminding *s) {
    const struct Attention *a = &s->attention;
    const struct Sequence *c = &a->cell;
    const int64_t H = c->hidden, A = a->size;
    for (int64_t t = c->end - 1; t >= c->begin; t--) {
        int any = 0;
        for (int64_t b = c->first_row; b < c->end_row; b++) {
            collect(s, t, b);
            any |= stores(s, t, b);
        }
        if (any && !s->linear && !s->blocked) times(c, c->dh, H, c->dh, H, s->fresh, A, a->key_back, A, H);
        for (int64_t b = c->first_row; b < c->end_row; b++) reminding_row_back(s, t, b);
        if (!s->linear && !s->blocked)
            times(c, a->arrived, H, a->arrived, H, a->grad_queries + (t - c->begin) * c->batch * A, A, a->query_back, A,
                  H);
        backward_gates(a, t);
        for (int64_t b = c->first_row; b < c->end_row; b++)
            if (cuts(s, t, b)) {
                memset(c->dh + b * H, 0, (size_t)H * sizeof(REAL));
                if (c->dc) memset(c->dc + b * H, 0, (size_t)H * sizeof(REAL));
            }
    }
}
