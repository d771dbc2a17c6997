// Products of small matrices that lie in a processor's cache, for `packed_attention_kernel.h`, on
// the including file's instruction set; with FASTRL_TILES those in bf16 by AMX's tiles.
//
// C[M, N] = or += A[M, K] B[K, N]: A in rows of factors, B in rows of words, each of which is a
// number in fp32 or, with PAIRS, numbers in bf16 of two rows below each other.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "vectors.h"

namespace fastrl::FASTRL_ISA {

// What numbers T are multiplied as.
template <typename T>
using Factor = std::conditional_t<PAIRS, T, float>;

// M, N and K of a product in T are multiples of it: 32 with tiles, else 16.
#if defined(FASTRL_TILES)
template <typename T>
constexpr int64_t WHOLE = sizeof(T) == 2 ? 32 : 16;
#else
template <typename T>
constexpr int64_t WHOLE = 16;
#endif

// sum + a b, of a word of A and some of B.
template <typename T>
FASTRL_INLINE Floats plus_product(Floats sum, const float* a, Floats b) {
#if defined(FASTRL_DOT_BF16)
    if constexpr (sizeof(T) == 2) {
        int32_t pair;
        std::memcpy(&pair, a, sizeof pair);
        return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(pair + Ints{}), (__m512bh)b);
    }
#endif
    return sum + splat(*a) * b;
}

// Rows of fp32 as factors.
template <typename F>
FASTRL_INLINE void to_rows(const float* from, int64_t stride, int64_t rows, int64_t columns, F* to,
                           int64_t to_stride) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < columns; i += WIDTH)
            store(to + r * to_stride + i, load(from + r * stride + i));
}

// Rows of fp32 as rows of words of factors F.
template <typename F>
FASTRL_INLINE void to_words(const float* from, int64_t stride, int64_t rows, int64_t columns,
                            uint32_t* to, int64_t to_stride) {
    constexpr int64_t PER = 4 / sizeof(F);
    for (int64_t r = 0; r < rows; r += PER)
        for (int64_t i = 0; i < columns; i += WIDTH) {
            const Floats low = load(from + r * stride + i);
            const Ints word =
                PER == 1 ? as_ints(low) : pairs_of(low, load(from + (r + PER - 1) * stride + i));
            std::memcpy(to + r / PER * to_stride + i, &word, sizeof word);
        }
}

// [rows, columns] as [columns, rows], both multiples of WIDTH.
FASTRL_INLINE void transpose_block(const float* from, int64_t stride, int64_t rows, int64_t columns,
                                   float* to, int64_t to_stride) {
    for (int64_t r = 0; r < rows; r += WIDTH)
        for (int64_t c = 0; c < columns; c += WIDTH) {
            Ints block[WIDTH];
#pragma GCC unroll 16
            for (int i = 0; i < WIDTH; ++i)
                std::memcpy(&block[i], from + (r + i) * stride + c, sizeof(Ints));
            transpose(block);
#pragma GCC unroll 16
            for (int i = 0; i < WIDTH; ++i)
                std::memcpy(to + (c + i) * to_stride + r, &block[i], sizeof(Ints));
        }
}

// ROWS rows of A, V vectors of B.
template <typename T, bool ADD, int ROWS, int V>
FASTRL_INLINE void products_of_rows(const float* a, int64_t a_words, const float* b,
                                    int64_t b_words, float* c, int64_t c_stride, int64_t words) {
    Floats sums[ROWS][V] = {};
    for (int64_t k = 0; k < words; ++k) {
        Floats x[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) x[v] = load(b + k * b_words + v * WIDTH);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v)
                sums[i][v] = plus_product<T>(sums[i][v], a + i * a_words + k, x[v]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            float* to = c + i * c_stride + v * WIDTH;
            // after the others, for the rounding
            store(to, ADD ? load(to) + sums[i][v] : sums[i][v]);
        }
}

