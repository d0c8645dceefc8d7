/* Template: `dense` segments of BF16 and of numbers, eight at a time in the lanes of a vector. */

/* Transposes 8 rows of 8 elements; `stride` is the distance of rows, in elements. */
static ALWAYS_INLINE void NAME(transpose_)(const T *from, size_t stride, T *to, size_t to_stride) {
    __m128i rows[8], pairs[8], fours[8];
    for (int n = 0; n < 8; n++)
        rows[n] = _mm_loadu_si128((const __m128i *)(const void *)(from + n * stride));
    for (int n = 0; n < 4; n++) {
        pairs[2 * n] = _mm_unpacklo_epi16(rows[2 * n], rows[2 * n + 1]);
        pairs[2 * n + 1] = _mm_unpackhi_epi16(rows[2 * n], rows[2 * n + 1]);
    }
    for (int n = 0; n < 8; n += 4)
        for (int k = 0; k < 2; k++) {
            fours[n + 2 * k] = _mm_unpacklo_epi32(pairs[n + k], pairs[n + 2 + k]);
            fours[n + 2 * k + 1] = _mm_unpackhi_epi32(pairs[n + k], pairs[n + 2 + k]);
        }
    for (int n = 0; n < 4; n++) {
        rows[2 * n] = _mm_unpacklo_epi64(fours[n], fours[n + 4]);
        rows[2 * n + 1] = _mm_unpackhi_epi64(fours[n], fours[n + 4]);
    }
    for (int n = 0; n < 8; n++) _mm_storeu_si128((__m128i *)(void *)(to + n * to_stride), rows[n]);
}

/* States of eight segments, and the positions of their next words. */
typedef struct {
    __m256i states, words;
} NAME(Eight);

static ALWAYS_INLINE __m256i NAME(gather_)(const void *from, __m256i at) {
    return _mm256_i32gather_epi32((const int *)from, at, 4);
}

/* Eight elements of each of eight segments: of the base, then new ones, and what is known of them
 * by entries. `redo` has a bit for each element that vectors do not serve: those with plain bits, and
 * those that change the sign. */
typedef struct {
    T base[8][8], new[8][8];
    uint32_t entries[8][8];
    uint8_t redo[8];
} NAME(Square);

static ALWAYS_INLINE void NAME(redo_)(NAME(Square) *square, unsigned mantissa,
                                      Segment *segments) {
    for (uint64_t mask = load64(square->redo); mask; mask &= mask - 1) {
        unsigned n = (unsigned)__builtin_ctzll(mask), k = n / 8, g = n % 8;
        unsigned code = square->entries[k][g] & 255;
        T step = (T)(SIGNED)(int8_t)code;
        if ((uint8_t)(code + 8) >= 16) step = NAME(long_step_)(code + 8, &segments[g]);
        square->new[k][g] = NAME(move_)(square->base[k][g], step, mantissa);
    }
}

/* Decodes element `k` of each segment. */
static ALWAYS_INLINE void NAME(step_eight_)(NAME(Eight) *it, NAME(Square) *square, int k,
                                            unsigned mantissa, __m256i first_rows,
                                            const NAME(Tables) *tables) {
    const __m128i *from = (const __m128i *)(const void *)square->base[k];
    __m256i base = _mm256_cvtepu16_epi32(_mm_loadu_si128(from));
    const __m256i lowest = _mm256_set1_epi32(LOWEST), bytes = _mm256_set1_epi32(255);
    __m256i row = _mm256_add_epi32(first_rows, _mm256_srli_epi32(base, (int)mantissa));
    __m256i slot = _mm256_and_si256(it->states, _mm256_set1_epi32(CHANCES - 1));
    __m256i table = NAME(gather_)(tables->rows, row), zero = _mm256_srli_epi32(table, ROW_BITS);
    /* Token 0 is in the first slots, so that only those of others must be looked up in a table that
     * does not fit into the cache of the first level. */
    __m256i entry = _mm256_or_si256(
        _mm256_slli_epi32(_mm256_sub_epi32(zero, _mm256_set1_epi32(1)), 8),
        _mm256_slli_epi32(slot, 20));
    __m256i at = _mm256_and_si256(table, _mm256_set1_epi32((1 << ROW_BITS) - 1));
    __m256i is_other = _mm256_cmpgt_epi32(slot, _mm256_sub_epi32(zero, _mm256_set1_epi32(1)));
    entry = _mm256_mask_i32gather_epi32(entry, (const int *)(const void *)tables->entries,
                                        _mm256_add_epi32(at, slot), is_other, 4);
    __m256i quotient = _mm256_srli_epi32(it->states, CHANCE_BITS);
    __m256i chance = _mm256_and_si256(_mm256_srli_epi32(entry, 8), _mm256_set1_epi32(CHANCES - 1));
    __m256i next = _mm256_add_epi32(_mm256_mullo_epi32(chance, quotient), quotient);
    next = _mm256_add_epi32(next, _mm256_srli_epi32(entry, 20));
    __m256i low = _mm256_cmpgt_epi32(lowest, next);
    /* No branch: some lane of eight needs a word more often than not, but not always. */
    __m256i word = _mm256_mask_i32gather_epi32(_mm256_setzero_si256(),
                                               (const int *)(const void *)tables->streams,
                                               it->words, low, 2);
    word = _mm256_and_si256(word, _mm256_set1_epi32(65535));
    word = _mm256_or_si256(_mm256_slli_epi32(next, 16), word);
    next = _mm256_blendv_epi8(next, word, low);
    it->words = _mm256_sub_epi32(it->words, low);
    it->states = next;
    __m256i step = _mm256_srai_epi32(_mm256_slli_epi32(entry, 24), 24);
    __m256i down = _mm256_srai_epi32(_mm256_slli_epi32(base, 16), 31);
    __m256i moved = _mm256_add_epi32(base, _mm256_sub_epi32(_mm256_xor_si256(step, down), down));
    __m256i code = _mm256_and_si256(_mm256_add_epi32(entry, _mm256_set1_epi32(8)), bytes);
    __m256i redo = _mm256_slli_epi32(_mm256_xor_si256(moved, base), 16);
    redo = _mm256_or_si256(redo, _mm256_cmpgt_epi32(code, _mm256_set1_epi32(15)));
    square->redo[k] = (uint8_t)_mm256_movemask_ps(_mm256_castsi256_ps(redo));
    _mm256_storeu_si256((__m256i *)(void *)square->entries[k], entry);
    moved = _mm256_and_si256(moved, _mm256_set1_epi32(65535));
    __m128i halves[2] = {_mm256_castsi256_si128(moved), _mm256_extracti128_si256(moved, 1)};
    _mm_storeu_si128((__m128i *)(void *)square->new[k], _mm_packus_epi32(halves[0], halves[1]));
}

