// WIDTH floats at a time in the compiler's vector types, for the file's instruction set: loads and
// stores of three dtypes, 2^t and tanh. The including file defines FASTRL_ISA, FASTRL_WIDTH and,
// where it has them, FASTRL_AVX2 or FASTRL_AVX512, and FASTRL_DOT_BF16 for products of pairs in
// bf16: `#pragma GCC target` sets gcc's own macros only from version 13 on.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace fastrl::FASTRL_ISA {

#define FASTRL_INLINE inline __attribute__((always_inline))

constexpr int WIDTH = FASTRL_WIDTH;
using Floats = float __attribute__((vector_size(4 * WIDTH)));
using Ints = int32_t __attribute__((vector_size(4 * WIDTH)));
using Words = uint32_t __attribute__((vector_size(4 * WIDTH)));
using Halves = uint16_t __attribute__((vector_size(2 * WIDTH)));

#if defined(FASTRL_DOT_BF16)
constexpr bool PAIRS = true;  // of numbers in bf16: multiplied as they are
#else
constexpr bool PAIRS = false;  // widened to fp32
#endif

struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

FASTRL_INLINE Floats splat(float value) { return value - Floats{}; }

FASTRL_INLINE Floats as_floats(Ints bits) {
    Floats floats;
    std::memcpy(&floats, &bits, sizeof floats);
    return floats;
}

FASTRL_INLINE Ints as_ints(Floats floats) {
    Ints bits;
    std::memcpy(&bits, &floats, sizeof bits);
    return bits;
}

FASTRL_INLINE Ints widen(const void* source) {
#if defined(FASTRL_AVX512)  // gcc makes three instructions of the conversion
    return (Ints)_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(source)));
#else
    Halves halves;
    std::memcpy(&halves, source, sizeof halves);
    return __builtin_convertvector(halves, Ints);
#endif
}

FASTRL_INLINE void narrow(Ints values, void* target) {
#if defined(FASTRL_AVX512)
    _mm256_storeu_si256(static_cast<__m256i*>(target), _mm512_cvtepi32_epi16((__m512i)values));
#else
    const Halves halves = __builtin_convertvector(values, Halves);
    std::memcpy(target, &halves, sizeof halves);
#endif
}

FASTRL_INLINE Floats load(const float* source) {
    Floats values;
    std::memcpy(&values, source, sizeof values);
    return values;
}

FASTRL_INLINE Floats load(const BFloat16* source) { return as_floats(widen(source) << 16); }

FASTRL_INLINE Floats load(const Float16* source) {
#if defined(FASTRL_AVX512)
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
#elif defined(FASTRL_AVX2)
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
#else
    const Ints bits = widen(source), magnitude = (bits & 0x7fff) << 13;
    // 2^112 moves the exponent's bias from 15 to 127 and makes subnormal numbers normal
    const Floats moved = as_floats(magnitude) * 0x1p112f;
    const Ints special = magnitude | 0x7f800000;  // infinity, NaN
    const Ints finite = magnitude < (0x7c00 << 13);
    return as_floats(((finite & as_ints(moved)) | (~finite & special)) | (bits & 0x8000) << 16);
#endif
}

FASTRL_INLINE void store(float* target, Floats values) {
    std::memcpy(target, &values, sizeof values);
}

// The first numbers of a row of less than WIDTH of them, zeros after them, and back.
template <typename T>
FASTRL_INLINE Floats load_some(const T* source, int64_t count) {
#if defined(FASTRL_AVX512)
    const __mmask16 some = static_cast<__mmask16>((1u << count) - 1);
    if constexpr (sizeof(T) == 4) return (Floats)_mm512_maskz_loadu_ps(some, source);
#endif
    T numbers[WIDTH] = {};
    std::memcpy(numbers, source, count * sizeof(T));
    return load(numbers);
}

template <typename T>
FASTRL_INLINE void store_some(T* target, Floats values, int64_t count) {
#if defined(FASTRL_AVX512)
    const __mmask16 some = static_cast<__mmask16>((1u << count) - 1);
    if constexpr (sizeof(T) == 4) return _mm512_mask_storeu_ps(target, some, (__m512)values);
#endif
    T numbers[WIDTH];
    store(numbers, values);
    std::memcpy(target, numbers, count * sizeof(T));
}

// The upper halves are the values rounded to bf16, the lower ones 0; a NaN stays one. The
// instruction takes subnormal numbers for 0.
FASTRL_INLINE Ints round_bf16(Floats values) {
#if defined(FASTRL_DOT_BF16)
    const __m256i halves = (__m256i)_mm512_cvtneps_pbh((__m512)values);
    return (Ints)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
#else
    const Words bits = (Words)as_ints(values);
    const Ints rounded = (Ints)(bits + 0x7fff + ((bits >> 16) & 1)), number = values == values;
    return ((number & rounded) | (~number & 0x7fc00000)) & static_cast<int32_t>(0xffff0000);
#endif
}

