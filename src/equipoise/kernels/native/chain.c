/* Logits and input gradients of a chain of convolutions (or linear layers), each perhaps pooled over 2x2 pixels and
 * rectified, for LANES samples side by side: every number of a sample has its lane of a vector register, weights are
 * the same for all lanes. A sample's result does not depend on its lane.
 *
 * A layer's input lies in a zero-padded buffer [channels][rows][columns][LANES]. With z = w * x + b, pooled and
 * rectified, what is kept for the way back is one byte per output: which of the pixels was the largest, or DEAD.
 */
#include <stdlib.h>
#include <string.h>

#include "lanes.h"

#define DEAD 4
#define OUTS 8 /* accumulators: so many channels ... */
#define COLUMNS 8 /* ... or pixels of a row, and no more of both together than registers hold */
#ifdef __AVX512F__
#define MOST 24
#else
#define MOST 12
#endif

typedef struct {
    int32_t channels, height, width; /* of the input */
    int32_t filters, rows, columns;  /* of the kernels */
    int32_t above, beside;           /* padding */
    int32_t pooled, rectified;
    const float *kernels; /* [channels][rows][columns][filters] */
    const float *adjoint; /* [filters][rows][columns][channels], flipped */
    const float *bias;    /* [filters] */
} layer;

int32_t lanes(void) { return LANES; }

/* Sizes, in vectors. */
static int z_height(const layer *l) { return l->height + 2 * l->above - l->rows + 1; }
static int z_width(const layer *l) { return l->width + 2 * l->beside - l->columns + 1; }
static int out_height(const layer *l) { return l->pooled ? z_height(l) / 2 : z_height(l); }
static int out_width(const layer *l) { return l->pooled ? z_width(l) / 2 : z_width(l); }
static size_t outputs(const layer *l) { return (size_t)l->filters * out_height(l) * out_width(l); }
static size_t padded(const layer *l) {
    return (size_t)l->channels * (l->height + 2 * l->above) * (l->width + 2 * l->beside);
}
/* The gradient with respect to z, with the padding that the way back needs. */
static int g_width(const layer *l) { return z_width(l) + 2 * (l->columns - 1 - l->beside); }
static int g_height(const layer *l) { return z_height(l) + 2 * (l->rows - 1 - l->above); }
static size_t g_padded(const layer *l) { return (size_t)l->filters * g_height(l) * g_width(l); }

size_t tape(const layer *layers, int32_t n) {
    size_t total = 0;
    for (int i = 0; i < n; i++) total += outputs(layers + i);
    return total * LANES;
}

/* outs x columns of the outputs of one row: z[o][j] = bias[o] + sum over c, u, v of kernels[c][u][v][o] x[c][u][j+v]. */
static inline __attribute__((always_inline)) void tile(
    const int outs, const int columns, const vec *x, size_t channel, size_t row, const float *kernels, int32_t filters,
    int32_t channels, int32_t rows, int32_t width, int32_t first, int32_t last, const float *bias, vec *z,
    size_t filter_stride) {
    vec sum[OUTS][COLUMNS];
#pragma GCC unroll 8
    for (int o = 0; o < outs; o++)
#pragma GCC unroll 8
        for (int j = 0; j < columns; j++) sum[o][j] = bias ? all(bias[o]) : (vec){0};
    for (int c = 0; c < channels; c++)
        for (int u = first; u < last; u++) {
            const vec *at = x + c * channel + u * row;
            const float *w = kernels + (size_t)(c * rows + u) * width * filters;
            for (int v = 0; v < width; v++, at++, w += filters) {
                vec here[COLUMNS];
#pragma GCC unroll 8
                for (int j = 0; j < columns; j++) here[j] = at[j];
#pragma GCC unroll 8
                for (int o = 0; o < outs; o++)
#pragma GCC unroll 8
                    for (int j = 0; j < columns; j++) sum[o][j] += w[o] * here[j];
            }
        }
#pragma GCC unroll 8
    for (int o = 0; o < outs; o++)
#pragma GCC unroll 8
        for (int j = 0; j < columns; j++) z[o * filter_stride + j] = sum[o][j];
}

