// A layer's matrix products over the few rows of a sampler's step, with what stands around them:
// out = norm(x) weight^T + bias, then SwiGLU or a residual.
//
// The weight is read where the trainer has it, [width_out, width_in], once for all rows; x is laid
// out anew, so that a register holds one column of many rows (or pairs of columns in bf16).
// Floor: the larger of the weight's bytes over the bandwidth and 2 rows width_in width_out
// operations over the rate of multiply-adds. A result is the sum over width_in in one order,
// whatever the other rows, the number of rows and of threads.
#pragma once

#include <cstdint>

#include "rows.h"
#include "team.h"

namespace fastrl {

struct Dense {
    DType dtype;      // fp32 or bf16, of everything but `out`
    DType out_dtype;  // `dtype`, or fp32 without gates and residual
    const void* x;    // [rows, width_in]
    int64_t x_stride;
    const void* norm;  // [width_in], the weight of an RMSNorm of x; null: none
    float eps;
    const void* weight;    // [width_out, width_in], contiguous; gated: gates, then as many others
    const void* bias;      // [width_out], or null
    const void* residual;  // [rows, width_out], added last; or null
    int64_t residual_stride;
    void* out;  // [rows, width_out]; gated: half as wide, silu(gate) * other
    int64_t out_stride;
    int64_t rows, width_in, width_out;
    bool gated;
};

// What the kernels take: the rest is the caller's to compute.
inline bool dense_fits(DType dtype, int64_t width_in, int64_t width_out, bool gated) {
    constexpr int64_t TILE = 12;  // results; the largest of the sets
    return (gated ? width_out / 2 : width_out) >= TILE &&
           (dtype == DType::f32 || (dtype == DType::bf16 && width_in % 2 == 0));
}

// Results are rounded to `dtype` where torch's operations would round.
void dense(const Dense& d, int threads);

// The same as loops of a region that others share; `panels` has `panel_words(d)` words, aligned to
// 64 bytes, and `d` lives until the region has run.
void add_dense(Phases& phases, const Dense& d, uint32_t* panels, int threads);
int64_t panel_words(const Dense& d);

// `words` words aligned to 64 bytes, kept by the calling thread from call to call.
uint32_t* kept_words(int64_t words);

// How one instruction set does it. A panel is `panel` rows of x, packed into 32-bit words [words of
// a row][panel].
struct DenseFunctions {
    int64_t panel;
    int64_t tile;  // results of a row that are computed together, the gates among them
    int64_t (*words)(const Dense&);
    void (*pack)(const Dense&, int64_t first_row, int64_t rows, uint32_t* panel);
    // The results [first_row, first_row + rows) x [begin, end) from packed rows, and perhaps some
    // on either side: the same bits that another thread writes there.
    void (*multiply)(const Dense&, const uint32_t* panels, int64_t first_row, int64_t rows,
                     int64_t begin, int64_t end);
};

}  // namespace fastrl
