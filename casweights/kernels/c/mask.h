/* Returns one bit for each of 64 bytes, which are 0 or 255. */
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

/* Returns the position of the set bit that `rank` set bits precede; that bit must exist. */
static inline unsigned select_bit(uint64_t mask, unsigned rank) {
    while (rank--) mask &= mask - 1;
    return (unsigned)__builtin_ctzll(mask);
}

static uint8_t set_bits[256][8]; /* positions of each byte's set bits, from the lowest on */

static void init_set_bits(void) {
    for (unsigned byte = 0; byte < 256; byte++)
        for (unsigned bit = 0, n = 0; bit < 8; bit++)
            if (byte >> bit & 1) set_bits[byte][n++] = (uint8_t)bit;
}

/* Writes the positions of the lowest four set bits, counted from `first`, and returns the mask
 * without them. If fewer bits are set, the other positions written are undefined. */
static ALWAYS_INLINE uint64_t put_four(uint8_t *out, uint64_t mask, uint32_t first) {
    UNROLL for (int n = 0; n < 4; n++) {
        store32(out + 4 * n, first + (uint32_t)__builtin_ctzll(mask | (uint64_t)1 << 63));
        mask &= mask - 1;
    }
    return mask;
}

/* Writes the positions of all set bits, and returns their number. It writes four at a time, since a
 * branch for each would be mispredicted, so `out` must have room for 64. */
static inline size_t put_positions_portable(uint8_t *out, uint64_t mask, uint32_t first) {
    size_t count = (size_t)__builtin_popcountll(mask);
    for (mask = put_four(out, mask, first); mask; mask = put_four(out += 16, mask, first));
    return count;
}

#endif
