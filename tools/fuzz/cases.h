/* What is encoded: elements and new values for them, made from a few bytes of an input. */
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

/* How an input begins. */
typedef struct {
    uint8_t kind, encoding, what, count[2], base, change, failure, seed;
} Header;

enum { /* bits of `what` is done with a case */
    HOSTILE = 1,    /* the rest of the input is a payload, and not edits to the one it should have */
    OTHER_BASE = 2, /* the edited payload meets elements that it was not made for */
    UNSTEADY = 28,  /* all of them: another thread writes to the elements meanwhile */
};

typedef struct {
    unsigned log_width, mantissa, encoding, failure;
    size_t count, size, shift; /* from where an allocation begins to the first element */
    uint8_t *base, *bits;
} Case;

/* As little aligned as elements may be where a case wants that; what surrounds them is no one's. */
static uint8_t *new_elements(const Case *it) {
    uint8_t *data = malloc(it->size + it->shift);
    CHECK(data);
    return data + it->shift;
}

static void free_elements(const Case *it, uint8_t *elements) { free(elements - it->shift); }

/* Often some thousands, at times a few, at times about as many as one to five segments have. */
static size_t count_elements(const uint8_t *count) {
    if (count[1] < 32) return count[0] / 4;
    if (count[1] <= 250) return count[1] * 16u + count[0];
    return (count[1] - 250u) * (size_t)SEGMENT - 128 + count[0];
}

static uint64_t make_element(unsigned style, const Case *it, uint64_t *random) {
    unsigned bits = 8u << it->log_width;
    uint64_t any = next_random(random), one = (uint64_t)1 << (bits - 2);
    switch (style % 4) {
    case 0: return 0;
    case 1: return any;
    case 2: return any % 5 - 2 - (any >> 8 & one); /* the least ones, and about the largest ones */
    default: /* floats as weights are: about so often half as large */
        one -= (uint64_t)(1 + __builtin_ctzll(any | 64)) << it->mantissa;
        return one | low_bits(any >> 6, it->mantissa) | (any >> 63) << (bits - 1);
    }
}

/* `style` says how many to change (one in 2 to the nth) and how far; of the larger ones, fewer and
 * less far, as an optimizer does, so that classes of them differ. */
static uint64_t change_element(unsigned style, const Case *it, uint64_t element,
                               uint64_t *random) {
    unsigned larger = it->mantissa ? element >> it->mantissa & 7 : 0;
    uint64_t any = next_random(random);
    if (low_bits(any, (style & 15) + larger / 2)) return element;
    uint64_t step = next_random(random) >> (63 - (any >> 32) % (4 * (style >> 4) + 1)) >> larger;
    return any >> 63 ? element + step : element - step;
}

static Case make_case(const Header *header) {
    Case it = {0};
    it.log_width = kinds[header->kind % KINDS].log_width;
    it.mantissa = kinds[header->kind % KINDS].mantissa;
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
        uint64_t changed = change_element(header->change, &it, element, &random);
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
