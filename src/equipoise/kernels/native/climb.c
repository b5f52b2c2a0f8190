/* A whole climb (`equipoise.attacks.ascent`) of every sample, without leaving the cache:
 *
 *     x_{i+1} = projection of x_i + step(gradient of the objective at x_i) onto ball and box
 *
 * SIMD_WIDTH climbs go side by side, each at a step of its own: a lane whose climb is finished takes up the next. A
 * sample may have several, towards different targets, which end with the first success of any of them.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "layers.h"
#include "objectives.h"

enum { LAST, BEST, FIRST_SUCCESS };

typedef struct {
    int32_t terms_count, steps, return_point, l2_step, l2_ball;
    int32_t tau;         /* stop where the prediction has been wrong more often; -1: never */
    int32_t may_cycle;   /* whether a climb that comes back to a point has finished */
    int32_t evaluations; /* of each sample before the climb */
    int32_t targets;     /* climbs of each sample, one after the other in all arrays */
    int32_t auto_step;   /* whether steps choose their own length (Auto-PGD, `equipoise.attacks.auto_step`) */
    float eps, low, high;
    float inertia, progress; /* of Auto-PGD: a and rho */
    const int32_t *intervals; /* [steps]: at a checkpoint of Auto-PGD the steps since the last one, else 0 */
    const term *terms;
    const float *sizes;         /* [steps] */
    const float *scale, *shift; /* of each pixel, before the first layer; NULL: none */
} plan;

typedef struct {
    /* what each sample climbs from and to */
    const float *origin, *start;
    const float *clean; /* logits at the clean point; NULL if no term compares with them */
    const int64_t *label, *target, *own, *wanted; /* -1: none; success: another class than `own`, or `wanted` */
    const int64_t *steps; /* NULL: all steps of the plan */
    const float *radii;   /* of each sample; NULL: the plan's eps */
    const float *paces;   /* factors of the step sizes of each sample; NULL: 1 */
    /* what becomes of it */
    float *point, *value;
    int64_t *iteration, *evaluations, *not_finite, *zero;
    int8_t *succeeded;
    /* of several climbs of a sample: at each of the plan's steps 1 for a gradient of 0, 2 for one that is not finite; and
     * the step of the first success of each sample so far */
    int8_t *events;
    int64_t *earliest;
} samples;

/* The state of a climb on its way. */
typedef struct {
    int64_t sample; /* -1: none */
    int64_t step, last, best_step, errors, evaluations, not_finite, zero;
    float value, best_value;
    int succeeded;
    /* of Auto-PGD: size; rises since the last checkpoint and whether the size was halved there; the value before, the best
     * value, and what that was at the last checkpoint */
    float size, last_value, top_value, top_then;
    int rises, halved;
} lane;

typedef struct {
    const layer *layers;
    int32_t n, classes;
    size_t pixels;
    const plan *plan;
    const samples *all;
    workspace work;
    lane lanes[SIMD_WIDTH];
    vec eps, pace;                      /* of the lanes: radius, and factor of the step sizes */
    vec *origin, *point, *best, *probe; /* of the pixels */
    vec *before, *top, *top_grad, *base; /* of Auto-PGD: the last point, the best one and its gradient, where it steps from */
    vec *grad; /* of the logits */
    double *logits, *scratch, *slope, *clean;  /* clean: [SIMD_WIDTH][classes] */
    char *memory;
} climber;

static inline ivec is_finite(vec x) { return (x - x) == (vec){0}; }
static inline vec absolute(vec x) { return select_vec(x < 0, -x, x); }
static inline vec smaller(vec a, vec b) { return select_vec(b < a, b, a); }
static inline vec greater(vec a, vec b) { return select_vec(b > a, b, a); }
static inline __attribute__((always_inline)) dvec wide(vec x) { return __builtin_convertvector(x, dvec); }
static inline __attribute__((always_inline)) dvec smaller_wide(dvec a, dvec b) {
    lvec second = b < a;
    return (dvec)(((lvec)b & second) | ((lvec)a & ~second));
}

/* Whether every or no sample returns a point on its way, which it then looks at. */
static int watches(const plan *p) { return p->return_point != LAST || p->tau >= 0; }

