// AVX2.
#include "instruction_sets.h"

#if FASTRL_X86_SETS
// the standard headers come first: nothing of theirs may be compiled for this instruction set
#include "set_headers.h"
#pragma GCC target("avx2,fma,f16c")
#define FASTRL_AVX2 1
#define FASTRL_ISA avx2
#define FASTRL_WIDTH 8
#include "attention_kernel.h"
#include "dense_kernel.h"
#include "layer_rows_kernel.h"
#include "packed_attention_kernel.h"
#include "row_functions.h"

namespace fastrl {
const InstructionSet avx2_set = {"avx2",
                                 &avx2::row_functions,
                                 &avx2::dense_of<float>,
                                 &avx2::dense_of<avx2::BFloat16>,
                                 &avx2::attention,
                                 &avx2::packed,
                                 &avx2::layer_rows,
                                 [] {
                                     return __builtin_cpu_supports("avx2") &&
                                            __builtin_cpu_supports("fma") &&
                                            __builtin_cpu_supports("f16c");
                                 }};
}  // namespace fastrl
#endif