/* One row of all filters, in tiles. `first` to `last` are the rows of the kernels that do not look at padding. */
static void correlate(const vec *x, size_t channel, size_t row, const float *kernels, int32_t filters,
                      int32_t channels, int32_t rows, int32_t width, int32_t first, int32_t last, const float *bias,
                      vec *z, size_t filter_stride, int32_t columns) {
#define CASE(O, J)                                                                                                  \
    case O * 16 + J:                                                                                                \
        tile(O, J, x + j, channel, row, kernels + o, filters, channels, rows, width, first, last, bias ? bias + o : 0, \
             z + o * filter_stride + j, filter_stride);                                                             \
        break;
    for (int o = 0; o < filters;) {
        int outs = filters - o < OUTS ? filters - o : OUTS;
        int most = MOST / outs < COLUMNS ? MOST / outs : COLUMNS;
        for (int j = 0; j < columns;) {
            int left = columns - j < most ? columns - j : most;
            switch (outs * 16 + left) {
                CASE(1, 1) CASE(1, 2) CASE(1, 3) CASE(1, 4) CASE(1, 5) CASE(1, 6) CASE(1, 7) CASE(1, 8)
                CASE(2, 1) CASE(2, 2) CASE(2, 3) CASE(2, 4) CASE(2, 5) CASE(2, 6)
                CASE(3, 1) CASE(3, 2) CASE(3, 3) CASE(3, 4)
                CASE(4, 1) CASE(4, 2) CASE(4, 3)
                CASE(5, 1) CASE(5, 2) CASE(6, 1) CASE(6, 2) CASE(7, 1) CASE(8, 1)
#if MOST == 24
                CASE(2, 7) CASE(2, 8) CASE(3, 5) CASE(3, 6) CASE(3, 7) CASE(3, 8) CASE(4, 4) CASE(4, 5) CASE(4, 6)
                CASE(5, 3) CASE(5, 4) CASE(6, 3) CASE(6, 4) CASE(7, 2) CASE(7, 3) CASE(8, 2) CASE(8, 3)
#endif
            }
            j += left;
        }
        o += outs;
    }
#undef CASE
}

/* LANES samples of [count] numbers, of which `there` exist, to [count][LANES] and back. */
static void gather(const float *from, size_t count, int32_t there, vec *to, int32_t width, size_t row) {
    for (size_t i = 0, k = 0; i < count; i += width, k += row)
        for (int j = 0; j < width; j++) {
            vec at = {0};
            for (int lane = 0; lane < there; lane++) at[lane] = from[lane * count + i + j];
            to[k + j] = at;
        }
}

static void scatter(const vec *from, size_t count, int32_t there, float *to) {
    for (int lane = 0; lane < there; lane++)
        for (size_t i = 0; i < count; i++) to[lane * count + i] = ((const float *)from)[i * LANES + lane];
}

/* NaN passes through both, as in the library. */
static inline vec larger(vec a, vec b, ivec *which, int32_t number) {
    ivec second = (b > a) | (b != b);
    *which = either(second, number - (ivec){0}, *which);
    return choose(second, b, a);
}

static inline void finish(vec z, ivec which, int32_t rectified, vec *out, int8_t *kept) {
    if (rectified) {
        ivec dead = z <= (vec){0};
        which = either(dead, DEAD - (ivec){0}, which);
        z = choose(dead, (vec){0}, z);
    }
    *out = z;
    if (kept) *(bytes *)kept = __builtin_convertvector(which, bytes);
}

static int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }
static int32_t most(int32_t a, int32_t b) { return a > b ? a : b; }

