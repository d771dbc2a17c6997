// What a layer of the decoder does to each row between its matrix products, with gradients:
// RMSNorm, rotary embedding, SwiGLU. Floor: one read of every input and one write of every output.
//
// Arithmetic is in fp32, and rounded to the dtype where torch's operations would round. A result
// does not depend on the number of threads.
#pragma once

#include <cstdint>

#include "rows.h"

namespace fastrl {

// y = x / rms(x) * weight (Zhang and Sennrich 2019), of x [rows, width], contiguous, fp32 or bf16.
struct NormRows {
    DType dtype;
    const void* x;
    const void* weight;  // [width]
    float eps;
    int64_t rows, width;
    float* scales;  // [rows], 1 / rms(x): written forward, read backward
};

void norm_rows(const NormRows& n, void* y, int threads);
// dL/dx and dL/dweight [width] from dL/dy.
void norm_rows_gradient(const NormRows& n, const void* dy, void* dx, void* dweight, int threads);

// Heads turned by the angles of their row (Su et al. 2021; halves as in GPT-NeoX), or back.
struct RotateRows {
    DType dtype;
    const void* x;  // [rows, heads, dim], rows x_stride numbers apart
    int64_t x_stride;
    const float* cos;  // [rows, dim / 2]
    const float* sin;
    int64_t rows, heads, dim;
    bool back;  // the other way round: the gradient
};

void rotate_rows(const RotateRows& r, void* out, int threads);  // contiguous

// silu(gate) * up (Shazeer 2020), of gate_up [rows, 2 width], gates first: [rows, width].
struct SwigluRows {
    DType dtype;
    const void* gate_up;
    int64_t rows, width;
};

void swiglu_rows(const SwigluRows& s, void* out, int threads);
void swiglu_rows_gradient(const SwigluRows& s, const void* dout, void* dgate_up, int threads);

// How one instruction set does it, for the rows [begin, end).
struct LayerRowFunctions {
    void (*norm)(const NormRows&, int64_t begin, int64_t end, void* y);
    // sums over those rows are written to `dweight` [width]
    void (*norm_gradient)(const NormRows&, int64_t begin, int64_t end, const void* dy, void* dx,
                          float* dweight);
    void (*round)(DType, const float* values, int64_t count, void* out);
    void (*rotate)(const RotateRows&, int64_t begin, int64_t end, void* out);
    void (*swiglu)(const SwigluRows&, int64_t begin, int64_t end, void* out);
    void (*swiglu_gradient)(const SwigluRows&, int64_t begin, int64_t end, const void* dout,
                            void* dgate_up);
};

}  // namespace fastrl
