// Causal attention over segments of packed rows, with gradients (Dao et al. 2022): what training
// reads, as `paged_attention.h` is what sampling does.
#pragma once

#include <cstdint>
#include <vector>

#include "rows.h"

namespace fastrl {

// Rows that follow each other, and see each other from the first to themselves.
struct Segment {
    int64_t first, rows;
    int64_t at;                   // of its first row among the padded rows of its family
    int64_t prefix, prefix_rows;  // all of whose rows it sees as well, at a place of its family
};

// Segments that share rows; each begins at a multiple of `ALIGNED` of the family's padded rows.
struct Family {
    static constexpr int64_t ALIGNED = 32;
    std::vector<Segment> segments;
    int64_t padded = 0;
};

// The families of segments that lie end to end.
struct Families {
    std::vector<Family> all;

    // `offsets` [count + 1] of the segments' rows; for each the first and the number of the rows
    // that it continues [count, 2], all of one other segment.
    Families(const int32_t* offsets, const int64_t* prefixes, int64_t count);
};

struct PackedAttention {
    DType dtype;                           // of q, k, v, out: f32 or bf16
    const void *q, *k, *v;                 // [rows, heads, dim] and [rows, kv_heads, dim]
    int64_t q_stride, k_stride, v_stride;  // numbers from row to row
    const float *cos, *sin;                // [rows, dim / 2], angles of q and k; null: none
    void* out;                             // [rows, heads, dim]
    float* log_sums;                       // [rows, heads], base 2, of the weights
    int64_t heads, kv_heads, dim;
    float scale;
};

struct PackedGradient {
    const void* dout;    // [rows, heads, dim]
    void *dq, *dk, *dv;  // contiguous
};

void packed_attention(const PackedAttention& a, const Families& families, int threads);
void packed_attention_gradient(const PackedAttention& a, const PackedGradient& g,
                               const Families& families, int threads);

// How one instruction set does it, for the queries of one key/value head in one family.
struct PackedAttentionFunctions {
    void (*forward)(const PackedAttention&, const Family&, int64_t kv_head);
    void (*backward)(const PackedAttention&, const PackedGradient&, const Family&, int64_t kv_head);
};

}  // namespace fastrl
