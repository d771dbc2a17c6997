// Python bindings of fastrl._C, and nothing else.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string_view>
#include <vector>

#include "grading.h"
#include "paged_attention.h"
#include "random.h"

namespace py = pybind11;
using fastrl::PagedAttention;

namespace {

using Words = py::array_t<uint32_t, py::array::c_style>;

py::array_t<float> uniforms(const Words& c0, const Words& draw, const Words& c2, uint32_t c3,
                            uint32_t key0, uint32_t key1, int64_t vocab, int threads) {
    const int64_t rows = c0.size();
    py::array_t<float> out({rows, vocab});
    const uint32_t *c0_data = c0.data(), *draw_data = draw.data(), *c2_data = c2.data();
    float* out_data = out.mutable_data();
    py::gil_scoped_release released;
    fastrl::fill_uniforms(c0_data, draw_data, c2_data, c3, key0, key1, rows, vocab, out_data,
                          threads);
    return out;
}

py::tuple philox(py::tuple counter, uint32_t key0, uint32_t key1) {
    const fastrl::Counter c = fastrl::philox(
        {counter[0].cast<uint32_t>(), counter[1].cast<uint32_t>(), counter[2].cast<uint32_t>(),
         counter[3].cast<uint32_t>()},
        key0, key1);
    return py::make_tuple(c.c0, c.c1, c.c2, c.c3);
}

// Tensors come as addresses; the caller checks dtypes, shapes and contiguity.
void paged_attention(uintptr_t q, uintptr_t k_cache, uintptr_t v_cache, uintptr_t out,
                     uintptr_t tables, uintptr_t row_table, uintptr_t context, int64_t table_stride,
                     int64_t rows, int64_t heads, int64_t kv_heads, int64_t dim, int64_t block_size,
                     float scale, int threads) {
    const PagedAttention arguments{reinterpret_cast<const float*>(q),
                                   reinterpret_cast<const float*>(k_cache),
                                   reinterpret_cast<const float*>(v_cache),
                                   reinterpret_cast<float*>(out),
                                   reinterpret_cast<const int32_t*>(tables),
                                   reinterpret_cast<const int32_t*>(row_table),
                                   reinterpret_cast<const int32_t*>(context),
                                   table_stride,
                                   rows,
                                   heads,
                                   kv_heads,
                                   dim,
                                   block_size,
                                   scale};
    fastrl::paged_attention(arguments, threads);
}

std::vector<std::string_view> views(const std::vector<py::bytes>& texts) {
    std::vector<std::string_view> found(texts.size());
    for (size_t i = 0; i < texts.size(); ++i) found[i] = texts[i];
    return found;
}

// One (reason, begin, end) a completion.
py::array_t<int64_t> grade(const std::vector<py::bytes>& completions,
                           const std::vector<py::bytes>& golds, bool is_answer,
                           int64_t budget_ops, int threads) {
    const auto texts = views(completions), wanted = views(golds);
    std::vector<fastrl::Verdict> verdicts(texts.size());
    {
        py::gil_scoped_release released;
        fastrl::grade_all(texts, wanted, is_answer, budget_ops, threads, verdicts.data());
    }
    py::array_t<int64_t> out({static_cast<py::ssize_t>(texts.size()), py::ssize_t{3}});
    auto cells = out.mutable_unchecked<2>();
    for (size_t i = 0; i < verdicts.size(); ++i) {
        cells(i, 0) = static_cast<int64_t>(verdicts[i].reason);
        cells(i, 1) = verdicts[i].begin;
        cells(i, 2) = verdicts[i].end;
    }
    return out;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "fastrl's C++: grading, random numbers, attention over the paged cache";
    m.def("grade", &grade);
    m.def("uniforms", &uniforms);
    m.def("philox", &philox);
    m.def("paged_attention", &paged_attention, py::call_guard<py::gil_scoped_release>());
}
