#include "layer_rows.h"

#include <algorithm>
#include <vector>

#include "instruction_sets.h"
#include "team.h"

namespace fastrl {

namespace {

constexpr int64_t NUMBERS = 1 << 14;  // of a piece of work
constexpr int64_t BLOCK = 32;         // rows whose gradients of the weight are summed together

int64_t rows_of(int64_t width) {
    return std::max<int64_t>(1, NUMBERS / std::max<int64_t>(1, width));
}

const LayerRowFunctions& functions() { return *instruction_set().layer_rows; }

}  // namespace

void norm_rows(const NormRows& n, void* y, int threads) {
    team_for(n.rows, rows_of(n.width), threads,
             [&](int64_t begin, int64_t end) { functions().norm(n, begin, end, y); });
}

void norm_rows_gradient(const NormRows& n, const void* dy, void* dx, void* dweight, int threads) {
    const int64_t blocks = (n.rows + BLOCK - 1) / BLOCK;
    std::vector<float> sums(std::max<int64_t>(1, blocks) * n.width, 0.0f);
    team_for(blocks, 1, threads, [&](int64_t block, int64_t) {
        const int64_t begin = block * BLOCK;
        functions().norm_gradient(n, begin, std::min(n.rows, begin + BLOCK), dy, dx,
                                  sums.data() + block * n.width);
    });
    for (int64_t block = 1; block < blocks; ++block)
        for (int64_t i = 0; i < n.width; ++i) sums[i] += sums[block * n.width + i];
    functions().round(n.dtype, sums.data(), n.width, dweight);
}

void rotate_rows(const RotateRows& r, void* out, int threads) {
    team_for(r.rows, rows_of(r.heads * r.dim), threads,
             [&](int64_t begin, int64_t end) { functions().rotate(r, begin, end, out); });
}

void swiglu_rows(const SwigluRows& s, void* out, int threads) {
    team_for(s.rows, rows_of(s.width), threads,
             [&](int64_t begin, int64_t end) { functions().swiglu(s, begin, end, out); });
}

void swiglu_rows_gradient(const SwigluRows& s, const void* dout, void* dgate_up, int threads) {
    team_for(s.rows, rows_of(s.width), threads, [&](int64_t begin, int64_t end) {
        functions().swiglu_gradient(s, begin, end, dout, dgate_up);
    });
}

}  // namespace fastrl
