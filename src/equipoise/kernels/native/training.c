/* Gradients with respect to the weights, for a training step, from the padded inputs that the forward pass has kept. */
#include "layers.h"

/* Where the gradients of a layer go. A convolution sums over the positions and the samples of each block; of a linear
 * layer input and gradient are written out, whose product PyTorch computes. */
typedef struct {
    float *weights; /* [blocks][filters][channels][kernel_height][kernel_width] */
    float *bias;    /* [blocks][filters] */
    float *inputs;  /* [samples][channels], of a linear layer; else NULL */
    float *slopes;  /* [samples][filters] */
} gradients;

#define MAX_TAPS 5

/* sums[f][v] over all positions of z[f] * in[dilation * v], the filters `plane` vectors apart, and their sums over the
 * lanes. The positions are every `stride`-th of z and of `in`. */
static inline __attribute__((always_inline)) void taps(const int filters, const int width, const vec *in, size_t in_row,
                                                       const vec *z, size_t z_row, size_t plane, int rows, int columns,
                                                       int stride, int dilation, float *to, size_t filter_stride) {
    vec sums[2][MAX_TAPS] = {{{0}}};
    for (int i = 0; i < rows; i++, in += in_row, z += z_row)
        for (int j = 0; j < columns; j += stride)
#pragma GCC unroll 2
            for (int f = 0; f < filters; f++)
#pragma GCC unroll 5
                for (int v = 0; v < width; v++) sums[f][v] += z[f * plane + j] * in[j + dilation * v];
    for (int f = 0; f < filters; f++)
        for (int v = 0; v < width; v++) to[f * filter_stride + v] = sum(sums[f][v]);
}

static void convolution(const layer *l, picture in, const vec *z, float *weights, float *bias) {
    size_t z_row = padded_grad_width(l), z_plane = z_row * padded_grad_height(l);
    int channels = l->channels / l->groups, filters = l->filters / l->groups;
    size_t kernel = (size_t)l->kernel_height * l->kernel_width, filter_stride = channels * kernel;
    int rows = z_height(l), stride = l->stride_columns, columns = (z_width(l) - 1) * stride + 1;
    size_t in_step = l->stride_rows * in.row, z_step = l->stride_rows * z_row;
    z += (extent_rows(l) - 1 - l->pad_rows) * z_row + extent_columns(l) - 1 - l->pad_columns;
    for (int o = 0, pair; o < l->filters; o += pair) {
        pair = (o + 1) % filters ? 2 : 1; /* filters of the same group */
        for (int c = 0; c < channels; c++)
            for (int u = 0; u < l->kernel_height; u++)
                for (int v = 0; v < l->kernel_width; v += MAX_TAPS) {
                    int width = l->kernel_width - v < MAX_TAPS ? l->kernel_width - v : MAX_TAPS, first = o / filters * channels;
                    const vec *pixels =
                        in.pixels + (first + c) * in.channel + u * l->dilation_rows * in.row + v * l->dilation_columns;
                    float *to = weights + o * filter_stride + c * kernel + u * l->kernel_width + v;
#define CASE(F, W)                                                                                            \
    case F * 8 + W:                                                                                           \
        taps(F, W, pixels, in_step, z + o * z_plane, z_step, z_plane, rows, columns, stride, l->dilation_columns, to, \
             filter_stride);                                                                                  \
        break;
                    switch (pair * 8 + width) {
                        CASE(1, 1) CASE(1, 2) CASE(1, 3) CASE(1, 4) CASE(1, 5)
                        CASE(2, 1) CASE(2, 2) CASE(2, 3) CASE(2, 4) CASE(2, 5)
                    }
#undef CASE
                }
    }
    for (int o = 0; o < l->filters; o++) {
        vec total = {0};
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < columns; j += stride) total += z[o * z_plane + i * z_step + j];
        bias[o] = sum(total);
    }
}

/* A block whose gradients are to be found. */
typedef struct {
    const layer *layers;
    const workspace *work;
    const vec *inputs;
    const gradients *all;
    int64_t block;
    int32_t present;
} step;

static void find_gradients(void *context, int32_t k, const vec *z) {
    const step *s = context;
    const layer *l = s->layers + k;
    const gradients *to = s->all + k;
    picture in = input_of(s->work, l, s->inputs);
    if (to->inputs) {
        scatter(in.pixels, l->channels, s->present, to->inputs + s->block * SIMD_WIDTH * l->channels);
        scatter(z, l->filters, s->present, to->slopes + s->block * SIMD_WIDTH * l->filters);
    } else {
        size_t weights = (size_t)l->filters * (l->channels / l->groups) * l->kernel_height * l->kernel_width;
        convolution(l, in, z, to->weights + s->block * weights, to->bias + s->block * l->filters);
    }
}

/* From gradients with respect to the logits to those with respect to the weights, and to the images unless `x` is NULL.
 * Every pointer is that of the first sample or block. Returns 1 if there is no memory. */
EXPORT int32_t backward_training(const layer *layers, int32_t n, const float *grad, const int8_t *traces, const float *inputs,
                          float *x, const gradients *all, int64_t first, int64_t count) {
    size_t classes = class_count(layers, n), image = image_size(layers), kept = inputs_size(layers, n);
    size_t noted = trace_size(layers, n);
    workspace work;
    if (allocate(&work, layers, n, 1)) return 1;
    step s = {.layers = layers, .work = &work, .all = all, .block = first / SIMD_WIDTH};
    for (int64_t start = first; start < first + count; start += SIMD_WIDTH, s.block++) {
        s.present = (int32_t)(first + count - start < SIMD_WIDTH ? first + count - start : SIMD_WIDTH);
        s.inputs = (const vec *)(inputs + s.block * kept * SIMD_WIDTH);
        gather(grad + start * classes, classes, s.present, work.logits);
        const vec *slope =
            backward_block(layers, n, &work, work.logits, traces + s.block * noted, x != 0, find_gradients, &s);
        if (x) scatter(slope, image, s.present, x + start * image);
    }
    release(&work);
    return 0;
}
