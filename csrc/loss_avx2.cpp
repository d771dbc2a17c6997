// Rows of logits on AVX2.
#include "loss.h"

#if FASTRL_X86_SETS
// the standard headers come first: nothing of theirs may be compiled for this instruction set
#include <cmath>
#include <cstring>
#include <limits>
#pragma GCC target("avx2,fma,f16c")
#define FASTRL_ISA avx2
#define FASTRL_WIDTH 8
#include "loss_kernel.h"

namespace fastrl {
const RowFunctions avx2_rows{"avx2", avx2::statistics, avx2::gradient};
}
#endif
