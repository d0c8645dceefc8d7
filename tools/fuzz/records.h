/* Checks of the kernels for records: fields as streams, and numbers as elements. */
#ifndef FUZZ_RECORDS_H
#define FUZZ_RECORDS_H

#include "cases.h"

static uint8_t *new_bytes(size_t size) {
    uint8_t *data = malloc(size ? size : 1);
    CHECK(data);
    return data;
}

/* Checks that all targets expect the same elements of numbers, and none that is no such element. */
static void check_expected(const Case *it) {
    enum { NUMBERS = 5 };
    size_t records = it->size / NUMBERS, count = records * NUMBERS;
    uint16_t *found[2] = {malloc(2 * count + 1), malloc(2 * count + 1)};
    uint8_t *numbers = new_bytes(count);
    CHECK(found[0] && found[1]);
    for (unsigned bits = 4; bits <= 8; bits += 4) {
        for (size_t n = 0; n < count; n++) numbers[n] = (uint8_t)(it->base[n] & ((1u << bits) - 1));
        for (size_t n = 0; n < count_targets(); n++) {
            targets[n].expect(it->base, it->bits, records, numbers, NUMBERS, bits, found[n]);
            CHECK(!n || !memcmp(found[0], found[1], 2 * count));
        }
        for (size_t n = 0; n < count; n++) {
            unsigned context = found[0][n] >> 8 & 127;
            CHECK((found[0][n] & 255) >> bits == 0 && context <= CHANGED_SCALE + 8);
        }
    }
    free(found[0]);
    free(found[1]);
    free(numbers);
}

/* Checks that two fields make up the records from which they were taken. */
static void check_fields(const Case *it, size_t size, size_t first) {
    size_t count = it->size / size, rest = size - first;
    uint8_t *low = new_bytes(count * first), *high = new_bytes(count * rest);
    uint8_t *again = new_bytes(count * size);
    uint16_t values[2][64];
    for (size_t n = 0; n < count_targets(); n++) {
        targets[n].copy_field(it->bits, size, low, first, first, count);
        targets[n].copy_field(it->bits + first, size, high, rest, rest, count);
        targets[n].copy_field(low, first, again, size, first, count);
        targets[n].copy_field(high, rest, again + first, size, rest, count);
        CHECK(!memcmp(again, it->bits, count * size));
        targets[n].count_values(it->bits, size, count, values[n]);
        CHECK(!n || !memcmp(values[0], values[1], size * sizeof values[0][0]));
        for (size_t k = 0; k < size; k++) CHECK(values[n][k] <= 256 && values[n][k] <= count);
    }
    free(low);
    free(high);
    free(again);
}

/* Checks that numbers come back from their elements, and that elements out of range are refused. */
static void check_elements(const Case *it, unsigned bits) {
    size_t count = it->size * 8 / bits;
    uint16_t *known = malloc(2 * count + 1), *found[2] = {malloc(2 * count + 1), malloc(2 * count + 1)};
    uint8_t *numbers[2] = {new_bytes(count), new_bytes(count)}, *again = new_bytes(it->size);
    CHECK(known && found[0] && found[1]);
    for (size_t n = 0; n < count_targets(); n++) {
        const Target *target = &targets[n];
        target->unpack_numbers(it->bits, it->size, bits, numbers[n]);
        CHECK(!n || !memcmp(numbers[0], numbers[1], count));
        target->number_elements(it->base, it->size, bits, NULL, known);
        target->number_elements(it->bits, it->size, bits, known, found[n]);
        CHECK(!n || !memcmp(found[0], found[1], 2 * count));
        for (size_t k = 0; k < count; k++) CHECK((found[n][k] & 255) == numbers[n][k]);
        CHECK(target->pack_numbers(found[n], known, it->size, bits, again));
        CHECK(!memcmp(again, it->bits, it->size));
        if (count) known[count - 1] ^= 256;
        CHECK(!count || !target->pack_numbers(found[n], known, it->size, bits, again));
    }
    free(known);
    for (int n = 0; n < 2; n++) {
        free(found[n]);
        free(numbers[n]);
    }
    free(again);
}

static void check_records(const Case *it, unsigned seed) {
    size_t size = 1 + seed % 64;
    check_expected(it);
    check_fields(it, size, seed / 64 % (size + 1));
    check_fields(it, 34, 2);
    check_elements(it, 4);
    check_elements(it, 8);
}

#endif
