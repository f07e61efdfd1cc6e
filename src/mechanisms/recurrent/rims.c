// Stacks of modular layers over whole sequences, forward and backward: attention to the input and to other layers with
// an empty slot, competition, the modules' own LSTM or GRU, and attention between modules.
//
// Rows never meet, so threads take rows. Everything that is a product goes through `multiply`, the rows of one module
// together; modules that lost take part only where their candidates are seen. Letters as in rims.h.

#include "rim_rows.h"

struct Space {
    REAL *x, *z, *arrived, *dy;  // (B, H dv + d), (B, at least 4 d), (B, n, d), (B, K, Hc cv): rows of this call
    int32_t *list;
};

static int64_t z_size(const struct Layer *l) {
    const int64_t gather = l->comm ? talk_size(l) + l->size : 0, gates = 4 * l->size;
    return gates > gather ? gates : gather;
}

// Numbers of `space` for each row.
int64_t space_row(const struct Layer *l) {
    return l->heads * l->value + l->size + z_size(l) + l->modules * l->size + l->active * l->comm_heads * l->comm_value;
}

static struct Space space_of(const struct Layer *l, const struct Stack *s) {
    const int64_t first = s->cell.first_row, rows = s->cell.end_row - first;
    struct Space space = {.x = l->space + first * space_row(l), .list = l->list + first};
    space.z = space.x + rows * (l->heads * l->value + l->size);
    space.arrived = space.z + rows * z_size(l);
    space.dy = space.arrived + rows * l->modules * l->size;
    return space;
}

// --- forward ---------------------------------------------------------------------------------------------------------

// What modules tell and ask each other. It is made again in the backward pass, since it is large and cheap.
static void speak(const struct Stack *s, const struct Layer *l, int64_t t) {
    const int64_t n = l->modules, d = l->size, talks = talk_size(l), first = s->cell.first_row;
    const REAL *u = l->u + (kept(l, t) * s->cell.batch + first) * n * d;
    for (int64_t k = 0; k < n; k++)
        multiply(s->cell.end_row - first, u + k * d, n * d, l->talk + k * d * padded(talks), d, talks,
                 l->qkv + (first * n + k) * talks, n * talks, NULL, 0);
}

static void layer_forward(const struct Stack *s, int64_t layer, int64_t t) {
    const struct Layer *l = &s->layers[layer];
    const struct Sequence *cell = &s->cell;
    const int64_t n = l->modules, d = l->size, K = l->active, H = l->heads, B = cell->batch, row = n * d;
    const int64_t keys = H * l->key, read = H * l->value, fed = read + d, told = l->comm_heads * l->comm_value;
    const int64_t first = cell->first_row, rows = cell->end_row - first, at = kept(l, t) * B;
    const struct Space space = space_of(l, s);
    for (int64_t i = 0; i < l->slots; i++) {
        const struct Slot *slot = &l->slot[i];
        if (slot->source >= 0)
            multiply(rows, read_rows(s, layer, slot, t, first), slot->size, slot->weight, slot->size, kv_size(l),
                     keys_at(l, s, i, t, first), kv_size(l), NULL, 0);
    }
    REAL *q = l->q, *alpha = l->alpha + at * l->slots * n * H;
    uint8_t *mask = l->mask + t * B * n;
    int32_t *chosen = l->chosen + at * K;
    for (int64_t k = 0; k < n; k++)
        multiply(rows, h_before(l, s, t, first) + k * d, row, l->query + k * d * padded(keys), d, keys,
                 q + (first * n + k) * keys, n * keys, NULL, 0);
    for (int64_t b = first; b < cell->end_row; b++) {
        attend(l, s, t, b, q + b * n * keys, alpha + b * l->slots * n * H, mask + b * n, chosen + b * K);
        if (t >= length(cell, b)) {  // a row that has ended: nobody moves
            memset(mask + b * n, 0, (size_t)n);
            for (int64_t r = 0; r < K; r++) chosen[b * K + r] = -1;
        }
    }
    REAL *u = l->u + at * row, *c = l->gru ? NULL : l->c + at * row, *h = l->h + t * B * row;
    for (int64_t k = 0; k < n; k++) {
        int64_t some = 0;
        for (int64_t b = first; b < cell->end_row; b++) {
            const REAL *old = h_before(l, s, t, b) + k * d;
            if (!mask[b * n + k]) {
                memcpy(h + b * row + k * d, old, (size_t)d * sizeof(REAL));
                if (c && (l->keep || !t))
                    memcpy(c + b * row + k * d, c_before(l, s, t, b) + k * d, (size_t)d * sizeof(REAL));
                if (l->held || !l->comm) {
                    if (l->comm) memcpy(u + b * row + k * d, old, (size_t)d * sizeof(REAL));
                    continue;
                }
            }
            REAL *x = space.x + some * fed;
            read_values(l, s, t, b, k, alpha + b * l->slots * n * H, x);
            memcpy(x + read, old, (size_t)d * sizeof(REAL));
            space.list[some++] = (int32_t)b;
        }
        multiply(some, space.x, fed, l->gates + k * fed * padded(4 * d), fed, 4 * d, space.z, 4 * d,
                 l->bias + k * 4 * d, 0);
        for (int64_t i = 0; i < some; i++) {
            const int64_t b = space.list[i], own = b * row + k * d;
            const REAL *old = c ? c_before(l, s, t, b) + k * d : NULL;
            candidate(l, space.z + i * 4 * d, l->z + ((at + b) * n + k) * 4 * d, h_before(l, s, t, b) + k * d, old,
                      u + own, c ? c + own : NULL, mask[b * n + k]);
        }
    }
    if (!l->comm) {
        for (int64_t b = first; b < cell->end_row; b++)
            for (int64_t k = 0; k < n; k++)
                if (mask[b * n + k]) memcpy(h + b * row + k * d, u + b * row + k * d, (size_t)d * sizeof(REAL));
        return;
    }
    REAL *qkv = l->qkv, *share = l->share + at * K * l->comm_heads * n;
    REAL *y = l->y + at * K * told, *p = l->p + at * K * 2 * d;
    speak(s, l, t);
    for (int64_t b = first; b < cell->end_row; b++)
        if (chosen[b * K] < 0) memset(y + b * K * told, 0, (size_t)(K * told) * sizeof(REAL));
        else talk(l, qkv + b * n * talk_size(l), chosen + b * K, share + b * K * l->comm_heads * n, y + b * K * told);
    multiply(rows * K, y + first * K * told, told, l->delta, told, 2 * d, p + first * K * 2 * d, 2 * d, l->delta_bias,
             0);
    for (int64_t b = first; b < cell->end_row; b++)
        for (int64_t r = 0; r < K && chosen[b * K] >= 0; r++) {
            const int64_t own = b * row + chosen[b * K + r] * d;
            const uint8_t *some = l->comm_mask ? l->comm_mask + t * B * row + own : NULL;
            listen(l, p + (b * K + r) * 2 * d, some, u + own, h + own);
        }
}

