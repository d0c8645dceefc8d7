/* Template: the `dense` encoding for elements of `BITS` bits. See docs/format.md. */

/* Fills in the cells of a block, and returns whether it has a difference of 16 or more, whose token
 * `set_long_tokens` must still set. */
static ALWAYS_INLINE bool NAME(fill_cells_)(const T *base, const T *bits, size_t count,
                                            unsigned mantissa, unsigned first,
                                            const int32_t *trend, uint16_t *cells) {
    T any = 0;
    for (size_t n = 0; n < count; n++) {
        T difference = NAME(surprise_)(base[n], bits[n], mantissa, first, trend);
        unsigned exponent = NAME(exponent_)(base[n], mantissa);
        cells[n] = (uint16_t)(exponent * NAME(TOKENS_) + (difference < 16 ? difference : 16));
        any |= difference;
    }
    return any >= 16;
}

/* Sets the tokens of large differences, and writes their plain bits. */
static ALWAYS_INLINE void NAME(set_long_tokens_)(const T *base, const T *bits, size_t count,
                                                 unsigned mantissa, unsigned first,
                                                 const int32_t *trend, uint16_t *cells,
                                                 Writer *plain) {
    for (size_t start = 0; start < count; start += 64) {
        _Alignas(64) uint8_t is_long[64] = {0};
        size_t size = count - start < 64 ? count - start : 64;
        for (size_t n = 0; n < size; n++)
            is_long[n] = cells[start + n] % NAME(TOKENS_) == 16 ? 255 : 0;
        for (uint64_t mask = gather_mask(is_long); mask; mask &= mask - 1) {
            size_t n = start + (size_t)__builtin_ctzll(mask);
            T difference = NAME(surprise_)(base[n], bits[n], mantissa, first, trend);
            unsigned token = token_of(difference), more = plain_bits(token);
            cells[n] = (uint16_t)(cells[n] - 16 + token);
            put_long_bits(plain, low_bits(difference, more), more);
        }
    }
}

static ALWAYS_INLINE void NAME(fill_segment_)(const T *base, const T *bits, size_t count,
                                              unsigned mantissa, unsigned first,
                                              const int32_t *trend, uint16_t *cells,
                                              Writer *plain) {
    for (size_t start = 0; start < count; start += GROUPED) {
        size_t size = count - start < GROUPED ? count - start : GROUPED;
        const T *old = base + start, *new = bits + start;
        if (NAME(fill_cells_)(old, new, size, mantissa, first, trend, cells + start))
            NAME(set_long_tokens_)(old, new, size, mantissa, first, trend, cells + start, plain);
    }
    flush_bits(plain);
}

static void NAME(take_apart_)(const T *base, const T *bits, size_t count, unsigned mantissa,
                              unsigned first, const int32_t *trend, uint16_t *cells, Writer *plain,
                              size_t *plain_ends) {
    for (size_t start = 0; start < count; start += SEGMENT) {
        size_t size = count - start < SEGMENT ? count - start : SEGMENT;
        const T *old = base + start, *new = bits + start;
        if (BITS == 16 && mantissa == 7)
            NAME(fill_segment_)(old, new, size, 7, 0, trend, cells + start, plain);
        else if (BITS == 16 && mantissa == 8)
            NAME(fill_segment_)(old, new, size, 8, 0, trend, cells + start, plain);
        else if (BITS == 32 && mantissa == 23 && !first)
            NAME(fill_segment_)(old, new, size, 23, 0, trend, cells + start, plain);
        else if (BITS == 32 && mantissa == 23 && first == TREND_BITS)
            NAME(fill_segment_)(old, new, size, 23, TREND_BITS, trend, cells + start, plain);
        else
            NAME(fill_segment_)(old, new, size, mantissa, first, trend, cells + start, plain);
        *plain_ends++ = plain->size;
    }
}

/* The models of a payload: chances of tokens for each class of each group. */
typedef struct {
    EncodeEntry entries[MAX_CLASSES * NAME(TOKENS_)];
    const EncodeEntry *rows[EXPONENTS];
} NAME(Model);

