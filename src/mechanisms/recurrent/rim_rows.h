// What modular layers do for one row: attention to slots, competition, the modules' own dynamics, and what modules tell
// each other; forward and backward. Letters and structs as in rims.h.

#include "rims.h"

#include <math.h>

// --- forward ---------------------------------------------------------------------------------------------------------

// The K modules with the least attention to the empty slot; of equals the first, NaN last, as a stable sort has them.
static void compete(const struct Layer *l, const REAL *null, uint8_t *mask, int32_t *chosen) {
    const int64_t n = l->modules;
    int32_t order[n];
    for (int32_t k = 0; k < n; k++) {
        int64_t at = k;
        for (; at > 0; at--) {
            const REAL before = null[order[at - 1]], here = null[k];
            if (!(before > here || (before != before && here == here))) break;
            order[at] = order[at - 1];
        }
        order[at] = k;
    }
    memset(mask, 0, (size_t)n);
    for (int64_t r = 0; r < l->active; r++) mask[order[r]] = 1;
    for (int64_t k = 0, r = 0; k < n; k++)
        if (mask[k]) chosen[r++] = (int32_t)k;
}

// Scores, attention and competition of a row. Attention is kept as (slots, n H). Without keys all modules read all.
static void attend(const struct Layer *l, const struct Stack *s, int64_t t, int64_t b, const REAL *q, REAL *alpha,
                   uint8_t *mask, int32_t *chosen) {
    const int64_t H = l->heads, dk = l->key, all_heads = l->modules * H, wide = padded(all_heads);
    if (!dk) {
        for (int64_t i = 0; i < l->slots * all_heads; i++) alpha[i] = 1;
        for (int32_t k = 0; k < l->modules; k++) mask[k] = 1, chosen[k] = k;
        return;
    }
    const REAL scale = 1 / __builtin_sqrt((double)dk);
    REAL e[2][wide], empty[wide], null[l->modules];
    vec part[wide];
    for (int64_t slot = 0; slot < l->slots; slot++) {
        const REAL *keys = keys_at(l, s, slot, t, b);
        for (int64_t k = 0; k < l->modules; k++)
            for (int64_t i = 0; i < H; i++) part[k * H + i] = products(q + (k * H + i) * dk, keys + i * dk, dk);
        write_totals(e[slot], part, all_heads, scale);
    }
    VECTORS(u, all_heads) {
        const vec a = take(e[0] + u, LANES), c = l->slots > 1 ? take(e[1] + u, LANES) : all(-LIMIT);
        vec most = SELECT(a > 0, a, (vec){});
        if (l->slots > 1) most = SELECT(c > most, c, most);
        const vec none = power(-most), one = power(a - most), two = l->slots > 1 ? power(c - most) : (vec){};
        const vec sum = none + one + two;
        put(empty + u, none / sum, LANES);
        put(alpha + u, one / sum, left(all_heads, u));
        if (l->slots > 1) put(alpha + all_heads + u, two / sum, left(all_heads, u));
    }
    for (int64_t k = 0; k < l->modules; k++) {
        null[k] = 0;
        for (int64_t i = 0; i < H; i++) null[k] += empty[k * H + i];
    }
    compete(l, null, mask, chosen);
}

// What a module reads of a row: values by their attention, and dropout.
static void read_values(const struct Layer *l, const struct Stack *s, int64_t t, int64_t b, int64_t k,
                        const REAL *alpha, REAL *out) {
    const int64_t H = l->heads, dv = l->value, n = l->modules, at = ((t * s->cell.batch + b) * n + k) * H * dv;
    const REAL *first = keys_at(l, s, 0, t, b) + H * l->key;
    const REAL *second = l->slots > 1 ? keys_at(l, s, 1, t, b) + H * l->key : NULL;
    for (int64_t i = 0; i < H; i++) {
        const REAL one = alpha[k * H + i], two = second ? alpha[(n + k) * H + i] : 0;
        VECTORS(u, dv) {
            const int some = left(dv, u);
            const int64_t v = i * dv + u;
            vec a = one * take(first + v, some);
            if (second) a += two * take(second + v, some);
            put(out + v, a * dropped(l->read_mask, at + v, l->read_scale, some), some);
        }
    }
}

// From the sums of the gates to their values, the candidate and, where the module won, its new memory.
static void candidate(const struct Layer *l, const REAL *z, REAL *gates, const REAL *h, const REAL *c, REAL *u,
                      REAL *c_new, int won) {
    const int64_t d = l->size;
    VECTORS(j, d) {
        const int n = left(d, j);
        const vec a = take(z + j, n), b = take(z + d + j, n), g = take(z + 2 * d + j, n), o = take(z + 3 * d + j, n);
        if (l->gru) {
            const vec r = sigmoid(a), keep = sigmoid(b), fresh = tanh_(g + r * o);
            put(gates + j, r, n), put(gates + d + j, keep, n);
            put(gates + 2 * d + j, fresh, n), put(gates + 3 * d + j, o, n);
            put(u + j, (1 - keep) * fresh + keep * take(h + j, n), n);
            continue;
        }
        const vec in = sigmoid(a), forget = sigmoid(b), cell = tanh_(g), out = sigmoid(o);
        const vec memory = forget * take(c + j, n) + in * cell;
        put(gates + j, in, n), put(gates + d + j, forget, n);
        put(gates + 2 * d + j, cell, n), put(gates + 3 * d + j, out, n);
        put(u + j, out * tanh_(memory), n);
        if (won) put(c_new + j, memory, n);
    }
}

