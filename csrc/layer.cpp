#include "layer.h"

#include <algorithm>
#include <utility>

namespace fastrl {

namespace {

constexpr int64_t SMALL = 1 << 18;  // multiply-adds that are not worth a second thread

}  // namespace

void layer(const LayerWeights& w, PagedAttention a, const void* x, void* out, int threads) {
    if (a.rows == 0) return;
    const int64_t rows = a.rows, bytes = w.dtype == DType::f32 ? 4 : 2;
    const int64_t all_heads = (w.heads + 2 * w.kv_heads) * w.dim, attended = w.heads * w.dim;
    int64_t words = 0, work = 0;
    for (const auto& [width_in, width_out] : {std::pair{w.hidden, all_heads},
                                              {attended, w.hidden},
                                              {w.hidden, 2 * w.inner},
                                              {w.inner, w.hidden}}) {
        Dense sizes{};
        sizes.dtype = w.dtype, sizes.rows = rows, sizes.width_in = width_in;
        words = std::max(words, panel_words(sizes));
        work += rows * width_in * width_out;
    }
    // the panels and what lies between the products, lines of a cache apart
    int64_t starts[5] = {(words + 15) / 16 * 16};
    const int64_t widths[] = {all_heads, attended, w.hidden, w.inner};
    for (int i = 0; i < 4; ++i)
        starts[i + 1] = starts[i] + (rows * widths[i] * bytes + 63) / 64 * 16;
    uint32_t* memory = kept_words(starts[4]);
    const auto part = [&](int i) { return reinterpret_cast<char*>(memory + starts[i]); };
    char *all = part(0), *seen = part(1), *between = part(2), *inner = part(3);

    const auto product = [&](const void* from, int64_t width_in, const void* norm,
                             const void* weight, const void* bias, const void* residual, void* to,
                             int64_t width_out, bool gated) {
        const int64_t width = gated ? width_out / 2 : width_out;
        return Dense{w.dtype,  w.dtype, from, width_in, norm, w.eps,    weight,    bias,
                     residual, width,   to,   width,    rows, width_in, width_out, gated};
    };
    const Dense products[] = {
        product(x, w.hidden, w.attention_norm, w.qkv, w.qkv_bias, nullptr, all, all_heads, false),
        product(seen, attended, nullptr, w.o, w.o_bias, x, between, w.hidden, false),
        product(between, w.hidden, w.mlp_norm, w.gate_up, w.gate_up_bias, nullptr, inner,
                2 * w.inner, true),
        product(inner, w.inner, nullptr, w.down, w.down_bias, between, out, w.hidden, false),
    };
    const int64_t size = bytes * w.dim;
    a.dtype = w.dtype;
    a.q = all;
    a.k = all + w.heads * size;
    a.v = all + (w.heads + w.kv_heads) * size;
    a.q_stride = a.k_stride = a.v_stride = all_heads;
    a.out = seen;
    a.q_norm = w.q_norm;
    a.k_norm = w.k_norm;
    a.eps = w.eps;
    const int workers = work > SMALL ? threads : 1;
    Phases phases;
    add_dense(phases, products[0], memory, workers);
    add_paged_attention(phases, a, workers);
    for (int i = 1; i < 4; ++i) add_dense(phases, products[i], memory, workers);
    phases.run(workers);
}

}  // namespace fastrl