/* Counts the cells of a group's blocks. Two tables alternate, since a count that was just written is
 * slow to read. */
static void NAME(count_cells_)(const uint16_t *cells, size_t count, const uint8_t *of, unsigned g,
                               uint32_t *counts) {
    enum { CELLS = EXPONENTS * NAME(TOKENS_) };
    memset(counts, 0, 2 * CELLS * sizeof *counts);
    for (size_t start = 0, block = 0; start < count; start += GROUPED, block++) {
        if (of[block] != g) continue;
        size_t end = count - start < GROUPED ? count : start + GROUPED, n = start;
        for (; n + 1 < end; n += 2) {
            counts[cells[n]]++;
            counts[CELLS + cells[n + 1]]++;
        }
        if (n < end) counts[cells[n]]++;
    }
    for (size_t n = 0; n < CELLS; n++) counts[n] += counts[CELLS + n];
}

/* Chooses the classes and chances of a group from its counts, and writes them. */
static void NAME(put_model_)(Writer *w, uint32_t *counts, NAME(Model) *model) {
    Classes classes;
    choose_classes(&classes, counts, NAME(TOKENS_), MAX_CLASSES, DENSE_HEADER);
    put_classes(w, &classes);
    for (unsigned c = 0; c < classes.count; c++) {
        uint32_t chances[NAME(TOKENS_)];
        EncodeEntry *entries = model->entries + c * NAME(TOKENS_);
        scale_counts(classes.counts[c], NAME(TOKENS_), chances);
        put_chances(w, chances, NAME(TOKENS_));
        fill_encode_entries(entries, chances, NAME(TOKENS_));
    }
    for (unsigned e = 0; e < EXPONENTS; e++)
        model->rows[e] = model->entries + classes.of[e] * NAME(TOKENS_);
}

typedef struct {
    uint16_t words[SEGMENT + 2];
    uint16_t *at;
} NAME(Lane);

static inline uint32_t NAME(put_cell_)(uint32_t state, unsigned cell, const NAME(Model) *model,
                                       NAME(Lane) *lane) {
    const EncodeEntry *row = model->rows[cell / NAME(TOKENS_)];
    return put_token(state, &row[cell % NAME(TOKENS_)], &lane->at);
}

/* rANS codes from the last element to the first, so that a reader decodes forwards. */
static void NAME(code_lanes_)(NAME(Lane) *lanes, unsigned lane_count, const uint16_t *cells,
                              size_t count, const uint8_t *of, const NAME(Model) *models) {
    uint32_t states[LANES];
    for (unsigned g = 0; g < lane_count; g++) {
        states[g] = LOWEST;
        lanes[g].at = lanes[g].words + SEGMENT + 2;
    }
    size_t last = count - (lane_count - 1) * (size_t)SEGMENT;
    size_t shared = lane_count == LANES ? last / GROUPED * GROUPED : 0;
    for (unsigned g = 0; g < lane_count; g++)
        for (size_t n = g + 1 < lane_count ? SEGMENT : last; n-- > shared;) {
            size_t at = g * SEGMENT + n;
            states[g] = NAME(put_cell_)(states[g], cells[at], &models[of[at / GROUPED]], &lanes[g]);
        }
    for (size_t end = shared; end > 0; end -= GROUPED) {
        const NAME(Model) *model[LANES];
        for (unsigned g = 0; g < LANES; g++)
            model[g] = &models[of[(g * SEGMENT + end) / GROUPED - 1]];
        for (size_t n = end; n-- > end - GROUPED;)
            UNROLL
            for (unsigned g = 0; g < LANES; g++)
                states[g] = NAME(put_cell_)(states[g], cells[g * SEGMENT + n], model[g], &lanes[g]);
    }
    for (unsigned g = 0; g < lane_count; g++) {
        *--lanes[g].at = (uint16_t)states[g];
        *--lanes[g].at = (uint16_t)(states[g] >> 16);
    }
}

