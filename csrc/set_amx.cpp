// AMX: tiles of 16 x 32 weights in bf16 times 32 columns of 16 rows of x; all else is
// `set_avx512_bf16.cpp`'s.
#include "instruction_sets.h"

#if FASTRL_X86_SETS && __GNUC__ >= 11
#include <cpuid.h>

#include "set_headers.h"
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")
#define FASTRL_AVX512 1
#define FASTRL_DOT_BF16 1
#define FASTRL_ISA amx
#define FASTRL_WIDTH 16
#define FASTRL_TILES 1
#include "dense_kernel.h"
#include "packed_attention_kernel.h"

namespace fastrl {

namespace amx {

constexpr int RESULTS = 2 * SIDE;  // two tiles of weights, and two of x, make four of sums

template <bool TWO>
FASTRL_INLINE void multiply_tiles(const BFloat16* first, const BFloat16* second, const Next& next,
                                  int64_t width, const uint32_t* panel, float (*sums)[PANEL]) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < width; k += DEPTH) {
        const uint32_t* x = panel + k / 2 * PANEL;
        for (int64_t i = next.part; i < SIDE; i += next.parts) {
            __builtin_prefetch(first + next.ahead + i * width + k);
            __builtin_prefetch(second + next.ahead + i * width + k);
        }
        _tile_loadd(4, first + k, width * 2);
        _tile_loadd(5, second + k, width * 2);
        _tile_loadd(6, x, PANEL * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(2, 5, 6);
        if (TWO) {
            _tile_loadd(7, x + SIDE, PANEL * 4);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums[0], PANEL * 4);
    _tile_stored(2, sums[SIDE], PANEL * 4);
    if (TWO) {
        _tile_stored(1, sums[0] + SIDE, PANEL * 4);
        _tile_stored(3, sums[SIDE] + SIDE, PANEL * 4);
    }
}

// As `multiply`; other widths than of whole tiles are left to it, whose panels are the same.
void multiply_in_tiles(const Dense& d, const uint32_t* panels, int64_t first_row, int64_t rows,
                       int64_t begin, int64_t end) {
    const int64_t results = d.gated ? RESULTS / 2 : RESULTS;
    const int64_t width = d.gated ? d.width_out / 2 : d.width_out;
    if (d.width_in % DEPTH != 0 || width < results)
        return avx512_bf16_set.dense_bf16->multiply(d, panels, first_row, rows, begin, end);
    const Products tiles;
    const int64_t words = words_of<BFloat16>(d) * PANEL;
    const BFloat16* weight = static_cast<const BFloat16*>(d.weight);
    alignas(64) float sums[RESULTS][PANEL];
    for (int64_t column = begin; column < end; column += results) {
        const int64_t at = std::min(column, width - results);
        const BFloat16* first = weight + at * d.width_in;
        const BFloat16* second = first + (d.gated ? width : SIDE) * d.width_in;
        const int64_t ahead = (std::min(column + results, width - results) - at) * d.width_in;
        for (int64_t row = 0; row < rows; row += PANEL) {
            const int64_t count = std::min<int64_t>(PANEL, rows - row);
            const uint32_t* panel = panels + row / PANEL * words;
            const Next next{ahead, row / PANEL, (rows + PANEL - 1) / PANEL};
            if (count > SIDE)
                multiply_tiles<true>(first, second, next, d.width_in, panel, sums);
            else
                multiply_tiles<false>(first, second, next, d.width_in, panel, sums);
            finish<RESULTS, BFloat16>(d, sums, first_row + row, count, at);
        }
    }
}

constexpr DenseFunctions tiles = {PANEL, RESULTS, words_of<BFloat16>, pack<BFloat16, BFloat16>,
                                  multiply_in_tiles};

// Whether the processor has tiles, and the operating system saves them and lets this process.
bool allowed() {
#if defined(__linux__)
    constexpr unsigned TILE = 1u << 24, BF16 = 1u << 22;  // of leaf 7's edx
    constexpr int REQUEST = 0x1023, TILE_DATA = 18;       // arch_prctl: ARCH_REQ_XCOMP_PERM
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & TILE) == 0 || (d & BF16) == 0)
        return false;
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
    return false;
#endif
}

}  // namespace amx

const InstructionSet amx_set = {"amx",
                                avx512_set.rows,
                                avx512_set.dense,
                                &amx::tiles,
                                avx512_bf16_set.attention,
                                &amx::packed,
                                avx512_set.layer_rows,
                                [] { return avx512_bf16_set.runs_here() && amx::allowed(); }};

}  // namespace fastrl
#endif
