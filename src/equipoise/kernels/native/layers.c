/* Logits and input gradients of a sequence of convolutions (or linear layers), each optionally with max pooling and
 * ReLU. SIMD_WIDTH samples are computed side by side: every vector holds one number of each of them, and
 * weights are the same for all. A sample's result does not depend on its position in the vector.
 *
 * A layer's input lies in a zero-padded buffer [channels][rows][columns] of vectors. The backward pass needs one byte
 * per output, the trace: which of the pooled pixels was the largest, or DEAD where the ReLU is 0; of a leaky ReLU
 * with NEGATIVE added where it has its slope.
 */
#include <stdlib.h>
#include <string.h>

#include "layers.h"

#define DEAD 63
#define NEGATIVE 64
/* A tile of filters x columns is accumulated in registers: at most MAX_FILTERS filters, MAX_COLUMNS pixels of a row, and
 * MAX_TILE of both together. */
#define MAX_FILTERS 8
#define MAX_COLUMNS 8
#ifdef __AVX512F__
#define MAX_TILE 24
#else
#define MAX_TILE 12
#endif
#define LINEAR_TILE MAX_TILE

EXPORT int32_t linear_tile(void) { return LINEAR_TILE; }

EXPORT int32_t simd_width(void) { return SIMD_WIDTH; }

static int32_t min(int32_t a, int32_t b) { return a < b ? a : b; }
static int32_t max(int32_t a, int32_t b) { return a > b ? a : b; }

/* Bytes of the trace of SIMD_WIDTH samples. */
EXPORT size_t trace_size(const layer *layers, int32_t n) {
    size_t total = 0;
    for (int i = 0; i < n; i++) total += output_size(layers + i);
    return total * SIMD_WIDTH;
}

/* filters x columns outputs of one row:
 * z[o][j] = bias[o] + sum over c, u, v of kernels[c][u][v][o] * x[c][u][stride * j + v]. */
static inline __attribute__((always_inline)) void tile(
    const int filters, const int columns, const int stride, const vec *x, size_t channel, size_t row, const float *kernels,
    int32_t all_filters, int32_t channels, int32_t kernel_height, int32_t kernel_width, int32_t first, int32_t last,
    const float *bias, vec *z, size_t filter_stride) {
    vec sums[MAX_FILTERS][MAX_COLUMNS];
#pragma GCC unroll 8
    for (int o = 0; o < filters; o++)
#pragma GCC unroll 8
        for (int j = 0; j < columns; j++) sums[o][j] = bias ? broadcast(bias[o]) : (vec){0};
    for (int c = 0; c < channels; c++)
        for (int u = first; u < last; u++) {
            const vec *pixel = x + c * channel + u * row;
            const float *w = kernels + (size_t)(c * kernel_height + u) * kernel_width * all_filters;
            for (int v = 0; v < kernel_width; v++, pixel++, w += all_filters) {
                vec pixels[MAX_COLUMNS];
#pragma GCC unroll 8
                for (int j = 0; j < columns; j++) pixels[j] = pixel[stride * j];
#pragma GCC unroll 8
                for (int o = 0; o < filters; o++)
#pragma GCC unroll 8
                    for (int j = 0; j < columns; j++) sums[o][j] += w[o] * pixels[j];
            }
        }
#pragma GCC unroll 8
    for (int o = 0; o < filters; o++)
#pragma GCC unroll 8
        for (int j = 0; j < columns; j++) z[o * filter_stride + j] = sums[o][j];
}

/* One output row of all filters, tile by tile. Only the kernels' rows `first` to `last - 1` are used: the others would
 * meet padding. */
