#include "paged_attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "clones.h"
#include "parallel.h"

namespace fastrl {

namespace {

// One query head of one row; scores holds context floats.
FASTRL_CLONES
void attend(const PagedAttention& a, int64_t row, int64_t head, float* scores) {
    const int64_t dim = a.dim, length = a.context[row];
    const int64_t kv_head = head / (a.heads / a.kv_heads);
    const int64_t token_stride = a.kv_heads * dim;
    const int32_t* table = a.tables + a.row_table[row] * a.table_stride;
    const float* q = a.q + (row * a.heads + head) * dim;
    float* out = a.out + (row * a.heads + head) * dim;

    float peak = -INFINITY;
    for (int64_t first = 0; first < length; first += a.block_size) {
        const int64_t block = table[first / a.block_size];
        const float* k = a.k_cache + block * a.block_size * token_stride + kv_head * dim;
        const int64_t count = std::min(a.block_size, length - first);
        for (int64_t t = 0; t < count; ++t, k += token_stride) {
            float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
            for (int64_t d = 0; d < dim; ++d) dot += q[d] * k[d];
            scores[first + t] = dot * a.scale;
            peak = std::max(peak, scores[first + t]);
        }
    }
    float total = 0.0f;
    for (int64_t t = 0; t < length; ++t) {
        scores[t] = std::exp(scores[t] - peak);
        total += scores[t];
    }
    std::fill(out, out + dim, 0.0f);
    for (int64_t first = 0; first < length; first += a.block_size) {
        const int64_t block = table[first / a.block_size];
        const float* v = a.v_cache + block * a.block_size * token_stride + kv_head * dim;
        const int64_t count = std::min(a.block_size, length - first);
        for (int64_t t = 0; t < count; ++t, v += token_stride) {
            const float weight = scores[first + t];
#pragma omp simd
            for (int64_t d = 0; d < dim; ++d) out[d] += weight * v[d];
        }
    }
    const float inverse = 1.0f / total;
#pragma omp simd
    for (int64_t d = 0; d < dim; ++d) out[d] *= inverse;
}

}  // namespace

void paged_attention(const PagedAttention& a, int threads) {
    if (a.rows == 0) return;
    const int64_t longest = *std::max_element(a.context, a.context + a.rows);
    const bool large = a.rows * a.heads * longest * a.dim > 1 << 17;
    parallel_for(a.rows * a.heads, large ? threads : 1, [&](int64_t begin, int64_t end) {
        std::vector<float> scores(longest);
        for (int64_t i = begin; i < end; ++i) attend(a, i / a.heads, i % a.heads, scores.data());
    });
}

}  // namespace fastrl
