// What gcc's -fsanitize-coverage=trace-pc calls in every basic block, as libFuzzer wants to know
// it. Linked with --wrap=__sanitizer_cov_trace_pc, as libFuzzer refuses that name; built without
// sanitizers.
#include <cstddef>
#include <cstdint>

constexpr size_t COUNTERS = 1 << 16;

__attribute__((section("__libfuzzer_extra_counters"))) static uint8_t counters[COUNTERS];

extern "C" void __wrap___sanitizer_cov_trace_pc() {
    const auto at = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
    // blocks lie some bytes apart; a count that comes back to 0 would be lost
    uint8_t& count = counters[(at ^ at >> 16) % COUNTERS];
    if (count < 255) ++count;
}
