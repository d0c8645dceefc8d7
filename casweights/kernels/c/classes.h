/* Classes of elements by the exponent of the base, and the choice of their boundaries. */
#ifndef CASW_CLASSES_H
#define CASW_CLASSES_H

#include "bytes.h"

enum {
    EXPONENTS = 256,
    F64_BIAS = 896,
    MAX_CLASSES = 16,
    SPARSE_CLASSES = 8,
    SPARSE_HEADER = 28, /* bits that a further class costs */
    DENSE_HEADER = 200,
    LOG_ENTRIES = 1024,
    LOG_BITS = 24
};

/* Class c contains the exponents from first[c] to below first[c + 1]. */
typedef struct {
    unsigned count;
    uint8_t first[MAX_CLASSES];
    uint8_t of[EXPONENTS];
    const uint32_t *counts[MAX_CLASSES]; /* symbols of each class, if `choose_classes` was called */
} Classes;

static uint32_t log_table[LOG_ENTRIES + 1];

/* log2(1 + n / 1024) by repeated squaring, in integers alone, so that all machines agree. */
static void init_log_table(void) {
    for (uint64_t n = 0; n < LOG_ENTRIES; n++) {
        uint64_t x = (LOG_ENTRIES + n) << 21, log = 0; /* 31 fractional bits */
        for (int bit = 0; bit < LOG_BITS; bit++) {
            x = (x * x) >> 31;
            unsigned carry = (unsigned)(x >> 32);
            log = log << 1 | carry;
            x >>= carry;
        }
        log_table[n] = (uint32_t)log;
    }
    log_table[LOG_ENTRIES] = 1u << LOG_BITS;
}

/* Returns log2(n) with LOG_BITS fractional bits, for n from 1 to below 2^32. */
static uint64_t log2_of(uint64_t n) {
    unsigned exponent = log2_floor(n);
    uint64_t mantissa = (n << (42 - exponent)) - ((uint64_t)1 << 42); /* 42 bits: 10 and 32 */
    uint64_t index = mantissa >> 32, rest = (mantissa & 0xffffffff) >> 16;
    uint64_t step = log_table[index + 1] - log_table[index];
    return ((uint64_t)exponent << LOG_BITS) + log_table[index] + (step * rest >> 16);
}

static uint64_t n_log2_n(uint64_t n) { return n < 2 ? 0 : n * log2_of(n); }

static void finish_classes(Classes *classes) {
    unsigned c = 0;
    for (unsigned e = 0; e < EXPONENTS; e++) {
        while (c + 1 < classes->count && e >= classes->first[c + 1]) c++;
        classes->of[e] = (uint8_t)c;
    }
}

/* The counts of symbols in a run of neighbouring exponents. */
typedef struct {
    unsigned first;
    uint64_t total, cost;
    uint32_t *counts;
} Group;

static uint64_t group_cost(const Group *group, unsigned symbols) {
    uint64_t cost = n_log2_n(group->total);
    for (unsigned s = 0; s < symbols; s++) cost -= n_log2_n(group->counts[s]);
    return cost;
}

static uint64_t merged_cost(const Group *a, const Group *b, unsigned symbols) {
    uint64_t cost = n_log2_n(a->total + b->total);
    for (unsigned s = 0; s < symbols; s++) {
        uint64_t count = (uint64_t)a->counts[s] + b->counts[s];
        if (count > 1) cost -= n_log2_n(count);
    }
    return cost;
}

/* Start with a class for each exponent; merge neighbours while that costs less than `header` bits
 * or there are more than `limit` classes. `counts` (symbols for each exponent) is consumed. */
static void choose_classes(Classes *classes, uint32_t *counts, unsigned symbols, unsigned limit,
                           unsigned header) {
    Group groups[EXPONENTS];
    int64_t growth[EXPONENTS];
    unsigned n = 0;
    for (unsigned e = 0; e < EXPONENTS; e++) {
        Group *group = &groups[n];
        group->first = e;
        group->counts = counts + (size_t)e * symbols;
        group->total = 0;
        for (unsigned s = 0; s < symbols; s++) group->total += group->counts[s];
        if (!group->total) continue;
        group->cost = group_cost(group, symbols);
        n++;
    }
    for (unsigned g = 0; g + 1 < n; g++)
        growth[g] = (int64_t)(merged_cost(&groups[g], &groups[g + 1], symbols) - groups[g].cost -
                              groups[g + 1].cost);
    while (n > 1) {
        unsigned best = 0;
        for (unsigned g = 1; g + 1 < n; g++)
            if (growth[g] < growth[best]) best = g;
        if (n <= limit && growth[best] > (int64_t)header << LOG_BITS) break;
        Group *into = &groups[best], *from = &groups[best + 1];
        for (unsigned s = 0; s < symbols; s++) into->counts[s] += from->counts[s];
        into->total += from->total;
        into->cost = group_cost(into, symbols);
        memmove(from, from + 1, (n - best - 2) * sizeof *from);
        memmove(growth + best, growth + best + 1, (n - best - 2) * sizeof *growth);
        n--;
        for (unsigned g = best ? best - 1 : 0; g <= best && g + 1 < n; g++)
            growth[g] = (int64_t)(merged_cost(&groups[g], &groups[g + 1], symbols) -
                                  groups[g].cost - groups[g + 1].cost);
    }
    classes->count = n ? n : 1;
    classes->first[0] = 0;
    classes->counts[0] = counts; /* all zeros: without a group there are no elements */
    for (unsigned c = 0; c < n; c++) {
        if (c) classes->first[c] = (uint8_t)groups[c].first;
        classes->counts[c] = groups[c].counts;
    }
    finish_classes(classes);
}

static void put_classes(Writer *w, const Classes *classes) {
    put_byte(w, classes->count);
    put_bytes(w, classes->first + 1, classes->count - 1);
}

/* `top` is the highest exponent that an element can have. */
static const char *get_classes(Reader *r, Classes *classes, unsigned limit, unsigned top) {
    classes->count = get_byte(r);
    classes->first[0] = 0;
    if (r->failed || classes->count < 1 || classes->count > limit)
        return "its number of classes is not valid";
    for (unsigned c = 1; c < classes->count; c++) {
        classes->first[c] = (uint8_t)get_byte(r);
        if (r->failed || classes->first[c] <= classes->first[c - 1] || classes->first[c] > top)
            return "its classes are not in order";
    }
    finish_classes(classes);
    return NULL;
}

#endif