static void set_lane(vec *to, int k, const float *from, size_t count) {
    for (size_t i = 0; i < count; i++) ((float *)(to + i))[k] = from[i];
}

static void get_lane(const vec *from, int k, float *to, size_t count) {
    for (size_t i = 0; i < count; i++) to[i] = ((const float *)(from + i))[k];
}

static void enter(climber *c, int k, int64_t sample) {
    const samples *all = c->all;
    const float *start = all->start + sample * c->pixels;
    c->lanes[k] = (lane){.sample = sample, .best_value = -INFINITY, .evaluations = c->plan->evaluations};
    c->lanes[k].last = all->steps ? all->steps[sample] : c->plan->steps;
    c->eps[k] = all->radii ? all->radii[sample] : c->plan->eps;
    c->pace[k] = all->paces ? all->paces[sample] : 1;
    set_lane(c->origin, k, all->origin + sample * c->pixels, c->pixels);
    set_lane(c->point, k, start, c->pixels);
    if (c->best) set_lane(c->best, k, start, c->pixels);
    if (c->probe) set_lane(c->probe, k, start, c->pixels);
    if (c->plan->auto_step) {
        lane *l = c->lanes + k;
        l->last_value = l->top_value = l->top_then = -INFINITY;
        set_lane(c->top, k, start, c->pixels);
        set_lane(c->top_grad, k, start, c->pixels);
    }
    if (!all->clean) return;
    double *log_q = c->clean + (size_t)k * c->classes;
    for (int32_t i = 0; i < c->classes; i++) c->logits[i] = all->clean[sample * c->classes + i];
    log_softmax(c->logits, c->classes, log_q);
}

static void leave(climber *c, int k, const vec *point, int64_t iteration) {
    const samples *all = c->all;
    lane *l = c->lanes + k;
    int64_t s = l->sample;
    get_lane(point, k, all->point + s * c->pixels, c->pixels);
    all->value[s] = l->best_value;
    all->iteration[s] = iteration;
    all->evaluations[s] = l->evaluations;
    all->not_finite[s] = l->not_finite;
    all->zero[s] = l->zero;
    all->succeeded[s] = (int8_t)l->succeeded;
    l->sample = -1;
}

/* The predicted class; -1 if there is a NaN or the largest logit is not finite. */
static int64_t predicted(const double *z, int32_t classes) {
    int64_t top = 0;
    for (int32_t i = 0; i < classes; i++) {
        if (z[i] != z[i]) return -1;
        if (z[i] > z[top]) top = i;
    }
    return isfinite(z[top]) ? top : -1;
}

static int is_success(const samples *all, int64_t sample, int64_t class) {
    if (all->wanted[sample] >= 0) return class == all->wanted[sample];
    return class >= 0 && class != all->own[sample];
}

/* Look at the logits of a lane; returns whether its point is the best so far, and sets the gradient at the logits. */
static int look(climber *c, int k) {
    const plan *p = c->plan;
    const samples *all = c->all;
    lane *l = c->lanes + k;
    for (int32_t i = 0; i < c->classes; i++) c->logits[i] = ((const float *)(c->work.logits + i))[k];
    reference ref = {all->label[l->sample], all->target[l->sample],
                     all->clean ? c->clean + (size_t)k * c->classes : 0};
    float value = (float)objective(p->terms, p->terms_count, c->logits, c->classes, ref, c->scratch, c->slope);
    for (int32_t i = 0; i < c->classes; i++) ((float *)(c->grad + i))[k] = (float)c->slope[i];
    l->evaluations++;
    l->value = value;
    if (!watches(p)) return 0;
    int better = value > l->best_value || p->return_point == LAST;
    if (p->return_point != BEST) {
        l->errors += is_success(all, l->sample, predicted(c->logits, c->classes));
        l->succeeded = l->errors > (p->tau < 0 ? 0 : p->tau);
        better |= l->succeeded;
    }
    if (better) l->best_value = value, l->best_step = l->step;
    return better;
}

