/* Groups of blocks whose elements change alike. Each group of a `dense` payload has classes and
 * chances of its own. */
#ifndef CASW_GROUPS_H
#define CASW_GROUPS_H

#include "classes.h"
#include "range.h"

enum {
    GROUPED = 128,      /* elements of a block, which are in one group */
    MAX_GROUPS = 4,
    LEAST_BLOCKS = 64,  /* fewer blocks are one group */
    SAMPLED = 512,      /* blocks from which groups are learnt, at most */
    ROUNDS = 4,
    COST_BITS = 4       /* fractional bits of a cost */
};

/* The blocks that are sampled: every `stride`th of those that are complete. */
typedef struct {
    size_t stride, count;
} Sample;

static Sample sample_of(size_t elements) {
    size_t blocks = elements / GROUPED, stride = blocks / SAMPLED + 4;
    return (Sample){stride, (blocks + stride - 1) / stride};
}

/* What groups are learnt from: cells of sampled blocks, and their numbers in each group. */
typedef struct {
    const uint16_t *cells;
    Sample sample;
    unsigned tokens, shift; /* the number of tokens, and its logarithm */
    uint8_t of[SAMPLED + 1];
    uint32_t *counts[MAX_GROUPS + 1]; /* of each group, and of all */
    uint64_t *costs;                  /* of a cell in each group: 16 bits each */
} Learner;

/* Returns the bits that the cells of all exponents need, given the exponents. */
static uint64_t cells_cost(const uint32_t *counts, unsigned tokens) {
    uint64_t cost = 0;
    for (unsigned e = 0; e < EXPONENTS; e++, counts += tokens) {
        uint64_t total = 0;
        for (unsigned t = 0; t < tokens; t++) {
            if (!counts[t]) continue;
            total += counts[t];
            cost -= n_log2_n(counts[t]);
        }
        cost += n_log2_n(total);
    }
    return cost;
}

static void count_block(uint32_t *counts, const uint16_t *cells, size_t size) {
    for (size_t n = 0; n < size; n++) counts[cells[n]]++;
}

static const uint16_t *sampled_cells(const Learner *it, size_t n) {
    return it->cells + n * it->sample.stride * GROUPED;
}

static void count_sample(Learner *it) {
    for (unsigned g = 0; g < MAX_GROUPS; g++)
        memset(it->counts[g], 0, (size_t)EXPONENTS * it->tokens * sizeof(uint32_t));
    for (size_t n = 0; n < it->sample.count; n++)
        count_block(it->counts[it->of[n]], sampled_cells(it, n), GROUPED);
}

static void pack_costs(Learner *it, size_t cell, const uint16_t costs[MAX_GROUPS]) {
    memcpy(&it->costs[cell], costs, sizeof *it->costs);
}

/* A cell that the sample lacks costs as much in every group. */
static void set_costs(Learner *it) {
    for (unsigned e = 0; e < EXPONENTS; e++) {
        uint64_t totals[MAX_GROUPS] = {0};
        size_t first = (size_t)e * it->tokens;
        for (unsigned g = 0; g < MAX_GROUPS; g++)
            for (unsigned t = 0; t < it->tokens; t++) totals[g] += it->counts[g][first + t];
        for (size_t cell = first; cell < first + it->tokens; cell++) {
            if (!it->counts[MAX_GROUPS][cell]) continue;
            uint16_t costs[MAX_GROUPS];
            for (unsigned g = 0; g < MAX_GROUPS; g++) {
                uint64_t of_all = log2_of(4 * totals[g] + 16);
                uint64_t of_cell = log2_of(4 * (uint64_t)it->counts[g][cell] + 1);
                costs[g] = (uint16_t)((of_all - of_cell) >> (LOG_BITS - COST_BITS));
            }
            pack_costs(it, cell, costs);
        }
    }
}

/* Returns the group in which the cells of a block cost least. Four sums of 16 bits are made at
 * once: 128 costs of at most 18 bits do not overflow them. */