#if defined(FASTRL_TILES)

constexpr int SIDE = 16;   // rows of a tile, and words of one
constexpr int DEPTH = 32;  // numbers in bf16 of a row of it

// A context in which the tiles of a thread have their shape.
struct Products {
    struct alignas(64) Config {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    Products() {
        const Config config;
        _tile_loadconfig(&config);
    }
    ~Products() { _tile_release(); }
    Products(const Products&) = delete;
};

// 32 rows of A, and 32 columns of B.
template <bool ADD>
FASTRL_INLINE void products_of_tiles(const BFloat16* a, int64_t a_stride, const uint32_t* b,
                                     int64_t b_words, float* c, int64_t c_stride, int64_t K) {
    float* below = c + SIDE * c_stride;
    if constexpr (ADD) {
        _tile_loadd(0, c, c_stride * 4);
        _tile_loadd(1, c + SIDE, c_stride * 4);
        _tile_loadd(2, below, c_stride * 4);
        _tile_loadd(3, below + SIDE, c_stride * 4);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t k = 0; k < K; k += DEPTH) {
        const uint32_t* words = b + k / 2 * b_words;
        _tile_loadd(4, a + k, a_stride * 2);
        _tile_loadd(5, a + SIDE * a_stride + k, a_stride * 2);
        _tile_loadd(6, words, b_words * 4);
        _tile_loadd(7, words + SIDE, b_words * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, c_stride * 4);
    _tile_stored(1, c + SIDE, c_stride * 4);
    _tile_stored(2, below, c_stride * 4);
    _tile_stored(3, below + SIDE, c_stride * 4);
}

#else

struct Products {
    Products() {}  // not trivial: a variable of it is no unused one
};

#endif

// V vectors of B after each other, ROWS rows of A at a time; the column after them.
template <typename T, bool ADD, int ROWS, int V>
FASTRL_INLINE int64_t products_of_vectors(const float* a, int64_t a_words, const float* b,
                                          int64_t b_words, float* c, int64_t c_stride, int64_t M,
                                          int64_t j, int64_t N, int64_t words) {
    for (; j + V * WIDTH <= N; j += V * WIDTH)
        for (int64_t i = 0; i < M; i += ROWS)
            products_of_rows<T, ADD, ROWS, V>(a + i * a_words, a_words, b + j, b_words,
                                              c + i * c_stride + j, c_stride, words);
    return j;
}

// Strides in factors, in words, and in numbers.
template <typename T, bool ADD>
void products(const Factor<T>* a, int64_t a_stride, const uint32_t* b, int64_t b_words, float* c,
              int64_t c_stride, int64_t M, int64_t N, int64_t K) {
#if defined(FASTRL_TILES)
    if constexpr (sizeof(T) == 2) {
        for (int64_t i = 0; i < M; i += 2 * SIDE)
            for (int64_t j = 0; j < N; j += 2 * SIDE)
                products_of_tiles<ADD>(a + i * a_stride, a_stride, b + j, b_words,
                                       c + i * c_stride + j, c_stride, K);
        return;
    }
#endif
    constexpr int64_t PER = 4 / sizeof(Factor<T>);
    const float *rows = reinterpret_cast<const float*>(a),
                *words = reinterpret_cast<const float*>(b);
    const int64_t a_words = a_stride / PER, terms = K / PER;
    int64_t j = 0;
    if constexpr (WIDTH == 16)
        j = products_of_vectors<T, ADD, 4, 4>(rows, a_words, words, b_words, c, c_stride, M, j, N,
                                              terms);
    j = products_of_vectors<T, ADD, 4, 2>(rows, a_words, words, b_words, c, c_stride, M, j, N,
                                          terms);
    if constexpr (WIDTH == 16)
        products_of_vectors<T, ADD, 8, 1>(rows, a_words, words, b_words, c, c_stride, M, j, N,
                                          terms);
}

}  // namespace fastrl::FASTRL_ISA
