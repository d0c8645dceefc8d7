/* Code the steps of changed elements with adaptive probabilities.
 *
 * An optimizer moves all elements by similar absolute amounts. The absolute scale of a step is the
 * exponent of the base plus the logarithm of the step's size in units of the base's last place, so
 * the probabilities depend on this sum. */
#ifndef CASW_SIZES_H
#define CASW_SIZES_H

#include "range.h"

enum { SCALES = 256 + 64 };

typedef struct {
    Chance more[2][SCALES]; /* is the size at least twice as large? first bit, later bits */
    Chance top[SCALES];     /* the bit below the highest one */
} Sizes;

static void init_sizes(Sizes *sizes) {
    Chance *all = &sizes->more[0][0];
    for (unsigned n = 0; n < 3 * SCALES; n++) all[n] = (Chance){32768, 0};
}

static inline void put_size(RangeWriter *w, Sizes *sizes, unsigned exponent, uint64_t size,
                            unsigned negative) {
    unsigned log = log2_floor(size);
    for (unsigned n = 0; n < log; n++) put_chance(w, &sizes->more[n > 0][exponent + n], 1);
    put_chance(w, &sizes->more[log > 0][exponent + log], 0);
    if (log) put_chance(w, &sizes->top[exponent + log], size >> (log - 1) & 1);
    if (log > 1) put_even(w, low_bits(size, log - 1), log - 1);
    put_even(w, negative, 1);
}

/* Returns 0 for a size that no difference between elements of `width` bits has. */
static inline uint64_t get_size(RangeReader *r, Sizes *sizes, unsigned exponent, unsigned width,
                                unsigned *negative) {
    unsigned log = 0;
    while (get_chance(r, &sizes->more[log > 0][exponent + log]))
        if (++log >= width) return 0;
    uint64_t size = 1;
    if (log) size = size << 1 | get_chance(r, &sizes->top[exponent + log]);
    if (log > 1) size = size << (log - 1) | get_even(r, log - 1);
    *negative = (unsigned)get_even(r, 1);
    return (size - *negative) >> (width - 1) ? 0 : size;
}

#endif