static void NAME(put_segments_)(const uint16_t *cells, size_t count, const size_t *plain_ends,
                                const uint8_t *of, const NAME(Model) *models, NAME(Lane) *lanes,
                                Writer *w, Writer *coded) {
    size_t plain_start = 0;
    for (size_t start = 0; start < count; start += LANES * SEGMENT) {
        size_t left = count - start;
        unsigned lane_count = left > LANES * SEGMENT ? LANES : (unsigned)((left - 1) / SEGMENT + 1);
        NAME(code_lanes_)(lanes, lane_count, cells + start,
                          left < LANES * SEGMENT ? left : LANES * SEGMENT, of + start / GROUPED,
                          models);
        for (unsigned g = 0; g < lane_count; g++) {
            size_t used = (size_t)(lanes[g].words + SEGMENT + 2 - lanes[g].at);
            put_varint(w, used);
            put_varint(w, *plain_ends - plain_start);
            plain_start = *plain_ends++;
            for (size_t n = 0; n < used; n++) lanes[g].at[n] = little16(lanes[g].at[n]);
            put_bytes(coded, lanes[g].at, 2 * used);
        }
    }
}

static const char *NAME(dense_encode_)(const uint8_t *base_bytes, const uint8_t *new_bytes,
                                       size_t count, unsigned mantissa, Writer *w) {
    const T *base = (const T *)(const void *)base_bytes;
    const T *bits = (const T *)(const void *)new_bytes;
    int32_t trend[TREND_CELLS] = {0};
    unsigned first = 0, groups = 1;
    Writer coded = {0}, plain = {0};
    uint16_t *cells = malloc((count + 1) * sizeof *cells);
    size_t *plain_ends = malloc((count / SEGMENT + 1) * sizeof *plain_ends);
    uint8_t *of = calloc(count / GROUPED + 1, 1);
    uint32_t *counts = malloc(2 * EXPONENTS * NAME(TOKENS_) * sizeof *counts);
    NAME(Lane) *lanes = malloc(LANES * sizeof *lanes);
    NAME(Model) *models = NULL;
    bool ready = cells && plain_ends && of && counts && lanes;
    ready = ready && NAME(choose_trend_)(base, bits, count, mantissa, trend, &first);
    if (ready) {
        NAME(take_apart_)(base, bits, count, mantissa, first, trend, cells, &plain, plain_ends);
        ready = choose_groups(cells, count, NAME(TOKENS_), of, &groups);
    }
    if (ready) models = calloc(groups, sizeof *models);
    if (models) {
        put_trend(w, trend, first);
        put_byte(w, groups);
        for (unsigned g = 0; g < groups; g++) {
            NAME(count_cells_)(cells, count, of, g, counts);
            NAME(put_model_)(w, counts, &models[g]);
        }
        if (groups > 1) put_groups(w, of, (count + GROUPED - 1) / GROUPED, groups);
        NAME(put_segments_)(cells, count, plain_ends, of, models, lanes, w, &coded);
        put_bytes(w, coded.data, coded.size);
        put_bytes(w, plain.data, plain.size);
    }
    bool failed = !models || w->failed || coded.failed || plain.failed;
    free(cells);
    free(plain_ends);
    free(of);
    free(counts);
    free(lanes);
    free(models);
    free(coded.data);
    free(plain.data);
    return failed ? OUT_OF_MEMORY : NULL;
}

static inline T NAME(long_step_)(unsigned token, Segment *segment) {
    unsigned more = plain_bits(token);
    T difference = (T)((T)((T)(4 | (token & 3)) << more) | (T)get_plain(segment, more));
    return (T)((T)(difference >> 1) ^ (T)(0 - (T)(difference & 1)));
}

/* Returns the element whose place is `step` above that of `base`. */
static inline T NAME(move_)(T base, T step, unsigned mantissa) {
    T down = mantissa ? (T)((SIGNED)base >> (BITS - 1)) : 0;
    T moved = (T)(base + (T)((T)(step ^ down) - down));
    if (!mantissa || !((moved ^ base) & SIGN)) return moved;
    return NAME(pattern_)((T)(NAME(order_)(base, mantissa) + step), mantissa);
}

