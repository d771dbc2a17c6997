#include "packed_attention.h"

#include <algorithm>
#include <numeric>

#include "instruction_sets.h"
#include "team.h"

namespace fastrl {

Families::Families(const int32_t* offsets, const int64_t* prefixes, int64_t count) {
    // a tree of segments, each pointing towards the first of its family
    std::vector<int64_t> parent(count);
    std::iota(parent.begin(), parent.end(), 0);
    const auto root = [&](int64_t i) {
        while (parent[i] != i) i = parent[i] = parent[parent[i]];
        return i;
    };
    const auto holder = [&](int64_t row) {  // the segment of a row
        return std::upper_bound(offsets, offsets + count + 1, row) - offsets - 1;
    };
    for (int64_t i = 0; i < count; ++i) {
        const int64_t first = prefixes[2 * i];
        if (prefixes[2 * i + 1] == 0 || offsets[i] == offsets[i + 1]) continue;
        const int64_t a = root(holder(first)), b = root(i);
        parent[std::max(a, b)] = std::min(a, b);
    }
    std::vector<int64_t> family(count), at(count);
    for (int64_t i = 0; i < count; ++i) {
        const int64_t rows = offsets[i + 1] - offsets[i];
        if (root(i) == i) {
            family[i] = static_cast<int64_t>(all.size());
            all.emplace_back();
        }
        Family& mine = all[family[i] = family[root(i)]];
        at[i] = mine.padded;
        mine.padded += (rows + Family::ALIGNED - 1) / Family::ALIGNED * Family::ALIGNED;
    }
    for (int64_t i = 0; i < count; ++i) {
        const int64_t rows = offsets[i + 1] - offsets[i];
        if (rows == 0) continue;
        Segment segment{offsets[i], rows, at[i], 0, prefixes[2 * i + 1]};
        if (segment.prefix_rows) {
            const int64_t first = prefixes[2 * i], other = holder(first);
            segment.prefix = at[other] + first - offsets[other];
        }
        all[family[i]].segments.push_back(segment);
    }
}

void packed_attention(const PackedAttention& a, const Families& families, int threads) {
    const PackedAttentionFunctions& functions = *instruction_set().packed_attention;
    team_for(static_cast<int64_t>(families.all.size()) * a.kv_heads, 1, threads,
             [&](int64_t item, int64_t) {
                 functions.forward(a, families.all[item / a.kv_heads], item % a.kv_heads);
             });
}

void packed_attention_gradient(const PackedAttention& a, const PackedGradient& g,
                               const Families& families, int threads) {
    const PackedAttentionFunctions& functions = *instruction_set().packed_attention;
    team_for(static_cast<int64_t>(families.all.size()) * a.kv_heads, 1, threads,
             [&](int64_t item, int64_t) {
                 functions.backward(a, g, families.all[item / a.kv_heads], item % a.kv_heads);
             });
}

}  // namespace fastrl
