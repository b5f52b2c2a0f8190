/* The shortest move onto a hyperplane within a box, in Linf and L2, row by row (see equipoise/geometry/hyperplane.py).
 *
 * A row stays in the nearest cache through all steps of Newton's method.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lanes.h"

static inline vec smaller(vec a, vec b) { return choose(a < b, a, b); }
static inline vec greater(vec a, vec b) { return choose(a > b, a, b); }

/* The root t of the sum of gain * min(t * speed, room) = amount; a speed of null is one of 1. */
static float level(const vec *gain, const vec *speed, const vec *room, int64_t n, float amount) {
    const float small = 8 * FLT_EPSILON;
    float t = 0;
    for (int64_t step = 0; step < n * LANES + 2; step++) {
        vec held = {0}, slope = {0};
        for (int64_t i = 0; i < n; i++) {
            vec reached = speed ? t * speed[i] : all(t);
            ivec rising = reached < room[i];
            held += gain[i] * choose(rising, reached, room[i]);
            slope += choose(rising, speed ? gain[i] * speed[i] : gain[i], (vec){0});
        }
        float left = amount - total(held), rise = total(slope);
        float further = rise > 0 ? t + left / rise : FLT_MAX;
        if (further > FLT_MAX) further = FLT_MAX;
        if (!(left > small * amount && further > t * (1 + small))) break;
        t = further;
    }
    return t;
}

/* Moves d of rows x with w * d = rise and x + d in the box. `by_weight` is L2. Returns 1 if there is no memory. */
int32_t move(const float *x, const float *w, const float *rise, float *d, int64_t rows, int64_t features, float low,
             float high, int32_t by_weight) {
    int64_t n = (features + LANES - 1) / LANES;
    size_t row = (size_t)n * sizeof(vec);
    char *memory = aligned_alloc(64, (5 * row + 63) / 64 * 64);
    if (!memory) return 1;
    memset(memory, 0, 5 * row);
    vec *a = (vec *)memory, *room = a + n, *sign = room + n, *here = sign + n, *length = here + n;
    for (int64_t r = 0; r < rows; r++, x += features, w += features, d += features) {
        memcpy(a, w, features * sizeof(float));
        memcpy(here, x, features * sizeof(float));
        float towards = rise[r] > 0 ? 1 : rise[r] < 0 ? -1 : 0, largest = FLT_MIN;
        vec most = {0};
        for (int64_t i = 0; i < n; i++) {
            vec size = choose(a[i] < (vec){0}, -a[i], a[i]);
            sign[i] = choose(a[i] > (vec){0}, all(towards), choose(a[i] < (vec){0}, all(-towards), (vec){0}));
            vec to = choose(sign[i] > (vec){0}, high - here[i], here[i] - low);
            room[i] = choose(sign[i] != (vec){0}, greater(to, (vec){0}), (vec){0});
            a[i] = size;
            most = greater(most, size);
        }
        for (int i = 0; i < LANES; i++) largest = most[i] > largest ? most[i] : largest;
        for (int64_t i = 0; i < n; i++) a[i] /= largest;
        float t = level(a, by_weight ? a : 0, room, n, fabsf(rise[r]) / largest);
        for (int64_t i = 0; i < n; i++) length[i] = sign[i] * smaller(by_weight ? t * a[i] : all(t), room[i]);
        memcpy(d, length, features * sizeof(float));
    }
    free(memory);
    return 0;
}
