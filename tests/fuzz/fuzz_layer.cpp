// libFuzzer targets for the parts of a layer: what happens to each row with -DLAYER_ROWS, products
// with -DDENSE, else a layer as a whole (-DLAYER). A definition in fp64 says what comes out of tame
// numbers.
#include <algorithm>

#include "../../csrc/dense.h"
#include "../../csrc/layer.h"
#include "../../csrc/layer_rows.h"
#include "cache.h"
#include "inputs.h"

using namespace fastrl;
using namespace fastrl::fuzz;

namespace {

constexpr float EPS = 1e-5f;
constexpr int THREADS = 2;

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// 1 / rms of a row.
double inverse_rms(const Tensor& x, int64_t row) {
    double squares = 0;
    for (int64_t i = 0; i < x.width; ++i) squares += double{x.at(row, i)} * x.at(row, i);
    return 1 / std::sqrt(squares / static_cast<double>(x.width) + double{EPS});
}

// The result of some roundings on the way, whose largest number was `size`.
bool near_rounded(float got, double wanted, DType dtype, double size) {
    return near(got, wanted, 4 * rounding(dtype, size) + 1e-5 * std::abs(size));
}

void check_norm(Source& source, DType dtype, Numbers numbers, int64_t rows, int64_t width) {
    const Tensor x = drawn(source, dtype, rows, width, numbers),
                 weight = drawn(source, dtype, 1, width, numbers),
                 dy = drawn(source, dtype, rows, width, numbers);
    const Tensor scales = floats(rows), y(dtype, rows, width), dx(dtype, rows, width),
                 dweight(dtype, 1, width);
    const NormRows n{dtype, x.data(), weight.data(), EPS, rows, width, scales.as()};
    norm_rows(n, y.data(), THREADS);
    norm_rows_gradient(n, dy.data(), dx.data(), dweight.data(), THREADS);
    if (rows == 0) assert(dweight.is_zero(0));
    if (numbers != Numbers::tame) return;
    std::vector<double> sums(width), sizes(width);
    for (int64_t row = 0; row < rows; ++row) {
        const double scale = inverse_rms(x, row);
        assert(near(scales.at(0, row), scale, 1e-5 * scale));
        double mean = 0;
        for (int64_t i = 0; i < width; ++i)
            mean += dy.at(row, i) * weight.at(0, i) * x.at(row, i) * scale / width;
        for (int64_t i = 0; i < width; ++i) {
            const double z = x.at(row, i) * scale, d = dy.at(row, i);
            assert(near_rounded(y.at(row, i), z * weight.at(0, i), dtype, z * weight.at(0, i)));
            const double by_x = (d * weight.at(0, i) - z * mean) * scale;
            const double size = (16 + 16 * std::abs(z) * std::sqrt(width)) * scale;
            assert(near_rounded(dx.at(row, i), by_x, dtype, by_x) ||
                   near(dx.at(row, i), by_x, rounding(dtype, by_x) + 1e-5 * size));
            sums[i] += d * z, sizes[i] += std::abs(d * z);
        }
    }
    for (int64_t i = 0; i < width; ++i)
        assert(near_rounded(dweight.at(0, i), sums[i], dtype, sizes[i]));
}

void check_rotation(Source& source, DType dtype, Numbers numbers, int64_t rows) {
    const int64_t heads = source.integer(1, 4), dim = 2 * source.integer(1, 35), half = dim / 2;
    const Tensor x = drawn_apart(source, dtype, rows, heads * dim, numbers),
                 cos = drawn(source, DType::f32, rows, half, numbers),
                 sin = drawn(source, DType::f32, rows, half, numbers);
    const bool back = source.once_in(2);
    const Tensor out(dtype, rows, heads * dim);
    rotate_rows({dtype, x.data(), x.stride, cos.as(), sin.as(), rows, heads, dim, back}, out.data(),
                THREADS);
    if (numbers != Numbers::tame) return;
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t i = 0; i < heads * dim; ++i) {
            const int64_t at = i % dim % half, first = i - i % dim + at;
            const double c = cos.at(row, at), s = sin.at(row, at) * (back ? -1 : 1);
            const double a = x.at(row, first), b = x.at(row, first + half);
            const double wanted = i == first ? a * c - b * s : b * c + a * s;
            assert(near(out.at(row, i), wanted, rounding(dtype, wanted) + 1e-5));
        }
}

