/* From 64 bytes, each 0 or 255, to 64 bits. */
#ifndef CASW_MASK_H
#define CASW_MASK_H

#include "bytes.h"

#if defined(__SSE2__)
#include <emmintrin.h>
static inline uint64_t gather_mask(const uint8_t bytes[64]) {
    uint64_t mask = 0;
    for (int n = 0; n < 4; n++) {
        __m128i part = _mm_load_si128((const __m128i *)(const void *)(bytes + 16 * n));
        mask |= (uint64_t)(uint16_t)_mm_movemask_epi8(part) << 16 * n;
    }
    return mask;
}
#else
static inline uint64_t gather_mask(const uint8_t bytes[64]) {
    uint64_t mask = 0;
    for (int n = 0; n < 8; n++) {
        uint64_t part = load64(bytes + 8 * n) & UINT64_C(0x0101010101010101);
        mask |= (part * UINT64_C(0x0102040810204080) >> 56) << 8 * n;
    }
    return mask;
}
#endif

/* Position of the set bit that `rank` set bits precede; there is one. */
static inline unsigned select_bit(uint64_t mask, unsigned rank) {
    while (rank--) mask &= mask - 1;
    return (unsigned)__builtin_ctzll(mask);
}

#endif
