// Rows of logits: what is computed of each on the instruction set in use, and the loop over them.
//
// A row of logits x with target y: z = softcap(logit_scale x) / T, m = max z, l = sum e^(z-m),
// w = sum e^(z-m) (z-m); log-prob = z_y - m - log l, entropy H = log l - w / l. With a =
// dL/dlogprob and g = dL/dH: dL/dz_j = a (1[j=y] - p_j) - g p_j (log p_j + H). A row is read once
// for the statistics; its gradient reads it again while the caches hold it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "team.h"

namespace fastrl {

enum class DType : int32_t { f32, bf16, f16 };

struct Logits {
    const void* data;
    DType dtype;
    int64_t stride;              // elements from a row to the next
    int64_t rows, valid, vocab;  // columns from `valid` on take no part; their gradient is 0
    const int64_t* targets;      // in 0..valid-1 where unmasked; null: no log-prob is asked for
    const bool* mask;            // null: every row; a masked row is never read, its results are 0
    const float* temperatures;   // one a row, or null
    float temperature;
    float softcap;  // 0: none
    float logit_scale;
};

// More of a row from the same read; a null pointer leaves its number out.
struct Extras {
    float* sum_squares;       // sum p^2
    float* max_prob;          // the largest p
    int64_t* argmax;          // the first column that has it; -1 where the row holds a NaN
    const float* thresholds;  // the support is softcap(logit_scale x) >= threshold
    float* log_kept_mass;     // log of the mass of that support
};

struct RowStatistics {
    double logprob, entropy, log_sum;  // log_sum: log l
    double inverse_sum;                // 1 / l
    float peak;                        // the largest softcap(logit_scale x)
    float factor;                      // e^(z / T) / e^(peak / T) = 2^((z - peak) factor)
};

// Where the random numbers of rows come from; `sample.h` has their layout.
struct Noise {
    const int64_t* counters;  // c0, c1, c2, c3 of each row, 32 bits each
    uint32_t key0, key1;
};

// Columns of a row: how many, and their sum of e^(z - m).
struct Above {
    static constexpr int THRESHOLDS = 4;
    int64_t count;
    double mass;
};

// A column that the filters may keep. Of two, the one with the larger `order` comes first.
struct Candidate {
    static constexpr int64_t count = 1;
    uint64_t order;
    float mass;  // e^(z - m)

    explicit Candidate(uint64_t order_ = 0) : order(order_), mass(0) {}
    Candidate(float z, int64_t column, float mass_) : mass(mass_) {
        const float zero_once = z + 0.0f;  // not -0
        uint32_t bits;
        std::memcpy(&bits, &zero_once, sizeof bits);
        bits ^= bits >> 31 ? 0xffffffffu : 0x80000000u;
        order = static_cast<uint64_t>(bits) << 32 | (0xffffffffu - static_cast<uint32_t>(column));
    }

    float value() const {
        uint32_t bits = static_cast<uint32_t>(order >> 32);
        bits ^= bits >> 31 ? 0x80000000u : 0xffffffffu;
        float z;
        std::memcpy(&z, &bits, sizeof z);
        return z;
    }
    int64_t column() const { return 0xffffffffu - static_cast<uint32_t>(order); }
};

// What filters keep: the columns above `least`, and those equal to it up to the column `last`.
struct Kept {
    float least;
    int64_t last;
    double log_mass;
};

struct Drawn {
    int64_t token;
    double logprob;
};

inline bool counts(const Logits& logits, int64_t row) { return !logits.mask || logits.mask[row]; }

// One row on one instruction set.
struct RowFunctions {
    RowStatistics (*statistics)(const Logits&, int64_t row, const Extras&);
    void (*gradient)(const Logits&, int64_t row, const RowStatistics&, double a, double g,
                     void* out);
    // What lies at or above each of some falling thresholds of z.
    void (*above)(const Logits&, int64_t row, const RowStatistics&, const float* thresholds,
                  Above* out);
    // The columns with low <= z < high, in the order of their ids; their number.
    int64_t (*collect)(const Logits&, int64_t row, const RowStatistics&, float low, float high,
                       Candidate* out);
    Drawn (*draw)(const Logits&, int64_t row, const RowStatistics&, const Noise&, const Kept&);
};

// body(row) for every row; which thread takes a row never changes what the row gets.
template <typename Body>
void for_rows(const Logits& logits, int threads, const Body& body) {
    constexpr int64_t SMALL = 1 << 15;  // logits: fewer are not worth a thread
    const int64_t useful = 1 + logits.rows * logits.valid / SMALL;
    const int64_t workers = std::min<int64_t>(threads, useful);
    const int64_t step = std::max<int64_t>(1, std::min(logits.rows / (8 * workers), SMALL));
    team_for(logits.rows, step, static_cast<int>(workers), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) body(row);
    });
}

}  // namespace fastrl
