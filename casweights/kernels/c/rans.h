/* Asymmetric numeral systems (rANS, arXiv 1311.2540) with a table of chances for each class. */
#ifndef CASW_RANS_H
#define CASW_RANS_H

#include "classes.h"
#include "groups.h"

enum {
    CHANCE_BITS = 12,
    CHANCES = 1 << CHANCE_BITS,
    MAX_TOKENS = 256,
    SEGMENT = 1 << 14, /* elements that share a state */
    LANES = 4,         /* segments coded in parallel, so that no step waits for the one before it */
    ROW_BITS = 19,     /* of the position of a class among the entries of all groups */
    TREND_BITS = 8,    /* first bits of a mantissa on which the step to expect depends, at most */
    TREND_CELLS = 1 << TREND_BITS,
};
#define LOWEST ((uint32_t)1 << 15) /* states are from this value to below 65,536 times as much */

/* Small differences are their own tokens; of larger ones a token holds the three highest bits. */
static inline unsigned token_of(uint64_t difference) {
    if (difference < 16) return (unsigned)difference;
    unsigned log = log2_floor(difference);
    return 4 * log + ((unsigned)(difference >> (log - 2)) & 3);
}

static inline unsigned plain_bits(unsigned token) { return token < 16 ? 0 : (token >> 2) - 2; }

/* Scales counts to a sum of CHANCES; counts above 0 stay above 0. */
static void scale_counts(const uint32_t *counts, unsigned tokens, uint32_t *chances) {
    uint64_t total = 0;
    int64_t rest = CHANCES;
    for (unsigned t = 0; t < tokens; t++) total += counts[t];
    for (unsigned t = 0; t < tokens; t++) {
        uint64_t scaled = total ? counts[t] * (uint64_t)CHANCES / total : 0;
        chances[t] = (uint32_t)(scaled ? scaled : counts[t] > 0);
        rest -= chances[t];
    }
    while (rest) { /* the largest chance absorbs the error; it shrinks one by one */
        unsigned most = 0;
        for (unsigned t = 1; t < tokens; t++)
            if (chances[t] > chances[most]) most = t;
        int64_t share = rest > 0 ? rest : -1;
        chances[most] += (uint32_t)share;
        rest -= share;
    }
}

/* Division by a chance as multiplication (as in Giesen's rans_byte); exact for states. */
typedef struct {
    uint32_t limit, reciprocal;
    uint16_t bias, complement, shift, unused; /* 16 bytes in all, so that indexing is a shift */
} EncodeEntry;

static void fill_encode_entries(EncodeEntry *entries, const uint32_t *chances, unsigned tokens) {
    uint32_t start = 0;
    for (unsigned t = 0; t < tokens; start += chances[t++]) {
        EncodeEntry *entry = &entries[t];
        uint32_t chance = chances[t];
        if (!chance) continue;
        entry->limit = ((LOWEST >> CHANCE_BITS) << 16) * chance;
        entry->complement = (uint16_t)(CHANCES - chance);
        if (chance == 1) {
            entry->reciprocal = 0xffffffff;
            entry->shift = 0;
            entry->bias = (uint16_t)(start + CHANCES - 1);
        } else {
            unsigned shift = log2_floor(chance - 1) + 1;
            entry->reciprocal = (uint32_t)((((uint64_t)1 << (shift + 31)) + chance - 1) / chance);
            entry->shift = (uint16_t)(shift - 1);
            entry->bias = (uint16_t)start;
        }
    }
}

static inline uint32_t put_token(uint32_t state, const EncodeEntry *entry, uint16_t **words) {
    uint32_t full = state >= entry->limit; /* no branch, as it would be mispredicted */
    (*words)[-1] = (uint16_t)state;
    *words -= full;
    state >>= 16 * full;
    uint32_t quotient = (uint32_t)((uint64_t)state * entry->reciprocal >> 32) >> entry->shift;
    return state + entry->bias + quotient * entry->complement;
}

/* An entry for a slot of a class: the token's code in bits 0 to 7, its chance - 1 from bit 8 on,
 * and the slot's place in the token's range from bit 20 on. The code of a token below 16 is its
 * step, from -8 to 7; that of a larger one is the token minus 8. */
static inline uint32_t decode_entry(unsigned token, uint32_t chance, uint32_t place) {
    unsigned code = token >= 16 ? token - 8 : (token >> 1 ^ (0 - (token & 1))) & 255;
    return code | (chance - 1) << 8 | place << 20;
}

