// AVX-512 with products of pairs in bf16, of weights and of keys; all else is `set_avx512.cpp`'s.
#include "instruction_sets.h"

#if FASTRL_X86_SETS && __GNUC__ >= 11
#include "set_headers.h"
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#define FASTRL_AVX512 1
#define FASTRL_DOT_BF16 1
#define FASTRL_ISA avx512_bf16
#define FASTRL_WIDTH 16
#include "attention_kernel.h"
#include "dense_kernel.h"
#include "packed_attention_kernel.h"

namespace fastrl {
const InstructionSet avx512_bf16_set = {
    "avx512_bf16",
    avx512_set.rows,
    avx512_set.dense,
    &avx512_bf16::dense_of<avx512_bf16::BFloat16>,
    &avx512_bf16::attention,
    &avx512_bf16::packed,
    avx512_set.layer_rows,
    [] { return avx512_set.runs_here() && __builtin_cpu_supports("avx512bf16"); }};
}  // namespace fastrl
#endif
