#include "paged_attention.h"

#include <algorithm>

#include "instruction_sets.h"

namespace fastrl {

namespace {

constexpr int64_t ROWS = 8;         // side by side: the usual size of a group that shares a prompt
constexpr int64_t SMALL = 1 << 17;  // multiply-adds that are not worth a second thread

}  // namespace

void add_paged_attention(Phases& phases, const PagedAttention& a, int threads) {
    const AttentionFunctions& f = *instruction_set().attention;
    const int64_t pieces = (a.rows + ROWS - 1) / ROWS;
    // all heads of a position lie together: apart only where rows alone give the threads no work
    const int64_t heads = pieces >= 4 * threads ? a.kv_heads : 1, parts = a.kv_heads / heads;
    phases.add(a.rows, ROWS, [&f, &a](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) f.write(a, row);
    });
    phases.add(pieces * parts, 1, [=, &f, &a](int64_t i, int64_t) {
        const int64_t first = i / parts * ROWS;
        f.attend(a, first, std::min(ROWS, a.rows - first), i % parts * heads, heads);
    });
}

void paged_attention(const PagedAttention& a, int threads) {
    if (a.rows == 0) return;
    const int64_t longest = *std::max_element(a.context, a.context + a.rows);
    const int workers = a.rows * a.heads * longest * a.dim > SMALL ? threads : 1;
    Phases phases;
    add_paged_attention(phases, a, workers);
    phases.run(workers);
}

}  // namespace fastrl
