/* Notation: z logits, p = softmax(z), q = softmax at the clean point, y the label, t the target. */
#include "objectives.h"

#include <float.h>
#include <math.h>

static int32_t largest(const double *z, int32_t classes, int64_t except) {
    int32_t best = except == 0;
    for (int32_t c = best + 1; c < classes; c++)
        if (c != except && z[c] > z[best]) best = c;
    return best;
}

/* Whether a class cannot be: its logit is -infinity. Its probability is 0, and has no gradient. */
static int excluded(double z) { return z == -INFINITY; }

void log_softmax(const double *z, int32_t classes, double *log_p) {
    double top = z[largest(z, classes, -1)], total = 0;
    for (int32_t c = 0; c < classes; c++) total += exp(z[c] - top);
    for (int32_t c = 0; c < classes; c++) log_p[c] = excluded(z[c] - top) ? -FLT_MAX : z[c] - top - log(total);
}

/* -sum t log p with the target t = (1 - s) e_y + s / C:  p sum(t) - t, t = 0 where a class is excluded. */
static double cross_entropy(const double *log_p, int32_t classes, int64_t label, double smoothing, double weight,
                            double *grad) {
    double value = 0, total = 0;
    for (int pass = 0; pass < 2; pass++)
        for (int32_t c = 0; c < classes; c++) {
            double target = smoothing / classes + (c == label ? 1 - smoothing : 0);
            double live = log_p[c] > -FLT_MAX ? target : 0;
            if (pass)
                grad[c] += weight * (exp(log_p[c]) * total - live);
            else if (target)
                total += live, value -= target * log_p[c];
        }
    return weight * value;
}

/* With d = max z - z and S = sum p d:  H = log(1 + sum exp(-d)) + S over the other classes, whose gradient is p (d - S).
 * Nothing cancels where one class is almost certain. */
static double entropy(const double *z, int32_t classes, double weight, double *grad) {
    int32_t top = largest(z, classes, -1);
    double others = 0, slope = 0;
    for (int32_t c = 0; c < classes; c++) {
        if (c == top) continue;
        double d = z[top] - z[c], e = exp(-d);
        others += e;
        slope += e * fmin(d, 1e4); /* an excluded class has e = 0 */
    }
    slope /= 1 + others;
    for (int32_t c = 0; c < classes; c++) {
        double d = fmin(z[top] - z[c], 1e4);
        grad[c] += weight * exp(-d) / (1 + others) * (d - slope);
    }
    return weight * (log1p(others) + slope);
}

/* KL(q || p), KL(p || q) or -sum q log p. */
static double divergence(int32_t kind, const double *log_p, const double *log_q, int32_t classes, double weight,
                         double *grad) {
    double value = 0;
    for (int32_t c = 0; c < classes; c++) {
        double p = exp(log_p[c]), q = exp(log_q[c]);
        if (kind == KL_HERE_CLEAN)
            value += p * (log_p[c] - log_q[c]);
        else
            value += q * ((kind == KL_CLEAN_HERE ? log_q[c] : 0) - log_p[c]);
    }
    for (int32_t c = 0; c < classes; c++) {
        double p = exp(log_p[c]);
        grad[c] += weight * (kind == KL_HERE_CLEAN ? p * (log_p[c] - log_q[c] - value) : p - exp(log_q[c]));
    }
    return weight * value;
}

/* max z_i - z_y over i != y; towards a target z_t - max z_i over i != t. Equally large logits share the gradient. */
static double margin(const double *z, int32_t classes, int64_t own, double weight, double *grad) {
    double top = z[largest(z, classes, own)];
    int32_t count = 0;
    for (int32_t c = 0; c < classes; c++) count += c != own && z[c] == top;
    for (int32_t c = 0; c < classes; c++)
        if (c != own && z[c] == top) grad[c] += weight / count;
    grad[own] -= weight;
    return weight * (top - z[own]);
}

/* -p_y; towards a target p_t. The gradient of p_y at its own logit is p_y (1 - p_y), of which the second factor is summed
 * from the other classes: nothing cancels where one class is almost certain. */
static double negated_probability(const double *log_p, int32_t classes, int64_t own, double weight, double *grad) {
    double p = exp(log_p[own]), others = 0;
    for (int32_t c = 0; c < classes; c++) {
        if (c == own) continue;
        others += exp(log_p[c]);
        grad[c] += weight * p * exp(log_p[c]);
    }
    grad[own] -= weight * p * others;
    return -weight * p;
}

