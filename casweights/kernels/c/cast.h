/* Template: floats of one type as floats of another, for the processor that `TARGET` names.
 *
 * Everything is done with integers, so that no mode of the processor changes a result. Elements are
 * first widened to F32, which is exact, and then rounded. Every NaN becomes the one of its type. */

#define CAST2(name, target) name##target
#define CAST1(name, target) CAST2(name, target)
#define CAST(name) CAST1(name, TARGET)

/* Widens a float of fewer bits; `mantissa` and `bias` are those of its type, `magnitude` is without
 * its sign. */
static ALWAYS_INLINE uint32_t CAST(widen)(uint32_t magnitude, uint32_t sign, unsigned mantissa,
                                           uint32_t bias) {
    uint32_t normal = (magnitude << (23 - mantissa)) + ((127 - bias) << 23);
    /* A subnormal is an integer times the smallest step: the F32 that has this step as its own,
     * less the number that fills the rest of it. */
    uint32_t small;
    float number = (float)(int32_t)magnitude;
    memcpy(&small, &number, sizeof small);
    small = magnitude ? small - ((bias + mantissa - 1) << 23) : 0;
    return sign << 31 | (magnitude >> mantissa ? normal : small);
}

/* Returns the F32 of an element. */
static ALWAYS_INLINE uint32_t CAST(to_f32)(uint32_t element, unsigned kind) {
    uint32_t magnitude, bits;
    switch (kind) {
    case CAST_E5M2:
        magnitude = element & 0x7f;
        bits = CAST(widen)(magnitude, element >> 7, 2, 15);
        if (magnitude >= 0x7c) bits = (bits & 0x80000000) | 0x7f800000;
        return magnitude > 0x7c ? F32_NAN : bits;
    case CAST_E4M3:
        magnitude = element & 0x7f;
        bits = CAST(widen)(magnitude, element >> 7, 3, 7);
        return magnitude == 0x7f ? F32_NAN : bits;
    case CAST_F16:
        magnitude = element & 0x7fff;
        bits = CAST(widen)(magnitude, element >> 15, 10, 15);
        if (magnitude >= 0x7c00) bits = (bits & 0x80000000) | 0x7f800000;
        return magnitude > 0x7c00 ? F32_NAN : bits;
    case CAST_BF16: element <<= 16; /* fall through */
    default: return (element & 0x7fffffff) > F32_INFINITY ? F32_NAN : element;
    }
}

/* Rounds an F32, that is no NaN, to a type with this many bits of the mantissa, and this bias.
 * `top` is the largest finite magnitude; `beyond` is what is larger. */
static ALWAYS_INLINE uint32_t CAST(narrow)(uint32_t bits, unsigned mantissa, uint32_t bias,
                                            uint32_t top, uint32_t beyond, unsigned width,
                                            bool toward_zero) {
    uint32_t magnitude = bits & 0x7fffffff, exponent = magnitude >> 23, least = 128 - bias;
    unsigned drop = 23 - mantissa;
    uint32_t value = magnitude - ((127 - bias) << 23);
    if (exponent < least) { /* a subnormal, or 0 */
        unsigned more = exponent ? least - exponent : least - 1;
        drop += more < 31 - drop ? more : 31 - drop;
        value = (magnitude & 0x7fffff) | (uint32_t)(exponent != 0) << 23;
    }
    uint32_t half = toward_zero ? 0 : ((uint32_t)1 << (drop - 1)) - 1 + (value >> drop & 1);
    value = (value + half) >> drop;
    uint32_t most = toward_zero && magnitude < F32_INFINITY ? top : beyond;
    return (value > top ? most : value) | (bits >> 31) << (width - 1);
}

/* Returns the element for an F32. */
static ALWAYS_INLINE uint32_t CAST(from_f32)(uint32_t bits, unsigned kind, bool toward_zero) {
    bool is_nan = (bits & 0x7fffffff) > F32_INFINITY;
    uint32_t value;
    switch (kind) {
    case CAST_E5M2:
        value = CAST(narrow)(bits, 2, 15, 0x7b, 0x7c, 8, toward_zero);
        return is_nan ? 0x7f : value;
    case CAST_E4M3:
        value = CAST(narrow)(bits, 3, 7, 0x7e, 0x7e, 8, toward_zero);
        return is_nan ? 0x7f : value;
    case CAST_F16:
        value = CAST(narrow)(bits, 10, 15, 0x7bff, 0x7c00, 16, toward_zero);
        return is_nan ? 0x7e00 : value;
    case CAST_BF16:
        value = CAST(narrow)(bits, 7, 127, 0x7f7f, 0x7f80, 16, toward_zero);
        return is_nan ? 0x7fc0 : value;
    default: return is_nan ? F32_NAN : bits;
    }
}

#define LOAD(kind, T)                                                                 \
    for (size_t n = 0; n < count; n++) {                                              \
        T element;                                                                    \
        memcpy(&element, from + n * sizeof element, sizeof element);                  \
        out[n] = CAST(to_f32)(element, kind);                                        \
    }                                                                                 \
    break;

static void CAST(widen_block)(const uint8_t *from, size_t count, unsigned kind, uint32_t *out) {
    switch (kind) {
    case CAST_E5M2: LOAD(CAST_E5M2, uint8_t)
    case CAST_E4M3: LOAD(CAST_E4M3, uint8_t)
    case CAST_F16: LOAD(CAST_F16, uint16_t)
    case CAST_BF16: LOAD(CAST_BF16, uint16_t)
    default: LOAD(CAST_F32, uint32_t)
    }
}

#define STORE(kind, T, toward_zero)                                                   \
    for (size_t n = 0; n < count; n++) {                                              \
        T element = (T)CAST(from_f32)(bits[n], kind, toward_zero);                   \
        memcpy(out + n * sizeof element, &element, sizeof element);                   \
    }                                                                                 \
    break;

static void CAST(narrow_block)(const uint32_t *bits, size_t count, unsigned kind,
                                bool toward_zero, uint8_t *out) {
    switch (kind * 2 + toward_zero) {
    case CAST_E5M2 * 2: STORE(CAST_E5M2, uint8_t, false)
    case CAST_E5M2 * 2 + 1: STORE(CAST_E5M2, uint8_t, true)
    case CAST_E4M3 * 2: STORE(CAST_E4M3, uint8_t, false)
    case CAST_E4M3 * 2 + 1: STORE(CAST_E4M3, uint8_t, true)
    case CAST_F16 * 2: STORE(CAST_F16, uint16_t, false)
    case CAST_F16 * 2 + 1: STORE(CAST_F16, uint16_t, true)
    case CAST_BF16 * 2: STORE(CAST_BF16, uint16_t, false)
    case CAST_BF16 * 2 + 1: STORE(CAST_BF16, uint16_t, true)
    default: STORE(CAST_F32, uint32_t, false)
    }
}

/* Casts elements. Neither side need be aligned; `log_width` and `log_out` are log2 of the bytes of
 * an element. */
static void CAST(cast)(const uint8_t *from, unsigned kind, unsigned log_width, size_t count,
                        uint8_t *out, unsigned out_kind, unsigned log_out, bool toward_zero) {
    uint32_t bits[CAST_BLOCK];
    for (size_t start = 0; start < count; start += CAST_BLOCK) {
        size_t left = count - start < CAST_BLOCK ? count - start : CAST_BLOCK;
        CAST(widen_block)(from + (start << log_width), left, kind, bits);
        CAST(narrow_block)(bits, left, out_kind, toward_zero, out + (start << log_out));
    }
}

#undef LOAD
#undef STORE
#undef CAST
#undef CAST1
#undef CAST2
