/* Read and write bytes and bits, with all bounds checked. */
#ifndef CASW_BYTES_H
#define CASW_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define OUT_OF_MEMORY "out of memory"

#if defined(__GNUC__) || defined(__clang__)
#define ALWAYS_INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")
#else
#define ALWAYS_INLINE inline
#define UNROLL
#endif

static inline uint64_t load64(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    value = __builtin_bswap64(value);
#endif
    return value;
}

static inline uint32_t little32(uint32_t value) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    value = __builtin_bswap32(value);
#endif
    return value;
}

static inline uint32_t load32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return little32(value);
}

static inline void store32(uint8_t *at, uint32_t value) {
    value = little32(value);
    memcpy(at, &value, sizeof value);
}

static inline uint16_t load16(const uint8_t *at) { return (uint16_t)(at[0] | at[1] << 8); }

static inline uint16_t little16(uint16_t value) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    value = (uint16_t)(value << 8 | value >> 8);
#endif
    return value;
}

/* Position of the highest set bit; value is not 0. */
static inline unsigned log2_floor(uint64_t value) { return 63u - (unsigned)__builtin_clzll(value); }

static inline uint64_t low_bits(uint64_t value, unsigned count) {
    return count < 64 ? value & (((uint64_t)1 << count) - 1) : value;
}

/* A growing buffer. Running out of memory sets `failed`, and later writes have no effect. */
typedef struct {
    uint8_t *data;
    size_t size, capacity;
    uint64_t bits; /* bits that are not written yet, from the lowest on */
    unsigned count;
    bool failed;
} Writer;

static inline bool writer_reserve(Writer *w, size_t more) {
    if (w->capacity - w->size >= more) return true;
    size_t capacity = w->capacity * 2 + more + 256;
    uint8_t *data = realloc(w->data, capacity);
    if (!data) {
        w->failed = true;
        return false;
    }
    w->data = data;
    w->capacity = capacity;
    return true;
}

static inline void put_byte(Writer *w, unsigned value) {
    if (writer_reserve(w, 1)) w->data[w->size++] = (uint8_t)value;
}

static inline void put_bytes(Writer *w, const void *data, size_t size) {
    if (size && writer_reserve(w, size)) {
        memcpy(w->data + w->size, data, size);
        w->size += size;
    }
}

/* LEB128: seven bits a byte, the lowest first. */
static inline void put_varint(Writer *w, uint64_t value) {
    for (; value >= 128; value >>= 7) put_byte(w, (unsigned)(value & 127) | 128);
    put_byte(w, (unsigned)value);
}

/* Writes at most 32 bits, from the lowest on. */
static inline void put_bits(Writer *w, uint64_t value, unsigned count) {
    w->bits |= value << w->count;
    w->count += count;
    if (w->count >= 32) {
        if (writer_reserve(w, 4)) {
            uint32_t out = (uint32_t)w->bits;
            for (int n = 0; n < 4; n++) w->data[w->size++] = (uint8_t)(out >> 8 * n);
        }
        w->bits >>= 32;
        w->count -= 32;
    }
}

static inline void put_long_bits(Writer *w, uint64_t value, unsigned count) {
    for (; count > 32; count -= 32, value >>= 32) put_bits(w, value & 0xffffffff, 32);
    put_bits(w, low_bits(value, count), count);
}

static inline void put_zeros(Writer *w, uint64_t count) {
    for (; count > 32; count -= 32) put_bits(w, 0, 32);
    put_bits(w, 0, (unsigned)count);
}

/* Fill the last byte with zeros. */
static inline void flush_bits(Writer *w) {
    while (w->count > 0) {
        put_byte(w, (unsigned)(w->bits & 255));
        w->bits >>= 8;
        w->count = w->count > 8 ? w->count - 8 : 0;
    }
    w->bits = 0;
}

/* Reads bytes and bits up to `end`. A read beyond it sets `failed` and returns zeros. */
typedef struct {
    const uint8_t *at, *end;
    uint64_t bits;
    unsigned count;
    bool failed;
} Reader;

static inline unsigned get_byte(Reader *r) {
    if (r->at < r->end) return *r->at++;
    r->failed = true;
    return 0;
}

static inline uint64_t get_varint(Reader *r, uint64_t limit) {
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 63; shift += 7) {
        unsigned byte = get_byte(r);
        value |= (uint64_t)(byte & 127) << shift;
        if (byte < 128) {
            if (value > limit) r->failed = true;
            return r->failed ? 0 : value;
        }
    }
    r->failed = true;
    return 0;
}

/* Loads bits until at least 56 are available or the bytes end. */
static inline void refill(Reader *r) {
    if (r->end - r->at >= 8) {
        r->bits |= load64(r->at) << r->count;
        unsigned taken = (63 - r->count) >> 3;
        r->at += taken;
        r->count += 8 * taken;
        return;
    }
    while (r->count <= 56 && r->at < r->end) {
        r->bits |= (uint64_t)*r->at++ << r->count;
        r->count += 8;
    }
}

static inline void skip_bits(Reader *r, unsigned count) {
    if (count > r->count) {
        r->failed = true;
        r->bits = r->count = 0;
        return;
    }
    r->bits >>= count;
    r->count -= count;
}

/* Reads at most 32 bits. */
static inline uint64_t get_bits(Reader *r, unsigned count) {
    if (r->count < count) refill(r);
    uint64_t value = low_bits(r->bits, count);
    skip_bits(r, count);
    return value;
}

static inline uint64_t get_long_bits(Reader *r, unsigned count) {
    uint64_t value = 0;
    unsigned done = 0;
    for (; count - done > 32; done += 32) value |= get_bits(r, 32) << done;
    return value | get_bits(r, count - done) << done;
}

/* Reads up to and including the next 1 bit, and returns the number of zeros before it. */
static inline uint64_t get_zeros(Reader *r) {
    uint64_t zeros = 0;
    for (;;) {
        if (r->count < 32) refill(r);
        if (r->bits) {
            unsigned more = (unsigned)__builtin_ctzll(r->bits);
            if (more >= r->count) { /* bits beyond `count` are of bytes not counted yet */
                zeros += r->count;
                r->bits = r->count = 0;
                continue;
            }
            r->bits >>= more;
            r->bits >>= 1;
            r->count -= more + 1;
            return zeros + more;
        }
        zeros += r->count;
        r->count = 0;
        if (r->at >= r->end) {
            r->failed = true;
            return 0;
        }
    }
}

/* Returns whether only the zeros that fill the last byte are left. */
static inline bool at_end(const Reader *r) {
    return !r->failed && r->at == r->end && r->count < 8 && low_bits(r->bits, r->count) == 0;
}

#endif
