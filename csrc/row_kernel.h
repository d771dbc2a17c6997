// One row of logits on the including file's instruction set; it defines FASTRL_ISA, FASTRL_WIDTH.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "rows.h"
#include "vectors.h"

namespace fastrl::FASTRL_ISA {

constexpr int64_t CHUNK = 1024;  // floats: a chunk's second read comes from the first cache
constexpr int UNROLL = 4;
constexpr double LN2 = 0.6931471805599453;
constexpr float LOWEST = -127.0f;  // 2^t is 0 there

// A type as an argument.
template <typename T>
struct Type {};

// z before the temperature as a function of x, and the factor of base 2.
struct Transform {
    float factor;  // log2(e) / T
    float logit_scale, softcap;
    bool elementwise;  // false: z = x, the scale is in `factor`
    double outer;      // d(z / T) / dx without the cap's part

    explicit Transform(const Logits& logits, int64_t row)
        : logit_scale(logits.logit_scale), softcap(logits.softcap) {
        const double temperature =
            logits.temperatures ? logits.temperatures[row] : logits.temperature;
        elementwise = softcap > 0 || logit_scale <= 0;
        outer = logit_scale / temperature;
        factor = static_cast<float>((elementwise ? 1.0 : logit_scale) / (LN2 * temperature));
    }

    FASTRL_INLINE Floats operator()(Floats x) const {
        Floats z = x * logit_scale;
        if (softcap > 0) z = softcap * tanh(z / softcap);
        return z;
    }

    FASTRL_INLINE float operator()(float x) const { return elementwise ? (*this)(splat(x))[0] : x; }
};

template <typename T>
FASTRL_INLINE float load_one(const T* source) {
    T several[WIDTH] = {*source};
    return load(several)[0];
}

template <typename T>
FASTRL_INLINE void store_one(T* target, float value) {
    T several[WIDTH];
    store(several, splat(value));
    *target = several[0];
}

// `count` values of z as floats, padded with -inf to whole vectors; returns the padded count.
template <typename T>
int64_t gather(const T* x, int64_t count, const Transform& transform, float* z) {
    int64_t i = 0;
    if (transform.elementwise)
        for (; i + WIDTH <= count; i += WIDTH) store(z + i, transform(load(x + i)));
    else
        for (; i + WIDTH <= count; i += WIDTH) store(z + i, load(x + i));
    for (; i < count; ++i) z[i] = transform(load_one(x + i));
    for (; i % (UNROLL * WIDTH); ++i) z[i] = -std::numeric_limits<float>::infinity();
    return i;
}

// body(z, begin, count) over every chunk: the logits themselves where they are z, else a copy,
// whose count is padded as `gather` does.
template <typename T, typename Body>
FASTRL_INLINE void for_chunks(const T* x, int64_t valid, const Transform& transform,
                              const Body& body) {
    alignas(64) float z[CHUNK];
    for (int64_t begin = 0; begin < valid; begin += CHUNK) {
        const int64_t left = valid - begin;
        if (left >= CHUNK && !transform.elementwise)
            body(x + begin, begin, CHUNK);
        else
            body(z, begin, gather(x + begin, left < CHUNK ? left : CHUNK, transform, z));
    }
}

struct Running {
    float peak = -std::numeric_limits<float>::infinity();
    double sum = 0, weighted = 0, squares = 0, kept = 0;
    int64_t argmax = -1;

