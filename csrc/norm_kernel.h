// The RMSNorm of `dense.h` and `paged_attention.h` on the including file's instruction set.
#pragma once

#include <cmath>
#include <cstring>

#include "vectors.h"

namespace fastrl::FASTRL_ISA {

// 1 / sqrt(mean x^2 + eps) (Zhang and Sennrich 2019).
template <typename T>
float inverse_rms(const T* x, int64_t width, float eps) {
    Floats squares[2] = {};
    int64_t i = 0;
    for (; i + 2 * WIDTH <= width; i += 2 * WIDTH)
        for (int v = 0; v < 2; ++v) {
            const Floats values = load(x + i + v * WIDTH);
            squares[v] += values * values;
        }
    T rest[2 * WIDTH] = {};
    std::memcpy(rest, x + i, (width - i) * sizeof(T));
    for (int v = 0; v < 2; ++v) {
        const Floats values = load(rest + v * WIDTH);
        squares[v] += values * values;
    }
    const double mean = total(squares[0] + squares[1]) / static_cast<double>(width);
    return static_cast<float>(1.0 / std::sqrt(mean + static_cast<double>(eps)));
}

}  // namespace fastrl::FASTRL_ISA