/* Decodes 8 or 16 complete segments. With two vectors, a step need not wait for the one before. */
static ALWAYS_INLINE void NAME(decode_vectors_)(T *data, unsigned mantissa, unsigned vectors,
                                                const NAME(Tables) *tables, const uint8_t *of,
                                                Segment *segments) {
    NAME(Eight) eights[2];
    NAME(Square) squares[2];
    uint32_t states[16], words[16], rows[16];
    for (unsigned g = 0; g < 8 * vectors; g++) {
        states[g] = segments[g].state;
        words[g] = (uint32_t)((segments[g].words - tables->streams) / 2);
    }
    for (unsigned v = 0; v < vectors; v++) {
        eights[v].states = _mm256_loadu_si256((const __m256i *)(const void *)(states + 8 * v));
        eights[v].words = _mm256_loadu_si256((const __m256i *)(const void *)(words + 8 * v));
    }
    for (size_t n = 0; n < SEGMENT; n += 8) {
        if (n % GROUPED == 0)
            for (unsigned g = 0; g < 8 * vectors; g++)
                rows[g] = of[(g * SEGMENT + n) / GROUPED] * 2u * EXPONENTS;
        for (unsigned v = 0; v < vectors; v++)
            NAME(transpose_)(data + 8 * v * SEGMENT + n, SEGMENT, squares[v].base[0], 8);
        for (int k = 0; k < 8; k++)
            UNROLL
            for (unsigned v = 0; v < vectors; v++) {
                __m256i first = _mm256_loadu_si256((const __m256i *)(const void *)(rows + 8 * v));
                NAME(step_eight_)(&eights[v], &squares[v], k, mantissa, first, tables);
            }
        for (unsigned v = 0; v < vectors; v++) {
            NAME(redo_)(&squares[v], mantissa, segments + 8 * v);
            NAME(transpose_)(squares[v].new[0], 8, data + 8 * v * SEGMENT + n, SEGMENT);
        }
    }
    for (unsigned v = 0; v < vectors; v++) {
        memcpy(states + 8 * v, &eights[v].states, sizeof eights[v].states);
        memcpy(words + 8 * v, &eights[v].words, sizeof eights[v].words);
    }
    for (unsigned g = 0; g < 8 * vectors; g++) {
        segments[g].state = states[g];
        segments[g].words = tables->streams + 2 * (size_t)words[g];
    }
}

/* Decodes as many segments as vectors can, checks them, and sets their number. */
static ALWAYS_INLINE const char *NAME(decode_complete_)(T *data, size_t count, unsigned mantissa,
                                                        const NAME(Tables) *tables,
                                                        Segment *segments, size_t *done) {
    const char *error = NULL;
    while (!error && (*done + 8) * SEGMENT <= count) {
        size_t start = *done * SEGMENT, at_once = (*done + 16) * SEGMENT <= count ? 16 : 8;
        const uint8_t *of = tables->of + start / GROUPED;
        if (at_once == 16)
            NAME(decode_vectors_)(data + start, mantissa, 2, tables, of, segments + *done);
        else
            NAME(decode_vectors_)(data + start, mantissa, 1, tables, of, segments + *done);
        error = NAME(check_segments_)(segments + *done, at_once);
        *done += at_once;
    }
    return error;
}
