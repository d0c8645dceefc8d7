/* Template: the `dense` encoding for elements of `BITS` bits. See docs/format.md. */

/* A cell is the exponent of an element's base and the token of its difference in one number. */
enum { NAME(TOKENS_) = 16 + 4 * (BITS - 4) };

/* Fills in cells; for every difference of 16 or more, `count_cells` must still set the token. */
static ALWAYS_INLINE void NAME(fill_cells_)(const T *base, const T *bits, size_t count,
                                            unsigned mantissa, uint16_t *cells) {
    for (size_t n = 0; n < count; n++) {
        T difference = NAME(difference_)(base[n], bits[n], mantissa);
        unsigned exponent = NAME(exponent_)(base[n], mantissa);
        cells[n] = (uint16_t)(exponent * NAME(TOKENS_) + (difference < 16 ? difference : 16));
    }
}

/* Counts the cells of a segment; sets the tokens and writes the plain bits of large differences.
 * Two tables alternate, since a count that was just written is slow to read. */
static void NAME(count_cells_)(const T *base, const T *bits, size_t count, unsigned mantissa,
                               uint16_t *cells, uint32_t *counts, Writer *plain) {
    uint32_t *table[2] = {counts, counts + EXPONENTS * NAME(TOKENS_)};
    for (size_t n = 0; n < count; n++) {
        if (cells[n] % NAME(TOKENS_) == 16) {
            T difference = NAME(difference_)(base[n], bits[n], mantissa);
            unsigned token = token_of(difference), more = plain_bits(token);
            cells[n] = (uint16_t)(cells[n] - 16 + token);
            put_long_bits(plain, low_bits(difference, more), more);
        }
        table[n % 2][cells[n]]++;
    }
    flush_bits(plain);
}

static void NAME(take_apart_)(const T *base, const T *bits, size_t count, unsigned mantissa,
                              uint16_t *cells, uint32_t *counts, Writer *plain,
                              size_t *plain_ends) {
    for (size_t start = 0; start < count; start += SEGMENT) {
        size_t size = count - start < SEGMENT ? count - start : SEGMENT;
        const T *old = base + start, *new = bits + start;
        if (BITS == 16 && mantissa == 7)
            NAME(fill_cells_)(old, new, size, 7, cells + start);
        else
            NAME(fill_cells_)(old, new, size, mantissa, cells + start);
        NAME(count_cells_)(old, new, size, mantissa, cells + start, counts, plain);
        *plain_ends++ = plain->size;
    }
    for (size_t n = 0; n < EXPONENTS * NAME(TOKENS_); n++)
        counts[n] += counts[EXPONENTS * NAME(TOKENS_) + n];
}

typedef struct {
    uint16_t words[SEGMENT + 2];
    uint16_t *at;
} NAME(Lane);

static inline uint32_t NAME(put_cell_)(uint32_t state, unsigned cell,
                                       const EncodeEntry *const *rows, NAME(Lane) *lane) {
    const EncodeEntry *row = rows[cell / NAME(TOKENS_)];
    return put_token(state, &row[cell % NAME(TOKENS_)], &lane->at);
}

/* rANS codes from the last element to the first, so that a reader decodes forwards. */
static void NAME(code_lanes_)(NAME(Lane) *lanes, unsigned lane_count, const uint16_t *cells,
                              size_t count, const EncodeEntry *const *rows) {
    uint32_t states[LANES];
    for (unsigned g = 0; g < lane_count; g++) {
        states[g] = LOWEST;
        lanes[g].at = lanes[g].words + SEGMENT + 2;
    }
    size_t last = count - (lane_count - 1) * (size_t)SEGMENT;
    size_t shared = lane_count == LANES ? last : 0;
    for (unsigned g = 0; g < lane_count; g++)
        for (size_t n = g + 1 < lane_count ? SEGMENT : last; n-- > shared;)
            states[g] = NAME(put_cell_)(states[g], cells[g * SEGMENT + n], rows, &lanes[g]);
    for (size_t n = shared; n-- > 0;)
        for (unsigned g = 0; g < LANES; g++)
            states[g] = NAME(put_cell_)(states[g], cells[g * SEGMENT + n], rows, &lanes[g]);
    for (unsigned g = 0; g < lane_count; g++) {
        *--lanes[g].at = (uint16_t)states[g];
        *--lanes[g].at = (uint16_t)(states[g] >> 16);
    }
}

