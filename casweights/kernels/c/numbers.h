/* Template: the numbers of blocks that share a scale, as elements, for the processor that `TARGET`
 * names. See docs/format.md.
 *
 * An element is a number of 8 bits below a context of 7 bits and a direction. The context says how
 * likely the number changes: by the scale, or, if it is another one, by how far the number that
 * follows from both scales is from the next integer. */

#define NUMBERS2(name, target) name##target
#define NUMBERS1(name, target) NUMBERS2(name, target)
#define NUMBERS(name) NUMBERS1(name, TARGET)

/* Returns the magnitude of an F16 in units of 2^-24; infinities and NaNs are numbers, too. */
static inline uint64_t NUMBERS(magnitude)(unsigned scale) {
    unsigned exponent = scale >> 10 & 31;
    uint64_t mantissa = scale & 1023;
    return exponent ? (mantissa | 1024) << (exponent - 1) : mantissa;
}

/* Returns by what numbers grow between two scales, in 65,536ths. */
static inline uint32_t NUMBERS(growth)(unsigned old, unsigned new) {
    uint64_t from = NUMBERS(magnitude)(old), to = NUMBERS(magnitude)(new);
    if (!to) return 0;
    uint64_t growth = (from << 16) / to;
    return growth < MOST_GROWTH ? (uint32_t)growth : MOST_GROWTH;
}

/* Sets the elements of numbers whose scale has changed; each is from 0 to below `2 * zero`. */
static ALWAYS_INLINE void NUMBERS(expect_scaled)(const uint8_t *numbers, size_t count, int32_t zero,
                                                 uint32_t growth, bool flips, uint16_t *out) {
    for (size_t n = 0; n < count; n++) {
        int32_t number = flips ? zero - numbers[n] : numbers[n] - zero;
        uint32_t down = number < 0, size = (uint32_t)(down ? -number : number) * growth;
        uint32_t whole = (size + 32768) >> 16;
        int32_t rest = (int32_t)(size - (whole << 16));
        uint32_t below = rest < 0;
        uint32_t apart = (uint32_t)(below ? -rest : rest) >> 12;
        int32_t most = down ? zero : zero - 1, here = (int32_t)whole < most ? (int32_t)whole : most;
        out[n] = (uint16_t)((down ^ below) << 15 | (CHANGED_SCALE + apart) << 8 |
                            (uint32_t)(zero + (down ? -here : here)));
    }
}

/* Sets the elements of the numbers of some records, `count` of each. */
static void NUMBERS(expect)(const uint8_t *old, const uint8_t *new, size_t records,
                            const uint8_t *numbers, size_t count, unsigned bits, uint16_t *out) {
    for (size_t n = 0; n < records; n++, numbers += count, out += count) {
        unsigned from = load16(old + 2 * n), to = load16(new + 2 * n);
        if (from == to) {
            uint16_t context = (uint16_t)((from & 0x7fff) >> 9 << 8);
            for (size_t k = 0; k < count; k++) out[k] = context | numbers[k];
            continue;
        }
        uint32_t growth = NUMBERS(growth)(from, to);
        bool flips = (from ^ to) >> 15;
        NUMBERS(expect_scaled)(numbers, count, 1 << (bits - 1), growth, flips, out);
    }
}

#undef NUMBERS
#undef NUMBERS1
#undef NUMBERS2