static inline __attribute__((always_inline)) void correlate_tiles(
    const int stride, const vec *x, size_t channel, size_t row, const float *kernels, int32_t filters,
    int32_t channels, int32_t kernel_height, int32_t kernel_width, int32_t first, int32_t last, const float *bias,
    vec *z, size_t filter_stride, int32_t columns) {
#define CASE(O, J)                                                                                                    \
    case O * 16 + J:                                                                                                  \
        tile(O, J, stride, x + stride * j, channel, row, kernels + o, filters, channels, kernel_height, kernel_width, \
             first, last, bias ? bias + o : 0, z + o * filter_stride + j, filter_stride);                             \
        break;
    /* Two columns at least: a tile of 8 filters x 1 column waits for its loads. */
    int most = columns > 1 ? min(MAX_FILTERS, MAX_TILE / 2) : MAX_FILTERS;
    for (int o = 0; o < filters;) {
        int tile_filters = min(filters - o, most);
        int max_columns = min(MAX_TILE / tile_filters, MAX_COLUMNS);
        for (int j = 0; j < columns;) {
            int tile_columns = min(columns - j, max_columns);
            switch (tile_filters * 16 + tile_columns) {
                CASE(1, 1) CASE(1, 2) CASE(1, 3) CASE(1, 4) CASE(1, 5) CASE(1, 6) CASE(1, 7) CASE(1, 8)
                CASE(2, 1) CASE(2, 2) CASE(2, 3) CASE(2, 4) CASE(2, 5) CASE(2, 6)
                CASE(3, 1) CASE(3, 2) CASE(3, 3) CASE(3, 4)
                CASE(4, 1) CASE(4, 2) CASE(4, 3)
                CASE(5, 1) CASE(5, 2) CASE(6, 1) CASE(6, 2) CASE(7, 1) CASE(8, 1)
#if MAX_TILE == 24
                CASE(2, 7) CASE(2, 8) CASE(3, 5) CASE(3, 6) CASE(3, 7) CASE(3, 8) CASE(4, 4) CASE(4, 5) CASE(4, 6)
                CASE(5, 3) CASE(5, 4) CASE(6, 3) CASE(6, 4) CASE(7, 2) CASE(7, 3) CASE(8, 2) CASE(8, 3)
#endif
            }
            j += tile_columns;
        }
        o += tile_filters;
    }
#undef CASE
}

#define ROW                                                                                                          \
    const vec *x, size_t channel, size_t row, const float *kernels, int32_t filters, int32_t channels,              \
        int32_t kernel_height, int32_t kernel_width, int32_t first, int32_t last, const float *bias, vec *z,         \
        size_t filter_stride, int32_t columns
#define ARGUMENTS                                                                                                     \
    x, channel, row, kernels, filters, channels, kernel_height, kernel_width, first, last, bias, z, filter_stride, columns
static void correlate(ROW) { correlate_tiles(1, ARGUMENTS); }
static void correlate_strided(int32_t stride, ROW) { correlate_tiles(stride, ARGUMENTS); }

void gather(const float *rows, size_t count, int32_t samples, vec *to) {
    for (size_t i = 0; i < count; i++) {
        vec value = {0};
        for (int k = 0; k < samples; k++) value[k] = rows[k * count + i];
        to[i] = value;
    }
}

void scatter(const vec *from, size_t count, int32_t samples, float *to) {
    for (int k = 0; k < samples; k++)
        for (size_t i = 0; i < count; i++) to[k * count + i] = ((const float *)from)[i * SIMD_WIDTH + k];
}

/* A linear layer: out[o] = bias[o] + sum over c of weights[o][c] * in[c], LINEAR_TILE outputs at a time, whose weights
 * lie side by side: [outputs / LINEAR_TILE][inputs][LINEAR_TILE], the last ones padded with zeros. */
static void multiply(const vec *in, const float *weights, const float *bias, int32_t outputs, int32_t inputs, vec *out) {
    for (int o = 0; o < outputs; o += LINEAR_TILE) {
        vec sums[LINEAR_TILE];
        int present = min(LINEAR_TILE, outputs - o);
        for (int t = 0; t < LINEAR_TILE; t++) sums[t] = bias && t < present ? broadcast(bias[o + t]) : (vec){0};
        for (int c = 0; c < inputs; c++, weights += LINEAR_TILE) {
            vec pixel = in[c];
#pragma GCC unroll 24
            for (int t = 0; t < LINEAR_TILE; t++) sums[t] += weights[t] * pixel;
        }
        for (int t = 0; t < present; t++) out[o + t] = sums[t];
    }
}

/* The larger of two, and its index where that is b. NaN passes through, as in PyTorch. */
static inline vec larger(vec a, vec b, ivec *argmax, int32_t index) {
    ivec second = (b > a) | (b != b);
    *argmax = iselect(second, index - (ivec){0}, *argmax);
    return select_vec(second, b, a);
}

