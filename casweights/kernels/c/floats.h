/* The floats that can be cast, by the codes of their kinds in payloads. */
#ifndef CASW_FLOATS_H
#define CASW_FLOATS_H

#include <stdint.h>

enum { CAST_E5M2 = 4, CAST_E4M3, CAST_F16, CAST_BF16, CAST_F32 };
enum { CAST_BLOCK = 1024 }; /* elements that are F32 at a time */

#define F32_INFINITY UINT32_C(0x7f800000)
#define F32_NAN UINT32_C(0x7fc00000)

#endif
