// Relevancy screening and full self-attention around an LSTM, a GRU or a plain network: whole sequences, both ways.
//
// The short-term buffer is a window of the trajectory, the relevant set a list of places in it; relevances lie beside
// the trajectory and stay where they are when an entry moves from the buffer to the set. Without a set and with a window
// of any length this is full self-attention. Rows never meet, so threads take ranges of rows.

#include "attention.h"

struct Screening {
    struct Attention attention;
    int64_t prefix, window, places;  // entries before the sequence; of the buffer; of the set
    int64_t normalised, reads_state; // relevance in units of even weights; the output is s, else h
    double share;                    // s = share * (h + attended)
    const int32_t *first;            // (B): the buffer's first entry before the sequence; `prefix` when it is empty
    int32_t *members;                // (B, places): the set, -1 for empty places; in and out
    int32_t *kept;                   // (T, B, places): the set of every step, or NULL
    REAL *relevance;                 // (B, room)
    REAL *states, *last;             // (T, B, H), which is `fed` of the cell; (B, H): s after each row's last step
};

// The entries of a step, the buffer's first; their number, and that of the buffer's.
INLINE int64_t entries(const struct Screening *s, int64_t t, int64_t b, const int32_t *members, int32_t *list,
                       int64_t *short_term) {
    const int64_t newest = s->prefix + t, oldest = newest - s->window + 1;
    int64_t count = 0;
    for (int64_t p = oldest < s->first[b] ? s->first[b] : oldest; p <= newest; p++) list[count++] = (int32_t)p;
    *short_term = count;
    for (int64_t j = 0; j < s->places; j++)
        if (members[j] >= 0) list[count++] = members[j];
    return count;
}

// The entry that leaves the buffer takes a free place, or the first of the least relevant when it is more relevant.
static void screen(const struct Screening *s, int64_t t, int64_t b) {
    const int64_t leaving = s->prefix + t - s->window;
    if (!s->places || leaving < s->first[b]) return;
    const REAL *relevance = s->relevance + b * s->attention.room;
    int32_t *members = s->members + b * s->places;
    int64_t place = 0;
    REAL least = 0;
    for (int64_t j = 0; j < s->places; j++) {
        const REAL one = members[j] < 0 ? -(REAL)__builtin_inf() : relevance[members[j]];
        if (j == 0 || one < least) least = one, place = j;
    }
    if (relevance[leaving] > least) members[place] = (int32_t)leaving;
}

static void screening_row(const struct Screening *s, int64_t t, int64_t b) {
    const struct Attention *a = &s->attention;
    const int64_t H = a->cell.hidden, B = a->cell.batch, newest = s->prefix + t;
    REAL *state = s->states + (t * B + b) * H;
    if (t >= length(&a->cell, b)) {
        memset(state, 0, (size_t)H * sizeof(REAL));
        memset(a->values + (b * a->room + newest) * H, 0, (size_t)H * sizeof(REAL));
        return;
    }
    screen(s, t, b);
    const REAL *h = output(&a->cell, t, b);
    memcpy(a->values + (b * a->room + newest) * H, h, (size_t)H * sizeof(REAL));
    int32_t *list = a->list + b * a->room;
    const int32_t *members = s->members + b * s->places;
    int64_t short_term;
    const int64_t count = entries(s, t, b, members, list, &short_term);
    REAL *weight = a->weights + a->offset[t] + b * a->width[t];
    score_entries(a, b, a->queries + t * a->query_step + b * a->size, list, count, weight);
    softmax(weight, count);
    REAL *relevance = s->relevance + b * a->room;
    relevance[newest] = 0;
    for (int64_t j = 0; j < short_term; j++) relevance[list[j]] += s->normalised ? weight[j] * (REAL)count : weight[j];
    if (s->kept && s->places)
        memcpy(s->kept + (t * B + b) * s->places, members, (size_t)s->places * sizeof(int32_t));
    attend(a, b, list, count, weight, state);
    for (int64_t u = 0; u < H; u++) state[u] = (REAL)s->share * (h[u] + state[u]);
    if (t == length(&a->cell, b) - 1) memcpy(s->last + b * H, state, (size_t)H * sizeof(REAL));
}

void screening_forward(const struct Screening *s) {
    const struct Attention *a = &s->attention;
    const struct Sequence *c = &a->cell;
    const int64_t H = c->hidden, A = a->size;
    for (int64_t t = 0; t < c->steps; t++) {
        forward_gates(a, t);
        times(c, a->queries + t * a->query_step, A, NULL, 0, before(c, t, 0), before_row(c, t), a->query, H, A);
        times(c, a->keys + (s->prefix + t) * A, a->room * A, NULL, 0, output(c, t, 0), H, a->key, H, A);
        for (int64_t b = c->first_row; b < c->end_row; b++) screening_row(s, t, b);
    }
}

static void screening_row_back(const struct Screening *s, int64_t t, int64_t b) {
    const struct Attention *a = &s->attention;
    const int64_t H = a->cell.hidden, B = a->cell.batch, A = a->size, newest = s->prefix + t;
    REAL *ds = a->cell.dh + b * H, *dh = a->grad_values + (b * a->room + newest) * H;
    REAL *grad_query = a->grad_queries + ((t - a->cell.begin) * B + b) * A;
    if (t >= length(&a->cell, b)) {
        memset(grad_query, 0, (size_t)A * sizeof(REAL));
        return;
    }
    if (a->grad_out) add(s->reads_state ? ds : dh, a->grad_out + (t * B + b) * H, H);
    for (int64_t u = 0; u < H; u++) ds[u] *= (REAL)s->share;
    add(dh, ds, H);
    int32_t *list = a->list + b * a->room;
    REAL *grad = a->energy + b * a->room;
    int64_t short_term;
    const int64_t count = entries(s, t, b, s->kept + (t * B + b) * s->places, list, &short_term);
    const REAL *weight = a->weights + a->offset[t] + b * a->width[t];
    attend_back(a, b, list, count, weight, ds, grad);
    softmax_back(weight, grad, count);
    score_back(a, b, a->queries + t * a->query_step + b * A, list, count, grad, grad_query);
}

// dh of the cell carries the gradient of s.
void screening_backward(const struct Screening *s) {
    const struct Attention *a = &s->attention;
    const struct Sequence *c = &a->cell;
    const int64_t H = c->hidden, B = c->batch, A = a->size;
    for (int64_t t = c->end - 1; t >= c->begin; t--) {
        const int64_t newest = s->prefix + t;
        for (int64_t b = c->first_row; b < c->end_row; b++) screening_row_back(s, t, b);
        // Every later use of h has been visited.
        times(c, a->arrived, H, a->grad_values + newest * H, a->room * H, a->grad_keys + newest * A, a->room * A,
              a->key_back, A, H);
        for (int64_t b = c->first_row; b < c->end_row; b++)
            if (t >= length(c, b)) memcpy(a->arrived + b * H, c->dh + b * H, (size_t)H * sizeof(REAL));
        backward_gates(a, t);
        times(c, c->dh, H, c->dh, H, a->grad_queries + (t - c->begin) * B * A, A, a->query_back, A, H);
    }
}
