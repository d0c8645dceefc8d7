/* Template: all kernels for all widths of elements, for the processor that `TARGET` names. */
#define BITS 8
#include "element.h"
#include "sparse.h"
#include "trend.h"
#include "dense.h"
#include "planes.h"
#include "patch.h"
#include "element_undef.h"
#undef BITS
#define BITS 16
#include "element.h"
#include "sparse.h"
#include "trend.h"
#include "dense.h"
#include "planes.h"
#include "patch.h"
#include "element_undef.h"
#undef BITS
#define BITS 32
#include "element.h"
#include "sparse.h"
#include "trend.h"
#include "dense.h"
#include "planes.h"
#include "patch.h"
#include "element_undef.h"
#undef BITS
#define BITS 64
#include "element.h"
#include "sparse.h"
#include "trend.h"
#include "dense.h"
#include "planes.h"
#include "patch.h"
#include "element_undef.h"
#undef BITS
