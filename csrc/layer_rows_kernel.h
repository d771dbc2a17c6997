// The functions of `layer_rows.h` on the including file's instruction set.
#pragma once

#include "layer_rows.h"
#include "norm_kernel.h"

namespace fastrl::FASTRL_ISA {

template <typename T>
void norm_of(const NormRows& n, int64_t begin, int64_t end, void* y) {
    const T* weight = static_cast<const T*>(n.weight);
    for (int64_t row = begin; row < end; ++row) {
        const T* x = static_cast<const T*>(n.x) + row * n.width;
        T* out = static_cast<T*>(y) + row * n.width;
        n.scales[row] = inverse_rms(x, n.width, n.eps);
        copy_scaled(x, n.scales[row], weight, n.width, out);
    }
}

// With z = x s and s = 1 / rms: dx = s (dy w - z mean(dy w z)), dw = sum of dy z over rows.
template <typename T>
void norm_gradient_of(const NormRows& n, int64_t begin, int64_t end, const void* dy, void* dx,
                      float* dweight) {
    const T* weight = static_cast<const T*>(n.weight);
    for (int64_t row = begin; row < end; ++row) {
        const T* x = static_cast<const T*>(n.x) + row * n.width;
        const T* up = static_cast<const T*>(dy) + row * n.width;
        T* out = static_cast<T*>(dx) + row * n.width;
        const float scale = n.scales[row];
        Floats along = {};
        by_vectors(n.width, [&](int64_t i, const auto& get, const auto& put) {
            const Floats z = get(x + i) * scale, d = get(up + i);
            along += d * get(weight + i) * z;
            put(dweight + i, get(static_cast<const float*>(dweight + i)) + d * z);
        });
        const float mean = static_cast<float>(total(along) / static_cast<double>(n.width));
        by_vectors(n.width, [&](int64_t i, const auto& get, const auto& put) {
            const Floats z = get(x + i) * scale;
            put(out + i, (get(up + i) * get(weight + i) - z * mean) * scale);
        });
    }
}

template <typename T>
void rotate_of(const RotateRows& r, int64_t begin, int64_t end, void* target) {
    const int64_t half = r.dim / 2;
    for (int64_t row = begin; row < end; ++row)
        for (int64_t head = 0; head < r.heads; ++head)
            turn(static_cast<const T*>(r.x) + row * r.x_stride + head * r.dim, r.cos + row * half,
                 r.sin + row * half, r.back ? -1.0f : 1.0f, r.dim,
                 static_cast<T*>(target) + (row * r.heads + head) * r.dim);
}

template <typename T>
void swiglu_of(const SwigluRows& s, int64_t begin, int64_t end, void* target) {
    for (int64_t row = begin; row < end; ++row) {
        const T* gates = static_cast<const T*>(s.gate_up) + row * 2 * s.width;
        T* out = static_cast<T*>(target) + row * s.width;
        by_vectors(s.width, [&](int64_t i, const auto& get, const auto& put) {
            const Floats gate = get(gates + i);
            put(out + i, rounded_to(T{}, silu(gate)) * get(gates + s.width + i));
        });
    }
}

template <typename T>
void swiglu_gradient_of(const SwigluRows& s, int64_t begin, int64_t end, const void* dout,
                        void* target) {
    for (int64_t row = begin; row < end; ++row) {
        const T* gates = static_cast<const T*>(s.gate_up) + row * 2 * s.width;
        const T* upstream = static_cast<const T*>(dout) + row * s.width;
        T* out = static_cast<T*>(target) + row * 2 * s.width;
        by_vectors(s.width, [&](int64_t i, const auto& get, const auto& put) {
            const Floats gate = get(gates + i), d = get(upstream + i), share = sigmoid(gate);
            const Floats slope = share * (1.0f + gate * (1.0f - share));  // of silu
            put(out + i, d * get(gates + s.width + i) * slope);
            put(out + s.width + i, d * rounded_to(T{}, gate * share));
        });
    }
}

inline void norm(const NormRows& n, int64_t begin, int64_t end, void* y) {
    n.dtype == DType::bf16 ? norm_of<BFloat16>(n, begin, end, y) : norm_of<float>(n, begin, end, y);
}
inline void norm_gradient(const NormRows& n, int64_t begin, int64_t end, const void* dy, void* dx,
                          float* dweight) {
    if (n.dtype == DType::bf16)
        norm_gradient_of<BFloat16>(n, begin, end, dy, dx, dweight);
    else
        norm_gradient_of<float>(n, begin, end, dy, dx, dweight);
}
inline void round(DType dtype, const float* values, int64_t count, void* out) {
    if (dtype == DType::bf16)
        store_numbers(static_cast<BFloat16*>(out), values, count);
    else
        store_numbers(static_cast<float*>(out), values, count);
}
inline void rotate(const RotateRows& r, int64_t begin, int64_t end, void* out) {
    if (r.dtype == DType::bf16)
        rotate_of<BFloat16>(r, begin, end, out);
    else
        rotate_of<float>(r, begin, end, out);
}
inline void swiglu(const SwigluRows& s, int64_t begin, int64_t end, void* out) {
    if (s.dtype == DType::bf16)
        swiglu_of<BFloat16>(s, begin, end, out);
    else
        swiglu_of<float>(s, begin, end, out);
}
inline void swiglu_gradient(const SwigluRows& s, int64_t begin, int64_t end, const void* dout,
                            void* dgate_up) {
    if (s.dtype == DType::bf16)
        swiglu_gradient_of<BFloat16>(s, begin, end, dout, dgate_up);
    else
        swiglu_gradient_of<float>(s, begin, end, dout, dgate_up);
}

constexpr LayerRowFunctions layer_rows = {norm,   norm_gradient, round,
                                          rotate, swiglu,        swiglu_gradient};

}  // namespace fastrl::FASTRL_ISA
