// The RMSNorm of `dense.h`, `paged_attention.h` and `layer_rows.h`, the rotation of heads, and rows
// from one dtype to another, on the including file's instruction set.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

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

// step(offset, load, store) over a row: whole vectors, then what is left, zeros after it.
template <typename Step>
FASTRL_INLINE void by_vectors(int64_t width, const Step& step) {
    const auto whole = [](const auto* from) { return load(from); };
    const auto put = [](auto* to, Floats values) { store(to, values); };
    int64_t i = 0;
    for (; i + WIDTH <= width; i += WIDTH) step(i, whole, put);
    const int64_t left = width - i;
    if (left == 0) return;
    step(
        i, [left](const auto* from) { return load_some(from, left); },
        [left](auto* to, Floats values) { store_some(to, values, left); });
}

// x scaled and weighted, rounded to T once, as Out; without a weight as it is.
template <typename T, typename Out>
FASTRL_INLINE void copy_scaled(const T* x, float scale, const T* weight, int64_t width, Out* out) {
    by_vectors(width, [&](int64_t i, const auto& get, const auto& put) {
        Floats values = get(x + i);
        if (weight) values = rounded_to(T{}, values * scale * get(weight + i));
        put(out + i, values);
    });
}

// x as Out; after its RMSNorm with the weights `norm`, where they are given, rounded to T once.
template <typename T, typename Out>
void copy_normed(const T* x, const T* norm, float eps, int64_t width, Out* out) {
    copy_scaled(x, norm ? inverse_rms(x, width, eps) : 1.0f, norm, width, out);
}

template <typename T>
FASTRL_INLINE void store_numbers(T* target, const float* values, int64_t count) {
    copy_normed<float>(values, nullptr, 0.0f, count, target);
}

// A head turned by the angles of its row (Su et al. 2021; halves as in GPT-NeoX), with `sign` -1
// back; `out` may be the head.
template <typename T>
FASTRL_INLINE void turn(const T* x, const float* cos, const float* sin, float sign, int64_t dim,
                        T* out) {
    const int64_t half = dim / 2;
    by_vectors(half, [&](int64_t i, const auto& get, const auto& put) {
        const Floats first = get(x + i), second = get(x + half + i);
        const Floats c = get(cos + i), s = get(sin + i) * sign;
        put(out + i, first * c - second * s);
        put(out + half + i, second * c + first * s);
    });
}

// A head in fp32: after its RMSNorm, where it has one, and the rotation by the row's angles, where
// there is one.
template <typename T>
FASTRL_INLINE void prepare_head(const T* head, const T* norm, float eps, const float* cos,
                                const float* sin, int64_t dim, float* out) {
    copy_normed(head, norm, eps, dim, out);
    if (cos != nullptr) turn(out, cos, sin, 1.0f, dim, out);
}

}  // namespace fastrl::FASTRL_ISA
