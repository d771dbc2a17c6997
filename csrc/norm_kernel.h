// The RMSNorm of `dense.h` and `paged_attention.h`, and rows from one dtype to another, on the
// including file's instruction set.
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

// x as Out; after its RMSNorm with the weights `norm`, where they are given, rounded to T once.
template <typename T, typename Out>
void copy_normed(const T* x, const T* norm, float eps, int64_t width, Out* out) {
    const float scale = norm ? inverse_rms(x, width, eps) : 1.0f;
    const auto step = [&](const T* from, const T* weight, Out* to) {
        Floats values = load(from);
        if (weight) values = rounded_to(T{}, values * scale * load(weight));
        store(to, values);
    };
    int64_t i = 0;
    for (; i + WIDTH <= width; i += WIDTH) step(x + i, norm ? norm + i : nullptr, out + i);
    if (const int64_t left = width - i; left > 0) {
        T from[WIDTH] = {}, weight[WIDTH] = {};
        Out to[WIDTH];
        std::memcpy(from, x + i, left * sizeof(T));
        if (norm) std::memcpy(weight, norm + i, left * sizeof(T));
        step(from, norm ? weight : nullptr, to);
        std::memcpy(out + i, to, left * sizeof(Out));
    }
}

}  // namespace fastrl::FASTRL_ISA