// Rounds to nearest, ties to even, as the hardware does.
FASTRL_INLINE void store(BFloat16* target, Floats values) {
    narrow((Ints)((Words)round_bf16(values) >> 16), target);
}

FASTRL_INLINE void store(Float16* target, Floats values) {
#if defined(FASTRL_AVX512)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), _mm512_cvtps_ph(values, 0));
#elif defined(FASTRL_AVX2)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target), _mm256_cvtps_ph(values, 0));
#else
    const Ints bits = as_ints(values), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    // normal in fp16: round away 13 bits of mantissa; below 2^-14 an addition aligns the bits
    const Ints normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112 << 23)) >> 13;
    const Ints subnormal = as_ints(as_floats(magnitude) + 0.5f) - 0x3f000000;
    const Ints is_normal = magnitude >= (113 << 23), is_large = magnitude >= 0x477ff000;
    const Ints is_nan = magnitude > 0x7f800000;
    Ints half = (is_normal & normal) | (~is_normal & subnormal);
    half = (~is_large & half) | (is_large & 0x7c00) | (is_nan & 0x200);
    narrow(half | sign, target);
#endif
}

// What a value becomes by being stored as T and loaded again.
FASTRL_INLINE Floats rounded_to(float, Floats values) { return values; }
FASTRL_INLINE Floats rounded_to(BFloat16, Floats values) { return as_floats(round_bf16(values)); }

// Lanes of two vectors (a, b): a's where the bit STEP is 0 and b's from STEP lanes before where it
// is 1; and the others.
template <int STEP>
struct Lanes {
    int32_t low[WIDTH] = {}, high[WIDTH] = {};

    constexpr Lanes() {
        for (int lane = 0; lane < WIDTH; ++lane) {
            low[lane] = lane & STEP ? WIDTH + lane - STEP : lane;
            high[lane] = lane & STEP ? WIDTH + lane : lane + STEP;
        }
    }
};

// Pairs of numbers in bf16 a word: the first, in the lower half, and the second.
FASTRL_INLINE Floats first_of(Ints pairs) { return as_floats((Ints)((Words)pairs << 16)); }
FASTRL_INLINE Floats second_of(Ints pairs) {
    return as_floats(pairs & static_cast<int32_t>(0xffff0000));
}

// Two numbers in bf16 a word, the first in its lower half.
FASTRL_INLINE Ints pairs_of(Floats low, Floats high) {
#if defined(FASTRL_DOT_BF16)
    // all of `low`, then all of `high`
    const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    static constexpr struct Order {
        int16_t lanes[2 * WIDTH] = {};
        constexpr Order() {
            for (int i = 0; i < 2 * WIDTH; ++i)
                lanes[i] = static_cast<int16_t>(i / 2 + i % 2 * WIDTH);
        }
    } order;
    return (Ints)_mm512_permutexvar_epi16(_mm512_loadu_si512(order.lanes), halves);
#else
    return (Ints)((Words)round_bf16(low) >> 16) | round_bf16(high);
#endif
}

#if defined(__clang__)  // it lacks gcc's function of this name, and makes one instruction of this
FASTRL_INLINE Ints shuffle(Ints a, Ints b, Ints lanes) {
    Ints chosen;
    for (int i = 0; i < WIDTH; ++i)
        chosen[i] = lanes[i] < WIDTH ? a[lanes[i]] : b[lanes[i] - WIDTH];
    return chosen;
}
FASTRL_INLINE Ints shuffle(Ints a, Ints lanes) { return shuffle(a, a, lanes); }
#else
FASTRL_INLINE Ints shuffle(Ints a, Ints b, Ints lanes) { return __builtin_shuffle(a, b, lanes); }
FASTRL_INLINE Ints shuffle(Ints a, Ints lanes) { return __builtin_shuffle(a, lanes); }
#endif

// rows[i][j] and rows[j][i] change places.
template <int STEP = 1>
FASTRL_INLINE void transpose(Ints (&rows)[WIDTH]) {
    if constexpr (STEP < WIDTH) {
        static constexpr Lanes<STEP> lanes;
        Ints low, high;
        std::memcpy(&low, lanes.low, sizeof low);
        std::memcpy(&high, lanes.high, sizeof high);
#pragma GCC unroll 16
        for (int i = 0; i < WIDTH; ++i)
            if (!(i & STEP)) {
                const Ints a = rows[i], b = rows[i | STEP];
                rows[i] = shuffle(a, b, low);
                rows[i | STEP] = shuffle(a, b, high);
            }
        transpose<2 * STEP>(rows);
    }
}

FASTRL_INLINE Floats larger(Floats a, Floats b) {
#if defined(FASTRL_AVX512)  // gcc makes a comparison and a choice of the other
    return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return a > b ? a : b;
#endif
}