/* Count gradients that are not finite, or zero, and take what is not finite as 0. */
static void clean_gradient(climber *c, vec *grad) {
    vec strength = {0};
    ivec all_finite = ~(ivec){0};
    for (size_t i = 0; i < c->pixels; i++) {
        ivec good = is_finite(grad[i]);
        all_finite &= good;
        grad[i] = select_vec(good, grad[i], (vec){0});
        strength = greater(strength, absolute(grad[i]));
    }
    for (int k = 0; k < SIMD_WIDTH; k++)
        if (c->lanes[k].sample >= 0) {
            lane *l = c->lanes + k;
            int lost = !all_finite[k], flat = !lost && strength[k] == 0;
            l->not_finite += lost;
            l->zero += flat;
            if (c->all->events) c->all->events[l->sample * c->plan->steps + l->step] = (int8_t)(flat + 2 * lost);
        }
}

/* x + size * sign(g), or x + size * g / |g|. */
static void step(climber *c, const vec *grad, vec size) {
    vec factor = size;
    if (c->plan->l2_step) {
        vec top = {0};
        dvec square = {0};
        for (size_t i = 0; i < c->pixels; i++) top = greater(top, absolute(grad[i]));
        top = greater(top, broadcast(1.17549435e-38f)); /* the square of a gradient near 1e-30 is 0 in float32 */
        for (size_t i = 0; i < c->pixels; i++) {
            dvec unit = wide(grad[i] / top);
            square += unit * unit;
        }
        for (int k = 0; k < SIMD_WIDTH; k++) factor[k] = size[k] / (float)fmax(sqrt(square[k]), 1e-12);
        for (size_t i = 0; i < c->pixels; i++) c->point[i] += factor * (grad[i] / top);
        return;
    }
    for (size_t i = 0; i < c->pixels; i++)
        c->point[i] += select_vec(grad[i] > 0, factor, select_vec(grad[i] < 0, -factor, (vec){0}));
}

static void project_linf(climber *c) {
    vec eps = c->eps, low = broadcast(c->plan->low), high = broadcast(c->plan->high);
    for (size_t i = 0; i < c->pixels; i++) {
        vec x = smaller(greater(c->point[i], c->origin[i] - eps), c->origin[i] + eps);
        c->point[i] = smaller(greater(x, low), high);
    }
}

/* How far the point has moved, and how far it may move that way within the box. */
static vec move_and_room(const climber *c, size_t i, vec *room) {
    vec move = c->point[i] - c->origin[i];
    vec up = broadcast(c->plan->high) - c->origin[i], down = c->origin[i] - broadcast(c->plan->low);
    *room = greater(select_vec(move > 0, up, down), (vec){0});
    return move;
}

/* min(s a, b) in the direction of the move, with the root s of sum min(s a, b)^2 = eps^2: by Newton's method in s^2,
 * whose left-hand side is concave and piecewise linear (`equipoise.geometry.water_filling`). */
static void project_l2(climber *c) {
    const double small = 8 * 2.220446049250313e-16;
    const dvec budget = wide(c->eps) * wide(c->eps);
    vec low = broadcast(c->plan->low), high = broadcast(c->plan->high), room;
    dvec square = {0};
    for (size_t i = 0; i < c->pixels; i++) {
        vec move = move_and_room(c, i, &room);
        dvec length = wide(smaller(absolute(move), room));
        square += length * length;
    }
    dvec t = {0};
    int outside[SIMD_WIDTH], moving = 0;
    for (int k = 0; k < SIMD_WIDTH; k++) moving |= outside[k] = square[k] > budget[k];
    int climbing[SIMD_WIDTH];
    memcpy(climbing, outside, sizeof climbing);
    for (size_t round = 0; moving && round < c->pixels + 2; round++) {
        dvec held = {0}, slope = {0};
        for (size_t i = 0; i < c->pixels; i++) {
            dvec a = wide(move_and_room(c, i, &room)), b = wide(room);
            dvec reached = t * a * a, limit = b * b;
            lvec rising = reached < limit;
            held += smaller_wide(reached, limit);
            slope += (dvec)((lvec)(a * a) & rising);
        }
        moving = 0;
        for (int k = 0; k < SIMD_WIDTH; k++) {
            if (!climbing[k]) continue;
            double left = budget[k] - held[k], further = slope[k] > 0 ? t[k] + left / slope[k] : INFINITY;
            climbing[k] = left > small * budget[k] && further > t[k] * (1 + small);
            if (climbing[k]) t[k] = fmin(further, 1.0);
            moving |= climbing[k];
        }
    }
    vec s = broadcast(1);
    for (int k = 0; k < SIMD_WIDTH; k++)
        if (outside[k]) s[k] = (float)sqrt(t[k]);
    for (size_t i = 0; i < c->pixels; i++) {
        vec move = move_and_room(c, i, &room), length = smaller(s * absolute(move), room);
        vec x = c->origin[i] + select_vec(move < 0, -length, length);
        c->point[i] = smaller(greater(x, low), high);
    }
}

