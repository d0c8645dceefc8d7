/* Template: the steps to expect, by the first bits of the mantissa, for elements of `BITS` bits.
 *
 * Weight decay multiplies every element by the same number, so that elements without a gradient move
 * by a step that depends on their mantissa alone. */

/* A cell is the exponent of an element's base and the token of its difference in one number. */
enum { NAME(TOKENS_) = 16 + 4 * (BITS - 4) };

/* Returns the growth of an element's absolute value in units of its last place. */
static inline T NAME(growth_)(T base, T bits, unsigned mantissa) {
    T down = (T)((SIGNED)base >> (BITS - 1));
    T step = (T)(NAME(order_)(bits, mantissa) - NAME(order_)(base, mantissa));
    return (T)((T)(step ^ down) - down);
}

/* The step of an element that grows by what is expected; with `first` bits of the mantissa. */
static ALWAYS_INLINE T NAME(expected_)(T base, unsigned mantissa, unsigned first,
                                       const int32_t *trend) {
    T down = (T)((SIGNED)base >> (BITS - 1));
    T growth = (T)(SIGNED)trend[(size_t)(base >> (mantissa - first)) & ((1u << first) - 1)];
    return (T)((T)(growth ^ down) - down);
}

/* The difference in zigzag, less what is expected; `first` is 0 if nothing is. */
static ALWAYS_INLINE T NAME(surprise_)(T base, T bits, unsigned mantissa, unsigned first,
                                       const int32_t *trend) {
    T step = (T)(NAME(order_)(bits, mantissa) - NAME(order_)(base, mantissa));
    if (first) step = (T)(step - NAME(expected_)(base, mantissa, first, trend));
    return (T)((T)(step << 1) ^ (T)((SIGNED)step >> (BITS - 1)));
}

/* A vote for each first part of the mantissa: steps count if the element of the same part that was
 * seen before made the same. So noise does not vote, and few elements without it win. */
static void NAME(vote_)(const T *base, const T *bits, Sample sample, unsigned mantissa,
                        int32_t *trend) {
    T last[TREND_CELLS] = {0};
    uint32_t votes[TREND_CELLS] = {0};
    for (size_t n = 0; n < sample.count; n++)
        for (size_t k = 0, at = n * sample.stride * GROUPED; k < GROUPED; k++, at++) {
            unsigned cell = (unsigned)(base[at] >> (mantissa - TREND_BITS)) % TREND_CELLS;
            T growth = NAME(growth_)(base[at], bits[at], mantissa);
            bool again = growth == last[cell] && (T)(int32_t)(SIGNED)growth == growth;
            last[cell] = growth;
            if (!again) continue;
            if (growth == (T)trend[cell])
                votes[cell]++;
            else if (votes[cell])
                votes[cell]--;
            else
                trend[cell] = (int32_t)(SIGNED)growth;
        }
}

/* Returns the bits that the differences of the sample need, in units of 2^-24. */
static uint64_t NAME(sample_cost_)(const T *base, const T *bits, Sample sample, unsigned mantissa,
                                   unsigned first, const int32_t *trend, uint32_t *counts) {
    uint64_t plain = 0;
    memset(counts, 0, EXPONENTS * NAME(TOKENS_) * sizeof *counts);
    for (size_t n = 0; n < sample.count; n++)
        for (size_t k = 0, at = n * sample.stride * GROUPED; k < GROUPED; k++, at++) {
            T difference = NAME(surprise_)(base[at], bits[at], mantissa, first, trend);
            unsigned token = token_of(difference);
            counts[NAME(exponent_)(base[at], mantissa) * NAME(TOKENS_) + token]++;
            plain += plain_bits(token);
        }
    return cells_cost(counts, NAME(TOKENS_)) + (plain << LOG_BITS);
}

/* Sets the steps to expect, initially 0, and `first`, the bits of the mantissa that they depend on:
 * 0 if they would not pay. False: out of memory. */
static bool NAME(choose_trend_)(const T *base, const T *bits, size_t count, unsigned mantissa,
                                int32_t *trend, unsigned *first) {
    *first = 0;
    if (mantissa <= TREND_BITS || count < LEAST_BLOCKS * GROUPED) return true;
    Sample sample = sample_of(count);
    uint32_t *counts = malloc(EXPONENTS * NAME(TOKENS_) * sizeof *counts);
    if (!counts) return false;
    NAME(vote_)(base, bits, sample, mantissa, trend);
    uint64_t without = NAME(sample_cost_)(base, bits, sample, mantissa, 0, trend, counts);
    uint64_t with = NAME(sample_cost_)(base, bits, sample, mantissa, TREND_BITS, trend, counts);
    uint64_t table = (uint64_t)16 * TREND_CELLS << LOG_BITS;
    if (without > with + without / 256 + table / sample.stride) *first = TREND_BITS;
    free(counts);
    return true;
}