static void NAME(put_segments_)(const uint16_t *cells, size_t count, const size_t *plain_ends,
                                const EncodeEntry *const *rows, NAME(Lane) *lanes, Writer *w,
                                Writer *coded) {
    size_t plain_start = 0;
    for (size_t start = 0; start < count; start += LANES * SEGMENT) {
        size_t left = count - start;
        unsigned lane_count = left > LANES * SEGMENT ? LANES : (unsigned)((left - 1) / SEGMENT + 1);
        NAME(code_lanes_)(lanes, lane_count, cells + start,
                          left < LANES * SEGMENT ? left : LANES * SEGMENT, rows);
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
    Classes classes;
    Writer coded = {0}, plain = {0};
    uint16_t *cells = malloc((count + 1) * sizeof *cells);
    size_t *plain_ends = malloc((count / SEGMENT + 1) * sizeof *plain_ends);
    uint32_t *counts = calloc(2 * EXPONENTS * NAME(TOKENS_), sizeof *counts);
    EncodeEntry *entries = calloc(MAX_CLASSES * NAME(TOKENS_), sizeof *entries);
    NAME(Lane) *lanes = malloc(LANES * sizeof *lanes);
    bool ready = cells && plain_ends && counts && entries && lanes;
    if (ready) {
        NAME(take_apart_)(base, bits, count, mantissa, cells, counts, &plain, plain_ends);
        choose_classes(&classes, counts, NAME(TOKENS_), MAX_CLASSES, DENSE_HEADER);
        put_classes(w, &classes);
        for (unsigned c = 0; c < classes.count; c++) {
            uint32_t chances[NAME(TOKENS_)];
            scale_counts(classes.counts[c], NAME(TOKENS_), chances);
            put_chances(w, chances, NAME(TOKENS_));
            fill_encode_entries(entries + c * NAME(TOKENS_), chances, NAME(TOKENS_));
        }
        const EncodeEntry *rows[EXPONENTS];
        for (unsigned e = 0; e < EXPONENTS; e++) rows[e] = entries + classes.of[e] * NAME(TOKENS_);
        NAME(put_segments_)(cells, count, plain_ends, rows, lanes, w, &coded);
        put_bytes(w, coded.data, coded.size);
        put_bytes(w, plain.data, plain.size);
    }
    bool failed = !ready || w->failed || coded.failed || plain.failed;
    free(cells);
    free(plain_ends);
    free(counts);
    free(entries);
    free(lanes);
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

static ALWAYS_INLINE T NAME(decode_step_)(T base, unsigned mantissa, const uint32_t *rows,
                                          const uint32_t *entries, uint32_t *state,
                                          const uint8_t **words, Segment *segment) {
    unsigned row = BITS < 64 && mantissa ? (unsigned)(base >> mantissa)
                                         : NAME(exponent_)(base, mantissa);
    uint32_t entry = entries[rows[row] + *state % CHANCES];
    uint32_t quotient = *state >> CHANCE_BITS;
    uint32_t next = (entry >> 8) % CHANCES * quotient + quotient + (entry >> 20);
    uint32_t low = (next - LOWEST) >> 31; /* no branch, as it would be mispredicted */
    *state = next << (16 * low) | (load16(*words) & (0 - low));
    *words += 2 * low;
    unsigned code = entry & 255;
    T step = (T)(SIGNED)(int8_t)code;
    if ((uint8_t)(code + 8) >= 16) step = NAME(long_step_)(code + 8, segment);
    return NAME(move_)(base, step, mantissa);
}

static ALWAYS_INLINE const char *NAME(decode_lanes_)(T *data, size_t count, unsigned mantissa,
                                                     const uint32_t *rows,
                                                     const uint32_t *entries,
                                                     Segment *segments) {
    if (count == LANES * SEGMENT) {
        uint32_t states[LANES]; /* copies of the segments' states, so that they stay in registers */
        const uint8_t *words[LANES];
        for (unsigned g = 0; g < LANES; g++) {
            states[g] = segments[g].state;
            words[g] = segments[g].words;
        }
        for (size_t n = 0; n < SEGMENT; n++)
            UNROLL
            for (unsigned g = 0; g < LANES; g++) {
                T *at = data + g * SEGMENT + n;
                *at = NAME(decode_step_)(*at, mantissa, rows, entries, &states[g], &words[g],
                                         &segments[g]);
            }
        for (unsigned g = 0; g < LANES; g++) {
            segments[g].state = states[g];
            segments[g].words = words[g];
        }
    } else {
        for (size_t n = 0; n < count; n++) {
            Segment *segment = &segments[n / SEGMENT];
            data[n] = NAME(decode_step_)(data[n], mantissa, rows, entries, &segment->state,
                                         &segment->words, segment);
        }
    }
    for (size_t g = 0; g * SEGMENT < count; g++)
        if (segments[g].state != LOWEST || segments[g].words != segments[g].words_end ||
            segments[g].bit > segments[g].bits_end || segments[g].bits_end - segments[g].bit > 7)
            return "its streams do not fit its elements";
    return NULL;
}

/* The same, compiled with constants for the most frequent kinds. */
static const char *NAME(decode_any_)(T *data, size_t count, unsigned mantissa,
                                     const uint32_t *rows, const uint32_t *entries,
                                     Segment *segments) {
    if (BITS == 16 && mantissa == 7)
        return NAME(decode_lanes_)(data, count, 7, rows, entries, segments);
    if (BITS == 32 && mantissa == 23)
        return NAME(decode_lanes_)(data, count, 23, rows, entries, segments);
    return NAME(decode_lanes_)(data, count, mantissa, rows, entries, segments);
}

static const char *NAME(dense_decode_)(Reader *r, uint8_t *data, size_t count, unsigned mantissa) {
    unsigned top = NAME(top_exponent_)(mantissa);
    Classes classes;
    const char *error = get_classes(r, &classes, MAX_CLASSES, top);
    if (error) return error;
    uint32_t rows[2 * EXPONENTS]; /* index: the sign bit, then the exponent */
    size_t segment_count = (count + SEGMENT - 1) / SEGMENT;
    if ((uint64_t)(r->end - r->at) < 2 * segment_count) return "it is too short";
    uint32_t *entries = malloc(classes.count * CHANCES * sizeof *entries);
    Segment *segments = malloc((segment_count + 1) * sizeof *segments);
    uint8_t *streams = NULL;
    if (!entries || !segments) error = OUT_OF_MEMORY;
    for (unsigned c = 0; c < classes.count && !error; c++)
        error = get_chances(r, NAME(TOKENS_), entries + c * CHANCES);
    for (unsigned e = 0; e < 2 * EXPONENTS; e++)
        rows[e] = classes.of[e % (top + 1)] * (uint32_t)CHANCES;
    if (!error) error = get_segments(r, segments, segment_count, &streams);
    for (size_t g = 0; g < segment_count && !error; g += LANES) {
        size_t start = g * SEGMENT, left = count - start;
        error = NAME(decode_any_)((T *)(void *)data + start,
                                  left < LANES * SEGMENT ? left : LANES * SEGMENT, mantissa,
                                  rows, entries, segments + g);
    }
    free(entries);
    free(segments);
    free(streams);
    return error;
}
