// A token from each row of logits: the temperature, top-k, top-p, min-p, then the Gumbel maximum.
//
// The filters keep a prefix of the columns in the order of falling logits, equal ones by their ids.
// The token is the kept column with the largest log2 p - log2(-log2 u). Its uniform u is
// ((word >> 9) + 0.5) / 2^23 of word v & 3 of Philox4x32-10 (Salmon et al. 2011) at the counter
// {c0, v >> 2 << 14 | c1, c2, c3}. A row is read once for its statistics and again, from the
// caches, for what the filters keep and for the maximum; nothing is sorted but what may be kept.
#pragma once

#include <cstdint>

#include "rows.h"

namespace fastrl {

// One number a row each.
struct Filters {
    const int32_t* top_k;  // 0: no limit
    const float* top_p;    // 1: no limit
    const float* min_p;    // 0: no limit
};

// `tokens` are -1, with NaN, where a row holds a NaN, an infinity or nothing finite. `logprobs` are
// under the full distribution; `log_kept_mass` is the log of its mass that the filters kept.
void sample(const Logits& logits, const Filters& filters, const Noise& noise, int64_t* tokens,
            float* logprobs, float* log_kept_mass, int threads);

}  // namespace fastrl
