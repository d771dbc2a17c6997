// Log-probs, entropies and policy-gradient losses of rows of logits, and their gradients.
#pragma once

#include <cstdint>

#include "rows.h"

namespace fastrl {

// What a loss of rows looks at; null: absent.
struct PolicyRows {
    const float* advantages;
    const float* old_logprobs;      // null: the log-probs themselves, detached
    const float* sampler_logprobs;  // null: no correction
    const float* weights;           // null: 1
};

enum class Loss : int32_t { reinforce, clip, cispo };
enum class Correction : int32_t { none, truncate, mask };

struct LossSettings {
    Loss loss;
    Correction correction;
    double low, high, dual;  // bounds of the log of the ratio
    double cap;              // of the correction
    double entropy_coef;
    double scale;  // of the loss and its gradient
};

void row_statistics(const Logits& logits, float* logprobs, float* entropy, const Extras& extras,
                    int threads);

// out[row, j] = dL/dx, in the logits' dtype; `out` may be the logits themselves. A row with
// a = g = 0 gets zeros without a look at its logits.
void row_gradient(const Logits& logits, const float* a, const float* g, void* out,
                  int64_t out_stride, int threads);

// losses[row] before the scale; the gradient where `out` is given, as in row_gradient.
void policy_loss(const Logits& logits, const PolicyRows& rows, const LossSettings& settings,
                 float* losses, float* logprobs, float* entropy, void* out, int64_t out_stride,
                 int threads);

// Asks for large pages under fresh memory: 25,000 page faults of 4 KiB cost more than the kernel
// that fills 100 MB. Does nothing where the system has no such request.
void advise_large_pages(void* memory, int64_t bytes);

}  // namespace fastrl