static unsigned cheapest(const Learner *it, const uint16_t *cells, size_t size) {
    uint64_t sum = 0;
    for (size_t n = 0; n < size; n++) sum += it->costs[cells[n]];
    uint16_t costs[MAX_GROUPS];
    memcpy(costs, &sum, sizeof costs);
    unsigned best = 0;
    for (unsigned g = 1; g < MAX_GROUPS; g++)
        if (costs[g] < costs[best]) best = g;
    return best;
}

static int compare_keys(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Half of the blocks begin in the first group, a quarter in the second one, and so on: the usual
 * picture is a few blocks that changed much, in many that hardly did. */
static uint8_t first_group(size_t rank, size_t count) {
    uint8_t g = 0;
    for (size_t left = count / 2; g + 1 < MAX_GROUPS && rank >= count - left; left /= 2) g++;
    return g;
}

/* Divides the sample by how far elements moved, relative to others of the same exponent. */
static bool divide_sample(Learner *it) {
    uint64_t *keys = malloc((it->sample.count + 1) * sizeof *keys);
    if (!keys) return false;
    int32_t means[EXPONENTS] = {0}; /* of tokens, in 16ths */
    for (unsigned e = 0; e < EXPONENTS; e++) {
        const uint32_t *counts = it->counts[MAX_GROUPS] + (size_t)e * it->tokens;
        uint64_t total = 0, sum = 0;
        for (unsigned t = 0; t < it->tokens; t++) {
            total += counts[t];
            sum += (uint64_t)counts[t] * t;
        }
        if (total) means[e] = (int32_t)(16 * sum / total);
    }
    for (size_t n = 0; n < it->sample.count; n++) {
        const uint16_t *cells = sampled_cells(it, n);
        int32_t score = 1 << 24;
        for (size_t k = 0; k < GROUPED; k++)
            score += 16 * (int32_t)(cells[k] & (it->tokens - 1)) - means[cells[k] >> it->shift];
        keys[n] = (uint64_t)(uint32_t)score << 32 | n;
    }
    qsort(keys, it->sample.count, sizeof *keys, compare_keys);
    for (size_t n = 0; n < it->sample.count; n++)
        it->of[(uint32_t)keys[n]] = first_group(n, it->sample.count);
    free(keys);
    return true;
}

/* Whether groups save more than they cost: bits of tables, of each block's group, and the bits that
 * a sample seems to save because chances fit it by accident. */
static bool groups_pay(const Learner *it, size_t blocks) {
    size_t cells = (size_t)EXPONENTS * it->tokens;
    uint64_t one = cells_cost(it->counts[MAX_GROUPS], it->tokens), many = 0, used = 0;
    for (unsigned g = 0; g < MAX_GROUPS; g++) {
        many += cells_cost(it->counts[g], it->tokens);
        for (size_t n = 0; n < cells; n++) used += it->counts[g][n] != 0;
    }
    for (size_t n = 0; n < cells; n++) used -= it->counts[MAX_GROUPS][n] != 0;
    uint64_t bits = blocks + used * (8 + it->sample.stride);
    return one > many + one / 64 + (bits << LOG_BITS) / it->sample.stride;
}

/* Numbers the groups that have blocks from 0 on, and returns how many they are. */
static unsigned renumber(uint8_t *of, size_t blocks) {
    uint8_t number[MAX_GROUPS] = {0}, count = 0;
    bool used[MAX_GROUPS] = {false};
    for (size_t n = 0; n < blocks; n++) used[of[n]] = true;
    for (unsigned g = 0; g < MAX_GROUPS; g++)
        if (used[g]) number[g] = count++;
    for (size_t n = 0; n < blocks; n++) of[n] = number[of[n]];
    return count;
}

static bool learn_groups(Learner *it) {
    for (size_t n = 0; n < it->sample.count; n++)
        count_block(it->counts[MAX_GROUPS], sampled_cells(it, n), GROUPED);
    if (!divide_sample(it)) return false;
    for (unsigned round = 0; round < ROUNDS; round++) {
        count_sample(it);
        set_costs(it);
        if (round + 1 < ROUNDS)
            for (size_t n = 0; n < it->sample.count; n++)
                it->of[n] = (uint8_t)cheapest(it, sampled_cells(it, n), GROUPED);
    }
    return true;
}

/* Sets the group of each block, initially 0, and the number of groups. False: out of memory. */
static bool choose_groups(const uint16_t *cells, size_t count, unsigned tokens, uint8_t *of,
                          unsigned *groups) {
    *groups = 1;
    if (count < LEAST_BLOCKS * GROUPED) return true;
    size_t table = (size_t)EXPONENTS * tokens, blocks = (count + GROUPED - 1) / GROUPED;
    Learner *it = malloc(sizeof *it);
    uint32_t *counts = calloc((MAX_GROUPS + 1) * table, sizeof *counts);
    uint64_t *costs = calloc(table, sizeof *costs);
    bool ready = it && counts && costs;
    if (ready) {
        it->cells = cells;
        it->sample = sample_of(count);
        it->tokens = tokens;
        it->shift = log2_floor(tokens);
        it->costs = costs;
        for (unsigned g = 0; g <= MAX_GROUPS; g++) it->counts[g] = counts + g * table;
        ready = learn_groups(it);
    }
    if (ready && groups_pay(it, blocks)) {
        for (size_t n = 0; n < blocks; n++) {
            size_t start = n * GROUPED, left = count - start;
            of[n] = (uint8_t)cheapest(it, cells + start, left < GROUPED ? left : GROUPED);
        }
        *groups = renumber(of, blocks);
    }
    free(it);
    free(counts);
    free(costs);
    return ready;
}

/* The groups of blocks are coded bit by bit, given that of the block before. */
typedef struct {
    Chance chances[MAX_GROUPS][MAX_GROUPS];
    unsigned last, bits;
} GroupCoder;

static void init_group_coder(GroupCoder *coder, unsigned groups) {
    for (unsigned n = 0; n < MAX_GROUPS * MAX_GROUPS; n++)
        coder->chances[n / MAX_GROUPS][n % MAX_GROUPS] = (Chance){32768, 0};
    coder->last = 0;
    coder->bits = groups > 2 ? 2 : 1;
}

static void put_groups(Writer *w, const uint8_t *of, size_t blocks, unsigned groups) {
    Writer body = {0};
    RangeWriter range;
    GroupCoder coder;
    start_writing(&range, &body);
    init_group_coder(&coder, groups);
    for (size_t n = 0; n < blocks; n++) {
        unsigned node = 1;
        for (unsigned bit = coder.bits; bit--; node = node << 1 | (of[n] >> bit & 1))
            put_chance(&range, &coder.chances[coder.last][node], of[n] >> bit & 1);
        coder.last = of[n];
    }
    range_finish(&range);
    put_varint(w, body.size);
    put_bytes(w, body.data, body.size);
    w->failed |= body.failed;
    free(body.data);
}

static const char *get_groups(Reader *r, uint8_t *of, size_t blocks, unsigned groups) {
    uint64_t size = get_varint(r, (uint64_t)(r->end - r->at));
    if (r->failed || size > (uint64_t)(r->end - r->at)) return "it is too short";
    Reader body = {r->at, r->at + size, 0, 0, false};
    r->at += size;
    RangeReader range;
    GroupCoder coder;
    start_reading(&range, &body);
    init_group_coder(&coder, groups);
    for (size_t n = 0; n < blocks; n++) {
        unsigned node = 1;
        for (unsigned bit = 0; bit < coder.bits; bit++)
            node = node << 1 | get_chance(&range, &coder.chances[coder.last][node]);
        coder.last = node - (1u << coder.bits);
        if (coder.last >= groups) return "one of its groups does not exist";
        of[n] = (uint8_t)coder.last;
    }
    return body.at == body.end ? NULL : "its groups do not fit its elements";
}

#endif
