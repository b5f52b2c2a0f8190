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

/* sums[f][v] over all positions of z[f] * in[v], the filters `plane` vectors apart, and their sums over the lanes. The
 * positions are every `stride`-th of z and of `in`. */
static inline __attribute__((always_inline)) void taps(const int filters, const int width, const vec *in, size_t in_row,
                                                       const vec *z, size_t z_row, size_t plane, int rows, int columns,
                                                       int stride, float *to, size_t filter_stride) {
    vec sums[2][MAX_TAPS] = {{{0}}};
    for (int i = 0; i < rows; i++, in += in_row, z += z_row)
        for (int j = 0; j < columns; j += stride)
#pragma GCC unroll 2
            for (int f = 0; f < filters; f++)
#pragma GCC unroll 5
                for (int v = 0; v < width; v++) sums[f][v] += z[f * plane + j] * in[j + v];
    for (int f = 0; f < filters; f++)
        for (int v = 0; v < width; v++) to[f * filter_stride + v] = sum(sums[f][v]);
}

static void convolution(const layer *l, const vec *in, const vec *z, float *weights, float *bias) {
    size_t in_row = l->width + 2 * l->pad_columns, in_plane = in_row * (l->height + 2 * l->pad_rows);
    size_t z_row = padded_grad_width(l), z_plane = z_row * padded_grad_height(l);
    size_t kernel = (size_t)l->kernel_height * l->kernel_width, filter_stride = l->channels * kernel;
    int rows = z_height(l), stride = l->stride_columns, columns = (z_width(l) - 1) * stride + 1;
    size_t in_step = l->stride_rows * in_row, z_step = l->stride_rows * z_row;
    z += (l->kernel_height - 1 - l->pad_rows) * z_row + l->kernel_width - 1 - l->pad_columns;
    for (int o = 0; o < l->filters; o += 2)
        for (int c = 0; c < l->channels; c++)
            for (int u = 0; u < l->kernel_height; u++)
                for (int v = 0; v < l->kernel_width; v += MAX_TAPS) {
                    int width = l->kernel_width - v < MAX_TAPS ? l->kernel_width - v : MAX_TAPS;
                    const vec *pixels = in + c * in_plane + u * in_row + v;
                    float *to = weights + o * filter_stride + c * kernel + u * l->kernel_width + v;
#define CASE(F, W)                                                                                             \
    case F * 8 + W:                                                                                            \
        taps(F, W, pixels, in_step, z + o * z_plane, z_step, z_plane, rows, columns, stride, to, filter_stride); \
        break;
                    switch ((o + 1 < l->filters ? 2 : 1) * 8 + width) {
                        CASE(1, 1) CASE(1, 2) CASE(1, 3) CASE(1, 4) CASE(1, 5)
                        CASE(2, 1) CASE(2, 2) CASE(2, 3) CASE(2, 4) CASE(2, 5)
                    }
#undef CASE
                }
    for (int o = 0; o < l->filters; o++) {
        vec total = {0};
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < columns; j += stride) total += z[o * z_plane + i * z_step + j];
        bias[o] = sum(total);
    }
}

/* From gradients with respect to the logits to those with respect to the weights, and to the images unless `x` is NULL.
 * Every pointer is that of the first sample or block. Returns 1 if there is no memory. */
EXPORT int32_t backward_training(const layer *layers, int32_t n, const float *grad, const int8_t *traces, const float *inputs,
                          float *x, const gradients *all, int64_t first, int64_t count) {
    size_t classes = class_count(layers, n), image = image_size(layers), kept = inputs_size(layers, n);
    workspace work;
    if (allocate(&work, layers, n)) return 1;
    for (int64_t s = first; s < first + count; s += SIMD_WIDTH) {
        int32_t present = (int32_t)(first + count - s < SIMD_WIDTH ? first + count - s : SIMD_WIDTH);
        int64_t block = s / SIMD_WIDTH;
        gather(grad + s * classes, classes, present, work.logits);
        const vec *slope = backward_block(layers, n, &work, work.logits, traces + block * trace_size(layers, n), x != 0);
        if (x) scatter(slope, image, present, x + s * image);
        const vec *in = (const vec *)(inputs + block * kept * SIMD_WIDTH), *z = work.grads + grads_size(layers, n);
        for (int k = 0; k < n; k++) {
            const layer *l = layers + k;
            const gradients *to = all + k;
            z -= padded_grad_size(l);
            if (to->inputs) {
                scatter(in, l->channels, present, to->inputs + s * l->channels);
                scatter(z, l->filters, present, to->slopes + s * l->filters);
            } else {
                size_t weights = (size_t)l->filters * l->channels * l->kernel_height * l->kernel_width;
                convolution(l, in, z, to->weights + block * weights, to->bias + block * l->filters);
            }
            in += padded_input_size(l);
        }
    }
    release(&work);
    return 0;
}
