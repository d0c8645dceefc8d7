/* Template: elements of `BITS` bits as unsigned integers, their exponents and differences. */

#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)
#define NAME(name) JOIN(JOIN(name, BITS), TARGET)
#define T JOIN(JOIN(uint, BITS), _t)
#define SIGNED JOIN(JOIN(int, BITS), _t)

#define SIGN ((T)((T)1 << (BITS - 1)))
#define BLOCK 64

/* Returns the exponent, from 0 to 255; 0 if not a float. Exponents of F64 are clipped to F32's. */
static inline unsigned NAME(exponent_)(T bits, unsigned mantissa) {
    if (!mantissa) return 0;
    unsigned exponent = (unsigned)((T)(bits & (T)~SIGN) >> mantissa);
    if (BITS < 64) return exponent;
    return exponent < F64_BIAS ? 0 : exponent - F64_BIAS < 255 ? exponent - F64_BIAS : 255;
}

/* Returns the highest exponent that an element can have. */
static inline unsigned NAME(top_exponent_)(unsigned mantissa) {
    if (!mantissa) return 0;
    return BITS == 64 ? 255 : (1u << (BITS - 1 - mantissa)) - 1;
}

/* Maps a bit pattern to an integer in the order of the numbers, -0 and NaNs included. */
static inline T NAME(order_)(T bits, unsigned mantissa) {
    if (!mantissa) return bits;
    return bits ^ (T)((T)((SIGNED)bits >> (BITS - 1)) | SIGN);
}

static inline T NAME(pattern_)(T place, unsigned mantissa) {
    if (!mantissa) return place;
    return place ^ (T)((T)(~(SIGNED)place >> (BITS - 1)) | SIGN);
}

/* Zigzag: differences of 0, -1, 1, -2, 2, ... become 0, 1, 2, 3, 4, ... */
static inline T NAME(difference_)(T base, T bits, unsigned mantissa) {
    T step = (T)(NAME(order_)(bits, mantissa) - NAME(order_)(base, mantissa));
    return (T)((T)(step << 1) ^ (T)((SIGNED)step >> (BITS - 1)));
}

static inline T NAME(apply_)(T base, T difference, unsigned mantissa) {
    T step = (T)((T)(difference >> 1) ^ (T)(0 - (T)(difference & 1)));
    return NAME(pattern_)((T)(NAME(order_)(base, mantissa) + step), mantissa);
}

/* Sets the smallest element of each class but the first, as a float without its sign. */
static inline void NAME(class_bounds_)(const Classes *classes, unsigned mantissa, SIGNED *bounds) {
    for (unsigned c = 1; c < classes->count; c++) {
        unsigned exponent = classes->first[c] + (BITS == 64 ? F64_BIAS : 0);
        bounds[c] = (SIGNED)((T)exponent << mantissa);
    }
}

/* Counts the floats whose absolute value is at least this large. */
static inline size_t NAME(count_reaching_)(const T *floats, size_t count, SIGNED bound) {
    enum { STRIP = BITS == 8 ? 192 : 4096 }; /* a counter of type T does not overflow */
    size_t total = 0;
    SIGNED below = (SIGNED)(bound - 1);
    for (size_t start = 0; start < count; start += STRIP) {
        size_t end = count - start < STRIP ? count : start + STRIP;
        T strip = 0;
        for (size_t n = start; n < end; n++)
            strip = (T)(strip + ((SIGNED)(floats[n] & (T)~SIGN) > below));
        total += strip;
    }
    return total;
}

#if BITS == 16 && defined(USE_AVX2)
/* Returns a mask of the floats of a block whose absolute value is at least this large. */
static inline uint64_t NAME(reaching_)(const T *block, SIGNED bound) {
    const __m256i below = _mm256_set1_epi16((short)(bound - 1));
    const __m256i no_sign = _mm256_set1_epi16(0x7fff);
    __m256i above[4];
    for (int n = 0; n < 4; n++) {
        __m256i part = _mm256_loadu_si256((const __m256i *)(const void *)(block + 16 * n));
        above[n] = _mm256_cmpgt_epi16(_mm256_and_si256(part, no_sign), below);
    }
    return pack_masks(above);
}
#else
static inline uint64_t NAME(reaching_)(const T *block, SIGNED bound) {
    _Alignas(64) uint8_t bytes[BLOCK];
    SIGNED below = (SIGNED)(bound - 1);
    for (int n = 0; n < BLOCK; n++) bytes[n] = (SIGNED)(block[n] & (T)~SIGN) > below ? 255 : 0;
    return gather_mask(bytes);
}
#endif

/* Returns a mask of the elements that differ between two blocks, which need not be aligned. */
static inline uint64_t NAME(differing_)(const void *a, const void *b) {
#ifdef USE_AVX2
    return JOIN(differing_lanes_, BITS)(a, b);
#else
    _Alignas(64) uint8_t bytes[BLOCK];
    for (size_t n = 0; n < BLOCK; n++) {
        T x, y;
        memcpy(&x, (const uint8_t *)a + n * sizeof(T), sizeof(T));
        memcpy(&y, (const uint8_t *)b + n * sizeof(T), sizeof(T));
        bytes[n] = x != y ? 255 : 0;
    }
    return gather_mask(bytes);
#endif
}