void check_swiglu(Source& source, DType dtype, Numbers numbers, int64_t rows, int64_t width) {
    const Tensor gate_up = drawn(source, dtype, rows, 2 * width, numbers),
                 dout = drawn(source, dtype, rows, width, numbers);
    const Tensor out(dtype, rows, width), back(dtype, rows, 2 * width);
    swiglu_rows({dtype, gate_up.data(), rows, width}, out.data(), THREADS);
    swiglu_rows_gradient({dtype, gate_up.data(), rows, width}, dout.data(), back.data(), THREADS);
    if (numbers != Numbers::tame) return;
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t i = 0; i < width; ++i) {
            const double gate = gate_up.at(row, i), up = gate_up.at(row, width + i);
            const double share = sigmoid(gate), d = dout.at(row, i);
            const double by_gate = d * up * share * (1 + gate * (1 - share));
            const double wanted = gate * share * up, by_up = d * gate * share;
            assert(near_rounded(out.at(row, i), wanted, dtype, wanted));
            assert(near_rounded(back.at(row, i), by_gate, dtype, d * up));
            assert(near_rounded(back.at(row, width + i), by_up, dtype, by_up));
        }
}

[[maybe_unused]] void check_layer_rows(Source& source) {
    const DType dtype = source.one_of({DType::f32, DType::bf16});
    const Numbers numbers = source.numbers();
    // more than 32 rows: in blocks, whose sums are added
    const int64_t rows = source.integer(0, source.once_in(4) ? 70 : 9);
    const int64_t width = source.integer(1, 70);
    switch (source.integer(0, 2)) {
        case 0: return check_norm(source, dtype, numbers, rows, width);
        case 1: return check_rotation(source, dtype, numbers, rows);
        default: check_swiglu(source, dtype, numbers, rows, width);
    }
}

// Panels of exactly as many words as a product asks for.
std::unique_ptr<uint32_t, decltype(&std::free)> panels_for(const Dense& d) {
    void* memory = nullptr;
    const int64_t bytes = panel_words(d) * static_cast<int64_t>(sizeof(uint32_t));
    if (posix_memalign(&memory, 64, bytes) != 0) std::abort();
    std::memset(memory, 255, bytes);
    return {static_cast<uint32_t*>(memory), std::free};
}

struct Product {
    DType dtype;
    Numbers numbers;
    bool gated, has_norm, has_bias, has_residual;
    int64_t rows, width_in, width_out, width;
    Tensor x, norm, weight, bias, residual;

    explicit Product(Source& source)
        : dtype(source.one_of({DType::f32, DType::bf16})),
          numbers(source.numbers()),
          gated(source.once_in(3)),
          has_norm(source.once_in(2)),
          has_bias(source.once_in(2)),
          has_residual(source.once_in(2)),
          rows(draw_rows(source)),
          width_in(draw_width(source, dtype)),
          width_out(gated ? 2 * source.integer(12, 50) : source.integer(12, 100)),
          width(gated ? width_out / 2 : width_out),
          x(drawn_apart(source, dtype, rows, width_in, numbers)),
          norm(drawn(source, dtype, 1, width_in, numbers)),
          weight(drawn(source, dtype, width_out, width_in, numbers)),
          bias(drawn(source, dtype, 1, width_out, numbers)),
          residual(drawn_apart(source, dtype, rows, width, numbers)) {}

    // Fewer than a panel, a few panels, more than lie in a cache at once.
    static int64_t draw_rows(Source& source) {
        if (source.once_in(32)) return source.integer(250, 270);
        return source.integer(0, source.once_in(4) ? 70 : 9);
    }
    // Also above the 128 terms of a sum, and of whole tiles.
    static int64_t draw_width(Source& source, DType dtype) {
        if (source.once_in(4)) return 32 * source.integer(1, 9);
        const int64_t width = source.integer(1, source.once_in(4) ? 300 : 70);
        return dtype == DType::bf16 ? (width + 1) / 2 * 2 : width;
    }

