// Rows of logits on AVX2.
#include "rows.h"

#if FASTRL_X86_SETS
// the standard headers come first: nothing of theirs may be compiled for this instruction set
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>
#pragma GCC target("avx2,fma,f16c")
#define FASTRL_AVX2 1
#define FASTRL_ISA avx2
#define FASTRL_WIDTH 8
#include "row_functions.h"

namespace fastrl {
const RowFunctions avx2_rows = avx2::functions("avx2");
}
#endif