// Keys and values of the input at the next steps.
static void look_ahead(const struct Stack *s, const struct Layer *l, int64_t t) {
    const int64_t B = s->cell.batch, first = s->cell.first_row, rows = s->cell.end_row - first, steps = s->cell.steps;
    const int64_t ahead = steps - t < AHEAD ? steps - t : AHEAD;
    for (int64_t i = 0; i < l->slots; i++) {
        const struct Slot *slot = &l->slot[i];
        if (slot->source >= 0) continue;
        const int64_t whole = rows == B;  // then rows of one step follow those of the step before
        for (int64_t j = 0; j < (whole ? 1 : ahead); j++)
            multiply(whole ? ahead * B : rows, read_rows(s, 0, slot, t + j, first), slot->size, slot->weight,
                     slot->size, kv_size(l), keys_at(l, s, i, t + j, first), kv_size(l), NULL, 0);
    }
}

void stack_forward(const struct Stack *s) {
    for (int64_t t = 0; t < s->cell.steps; t++)
        for (int64_t layer = 0; layer < s->count; layer++) {
            if (t % AHEAD == 0) look_ahead(s, &s->layers[layer], t);
            layer_forward(s, layer, t);
        }
}

// --- backward --------------------------------------------------------------------------------------------------------

// What the communication hands back to the candidates, in `arrived`; the state that losers show others takes its own.
static void talking_back(const struct Stack *s, const struct Layer *l, const struct Space *space, int64_t t) {
    const struct Sequence *cell = &s->cell;
    const int64_t n = l->modules, d = l->size, K = l->active, B = cell->batch, row = n * d, first = cell->first_row;
    const int64_t rows = cell->end_row - first, told = l->comm_heads * l->comm_value, talks = talk_size(l);
    const int64_t at = t * B, here = (t - cell->begin) * B;
    const uint8_t *mask = l->mask + at * n;
    const int32_t *chosen = l->chosen + at * K;
    REAL *dp = l->dp + here * K * 2 * d, *dqkv = l->dqkv + here * n * talks;
    for (int64_t b = first; b < cell->end_row; b++)
        for (int64_t r = 0; r < K; r++) {
            REAL *out = dp + (b * K + r) * 2 * d;
            if (chosen[b * K] < 0) {
                memset(out, 0, (size_t)(2 * d) * sizeof(REAL));
                continue;
            }
            const int64_t own = b * row + chosen[b * K + r] * d;
            const REAL *p = l->p + ((at + b) * K + r) * 2 * d;
            VECTORS(j, d) {
                const int some = left(d, j);
                const vec e = take(l->dh + own + j, some), th = take(p + j, some), gate = take(p + d + j, some);
                const vec kept_part = dropped(l->comm_mask, at * row + own + j, l->comm_scale, some);
                put(out + j, e * gate * (1 - th * th) * kept_part, some);
                put(out + d + j, e * th * gate * (1 - gate), some);
            }
        }
    multiply(rows * K, dp + first * K * 2 * d, 2 * d, l->delta_back, 2 * d, told, space->dy, told, NULL, 0);
    speak(s, l, t);
    for (int64_t b = first; b < cell->end_row; b++)
        if (chosen[b * K] < 0) memset(dqkv + b * n * talks, 0, (size_t)(n * talks) * sizeof(REAL));
        else
            talk_back(l, l->qkv + b * n * talks, chosen + b * K, l->share + (at + b) * K * l->comm_heads * n,
                      space->dy + (b - first) * K * told, dqkv + b * n * talks);
    for (int64_t k = 0; k < n; k++) {
        int64_t some = 0;
        REAL *gathered = space->z, *back = space->z + rows * talks;
        for (int64_t b = first; b < cell->end_row; b++)
            if (mask[b * n + k] || l->held || !l->blocked) {
                memcpy(gathered + some * talks, dqkv + (b * n + k) * talks, (size_t)talks * sizeof(REAL));
                space->list[some++] = (int32_t)b;
            }
        multiply(some, gathered, talks, l->talk_back + k * talks * padded(d), talks, d, back, d, NULL, 0);
        for (int64_t i = 0; i < some; i++) {
            const int64_t b = space->list[i];
            REAL *arrived = space->arrived + (b - first) * row + k * d, *dh = l->dh + b * row + k * d;
            if (mask[b * n + k]) memcpy(arrived, dh, (size_t)d * sizeof(REAL));
            else if (l->held) arrived = dh;
            else memset(arrived, 0, (size_t)d * sizeof(REAL));
            add_scaled(arrived, 1, back + i * d, d);
        }
    }
}

