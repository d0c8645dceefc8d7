/* Template: the fields of records, and the numbers in them, as streams, for the processor that
 * `TARGET` names. See docs/format.md. */

#define FIELDS2(name, target) name##target
#define FIELDS1(name, target) FIELDS2(name, target)
#define FIELDS(name) FIELDS1(name, TARGET)

/* Copies `size` bytes of each of `count` records, which are `from_step` bytes apart, to places that
 * are `to_step` bytes apart. */
static ALWAYS_INLINE void FIELDS(copy_each)(const uint8_t *from, size_t from_step, uint8_t *to,
                                            size_t to_step, size_t size, size_t count) {
    for (size_t n = 0; n < count; n++, from += from_step, to += to_step) memcpy(to, from, size);
}

/* The same, compiled with constants for the fields of common formats. */
static void FIELDS(copy_field)(const uint8_t *from, size_t from_step, uint8_t *to, size_t to_step,
                               size_t size, size_t count) {
    if (size == from_step && size == to_step)
        memcpy(to, from, size * count);
    else if (size == 2)
        FIELDS(copy_each)(from, from_step, to, to_step, 2, count);
    else if (size == 16)
        FIELDS(copy_each)(from, from_step, to, to_step, 16, count);
    else if (size == 32)
        FIELDS(copy_each)(from, from_step, to, to_step, 32, count);
    else
        FIELDS(copy_each)(from, from_step, to, to_step, size, count);
}

/* Sets the numbers, from 0 on, that `size` bytes store. */
static void FIELDS(unpack_numbers)(const uint8_t *stored, size_t size, unsigned bits,
                                   uint8_t *numbers) {
    if (bits == 8)
        for (size_t n = 0; n < size; n++) numbers[n] = stored[n] ^ 128;
    else
        for (size_t n = 0; n < size; n++) {
            numbers[2 * n] = stored[n] & 15;
            numbers[2 * n + 1] = stored[n] >> 4;
        }
}

/* Sets the elements of numbers, given those that are expected; where `known` is NULL, each number is
 * its own context. */
static void FIELDS(number_elements)(const uint8_t *stored, size_t size, unsigned bits,
                                    const uint16_t *known, uint16_t *elements) {
    if (bits == 8)
        for (size_t n = 0; n < size; n++) {
            unsigned number = stored[n] ^ 128u;
            unsigned upper = known ? known[n] & 0xff00u : number >> 4 << 8;
            elements[n] = (uint16_t)(upper | number);
        }
    else if (known)
        for (size_t n = 0; n < size; n++) {
            elements[2 * n] = (uint16_t)((known[2 * n] & 0xff00) | (stored[n] & 15));
            elements[2 * n + 1] = (uint16_t)((known[2 * n + 1] & 0xff00) | stored[n] >> 4);
        }
    else
        for (size_t n = 0; n < size; n++) {
            elements[2 * n] = (uint16_t)((stored[n] & 15) * 257);
            elements[2 * n + 1] = (uint16_t)((stored[n] >> 4) * 257);
        }
}

/* Stores the numbers of elements in `size` bytes. Returns whether each differs from the expected one
 * in its number alone. */
static bool FIELDS(pack_numbers)(const uint16_t *elements, const uint16_t *known, size_t size,
                                 unsigned bits, uint8_t *stored) {
    unsigned other = 0;
    for (size_t n = 0; n < size * 8 / bits; n++) other |= (unsigned)(elements[n] ^ known[n]);
    if (bits == 8)
        for (size_t n = 0; n < size; n++) stored[n] = (uint8_t)(elements[n] ^ 128);
    else
        for (size_t n = 0; n < size; n++)
            stored[n] = (uint8_t)((elements[2 * n] & 15) | elements[2 * n + 1] << 4);
    return other >> bits == 0;
}

/* Sets how many values each byte of `count` records of `size` bytes has. */
static void FIELDS(count_values)(const uint8_t *records, size_t size, size_t count,
                                 uint16_t *values) {
    for (size_t at = 0; at < size; at++) {
        uint8_t seen[256] = {0};
        for (size_t n = 0; n < count; n++) seen[records[n * size + at]] = 1;
        values[at] = 0;
        for (size_t n = 0; n < 256; n++) values[at] = (uint16_t)(values[at] + seen[n]);
    }
}

#undef FIELDS
#undef FIELDS1
#undef FIELDS2