/* Write one output, rectified if requested, and its byte of the trace. */
static inline void write_output(vec z, ivec argmax, const layer *l, vec *out, int8_t *trace) {
    if (l->rectified) {
        ivec low = z <= (vec){0};
        argmax = iselect(low, l->slope ? argmax | NEGATIVE : DEAD - (ivec){0}, argmax);
        z = select_vec(low, l->slope ? l->slope * z : (vec){0}, z);
    }
    *out = z;
    if (trace) *(bytes *)trace = __builtin_convertvector(argmax, bytes);
}

size_t image_size(const layer *layers) { return (size_t)layers->channels * layers->height * layers->width; }
size_t class_count(const layer *layers, int32_t n) { return output_size(layers + n - 1); }

EXPORT size_t inputs_size(const layer *layers, int32_t n) {
    size_t total = 0;
    for (int i = 0; i < n; i++) total += padded_input_size(layers + i);
    return total;
}

size_t grads_size(const layer *layers, int32_t n) {
    size_t total = 0;
    for (int i = 0; i < n; i++) total += padded_grad_size(layers + i);
    return total;
}

int allocate(workspace *work, const layer *layers, int32_t n) {
    size_t inputs = inputs_size(layers, n), grads = grads_size(layers, n), rows = 0, largest = image_size(layers);
    for (int i = 0; i < n; i++) {
        const layer *l = layers + i;
        if ((size_t)l->pool_rows * l->filters * z_width(l) > rows) rows = (size_t)l->pool_rows * l->filters * z_width(l);
        if (output_size(l) > largest) largest = output_size(l);
    }
    size_t vectors = inputs + rows + class_count(layers, n) + grads + 2 * largest;
    size_t bytes = (vectors * sizeof(vec) + trace_size(layers, n) + 63) / 64 * 64;
    if (!(work->memory = aligned_alloc(64, bytes))) return 1;
    memset(work->memory, 0, bytes);
    work->inputs = (vec *)work->memory;
    work->rows = work->inputs + inputs;
    work->logits = work->rows + rows;
    work->grads = work->logits + class_count(layers, n);
    work->from = work->grads + grads;
    work->to = work->from + largest;
    work->trace = (int8_t *)(work->to + largest);
    return 0;
}

void release(workspace *work) { free(work->memory); }

picture placed(vec *input, const layer *reader, int height, int width) {
    if (!reader || is_linear(reader)) return (picture){input, width, (size_t)width * height};
    size_t row = width + 2 * reader->pad_columns;
    return (picture){input + reader->pad_rows * row + reader->pad_columns, row, row * (height + 2 * reader->pad_rows)};
}

/* Along one direction: the first output that a changed input reaches, and the one after the last. */
static inline int first_reached(int first, int pad, int kernel, int stride, int pool) {
    return max(first + pad - kernel + stride, 0) / stride / pool;
}
static inline int last_reached(int last, int pad, int stride, int pool, int outputs) {
    return min(((last - 1 + pad) / stride) / pool + 1, outputs);
}

window reached(const layer *l, window w) {
    if (is_linear(l)) return (window){0, 1, 0, 1};
    return (window){first_reached(w.top, l->pad_rows, l->kernel_height, l->stride_rows, l->pool_rows),
                    last_reached(w.bottom, l->pad_rows, l->stride_rows, l->pool_rows, out_height(l)),
                    first_reached(w.left, l->pad_columns, l->kernel_width, l->stride_columns, l->pool_columns),
                    last_reached(w.right, l->pad_columns, l->stride_columns, l->pool_columns, out_width(l))};
}

/* The largest number of a window of z, whose rows lie `row` vectors apart, and which one that is. */
static inline __attribute__((always_inline)) vec largest_of(const int rows, const int columns, const vec *z, size_t row,
                                                            ivec *argmax) {
    vec value = *z;
    for (int a = 0; a < rows; a++)
        for (int b = !a; b < columns; b++) value = larger(value, z[a * row + b], argmax, a * columns + b);
    return value;
}

