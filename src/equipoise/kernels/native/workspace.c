/* The memory in which a block is computed: buffers of the layers, and of the gradients with respect to them. */
#include <stdlib.h>
#include <string.h>

#include "layers.h"

static int32_t max(int32_t a, int32_t b) { return a > b ? a : b; }
static size_t rounded(size_t bytes) { return (bytes + 63) / 64 * 64; }

size_t image_size(const layer *layers) { return (size_t)layers->channels * layers->height * layers->width; }
size_t class_count(const layer *layers, int32_t n) { return output_size(layers + n - 1); }

/* Bytes of the trace of SIMD_WIDTH samples. */
EXPORT size_t trace_size(const layer *layers, int32_t n) {
    size_t total = 0;
    for (int i = 0; i < n; i++) total += output_size(layers + i);
    return total * SIMD_WIDTH;
}

static size_t pixels(const buffer *b) { return (size_t)b->channels * b->height * b->width; }
static size_t padded_pixels(const buffer *b) {
    return (size_t)b->channels * (b->height + 2 * b->border_rows) * (b->width + 2 * b->border_columns);
}

/* A buffer, by the layer that writes it and the layers that read it. */
static buffer described(const layer *layers, int32_t n, int32_t index) {
    const layer *l = layers + index - 1;
    buffer b = {layers->channels, layers->height, layers->width, .last = -1, .slot = -1};
    if (index) b.channels = l->filters, b.height = out_height(l), b.width = out_width(l);
    for (int k = 0; k < n; k++) {
        if (layers[k].source != index && layers[k].added != index) continue;
        b.last = k;
        if (layers[k].source != index) continue;
        b.border_rows = max(b.border_rows, layers[k].pad_rows);
        b.border_columns = max(b.border_columns, layers[k].pad_columns);
    }
    return b;
}

EXPORT size_t inputs_size(const layer *layers, int32_t n) {
    size_t total = 0;
    for (int b = 0; b < n; b++) {
        buffer one = described(layers, n, b);
        total += padded_pixels(&one);
    }
    return total;
}

/* Place the padded images of the first n buffers; returns their size together. Those that are alike take turns unless
 * they are `kept`: layer k writes to memory that no layer from k on reads. */
static size_t place_images(buffer *buffers, int32_t n, int kept) {
    size_t total = 0;
    for (int b = 0; b < n; b++) {
        int found = kept ? b : 0;
        for (; found < b; found++) {
            const buffer *old = buffers + found;
            int alike = !memcmp(old, buffers + b, offsetof(buffer, last));
            if (alike && !old->replaced && old->last < b - 1) break;
        }
        buffers[b].offset = found < b ? buffers[found].offset : total;
        if (found < b)
            buffers[found].replaced = 1;
        else
            total += padded_pixels(buffers + b);
    }
    return total;
}

/* Place the padded gradients of layers that have the same zeros at the same place; returns their size together. */
static size_t place_grads(const layer *layers, buffer *buffers, int32_t n) {
    size_t first = offsetof(layer, height), bytes = offsetof(layer, rectified) - first, total = 0;
    for (int k = 0; k < n; k++) {
        int found = 0;
        while (found < k && memcmp((char *)(layers + found) + first, (char *)(layers + k) + first, bytes)) found++;
        buffers[k + 1].grad_offset = found < k ? buffers[found + 1].grad_offset : total;
        if (found == k) total += padded_grad_size(layers + k);
    }
    return total;
}

/* Give a buffer a slot for its gradient when layer k is the first of its readers that is passed backwards: the gradients
 * with respect to the buffers behind k have been used by then. Returns the slot. */
static int32_t give_slot(buffer *buffers, int32_t k, int32_t index) {
    if (index < 0 || buffers[index].slot >= 0) return 0;
    int32_t slot = 0;
    for (int b = 0; b <= k; b++)
        if (buffers[b].slot == slot) slot++, b = -1;
    return buffers[index].slot = slot;
}

int allocate(workspace *work, const layer *layers, int32_t n, int kept) {
    size_t tables = rounded((n + 1) * sizeof(buffer)) + rounded((n + 1) * sizeof(window));
    buffer *buffers = calloc(n + 1, sizeof(buffer));
    if (!buffers) return 1;
    size_t rows = 0, largest = 0;
    int32_t slots = 1;
    for (int b = 0; b <= n; b++) {
        buffers[b] = described(layers, n, b);
        if (pixels(buffers + b) > largest) largest = pixels(buffers + b);
    }
    for (int k = n - 1; k >= 0; k--) {
        const layer *l = layers + k;
        slots = max(slots, give_slot(buffers, k, l->added) + 1);
        slots = max(slots, give_slot(buffers, k, l->source) + 1);
        size_t forward = (size_t)l->pool_rows * l->filters * z_width(l), back = (size_t)l->channels * l->width;
        if (forward > rows) rows = forward;
        if (back > rows) rows = back;
    }
    size_t inputs = place_images(buffers, n, kept), grads = place_grads(layers, buffers, n);
    size_t vectors = inputs + rows + class_count(layers, n) + grads + slots * largest;
    size_t bytes = rounded(tables + vectors * sizeof(vec) + trace_size(layers, n));
    if (!(work->memory = aligned_alloc(64, bytes))) return free(buffers), 1;
    memset(work->memory, 0, bytes);
    work->buffers = memcpy(work->memory, buffers, (n + 1) * sizeof(buffer));
    free(buffers);
    work->windows = (window *)(work->memory + rounded((n + 1) * sizeof(buffer)));
    work->inputs = (vec *)(work->memory + tables);
    work->rows = work->inputs + inputs;
    work->logits = work->rows + rows;
    work->grads = work->logits + class_count(layers, n);
    work->slopes = work->grads + grads;
    work->largest = largest;
    work->trace = (int8_t *)(work->slopes + slots * largest);
    work->buffers[n].offset = (size_t)(work->logits - work->inputs);
    return 0;
}

void release(workspace *work) { free(work->memory); }

static picture padded(const buffer *b, const vec *inputs) {
    size_t row = b->width + 2 * b->border_columns;
    return (picture){(vec *)inputs + b->offset, row, row * (b->height + 2 * b->border_rows)};
}

picture image_of(const workspace *work, int32_t b) {
    const buffer *one = work->buffers + b;
    picture image = padded(one, work->inputs);
    image.pixels += one->border_rows * image.row + one->border_columns;
    return image;
}

picture input_of(const workspace *work, const layer *l, const vec *inputs) {
    const buffer *b = work->buffers + l->source;
    picture image = padded(b, inputs);
    image.pixels += (b->border_rows - l->pad_rows) * image.row + b->border_columns - l->pad_columns;
    if (b->height != l->height || b->width != l->width) image.row = image.channel = 1; /* all of it as one pixel's channels */
    return image;
}

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

void set_input(const layer *l, workspace *work, const vec *image, const float *scale, const float *shift) {
    picture to = image_of(work, 0);
    for (int c = 0; c < l->channels; c++)
        for (int i = 0; i < l->height; i++) {
            vec *row = to.pixels + c * to.channel + i * to.row;
            size_t first = ((size_t)c * l->height + i) * l->width;
            for (int j = 0; j < l->width; j++)
                row[j] = scale ? scale[first + j] * image[first + j] + shift[first + j] : image[first + j];
        }
}