/* The steps to expect are stored by their differences from one to the next. */
static void put_trend(Writer *w, const int32_t *trend, unsigned first) {
    int64_t last = 0;
    put_byte(w, first);
    for (unsigned n = 0; first && n < 1u << first; last = trend[n++]) {
        int64_t more = trend[n] - last;
        put_varint(w, (uint64_t)more << 1 ^ (uint64_t)(more >> 63));
    }
}

static const char *get_trend(Reader *r, unsigned mantissa, int32_t *trend, unsigned *first) {
    int64_t last = 0;
    *first = get_byte(r);
    if (r->failed || *first > TREND_BITS || (*first && *first >= mantissa))
        return "its steps to expect are not valid";
    for (unsigned n = 0; *first && n < 1u << *first; n++) {
        uint64_t more = get_varint(r, (uint64_t)1 << 33);
        last += (int64_t)(more >> 1) ^ -(int64_t)(more & 1);
        if (r->failed || last < INT32_MIN || last > INT32_MAX)
            return "its steps to expect are not valid";
        trend[n] = (int32_t)last;
    }
    return NULL;
}

static void put_chances(Writer *w, const uint32_t *chances, unsigned tokens) {
    while (!chances[tokens - 1]) tokens--;
    put_byte(w, tokens - 1);
    for (unsigned t = 0; t < tokens; t++) put_varint(w, chances[t]);
}

/* Also sets the chance of token 0. */
static const char *get_chances(Reader *r, unsigned tokens, uint32_t *entries, uint32_t *zero) {
    unsigned count = get_byte(r) + 1;
    uint32_t at = 0;
    if (r->failed || count > tokens) return "it has too many tokens";
    for (unsigned t = 0; t < count; t++) {
        uint32_t chance = (uint32_t)get_varint(r, CHANCES - at);
        for (uint32_t place = 0; place < chance; place++)
            entries[at + place] = decode_entry(t, chance, place);
        at += chance;
        if (!t) *zero = chance;
    }
    return r->failed || at != CHANCES ? "its chances do not add up" : NULL;
}

/* A segment during decoding: its words and its plain bits. */
typedef struct {
    const uint8_t *words, *words_end, *bits;
    uint64_t bit, bits_end;
    uint32_t state;
} Segment;

/* Bytes that may be read past the streams: an element needs at most a word. */
enum { PADDING = 2 * SEGMENT + 4 };

static inline uint64_t get_plain(Segment *segment, unsigned count) {
    if (segment->bit + count > segment->bits_end) {
        segment->bit = segment->bits_end + 1;
        segment->bits_end = 0; /* all later reads fail, too */
        return 0;
    }
    const uint8_t *at = segment->bits + (segment->bit >> 3);
    unsigned skip = segment->bit & 7;
    uint64_t value = load64(at) >> skip;
    if (skip + count > 64) value |= load64(at + 8) << (64 - skip);
    segment->bit += count;
    return low_bits(value, count);
}

/* Copies the streams with padding, so that reads past a segment's end are safe and can be detected
 * at the end of the segment. */
static const char *get_segments(Reader *r, Segment *segments, size_t count, uint8_t **streams) {
    uint64_t words = 0, bits = 0, limit = (uint64_t)(r->end - r->at);
    for (size_t n = 0; n < count; n++) { /* `bit` and `bits_end` hold the sizes for now */
        segments[n].bit = get_varint(r, limit);
        segments[n].bits_end = get_varint(r, limit);
        words += 2 * segments[n].bit;
        bits += segments[n].bits_end;
        if (segments[n].bit < 2) r->failed = true;
    }
    size_t left = (size_t)(r->end - r->at);
    if (r->failed || words > left || bits != left - words) return "its sizes do not add up";
    *streams = malloc(left + PADDING);
    if (!*streams) return OUT_OF_MEMORY;
    memcpy(*streams, r->at, left);
    memset(*streams + left, 0, PADDING);
    r->at = r->end;
    const uint8_t *at = *streams, *plain = *streams + words;
    for (size_t n = 0; n < count; n++) {
        Segment *segment = &segments[n];
        segment->words = at + 4;
        segment->words_end = at += 2 * segment->bit;
        segment->bits = plain;
        plain += segment->bits_end;
        segment->bit = 0;
        segment->bits_end *= 8;
        segment->state = (uint32_t)load16(segment->words - 4) << 16 | load16(segment->words - 2);
        if (segment->state < LOWEST || segment->state >> 31)
            return "one of its states is not valid";
    }
    return NULL;
}

#endif
