/* Template: changed elements of `BITS` bits, as packed positions of 32 bits and packed values.
 * Neither these nor the elements need be aligned. */

static inline uint64_t NAME(differing_below_)(const uint8_t *a, const uint8_t *b, size_t count) {
    uint8_t spare[2][BLOCK * sizeof(T)] = {{0}};
    memcpy(spare[0], a, count * sizeof(T));
    memcpy(spare[1], b, count * sizeof(T));
    return NAME(differing_)(spare[0], spare[1]);
}

/* Finds the changes and returns their number; stops soon after more than `limit` of them. It writes
 * values for at most `limit` changes. `positions` must have room for one block more than that. */
static size_t NAME(changes_)(const uint8_t *old, const uint8_t *new, size_t count, size_t limit,
                             uint8_t *positions, uint8_t *values) {
    size_t found = 0, picked = 0;
    for (size_t start = 0; start < count; start += BLOCK) {
        const uint8_t *a = old + start * sizeof(T), *b = new + start * sizeof(T);
        size_t left = count - start;
        uint64_t mask =
            left < BLOCK ? NAME(differing_below_)(a, b, left) : NAME(differing_)(a, b);
        found += JOIN(put_positions, TARGET)(positions + 4 * found, mask, (uint32_t)start);
        if (found > limit) return found;
        if (left > BLOCK && (start + BLOCK) % STRIP) continue;
        for (; picked < found; picked++) {
            size_t position = load32(positions + 4 * picked);
            memcpy(values + picked * sizeof(T), new + position * sizeof(T), sizeof(T));
        }
    }
    return found;
}

/* Exchanges the elements at the positions with the values. Returns false and changes nothing unless
 * the positions ascend and are below `count`. */
static bool NAME(swap_)(uint8_t *memory, size_t count, const uint8_t *positions, size_t changes,
                        uint8_t *values) {
    if (!changes) return true;
    uint32_t unordered = 0;
    for (size_t n = 1; n < changes; n++)
        unordered |= load32(positions + 4 * n) <= load32(positions + 4 * (n - 1));
    if (unordered || load32(positions + 4 * (changes - 1)) >= count) return false;
    for (size_t n = 0; n < changes; n++) {
        uint8_t *element = memory + load32(positions + 4 * n) * sizeof(T);
        uint8_t *value = values + n * sizeof(T);
        T old, new;
        memcpy(&old, element, sizeof(T));
        memcpy(&new, value, sizeof(T));
        memcpy(element, &new, sizeof(T));
        memcpy(value, &old, sizeof(T));
    }
    return true;
}
