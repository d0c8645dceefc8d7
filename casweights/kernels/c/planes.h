/* Template: elements of `BITS` bits, split into planes of bytes, the highest one first. Elements
 * are rotated left by one bit, so that the exponent fills the highest byte without the sign. */

static void NAME(split_)(const uint8_t *data, size_t count, uint8_t *planes) {
    const T *elements = (const T *)(const void *)data;
    for (unsigned k = 0; k < BITS / 8; k++) {
        uint8_t *plane = planes + (BITS / 8 - 1 - k) * count;
        if (k == 0)
            for (size_t n = 0; n < count; n++)
                plane[n] = (uint8_t)(elements[n] << 1 | elements[n] >> (BITS - 1));
        else
            for (size_t n = 0; n < count; n++) plane[n] = (uint8_t)(elements[n] >> (8 * k - 1));
    }
}

static void NAME(join_)(const uint8_t *planes, size_t count, uint8_t *data) {
    T *elements = (T *)(void *)data;
    for (size_t start = 0; start < count; start += SEGMENT) {
        size_t end = count - start < SEGMENT ? count : start + SEGMENT;
        const uint8_t *low = planes + (BITS / 8 - 1) * count;
        for (size_t n = start; n < end; n++)
            elements[n] = (T)((T)(low[n] >> 1) | (T)((T)low[n] << (BITS - 1)));
        for (unsigned k = 1; k < BITS / 8; k++) {
            const uint8_t *plane = planes + (BITS / 8 - 1 - k) * count;
            for (size_t n = start; n < end; n++) elements[n] |= (T)((T)plane[n] << (8 * k - 1));
        }
    }
}