/* A window of a layer's output, from its padded input. z holds one row of all filters or, for pooling, several. */
static void forward_layer(const layer *l, window w, const vec *in, vec *z, picture out, int8_t *trace) {
    int height = out_height(l), width = out_width(l), high = l->pool_rows, wide = l->pool_columns;
    int zw = wide * (w.right - w.left), down = l->stride_rows, across = l->stride_columns;
    size_t row = l->width + 2 * l->pad_columns, channel = row * (l->height + 2 * l->pad_rows);
    for (int i = w.top; i < w.bottom; i++) {
        for (int a = 0; a < high; a++) {
            int in_row = (high * i + a) * down, first = max(0, l->pad_rows - in_row);
            int last = min(l->kernel_height, l->height + l->pad_rows - in_row);
            const vec *from = in + in_row * row + (size_t)wide * w.left * across;
            if (is_linear(l))
                multiply(in, l->kernels, l->bias, l->filters, l->channels, z);
            else if (across == 1)
                correlate(from, channel, row, l->kernels, l->filters, l->channels, l->kernel_height, l->kernel_width,
                          first, last, l->bias, z + a * zw, (size_t)high * zw, zw);
            else
                correlate_strided(across, from, channel, row, l->kernels, l->filters, l->channels, l->kernel_height,
                                  l->kernel_width, first, last, l->bias, z + a * zw, (size_t)high * zw, zw);
        }
        for (int o = 0; o < l->filters; o++) {
            vec *to = out.pixels + o * out.channel + i * out.row + w.left;
            const vec *rows = z + (size_t)o * high * zw;
            int8_t *note = trace ? trace + (((size_t)o * height + i) * width + w.left) * SIMD_WIDTH : 0;
            for (int j = 0; j < w.right - w.left; j++, note += trace ? SIMD_WIDTH : 0) {
                ivec argmax = {0};
                vec value = high == 2 && wide == 2 ? largest_of(2, 2, rows + 2 * j, zw, &argmax)
                                                   : largest_of(high, wide, rows + wide * j, zw, &argmax);
                write_output(value, argmax, l, to + j, trace ? note : 0);
            }
        }
    }
}

void set_input(const layer *l, workspace *work, const vec *image, const float *scale, const float *shift) {
    picture to = placed(work->inputs, l, l->height, l->width);
    for (int c = 0; c < l->channels; c++)
        for (int i = 0; i < l->height; i++) {
            vec *row = to.pixels + c * to.channel + i * to.row;
            size_t first = ((size_t)c * l->height + i) * l->width;
            for (int j = 0; j < l->width; j++)
                row[j] = scale ? scale[first + j] * image[first + j] + shift[first + j] : image[first + j];
        }
}

void forward_window(const layer *layers, int32_t n, workspace *work, window changed) {
    vec *in = work->inputs;
    int8_t *trace = work->trace;
    for (int k = 0; k < n; k++) {
        const layer *l = layers + k, *next = k + 1 < n ? l + 1 : 0;
        vec *out = next ? in + padded_input_size(l) : work->logits;
        changed = reached(l, changed);
        forward_layer(l, changed, in, work->rows, placed(out, next, out_height(l), out_width(l)), trace);
        if (trace) trace += output_size(l) * SIMD_WIDTH;
        in = out;
    }
}

void forward_block(const layer *layers, int32_t n, workspace *work) {
    forward_window(layers, n, work, (window){0, layers->height, 0, layers->width});
}

/* Images [samples][...] to logits [samples][classes]. Block by block it keeps the trace, and for gradients of the weights
 * the padded inputs of all layers, unless these are NULL. Returns 1 if there is no memory. */
EXPORT int32_t forward(const layer *layers, int32_t n, const float *x, float *logits, int8_t *traces, float *inputs,
                       int64_t samples) {
    size_t classes = class_count(layers, n), image = image_size(layers), kept = inputs_size(layers, n);
    workspace work;
    if (allocate(&work, layers, n)) return 1;
    for (int64_t s = 0; s < samples; s += SIMD_WIDTH) {
        int32_t present = (int32_t)(samples - s < SIMD_WIDTH ? samples - s : SIMD_WIDTH);
        work.trace = traces ? traces + s / SIMD_WIDTH * trace_size(layers, n) : 0;
        gather(x + s * image, image, present, work.from);
        set_input(layers, &work, work.from, 0, 0);
        forward_block(layers, n, &work);
        scatter(work.logits, classes, present, logits + s * classes);
        if (inputs) memcpy(inputs + s / SIMD_WIDTH * kept * SIMD_WIDTH, work.inputs, kept * sizeof(vec));
    }
    release(&work);
    return 0;
}

