#include "rows.h"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace fastrl {

namespace {

bool runs_here(const RowFunctions& functions) {
#if FASTRL_X86_SETS
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    if (&functions == &avx2_rows) return avx2;
    if (&functions == &avx512_rows)
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return &functions == &plain_rows;
}

#if FASTRL_X86_SETS
constexpr const RowFunctions* SETS[] = {&avx512_rows, &avx2_rows, &plain_rows};
#else
constexpr const RowFunctions* SETS[] = {&plain_rows};
#endif

std::atomic<const RowFunctions*>& current() {
    static std::atomic<const RowFunctions*> functions{*std::find_if(
        std::begin(SETS), std::end(SETS), [](const RowFunctions* set) { return runs_here(*set); })};
    return functions;
}

}  // namespace

const RowFunctions& row_functions() { return *current(); }

const char* instruction_set() { return current().load()->name; }

bool use_instruction_set(const char* name) {
    for (const RowFunctions* set : SETS)
        if (std::strcmp(set->name, name) == 0 && runs_here(*set)) {
            current() = set;
            return true;
        }
    return false;
}

}  // namespace fastrl
