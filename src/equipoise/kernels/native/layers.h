/* A network as layers, computed for SIMD_WIDTH samples side by side: one block (`layers.c`). */
#ifndef LAYERS_H
#define LAYERS_H
#include <stddef.h>
#include <stdint.h>

#include "simd.h"

/* Layers read and write buffers: buffer 0 is the image, buffer k + 1 the output of layer k, the last one the logits. */
typedef struct {
    int32_t source; /* the buffer that it reads: of an earlier layer, or the image */
    int32_t added;  /* the buffer that is added before the rectifier, in a layer without pooling; -1: none */
    int32_t channels, groups; /* of the input: filters of a group see its channels / groups alone */
    int32_t height, width;
    int32_t filters, kernel_height, kernel_width;
    int32_t stride_rows, stride_columns;
    int32_t dilation_rows, dilation_columns;
    int32_t pad_rows, pad_columns;
    int32_t pool_rows, pool_columns; /* max pooling of disjoint windows of this size; 1 x 1: none */
    int32_t rectified;
    float slope; /* of a leaky ReLU where it is negative; 0: a ReLU */
    const float *kernels; /* [groups][channels / groups][kernel_height][kernel_width][filters / groups]; of a linear
                             layer see `multiply` */
    const float *adjoint; /* [groups][filters / groups][kernel_height][kernel_width][channels / groups], flipped; of a
                             linear layer transposed */
    const float *bias;    /* [filters] */
} layer;

/* Whether it takes the whole buffer as the channels of one pixel. */
static inline int is_flat(const layer *l) { return l->height == 1 && l->width == 1; }

/* Whether it is a linear layer: a convolution of one pixel. */
static inline int is_linear(const layer *l) {
    return is_flat(l) && l->kernel_height == 1 && l->kernel_width == 1 && !l->pad_rows && !l->pad_columns && l->groups == 1;
}

/* Rows and columns that a kernel spans. */
static inline int extent_rows(const layer *l) { return (l->kernel_height - 1) * l->dilation_rows + 1; }
static inline int extent_columns(const layer *l) { return (l->kernel_width - 1) * l->dilation_columns + 1; }

/* Sizes, in vectors. z is the output of the convolution, before pooling. */
static inline int z_height(const layer *l) {
    return (l->height + 2 * l->pad_rows - extent_rows(l)) / l->stride_rows + 1;
}
static inline int z_width(const layer *l) {
    return (l->width + 2 * l->pad_columns - extent_columns(l)) / l->stride_columns + 1;
}
static inline int out_height(const layer *l) { return z_height(l) / l->pool_rows; }
static inline int out_width(const layer *l) { return z_width(l) / l->pool_columns; }
static inline size_t output_size(const layer *l) { return (size_t)l->filters * out_height(l) * out_width(l); }
/* The gradient with respect to z, padded for the correlation with the flipped kernels, and with zeros between its rows and
 * columns where there is a stride. */
static inline int padded_grad_width(const layer *l) { return l->width + extent_columns(l) - 1; }
static inline int padded_grad_height(const layer *l) { return l->height + extent_rows(l) - 1; }
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

/* What layers read and write: an image within a border of zeros, as wide as its readers' padding. */
typedef struct {
    int32_t channels, height, width;
    int32_t border_rows, border_columns;
    int32_t last;     /* its last reader; -1: none */
    int32_t replaced; /* whether a later one has its memory */
    int32_t slot;     /* of its gradient, of which several take turns in the same memory; -1: none */
    size_t offset;    /* in vectors, of the padded image */
    size_t grad_offset; /* of `padded_grad_size`, for the layer whose output it is */
} buffer;

/* What a block is computed in. All buffers are in vectors; borders of padded buffers stay zero. */
typedef struct {
    buffer *buffers;
    window *windows; /* of each buffer, what a change reaches */
    vec *inputs;     /* the padded images of all buffers but the logits */
    vec *rows;       /* a few rows of a convolution's output, or of a gradient */
    vec *logits;
    vec *grads;     /* the padded gradients with respect to the convolutions' outputs; alike ones take turns */
    vec *slopes;    /* the gradients with respect to the buffers, [slots][largest] */
    size_t largest; /* image of a buffer, without its border */
    int8_t *trace;  /* what the backward pass needs; NULL: is not kept */
    char *memory;
} workspace;

/* Unless they are `kept` for later, buffers that are alike take turns in the same memory. Returns 1 if there is none. */
int allocate(workspace *work, const layer *layers, int32_t n, int kept);
void release(workspace *work);

/* The number of pixels of the network's input, and of classes. */
size_t image_size(const layer *layers);
size_t class_count(const layer *layers, int32_t n);
/* Vectors in all buffers but the logits; bytes of the trace of a block. */
size_t inputs_size(const layer *layers, int32_t n);
size_t trace_size(const layer *layers, int32_t n);

/* Transpose `samples` <= SIMD_WIDTH rows of `count` numbers to vectors (missing samples are 0), and back. */
void gather(const float *rows, size_t count, int32_t samples, vec *to);
void scatter(const vec *from, size_t count, int32_t samples, float *to);

/* The image of a buffer; and that of a layer's source as the layer reads it, from the first pixel of its padding on, when
 * all buffers but the logits lie at `inputs`. */
picture image_of(const workspace *work, int32_t b);
picture input_of(const workspace *work, const layer *l, const vec *inputs);

/* Write an image [channels][height][width] of vectors to buffer 0, as scale * pixel + shift if given. */
void set_input(const layer *layers, workspace *work, const vec *image, const float *scale, const float *shift);

/* From buffer 0 to `work->logits`. */
void forward_block(const layer *layers, int32_t n, workspace *work);

/* Set `work->windows` to what a change in a window of buffer 0 reaches; and compute only that, if nothing else has changed
 * since. */
void find_windows(const layer *layers, int32_t n, workspace *work, window changed);
void forward_windows(const layer *layers, int32_t n, workspace *work);

/* What is to be done with the padded gradient with respect to the output of convolution k. */
typedef void visitor(void *context, int32_t k, const vec *z);

/* From gradients with respect to the logits, and the trace of the forward pass, to those with respect to the
 * convolutions' outputs, which are shown to `visit` unless it is NULL, and, if `to_image`, with respect to the image,
 * which are returned and stay in the workspace until the next call. */
const vec *backward_block(const layer *layers, int32_t n, workspace *work, const vec *grad, const int8_t *trace,
                          int to_image, visitor *visit, void *context);
#endif
