/* An adaptive binary range coder: that of LZMA, with probabilities that adapt fast at first. */
#ifndef CASW_RANGE_H
#define CASW_RANGE_H

#include "bytes.h"

enum { CERTAIN = 62 };            /* bits over which a probability is averaged, at most */
#define TOP ((uint32_t)1 << 24)

/* The probability of a 0, in 65,536ths, and the number of bits that it was learnt from. */
typedef struct {
    uint16_t zero;
    uint16_t seen;
} Chance;

static uint32_t learning_rates[CERTAIN + 1]; /* by the number of bits seen, in 65,536ths */

static void init_learning_rates(void) {
    for (unsigned seen = 0; seen <= CERTAIN; seen++)
        learning_rates[seen] = 655360 / (10 * seen + 16);
}

static inline void learn(Chance *chance, unsigned bit) {
    uint32_t rate = learning_rates[chance->seen];
    if (bit)
        chance->zero = (uint16_t)(chance->zero - (chance->zero * rate >> 16));
    else
        chance->zero = (uint16_t)(chance->zero + ((65536 - chance->zero) * rate >> 16));
    chance->seen += chance->seen < CERTAIN;
}

typedef struct {
    Writer *out;
    size_t start;
    uint64_t low;
    uint32_t range;
    uint64_t pending; /* number of bytes of 255 after `cache`; a carry would change them */
    int cache;        /* the last byte that is not written; -1 before the first */
} RangeWriter;

static void start_writing(RangeWriter *w, Writer *out) {
    *w = (RangeWriter){out, out->size, 0, 0xffffffff, 0, -1};
}

static void range_shift(RangeWriter *w) {
    if (w->low < 0xff000000u || w->low >> 32) {
        unsigned carry = (unsigned)(w->low >> 32);
        if (w->cache >= 0) put_byte(w->out, ((unsigned)w->cache + carry) & 255);
        for (; w->pending; w->pending--) put_byte(w->out, (255 + carry) & 255);
        w->cache = (int)(w->low >> 24 & 255);
    } else {
        w->pending++;
    }
    w->low = (w->low & 0xffffff) << 8;
}

static inline void put_chance(RangeWriter *w, Chance *chance, unsigned bit) {
    uint32_t bound = (w->range >> 12) * (chance->zero >> 4);
    if (bit) {
        w->low += bound;
        w->range -= bound;
    } else {
        w->range = bound;
    }
    learn(chance, bit);
    for (; w->range < TOP; w->range <<= 8) range_shift(w);
}

static inline void put_even(RangeWriter *w, uint64_t bits, unsigned count) {
    while (count--) {
        w->range >>= 1;
        if (bits >> count & 1) w->low += w->range;
        for (; w->range < TOP; w->range <<= 8) range_shift(w);
    }
}

/* Writes the fewest bytes that identify the bits; a reader reads zeros past their end. */
static void range_finish(RangeWriter *w) {
    uint64_t end = w->low + w->range - 1;
    for (unsigned keep = 1; keep <= 4; keep++) {
        uint64_t step = (uint64_t)1 << (32 - 8 * keep), value = (w->low + step - 1) & ~(step - 1);
        if (value <= end) {
            w->low = value;
            break;
        }
    }
    for (int n = 0; n < 5; n++) range_shift(w);
    while (w->out->size > w->start && !w->out->data[w->out->size - 1]) w->out->size--;
}

typedef struct {
    Reader *in;
    uint32_t code, range;
} RangeReader;

static inline unsigned range_byte(RangeReader *r) {
    return r->in->at < r->in->end ? *r->in->at++ : 0;
}

static void start_reading(RangeReader *r, Reader *in) {
    *r = (RangeReader){in, 0, 0xffffffff};
    for (int n = 0; n < 4; n++) r->code = r->code << 8 | range_byte(r);
}

static inline unsigned get_chance(RangeReader *r, Chance *chance) {
    uint32_t bound = (r->range >> 12) * (chance->zero >> 4);
    unsigned bit = r->code >= bound;
    if (bit) {
        r->code -= bound;
        r->range -= bound;
    } else {
        r->range = bound;
    }
    learn(chance, bit);
    for (; r->range < TOP; r->range <<= 8) r->code = r->code << 8 | range_byte(r);
    return bit;
}

static inline uint64_t get_even(RangeReader *r, unsigned count) {
    uint64_t bits = 0;
    while (count--) {
        r->range >>= 1;
        unsigned bit = r->code >= r->range;
        if (bit) r->code -= r->range;
        bits = bits << 1 | bit;
        for (; r->range < TOP; r->range <<= 8) r->code = r->code << 8 | range_byte(r);
    }
    return bits;
}

#endif