static void project(climber *c) {
    if (c->plan->l2_ball && c->plan->eps < INFINITY)
        project_l2(c);
    else
        project_linf(c);
}

/* One step of Auto-PGD: x + a (z - x) + (1 - a)(x - x_before), z the projection of x + step; a = 1 at the first step. At
 * a checkpoint a climb that has not got on halves its size and goes back to its best point. */
static void auto_step(climber *c, vec *grad) {
    const plan *p = c->plan;
    ivec first = {0}, better = {0}, reset = {0};
    vec size = {0}, a = broadcast(p->inertia);
    for (int k = 0; k < SIMD_WIDTH; k++) {
        lane *l = c->lanes + k;
        if (l->sample < 0) continue;
        first[k] = -(l->step == 0);
        if (l->step == 0)
            l->size = p->sizes[0] * c->pace[k], a[k] = 1;
        else
            l->rises += l->value > l->last_value;
        better[k] = -(l->value > l->top_value);
        if (better[k]) l->top_value = l->value;
        if (l->step == 0) l->top_then = l->top_value;
        int interval = p->intervals[l->step];
        if (interval) {
            int unchanged = !l->halved && l->top_then >= l->top_value;
            l->halved = l->rises <= p->progress * interval || unchanged;
            if (l->halved) l->size /= 2;
            reset[k] = -l->halved;
            l->rises = 0, l->top_then = l->top_value;
        }
        l->last_value = l->value;
        size[k] = l->size;
    }
    for (size_t i = 0; i < c->pixels; i++) {
        c->top[i] = select_vec(better, c->point[i], c->top[i]);
        c->top_grad[i] = select_vec(better, grad[i], c->top_grad[i]);
        c->before[i] = select_vec(first, c->point[i], c->before[i]);
        c->base[i] = c->point[i] = select_vec(reset, c->top[i], c->point[i]);
        grad[i] = select_vec(reset, c->top_grad[i], grad[i]);
    }
    step(c, grad, size);
    project(c);
    for (size_t i = 0; i < c->pixels; i++) {
        vec x = c->base[i];
        c->point[i] = x + a * (c->point[i] - x) + (1 - a) * (x - c->before[i]);
        c->before[i] = x;
    }
}

/* Lanes that have come back to an earlier point, by Brent's method. */
static void find_cycles(climber *c) {
    ivec same = ~(ivec){0};
    for (size_t i = 0; i < c->pixels; i++) same &= c->point[i] == c->probe[i];
    for (int k = 0; k < SIMD_WIDTH; k++) {
        lane *l = c->lanes + k;
        if (l->sample < 0) continue;
        if (same[k]) {
            l->evaluations++;
            leave(c, k, c->best, l->best_step);
        } else if (((l->step - 1) & l->step) == 0)
            for (size_t i = 0; i < c->pixels; i++) ((float *)(c->probe + i))[k] = ((float *)(c->point + i))[k];
    }
}

static int prepare(climber *c) {
    size_t images = 2 + watches(c->plan) + (c->plan->may_cycle != 0) + 4 * (c->plan->auto_step != 0);
    size_t vectors = images * c->pixels + c->classes, numbers = (size_t)(3 + SIMD_WIDTH) * c->classes;
    if (allocate(&c->work, c->layers, c->n, 0)) return 1;
    c->memory = aligned_alloc(64, (vectors * sizeof(vec) + numbers * sizeof(double) + 63) / 64 * 64);
    if (!c->memory) return release(&c->work), 1;
    memset(c->memory, 0, vectors * sizeof(vec));
    vec *next = (vec *)c->memory;
    c->origin = next, c->point = next += c->pixels, next += c->pixels;
    if (watches(c->plan)) c->best = next, next += c->pixels;
    if (c->plan->may_cycle) c->probe = next, next += c->pixels;
    if (c->plan->auto_step) {
        c->before = next, c->top = next + c->pixels, c->top_grad = next + 2 * c->pixels, c->base = next + 3 * c->pixels;
        next += 4 * c->pixels;
    }
    c->grad = next;
    c->logits = (double *)(next + c->classes);
    c->scratch = c->logits + c->classes, c->slope = c->scratch + c->classes, c->clean = c->slope + c->classes;
    for (int k = 0; k < SIMD_WIDTH; k++) c->lanes[k].sample = -1;
    return 0;
}

