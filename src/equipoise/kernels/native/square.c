/* Many queries of the square attack for Linf (`equipoise.attacks.black_box.square`), without leaving the cache:
 *
 *     in one window, the same for all samples, x +- eps with a sign per channel takes the place of the best point, and
 *     stays there if max z_i - z_y over i != y, or towards a target z_t - max z_i over i != t, grows by more than rounding
 *
 * SIMD_WIDTH samples go side by side. Of the network only what the window reaches is computed; in the lanes that do not
 * keep the change all of that is taken back, so that the stored activations are always those of the best points. A lane
 * stops before a query that would be a success: it counts once PyTorch has confirmed it.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "layers.h"

typedef struct {
    int32_t channels, height, width; /* of the images */
    int32_t queries, targeted;
    float eps, low, high;
    float summation, storage, underflow; /* of `Prediction.resolution`, the first two times the machine epsilon */
    const int32_t *windows;     /* [queries][4]: top, bottom, left, right */
    const float *scale, *shift; /* of each pixel, before the first layer; NULL: none */
} plan;

typedef struct {
    const float *origin, *signs; /* signs: [samples][channels][queries] */
    const int64_t *label; /* or the target */
    float *point, *value; /* the best points and their margins so far; then those that were found */
    int64_t *query;       /* where each sample begins; then where it stopped, or `queries` */
    int64_t *kept;        /* the last query whose change was kept; -1: none */
    int64_t *evaluations;
} samples;

typedef struct {
    const layer *layers;
    int32_t n;
    size_t pixels;
    const plan *plan;
    workspace work;
    picture point, input; /* the best points as they are, and as the first layer reads them */
    vec *origin, *saved;
    char *memory;
} searcher;

static inline int any(ivec mask) {
    int32_t found = 0;
    for (int k = 0; k < SIMD_WIDTH; k++) found |= mask[k];
    return found != 0;
}
static inline vec smaller(vec a, vec b) { return select_vec(b < a, b, a); }
static inline vec greater(vec a, vec b) { return select_vec(b > a, b, a); }

/* Copy a window to `saved`, or from there in the lanes that are not `kept`. Returns what follows in `saved`. */
static vec *exchange_window(picture image, int channels, window w, vec *saved, const ivec *kept) {
    for (int c = 0; c < channels; c++)
        for (int i = w.top; i < w.bottom; i++) {
            vec *row = image.pixels + c * image.channel + i * image.row;
            for (int j = w.left; j < w.right; j++, saved++) {
                if (kept)
                    row[j] = select_vec(*kept, row[j], *saved);
                else
                    *saved = row[j];
            }
        }
    return saved;
}

/* Save a window of the points and what depends on it (`kept` is NULL), or take it back in the lanes that are not `kept`.
 * A linear layer is computed as a whole at every query. */
static void exchange(searcher *s, window w, const ivec *kept) {
    vec *saved = exchange_window(s->point, s->plan->channels, w, s->saved, kept);
    saved = exchange_window(s->input, s->plan->channels, w, saved, kept);
    for (int k = 0; k + 1 < s->n; k++)
        if (!is_linear(s->layers + k))
            saved = exchange_window(image_of(&s->work, k + 1), s->layers[k].filters, s->work.windows[k + 1], saved, kept);
}

/* Write x +- eps into a window of the points of some lanes. Returns which of them that has changed. */
static ivec propose(searcher *s, const float *signs, int32_t present, window w, ivec lanes) {
    const plan *p = s->plan;
    vec low = broadcast(p->low), high = broadcast(p->high);
    ivec changed = {0};
    for (int c = 0; c < p->channels; c++) {
        vec move = {0};
        for (int k = 0; k < present; k++) move[k] = p->eps * signs[((size_t)k * p->channels + c) * p->queries];
        for (int i = w.top; i < w.bottom; i++) {
            size_t first = c * s->point.channel + i * s->point.row;
            vec *input = s->input.pixels + c * s->input.channel + i * s->input.row;
            for (int j = w.left; j < w.right; j++) {
                size_t pixel = first + j;
                vec new = smaller(greater(s->origin[pixel] + move, low), high), old = s->point.pixels[pixel];
                changed |= new != old;
                s->point.pixels[pixel] = new = select_vec(lanes, new, old);
                input[j] = p->scale ? p->scale[pixel] * new + p->shift[pixel] : new;
            }
        }
    }
    return changed & lanes;
}

/* max z_i - z_y over i != y, for a target y the negative, and its rounding error as in `Prediction.resolution`. NaN
 * passes through. */
