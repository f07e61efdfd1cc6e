// The elementwise work of ladder networks: batch statistics of several segments of rows, combinators, costs.
//
// Plain C with the vector types of GCC and Clang; REAL (float or double) is given on the command line. No -ffast-math:
// NaN and infinity propagate as in torch. Every array is contiguous: models, then rows, then units. A column of units
// is taken as many numbers wide as a vector holds, and followed through the rows.

#include <stdint.h>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define LANES ((int)(BYTES / sizeof(REAL)))
#define INLINE static inline __attribute__((always_inline))

typedef REAL vec __attribute__((vector_size(BYTES)));
typedef REAL loose __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));

INLINE vec all(REAL a) { return a - (vec){}; }

// The first n numbers at p, the rest zero; nothing is read where p is null.
INLINE vec load(const REAL *p, int n) {
    if (!p) return (vec){};
    if (n == LANES) return *(const loose *)p;
    vec a = {};
    for (int l = 0; l < n; l++) a[l] = p[l];
    return a;
}

INLINE void store(REAL *p, vec a, int n) {
    if (!p) return;
    if (n == LANES) *(loose *)p = a;
    else for (int l = 0; l < n; l++) p[l] = a[l];
}

INLINE const REAL *at(const REAL *p, int64_t place) { return p ? p + place : 0; }
INLINE REAL *to(REAL *p, int64_t place) { return p ? p + place : 0; }

// sigmoid by e^-x = 2^k e^r, |r| <= log(2) / 2; beyond LIMIT it is flat. NaN stays NaN.
#ifdef DOUBLE
typedef int64_t bits __attribute__((vector_size(BYTES)));
#define LIMIT 700
INLINE vec exp_(vec x) {
    const vec shift = all(0x1.8p52);  // adding it leaves the nearest integer in the low bits
    vec t = x * 0x1.71547652b82fep+0 + shift, k = t - shift;
    vec r = (x - k * 0x1.62e42feep-1) - k * 0x1.a39ef35793c76p-33;
    vec p = all(1.0 / 6227020800.0);
    REAL factorial = 479001600;
    for (int i = 12; i >= 0; i--) {
        p = p * r + 1 / factorial;
        factorial /= i ? i : 1;
    }
    return p * (vec)(((bits)t + 1023) << 52);
}
#else
typedef int32_t bits __attribute__((vector_size(BYTES)));
#define LIMIT 80
INLINE vec exp_(vec x) {
    const vec shift = all(0x1.8p23f);
    vec t = x * 0x1.715476p+0f + shift, k = t - shift;
    vec r = (x - k * 0x1.62ep-1f) - k * 0x1.0bfbe8p-15f;
    vec p = all(1.0f / 5040);
    REAL factorial = 720;
    for (int i = 6; i >= 0; i--) {
        p = p * r + 1 / factorial;
        factorial /= i ? i : 1;
    }
    return p * (vec)(((bits)t + 127) << 23);
}
#endif
#define SELECT(mask, a, b) ((vec)(((mask) & (bits)(a)) | (~(mask) & (bits)(b))))

INLINE vec sigmoid(vec x) {
    vec y = SELECT(x > LIMIT, all(-LIMIT), -x);
    y = SELECT(y > LIMIT, all(LIMIT), y);
    return 1 / (1 + exp_(y));
}

INLINE double total(vec a) {
    double sum = 0;
    for (int l = 0; l < LANES; l++) sum += a[l];
    return sum;
}

INLINE vec root(vec a) {
    for (int l = 0; l < LANES; l++) a[l] = sizeof(REAL) == 8 ? __builtin_sqrt(a[l]) : __builtin_sqrtf(a[l]);
    return a;
}

// --- batch normalisation ---------------------------------------------------------------------------------------------

struct Normalise {
    int64_t models, rows, units;
    int64_t segments, ends[3];  // where the segments of rows end: labelled, unlabelled, clean
    int64_t noisy;              // so many rows from the first have noise
    int64_t relu;
    double epsilon;
    const REAL *pre, *noise, *beta;
    REAL *h, *lateral, *target;           // lateral: segment 1 before beta; target: segment 2 before normalisation
    REAL *mean, *scale;                   // (models, segments, units); scale is 1 / standard deviation
    const REAL *d_h, *d_lateral, *d_target, *d_scale;  // d_scale: of the last segment, (models, units)
    REAL *d_pre, *d_beta;
};

