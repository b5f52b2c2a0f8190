/* A network as layers, computed for SIMD_WIDTH samples side by side: one block (`layers.c`). */
#ifndef LAYERS_H
#define LAYERS_H
#include <stddef.h>
#include <stdint.h>

#include "simd.h"

typedef struct {
    int32_t channels, height, width; /* of the input */
    int32_t filters, kernel_height, kernel_width;
    int32_t stride_rows, stride_columns;
    int32_t pad_rows, pad_columns;
    int32_t pool_rows, pool_columns; /* max pooling of disjoint windows of this size; 1 x 1: none */
    int32_t rectified;
    float slope; /* of a leaky ReLU where it is negative; 0: a ReLU */
    const float *kernels; /* [channels][kernel_height][kernel_width][filters]; of a linear layer see `multiply` */
    const float *adjoint; /* [filters][kernel_height][kernel_width][channels], flipped; of a linear layer transposed */
    const float *bias;    /* [filters] */
} layer;

/* Whether it is a linear layer: a convolution of one pixel. */
static inline int is_linear(const layer *l) {
    return l->height == 1 && l->width == 1 && l->kernel_height == 1 && l->kernel_width == 1 && !l->pad_rows &&
           !l->pad_columns;
}

/* Sizes, in vectors. z is the output of the convolution, before pooling. */
static inline int z_height(const layer *l) {
    return (l->height + 2 * l->pad_rows - l->kernel_height) / l->stride_rows + 1;
}
static inline int z_width(const layer *l) {
    return (l->width + 2 * l->pad_columns - l->kernel_width) / l->stride_columns + 1;
}
static inline int out_height(const layer *l) { return z_height(l) / l->pool_rows; }
static inline int out_width(const layer *l) { return z_width(l) / l->pool_columns; }
static inline size_t output_size(const layer *l) { return (size_t)l->filters * out_height(l) * out_width(l); }
static inline size_t padded_input_size(const layer *l) {
    return (size_t)l->channels * (l->height + 2 * l->pad_rows) * (l->width + 2 * l->pad_columns);
}
/* The gradient with respect to z, padded for the correlation with the flipped kernels, and with zeros between its rows and
 * columns where there is a stride. */
static inline int padded_grad_width(const layer *l) { return l->width + l->kernel_width - 1; }
static inline int padded_grad_height(const layer *l) { return l->height + l->kernel_height - 1; }
static inline size_t padded_grad_size(const layer *l) {
    return (size_t)l->filters * padded_grad_height(l) * padded_grad_width(l);
}

/* An image of vectors in memory: its first pixel, and how far apart its rows and its channels lie. */
typedef struct {
    vec *pixels;
    size_t row, channel;
} picture;

/* The rows `top` to `bottom - 1` and the columns `left` to `right - 1` of an image. */
typedef struct {
    int top, bottom, left, right;
} window;

/* What a block is computed in. All buffers are in vectors; borders of padded buffers stay zero. */
typedef struct {
    vec *inputs; /* the padded inputs of all layers, one after the other */
    vec *rows;   /* one or two rows of a convolution's output */
    vec *logits;
    vec *grads; /* the padded gradients with respect to the convolutions' outputs, the last layer first */
    vec *from, *to;
    int8_t *trace; /* what the backward pass needs; NULL: is not kept */
    char *memory;
} workspace;

/* Returns 1 if there is no memory. */
int allocate(workspace *work, const layer *layers, int32_t n);
void release(workspace *work);

/* The number of pixels of the network's input, and of classes. */
size_t image_size(const layer *layers);
size_t class_count(const layer *layers, int32_t n);
/* Vectors in all padded inputs and in all padded gradients; bytes of the trace of a block. */
size_t inputs_size(const layer *layers, int32_t n);
size_t grads_size(const layer *layers, int32_t n);
size_t trace_size(const layer *layers, int32_t n);

/* Transpose `samples` <= SIMD_WIDTH rows of `count` numbers to vectors (missing samples are 0), and back. */
void gather(const float *rows, size_t count, int32_t samples, vec *to);
void scatter(const vec *from, size_t count, int32_t samples, float *to);

/* Write an image [channels][height][width] of vectors to the padded input, as scale * pixel + shift if given. */
void set_input(const layer *layers, workspace *work, const vec *image, const float *scale, const float *shift);

/* From the padded input to `work->logits`. */
void forward_block(const layer *layers, int32_t n, workspace *work);

/* The same where only a window of the padded input has changed since: only what the change reaches is computed. */
void forward_window(const layer *layers, int32_t n, workspace *work, window changed);

/* The window of a layer's output that a change in a window of its input reaches. */
window reached(const layer *l, window changed);

/* Where an image of this size lies in the padded input of the layer that reads it. A linear layer, which takes the whole
 * image as the channels of one pixel, and none (NULL) have no padding. */
picture placed(vec *input, const layer *reader, int height, int width);

/* From gradients with respect to the logits, and the trace of the forward pass, to those with respect to the
 * convolutions' outputs in `work->grads` and, if `to_image`, with respect to the image, which are returned and stay in
 * the workspace until the next call. */
const vec *backward_block(const layer *layers, int32_t n, workspace *work, const vec *grad, const int8_t *trace,
                          int to_image);
#endif
