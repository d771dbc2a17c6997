// What the fuzz targets of the kernels share: shapes and numbers from a fuzzer's bytes, tensors
// that have not a byte more than they need, and comparisons.
#pragma once

#undef NDEBUG
#include <sanitizer/asan_interface.h>

#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#include "../../csrc/instruction_sets.h"

namespace fastrl::fuzz {

constexpr float INFINITE = std::numeric_limits<float>::infinity();
constexpr float NOT_A_NUMBER = std::numeric_limits<float>::quiet_NaN();

// tame: multiples of 1/32 in -4..4, which every dtype holds, so that a definition in fp64 is near;
// finite: of any size, subnormal ones among them; any: also infinities and NaN.
enum class Numbers { tame, finite, any };

// Choices from a fuzzer's bytes; after the last of them from a hash of all, so that a few bytes
// make large inputs.
class Source {
public:
    Source(const uint8_t* data, size_t size) : next_(data), end_(data + size) {
        for (const uint8_t* byte = data; byte < end_; ++byte)
            state_ = (state_ ^ *byte) * 0x100000001b3;
    }

    // From `least` to `most`.
    int64_t integer(int64_t least, int64_t most) {
        const uint32_t many = most - least > 255 ? word() : byte();
        return least + many % static_cast<uint64_t>(most - least + 1);
    }
    // Once in `times`.
    bool once_in(int64_t times) { return integer(1, times) == times; }
    template <typename T>
    T one_of(std::initializer_list<T> values) {
        return values.begin()[integer(0, static_cast<int64_t>(values.size()) - 1)];
    }
    uint32_t word() {
        uint32_t bytes = 0;
        for (int i = 0; i < 4; ++i) bytes = bytes << 8 | byte();
        return bytes;
    }
    float number(Numbers numbers) {
        const uint8_t kind = numbers == Numbers::tame ? 0 : byte();
        if (kind < 128) return static_cast<int8_t>(byte()) / 32.0f;
        if (kind > 250 && numbers == Numbers::any)
            return one_of({NOT_A_NUMBER, INFINITE, -INFINITE});
        uint32_t bits = word();
        if ((bits >> 23 & 255) == 255) bits ^= 1u << 30;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }
    // 1/16 to 4.
    float positive() { return static_cast<float>(integer(1, 64)) / 16; }
    Numbers numbers() { return one_of({Numbers::tame, Numbers::finite, Numbers::any}); }

private:
    const uint8_t *next_, *end_;
    uint64_t state_ = 0xcbf29ce484222325;

    uint8_t byte() {
        if (next_ < end_) return *next_++;
        state_ = state_ * 6364136223846793005 + 1442695040888963407;
        return static_cast<uint8_t>(state_ >> 56);
    }
};

// fp16 towards zero, never from a finite number to an infinity; and back.
inline uint16_t to_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000, mantissa = bits & 0x7fffff;
    const int exponent = static_cast<int>(bits >> 23 & 255) - 112;
    if (exponent == 143) return static_cast<uint16_t>(sign | 0x7c00 | (mantissa ? 0x200 : 0));
    if (exponent > 30) return static_cast<uint16_t>(sign | 0x7bff);
    if (exponent > 0) return static_cast<uint16_t>(sign | exponent << 10 | mantissa >> 13);
    const uint32_t shifted = exponent < -10 ? 0 : (mantissa | 1 << 23) >> (14 - exponent);
    return static_cast<uint16_t>(sign | shifted);
}

inline float from_half(uint16_t half) {
    const int exponent = half >> 10 & 31, mantissa = half & 1023;
    const float size = exponent == 31  ? (mantissa ? NOT_A_NUMBER : INFINITE)
                       : exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                       : std::ldexp(1024.0f + mantissa, exponent - 25);
    return half & 0x8000 ? -size : size;
}

// Rows of numbers some way apart, in memory that ends with the last of them. All bytes are 255 at
// first, a NaN in every dtype.
class Tensor {
public:
    const DType dtype;
    const int64_t rows, width, stride;

    Tensor(DType dtype_, int64_t rows_, int64_t width_, int64_t stride_)
        : dtype(dtype_),
          rows(rows_),
          width(width_),
          stride(stride_),
          numbers_(rows ? (rows - 1) * stride + width : 0),
          memory_(static_cast<uint8_t*>(std::malloc(numbers_ * bytes()))) {
        std::memset(memory_.get(), 255, numbers_ * bytes());
    }
    Tensor(DType dtype_, int64_t rows_, int64_t width_) : Tensor(dtype_, rows_, width_, width_) {}