    // Everything so far, relative to a larger peak.
    void move_to(float next, double factor) {
        if (std::isfinite(peak) && std::isfinite(next)) {
            const double moved = (static_cast<double>(peak) - next) * factor;
            const double ratio = std::exp2(moved);
            // where nothing is left of a sum, moved may be infinite; a NaN less itself stays one
            weighted = ratio > 0 ? (weighted + moved * sum) * ratio : weighted - weighted;
            sum *= ratio, squares *= ratio * ratio, kept *= ratio;
        } else if (!std::isfinite(next)) {
            sum = weighted = std::numeric_limits<double>::quiet_NaN();
        }
        peak = next;
    }
};

FASTRL_INLINE Floats exponent(Floats z, float peak, float factor) {
    const Floats t = (z - peak) * factor;
    return t < LOWEST ? splat(LOWEST) : t;
}

// UNROLL vectors before any is used, two a step: as gcc 12 compiles it, 512 bf16 rows of 49,152
// take 2.5 ms on 2 cores; one a step 3.2, loads among the arithmetic 3.9.
template <typename T>
FASTRL_INLINE void load_several(const T* source, Floats* values) {
    for (int u = 0; u < UNROLL; u += 2)
        values[u] = load(source + u * WIDTH), values[u + 1] = load(source + (u + 1) * WIDTH);
}

// Asks for `count` numbers that lie `distance` further, which need not be there. The processor's
// own prefetching stops at the end of a page of 4 KiB, a chunk of floats.
template <typename T>
FASTRL_INLINE void prefetch(const T* source, int64_t distance, int count) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(source) + distance * sizeof(T);
    for (size_t line = 0; line < count * sizeof(T); line += 64)
        __builtin_prefetch(reinterpret_cast<const void*>(address + line));
}

template <bool WITH_EXTRAS, typename T>
FASTRL_INLINE void accumulate(const T* z, int64_t count, float factor, float threshold,
                              Running& running) {
    Floats peaks[UNROLL], values[UNROLL];
    load_several(z, peaks);
    for (int64_t i = UNROLL * WIDTH; i < count; i += UNROLL * WIDTH) {
        load_several(z + i, values);
        for (int u = 0; u < UNROLL; ++u) peaks[u] = larger(values[u], peaks[u]);
    }
    const float peak = largest(larger(larger(peaks[0], peaks[1]), larger(peaks[2], peaks[3])));
    if (peak > running.peak) running.move_to(peak, factor);
    // a row that begins with -inf alone: e is 0 whatever finite number stands in for the peak
    const float base = std::isinf(running.peak) ? 0.0f : running.peak;
    Floats sums[UNROLL] = {}, weighted[UNROLL] = {}, squares[UNROLL] = {}, kept[UNROLL] = {};
    for (int64_t i = 0; i < count; i += UNROLL * WIDTH) {
        load_several(z + i, values);
        prefetch(z + i, CHUNK, UNROLL * WIDTH);
        for (int u = 0; u < UNROLL; ++u) {
            const Floats t = exponent(values[u], base, factor), e = exp2(t);
            sums[u] += e;
            weighted[u] += e * t;
            if constexpr (WITH_EXTRAS) {
                squares[u] += e * e;
                kept[u] += values[u] >= threshold ? e : Floats{};
            }
        }
    }
    running.sum += wide_total(sums);
    running.weighted += wide_total(weighted);
    if constexpr (WITH_EXTRAS) {
        running.squares += wide_total(squares);
        running.kept += wide_total(kept);
    }
}

// The log-prob of a column with this z before the temperature.
inline double logprob_of(const RowStatistics& found, float z) {
    return (static_cast<double>(z) - found.peak) * (LN2 * found.factor) - found.log_sum;
}