/* Look at all points; lanes that are finished leave. Returns how many go on. */
static int observe(climber *c) {
    const plan *p = c->plan;
    int better[SIMD_WIDTH] = {0}, any = 0, active = 0;
    for (int k = 0; k < SIMD_WIDTH; k++)
        if (c->lanes[k].sample >= 0) any |= better[k] = look(c, k);
    if (any) {
        ivec mask;
        for (int k = 0; k < SIMD_WIDTH; k++) mask[k] = -better[k];
        for (size_t i = 0; i < c->pixels; i++) c->best[i] = select_vec(mask, c->point[i], c->best[i]);
    }
    for (int k = 0; k < SIMD_WIDTH && watches(p); k++) {
        lane *l = c->lanes + k;
        if (l->sample < 0) continue;
        int64_t *earliest = c->all->earliest ? c->all->earliest + l->sample / p->targets : 0;
        if (earliest && l->succeeded && l->step < __atomic_load_n(earliest, __ATOMIC_RELAXED))
            __atomic_store_n(earliest, l->step, __ATOMIC_RELAXED);
        int late = earliest && l->step > __atomic_load_n(earliest, __ATOMIC_RELAXED);
        if (l->succeeded || late || l->step == l->last) leave(c, k, c->best, l->best_step);
    }
    for (int k = 0; k < SIMD_WIDTH; k++) active += c->lanes[k].sample >= 0;
    return active;
}

/* Take the lanes to their next points; those that look at no more points leave. */
static void advance(climber *c) {
    const plan *p = c->plan;
    vec *grad = (vec *)backward_block(c->layers, c->n, &c->work, c->grad, c->work.trace, 1, 0, 0), size = {0};
    if (p->scale)
        for (size_t i = 0; i < c->pixels; i++) grad[i] *= p->scale[i];
    clean_gradient(c, grad);
    if (p->auto_step)
        auto_step(c, grad);
    else {
        for (int k = 0; k < SIMD_WIDTH; k++)
            if (c->lanes[k].sample >= 0) size[k] = p->sizes[c->lanes[k].step] * c->pace[k];
        step(c, grad, size);
    }
    project(c);
    for (int k = 0; k < SIMD_WIDTH; k++) {
        lane *l = c->lanes + k;
        if (l->sample >= 0 && ++l->step == l->last && !watches(p)) leave(c, k, c->point, l->step);
    }
    if (p->may_cycle) find_cycles(c);
}

/* The climbs of the samples `first` to `first + count - 1`. Returns 1 if there is no memory. */
EXPORT int32_t climb(const layer *layers, int32_t n, const plan *p, const samples *all, int64_t first, int64_t count) {
    climber c = {.layers = layers, .n = n, .plan = p, .all = all};
    c.pixels = image_size(layers), c.classes = (int32_t)class_count(layers, n);
    if (prepare(&c)) return 1;
    for (int64_t next = first, end = first + count;;) {
        int active = 0;
        for (int k = 0; k < SIMD_WIDTH; k++) {
            while (c.lanes[k].sample < 0 && next < end) {
                enter(&c, k, next++);
                if (c.lanes[k].last == 0 && !watches(p)) leave(&c, k, c.point, 0);
            }
            active += c.lanes[k].sample >= 0;
        }
        if (!active) break;
        set_input(layers, &c.work, c.point, p->scale, p->shift);
        forward_block(layers, n, &c.work);
        if (observe(&c)) advance(&c);
    }
    free(c.memory);
    release(&c.work);
    return 0;
}