    Dense into(const Tensor& out) const {
        return {dtype,
                out.dtype,
                x.data(),
                x.stride,
                has_norm ? norm.data() : nullptr,
                EPS,
                weight.data(),
                has_bias ? bias.data() : nullptr,
                has_residual ? residual.data() : nullptr,
                residual.stride,
                out.data(),
                out.stride,
                rows,
                width_in,
                width_out,
                gated};
    }

    // Result `column` of a row before a gate, and the sum of the sizes of its terms.
    std::pair<double, double> sum(int64_t row, int64_t column) const {
        const double scale = has_norm ? inverse_rms(x, row) : 1;
        double sum = has_bias ? bias.at(0, column) : 0, size = std::abs(sum);
        for (int64_t i = 0; i < width_in; ++i) {
            const double factor = has_norm ? norm.at(0, i) * scale : 1;
            const double term = x.at(row, i) * factor * weight.at(column, i);
            sum += term, size += std::abs(term);
        }
        return {sum, size};
    }
    bool is_near(const Tensor& out, int64_t row) const {
        const double one = dtype == DType::f32 ? 0x1p-21 : 0x1p-8;
        for (int64_t i = 0; i < width; ++i) {
            auto [wanted, size] = sum(row, i);
            double off = size * one;
            if (gated) {
                const auto [other, other_size] = sum(row, width + i);
                const double share = sigmoid(wanted);
                off = 1.2 * off * (std::abs(other) + other_size * one) +
                      std::abs(wanted * share) * other_size * one;
                wanted *= share * other;
            }
            if (has_residual) wanted += residual.at(row, i);
            off += 4 * rounding(out.dtype, wanted) + 4 * rounding(dtype, 4 + std::abs(wanted));
            if (!near(out.at(row, i), wanted, off)) return false;
        }
        return true;
    }
};

[[maybe_unused]] void check_dense(Source& source) {
    const Product product(source);
    assert(dense_fits(product.dtype, product.width_in, product.width_out, product.gated));
    const bool is_wide = !product.gated && !product.has_residual && source.once_in(2);
    const DType out_dtype = is_wide ? DType::f32 : product.dtype;
    const int64_t stride = product.width + source.integer(0, 3);
    const int threads = static_cast<int>(source.integer(1, 3));
    std::vector<int64_t> some;
    for (int64_t i = 0; i < std::min<int64_t>(product.rows, 4); ++i)
        some.push_back(source.integer(0, product.rows - 1));
    const Tensor out(out_dtype, product.rows, product.width, stride);
    const Dense d = product.into(out);
    const auto panels = panels_for(d);
    afresh([&] {
        Phases phases;
        add_dense(phases, d, panels.get(), threads);
        phases.run(threads);
    });
    assert(out.is_whole());
    for (const int64_t row : some) {
        // the same bits alone
        const Tensor alone(out_dtype, 1, product.width);
        Dense one = d;
        one.x = product.x.row(row), one.out = alone.data(), one.rows = 1;
        if (one.residual) one.residual = product.residual.row(row);
        afresh([&] { dense(one, THREADS); });
        assert(same_row(out, row, alone, 0));
        if (product.numbers == Numbers::tame) assert(product.is_near(out, row));
    }
}

// A layer by its parts.
struct Parts {
    const LayerWeights& w;
    const Cache& cache;

    Tensor product(const Tensor& x, int64_t width_out, const void* norm, const void* weight,
                   const void* bias, const Tensor* residual, bool gated) const {
        Tensor out(w.dtype, cache.rows, gated ? width_out / 2 : width_out);
        dense({w.dtype, w.dtype, x.data(), x.stride, norm, w.eps, weight, bias,
               residual ? residual->data() : nullptr, out.stride, out.data(), out.stride,
               cache.rows, x.width, width_out, gated},
              1);
        return out;
    }
    Tensor layer(const Tensor& x, PagedAttention a) const {
        const int64_t heads = w.heads + 2 * w.kv_heads;
        const Tensor all = product(x, heads * w.dim, w.attention_norm, w.qkv, w.qkv_bias, nullptr,
                                   false),
                     seen(w.dtype, cache.rows, w.heads * w.dim);
        char* const q = all.as<char>();
        a.q = q, a.k = q + w.heads * w.dim * all.bytes();
        a.v = q + (w.heads + w.kv_heads) * w.dim * all.bytes();
        a.q_stride = a.k_stride = a.v_stride = all.stride;
        a.dtype = w.dtype, a.out = seen.data(), a.eps = w.eps;
        a.q_norm = w.q_norm, a.k_norm = w.k_norm;
        paged_attention(a, 1);
        const Tensor between = product(seen, w.hidden, nullptr, w.o, w.o_bias, &x, false),
                     inner = product(between, 2 * w.inner, w.mlp_norm, w.gate_up, w.gate_up_bias,
                                     nullptr, true);
        return product(inner, w.hidden, nullptr, w.down, w.down_bias, &between, false);
    }
};

