// Which functions run: those of the widest instruction set that the processor and the build have.
//
// Every set is a file of its own, which includes the kernels' headers under its own namespace and
// target. gcc only; elsewhere the plain set is all there is.
#pragma once

#include "dense.h"
#include "layer_rows.h"
#include "packed_attention.h"
#include "paged_attention.h"
#include "rows.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FASTRL_X86_SETS 1
#else
#define FASTRL_X86_SETS 0
#endif

namespace fastrl {

struct InstructionSet {
    const char* name;
    const RowFunctions* rows;
    const DenseFunctions* dense;
    const DenseFunctions* dense_bf16;
    const AttentionFunctions* attention;
    const PackedAttentionFunctions* packed_attention;
    const LayerRowFunctions* layer_rows;
    bool (*runs_here)();
};

extern const InstructionSet plain_set;
#if FASTRL_X86_SETS
extern const InstructionSet avx2_set;
extern const InstructionSet avx512_set;
#if __GNUC__ >= 11
extern const InstructionSet avx512_bf16_set;  // products of pairs in bf16
extern const InstructionSet amx_set;          // tiles of such products
#endif
#endif

// The set in use.
const InstructionSet& instruction_set();

// Another one, for tests, by name: "amx", "avx512_bf16", "avx512", "avx2", "plain"; false where
// this processor or this build lacks it.
bool use_instruction_set(const char* name);

}  // namespace fastrl
