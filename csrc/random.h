// Philox4x32-10 (Salmon et al. 2011): random numbers that are a function of a counter and a key.
#pragma once

#include <cstdint>

namespace fastrl {

struct Counter {
    uint32_t c0, c1, c2, c3;
};

// Four random words of one counter.
Counter philox(Counter counter, uint32_t key0, uint32_t key1);

// uniforms[row, v] for v < vocab: word v & 3 of the counter {c0[row], (v >> 2) << 14 | draw[row],
// c2[row], c3}, as ((word >> 9) + 0.5) / 2^23, which float holds exactly.
void fill_uniforms(const uint32_t* c0, const uint32_t* draw, const uint32_t* c2, uint32_t c3,
                   uint32_t key0, uint32_t key1, int64_t rows, int64_t vocab, float* uniforms,
                   int threads);

}  // namespace fastrl