static void layer_backward(const struct Stack *s, int64_t layer, int64_t t) {
    const struct Layer *l = &s->layers[layer];
    const struct Sequence *cell = &s->cell;
    const int64_t n = l->modules, d = l->size, H = l->heads, B = cell->batch, row = n * d, first = cell->first_row;
    const int64_t rows = cell->end_row - first, read = H * l->value, fed = read + d, at = t * B, keys = H * l->key;
    const int64_t here = (t - cell->begin) * B;
    const struct Space space = space_of(l, s);
    const uint8_t *mask = l->mask + at * n;
    const int lost_too = l->comm && !l->held && !l->blocked;  // candidates that lost have gradients
    if (l->comm) talking_back(s, l, &space, t);
    for (int64_t i = 0; i < l->slots; i++)
        memset(l->slot[i].grad + (here + first) * kv_size(l), 0, (size_t)(rows * kv_size(l)) * sizeof(REAL));
    for (int64_t k = 0; k < n; k++) {
        const int64_t start = (k * B + first) * l->span + l->count[s->part * n + k];
        REAL *dz = l->dz + start * 4 * d, *dq = l->dq + start * keys, *q = l->q + first * n * keys;
        REAL *gathered = l->rows ? l->rows + start * fed : space.x;
        int64_t some = 0;
        for (int64_t b = first; b < cell->end_row; b++) {
            const int won = mask[b * n + k];
            if (!won && !lost_too) continue;
            const int64_t own = b * row + k * d;
            const REAL *h = h_before(l, s, t, b) + k * d;
            candidate_back(l, l->z + ((at + b) * n + k) * 4 * d, h, l->gru ? NULL : c_before(l, s, t, b) + k * d,
                           l->comm ? space.arrived + (b - first) * row + k * d : l->dh + own, dz + some * 4 * d,
                           l->dh + own, l->gru ? NULL : l->dc + own, won);
            REAL *x = gathered + some * fed;
            if (l->rows) read_values(l, s, t, b, k, l->alpha + (at + b) * l->slots * n * H, x);
            memcpy(x + read, h, (size_t)d * sizeof(REAL));
            space.list[some++] = (int32_t)b;
        }
        // Queries are made again, of those alone whose reads have gradients.
        multiply(some, gathered + read, fed, l->query + k * d * padded(keys), d, keys, q, keys, NULL, 0);
        multiply(some, dz, 4 * d, l->gates_back + k * 4 * d * padded(fed), 4 * d, fed, space.x, fed, NULL, 0);
        for (int64_t i = 0; i < some; i++) {
            const int64_t b = space.list[i];
            attend_back(l, s, t, b, k, q + i * keys, l->alpha + (at + b) * l->slots * n * H,
                        space.x + i * fed, dq + i * keys);
        }
        multiply(some, dq, keys, l->query_back + k * keys * padded(d), keys, d, space.x + read, fed, NULL, 1);
        for (int64_t i = 0; i < some; i++)
            add_scaled(l->dh + space.list[i] * row + k * d, 1, space.x + i * fed + read, d);
        l->count[s->part * n + k] += some;
    }
    for (int64_t i = 0; i < l->slots; i++) {
        const struct Slot *slot = &l->slot[i];
        const REAL *grad = slot->grad + (here + first) * kv_size(l);
        if (slot->source >= 0)
            multiply(rows, grad, kv_size(l), slot->back, kv_size(l), slot->size,
                     s->layers[slot->source].dh + first * slot->size, slot->size, NULL, 1);
        else if (slot->grad_x)
            multiply(rows, grad, kv_size(l), slot->back, kv_size(l), slot->size,
                     slot->grad_x + (at + first) * slot->size, slot->size, NULL, 0);
    }
}

