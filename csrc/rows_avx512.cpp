// Rows of logits on AVX512.
#include "rows.h"

#if FASTRL_X86_SETS
// the standard headers come first: nothing of theirs may be compiled for this instruction set
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#define FASTRL_AVX512 1
#define FASTRL_ISA avx512
#define FASTRL_WIDTH 16
#include "row_functions.h"

namespace fastrl {
const RowFunctions avx512_rows = avx512::functions("avx512");
}
#endif
