/* Vectors of SIMD_WIDTH numbers, on which every operation works element by element. */
#ifndef SIMD_H
#define SIMD_H
#include <stdint.h>

/* What Python calls; all other functions are hidden. */
#define EXPORT __attribute__((visibility("default")))

#ifdef __AVX512F__
#define SIMD_WIDTH 16
#else
#define SIMD_WIDTH 8
#endif

typedef float vec __attribute__((vector_size(4 * SIMD_WIDTH), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(4 * SIMD_WIDTH), aligned(4)));
typedef double dvec __attribute__((vector_size(8 * SIMD_WIDTH), aligned(8)));
typedef int64_t lvec __attribute__((vector_size(8 * SIMD_WIDTH), aligned(8)));
typedef int8_t bytes __attribute__((vector_size(SIMD_WIDTH), aligned(1)));

static inline vec broadcast(float number) { return number - (vec){0}; }
static inline ivec iselect(ivec mask, ivec a, ivec b) { return (a & mask) | (b & ~mask); }
static inline vec select_vec(ivec mask, vec a, vec b) { return (vec)iselect(mask, (ivec)a, (ivec)b); }
static inline float sum(vec x) {
    float total = 0;
    for (int i = 0; i < SIMD_WIDTH; i++) total += x[i];
    return total;
}
#endif
