// A whole layer of the decoder for rows of the paged cache: attention and feed-forward, with their
// norms and residuals, in one parallel region.
#pragma once

#include "dense.h"
#include "paged_attention.h"

namespace fastrl {

// The parameters, in one dtype, contiguous; a bias may be null. Legend: D: hidden width, H, K:
// query and key/value heads, h: head dimension, F: width of the feed-forward layer.
struct LayerWeights {
    DType dtype;
    int64_t hidden, heads, kv_heads, dim, inner;  // D, H, K, h, F
    float eps;
    const void *attention_norm, *qkv, *qkv_bias, *q_norm, *k_norm;  // [D], [(H + 2 K) h, D], [h]
    const void *o, *o_bias;                                         // [D, H h]
    const void *mlp_norm, *gate_up, *gate_up_bias;                  // [D], [2 F, D]
    const void *down, *down_bias;                                   // [D, F]
};

// Rows x [rows, D] to out [rows, D], both contiguous and apart. Of `a` the caller gives the cache,
// tables, rotation and sizes; q, k, v and out are set here.
void layer(const LayerWeights& w, PagedAttention a, const void* x, void* out, int threads);

}  // namespace fastrl