// What these steps add to the gradients of weights.
static void add_sums(const struct Stack *s, int64_t layer) {
    const struct Layer *l = &s->layers[layer];
    const struct Sequence *cell = &s->cell;
    const int64_t n = l->modules, d = l->size, K = l->active, B = cell->batch, first = cell->first_row;
    const int64_t keys = l->heads * l->key, read = l->heads * l->value, fed = read + d, talks = talk_size(l);
    const int64_t told = l->comm_heads * l->comm_value;
    for (int64_t k = 0; k < n; k++) {
        const int64_t start = (k * B + first) * l->span, own = s->part * n + k, count = l->count[own];
        const REAL *rows = l->rows + start * fed, *dz = l->dz + start * 4 * d;
        if (l->sum_gates) add_outer(count, rows, fed, fed, dz, 4 * d, 4 * d, l->sum_gates + own * fed * 4 * d);
        if (l->sum_bias) add_rows(count, dz, 4 * d, l->sum_bias + own * 4 * d);
        if (l->sum_query)
            add_outer(count, rows + read, fed, d, l->dq + start * keys, keys, keys, l->sum_query + own * d * keys);
        l->count[own] = 0;
    }
    // Steps lie behind each other, so that all are one when this call has all rows.
    const int64_t some = cell->end_row - first, every = cell->end - cell->begin, whole = some == B;
    const int64_t rows = whole ? every * B : some;
    for (int64_t i = 0; i < l->slots; i++) {
        const struct Slot *slot = &l->slot[i];
        const int64_t one = whole && slot->source <= layer;  // a layer above is read a step before, at first its h0
        for (int64_t t = 0; slot->sum && t < (one ? 1 : every); t++)
            add_outer(one ? rows : some, slot->grad + (t * B + first) * kv_size(l), kv_size(l), kv_size(l),
                      read_rows(s, layer, slot, cell->begin + t, first), slot->size, slot->size,
                      slot->sum + s->part * kv_size(l) * slot->size);
    }
    for (int64_t t = 0; l->comm && t < (whole ? 1 : every); t++) {
        const int64_t at = t * B + first, from = (cell->begin + t) * B + first;
        for (int64_t k = 0; l->sum_talk && k < n; k++)
            add_outer(rows, l->u + (from * n + k) * d, n * d, d, l->dqkv + (at * n + k) * talks, n * talks, talks,
                      l->sum_talk + (s->part * n + k) * d * talks);
        const REAL *dp = l->dp + at * K * 2 * d;
        if (l->sum_delta)
            add_outer(rows * K, l->y + from * K * told, told, told, dp, 2 * d, 2 * d,
                      l->sum_delta + s->part * told * 2 * d);
        if (l->sum_delta_bias) add_rows(rows * K, dp, 2 * d, l->sum_delta_bias + s->part * 2 * d);
    }
}

// From the last of these steps to the first, layers from the top: the state of a layer is read by that above at the
// same step, by that below at the next.
void stack_backward(const struct Stack *s) {
    const struct Layer *top = &s->layers[s->count - 1];
    const int64_t row = top->modules * top->size, first = s->cell.first_row, rows = s->cell.end_row - first;
    for (int64_t t = s->cell.end - 1; t >= s->cell.begin; t--) {
        if (s->cell.grad_out)
            add_scaled(top->dh + first * row, 1, s->cell.grad_out + (t * s->cell.batch + first) * row, rows * row);
        for (int64_t layer = s->count - 1; layer >= 0; layer--) layer_backward(s, layer, t);
    }
    for (int64_t layer = 0; layer < s->count; layer++) add_sums(s, layer);
}
