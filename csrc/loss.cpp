#include "loss.h"

#include <cmath>
#include <cstring>

#include "instruction_sets.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastrl {

namespace {

int64_t element_bytes(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

// The gradient of a row, or its zeros.
void write_gradient(const RowFunctions& functions, const Logits& logits, int64_t row,
                    const RowStatistics* found, double a, double g, void* out, int64_t stride) {
    const int64_t bytes = element_bytes(logits.dtype);
    char* target = static_cast<char*>(out) + row * stride * bytes;
    if (found == nullptr || (a == 0 && g == 0))
        std::memset(target, 0, logits.vocab * bytes);
    else
        functions.gradient(logits, row, *found, a, g, target);
}

struct Coefficients {
    double loss, a, g;
};

Coefficients coefficients(const PolicyRows& rows, const LossSettings& settings, int64_t row,
                          double logprob, double entropy) {
    const double advantage = rows.advantages[row];
    const double old = rows.old_logprobs ? rows.old_logprobs[row] : logprob;
    double loss = -advantage * logprob, a = -advantage;
    if (settings.loss != Loss::reinforce) {
        const double log_ratio = logprob - old;
        const bool both = settings.loss == Loss::cispo;
        double bounded = log_ratio;  // comparisons that a NaN survives
        if ((both || advantage < 0) && bounded < settings.low) bounded = settings.low;
        const double high = both || !(advantage < 0) ? settings.high : settings.dual;
        if (bounded > high) bounded = high;
        a = -advantage * std::exp(bounded);
        loss = both ? a * logprob : a;
        // a bound has no gradient where it is the loss itself
        if (!both && (bounded < log_ratio || bounded > log_ratio)) a = 0.0;
    }
    if (settings.correction != Correction::none) {
        double weight = std::exp(old - rows.sampler_logprobs[row]);
        if (weight > settings.cap)
            weight = settings.correction == Correction::truncate ? settings.cap : 0.0;
        loss *= weight, a *= weight;
    }
    const double weight = rows.weights ? rows.weights[row] : 1.0;
    double g = 0.0;
    if (settings.entropy_coef != 0) {
        loss -= settings.entropy_coef * entropy;
        g = -settings.entropy_coef * weight;
    }
    return {loss * weight, a * weight, g};
}

}  // namespace

void row_statistics(const Logits& logits, float* logprobs, float* entropy, const Extras& extras,
                    int threads) {
    const RowFunctions& functions = *instruction_set().rows;
    for_rows(logits, threads, [&](int64_t row) {
        if (counts(logits, row)) {
            const RowStatistics found = functions.statistics(logits, row, extras);
            logprobs[row] = static_cast<float>(found.logprob);
            entropy[row] = static_cast<float>(found.entropy);
        } else {
            logprobs[row] = entropy[row] = 0.0f;
            if (extras.sum_squares) extras.sum_squares[row] = 0.0f;
            if (extras.max_prob) extras.max_prob[row] = 0.0f;
            if (extras.log_kept_mass) extras.log_kept_mass[row] = 0.0f;
            if (extras.argmax) extras.argmax[row] = -1;
        }
    });
}

void row_gradient(const Logits& logits, const float* a, const float* g, void* out,
                  int64_t out_stride, int threads) {
    const RowFunctions& functions = *instruction_set().rows;
    for_rows(logits, threads, [&](int64_t row) {
        if (counts(logits, row) && (a[row] != 0 || g[row] != 0)) {
            const RowStatistics found = functions.statistics(logits, row, {});
            write_gradient(functions, logits, row, &found, a[row], g[row], out, out_stride);
        } else {
            write_gradient(functions, logits, row, nullptr, 0, 0, out, out_stride);
        }
    });
}

void policy_loss(const Logits& logits, const PolicyRows& rows, const LossSettings& settings,
                 float* losses, float* logprobs, float* entropy, void* out, int64_t out_stride,
                 int threads) {
    const RowFunctions& functions = *instruction_set().rows;
    for_rows(logits, threads, [&](int64_t row) {
        if (!counts(logits, row)) {
            losses[row] = logprobs[row] = entropy[row] = 0.0f;
            if (out) write_gradient(functions, logits, row, nullptr, 0, 0, out, out_stride);
            return;
        }
        const RowStatistics found = functions.statistics(logits, row, {});
        logprobs[row] = static_cast<float>(found.logprob);
        entropy[row] = static_cast<float>(found.entropy);
        // from the rounded log-prob: a ratio to an old_logprob of the same bits is exactly 1
        const Coefficients c = coefficients(rows, settings, row, logprobs[row], entropy[row]);
        losses[row] = static_cast<float>(c.loss);
        if (out)
            write_gradient(functions, logits, row, &found, c.a * settings.scale,
                           c.g * settings.scale, out, out_stride);
    });
}

void advise_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__)
    constexpr uintptr_t PAGE = 1 << 21;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + PAGE - 1) / PAGE * PAGE;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / PAGE * PAGE;
    // a refusal leaves small pages, which work as well
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

}  // namespace fastrl