// Attention of the active modules of a row over all modules: y (K, Hc cv). It is kept as (n, K Hc), so that what is
// done for each module and head is done for all at once.
static void talk(const struct Layer *l, const REAL *qkv, const int32_t *chosen, REAL *share, REAL *y) {
    const int64_t n = l->modules, heads = l->comm_heads, ck = l->comm_key, cv = l->comm_value, row = talk_size(l);
    const int64_t all_heads = l->active * heads, wide = padded(all_heads);
    const REAL scale = 1 / __builtin_sqrt((double)ck);
    REAL e[n][wide];
    vec part[wide];
    for (int64_t j = 0; j < n; j++) {
        const REAL *keys = qkv + j * row + heads * ck;
        for (int64_t r = 0; r < l->active; r++)
            for (int64_t i = 0; i < heads; i++)
                part[r * heads + i] = products(qkv + chosen[r] * row + i * ck, keys + i * ck, ck);
        write_totals(e[j], part, all_heads, scale);
    }
    VECTORS(a, all_heads) {
        vec most = take(e[0] + a, LANES), sum = {};
        for (int64_t j = 1; j < n; j++) {
            const vec one = take(e[j] + a, LANES);
            most = SELECT(one <= most, most, one);
        }
        for (int64_t j = 0; j < n; j++) {
            const vec one = power(take(e[j] + a, LANES) - most);
            sum += one;
            put(e[j] + a, one, LANES);
        }
        for (int64_t j = 0; j < n; j++) put(e[j] + a, take(e[j] + a, LANES) / sum, LANES);
    }
    for (int64_t j = 0; j < n; j++) memcpy(share + j * all_heads, e[j], (size_t)all_heads * sizeof(REAL));
    for (int64_t r = 0; r < l->active; r++)
        for (int64_t i = 0; i < heads; i++) {
            const REAL *values = qkv + 2 * heads * ck + i * cv;
            VECTORS(v, cv) {
                vec read = {};
                for (int64_t j = 0; j < n; j++) read += e[j][r * heads + i] * take(values + j * row + v, left(cv, v));
                put(y + (r * heads + i) * cv + v, read, left(cv, v));
            }
        }
}

// What the others have told an active module, gated: p holds tanh beside sigmoid afterwards.
static void listen(const struct Layer *l, REAL *p, const uint8_t *mask, const REAL *u, REAL *h) {
    const int64_t d = l->size;
    VECTORS(j, d) {
        const int n = left(d, j);
        const vec told = tanh_(take(p + j, n) * dropped(mask, j, l->comm_scale, n)), gate = sigmoid(take(p + d + j, n));
        put(p + j, told, n), put(p + d + j, gate, n);
        put(h + j, take(u + j, n) + gate * told, n);
    }
}

// --- backward --------------------------------------------------------------------------------------------------------

// Gradients of a row's queries, keys and values of the communication.
static void talk_back(const struct Layer *l, const REAL *qkv, const int32_t *chosen, const REAL *share, const REAL *dy,
                      REAL *dqkv) {
    const int64_t n = l->modules, heads = l->comm_heads, ck = l->comm_key, cv = l->comm_value, row = talk_size(l);
    const int64_t K = l->active, all_heads = K * heads, wide = padded(all_heads);
    const REAL scale = 1 / __builtin_sqrt((double)ck);
    REAL e[n][wide], mean[wide];
    vec part[wide];
    memset(mean, 0, sizeof mean);
    for (int64_t j = 0; j < n; j++) {
        const REAL *values = qkv + j * row + 2 * heads * ck;
        for (int64_t r = 0; r < K; r++)
            for (int64_t i = 0; i < heads; i++)
                part[r * heads + i] = products(dy + (r * heads + i) * cv, values + i * cv, cv);
        write_totals(e[j], part, all_heads, 1);
        for (int64_t a = 0; a < all_heads; a++) mean[a] += share[j * all_heads + a] * e[j][a];
    }
    for (int64_t j = 0; j < n; j++)
        for (int64_t a = 0; a < all_heads; a++) e[j][a] = scale * share[j * all_heads + a] * (e[j][a] - mean[a]);
    for (int64_t j = 0; j < n; j++) {
        REAL *own = dqkv + j * row;
        VECTORS(v, heads * ck) put(own + v, (vec){}, left(heads * ck, v));
        for (int64_t i = 0; i < heads; i++) {
            VECTORS(v, ck) {
                const int some = left(ck, v);
                vec sum = {};
                for (int64_t r = 0; r < K; r++)
                    sum += e[j][r * heads + i] * take(qkv + chosen[r] * row + i * ck + v, some);
                put(own + (heads + i) * ck + v, sum, some);
            }
            VECTORS(v, cv) {
                const int some = left(cv, v);
                vec sum = {};
                for (int64_t r = 0; r < K; r++)
                    sum += share[j * all_heads + r * heads + i] * take(dy + (r * heads + i) * cv + v, some);
                put(own + 2 * heads * ck + i * cv + v, sum, some);
            }
        }
    }
    for (int64_t r = 0; r < K; r++)
        for (int64_t i = 0; i < heads; i++)
            VECTORS(v, ck) {
                vec sum = {};
                for (int64_t j = 0; j < n; j++)
                    sum += e[j][r * heads + i] * take(qkv + j * row + (heads + i) * ck + v, left(ck, v));
                put(dqkv + chosen[r] * row + i * ck + v, sum, left(ck, v));
            }
}

