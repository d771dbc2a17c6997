// The functions of `dense.h` on the including file's instruction set.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "dense.h"
#include "norm_kernel.h"

namespace fastrl::FASTRL_ISA {

// As many sums as find registers: TILE results of VECTORS times WIDTH rows.
constexpr int VECTORS = WIDTH == 16 ? 2 : 3;
constexpr int GROUP = WIDTH == 16 ? 3 : 2;  // rows of weights behind one address
constexpr int GROUPS = WIDTH == 16 ? 4 : 2;
constexpr int TILE = GROUP * GROUPS;
constexpr int PANEL = VECTORS * WIDTH;
constexpr int64_t TERMS = 128;  // of a sum before it is added to the others, for the rounding

// Words of a row of x in a panel: numbers in fp32, or pairs in bf16.
template <typename T>
int64_t words_of(const Dense& d) {
    return PAIRS ? d.width_in * static_cast<int64_t>(sizeof(T)) / 4 : d.width_in;
}

// WIDTH rows of words, lane i of `panel` from row i.
FASTRL_INLINE void interleave(const uint32_t* const (&rows)[WIDTH], int64_t words,
                              uint32_t* panel) {
    int64_t k = 0;
    for (; k + WIDTH <= words; k += WIDTH) {
        Ints block[WIDTH];
#pragma GCC unroll 16
        for (int i = 0; i < WIDTH; ++i) std::memcpy(&block[i], rows[i] + k, sizeof(Ints));
        transpose(block);
#pragma GCC unroll 16
        for (int i = 0; i < WIDTH; ++i)
            std::memcpy(panel + (k + i) * PANEL, &block[i], sizeof(Ints));
    }
    for (; k < words; ++k)
        for (int i = 0; i < WIDTH; ++i)  // rows of halves need not lie on whole words
            std::memcpy(panel + k * PANEL + i, rows[i] + k, sizeof(uint32_t));
}

template <typename T, typename Packed>
void pack(const Dense& d, int64_t first_row, int64_t rows, uint32_t* panel) {
    thread_local std::vector<uint32_t> memory;
    const int64_t words = d.width_in * static_cast<int64_t>(sizeof(Packed)) / 4;
    memory.resize((WIDTH + 1) * words);
    uint32_t* zeros = memory.data() + WIDTH * words;
    std::fill(zeros, zeros + words, 0);
    for (int64_t first = 0; first < rows; first += WIDTH) {
        const uint32_t* sources[WIDTH];
        for (int i = 0; i < WIDTH; ++i) {
            const int64_t row = first + i;
            if (row >= rows) {
                sources[i] = zeros;
                continue;
            }
            const T* x = static_cast<const T*>(d.x) + (first_row + row) * d.x_stride;
            if (std::is_same_v<T, Packed> && d.norm == nullptr) {
                sources[i] = reinterpret_cast<const uint32_t*>(x);
                continue;
            }
            uint32_t* prepared = memory.data() + i * words;
            copy_normed(x, static_cast<const T*>(d.norm), d.eps, d.width_in,
                        reinterpret_cast<Packed*>(prepared));
            sources[i] = prepared;
        }
        interleave(sources, words, panel + first);
    }
}

// Results with the numbers of the residual at the same places added.
FASTRL_INLINE Ints plus_residual(float, Ints sums, Ints residual) {
    return as_ints(as_floats(residual) + as_floats(sums));
}
FASTRL_INLINE Ints plus_residual(BFloat16, Ints sums, Ints residual) {
    return pairs_of(first_of(residual) + first_of(sums), second_of(residual) + second_of(sums));
}

// The results of a tile from its sums [RESULTS][PANEL]: bias, gate, residual, rounding; of `rows`
// rows from `row` on. Lanes are rows until the end, so that all of them are at work.
template <int RESULTS, typename T, typename Out, bool GATED>
FASTRL_INLINE void finish_as(const Dense& d, const float (*sums)[PANEL], int64_t row, int64_t rows,
                             int64_t column) {
    constexpr int KEPT = GATED ? RESULTS / 2 : RESULTS;
    constexpr int WORDS = KEPT * static_cast<int>(sizeof(Out)) / 4;
    constexpr int BLOCKS = (WORDS + WIDTH - 1) / WIDTH;
    const T* bias = static_cast<const T*>(d.bias);
    const auto biased = [&](int i, int64_t first, int64_t at) {
        const Floats value = load(sums[i] + first);
        if (!bias) return value;
        T number[WIDTH] = {bias[at]};
        return value + load(number)[0];
    };
    const auto result = [&](int i, int64_t first) {
        const Floats value = biased(i, first, column + i);
        if (!GATED) return value;
        const Floats other = biased(KEPT + i, first, d.width_out / 2 + column + i);
        return rounded_to(T{}, silu(rounded_to(T{}, value))) * rounded_to(T{}, other);
    };
    for (int64_t first = 0; first < rows; first += WIDTH) {
        Ints words[BLOCKS][WIDTH];
        for (int i = WORDS; i < BLOCKS * WIDTH; ++i) words[i / WIDTH][i % WIDTH] = Ints{};
        for (int i = 0; i < WORDS; ++i) {
            Ints& word = words[i / WIDTH][i % WIDTH];
            if constexpr (sizeof(Out) == 4)
                word = as_ints(result(i, first));
            else
                word = pairs_of(result(2 * i, first), result(2 * i + 1, first));
        }
#pragma GCC unroll 2
        for (int block = 0; block < BLOCKS; ++block) transpose(words[block]);
        const int64_t count = std::min<int64_t>(WIDTH, rows - first);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t at = row + first + i;
            Out* out = static_cast<Out*>(d.out) + at * d.out_stride + column;
            const T* residual =
                d.residual ? static_cast<const T*>(d.residual) + at * d.residual_stride + column
                           : nullptr;
#pragma GCC unroll 2
            for (int block = 0; block < BLOCKS; ++block) {
                constexpr int LAST = (WORDS - 1) % WIDTH + 1;
                const size_t bytes = 4 * (block < BLOCKS - 1 ? WIDTH : LAST);
                constexpr int NUMBERS = WIDTH * 4 / sizeof(Out);
                Ints values = words[block][i];
                if (residual) {
                    Ints others = {};
                    std::memcpy(&others, residual + block * NUMBERS, bytes);
                    values = plus_residual(T{}, values, others);
                }
                std::memcpy(out + block * NUMBERS, &values, bytes);
            }
        }
    }
}

