// The functions of a row on the including file's instruction set, for the dtype of the logits.
#pragma once

#include "draw_kernel.h"
#include "row_kernel.h"

namespace fastrl::FASTRL_ISA {

// body(Type<T>) for the type T of the logits.
template <typename Body>
FASTRL_INLINE auto with_type(DType dtype, const Body& body) {
    switch (dtype) {
        case DType::bf16: return body(Type<BFloat16>());
        case DType::f16: return body(Type<Float16>());
        default: return body(Type<float>());
    }
}

RowStatistics statistics(const Logits& logits, int64_t row, const Extras& extras) {
    const bool more =
        extras.sum_squares || extras.max_prob || extras.argmax || extras.log_kept_mass;
    return with_type(logits.dtype, [&](auto type) {
        return more ? statistics_of<true>(type, logits, row, extras)
                    : statistics_of<false>(type, logits, row, extras);
    });
}

void gradient(const Logits& logits, int64_t row, const RowStatistics& found, double a, double g,
              void* out) {
    with_type(logits.dtype, [&](auto type) { gradient_of(type, logits, row, found, a, g, out); });
}

void above(const Logits& logits, int64_t row, const RowStatistics& found, const float* thresholds,
           Above* out) {
    with_type(logits.dtype,
              [&](auto type) { above_of(type, logits, row, found, thresholds, out); });
}

int64_t collect(const Logits& logits, int64_t row, const RowStatistics& found, float low,
                float high, Candidate* out) {
    return with_type(logits.dtype, [&](auto type) {
        return collect_of(type, logits, row, found, low, high, out);
    });
}

Drawn draw(const Logits& logits, int64_t row, const RowStatistics& found, const Noise& noise,
           const Kept& kept) {
    return with_type(logits.dtype,
                     [&](auto type) { return draw_of(type, logits, row, found, noise, kept); });
}

constexpr RowFunctions row_functions = {statistics, gradient, above, collect, draw};

}  // namespace fastrl::FASTRL_ISA
