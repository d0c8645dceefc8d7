/* The kernels of all targets, as module.c includes them, but with allocations that are counted and
 * can fail. */
#ifndef FUZZ_KERNELS_H
#define FUZZ_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

static size_t allocated;       /* bytes that the kernels requested */
static unsigned until_failure; /* allocations up to the one that fails; 0 if none fails */
static bool starved;           /* an allocation failed */

static void *limited_realloc(void *old, size_t size) {
    allocated += size;
    if (until_failure && !--until_failure) {
        starved = true;
        return NULL;
    }
    return realloc(old, size);
}

static void *limited_malloc(size_t size) { return limited_realloc(NULL, size); }

static void *limited_calloc(size_t count, size_t size) {
    void *data = limited_malloc(count * size);
    return data ? memset(data, 0, count * size) : NULL;
}

#define malloc limited_malloc
#define calloc limited_calloc
#define realloc limited_realloc

#include "targets.h"

#undef malloc
#undef calloc
#undef realloc

enum { SPARSE, DENSE, ENCODINGS };

typedef struct {
    const char *(*encode[ENCODINGS][4])(const uint8_t *, const uint8_t *, size_t, unsigned,
                                        Writer *);
    const char *(*decode[ENCODINGS][4])(Reader *, uint8_t *, size_t, unsigned);
    void (*split[4])(const uint8_t *, size_t, uint8_t *);
    void (*join[4])(const uint8_t *, size_t, uint8_t *);
    size_t (*changes[4])(const uint8_t *, const uint8_t *, size_t, size_t, uint8_t *, uint8_t *);
    bool (*swap[4])(uint8_t *, size_t, const uint8_t *, size_t, uint8_t *);
    void (*cast)(const uint8_t *, unsigned, unsigned, size_t, uint8_t *, unsigned, unsigned, bool);
    void (*expect)(const uint8_t *, const uint8_t *, size_t, const uint8_t *, size_t, unsigned,
                   uint16_t *);
    void (*copy_field)(const uint8_t *, size_t, uint8_t *, size_t, size_t, size_t);
    void (*count_values)(const uint8_t *, size_t, size_t, uint16_t *);
    void (*unpack_numbers)(const uint8_t *, size_t, unsigned, uint8_t *);
    void (*number_elements)(const uint8_t *, size_t, unsigned, const uint16_t *, uint16_t *);
    bool (*pack_numbers)(const uint16_t *, const uint16_t *, size_t, unsigned, uint8_t *);
} Target;

#define WIDTHS(name, target) {name##8##target, name##16##target, name##32##target, name##64##target}
#define KERNELS(target)                                                        \
    {                                                                          \
        {WIDTHS(sparse_encode_, target), WIDTHS(dense_encode_, target)},       \
            {WIDTHS(sparse_decode_, target), WIDTHS(dense_decode_, target)},   \
            WIDTHS(split_, target), WIDTHS(join_, target),                     \
            WIDTHS(changes_, target), WIDTHS(swap_, target), cast##target,     \
            expect##target, copy_field##target, count_values##target,          \
            unpack_numbers##target, number_elements##target,                   \
            pack_numbers##target                                               \
    }

static const Target targets[] = {
    KERNELS(_portable),
#ifdef USE_AVX2
    KERNELS(_avx2),
#endif
};

/* Returns the number of targets that this processor supports. */
static size_t count_targets(void) {
#ifdef USE_AVX2
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") ? 2 : 1;
#else
    return 1;
#endif
}

/* As in module.c: log2 of an element's bytes, and the bits of the mantissa. */
static const struct {
    uint8_t log_width, mantissa;
} kinds[] = {{0, 0}, {1, 0}, {2, 0}, {3, 0}, {0, 2}, {0, 3}, {1, 10}, {1, 7}, {2, 23}, {3, 52},
             {1, 8}};

enum { KINDS = sizeof kinds / sizeof *kinds };

#endif