// Columns are taken in blocks of `wide` vectors: rows of a wide level lie so far apart that one vector of each would
// fall into few places of the cache, and several sums do not wait for each other.
#define BLOCK 4

INLINE void normalise_block(const struct Normalise *a, int64_t m, int64_t j, const int wide, const int n) {
    const int64_t d = a->units;
    vec beta[BLOCK];
    for (int v = 0; v < wide; v++) beta[v] = load(at(a->beta, m * d + j + v * LANES), n);
    for (int64_t s = 0, first = 0; s < a->segments; first = a->ends[s++]) {
        const int64_t count = a->ends[s] - first, stat = (m * a->segments + s) * d + j;
        const REAL *pre = a->pre + (m * a->rows + first) * d + j;
        vec mean[BLOCK] = {}, square[BLOCK] = {}, scale[BLOCK];
        for (int64_t i = 0; i < count; i++)
            for (int v = 0; v < wide; v++) mean[v] += load(pre + i * d + v * LANES, n);
        for (int v = 0; v < wide; v++) mean[v] /= (REAL)count;
        for (int64_t i = 0; i < count; i++)
            for (int v = 0; v < wide; v++) {
                const vec away = load(pre + i * d + v * LANES, n) - mean[v];
                square[v] += away * away;
            }
        for (int v = 0; v < wide; v++) {
            scale[v] = 1 / root(square[v] / (REAL)count + (REAL)a->epsilon);
            store(a->mean + stat + v * LANES, mean[v], n);
            store(a->scale + stat + v * LANES, scale[v], n);
        }
        REAL *lateral = s == 1 ? to(a->lateral, m * count * d + j) : 0;
        REAL *target = s == 2 ? to(a->target, m * count * d + j) : 0;
        const REAL *noise = first < a->noisy ? at(a->noise, (m * a->noisy + first) * d + j) : 0;
        REAL *h = a->h + (m * a->rows + first) * d + j;
        for (int64_t i = 0; i < count; i++)
            for (int v = 0; v < wide; v++) {
                const int64_t place = i * d + v * LANES;
                const vec x = load(pre + place, n), z = (x - mean[v]) * scale[v] + load(at(noise, place), n);
                vec up = z + beta[v];
                if (a->relu) up = SELECT(up < 0, (vec){}, up);
                store(h + place, up, n);
                store(to(lateral, place), z, n);
                store(to(target, place), x, n);
            }
    }
}

INLINE void normalise_back_block(const struct Normalise *a, int64_t m, int64_t j, const int wide, const int n) {
    const int64_t d = a->units;
    vec d_beta[BLOCK] = {};
    for (int64_t s = 0, first = 0; s < a->segments; first = a->ends[s++]) {
        const int64_t count = a->ends[s] - first, stat = (m * a->segments + s) * d + j;
        const int64_t begin = (m * a->rows + first) * d + j, own = m * count * d + j;
        const REAL *pre = a->pre + begin, *h = a->h + begin, *d_h = at(a->d_h, begin);
        const REAL *lateral = s == 1 ? at(a->d_lateral, own) : 0, *target = s == 2 ? at(a->d_target, own) : 0;
        REAL *out = a->d_pre + begin;
        vec mean[BLOCK], sum[BLOCK] = {}, along[BLOCK] = {}, scale[BLOCK];
        for (int v = 0; v < wide; v++) {
            mean[v] = load(a->mean + stat + v * LANES, n);
            scale[v] = load(a->scale + stat + v * LANES, n);
        }
        for (int64_t i = 0; i < count; i++)
            for (int v = 0; v < wide; v++) {
                const int64_t place = i * d + v * LANES;
                vec g = load(at(d_h, place), n);
                if (a->relu) g = SELECT(load(h + place, n) <= 0, (vec){}, g);
                d_beta[v] += g;
                g += load(at(lateral, place), n);
                sum[v] += g;
                along[v] += g * (load(pre + place, n) - mean[v]);
                store(out + place, g, n);
            }
        for (int v = 0; v < wide; v++) {
            // What the columns' own direction gets back: of the normalisation, and of the scale as an output.
            const vec output = s == 2 ? load(at(a->d_scale, m * d + j + v * LANES), n) : (vec){};
            along[v] = scale[v] * scale[v] * scale[v] * (along[v] + output) / (REAL)count;
            sum[v] /= (REAL)count;
        }
        for (int64_t i = 0; i < count; i++)
            for (int v = 0; v < wide; v++) {
                const int64_t place = i * d + v * LANES;
                const vec away = load(pre + place, n) - mean[v], g = scale[v] * (load(out + place, n) - sum[v]);
                store(out + place, g - away * along[v] + load(at(target, place), n), n);
            }
    }
    for (int v = 0; v < wide; v++) store(to(a->d_beta, m * d + j + v * LANES), d_beta[v], n);
}

