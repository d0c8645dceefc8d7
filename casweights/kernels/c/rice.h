/* Golomb-Rice codes: for gaps between events that are equally likely everywhere. */
#ifndef CASW_RICE_H
#define CASW_RICE_H

#include "bytes.h"

enum { MAX_RICE = 26 };

static inline uint64_t rice_bits(const uint32_t *values, size_t count, unsigned k) {
    uint64_t bits = (uint64_t)count * (k + 1);
    for (size_t n = 0; n < count; n++) bits += values[n] >> k;
    return bits;
}

/* Returns the parameter with the fewest bits. Their number is convex in the parameter, and the
 * best one is near the logarithm of the mean. */
static unsigned best_rice(const uint32_t *values, size_t count) {
    uint64_t sum = 0;
    for (size_t n = 0; n < count; n++) sum += values[n];
    uint64_t mean = sum / count;
    unsigned k = mean ? log2_floor(mean) + 1 : 0;
    uint64_t bits = rice_bits(values, count, k);
    while (k) {
        uint64_t fewer = rice_bits(values, count, k - 1);
        if (fewer > bits) break;
        bits = fewer;
        k--;
    }
    return k;
}

static inline void put_rice(Writer *w, uint64_t value, unsigned k) {
    uint64_t zeros = value >> k, rest = low_bits(value, k) << 1 | 1;
    if (zeros + k + 1 <= 32) {
        put_bits(w, rest << zeros, (unsigned)zeros + k + 1);
        return;
    }
    put_zeros(w, zeros);
    put_bits(w, rest, k + 1);
}

static inline uint64_t get_rice(Reader *r, unsigned k) {
    uint64_t quotient = get_zeros(r);
    if (quotient >> (63 - k)) {
        r->failed = true;
        return 0;
    }
    return quotient << k | get_bits(r, k);
}

static void put_gaps(Writer *head, Writer *body, const uint32_t *gaps, size_t count) {
    put_varint(head, count);
    if (!count) return;
    unsigned k = best_rice(gaps, count);
    put_byte(head, k);
    for (size_t n = 0; n < count; n++) put_rice(body, gaps[n], k);
}

/* Walks over the changes of one class; `next` is the rank of the next change, or beyond all ranks
 * after the last one. */
typedef struct {
    uint64_t next;
    size_t at, end;
} Cursor;

static inline void move_cursor(Cursor *cursor, const uint32_t *gaps) {
    if (++cursor->at < cursor->end)
        cursor->next += 1 + (uint64_t)gaps[cursor->at];
    else
        cursor->next = UINT64_MAX;
}

static const char *get_gaps(Reader *r, size_t count, unsigned classes, Cursor *cursors,
                            uint32_t **gaps) {
    unsigned k[MAX_CLASSES];
    uint64_t total = 0;
    for (unsigned c = 0; c < classes; c++) {
        uint64_t size = get_varint(r, count - total);
        cursors[c].at = (size_t)total;
        cursors[c].end = (size_t)(total += size);
        k[c] = size ? get_byte(r) : 0;
        if (k[c] > MAX_RICE) r->failed = true;
    }
    uint64_t size = get_varint(r, UINT64_MAX);
    /* A gap needs at least a bit, so the payload bounds the memory. */
    if (r->failed || size > (uint64_t)(r->end - r->at) || total > 8 * size)
        return "its counts do not add up";
    *gaps = malloc((size_t)(total + 1) * sizeof **gaps);
    if (!*gaps) return OUT_OF_MEMORY;
    Reader body = {r->at, r->at + size, 0, 0, false};
    r->at += size;
    for (unsigned c = 0; c < classes; c++) {
        for (size_t n = cursors[c].at; n < cursors[c].end; n++) {
            uint64_t gap = get_rice(&body, k[c]);
            if (body.failed || gap >= count) return "its positions are out of range";
            (*gaps)[n] = (uint32_t)gap;
        }
        cursors[c].next = cursors[c].at < cursors[c].end ? (*gaps)[cursors[c].at] : UINT64_MAX;
    }
    return at_end(&body) ? NULL : "its counts do not add up";
}

#endif