/* max p_i over i != y; towards a target -max p_i over i != t. Equally large ones share the gradient. */
static double rival_probability(const double *log_p, int32_t classes, int64_t own, double weight, double *grad) {
    double top = log_p[largest(log_p, classes, own)], p = exp(top);
    int32_t ties = 0;
    for (int32_t c = 0; c < classes; c++) ties += c != own && log_p[c] == top;
    for (int32_t c = 0; c < classes; c++)
        grad[c] += weight * p * ((c != own && log_p[c] == top ? 1.0 / ties : 0) - exp(log_p[c]));
    return weight * p;
}

/* Of equally large logits the first is the larger one.
 * (max z_i - z_y) / (z_1 - z_3); towards a target (z_t - z_y) / (z_1 - (z_3 + z_4) / 2), z_1 >= z_2 >= ... */
static double difference_of_logits_ratio(const double *z, int32_t classes, reference ref, double weight, double *grad) {
    int32_t order[4] = {0}, ranks = classes < 4 ? classes : 4;
    double lowest = INFINITY;
    for (int32_t c = 0; c < classes; c++)
        if (z[c] > -INFINITY && z[c] < lowest) lowest = z[c];
    for (int r = 0; r < ranks; r++) {
        order[r] = -1;
        for (int32_t c = 0; c < classes; c++) {
            int taken = 0;
            for (int s = 0; s < r; s++) taken |= order[s] == c;
            if (!taken && (order[r] < 0 || z[c] > z[order[r]])) order[r] = c;
        }
    }
    /* An excluded class has no logit to measure the scale by. */
    double third = fmax(z[order[2]], lowest), fourth = ranks > 3 ? fmax(z[order[3]], lowest) : 0;
    int64_t ahead = ref.target < 0 ? largest(z, classes, ref.label) : ref.target;
    /* Rounded as in float32, where the constant vanishes: if the true class is third the ratio is 1 and has no slope. */
    double scale = (float)(z[order[0]] - (ref.target < 0 ? third : (third + fourth) / 2)) + 1e-12f;
    double value = (float)(z[ahead] - z[ref.label]) / scale;
    grad[ahead] += weight / scale;
    grad[ref.label] -= weight / scale;
    grad[order[0]] -= weight * value / scale;
    double share = ref.target < 0 ? 1 : 0.5;
    if (z[order[2]] >= lowest) grad[order[2]] += share * weight * value / scale;
    if (ref.target >= 0 && z[order[3]] >= lowest) grad[order[3]] += share * weight * value / scale;
    return weight * value;
}

double objective(const term *terms, int32_t n, const double *z, int32_t classes, reference ref, double *work,
                 double *grad) {
    double value = 0, *log_p = work;
    int64_t towards = ref.target < 0 ? ref.label : ref.target;
    double sign = ref.target < 0 ? 1 : -1; /* of what is descended towards a target */
    int valid = isfinite(z[largest(z, classes, -1)]) != 0;
    for (int32_t c = 0; c < classes; c++) valid &= z[c] == z[c];
    for (int32_t c = 0; c < classes; c++) grad[c] = valid ? 0 : NAN;
    if (!valid) return NAN;
    log_softmax(z, classes, log_p);
    for (int32_t i = 0; i < n; i++) {
        double weight = terms[i].weight;
        switch (terms[i].kind) {
            case CROSS_ENTROPY:
                value += cross_entropy(log_p, classes, towards, terms[i].smoothing, sign * weight, grad);
                break;
            case ENTROPY:
                value += entropy(z, classes, weight, grad);
                break;
            case MARGIN:
                value += margin(z, classes, towards, sign * weight, grad);
                break;
            case NEGATED_PROBABILITY:
                value += negated_probability(log_p, classes, towards, sign * weight, grad);
                break;
            case RIVAL_PROBABILITY:
                value += rival_probability(log_p, classes, towards, sign * weight, grad);
                break;
            case DLR:
                value += difference_of_logits_ratio(z, classes, ref, weight, grad);
                break;
            default:
                value += divergence(terms[i].kind, log_p, ref.clean, classes, weight, grad);
        }
    }
    return value;
}
