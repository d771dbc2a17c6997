// Python bindings of fastrl._C, and nothing else.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <string_view>
#include <vector>

#include "dense.h"
#include "grading/module.h"
#include "instruction_sets.h"
#include "layer.h"
#include "layer_rows.h"
#include "loss.h"
#include "packed_attention.h"
#include "paged_attention.h"
#include "sample.h"

namespace py = pybind11;

namespace {

template <typename T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// Tensors come as addresses; the caller checks dtypes, shapes and contiguity.
fastrl::PackedAttention packed_attention(int dtype, uintptr_t q, uintptr_t k, uintptr_t v,
                                         int64_t q_stride, int64_t k_stride, int64_t v_stride,
                                         uintptr_t cos, uintptr_t sin, uintptr_t out,
                                         uintptr_t log_sums, int64_t heads, int64_t kv_heads,
                                         int64_t dim) {
    return {static_cast<fastrl::DType>(dtype),
            pointer<const void>(q),
            pointer<const void>(k),
            pointer<const void>(v),
            q_stride,
            k_stride,
            v_stride,
            pointer<const float>(cos),
            pointer<const float>(sin),
            pointer<void>(out),
            pointer<float>(log_sums),
            heads,
            kv_heads,
            dim,
            1.0f / std::sqrt(static_cast<float>(dim))};
}

void paged_attention(int dtype, uintptr_t q, uintptr_t k, uintptr_t v, int64_t q_stride,
                     int64_t k_stride, int64_t v_stride, uintptr_t cos, uintptr_t sin,
                     uintptr_t k_cache, uintptr_t v_cache, uintptr_t out, uintptr_t tables,
                     uintptr_t row_table, uintptr_t context, int64_t table_stride, int64_t rows,
                     int64_t heads, int64_t kv_heads, int64_t dim, int64_t block_size, float scale,
                     int threads) {
    fastrl::paged_attention({static_cast<fastrl::DType>(dtype),
                             pointer<void>(q),
                             pointer<void>(k),
                             pointer<void>(v),
                             q_stride,
                             k_stride,
                             v_stride,
                             pointer<const float>(cos),
                             pointer<const float>(sin),
                             pointer<void>(k_cache),
                             pointer<void>(v_cache),
                             pointer<void>(out),
                             pointer<const int32_t>(tables),
                             pointer<const int32_t>(row_table),
                             pointer<const int32_t>(context),
                             table_stride,
                             rows,
                             heads,
                             kv_heads,
                             dim,
                             block_size,
                             scale},
                            threads);
}

void dense(int dtype, int out_dtype, uintptr_t x, int64_t x_stride, uintptr_t norm, float eps,
           uintptr_t weight, uintptr_t bias, uintptr_t residual, int64_t residual_stride,
           uintptr_t out, int64_t out_stride, int64_t rows, int64_t width_in, int64_t width_out,
           bool gated, int threads) {
    fastrl::dense({static_cast<fastrl::DType>(dtype), static_cast<fastrl::DType>(out_dtype),
                   pointer<void>(x), x_stride, pointer<void>(norm), eps, pointer<void>(weight),
                   pointer<void>(bias), pointer<void>(residual), residual_stride,
                   pointer<void>(out), out_stride, rows, width_in, width_out, gated},
                  threads);
}

fastrl::LayerWeights layer_weights(int dtype, int64_t hidden, int64_t heads, int64_t kv_heads,
                                   int64_t dim, int64_t inner, float eps, uintptr_t attention_norm,
                                   uintptr_t qkv, uintptr_t qkv_bias, uintptr_t q_norm,
                                   uintptr_t k_norm, uintptr_t o, uintptr_t o_bias,
                                   uintptr_t mlp_norm, uintptr_t gate_up, uintptr_t gate_up_bias,
                                   uintptr_t down, uintptr_t down_bias) {
    using Address = const void;
    return {static_cast<fastrl::DType>(dtype),
            hidden,
            heads,
            kv_heads,
            dim,
            inner,
            eps,
            pointer<Address>(attention_norm),
            pointer<Address>(qkv),
            pointer<Address>(qkv_bias),
            pointer<Address>(q_norm),
            pointer<Address>(k_norm),
            pointer<Address>(o),
            pointer<Address>(o_bias),
            pointer<Address>(mlp_norm),
            pointer<Address>(gate_up),
            pointer<Address>(gate_up_bias),
            pointer<Address>(down),
            pointer<Address>(down_bias)};
}

void layer(const fastrl::LayerWeights& weights, uintptr_t x, uintptr_t out, uintptr_t cos,
           uintptr_t sin, uintptr_t k_cache, uintptr_t v_cache, uintptr_t tables,
           uintptr_t row_table, uintptr_t context, int64_t table_stride, int64_t rows,
           int64_t block_size, float scale, int threads) {
    fastrl::PagedAttention attention{};
    attention.cos = pointer<const float>(cos);
    attention.sin = pointer<const float>(sin);
    attention.k_cache = pointer<void>(k_cache);
    attention.v_cache = pointer<void>(v_cache);
    attention.tables = pointer<const int32_t>(tables);
    attention.row_table = pointer<const int32_t>(row_table);
    attention.context = pointer<const int32_t>(context);
    attention.table_stride = table_stride;
    attention.rows = rows;
    attention.heads = weights.heads;
    attention.kv_heads = weights.kv_heads;
    attention.dim = weights.dim;
    attention.block_size = block_size;
    attention.scale = scale;
    fastrl::layer(weights, attention, pointer<const void>(x), pointer<void>(out), threads);
}

fastrl::NormRows norm_rows(int dtype, uintptr_t x, uintptr_t weight, float eps, int64_t rows,
                           int64_t width, uintptr_t scales) {
    return {static_cast<fastrl::DType>(dtype),
            pointer<const void>(x),
            pointer<const void>(weight),
            eps,
            rows,
            width,
            pointer<float>(scales)};
}

void rotate_rows(int dtype, uintptr_t x, int64_t x_stride, uintptr_t cos, uintptr_t sin,
                 int64_t rows, int64_t heads, int64_t dim, bool back, uintptr_t out, int threads) {
    fastrl::rotate_rows(
        {static_cast<fastrl::DType>(dtype), pointer<const void>(x), x_stride,
         pointer<const float>(cos), pointer<const float>(sin), rows, heads, dim, back},
        pointer<void>(out), threads);
}

fastrl::SwigluRows swiglu_rows(int dtype, uintptr_t gate_up, int64_t rows, int64_t width) {
    return {static_cast<fastrl::DType>(dtype), pointer<const void>(gate_up), rows, width};
}

fastrl::Logits logits(uintptr_t data, int dtype, int64_t stride, int64_t rows, int64_t valid,
                      int64_t vocab, uintptr_t targets, uintptr_t mask, uintptr_t temperatures,
                      float temperature, float softcap, float logit_scale) {
    return {pointer<const void>(data),
            static_cast<fastrl::DType>(dtype),
            stride,
            rows,
            valid,
            vocab,
            pointer<const int64_t>(targets),
            pointer<const bool>(mask),
            pointer<const float>(temperatures),
            temperature,
            softcap,
            logit_scale};
}

void row_statistics(const fastrl::Logits& rows, uintptr_t logprobs, uintptr_t entropy,
                    uintptr_t sum_squares, uintptr_t max_prob, uintptr_t argmax,
                    uintptr_t thresholds, uintptr_t log_kept_mass, int threads) {
    const fastrl::Extras extras{pointer<float>(sum_squares), pointer<float>(max_prob),
                                pointer<int64_t>(argmax), pointer<const float>(thresholds),
                                pointer<float>(log_kept_mass)};
    fastrl::row_statistics(rows, pointer<float>(logprobs), pointer<float>(entropy), extras,
                           threads);
}

void row_gradient(const fastrl::Logits& rows, uintptr_t a, uintptr_t g, uintptr_t out,
                  int64_t out_stride, int threads) {
    fastrl::row_gradient(rows, pointer<const float>(a), pointer<const float>(g), pointer<void>(out),
                         out_stride, threads);
}

void policy_loss(const fastrl::Logits& rows, uintptr_t advantages, uintptr_t old_logprobs,
                 uintptr_t sampler_logprobs, uintptr_t weights, int loss, int correction,
                 double low, double high, double dual, double cap, double entropy_coef,
                 double scale, uintptr_t losses, uintptr_t logprobs, uintptr_t entropy,
                 uintptr_t out, int64_t out_stride, int threads) {
    const fastrl::PolicyRows policy{
        pointer<const float>(advantages), pointer<const float>(old_logprobs),
        pointer<const float>(sampler_logprobs), pointer<const float>(weights)};
    const fastrl::LossSettings settings{static_cast<fastrl::Loss>(loss),
                                        static_cast<fastrl::Correction>(correction),
                                        low,
                                        high,
                                        dual,
                                        cap,
                                        entropy_coef,
                                        scale};
    fastrl::policy_loss(rows, policy, settings, pointer<float>(losses), pointer<float>(logprobs),
                        pointer<float>(entropy), pointer<void>(out), out_stride, threads);
}

void sample(const fastrl::Logits& rows, uintptr_t top_k, uintptr_t top_p, uintptr_t min_p,
            uintptr_t counters, uint32_t key0, uint32_t key1, uintptr_t tokens, uintptr_t logprobs,
            uintptr_t log_kept_mass, int threads) {
    fastrl::sample(
        rows,
        {pointer<const int32_t>(top_k), pointer<const float>(top_p), pointer<const float>(min_p)},
        {pointer<const int64_t>(counters), key0, key1}, pointer<int64_t>(tokens),
        pointer<float>(logprobs), pointer<float>(log_kept_mass), threads);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "fastrl's C++: grading, attention over the paged cache, losses, sampling";
    fastrl::grading::bind(m);
    using released = py::call_guard<py::gil_scoped_release>;
    m.def("paged_attention", &paged_attention, released());
    m.def("dense", &dense, released());
    py::class_<fastrl::LayerWeights>(m, "LayerWeights").def(py::init(&layer_weights));
    m.def("layer", &layer, released());
    m.def("dense_fits", [](int dtype, int64_t width_in, int64_t width_out, bool gated) {
        return fastrl::dense_fits(static_cast<fastrl::DType>(dtype), width_in, width_out, gated);
    });
    py::class_<fastrl::NormRows>(m, "NormRows")
        .def(py::init(&norm_rows))
        .def(
            "forward",
            [](const fastrl::NormRows& n, uintptr_t y, int threads) {
                fastrl::norm_rows(n, pointer<void>(y), threads);
            },
            released())
        .def(
            "backward",
            [](const fastrl::NormRows& n, uintptr_t dy, uintptr_t dx, uintptr_t dweight,
               int threads) {
                fastrl::norm_rows_gradient(n, pointer<const void>(dy), pointer<void>(dx),
                                           pointer<void>(dweight), threads);
            },
            released());
    m.def("rotate_rows", &rotate_rows, released());
    py::class_<fastrl::SwigluRows>(m, "SwigluRows")
        .def(py::init(&swiglu_rows))
        .def(
            "forward",
            [](const fastrl::SwigluRows& s, uintptr_t out, int threads) {
                fastrl::swiglu_rows(s, pointer<void>(out), threads);
            },
            released())
        .def(
            "backward",
            [](const fastrl::SwigluRows& s, uintptr_t dout, uintptr_t dgate_up, int threads) {
                fastrl::swiglu_rows_gradient(s, pointer<const void>(dout), pointer<void>(dgate_up),
                                             threads);
            },
            released());
    py::class_<fastrl::Families>(m, "Families")
        .def(py::init([](uintptr_t offsets, uintptr_t prefixes, int64_t count) {
            return fastrl::Families(pointer<const int32_t>(offsets),
                                    pointer<const int64_t>(prefixes), count);
        }));
    py::class_<fastrl::PackedAttention>(m, "PackedAttention")
        .def(py::init(&packed_attention))
        .def(
            "forward",
            [](const fastrl::PackedAttention& a, const fastrl::Families& families, int threads) {
                fastrl::packed_attention(a, families, threads);
            },
            released())
        .def(
            "backward",
            [](const fastrl::PackedAttention& a, const fastrl::Families& families, uintptr_t dout,
               uintptr_t dq, uintptr_t dk, uintptr_t dv, int threads) {
                fastrl::packed_attention_gradient(a,
                                                  {pointer<const void>(dout), pointer<void>(dq),
                                                   pointer<void>(dk), pointer<void>(dv)},
                                                  families, threads);
            },
            released());
    py::class_<fastrl::Logits>(m, "Logits").def(py::init(&logits));
    m.def("row_statistics", &row_statistics, released());
    m.def("row_gradient", &row_gradient, released());
    m.def("policy_loss", &policy_loss, released());
    m.def("sample", &sample, released());
    m.def("advise_large_pages", [](uintptr_t memory, int64_t bytes) {
        fastrl::advise_large_pages(pointer<void>(memory), bytes);
    });
    m.def("instruction_set", [] { return fastrl::instruction_set().name; });
    m.def("use_instruction_set", &fastrl::use_instruction_set);
}
