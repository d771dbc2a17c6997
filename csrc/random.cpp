#include "random.h"

#include "clones.h"
#include "parallel.h"

namespace fastrl {

namespace {

inline void multiply(uint32_t a, uint32_t b, uint32_t& high, uint32_t& low) {
    const uint64_t product = static_cast<uint64_t>(a) * b;
    high = static_cast<uint32_t>(product >> 32);
    low = static_cast<uint32_t>(product);
}

inline Counter rounds(Counter c, uint32_t key0, uint32_t key1) {
    for (int round = 0; round < 10; ++round) {
        uint32_t high0, low0, high1, low1;
        multiply(0xD2511F53u, c.c0, high0, low0);
        multiply(0xCD9E8D57u, c.c2, high1, low1);
        c = {high1 ^ c.c1 ^ key0, low1, high0 ^ c.c3 ^ key1, low0};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return c;
}

inline float uniform(uint32_t word) {
    return (static_cast<float>(word >> 9) + 0.5f) * 0x1p-23f;
}

FASTRL_CLONES
void fill_row(uint32_t c0, uint32_t draw, uint32_t c2, uint32_t c3, uint32_t key0, uint32_t key1,
              int64_t vocab, float* out) {
    const int64_t whole = vocab / 4;
    for (int64_t block = 0; block < whole; ++block) {
        const uint32_t c1 = static_cast<uint32_t>(block) << 14 | draw;
        const Counter words = rounds({c0, c1, c2, c3}, key0, key1);
        out[4 * block] = uniform(words.c0);
        out[4 * block + 1] = uniform(words.c1);
        out[4 * block + 2] = uniform(words.c2);
        out[4 * block + 3] = uniform(words.c3);
    }
    if (vocab % 4 != 0) {
        const uint32_t c1 = static_cast<uint32_t>(whole) << 14 | draw;
        const Counter words = rounds({c0, c1, c2, c3}, key0, key1);
        const uint32_t rest[4] = {words.c0, words.c1, words.c2, words.c3};
        for (int64_t v = 4 * whole; v < vocab; ++v) out[v] = uniform(rest[v & 3]);
    }
}

}  // namespace

Counter philox(Counter counter, uint32_t key0, uint32_t key1) {
    return rounds(counter, key0, key1);
}

void fill_uniforms(const uint32_t* c0, const uint32_t* draw, const uint32_t* c2, uint32_t c3,
                   uint32_t key0, uint32_t key1, int64_t rows, int64_t vocab, float* uniforms,
                   int threads) {
    const bool large = rows * vocab > 1 << 16;
    parallel_for(rows, large ? threads : 1, [=](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
            fill_row(c0[row], draw[row], c2[row], c3, key0, key1, vocab, uniforms + row * vocab);
    });
}

}  // namespace fastrl