#define IN_BLOCKS(function)                                                                                   \
    for (int64_t m = 0; m < a->models; m++) {                                                                 \
        int64_t j = 0;                                                                                        \
        for (; j + BLOCK * LANES <= a->units; j += BLOCK * LANES) function(a, m, j, BLOCK, LANES);            \
        for (; j + LANES <= a->units; j += LANES) function(a, m, j, 1, LANES);                                \
        if (j < a->units) function(a, m, j, 1, (int)(a->units - j));                                          \
    }

void normalise(const struct Normalise *a) { IN_BLOCKS(normalise_block) }

void normalise_back(const struct Normalise *a) { IN_BLOCKS(normalise_back_block) }

// --- reconstruction costs --------------------------------------------------------------------------------------------

struct Cost {
    int64_t models, rows, units;
    const REAL *guess, *target, *scale;  // scale (models, units) or null
    REAL *cost;                          // (models)
    const REAL *d_cost;
    REAL *d_guess, *d_target, *d_scale;
};

void cost(const struct Cost *a) {
    const int64_t d = a->units;
    for (int64_t m = 0; m < a->models; m++) {
        double sum = 0;
        for (int64_t j = 0; j < d; j += LANES) {
            const int n = d - j < LANES ? (int)(d - j) : LANES;
            const REAL *guess = a->guess + m * a->rows * d + j, *target = a->target + m * a->rows * d + j;
            const vec scale = a->scale ? load(a->scale + m * d + j, n) : all(1);
            vec square = {};
            for (int64_t i = 0; i < a->rows; i++) {
                const vec away = (load(guess + i * d, n) - load(target + i * d, n)) * scale;
                square += away * away;
            }
            sum += total(square);
        }
        a->cost[m] = (REAL)(sum / ((double)a->rows * d));
    }
}

void cost_back(const struct Cost *a) {
    const int64_t d = a->units;
    for (int64_t m = 0; m < a->models; m++) {
        const REAL share = (REAL)(2 * (double)a->d_cost[m] / ((double)a->rows * d));
        for (int64_t j = 0; j < d; j += LANES) {
            const int n = d - j < LANES ? (int)(d - j) : LANES;
            const int64_t begin = m * a->rows * d + j;
            const vec scale = a->scale ? load(a->scale + m * d + j, n) : all(1);
            vec d_scale = {};
            for (int64_t i = 0; i < a->rows * d; i += d) {
                const vec away = load(a->guess + begin + i, n) - load(a->target + begin + i, n);
                const vec g = share * scale * away;
                d_scale += g * away;
                store(a->d_guess + begin + i, g * scale, n);
                store(to(a->d_target, begin + i), -g * scale, n);
            }
            store(to(a->d_scale, m * d + j), d_scale, n);
        }
    }
}

// --- the vanilla combinator and its parts ----------------------------------------------------------------------------

enum { B0, W0Z, W0U, W0ZU, WS, B1, W1Z, W1U, W1ZU, TERMS };

struct Vanilla {
    int64_t models, rows, units, terms;
    int64_t place[TERMS];  // row of a term in the weights, or -1
    const REAL *z, *u, *weight;
    REAL *out;
    const REAL *d_out;
    REAL *d_z, *d_u, *d_weight;
};