[[maybe_unused]] void check_layer(Source& source) {
    const DType dtype = source.one_of({DType::f32, DType::bf16});
    const Numbers numbers = source.numbers();
    const auto width = [&] {  // of whole tiles now and then
        return source.once_in(4) ? 32 * source.integer(1, 3) : 2 * source.integer(6, 35);
    };
    LayerWeights w{};
    w.dtype = dtype, w.eps = EPS, w.hidden = width(), w.inner = width();
    w.kv_heads = source.integer(1, 2), w.heads = w.kv_heads * source.integer(1, 3);
    w.dim = 2 * source.integer(2, 16);
    const int64_t all = (w.heads + 2 * w.kv_heads) * w.dim;
    std::vector<Tensor> kept;
    const auto weight = [&](int64_t rows, int64_t columns) {
        kept.push_back(drawn(source, dtype, rows, columns, numbers));
        return kept.back().data();
    };
    const auto maybe = [&](int64_t count) {
        return source.once_in(2) ? weight(1, count) : nullptr;
    };
    w.attention_norm = weight(1, w.hidden), w.mlp_norm = weight(1, w.hidden);
    w.qkv = weight(all, w.hidden), w.qkv_bias = maybe(all);
    w.o = weight(w.hidden, w.heads * w.dim), w.o_bias = maybe(w.hidden);
    w.gate_up = weight(2 * w.inner, w.hidden), w.gate_up_bias = maybe(2 * w.inner);
    w.down = weight(w.hidden, w.inner), w.down_bias = maybe(w.hidden);
    w.q_norm = maybe(w.dim), w.k_norm = w.q_norm ? weight(1, w.dim) : nullptr;

    const Cache cache(source);
    const Tensor old_k = cache.drawn(source, dtype, w.kv_heads * w.dim, numbers),
                 old_v = cache.drawn(source, dtype, w.kv_heads * w.dim, numbers),
                 x = drawn(source, dtype, cache.rows, w.hidden, numbers),
                 cos = drawn(source, DType::f32, cache.rows, w.dim / 2, numbers),
                 sin = drawn(source, DType::f32, cache.rows, w.dim / 2, numbers);
    PagedAttention a{};
    a.cos = cos.as(), a.sin = sin.as();
    a.heads = w.heads, a.kv_heads = w.kv_heads, a.dim = w.dim;
    a.scale = 1.0f / std::sqrt(static_cast<float>(w.dim));
    cache.give_rows(a);
    const int threads = static_cast<int>(source.integer(1, 3));
    const Tensor k = cache.guarded(old_k), v = cache.guarded(old_v), other_k = cache.guarded(old_k),
                 other_v = cache.guarded(old_v), out(dtype, cache.rows, w.hidden);
    a.k_cache = k.data(), a.v_cache = v.data();
    afresh([&] { layer(w, a, x.data(), out.data(), threads); });
    a.k_cache = other_k.data(), a.v_cache = other_v.data();
    assert(same(out, Parts{w, cache}.layer(x, a)));
    for (const Tensor* tensor : {&k, &v, &other_k, &other_v}) tensor->allow();
    assert(same(k, other_k) && same(v, other_v));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Source source(data, size);
    draw_set(source);
#if defined(LAYER_ROWS)
    check_layer_rows(source);
#elif defined(DENSE)
    check_dense(source);
#else
    check_layer(source);
#endif
    return 0;
}
