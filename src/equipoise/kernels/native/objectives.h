/* Objectives and their gradients with respect to the logits, in double precision (`equipoise.losses.objectives`). */
#ifndef OBJECTIVES_H
#define OBJECTIVES_H
#include <stdint.h>

enum { CROSS_ENTROPY, ENTROPY, KL_CLEAN_HERE, KL_HERE_CLEAN, SOFT_CROSS_ENTROPY, MARGIN, DLR, NEGATED_PROBABILITY, RIVAL_PROBABILITY };

/* One term of a weighted sum. */
typedef struct {
    int32_t kind;
    double weight, smoothing; /* smoothing: of the cross-entropy */
} term;

/* What the objective looks at besides the logits; -1 where there is no label or no target. */
typedef struct {
    int64_t label, target;
    const double *clean; /* log-probabilities at the clean point; NULL if no term compares with them */
} reference;

/* Natural logarithms of the softmax, finite for excluded classes (logits of -infinity). */
void log_softmax(const double *z, int32_t classes, double *log_p);

/* The weighted sum; its gradient is written to `grad`; NaN if the largest logit is not finite, or any is
 * NaN. `work` holds `classes` numbers. */
double objective(const term *terms, int32_t n, const double *z, int32_t classes, reference ref, double *work,
                 double *grad);
#endif
