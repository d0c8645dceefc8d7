/* The functions that are faster in AVX2 than in a compiler's translation of the portable code. */
#ifndef CASW_AVX2_H
#define CASW_AVX2_H

/* Returns one bit for each of 64 lanes of 16 bits, which are 0 or all ones. */
static inline uint64_t pack_masks(const __m256i masks[4]) {
    uint64_t mask = 0;
    for (int n = 0; n < 2; n++) {
        __m256i bytes = _mm256_packs_epi16(masks[2 * n], masks[2 * n + 1]);
        bytes = _mm256_permute4x64_epi64(bytes, 0xd8);
        mask |= (uint64_t)(uint32_t)_mm256_movemask_epi8(bytes) << 32 * n;
    }
    return mask;
}

static inline __m256i load_lanes(const void *data, int n) {
    return _mm256_loadu_si256((const __m256i *)data + n);
}

/* Return a mask of the lanes that differ, of 64 lanes of 8, 16, 32 or 64 bits. */
static inline uint64_t differing_lanes_8(const void *a, const void *b) {
    uint64_t equal = 0;
    for (int n = 0; n < 2; n++) {
        __m256i lanes = _mm256_cmpeq_epi8(load_lanes(a, n), load_lanes(b, n));
        equal |= (uint64_t)(uint32_t)_mm256_movemask_epi8(lanes) << 32 * n;
    }
    return ~equal;
}

static inline uint64_t differing_lanes_16(const void *a, const void *b) {
    __m256i equal[4];
    for (int n = 0; n < 4; n++) equal[n] = _mm256_cmpeq_epi16(load_lanes(a, n), load_lanes(b, n));
    return ~pack_masks(equal);
}

static inline uint64_t differing_lanes_32(const void *a, const void *b) {
    uint64_t equal = 0;
    for (int n = 0; n < 8; n++) {
        __m256i lanes = _mm256_cmpeq_epi32(load_lanes(a, n), load_lanes(b, n));
        equal |= (uint64_t)(uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(lanes)) << 8 * n;
    }
    return ~equal;
}

static inline uint64_t differing_lanes_64(const void *a, const void *b) {
    uint64_t equal = 0;
    for (int n = 0; n < 16; n++) {
        __m256i lanes = _mm256_cmpeq_epi64(load_lanes(a, n), load_lanes(b, n));
        equal |= (uint64_t)(uint32_t)_mm256_movemask_pd(_mm256_castsi256_pd(lanes)) << 4 * n;
    }
    return ~equal;
}

/* Like `put_positions_portable`, but if many bits are set, no branch depends on them. */
static inline size_t put_positions_avx2(uint8_t *out, uint64_t mask, uint32_t first) {
    size_t count = (size_t)__builtin_popcountll(mask);
    if (count <= 4) {
        put_four(out, mask, first);
        return count;
    }
    for (unsigned n = 0; n < 8; n++) {
        unsigned byte = mask >> 8 * n & 255;
        __m128i bits = _mm_loadl_epi64((const __m128i *)(const void *)set_bits[byte]);
        __m256i lanes = _mm256_add_epi32(_mm256_cvtepu8_epi32(bits),
                                         _mm256_set1_epi32((int)(first + 8 * n)));
        _mm256_storeu_si256((__m256i *)(void *)out, lanes);
        out += 4 * (size_t)__builtin_popcount(byte);
    }
    return count;
}

#endif
