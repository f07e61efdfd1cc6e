// Whole sequences of an LSTM, a GRU or a plain recurrent network, with Zoneout, forward and backward.
//
// The loop over time is in here, so a sequence costs one call each way. Rows never meet, so threads take ranges of rows.

#include "gates.h"

void lstm_forward(const struct Sequence *s) {
    for (int64_t t = 0; t < s->steps; t++)
        for (int64_t panel = 0; panel * LANES < s->hidden; panel++)
            for (int64_t row = s->first_row; row < s->end_row; row += block(s, row))
                lstm_block(block(s, row), s, t, panel, row);
}

void gru_forward(const struct Sequence *s) {
    for (int64_t t = 0; t < s->steps; t++)
        for (int64_t panel = 0; panel * LANES < s->hidden; panel++)
            for (int64_t row = s->first_row; row < s->end_row; row += block(s, row))
                gru_block(block(s, row), s, t, panel, row);
}

void rnn_forward(const struct Sequence *s) {
    for (int64_t t = 0; t < s->steps; t++)
        for (int64_t panel = 0; panel * 4 * LANES < s->hidden; panel++)
            for (int64_t row = s->first_row; row < s->end_row; row += block(s, row))
                rnn_block(block(s, row), s, t, panel, row);
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
