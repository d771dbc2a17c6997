// AVX-512 as most processors with it have it.
#include "instruction_sets.h"

#if FASTRL_X86_SETS
#include "set_headers.h"
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#define FASTRL_AVX512 1
#define FASTRL_ISA avx512
#define FASTRL_WIDTH 16
#include "attention_kernel.h"
#include "dense_kernel.h"
#include "layer_rows_kernel.h"
#include "packed_attention_kernel.h"
#include "row_functions.h"

namespace fastrl {
const InstructionSet avx512_set = {"avx512",
                                   &avx512::row_functions,
                                   &avx512::dense_of<float>,
                                   &avx512::dense_of<avx512::BFloat16>,
                                   &avx512::attention,
                                   &avx512::packed,
                                   &avx512::layer_rows,
                                   [] {
                                       return avx2_set.runs_here() &&
                                              __builtin_cpu_supports("avx512f") &&
                                              __builtin_cpu_supports("avx512bw") &&
                                              __builtin_cpu_supports("avx512dq") &&
                                              __builtin_cpu_supports("avx512vl");
                                   }};
}  // namespace fastrl
#endif