/* The gradient of an output goes to the largest pixel of its window of z, whose rows and columns lie this far apart. */
static inline __attribute__((always_inline)) void spread(const int rows, const int columns, vec slope, ivec argmax, vec *z,
                                                         size_t row, size_t column) {
    for (int a = 0; a < rows; a++)
        for (int b = 0; b < columns; b++)
            z[a * row + b * column] = select_vec(argmax == a * columns + b, slope, (vec){0});
}

/* The gradient with respect to z, written into its zero-padded buffer. */
static void unpool(const layer *l, const vec *grad, const int8_t *trace, vec *z) {
    int high = l->pool_rows, wide = l->pool_columns;
    size_t row = padded_grad_width(l), channel = row * padded_grad_height(l);
    size_t down = l->stride_rows * row, across = l->stride_columns;
    vec *inner = z + (l->kernel_height - 1 - l->pad_rows) * row + l->kernel_width - 1 - l->pad_columns;
    for (int o = 0; o < l->filters; o++)
        for (int i = 0; i < out_height(l); i++)
            for (int j = 0; j < out_width(l); j++, trace += SIMD_WIDTH, grad++) {
                ivec note = __builtin_convertvector(*(const bytes *)trace, ivec), argmax = note & ~NEGATIVE;
                vec slope = l->slope ? select_vec((note & NEGATIVE) != 0, l->slope * *grad, *grad) : *grad;
                vec *to = inner + o * channel + high * i * down + wide * j * across;
                if (high == 2 && wide == 2)
                    spread(2, 2, slope, argmax, to, down, across);
                else
                    spread(high, wide, slope, argmax, to, down, across);
            }
}

const vec *backward_block(const layer *layers, int32_t n, workspace *work, const vec *grad, const int8_t *trace,
                          int to_image) {
    const vec *from = grad;
    vec *to = work->to, *other = work->from, *z = work->grads;
    trace += trace_size(layers, n);
    for (int k = n - 1; k >= 0; k--) {
        const layer *l = layers + k;
        int above = l->kernel_height - 1 - l->pad_rows;
        size_t row = padded_grad_width(l), channel = row * padded_grad_height(l);
        trace -= output_size(l) * SIMD_WIDTH;
        unpool(l, from, trace, z);
        if (k == 0 && !to_image) break;
        if (is_linear(l)) multiply(z, l->adjoint, 0, l->channels, l->filters, to);
        for (int i = 0; i < l->height && !is_linear(l); i++)
            correlate(z + i * row, channel, row, l->adjoint, l->channels, l->filters, l->kernel_height,
                      l->kernel_width, max(0, above - i),
                      min(l->kernel_height, (z_height(l) - 1) * l->stride_rows + 1 + above - i), 0,
                      to + (size_t)i * l->width, (size_t)l->height * l->width, l->width);
        from = to, to = other, other = (vec *)from;
        z += padded_grad_size(l);
    }
    return from;
}

/* Gradients with respect to logits to gradients with respect to images. Returns 1 if there is no memory. */
EXPORT int32_t backward(const layer *layers, int32_t n, const float *grad, const int8_t *traces, float *x, int64_t samples) {
    size_t classes = class_count(layers, n), image = image_size(layers);
    workspace work;
    if (allocate(&work, layers, n)) return 1;
    for (int64_t s = 0; s < samples; s += SIMD_WIDTH) {
        int32_t present = (int32_t)(samples - s < SIMD_WIDTH ? samples - s : SIMD_WIDTH);
        gather(grad + s * classes, classes, present, work.logits);
        const vec *input = backward_block(layers, n, &work, work.logits, traces + s / SIMD_WIDTH * trace_size(layers, n), 1);
        scatter(input, image, present, x + s * image);
    }
    release(&work);
    return 0;
}