template <int RESULTS, typename T>
FASTRL_INLINE void finish(const Dense& d, const float (*sums)[PANEL], int64_t row, int64_t rows,
                          int64_t column) {
    const bool wide = d.out_dtype == DType::f32;
    if (d.gated)  // never wide
        finish_as<RESULTS, T, T, true>(d, sums, row, rows, column);
    else if (wide)
        finish_as<RESULTS, T, float, false>(d, sums, row, rows, column);
    else
        finish_as<RESULTS, T, T, false>(d, sums, row, rows, column);
}

// Weights that come next, which are asked for while others are multiplied: `ahead` of them, one row
// in `parts` from the row `part` on, so that memory has as long as all panels of x take.
struct Next {
    int64_t ahead, part, parts;
};

// The columns from `column` on of those rows, a line of the cache each.
template <typename T>
FASTRL_INLINE void ask_for(const T* const (&groups)[GROUPS], int64_t stride, const Next& next,
                           int64_t column) {
    for (int64_t i = next.part; i < TILE; i += next.parts)
        __builtin_prefetch(groups[i / GROUP] + next.ahead + i % GROUP * stride + column);
}

// sums[i] += weight row i times the panel, columns [first, last). Rows of the weight lie `stride`
// apart behind the address of each group.
template <int V>
FASTRL_INLINE void accumulate(const float* const (&groups)[GROUPS], int64_t stride,
                              const Next& next, const uint32_t* panel, int64_t first, int64_t last,
                              Floats (&sums)[TILE][V]) {
    constexpr int LINE = 16;  // numbers
    for (int64_t begin = first; begin < last; begin += LINE) {
        const int64_t end = std::min(last, begin + LINE);
        ask_for(groups, stride, next, begin);
        for (int64_t k = begin; k < end; ++k) {
            Floats x[V];
#pragma GCC unroll 3
            for (int v = 0; v < V; ++v)
                x[v] = load(reinterpret_cast<const float*>(panel) + k * PANEL + v * WIDTH);
#pragma GCC unroll 12
            for (int i = 0; i < TILE; ++i) {
                const Floats weight = splat(groups[i / GROUP][i % GROUP * stride + k]);
#pragma GCC unroll 3
                for (int v = 0; v < V; ++v) sums[i][v] += weight * x[v];
            }
        }
    }
}

