/* The shortest move onto a hyperplane within a box, in Linf and L2, row by row (see equipoise/geometry/hyperplane.py).
 *
 * A row stays in the L1 cache through all steps of Newton's method.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "simd.h"

static inline vec smaller(vec a, vec b) { return select_vec(a < b, a, b); }
static inline vec greater(vec a, vec b) { return select_vec(a > b, a, b); }

/* The root t of sum_i weight_i * min(t * rate_i, room_i) = amount, by Newton's method; all rates are 1 if rate is NULL.
 */
static float water_level(const vec *weight, const vec *rate, const vec *room, int64_t n, float amount) {
    const float tolerance = 8 * FLT_EPSILON;
    float t = 0;
    for (int64_t step = 0; step < n * SIMD_WIDTH + 2; step++) {
        vec volumes = {0}, slopes = {0};
        for (int64_t i = 0; i < n; i++) {
            vec reached = rate ? t * rate[i] : broadcast(t);
            ivec rising = reached < room[i];
            volumes += weight[i] * select_vec(rising, reached, room[i]);
            slopes += select_vec(rising, rate ? weight[i] * rate[i] : weight[i], (vec){0});
        }
        float remaining = amount - sum(volumes), slope = sum(slopes);
        float next = slope > 0 ? t + remaining / slope : FLT_MAX;
        if (next > FLT_MAX) next = FLT_MAX;
        if (!(remaining > tolerance * amount && next > t * (1 + tolerance))) break;
        t = next;
    }
    return t;
}

/* Moves d of the rows x such that w * d = rise and x + d is in [low, high]. Returns 1 if there is no memory. */
EXPORT int32_t shortest_move(const float *x, const float *w, const float *rise, float *d, int64_t rows, int64_t features,
                      float low, float high, int32_t is_l2) {
    int64_t n = (features + SIMD_WIDTH - 1) / SIMD_WIDTH;
    size_t row = (size_t)n * sizeof(vec);
    char *memory = aligned_alloc(64, (5 * row + 63) / 64 * 64);
    if (!memory) return 1;
    memset(memory, 0, 5 * row);
    /* |w|, scaled to a maximum of 1; how far each feature can move; in which direction; the point; the move. */
    vec *weight = (vec *)memory, *room = weight + n, *sign = room + n, *point = sign + n, *move = point + n;
    for (int64_t r = 0; r < rows; r++, x += features, w += features, d += features) {
        memcpy(weight, w, features * sizeof(float));
        memcpy(point, x, features * sizeof(float));
        float direction = rise[r] > 0 ? 1 : rise[r] < 0 ? -1 : 0, largest = FLT_MIN;
        vec maxima = {0};
        for (int64_t i = 0; i < n; i++) {
            vec size = select_vec(weight[i] < (vec){0}, -weight[i], weight[i]);
            sign[i] = select_vec(weight[i] > (vec){0}, broadcast(direction),
                                 select_vec(weight[i] < (vec){0}, broadcast(-direction), (vec){0}));
            vec distance = select_vec(sign[i] > (vec){0}, high - point[i], point[i] - low);
            room[i] = select_vec(sign[i] != (vec){0}, greater(distance, (vec){0}), (vec){0});
            weight[i] = size;
            maxima = greater(maxima, size);
        }
        for (int i = 0; i < SIMD_WIDTH; i++) largest = maxima[i] > largest ? maxima[i] : largest;
        for (int64_t i = 0; i < n; i++) weight[i] /= largest;
        float t = water_level(weight, is_l2 ? weight : 0, room, n, fabsf(rise[r]) / largest);
        for (int64_t i = 0; i < n; i++)
            move[i] = sign[i] * smaller(is_l2 ? t * weight[i] : broadcast(t), room[i]);
        memcpy(d, move, features * sizeof(float));
    }
    free(memory);
    return 0;
}