template <bool WITH_EXTRAS, typename T>
__attribute__((noinline)) RowStatistics statistics_of(Type<T>, const Logits& logits, int64_t row,
                                                      const Extras& extras) {
    const T* x = static_cast<const T*>(logits.data) + row * logits.stride;
    const Transform transform(logits, row);
    float threshold = 0.0f;
    if (WITH_EXTRAS && extras.thresholds)
        threshold = extras.thresholds[row] / (transform.elementwise ? 1.0f : logits.logit_scale);
    Running running;
    int64_t peak_chunk = 0;
    for_chunks(x, logits.valid, transform, [&](const auto* z, int64_t begin, int64_t count) {
        const float before = running.peak;
        accumulate<WITH_EXTRAS>(z, count, transform.factor, threshold, running);
        if (running.peak > before) peak_chunk = begin;
    });
    const bool broken = std::isnan(running.weighted) || std::isnan(running.sum);
    if (broken) running.sum = running.weighted = std::numeric_limits<double>::quiet_NaN();
    if constexpr (WITH_EXTRAS) {
        if (extras.sum_squares)
            extras.sum_squares[row] =
                static_cast<float>(running.squares / (running.sum * running.sum));
        if (extras.max_prob) extras.max_prob[row] = static_cast<float>(1.0 / running.sum);
        if (extras.log_kept_mass)
            extras.log_kept_mass[row] = static_cast<float>(std::log(running.kept / running.sum));
        if (extras.argmax) {
            int64_t found = broken ? -1 : peak_chunk;
            while (!broken && transform(load_one(x + found)) != running.peak) ++found;
            extras.argmax[row] = found;
        }
    }
    RowStatistics result{};
    result.factor = transform.factor;
    result.peak = std::isinf(running.peak) ? 0.0f : running.peak;
    result.log_sum = std::log(running.sum);
    result.inverse_sum = 1.0 / running.sum;
    if (logits.targets)
        result.logprob = logprob_of(result, transform(load_one(x + logits.targets[row])));
    result.entropy = result.log_sum - LN2 * running.weighted * result.inverse_sum;
    return result;
}

template <bool CAPPED, typename T>
FASTRL_INLINE void differentiate(const T* z, int64_t count, float peak, const Transform& transform,
                                 float constant, float slope, T* out) {
    for (int64_t i = 0; i < count; i += WIDTH) {
        const Floats values = load(z + i);
        const Floats t = exponent(values, peak, transform.factor);
        Floats dx = exp2(t) * (slope * t + constant);
        if constexpr (CAPPED) {
            const Floats tanh = values / transform.softcap;
            dx *= 1.0f - tanh * tanh;
        }
        store(out + i, dx);
    }
}

template <typename T>
void gradient_of(Type<T>, const Logits& logits, int64_t row, const RowStatistics& statistics,
                 double a, double g, void* out_data) {
    const T* x = static_cast<const T*>(logits.data) + row * logits.stride;
    T* out = static_cast<T*>(out_data);
    const Transform transform(logits, row);
    const double scaled = statistics.inverse_sum * transform.outer;
    const double constant = -scaled * (a + g * (statistics.entropy - statistics.log_sum));
    const double slope = -scaled * g * LN2;
    // at the target 1 - p is taken without cancellation
    const int64_t target = logits.targets[row];
    const double p = std::exp(statistics.logprob);
    double at_target = -a * std::expm1(statistics.logprob);
    if (p > 0) at_target -= g * p * (statistics.logprob + statistics.entropy);
    at_target *= transform.outer;
    if (transform.softcap > 0) {
        const double tanh = transform(load_one(x + target)) / transform.softcap;
        at_target *= 1.0 - tanh * tanh;
    }
    const float constant_f = static_cast<float>(constant), slope_f = static_cast<float>(slope);
    alignas(64) float z[CHUNK];
    for (int64_t i = 0; i < logits.valid; i += CHUNK) {
        const int64_t left = logits.valid - i, count = left < CHUNK ? left : CHUNK;
        if (count == CHUNK && !transform.elementwise) {
            differentiate<false>(x + i, CHUNK, statistics.peak, transform, constant_f, slope_f,
                                 out + i);
            continue;
        }
        const int64_t padded = gather(x + i, count, transform, z);
        if (transform.softcap > 0)
            differentiate<true>(z, padded, statistics.peak, transform, constant_f, slope_f, z);
        else
            differentiate<false>(z, padded, statistics.peak, transform, constant_f, slope_f, z);
        int64_t j = 0;
        for (; j + WIDTH <= count; j += WIDTH) store(out + i + j, load(z + j));
        for (; j < count; ++j) store_one(out + i + j, z[j]);
    }
    store_one(out + target, static_cast<float>(at_target));
    std::memset(static_cast<void*>(out + logits.valid), 0,
                sizeof(T) * (logits.vocab - logits.valid));
}

}  // namespace fastrl::FASTRL_ISA