/* Images [samples][...] to logits [samples][classes]. `tapes` may be null. Returns 1 if there is no memory. */
int32_t forward(const layer *layers, int32_t n, const float *x, float *logits, int8_t *tapes, int64_t samples) {
    size_t size = 0, rows = 0, recorded = tape(layers, n);
    for (int i = 0; i < n; i++) {
        const layer *l = layers + i;
        size_t two = (size_t)2 * l->filters * z_width(l);
        size += padded(l);
        rows = two > rows ? two : rows;
    }
    size_t last = outputs(layers + n - 1), first = (size_t)layers->channels * layers->height * layers->width;
    size_t bytes_needed = (size + rows + last) * sizeof(vec);
    char *memory = aligned_alloc(64, (bytes_needed + 63) / 64 * 64);
    if (!memory) return 1;
    memset(memory, 0, bytes_needed);
    vec *z = (vec *)memory + size, *end = z + rows;
    for (int64_t s = 0; s < samples; s += LANES) {
        int32_t there = (int32_t)(samples - s < LANES ? samples - s : LANES);
        vec *in = (vec *)memory;
        int8_t *kept = tapes ? tapes + s / LANES * recorded : 0;
        size_t wide = layers->width + 2 * layers->beside;
        for (int c = 0; c < layers->channels; c++) {
            size_t image = (size_t)layers->height * layers->width;
            vec *to = in + (c * (layers->height + 2 * layers->above) + layers->above) * wide + layers->beside;
            for (int i = 0; i < layers->height; i++)
                for (int j = 0; j < layers->width; j++) {
                    vec at = {0};
                    for (int lane = 0; lane < there; lane++)
                        at[lane] = x[(s + lane) * first + c * image + (size_t)i * layers->width + j];
                    to[i * wide + j] = at;
                }
        }
        for (int k = 0; k < n; k++) {
            const layer *l = layers + k, *next = k + 1 < n ? l + 1 : 0;
            int high = out_height(l), across = out_width(l), step = l->pooled ? 2 : 1, zw = z_width(l);
            size_t row = l->width + 2 * l->beside, channel = row * (l->height + 2 * l->above);
            /* A linear layer takes all of the image as channels of one pixel: its input has no padding. */
            vec *out = next ? in + padded(l) : end;
            size_t out_row = across, out_channel = (size_t)high * across;
            if (next && (next->rows > 1 || next->height > 1)) {
                out_row = next->width + 2 * next->beside;
                out_channel = out_row * (next->height + 2 * next->above);
                out += next->above * out_row + next->beside;
            }
            for (int i = 0; i < high; i++) {
                for (int a = 0; a < step; a++) {
                    int at = step * i + a;
                    correlate(in + at * row, channel, row, l->kernels, l->filters, l->channels, l->rows, l->columns,
                              most(0, l->above - at), least(l->rows, l->height + l->above - at), l->bias, z + a * zw,
                              (size_t)step * zw, zw);
                }
                for (int o = 0; o < l->filters; o++) {
                    vec *to = out + o * out_channel + i * out_row;
                    const vec *upper = z + (size_t)o * step * zw, *lower = upper + zw;
                    int8_t *note = kept ? kept + (((size_t)o * high + i) * across) * LANES : 0;
                    for (int j = 0; j < across; j++, note += kept ? LANES : 0) {
                        ivec which = {0};
                        vec value;
                        if (l->pooled) {
                            value = larger(upper[2 * j], upper[2 * j + 1], &which, 1);
                            value = larger(value, lower[2 * j], &which, 2);
                            value = larger(value, lower[2 * j + 1], &which, 3);
                        } else
                            value = upper[j];
                        finish(value, which, l->rectified, to + j, kept ? note : 0);
                    }
                }
            }
            if (kept) kept += outputs(l) * LANES;
            in += padded(l);
        }
        scatter(end, last, there, logits + s * last);
    }
    free(memory);
    return 0;
}

/* Gradients with respect to logits to those with respect to images. */
int32_t backward(const layer *layers, int32_t n, const float *grad, const int8_t *tapes, float *x, int64_t samples) {
    size_t size = 0, widest = (size_t)layers->channels * layers->height * layers->width, recorded = tape(layers, n);
    for (int i = 0; i < n; i++) {
        size += g_padded(layers + i);
        widest = outputs(layers + i) > widest ? outputs(layers + i) : widest;
    }
    size_t last = outputs(layers + n - 1), first = (size_t)layers->channels * layers->height * layers->width;
    size_t bytes_needed = (size + 2 * widest) * sizeof(vec);
    char *memory = aligned_alloc(64, (bytes_needed + 63) / 64 * 64);
    if (!memory) return 1;
    memset(memory, 0, bytes_needed);
    vec *g = (vec *)memory + size, *other = g + widest;
    for (int64_t s = 0; s < samples; s += LANES) {
        int32_t there = (int32_t)(samples - s < LANES ? samples - s : LANES);
        const int8_t *kept = tapes + (s / LANES + 1) * recorded;
        vec *z = (vec *)memory;
        gather(grad + s * last, last, there, g, (int32_t)last, last);
        for (int k = n - 1; k >= 0; k--) {
            const layer *l = layers + k;
            int high = out_height(l), across = out_width(l), below = l->rows - 1 - l->above;
            size_t row = g_width(l), channel = row * g_height(l);
            vec *inner = z + below * row + l->columns - 1 - l->beside;
            kept -= outputs(l) * LANES;
            const int8_t *note = kept;
            const vec *from = g;
            for (int o = 0; o < l->filters; o++)
                for (int i = 0; i < high; i++)
                    for (int j = 0; j < across; j++, note += LANES, from++) {
                        ivec which = __builtin_convertvector(*(const bytes *)note, ivec);
                        vec *to = inner + o * channel + (l->pooled ? 2 * (i * row + j) : i * row + j);
                        to[0] = choose(which == 0, *from, (vec){0});
                        if (l->pooled) {
                            to[1] = choose(which == 1, *from, (vec){0});
                            to[row] = choose(which == 2, *from, (vec){0});
                            to[row + 1] = choose(which == 3, *from, (vec){0});
                        }
                    }
            for (int i = 0; i < l->height; i++)
                correlate(z + i * row, channel, row, l->adjoint, l->channels, l->filters, l->rows, l->columns,
                          most(0, below - i), least(l->rows, z_height(l) + below - i), 0,
                          other + (size_t)i * l->width, (size_t)l->height * l->width, l->width);
            vec *swap = g;
            g = other, other = swap;
            z += g_padded(l);
        }
        scatter(g, first, there, x + s * first);
    }
    free(memory);
    return 0;
}
