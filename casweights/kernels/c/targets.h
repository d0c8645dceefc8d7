/* All kernels, compiled for each target processor. */
#ifndef CASW_TARGETS_H
#define CASW_TARGETS_H

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "bytes.h"
#include "classes.h"
#include "floats.h"
#include "mask.h"
#include "rans.h"
#include "rice.h"
#include "sizes.h"

enum {
    MOST_GROWTH = 1 << 24,  /* by which a number is multiplied, in 65,536ths */
    CHANGED_SCALE = 64      /* the first context of numbers whose scale has changed */
};

/* The templates, compiled for any processor. */
#define TARGET _portable
#include "widths.h"
#include "cast.h"
#include "numbers.h"
#include "fields.h"
#undef TARGET

/* The same templates, compiled for processors with AVX2. */
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define USE_AVX2
#define TARGET _avx2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2,lzcnt,popcnt"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2,lzcnt,popcnt")
#endif
#include "avx2.h"
#include "widths.h"
#include "cast.h"
#include "numbers.h"
#include "fields.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef TARGET
#endif

#endif