/* What a decoder knows of a payload before its segments. */
typedef struct {
    const uint32_t (*rows)[2 * EXPONENTS]; /* of each group; index: the sign bit, the exponent; a row
                                            * has its first entry, and the chance of token 0 */
    const uint32_t *entries;
    const uint8_t *of; /* the group of each block */
    const int32_t *trend;
    const uint8_t *streams;
} NAME(Tables);

static ALWAYS_INLINE T NAME(decode_step_)(T base, unsigned mantissa, unsigned first,
                                          const NAME(Tables) *tables, const uint32_t *rows,
                                          uint32_t *state, const uint8_t **words,
                                          Segment *segment) {
    unsigned row = BITS < 64 && mantissa ? (unsigned)(base >> mantissa)
                                         : NAME(exponent_)(base, mantissa);
    uint32_t entry = tables->entries[rows[row] % (1u << ROW_BITS) + *state % CHANCES];
    uint32_t quotient = *state >> CHANCE_BITS;
    uint32_t next = (entry >> 8) % CHANCES * quotient + quotient + (entry >> 20);
    uint32_t low = (next - LOWEST) >> 31; /* no branch, as it would be mispredicted */
    *state = next << (16 * low) | (load16(*words) & (0 - low));
    *words += 2 * low;
    unsigned code = entry & 255;
    T step = (T)(SIGNED)(int8_t)code;
    if ((uint8_t)(code + 8) >= 16) step = NAME(long_step_)(code + 8, segment);
    if (first) step = (T)(step + NAME(expected_)(base, mantissa, first, tables->trend));
    return NAME(move_)(base, step, mantissa);
}

static ALWAYS_INLINE void NAME(decode_segments_)(T *data, unsigned mantissa, unsigned first,
                                                 const NAME(Tables) *tables, const uint8_t *of,
                                                 Segment *segments) {
    uint32_t states[LANES]; /* copies of the segments' states, so that they stay in registers */
    const uint8_t *words[LANES];
    for (unsigned g = 0; g < LANES; g++) {
        states[g] = segments[g].state;
        words[g] = segments[g].words;
    }
    for (size_t start = 0; start < SEGMENT; start += GROUPED) {
        const uint32_t *rows[LANES];
        for (unsigned g = 0; g < LANES; g++)
            rows[g] = tables->rows[of[(g * SEGMENT + start) / GROUPED]];
        for (size_t n = start; n < start + GROUPED; n++)
            UNROLL
            for (unsigned g = 0; g < LANES; g++) {
                T *at = data + g * SEGMENT + n;
                *at = NAME(decode_step_)(*at, mantissa, first, tables, rows[g], &states[g],
                                         &words[g], &segments[g]);
            }
    }
    for (unsigned g = 0; g < LANES; g++) {
        segments[g].state = states[g];
        segments[g].words = words[g];
    }
}

static const char *NAME(check_segments_)(const Segment *segments, size_t count) {
    for (size_t g = 0; g < count; g++)
        if (segments[g].state != LOWEST || segments[g].words != segments[g].words_end ||
            segments[g].bit > segments[g].bits_end || segments[g].bits_end - segments[g].bit > 7)
            return "its streams do not fit its elements";
    return NULL;
}

#if BITS == 16 && defined(USE_AVX2)
#include "dense_avx2.h"
#endif

static ALWAYS_INLINE const char *NAME(decode_lanes_)(T *data, size_t count, unsigned mantissa,
                                                     unsigned first, const NAME(Tables) *tables,
                                                     const uint8_t *of, Segment *segments) {
    if (count == LANES * SEGMENT) {
        NAME(decode_segments_)(data, mantissa, first, tables, of, segments);
    } else {
        for (size_t n = 0; n < count; n++) {
            Segment *segment = &segments[n / SEGMENT];
            data[n] = NAME(decode_step_)(data[n], mantissa, first, tables,
                                         tables->rows[of[n / GROUPED]], &segment->state,
                                         &segment->words, segment);
        }
    }
    return NAME(check_segments_)(segments, (count + SEGMENT - 1) / SEGMENT);
}

