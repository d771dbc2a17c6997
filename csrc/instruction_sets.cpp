#include "instruction_sets.h"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace fastrl {

namespace {

constexpr const InstructionSet* SETS[] = {
#if FASTRL_X86_SETS
#if __GNUC__ >= 11
    &amx_set,    &avx512_bf16_set,
#endif
    &avx512_set, &avx2_set,
#endif
    &plain_set,
};

std::atomic<const InstructionSet*>& current() {
    static std::atomic<const InstructionSet*> set{*std::find_if(
        std::begin(SETS), std::end(SETS), [](const InstructionSet* s) { return s->runs_here(); })};
    return set;
}

}  // namespace

const InstructionSet& instruction_set() { return *current(); }

bool use_instruction_set(const char* name) {
    for (const InstructionSet* set : SETS)
        if (std::strcmp(set->name, name) == 0 && set->runs_here()) {
            current() = set;
            return true;
        }
    return false;
}

}  // namespace fastrl
