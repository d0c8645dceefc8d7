/* The cases to encode: elements and new values for them, made from a few bytes of an input. */
#ifndef FUZZ_CASES_H
#define FUZZ_CASES_H

#include <stdio.h>

#include "kernels.h"

#define CHECK(truth) check(truth, #truth)

static void check(bool truth, const char *text) {
    if (truth) return;
    fprintf(stderr, "does not hold: %s\n", text);
    abort();
}

static uint64_t next_random(uint64_t *state) { /* splitmix64 */
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

/* The first bytes of an input. */
typedef struct {
    uint8_t kind, encoding, what, count[2], base, change, failure, seed;
} Header;

enum { /* bits of `what`: the operations on a case */
    HOSTILE = 1,    /* the rest of the input is a payload, not edits to the encoded one */
    OTHER_BASE = 2, /* decode the edited payload with another base */
    UNSTEADY = 28,  /* if all are set, another thread writes to the elements during encoding */
};

typedef struct {
    unsigned kind, log_width, mantissa, encoding, failure;
    size_t count, size, shift; /* shift: bytes of an allocation before the first element */
    uint8_t *base, *bits;
} Case;

/* Allocates elements, with the weakest allowed alignment if the case requires it. The sanitizer
 * detects accesses outside of them. */
static uint8_t *new_elements(const Case *it) {
    uint8_t *data = malloc(it->size + it->shift);
    CHECK(data);
    return data + it->shift;
}

static void free_elements(const Case *it, uint8_t *elements) { free(elements - it->shift); }

/* Often some thousands, sometimes a few, sometimes enough to learn groups from, sometimes about as
 * many as in one to four or in seventeen segments. */
static size_t count_elements(const uint8_t *count) {
    if (count[1] < 32) return count[0] / 4;
    if (count[1] <= 240) return count[1] * 16u + count[0];
    if (count[1] <= 250) return (count[1] - 176u) * GROUPED + count[0];
    return (count[1] < 255 ? count[1] - 250u : 17) * (size_t)SEGMENT - 128 + count[0];
}

static uint64_t make_element(unsigned style, const Case *it, uint64_t *random) {
    unsigned bits = 8u << it->log_width;
    uint64_t any = next_random(random), one = (uint64_t)1 << (bits - 2);
    switch (style % 4) {
    case 0: return 0;
    case 1: return any;
    case 2: return any % 5 - 2 - (any >> 8 & one); /* near the smallest or the largest */
    default: /* floats as in weights: half the size, half as often */
        one -= (uint64_t)(1 + __builtin_ctzll(any | 64)) << it->mantissa;
        return one | low_bits(any >> 6, it->mantissa) | (any >> 63) << (bits - 1);
    }
}

/* Changes an element or not: `style` gives the share (one in 2 to the nth) and the distance. Larger
 * elements change less often and less far, as under an optimizer, so that classes differ. */
static uint64_t change_element(unsigned style, const Case *it, uint64_t element,
                               uint64_t *random) {
    unsigned larger = it->mantissa ? element >> it->mantissa & 7 : 0;
    uint64_t any = next_random(random);
    if (low_bits(any, (style & 15) + larger / 2)) return element;
    uint64_t step = next_random(random) >> (63 - (any >> 32) % (4 * (style >> 4) + 1)) >> larger;
    return any >> 63 ? element + step : element - step;
}

enum { /* bits of `seed`: what makes the models of `dense` differ from block to block */
    QUIET = 1, /* a third of the blocks change as `change` says, and others do not */
    DECAY = 2, /* those others grow by the first bits of their mantissa */
};

static uint64_t change_in_block(const Header *header, const Case *it, size_t n, uint64_t element,
                                uint64_t *random) {
    unsigned shift = it->mantissa > 3 ? it->mantissa - 3 : 0;
    if (header->seed & QUIET && n / GROUPED % 3)
        return header->seed & DECAY ? element + (element >> shift & 7) : element;
    return change_element(header->change, it, element, random);
}

static Case make_case(const Header *header) {
    Case it = {0};
    it.kind = header->kind % KINDS;
    it.log_width = kinds[it.kind].log_width;
    it.mantissa = kinds[it.kind].mantissa;
    it.encoding = header->encoding % ENCODINGS;
    it.failure = header->failure;
    it.count = count_elements(header->count);
    it.size = it.count << it.log_width;
    it.shift = header->encoding & 2 ? (size_t)1 << it.log_width : 0;
    it.base = new_elements(&it);
    it.bits = new_elements(&it);
    uint64_t random = header->seed;
    for (size_t n = 0; n < it.count; n++) {
        uint64_t element = make_element(header->base, &it, &random);
        uint64_t changed = change_in_block(header, &it, n, element, &random);
        memcpy(it.base + (n << it.log_width), &element, (size_t)1 << it.log_width);
        memcpy(it.bits + (n << it.log_width), &changed, (size_t)1 << it.log_width);
    }
    return it;
}

static void free_case(const Case *it) {
    free_elements(it, it->base);
    free_elements(it, it->bits);
}

#endif