template <int V>
FASTRL_INLINE void accumulate(const BFloat16* const (&groups)[GROUPS], int64_t stride,
                              const Next& next, const uint32_t* panel, int64_t first, int64_t last,
                              Floats (&sums)[TILE][V]) {
    constexpr int LINE = 32;  // numbers
    for (int64_t begin = first; begin < last; begin += LINE) {
        const int64_t end = std::min(last, begin + LINE);
        ask_for(groups, stride, next, begin);
        for (int64_t k = begin; k < end; k += 2) {
            constexpr int X = PAIRS ? V : 2 * V;
            const uint32_t* words = panel + (PAIRS ? k / 2 : k) * PANEL;
            Ints x[X];
#pragma GCC unroll 6
            for (int v = 0; v < X; ++v)
                std::memcpy(&x[v], words + v / V * PANEL + v % V * WIDTH, sizeof(Ints));
#pragma GCC unroll 12
            for (int i = 0; i < TILE; ++i) {
                int32_t pair;
                std::memcpy(&pair, groups[i / GROUP] + i % GROUP * stride + k, sizeof pair);
                const Ints weights = pair + Ints{};
#pragma GCC unroll 3
                for (int v = 0; v < V; ++v) {
#if defined(FASTRL_DOT_BF16)
                    sums[i][v] = (Floats)_mm512_dpbf16_ps((__m512)sums[i][v], (__m512bh)weights,
                                                          (__m512bh)x[v]);
#else
                    sums[i][v] += first_of(weights) * as_floats(x[v]);
                    sums[i][v] += second_of(weights) * as_floats(x[V + v]);
#endif
                }
            }
        }
    }
}

template <int V, typename T>
void multiply_tile(const Dense& d, const T* const (&groups)[GROUPS], const Next& next,
                   const uint32_t* panel, int64_t row, int64_t rows, int64_t column) {
    alignas(64) float stored[TILE][PANEL];
    for (int64_t begin = 0; begin < d.width_in; begin += TERMS) {
        const int64_t end = std::min(d.width_in, begin + TERMS);
        Floats sums[TILE][V] = {};
        accumulate<V>(groups, d.width_in, next, panel, begin, end, sums);
#pragma GCC unroll 12
        for (int i = 0; i < TILE; ++i)
#pragma GCC unroll 3
            for (int v = 0; v < V; ++v) {
                float* to = stored[i] + v * WIDTH;
                store(to, begin == 0 ? sums[i][v] : load(to) + sums[i][v]);
            }
    }
    finish<TILE, T>(d, stored, row, rows, column);
}

template <typename T>
void multiply(const Dense& d, const uint32_t* panels, int64_t first_row, int64_t rows,
              int64_t begin, int64_t end) {
    const int64_t words = words_of<T>(d) * PANEL;
    const int64_t results = d.gated ? TILE / 2 : TILE;
    const int64_t width = d.gated ? d.width_out / 2 : d.width_out;
    const T* weight = static_cast<const T*>(d.weight);
    for (int64_t column = begin; column < end; column += results) {
        // the last tile of all begins earlier, and computes some results a second time
        const int64_t first = std::min(column, width - results);
        const T* groups[GROUPS];
        for (int g = 0; g < GROUPS; ++g) {
            const int64_t i = g * GROUP;
            const int64_t at = i < results ? first + i : width + first + i - results;
            groups[g] = weight + at * d.width_in;
        }
        const int64_t ahead = (std::min(column + results, width - results) - first) * d.width_in;
        for (int64_t row = 0; row < rows; row += PANEL) {
            const int64_t count = std::min<int64_t>(PANEL, rows - row);
            const uint32_t* panel = panels + row / PANEL * words;
            const Next next{ahead, row / PANEL, (rows + PANEL - 1) / PANEL};
            if (count > 2 * WIDTH)
                multiply_tile<VECTORS>(d, groups, next, panel, first_row + row, count, first);
            else if (count > WIDTH)
                multiply_tile<2>(d, groups, next, panel, first_row + row, count, first);
            else
                multiply_tile<1>(d, groups, next, panel, first_row + row, count, first);
        }
    }
}

template <typename T>
constexpr DenseFunctions dense_of = {PANEL, TILE, words_of<T>,
                                     pack<T, std::conditional_t<PAIRS, T, float>>, multiply<T>};

}  // namespace fastrl::FASTRL_ISA