/* The same, compiled with constants for the most frequent kinds. */
static const char *NAME(decode_any_)(T *data, size_t count, unsigned mantissa, unsigned first,
                                     const NAME(Tables) *tables, const uint8_t *of,
                                     Segment *segments) {
    if (BITS == 16 && mantissa == 7 && !first)
        return NAME(decode_lanes_)(data, count, 7, 0, tables, of, segments);
    if (BITS == 32 && mantissa == 23 && !first)
        return NAME(decode_lanes_)(data, count, 23, 0, tables, of, segments);
    if (BITS == 32 && mantissa == 23 && first == TREND_BITS)
        return NAME(decode_lanes_)(data, count, 23, TREND_BITS, tables, of, segments);
    return NAME(decode_lanes_)(data, count, mantissa, first, tables, of, segments);
}

/* Reads the classes and chances of a group, whose entries follow `*used` others. */
static const char *NAME(get_model_)(Reader *r, unsigned mantissa, uint32_t *rows,
                                    uint32_t **entries, size_t *used) {
    unsigned top = NAME(top_exponent_)(mantissa);
    Classes classes;
    const char *error = get_classes(r, &classes, MAX_CLASSES, top);
    if (error) return error;
    uint32_t *more = realloc(*entries, (*used + classes.count * CHANCES) * sizeof *more);
    if (!more) return OUT_OF_MEMORY;
    *entries = more;
    uint32_t row[MAX_CLASSES];
    for (unsigned c = 0; c < classes.count && !error; c++, *used += CHANCES) {
        uint32_t zero = 0;
        error = get_chances(r, NAME(TOKENS_), *entries + *used, &zero);
        row[c] = (uint32_t)*used | zero << ROW_BITS;
    }
    for (unsigned e = 0; e < 2 * EXPONENTS && !error; e++)
        rows[e] = row[classes.of[e % (top + 1)]];
    return error;
}

static const char *NAME(dense_decode_)(Reader *r, uint8_t *data, size_t count, unsigned mantissa) {
    uint32_t rows[MAX_GROUPS][2 * EXPONENTS];
    int32_t trend[TREND_CELLS];
    unsigned first = 0;
    size_t used = 0, segment_count = (count + SEGMENT - 1) / SEGMENT;
    size_t blocks = (count + GROUPED - 1) / GROUPED;
    uint32_t *entries = NULL;
    uint8_t *of = NULL, *streams = NULL;
    Segment *segments = NULL;
    const char *error = get_trend(r, mantissa, trend, &first);
    if (error) return error;
    unsigned groups = get_byte(r);
    if (r->failed || groups < 1 || groups > MAX_GROUPS) return "its number of groups is not valid";
    for (unsigned g = 0; g < groups && !error; g++)
        error = NAME(get_model_)(r, mantissa, rows[g], &entries, &used);
    if (!error && (uint64_t)(r->end - r->at) < 2 * segment_count) error = "it is too short";
    if (!error) {
        of = calloc(blocks + 1, 1);
        segments = malloc((segment_count + 1) * sizeof *segments);
        if (!of || !segments) error = OUT_OF_MEMORY;
    }
    if (!error && groups > 1) error = get_groups(r, of, blocks, groups);
    if (!error) error = get_segments(r, segments, segment_count, &streams);
    const NAME(Tables) tables = {(const uint32_t(*)[2 * EXPONENTS])rows, entries, of, trend,
                                  streams};
    size_t done = 0;
#if BITS == 16 && defined(USE_AVX2)
    if (mantissa == 7 && !first && !error)
        error = NAME(decode_complete_)((T *)(void *)data, count, 7, &tables, segments, &done);
    if (mantissa == 8 && !first && !error)
        error = NAME(decode_complete_)((T *)(void *)data, count, 8, &tables, segments, &done);
#endif
    for (size_t g = done; g < segment_count && !error; g += LANES) {
        size_t start = g * SEGMENT, left = count - start;
        error = NAME(decode_any_)((T *)(void *)data + start,
                                  left < LANES * SEGMENT ? left : LANES * SEGMENT, mantissa, first,
                                  &tables, of + start / GROUPED, segments + g);
    }
    free(entries);
    free(of);
    free(segments);
    free(streams);
    return error;
}
