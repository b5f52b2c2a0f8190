/* Logits and input gradients of a network of convolutions (or linear layers), each optionally with max pooling, or with
 * the output of an earlier one added, and with a ReLU. SIMD_WIDTH samples are computed side by side: every vector holds
 * one number of each of them, and weights are the same for all. A sample's result does not depend on its position in the
 * vector.
 *
 * A layer's input lies in a zero-padded buffer [channels][rows][columns] of vectors. The backward pass needs one byte
 * per output, the trace: which of the pooled pixels was the largest, or DEAD where the ReLU is 0; of a leaky ReLU
 * with NEGATIVE added where it has its slope.
 */
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

/* filters x columns outputs of one row:
 * z[o][j] = bias[o] + sum over c, u, v of kernels[c][u][v][o] * x[c][u][stride * j + dilation * v]. */
static inline __attribute__((always_inline)) void tile(
    const int filters, const int columns, const int stride, const int dilation, const vec *x, size_t channel, size_t row, const float *kernels,
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
            for (int v = 0; v < kernel_width; v++, pixel += dilation, w += all_filters) {
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
    const int stride, const int dilation, const vec *x, size_t channel, size_t row, const float *kernels, int32_t filters,
    int32_t channels, int32_t kernel_height, int32_t kernel_width, int32_t first, int32_t last, const float *bias,
    vec *z, size_t filter_stride, int32_t columns) {
#define CASE(O, J)                                                                                                    \
    case O * 16 + J:                                                                                                  \
        tile(O, J, stride, dilation, x + stride * j, channel, row, kernels + o, filters, channels, kernel_height,     \
             kernel_width, first, last, bias ? bias + o : 0, z + o * filter_stride + j, filter_stride);               \
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
static void correlate_plainly(ROW) { correlate_tiles(1, 1, ARGUMENTS); }
static void correlate_apart(int32_t stride, int32_t dilation, ROW) { correlate_tiles(stride, dilation, ARGUMENTS); }
static void correlate(int32_t stride, int32_t dilation, ROW) {
    if (stride > 1 || dilation > 1)
        correlate_apart(stride, dilation, ARGUMENTS);
    else
        correlate_plainly(ARGUMENTS);
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

/* How many of the kernels' rows begin before this row of what they are laid on. */
static inline int32_t rows_before(const layer *l, int32_t row) {
    return min(max((row + l->dilation_rows - 1) / l->dilation_rows, 0), l->kernel_height);
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

/* Along one direction: the first output that a changed input reaches, and the one after the last. */
static inline int first_reached(int first, int pad, int extent, int stride, int pool) {
    return max(first + pad - extent + stride, 0) / stride / pool;
}
static inline int last_reached(int last, int pad, int stride, int pool, int outputs) {
    return min(((last - 1 + pad) / stride) / pool + 1, outputs);
}

/* The window of a layer's output that a change in a window of its input reaches. */
static window reached(const layer *l, window w) {
    if (is_flat(l)) return (window){0, out_height(l), 0, out_width(l)};
    return (window){first_reached(w.top, l->pad_rows, extent_rows(l), l->stride_rows, l->pool_rows),
                    last_reached(w.bottom, l->pad_rows, l->stride_rows, l->pool_rows, out_height(l)),
                    first_reached(w.left, l->pad_columns, extent_columns(l), l->stride_columns, l->pool_columns),
                    last_reached(w.right, l->pad_columns, l->stride_columns, l->pool_columns, out_width(l))};
}

void find_windows(const layer *layers, int32_t n, workspace *work, window changed) {
    work->windows[0] = is_flat(layers) ? (window){0, 1, 0, 1} : changed; /* the image may be one pixel's channels */
    for (int k = 0; k < n; k++) {
        window w = reached(layers + k, work->windows[layers[k].source]);
        if (layers[k].added >= 0) {
            window other = work->windows[layers[k].added];
            w = (window){min(w.top, other.top), max(w.bottom, other.bottom), min(w.left, other.left),
                         max(w.right, other.right)};
        }
        work->windows[k + 1] = w;
    }
}

/* The largest number of a window of z, whose rows lie `row` vectors apart, and which one that is. */
static inline __attribute__((always_inline)) vec largest_of(const int rows, const int columns, const vec *z, size_t row,
                                                            ivec *argmax) {
    vec value = *z;
    for (int a = 0; a < rows; a++)
        for (int b = !a; b < columns; b++) value = larger(value, z[a * row + b], argmax, a * columns + b);
    return value;
}

/* One row of z, from the first pixel of its input, with its filters `channel` vectors apart. */
static void forward_row(const layer *l, picture in, int32_t in_row, vec *z, size_t channel, int32_t columns) {
    int32_t first = rows_before(l, l->pad_rows - in_row), last = rows_before(l, l->height + l->pad_rows - in_row);
    int32_t inputs = l->channels / l->groups, filters = l->filters / l->groups;
    size_t kernels = (size_t)inputs * l->kernel_height * l->kernel_width * filters;
    for (int g = 0; g < l->groups; g++)
        correlate(l->stride_columns, l->dilation_columns, in.pixels + g * inputs * in.channel, in.channel,
                  in.row * l->dilation_rows, l->kernels + g * kernels, filters, inputs, l->kernel_height,
                  l->kernel_width, first, last, l->bias + g * filters, z + g * filters * channel, channel, columns);
}

/* A window of a layer's output, from its padded input. z holds one row of all filters or, for pooling, several; `added`
 * has no pixels where nothing is added. */
static void forward_layer(const layer *l, window w, picture in, vec *z, picture added, picture out, int8_t *trace) {
    int height = out_height(l), width = out_width(l), high = l->pool_rows, wide = l->pool_columns;
    int zw = wide * (w.right - w.left);
    for (int i = w.top; i < w.bottom; i++) {
        for (int a = 0; a < high; a++) {
            int in_row = (high * i + a) * l->stride_rows;
            picture from = {in.pixels + in_row * in.row + (size_t)wide * w.left * l->stride_columns, in.row, in.channel};
            if (is_linear(l))
                multiply(in.pixels, l->kernels, l->bias, l->filters, l->channels, z);
            else
                forward_row(l, from, in_row, z + a * zw, (size_t)high * zw, zw);
        }
        for (int o = 0; o < l->filters; o++) {
            vec *to = out.pixels + o * out.channel + i * out.row + w.left;
            const vec *plus = added.pixels ? added.pixels + o * added.channel + i * added.row + w.left : 0;
            const vec *rows = z + (size_t)o * high * zw;
            int8_t *note = trace ? trace + (((size_t)o * height + i) * width + w.left) * SIMD_WIDTH : 0;
            for (int j = 0; j < w.right - w.left; j++, note += trace ? SIMD_WIDTH : 0) {
                ivec argmax = {0};
                vec value = high == 2 && wide == 2 ? largest_of(2, 2, rows + 2 * j, zw, &argmax)
                                                   : largest_of(high, wide, rows + wide * j, zw, &argmax);
                write_output(plus ? value + plus[j] : value, argmax, l, to + j, trace ? note : 0);
            }
        }
    }
}

void forward_windows(const layer *layers, int32_t n, workspace *work) {
    int8_t *trace = work->trace;
    for (int k = 0; k < n; k++) {
        const layer *l = layers + k;
        picture in = input_of(work, l, work->inputs), added = {0};
        if (l->added >= 0) added = image_of(work, l->added);
        forward_layer(l, work->windows[k + 1], in, work->rows, added, image_of(work, k + 1), trace);
        if (trace) trace += output_size(l) * SIMD_WIDTH;
    }
}

void forward_block(const layer *layers, int32_t n, workspace *work) {
    for (int k = 0; k < n; k++) work->windows[k + 1] = (window){0, out_height(layers + k), 0, out_width(layers + k)};
    forward_windows(layers, n, work);
}

/* Images [samples][...] to logits [samples][classes]. Block by block it keeps the trace, and for gradients of the weights
 * all buffers but the logits, unless these are NULL. Returns 1 if there is no memory. */
EXPORT int32_t forward(const layer *layers, int32_t n, const float *x, float *logits, int8_t *traces, float *inputs,
                       int64_t samples) {
    size_t classes = class_count(layers, n), image = image_size(layers), kept = inputs_size(layers, n);
    size_t noted = trace_size(layers, n);
    workspace work;
    if (allocate(&work, layers, n, inputs != 0)) return 1;
    for (int64_t s = 0; s < samples; s += SIMD_WIDTH) {
        int32_t present = (int32_t)(samples - s < SIMD_WIDTH ? samples - s : SIMD_WIDTH);
        work.trace = traces ? traces + s / SIMD_WIDTH * noted : 0;
        gather(x + s * image, image, present, work.slopes);
        set_input(layers, &work, work.slopes, 0, 0);
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

/* Write what is new, or add it to what is there. */
static inline void pass(vec new, vec *to, int is_first) { *to = is_first ? new : *to + new; }

/* The gradient with respect to z, written into its zero-padded buffer, and passed to what was added, unless that is NULL.
 * What was added may have the memory of `grad`. */
static void unpool(const layer *l, const vec *grad, const int8_t *trace, vec *z, vec *added, int is_first) {
    int high = l->pool_rows, wide = l->pool_columns;
    size_t row = padded_grad_width(l), channel = row * padded_grad_height(l);
    size_t down = l->stride_rows * row, across = l->stride_columns;
    vec *inner = z + (extent_rows(l) - 1 - l->pad_rows) * row + extent_columns(l) - 1 - l->pad_columns;
    for (int o = 0; o < l->filters; o++)
        for (int i = 0; i < out_height(l); i++)
            for (int j = 0; j < out_width(l); j++, trace += SIMD_WIDTH, grad++) {
                ivec note = __builtin_convertvector(*(const bytes *)trace, ivec), argmax = note & ~NEGATIVE;
                vec slope = l->slope ? select_vec((note & NEGATIVE) != 0, l->slope * *grad, *grad) : *grad;
                vec *to = inner + o * channel + high * i * down + wide * j * across;
                if (added) pass(select_vec(argmax == 0, slope, (vec){0}), added++, is_first);
                if (high == 2 && wide == 2)
                    spread(2, 2, slope, argmax, to, down, across);
                else
                    spread(high, wide, slope, argmax, to, down, across);
            }
}

/* The gradient with respect to a layer's input from that with respect to z; `rows` holds one row of all channels. */
static void backward_layer(const layer *l, const vec *z, vec *rows, vec *to, int is_first) {
    if (is_linear(l)) {
        multiply(z, l->adjoint, 0, l->channels, l->filters, is_first ? to : rows);
        for (int c = 0; c < l->channels && !is_first; c++) to[c] += rows[c];
        return;
    }
    int above = extent_rows(l) - 1 - l->pad_rows, below = above + (z_height(l) - 1) * l->stride_rows + 1;
    int32_t channels = l->channels / l->groups, filters = l->filters / l->groups;
    size_t row = padded_grad_width(l), channel = row * padded_grad_height(l), image = (size_t)l->height * l->width;
    size_t kernels = (size_t)channels * l->kernel_height * l->kernel_width * filters;
    for (int g = 0; g < l->groups; g++, z += filters * channel, to += channels * image)
        for (int i = 0; i < l->height; i++) {
            vec *out = to + (size_t)i * l->width;
            correlate(1, l->dilation_columns, z + i * row, channel, row * l->dilation_rows, l->adjoint + g * kernels,
                      channels, filters, l->kernel_height, l->kernel_width, rows_before(l, above - i),
                      rows_before(l, below - i), 0, is_first ? out : rows, is_first ? image : (size_t)l->width, l->width);
            for (int c = 0; c < channels && !is_first; c++)
                for (int j = 0; j < l->width; j++) out[c * image + j] += rows[c * l->width + j];
        }
}

/* The gradient with respect to a buffer. */
static vec *slopes_of(const workspace *work, int32_t b) { return work->slopes + work->buffers[b].slot * work->largest; }

const vec *backward_block(const layer *layers, int32_t n, workspace *work, const vec *grad, const int8_t *trace,
                          int to_image, visitor *visit, void *context) {
    trace += trace_size(layers, n);
    for (int k = n - 1; k >= 0; k--) {
        const layer *l = layers + k;
        vec *z = work->grads + work->buffers[k + 1].grad_offset;
        vec *added = l->added > 0 || (to_image && !l->added) ? slopes_of(work, l->added) : 0;
        trace -= output_size(l) * SIMD_WIDTH;
        unpool(l, k == n - 1 ? grad : slopes_of(work, k + 1), trace, z, added, added && work->buffers[l->added].last == k);
        if (visit) visit(context, k, z);
        if (l->source || to_image)
            backward_layer(l, z, work->rows, slopes_of(work, l->source),
                           work->buffers[l->source].last == k && l->added != l->source);
    }
    return slopes_of(work, 0);
}

/* Gradients with respect to logits to gradients with respect to images. Returns 1 if there is no memory. */
EXPORT int32_t backward(const layer *layers, int32_t n, const float *grad, const int8_t *traces, float *x, int64_t samples) {
    size_t classes = class_count(layers, n), image = image_size(layers), noted = trace_size(layers, n);
    workspace work;
    if (allocate(&work, layers, n, 0)) return 1;
    for (int64_t s = 0; s < samples; s += SIMD_WIDTH) {
        int32_t present = (int32_t)(samples - s < SIMD_WIDTH ? samples - s : SIMD_WIDTH);
        gather(grad + s * classes, classes, present, work.logits);
        const vec *input = backward_block(layers, n, &work, work.logits, traces + s / SIMD_WIDTH * noted, 1, 0, 0);
        scatter(input, image, present, x + s * image);
    }
    release(&work);
    return 0;
}
