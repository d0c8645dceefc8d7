/* Template: elements of `BITS` bits as unsigned integers, their exponents and differences. */

#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)
#define NAME(name) JOIN(JOIN(name, BITS), TARGET)
#define T JOIN(JOIN(uint, BITS), _t)
#define SIGNED JOIN(JOIN(int, BITS), _t)

#define SIGN ((T)((T)1 << (BITS - 1)))
#define BLOCK 64
#define STRIP (64 * BLOCK) /* elements that are still in the cache when they are read again */

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

/* The smallest element of each class but the first, as a float without its sign. */
typedef struct {
    unsigned count, mantissa;
    SIGNED least[MAX_CLASSES];
    uint8_t first[MAX_CLASSES];
} NAME(Bounds);

static inline void NAME(set_bounds_)(NAME(Bounds) *bounds, const Classes *classes,
                                     unsigned mantissa) {
    bounds->count = classes->count;
    bounds->mantissa = mantissa;
    for (unsigned c = 1; c < classes->count; c++) {
        unsigned exponent = classes->first[c] + (BITS == 64 ? F64_BIAS : 0);
        bounds->first[c] = classes->first[c];
        bounds->least[c] = (SIGNED)((T)exponent << mantissa);
    }
}

#if BITS == 16 && defined(USE_AVX2)
/* Returns the exponents of 32 floats, less 128, in the order of the floats. */
static ALWAYS_INLINE __m256i NAME(exponents_)(const T *floats, __m128i shift) {
    __m256i halves[2];
    for (int n = 0; n < 2; n++)
        halves[n] = _mm256_srl_epi16(_mm256_slli_epi16(load_lanes(floats, n), 1), shift);
    __m256i bytes = _mm256_packus_epi16(halves[0], halves[1]);
    return _mm256_xor_si256(_mm256_permute4x64_epi64(bytes, 0xd8), _mm256_set1_epi8(-128));
}

static ALWAYS_INLINE __m256i NAME(below_)(const NAME(Bounds) *bounds, unsigned c) {
    return _mm256_set1_epi8((char)((c < bounds->count ? bounds->first[c] - 1 : 255) - 128));
}

/* Adds the numbers of floats that reach the classes 1 to `most`, in vectors of 32. */
static ALWAYS_INLINE void NAME(count_vectors_)(const T *floats, size_t vectors,
                                               const NAME(Bounds) *bounds, unsigned most,
                                               size_t *totals) {
    const __m128i shift = _mm_cvtsi32_si128((int)bounds->mantissa + 1);
    for (size_t start = 0; start < vectors; start += 255) { /* a counter of a byte does not overflow */
        size_t end = vectors - start < 255 ? vectors : start + 255;
        __m256i found[SPARSE_CLASSES];
        UNROLL
        for (unsigned c = 1; c <= most; c++) found[c] = _mm256_setzero_si256();
        for (size_t n = start; n < end; n++) {
            __m256i exponents = NAME(exponents_)(floats + 32 * n, shift);
            UNROLL
            for (unsigned c = 1; c <= most; c++) {
                __m256i reaches = _mm256_cmpgt_epi8(exponents, NAME(below_)(bounds, c));
                found[c] = _mm256_sub_epi8(found[c], reaches);
            }
        }
        UNROLL
        for (unsigned c = 1; c <= most; c++) {
            uint64_t sums[4];
            _mm256_storeu_si256((__m256i *)(void *)sums,
                                _mm256_sad_epu8(found[c], _mm256_setzero_si256()));
            if (c < bounds->count) totals[c] += sums[0] + sums[1] + sums[2] + sums[3];
        }
    }
}

/* Adds the number of floats of whole blocks that reach each class but the first. */
static inline void NAME(count_reaching_)(const T *floats, size_t count,
                                         const NAME(Bounds) *bounds, size_t *totals) {
    if (bounds->count < 2) return;
    if (bounds->count <= 4)
        NAME(count_vectors_)(floats, count / 32, bounds, 3, totals);
    else
        NAME(count_vectors_)(floats, count / 32, bounds, 7, totals);
}

/* Sets masks of the floats of a block that reach each class but the first. */
static inline void NAME(reaching_)(const T *block, const NAME(Bounds) *bounds, uint64_t *masks) {
    if (bounds->count < 2) return;
    const __m128i shift = _mm_cvtsi32_si128((int)bounds->mantissa + 1);
    __m256i low = NAME(exponents_)(block, shift), high = NAME(exponents_)(block + 32, shift);
    for (unsigned c = 1; c < bounds->count; c++) {
        __m256i below = NAME(below_)(bounds, c);
        uint64_t mask = (uint32_t)_mm256_movemask_epi8(_mm256_cmpgt_epi8(high, below));
        masks[c] = mask << 32 | (uint32_t)_mm256_movemask_epi8(_mm256_cmpgt_epi8(low, below));
    }
}
#else
/* Adds the number of floats that reach each class but the first. */
static inline void NAME(count_reaching_)(const T *floats, size_t count,
                                         const NAME(Bounds) *bounds, size_t *totals) {
    enum { ENOUGH = BITS == 8 ? 192 : 4096, AT_ONCE = 4 }; /* a counter of type T does not overflow */
    for (size_t start = 0; start < count; start += ENOUGH) {
        size_t end = count - start < ENOUGH ? count : start + ENOUGH;
        for (unsigned c = 1; c < bounds->count; c += AT_ONCE) {
            SIGNED below[AT_ONCE];
            T found[AT_ONCE] = {0};
            for (unsigned k = 0; k < AT_ONCE; k++)
                below[k] = c + k < bounds->count ? (SIGNED)(bounds->least[c + k] - 1) : (SIGNED)(T)~SIGN;
            for (size_t n = start; n < end; n++) {
                SIGNED magnitude = (SIGNED)(floats[n] & (T)~SIGN);
                UNROLL
                for (unsigned k = 0; k < AT_ONCE; k++)
                    found[k] = (T)(found[k] + (magnitude > below[k]));
            }
            for (unsigned k = 0; k < AT_ONCE && c + k < bounds->count; k++)
                totals[c + k] += found[k];
        }
    }
}

/* Sets masks of the floats of a block that reach each class but the first. */
static inline void NAME(reaching_)(const T *block, const NAME(Bounds) *bounds, uint64_t *masks) {
    for (unsigned c = 1; c < bounds->count; c++) {
        _Alignas(64) uint8_t bytes[BLOCK];
        SIGNED below = (SIGNED)(bounds->least[c] - 1);
        for (int n = 0; n < BLOCK; n++) bytes[n] = (SIGNED)(block[n] & (T)~SIGN) > below ? 255 : 0;
        masks[c] = gather_mask(bytes);
    }
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