FASTRL_INLINE float largest(Floats values) {
    // halves against each other, through the lanes' order
    alignas(4 * WIDTH) static constexpr struct Turns {
        int32_t lanes[4][WIDTH] = {};
        constexpr Turns() {
            for (int turn = 0; turn < 4; ++turn)
                for (int i = 0; i < WIDTH; ++i) lanes[turn][i] = (i + (1 << turn)) % WIDTH;
        }
    } turns;
#pragma GCC unroll 4
    for (int turn = 0; 1 << turn < WIDTH; ++turn) {
        Ints lanes;
        std::memcpy(&lanes, turns.lanes[turn], sizeof lanes);
        values = larger(values, (Floats)shuffle((Ints)values, lanes));
    }
    return values[0];
}

FASTRL_INLINE double total(Floats values) {
#if defined(FASTRL_AVX512)  // the same sums without the way through memory
    const __m256 eight =
        _mm512_castps512_ps256((__m512)values) + _mm512_extractf32x8_ps((__m512)values, 1);
    const __m128 four = _mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1);
    const __m128 two = four + _mm_movehl_ps(four, four);
    return two[0] + two[1];
#endif
    float halves[WIDTH];
    std::memcpy(halves, &values, sizeof halves);
    for (int half = WIDTH / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) halves[i] += halves[i + half];
    return halves[0];
}

// The sum of all lanes of several vectors, in double: of what a peaked row adds up, 1 and little
// beside it, each addition in float leaves an ulp of 1 behind.
template <int COUNT>
FASTRL_INLINE double wide_total(const Floats (&values)[COUNT]) {
    using Doubles = double __attribute__((vector_size(8 * WIDTH)));
    Doubles lanes{};
    for (const Floats& some : values) lanes += __builtin_convertvector(some, Doubles);
#pragma GCC unroll 4
    for (int half = WIDTH / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

// 2^t for -127 <= t <= 0.5, to 1.6e-8 and the rounding; exactly 0 at -127 and exactly 1 at 0.
// A NaN may give anything. The polynomial is the minimax of 2^f on [-1/2, 1/2] with 2^0 = 1.
FASTRL_INLINE Floats exp2(Floats t) {
    constexpr float shift = 0x1.8p23f;  // adding it rounds to an integer, in the low bits
    const Floats shifted = t + shift, f = t - (shifted - shift);
    Floats p = splat(0.00015353361959569156f);
    p = p * f + 0.0013398873852565885f;
    p = p * f + 0.00961843691766262f;
    p = p * f + 0.055503323674201965f;
    p = p * f + 0.24022647738456726f;
    p = p * f + 0.6931471824645996f;
    p = p * f + 1.0f;
    // without a sign: with a NaN the sum overflows
    return as_floats((Ints)((Words)as_ints(p) + ((Words)as_ints(shifted) << 23)));
}

// 2^t for t <= 0, or a little more, 0 below -126; a NaN stays one.
FASTRL_INLINE Floats exp2_of_negative(Floats t) {
    const Floats value = exp2(t < -126.0f ? splat(-127.0f) : t);
    return t == t ? value : t;
}

// e^t for t <= 0, with a relative error of |t| 2^-24 and the rounding, 0 below -87; a NaN stays
// one.
FASTRL_INLINE Floats exp_of_negative(Floats t) { return exp2_of_negative(t * 1.4426950408889634f); }

// 1 / (1 + e^-x); a NaN stays one.
FASTRL_INLINE Floats sigmoid(Floats x) {
    const Floats e = exp_of_negative(x < 0.0f ? x : -x);
    const Floats value = (x < 0.0f ? e : splat(1.0f)) / (1.0f + e);
    return x == x ? value : x;
}

FASTRL_INLINE Floats silu(Floats x) { return x * sigmoid(x); }

// To 2 units in the last place. The polynomial is the minimax of tanh(u) / u on [0, 0.6].
FASTRL_INLINE Floats tanh(Floats u) {
    const Floats size = as_floats(as_ints(u) & 0x7fffffff), square = u * u;
    Floats p = splat(-0.005895158741623163f);
    p = p * square + 0.020795971155166626f;
    p = p * square - 0.053783830255270004f;
    p = p * square + 0.13331924378871918f;
    p = p * square - 0.33333298563957214f;
    const Floats small = u + u * (square * p);
    const Floats power = size * -2.8853900817779268f;  // -2 log2(e) |u|
    const Floats e = exp2(power < -126.0f ? splat(-126.0f) : power);
    const Floats large = as_floats(as_ints((1.0f - e) / (1.0f + e)) | (as_ints(u) & INT32_MIN));
    const Floats result = size < 0.6f ? small : large;
    return u == u ? result : u;
}

}  // namespace fastrl::FASTRL_ISA
