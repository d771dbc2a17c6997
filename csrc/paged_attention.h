// Causal attention of query rows over a paged key/value cache, the rotary embedding included.
//
// Floor: the cached keys and values of each sequence, read once for all query heads that share
// them, and once for rows side by side whose tables name the same blocks there (a forked prompt, a
// chunk of one sequence); 4 heads dim context operations a row. A row sees its tokens in steps of
// `STEP` positions, whatever the block size and the other rows: its result depends on neither.
#pragma once

#include <cstdint>

#include "rows.h"
#include "team.h"

namespace fastrl {

// Row r belongs to table row_table[r] of tables [*, table_stride] (block numbers). Its key and
// value go to position context[r] - 1 of it, and it sees the first context[r] tokens. Slots past
// the context are never read.
struct PagedAttention {
    DType dtype;    // fp32 or bf16, of everything but the rotation
    const void* q;  // [rows, heads, dim], rows q_stride numbers apart
    const void* k;  // [rows, kv_heads, dim]
    const void* v;
    int64_t q_stride, k_stride, v_stride;
    const float* cos;  // [rows, dim / 2], of the rotary angles; null: q and k are rotated already
    const float* sin;
    void* k_cache;  // [blocks, block_size, kv_heads, dim], contiguous
    void* v_cache;
    void* out;  // [rows, heads, dim], contiguous
    const int32_t* tables;
    const int32_t* row_table;
    const int32_t* context;
    int64_t table_stride, rows, heads, kv_heads, dim, block_size;
    float scale;
    const void* q_norm = nullptr;  // [dim], the weights of RMSNorms of each head of q and of k
    const void* k_norm = nullptr;  // before the rotation; null: none
    float eps = 0;
};

// Writes the rows' keys and values, then attends. The result of a row depends on neither the other
// rows nor the number of threads.
void paged_attention(const PagedAttention& a, int threads);

// The same as loops of a region that others share; `a` lives until the region has run.
void add_paged_attention(Phases& phases, const PagedAttention& a, int threads);

// How one instruction set does it.
struct AttentionFunctions {
    void (*write)(const PagedAttention&, int64_t row);
    // Some rows side by side, the query heads of some key/value heads side by side.
    void (*attend)(const PagedAttention&, int64_t first_row, int64_t rows, int64_t first_head,
                   int64_t kv_heads);
};

}  // namespace fastrl
