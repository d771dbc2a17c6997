// Log-probs, entropies and policy-gradient losses of rows of logits, and their gradients.
//
// A row of logits x with target y: z = softcap(logit_scale x) / T, m = max z, l = sum e^(z-m),
// w = sum e^(z-m) (z-m); log-prob = z_y - m - log l, entropy H = log l - w / l. With a = dL/dlogprob
// and g = dL/dH: dL/dz_j = a (1[j=y] - p_j) - g p_j (log p_j + H).
// A row is read once for the statistics; its gradient reads it again while the caches hold it.
#pragma once

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FASTRL_X86_SETS 1
#else
#define FASTRL_X86_SETS 0
#endif

namespace fastrl {

enum class DType : int32_t { f32, bf16, f16 };

struct Logits {
    const void* data;
    DType dtype;
    int64_t stride;              // elements from a row to the next
    int64_t rows, valid, vocab;  // columns from `valid` on take no part; their gradient is 0
    const int64_t* targets;      // in 0..valid-1 where unmasked
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
};

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

// Asks for large pages under fresh memory: 25,000 page faults of 4 KiB cost more than the kernel that
// fills 100 MB. Does nothing where the system has no such request.
void advise_large_pages(void* memory, int64_t bytes);

// The instruction set in use: "avx512", "avx2" or "plain".
const char* instruction_set();

// Another one, for tests; false where this processor or this build lacks it.
bool use_instruction_set(const char* name);

// One row on one instruction set.
struct RowFunctions {
    const char* name;
    RowStatistics (*statistics)(const Logits&, int64_t row, const Extras&);
    void (*gradient)(const Logits&, int64_t row, const RowStatistics&, double a, double g,
                     void* out);
};

extern const RowFunctions plain_rows;
extern const RowFunctions avx2_rows;
extern const RowFunctions avx512_rows;

}  // namespace fastrl