INLINE void weights(const struct Vanilla *a, int64_t m, int64_t j, int n, vec w[TERMS]) {
    for (int t = 0; t < TERMS; t++)
        w[t] = a->place[t] < 0 ? (vec){} : load(a->weight + (m * a->terms + a->place[t]) * a->units + j, n);
}

void vanilla(const struct Vanilla *a) {
    const int64_t d = a->units;
    for (int64_t m = 0; m < a->models; m++)
        for (int64_t j = 0; j < d; j += LANES) {
            const int n = d - j < LANES ? (int)(d - j) : LANES;
            vec w[TERMS];
            weights(a, m, j, n, w);
            for (int64_t i = m * a->rows * d + j, end = i + a->rows * d; i < end; i += d) {
                const vec z = load(a->z + i, n), u = load(a->u + i, n), zu = z * u;
                vec out = w[B0] + w[W0Z] * z + w[W0U] * u + w[W0ZU] * zu;
                if (a->place[WS] >= 0) out += w[WS] * sigmoid(w[B1] + w[W1Z] * z + w[W1U] * u + w[W1ZU] * zu);
                store(a->out + i, out, n);
            }
        }
}

void vanilla_back(const struct Vanilla *a) {
    const int64_t d = a->units;
    for (int64_t m = 0; m < a->models; m++)
        for (int64_t j = 0; j < d; j += LANES) {
            const int n = d - j < LANES ? (int)(d - j) : LANES;
            vec w[TERMS], dw[TERMS] = {};
            weights(a, m, j, n, w);
            for (int64_t i = m * a->rows * d + j, end = i + a->rows * d; i < end; i += d) {
                const vec z = load(a->z + i, n), u = load(a->u + i, n), g = load(a->d_out + i, n), zu = z * u;
                vec d_z = g * (w[W0Z] + w[W0ZU] * u), d_u = g * (w[W0U] + w[W0ZU] * z);
                dw[B0] += g;
                dw[W0Z] += g * z;
                dw[W0U] += g * u;
                dw[W0ZU] += g * zu;
                if (a->place[WS] >= 0) {
                    const vec s = sigmoid(w[B1] + w[W1Z] * z + w[W1U] * u + w[W1ZU] * zu);
                    const vec inner = g * w[WS] * s * (1 - s);
                    dw[WS] += g * s;
                    dw[B1] += inner;
                    dw[W1Z] += inner * z;
                    dw[W1U] += inner * u;
                    dw[W1ZU] += inner * zu;
                    d_z += inner * (w[W1Z] + w[W1ZU] * u);
                    d_u += inner * (w[W1U] + w[W1ZU] * z);
                }
                store(to(a->d_z, i), d_z, n);
                store(to(a->d_u, i), d_u, n);
            }
            for (int t = 0; t < TERMS; t++)
                if (a->place[t] >= 0) store(a->d_weight + (m * a->terms + a->place[t]) * d + j, dw[t], n);
        }
}

// --- a perceptron for each unit --------------------------------------------------------------------------------------

#define DEEP 4   // layers with weights
#define WIDE 8   // units of a layer
#define SLOPE ((REAL)0.1)

struct Perceptron {
    int64_t models, rows, units, layers, widths[DEEP + 1];  // widths[0] is 2 (u, z) or 3 (and u z)
    const REAL *z, *u, *weight[DEEP], *bias[DEEP];           // (models, units, in, out) and (models, units, out)
    REAL *out;
    const REAL *d_out;
    REAL *d_z, *d_u, *d_weight[DEEP], *d_bias[DEEP];
};

struct Net { vec w[DEEP][WIDE][WIDE], b[DEEP][WIDE]; };

// Weights of n units lie n times in and out apart: turned so that units are innermost, and back.
INLINE void gather(const struct Perceptron *a, int64_t unit, int n, struct Net *net) {
    for (int k = 0; k < a->layers; k++) {
        const int64_t in = a->widths[k], out = a->widths[k + 1];
        for (int64_t o = 0; o < out; o++) {
            net->b[k][o] = (vec){};
            for (int l = 0; l < n; l++) net->b[k][o][l] = a->bias[k][(unit + l) * out + o];
            for (int64_t i = 0; i < in; i++) {
                net->w[k][i][o] = (vec){};
                for (int l = 0; l < n; l++) net->w[k][i][o][l] = a->weight[k][((unit + l) * in + i) * out + o];
            }
        }
    }
}