static vec margin(const searcher *s, ivec label, vec *resolution) {
    const vec *z = s->work.logits;
    int32_t classes = (int32_t)class_count(s->layers, s->n);
    vec own = {0}, other = broadcast(-INFINITY);
    for (int32_t c = 0; c < classes; c++) {
        ivec mine = label == c;
        vec rival = select_vec(mine, broadcast(-INFINITY), z[c]);
        own = select_vec(mine, z[c], own);
        other = select_vec((rival > other) | (rival != rival), rival, other);
    }
    vec top = greater(own, other), total = {0}, count = {0}, lowest = {0};
    for (int32_t c = 0; c < classes; c++) {
        ivec live = z[c] >= top - s->plan->underflow;
        vec below = select_vec(live, z[c] - top, (vec){0});
        total += below, lowest = smaller(lowest, below);
        count += select_vec(live, broadcast(1), (vec){0});
    }
    vec mean = total / greater(count, broadcast(1)), spread = greater(-mean, mean - lowest);
    vec size = greater(greater(own, -own), greater(other, -other));
    *resolution = s->plan->summation * smaller(size, spread) + s->plan->storage * size;
    return s->plan->targeted ? own - other : other - own;
}

/* All queries of the samples `first` to `first + present - 1`, which are one block. */
static void search_block(searcher *s, const samples *all, int64_t first, int32_t present) {
    const plan *p = s->plan;
    ivec label = {0}, query, kept = -1 - (ivec){0}, evaluations = {0};
    vec value = {0};
    query = p->queries - (ivec){0};
    for (int k = 0; k < present; k++) {
        label[k] = (int32_t)all->label[first + k], query[k] = (int32_t)all->query[first + k];
        value[k] = all->value[first + k];
    }
    gather(all->origin + first * s->pixels, s->pixels, present, s->origin);
    gather(all->point + first * s->pixels, s->pixels, present, s->point.pixels);
    set_input(s->layers, &s->work, s->point.pixels, p->scale, p->shift);
    forward_block(s->layers, s->n, &s->work);
    ivec stopped = {0};
    for (int32_t q = 0; q < p->queries; q++) {
        const int32_t *bounds = p->windows + 4 * q;
        window w = {bounds[0], bounds[1], bounds[2], bounds[3]};
        ivec lanes = (query <= q) & ~stopped;
        if (!any(lanes)) continue;
        find_windows(s->layers, s->n, &s->work, w);
        exchange(s, w, 0);
        lanes = propose(s, all->signs + (size_t)first * p->channels * p->queries + q, present, w, lanes);
        ivec better = {0};
        if (any(lanes)) {
            vec resolution;
            forward_windows(s->layers, s->n, &s->work);
            vec new = margin(s, label, &resolution);
            ivec success = lanes & (new > 0);
            stopped |= success, query = iselect(success, q - (ivec){0}, query);
            lanes &= ~success;
            evaluations -= lanes;
            better = lanes & (new > value) & (new > value + resolution);
            value = select_vec(better, new, value), kept = iselect(better, q - (ivec){0}, kept);
        }
        exchange(s, w, &better);
    }
    scatter(s->point.pixels, s->pixels, present, all->point + first * s->pixels);
    for (int k = 0; k < present; k++) {
        all->value[first + k] = value[k], all->query[first + k] = stopped[k] ? query[k] : p->queries;
        all->kept[first + k] = kept[k], all->evaluations[first + k] = evaluations[k];
    }
}

/* All queries of the samples `first` to `first + count - 1`. Returns 1 if there is no memory. */
EXPORT int32_t search_squares(const layer *layers, int32_t n, const plan *p, const samples *all, int64_t first,
                              int64_t count) {
    searcher s = {.layers = layers, .n = n, .plan = p, .pixels = image_size(layers)};
    if (allocate(&s.work, layers, n, 1)) return 1;
    s.work.trace = 0;
    s.memory = aligned_alloc(64, (3 * s.pixels + inputs_size(layers, n)) * sizeof(vec) / 64 * 64 + 64);
    if (!s.memory) return release(&s.work), 1;
    s.origin = (vec *)s.memory;
    s.point = (picture){s.origin + s.pixels, p->width, (size_t)p->height * p->width};
    s.input = image_of(&s.work, 0);
    if (layers->height != p->height || layers->width != p->width) /* it takes all pixels as channels */
        s.input.row = s.point.row, s.input.channel = s.point.channel;
    s.saved = s.point.pixels + s.pixels;
    for (int64_t end = first + count; first < end; first += SIMD_WIDTH)
        search_block(&s, all, first, (int32_t)(end - first < SIMD_WIDTH ? end - first : SIMD_WIDTH));
    free(s.memory);
    release(&s.work);
    return 0;
}
