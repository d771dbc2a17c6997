// Causal attention of query rows over a paged key/value cache.
#pragma once

#include <cstdint>

namespace fastrl {

// Shapes: q and out [rows, heads, dim]; k_cache and v_cache [blocks, block_size, kv_heads, dim];
// all fp32 and contiguous. Row r belongs to table row_table[r] of tables [*, table_stride] (block
// numbers) and sees the first context[r] tokens of it. Slots past the context are never read.
struct PagedAttention {
    const float* q;
    const float* k_cache;
    const float* v_cache;
    float* out;
    const int32_t* tables;
    const int32_t* row_table;
    const int32_t* context;
    int64_t table_stride, rows, heads, kv_heads, dim, block_size;
    float scale;
};

// The result of a row depends on neither the other rows nor the number of threads.
void paged_attention(const PagedAttention& a, int threads);

}  // namespace fastrl
