/* Template: the `sparse` encoding for elements of `BITS` bits. See docs/format.md. */

typedef struct {
    size_t count, capacity;
    uint32_t *place;
    T *difference;
} NAME(Changes);

static bool NAME(reserve_changes_)(NAME(Changes) *changes) {
    if (changes->capacity - changes->count >= STRIP + BLOCK) return true;
    size_t capacity = changes->capacity * 2 + STRIP + BLOCK;
    uint32_t *place = realloc(changes->place, capacity * sizeof *place);
    if (place) changes->place = place;
    T *difference = realloc(changes->difference, capacity * sizeof *difference);
    if (difference) changes->difference = difference;
    if (!place || !difference) return false;
    changes->capacity = capacity;
    return true;
}

/* Returns the block that begins at element `start`; at the end, a copy padded with zeros. */
static inline const T *NAME(block_)(const T *data, size_t start, size_t count, T *spare) {
    if (count - start >= BLOCK) return data + start;
    memset(spare, 0, BLOCK * sizeof(T));
    memcpy(spare, data + start, (count - start) * sizeof(T));
    return spare;
}

/* Adds the differences of the places after the first `count` ones, up to `found`. */
static void NAME(add_differences_)(const T *base, const T *bits, unsigned mantissa, size_t found,
                                   NAME(Changes) *changes) {
    size_t kept = changes->count;
    for (size_t n = kept; n < found; n++) {
        uint32_t place = load32((const uint8_t *)(changes->place + n));
        T difference = NAME(difference_)(base[place], bits[place], mantissa);
        changes->place[kept] = place;
        changes->difference[kept] = difference;
        kept += difference != 0; /* 0 if another thread wrote to it in between */
    }
    changes->count = kept;
}

static bool NAME(find_changes_)(const T *base, const T *bits, size_t count, unsigned mantissa,
                                NAME(Changes) *changes) {
    T spare[2][BLOCK];
    for (size_t start = 0; start < count; start += STRIP) {
        size_t end = count - start < STRIP ? count : start + STRIP, found = changes->count;
        if (!NAME(reserve_changes_)(changes)) return false;
        for (size_t at = start; at < end; at += BLOCK) {
            const T *a = NAME(block_)(base, at, count, spare[0]);
            const T *b = NAME(block_)(bits, at, count, spare[1]);
            uint64_t mask = NAME(differing_)(a, b);
            if (mask)
                found += JOIN(put_positions, TARGET)((uint8_t *)(changes->place + found), mask,
                                                     (uint32_t)at);
        }
        NAME(add_differences_)(base, bits, mantissa, found, changes);
    }
    return true;
}

/* Chooses classes from the changed elements of each exponent and an estimate of all elements. */
static void NAME(sparse_classes_)(const T *base, size_t count, unsigned mantissa,
                                  const NAME(Changes) *changes, Classes *classes) {
    uint32_t counts[EXPONENTS][2] = {{0}};
    uint32_t stride = (uint32_t)(count >> 13) + 1;
    for (size_t start = 0; start < count; start += (size_t)stride * BLOCK)
        for (size_t n = start; n < count && n < start + BLOCK; n++)
            counts[NAME(exponent_)(base[n], mantissa)][0] += stride;
    for (size_t n = 0; n < changes->count; n++)
        counts[NAME(exponent_)(base[changes->place[n]], mantissa)][1]++;
    for (unsigned e = 0; e < EXPONENTS; e++) {
        uint32_t *c = counts[e];
        c[0] = c[0] > c[1] ? c[0] - c[1] : 0;
    }
    choose_classes(classes, &counts[0][0], 2, SPARSE_CLASSES, SPARSE_HEADER);
}

/* Writes the changes class by class, as gaps in rank among the elements of the class. */
static void NAME(rank_changes_)(const T *base, size_t count, unsigned mantissa,
                                const Classes *classes, const NAME(Changes) *changes,
                                uint32_t *gaps, size_t sizes[MAX_CLASSES]) {
    size_t slot[MAX_CLASSES], seen[MAX_CLASSES + 1] = {0}, next[MAX_CLASSES] = {0}, at = 0;
    for (unsigned c = 0; c < classes->count; c++) sizes[c] = 0;
    for (size_t n = 0; n < changes->count; n++)
        sizes[classes->of[NAME(exponent_)(base[changes->place[n]], mantissa)]]++;
    for (unsigned c = 0; c < classes->count; at += sizes[c++]) slot[c] = at;
    NAME(Bounds) bounds;
    NAME(set_bounds_)(&bounds, classes, mantissa);
    T spare[BLOCK];
    size_t done = 0;
    for (size_t start = 0; done < changes->count; start += BLOCK) {
        size_t skipped = (changes->place[done] - start) & ~(size_t)(BLOCK - 1);
        seen[0] += skipped;
        NAME(count_reaching_)(base + start, skipped, &bounds, seen);
        start += skipped;
        const T *block = NAME(block_)(base, start, count, spare);
        uint64_t reaching[MAX_CLASSES + 1] = {~(uint64_t)0};
        NAME(reaching_)(block, &bounds, reaching);
        reaching[classes->count] = 0;
        for (; done < changes->count && changes->place[done] < start + BLOCK; done++) {
            unsigned n = (unsigned)(changes->place[done] - start);
            unsigned c = classes->of[NAME(exponent_)(block[n], mantissa)];
            uint64_t before = reaching[c] & ~reaching[c + 1] & (((uint64_t)1 << n) - 1);
            size_t rank = seen[c] - seen[c + 1] + (size_t)__builtin_popcountll(before);
            gaps[slot[c]++] = (uint32_t)(rank - next[c]);
            next[c] = rank + 1;
        }
        for (unsigned c = 0; c < classes->count; c++)
            seen[c] += (size_t)__builtin_popcountll(reaching[c]);
    }
}