// From the gradients of a candidate and its memory to those of its gates; dc becomes that of the old memory, dh takes
// what a GRU hands on.
static void candidate_back(const struct Layer *l, const REAL *z, const REAL *h, const REAL *c, const REAL *arrived,
                           REAL *dz, REAL *dh, REAL *dc, int won) {
    const int64_t d = l->size;
    VECTORS(j, d) {
        const int n = left(d, j);
        const vec e = take(arrived + j, n);
        const vec a = take(z + j, n), b = take(z + d + j, n), g = take(z + 2 * d + j, n), o = take(z + 3 * d + j, n);
        const vec held = won ? (vec){} : take(dh + j, n);
        if (l->gru) {
            const vec dfresh = e * (1 - b) * (1 - g * g);
            put(dz + j, dfresh * o * a * (1 - a), n), put(dz + d + j, e * (take(h + j, n) - g) * b * (1 - b), n);
            put(dz + 2 * d + j, dfresh, n), put(dz + 3 * d + j, dfresh * a, n);
            put(dh + j, held + e * b, n);
            continue;
        }
        const vec old = take(c + j, n), th = tanh_(b * old + a * g), later = take(dc + j, n);
        const vec dmemory = (won ? later : (vec){}) + e * o * (1 - th * th);
        put(dz + j, dmemory * g * a * (1 - a), n), put(dz + d + j, dmemory * old * b * (1 - b), n);
        put(dz + 2 * d + j, dmemory * a * (1 - g * g), n), put(dz + 3 * d + j, e * th * o * (1 - o), n);
        put(dh + j, held, n);
        put(dc + j, (won ? (vec){} : later) + dmemory * b, n);
    }
}

// From the gradient of what a module read (it is overwritten) to those of its query, and of the slots.
static void attend_back(const struct Layer *l, const struct Stack *s, int64_t t, int64_t b, int64_t k, const REAL *q,
                        const REAL *alpha, REAL *d_read, REAL *dq) {
    const int64_t H = l->heads, dk = l->key, dv = l->value, n = l->modules, B = s->cell.batch;
    const int64_t at = ((t * B + b) * n + k) * H * dv;
    const REAL scale = dk ? 1 / __builtin_sqrt((double)dk) : 0;
    const REAL *kv[2];
    REAL *grad[2];
    for (int64_t slot = 0; slot < l->slots; slot++) {
        kv[slot] = keys_at(l, s, slot, t, b);
        grad[slot] = l->slot[slot].grad + ((t - s->cell.begin) * B + b) * kv_size(l);
    }
    for (int64_t i = 0; i < H; i++) {
        REAL e[2] = {0, 0}, mean = 0;
        vec sum[2] = {{}, {}};
        VECTORS(u, dv) {
            const int some = left(dv, u);
            const int64_t v = H * dk + i * dv + u;
            const vec g = take(d_read + i * dv + u, some) * dropped(l->read_mask, at + i * dv + u, l->read_scale, some);
            for (int64_t slot = 0; slot < l->slots; slot++) {
                sum[slot] += g * take(kv[slot] + v, some);
                put(grad[slot] + v, take(grad[slot] + v, some) + alpha[(slot * n + k) * H + i] * g, some);
            }
        }
        for (int64_t slot = 0; slot < l->slots; slot++) {
            e[slot] = sum_of(sum[slot]);
            mean += alpha[(slot * n + k) * H + i] * e[slot];
        }
        for (int64_t slot = 0; slot < l->slots; slot++)
            e[slot] = scale * alpha[(slot * n + k) * H + i] * (e[slot] - mean);
        VECTORS(u, dk) {
            const int some = left(dk, u);
            const vec query = take(q + i * dk + u, some);
            vec back = {};
            for (int64_t slot = 0; slot < l->slots; slot++) {
                REAL *dkey = grad[slot] + i * dk + u;
                back += e[slot] * take(kv[slot] + i * dk + u, some);
                put(dkey, take(dkey, some) + e[slot] * query, some);
            }
            put(dq + i * dk + u, back, some);
        }
    }
}