INLINE void scatter(const struct Perceptron *a, int64_t unit, int n, const struct Net *net) {
    for (int k = 0; k < a->layers; k++) {
        const int64_t in = a->widths[k], out = a->widths[k + 1];
        for (int64_t o = 0; o < out; o++) {
            for (int l = 0; l < n; l++) a->d_bias[k][(unit + l) * out + o] = net->b[k][o][l];
            for (int64_t i = 0; i < in; i++)
                for (int l = 0; l < n; l++) a->d_weight[k][((unit + l) * in + i) * out + o] = net->w[k][i][o][l];
        }
    }
}

// Values of all layers, the inputs first; hidden ones after the leaky ReLU, which keeps the sign.
INLINE void through(const struct Perceptron *a, const struct Net *net, vec z, vec u, vec value[DEEP + 1][WIDE]) {
    value[0][0] = u;
    value[0][1] = z;
    value[0][2] = u * z;
    for (int k = 0; k < a->layers; k++)
        for (int o = 0; o < a->widths[k + 1]; o++) {
            vec sum = net->b[k][o];
            for (int i = 0; i < a->widths[k]; i++) sum += net->w[k][i][o] * value[k][i];
            value[k + 1][o] = k + 1 < a->layers ? SELECT(sum > 0, sum, SLOPE * sum) : sum;
        }
}

void perceptron(const struct Perceptron *a) {
    const int64_t d = a->units;
    for (int64_t m = 0; m < a->models; m++)
        for (int64_t j = 0; j < d; j += LANES) {
            const int n = d - j < LANES ? (int)(d - j) : LANES;
            struct Net net;
            vec value[DEEP + 1][WIDE];
            gather(a, m * d + j, n, &net);
            for (int64_t i = m * a->rows * d + j, end = i + a->rows * d; i < end; i += d) {
                through(a, &net, load(a->z + i, n), load(a->u + i, n), value);
                store(a->out + i, value[a->layers][0], n);
            }
        }
}

void perceptron_back(const struct Perceptron *a) {
    const int64_t d = a->units;
    for (int64_t m = 0; m < a->models; m++)
        for (int64_t j = 0; j < d; j += LANES) {
            const int n = d - j < LANES ? (int)(d - j) : LANES;
            struct Net net, grad;
            vec value[DEEP + 1][WIDE], back[WIDE], below[WIDE];
            gather(a, m * d + j, n, &net);
            for (int k = 0; k < a->layers; k++)
                for (int o = 0; o < a->widths[k + 1]; o++) {
                    grad.b[k][o] = (vec){};
                    for (int i = 0; i < a->widths[k]; i++) grad.w[k][i][o] = (vec){};
                }
            for (int64_t r = m * a->rows * d + j, end = r + a->rows * d; r < end; r += d) {
                const vec z = load(a->z + r, n), u = load(a->u + r, n);
                through(a, &net, z, u, value);
                back[0] = load(a->d_out + r, n);
                for (int k = (int)a->layers - 1; k >= 0; k--) {
                    const int in = (int)a->widths[k], out = (int)a->widths[k + 1];
                    for (int i = 0; i < in; i++) below[i] = (vec){};
                    for (int o = 0; o < out; o++) {
                        grad.b[k][o] += back[o];
                        for (int i = 0; i < in; i++) {
                            grad.w[k][i][o] += value[k][i] * back[o];
                            below[i] += net.w[k][i][o] * back[o];
                        }
                    }
                    for (int i = 0; i < in; i++)
                        back[i] = k ? SELECT(value[k][i] > 0, below[i], SLOPE * below[i]) : below[i];
                }
                vec d_u = back[0], d_z = back[1];
                if (a->widths[0] == 3) d_u += back[2] * z, d_z += back[2] * u;
                store(to(a->d_z, r), d_z, n);
                store(to(a->d_u, r), d_u, n);
            }
            scatter(a, m * d + j, n, &grad);
        }
}