static void NAME(put_sizes_)(Writer *w, const T *base, unsigned mantissa,
                             const NAME(Changes) *changes) {
    RangeWriter coder;
    Sizes sizes;
    start_writing(&coder, w);
    init_sizes(&sizes);
    for (size_t n = 0; n < changes->count; n++) {
        T difference = changes->difference[n];
        unsigned exponent = NAME(exponent_)(base[changes->place[n]], mantissa);
        uint64_t size = (uint64_t)(difference >> 1) + (difference & 1);
        put_size(&coder, &sizes, exponent, size, difference & 1);
    }
    range_finish(&coder);
}

static const char *NAME(sparse_encode_)(const uint8_t *base_bytes, const uint8_t *new_bytes,
                                        size_t count, unsigned mantissa, Writer *w) {
    const T *base = (const T *)(const void *)base_bytes;
    const T *bits = (const T *)(const void *)new_bytes;
    NAME(Changes) changes = {0, 0, NULL, NULL};
    Writer body = {0};
    Classes classes;
    size_t sizes[MAX_CLASSES], at = 0;
    uint32_t *gaps = NULL;
    if (NAME(find_changes_)(base, bits, count, mantissa, &changes))
        gaps = malloc((changes.count + 1) * sizeof *gaps);
    if (gaps) {
        NAME(sparse_classes_)(base, count, mantissa, &changes, &classes);
        NAME(rank_changes_)(base, count, mantissa, &classes, &changes, gaps, sizes);
        put_classes(w, &classes);
        for (unsigned c = 0; c < classes.count; at += sizes[c++])
            put_gaps(w, &body, gaps + at, sizes[c]);
        flush_bits(&body);
        put_varint(w, body.size);
        put_bytes(w, body.data, body.size);
        NAME(put_sizes_)(w, base, mantissa, &changes);
    }
    bool failed = !gaps || w->failed || body.failed;
    free(changes.place);
    free(changes.difference);
    free(gaps);
    free(body.data);
    return failed ? OUT_OF_MEMORY : NULL;
}

static const char *NAME(apply_changes_)(T *data, size_t count, unsigned mantissa,
                                        const Classes *classes, const uint32_t *gaps,
                                        Cursor *cursors, RangeReader *coder) {
    size_t seen[MAX_CLASSES] = {0};
    unsigned class_count = classes->count;
    Sizes sizes;
    init_sizes(&sizes);
    NAME(Bounds) bounds;
    NAME(set_bounds_)(&bounds, classes, mantissa);
    T spare[BLOCK];
    for (size_t start = 0; start < count; start += BLOCK) {
        const T *block = NAME(block_)(data, start, count, spare);
        uint64_t reaching[MAX_CLASSES + 1], changed = 0;
        size_t here = count - start;
        reaching[0] = here < BLOCK ? ((uint64_t)1 << here) - 1 : ~(uint64_t)0;
        NAME(reaching_)(block, &bounds, reaching);
        reaching[class_count] = 0;
        for (unsigned c = 0; c < class_count; c++) {
            Cursor *cursor = &cursors[c];
            uint64_t mine = reaching[c] & ~reaching[c + 1];
            size_t before = seen[c];
            seen[c] += (size_t)__builtin_popcountll(mine);
            for (; cursor->next < seen[c]; move_cursor(cursor, gaps))
                changed |= (uint64_t)1 << select_bit(mine, (unsigned)(cursor->next - before));
        }
        for (; changed; changed &= changed - 1) {
            size_t n = start + (size_t)__builtin_ctzll(changed);
            unsigned negative = 0, exponent = NAME(exponent_)(data[n], mantissa);
            uint64_t size = get_size(coder, &sizes, exponent, BITS, &negative);
            if (!size) return "one of its changes is out of range";
            data[n] = NAME(apply_)(data[n], (T)(2 * size - negative), mantissa);
        }
    }
    for (unsigned c = 0; c < class_count; c++)
        if (cursors[c].at < cursors[c].end) return "its positions are out of range";
    return coder->in->at == coder->in->end ? NULL : "it holds more than its changes";
}

static const char *NAME(sparse_decode_)(Reader *r, uint8_t *data, size_t count,
                                        unsigned mantissa) {
    Cursor cursors[MAX_CLASSES];
    Classes classes;
    RangeReader coder;
    uint32_t *gaps = NULL;
    unsigned top = NAME(top_exponent_)(mantissa);
    const char *error = get_classes(r, &classes, SPARSE_CLASSES, top);
    if (!error) error = get_gaps(r, count, classes.count, cursors, &gaps);
    if (!error) {
        start_reading(&coder, r);
        error = NAME(apply_changes_)((T *)(void *)data, count, mantissa, &classes, gaps, cursors,
                                     &coder);
    }
    free(gaps);
    return error;
}