    int64_t bytes() const { return dtype == DType::f32 ? 4 : 2; }
    void* data() const { return memory_.get(); }
    void* row(int64_t row) const { return place(row, 0); }
    template <typename T = float>
    T* as() const {
        return reinterpret_cast<T*>(memory_.get());
    }
    float at(int64_t row, int64_t column) const {
        const uint8_t* from = place(row, column);
        if (dtype == DType::f32) {
            float value;
            std::memcpy(&value, from, sizeof value);
            return value;
        }
        uint16_t half;
        std::memcpy(&half, from, sizeof half);
        if (dtype == DType::f16) return from_half(half);
        const uint32_t bits = static_cast<uint32_t>(half) << 16;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }
    void set(int64_t row, int64_t column, float value) {
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        const uint16_t half =
            dtype == DType::f16 ? to_half(value) : static_cast<uint16_t>(bits >> 16);
        if (dtype == DType::f32)
            std::memcpy(place(row, column), &value, sizeof value);
        else
            std::memcpy(place(row, column), &half, sizeof half);
    }
    void fill(int64_t row, Source& source, Numbers numbers) {
        for (int64_t i = 0; i < width; ++i) set(row, i, source.number(numbers));
    }
    void fill(Source& source, Numbers numbers) {
        for (int64_t row = 0; row < rows; ++row) fill(row, source, numbers);
    }
    Tensor copy() const {
        Tensor other(dtype, rows, width, stride);
        std::memcpy(other.data(), data(), numbers_ * bytes());
        return other;
    }
    // From here on a read or write of these numbers is an error.
    void forbid(int64_t row, int64_t column, int64_t count) const {
        __asan_poison_memory_region(place(row, column), count * bytes());
    }
    void allow() const { __asan_unpoison_memory_region(data(), numbers_ * bytes()); }
    // Whether nothing was written between the rows.
    bool is_whole() const {
        for (int64_t row = 0; row + 1 < rows; ++row)
            for (const uint8_t* byte = place(row, width); byte < place(row + 1, 0); ++byte)
                if (*byte != 255) return false;
        return true;
    }
    bool is_zero(int64_t row, int64_t first = 0) const {
        for (int64_t i = first; i < width; ++i)
            if (at(row, i) != 0) return false;
        return true;
    }

private:
    struct Free {
        void operator()(uint8_t* memory) const { std::free(memory); }
    };
    int64_t numbers_;
    std::unique_ptr<uint8_t, Free> memory_;

    uint8_t* place(int64_t row, int64_t column) const {
        return memory_.get() + (row * stride + column) * bytes();
    }
};

// Rows of drawn numbers, up to 5 of others between them.
inline Tensor drawn_apart(Source& source, DType dtype, int64_t rows, int64_t width,
                          Numbers numbers) {
    Tensor made(dtype, rows, width, width + source.integer(0, 5));
    made.fill(source, numbers);
    return made;
}

inline Tensor drawn(Source& source, DType dtype, int64_t rows, int64_t width, Numbers numbers) {
    Tensor made(dtype, rows, width);
    made.fill(source, numbers);
    return made;
}

inline Tensor floats(int64_t count) { return {DType::f32, 1, count}; }

// An array that is exactly as large as it must be.
template <typename T>
class Array {
public:
    explicit Array(int64_t count) : memory_(static_cast<T*>(std::malloc(count * sizeof(T)))) {}
    T* data() const { return memory_.get(); }
    T& operator[](int64_t i) const { return memory_.get()[i]; }

private:
    struct Free {
        void operator()(T* memory) const { std::free(memory); }
    };
    std::unique_ptr<T, Free> memory_;
};

// The same number, or both a NaN.
inline bool same(float a, float b) { return a == b || (a != a && b != b); }

inline bool same_row(const Tensor& a, int64_t row, const Tensor& b, int64_t other) {
    for (int64_t i = 0; i < a.width; ++i)
        if (!same(a.at(row, i), b.at(other, i))) return false;
    return true;
}

inline bool same(const Tensor& a, const Tensor& b) {
    for (int64_t row = 0; row < a.rows; ++row)
        if (!same_row(a, row, b, row)) return false;
    return true;
}

// Roundings to a dtype, of numbers up to `size`: what a result of a few of them may be off.
inline double rounding(DType dtype, double size) {
    const double one = dtype == DType::f32 ? 0x1p-24 : dtype == DType::bf16 ? 0x1p-8 : 0x1p-10;
    return one * std::abs(size) + 1e-6;
}

// Whether it is within `tolerance` of a finite number.
inline bool near(float got, double wanted, double tolerance) {
    return std::abs(got - wanted) <= tolerance;
}

// body() on a thread of its own: memory that threads keep is as large as this call alone asks for.
template <typename Body>
void afresh(const Body& body) {
    std::thread(body).join();
}

// One of the instruction sets that run here is in use from here on.
inline void draw_set(Source& source) {
    while (!use_instruction_set(source.one_of({"plain", "avx2", "avx512", "avx512_bf16", "amx"}))) {
    }
}

}  // namespace fastrl::fuzz
