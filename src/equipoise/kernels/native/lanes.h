/* Vectors of numbers that are computed side by side. */
#include <stdint.h>

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int8_t bytes __attribute__((vector_size(LANES), aligned(1)));

static inline vec all(float number) { return number - (vec){0}; }
static inline ivec either(ivec where, ivec a, ivec b) { return (a & where) | (b & ~where); }
static inline vec choose(ivec where, vec a, vec b) { return (vec)either(where, (ivec)a, (ivec)b); }
static inline float total(vec x) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
}
