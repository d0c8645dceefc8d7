/* What AVX2 does better than a compiler's translation of the portable code. */
#ifndef CASW_AVX2_H
#define CASW_AVX2_H

/* From 64 lanes of 16 bits, each 0 or all ones, to 64 bits. */
static inline uint64_t pack_masks(const __m256i masks[4]) {
    uint64_t mask = 0;
    for (int n = 0; n < 2; n++) {
        __m256i bytes = _mm256_packs_epi16(masks[2 * n], masks[2 * n + 1]);
        bytes = _mm256_permute4x64_epi64(bytes, 0xd8);
        mask |= (uint64_t)(uint32_t)_mm256_movemask_epi8(bytes) << 32 * n;
    }
    return mask;
}

#endif
