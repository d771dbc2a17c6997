// What sampling a token asks of a row, on the including file's instruction set.
#pragma once

#include "row_kernel.h"

namespace fastrl::FASTRL_ISA {

using Longs = uint64_t __attribute__((vector_size(4 * WIDTH)));
constexpr int LANES = WIDTH / 2;
constexpr int BLOCK = 2 * WIDTH;  // columns whose random words are computed at once
// -log2(-log2 u) of the largest uniform, 1 - 2^-24, and the rounding
constexpr float MOST_NOISE = 23.48f;

// The products of the low halves.
FASTRL_INLINE Longs multiply(Longs a, uint32_t b) {
#if defined(FASTRL_AVX512)
    return (Longs)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#elif defined(FASTRL_AVX2)
    return (Longs)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#else
    return (a & 0xffffffff) * b;
#endif
}

struct Counter {
    uint32_t c0, c1, c2, c3, key0, key1;

    Counter(const Noise& noise, int64_t row) : key0(noise.key0), key1(noise.key1) {
        const int64_t* words = noise.counters + 4 * row;
        c0 = words[0], c1 = words[1], c2 = words[2], c3 = words[3];
    }
};

// The uniforms of the BLOCK columns from `column` on, a multiple of 4. A counter stands in the low
// half of a lane; what the high half holds is never looked at.
FASTRL_INLINE void uniforms(const Counter& counter, uint32_t column, Floats* out) {
    Longs c0 = counter.c0 - Longs{}, c2 = counter.c2 - Longs{}, c3 = counter.c3 - Longs{}, index;
    for (int i = 0; i < LANES; ++i) index[i] = i;
    Longs c1 = (index + column / 4) << 14 | counter.c1;
    uint32_t key0 = counter.key0, key1 = counter.key1;
    for (int round = 0; round < 10; ++round) {
        const Longs product0 = multiply(c0, 0xD2511F53u), product1 = multiply(c2, 0xCD9E8D57u);
        c0 = (product1 >> 32) ^ c1 ^ key0, c1 = product1;
        c2 = (product0 >> 32) ^ c3 ^ key1, c3 = product0;
        key0 += 0x9E3779B9u, key1 += 0xBB67AE85u;
    }
    // the words of a counter stand side by side
    const Longs first = (c0 & 0xffffffff) | c1 << 32, second = (c2 & 0xffffffff) | c3 << 32;
    uint64_t words[2 * LANES];
    for (int i = 0; i < LANES; ++i) words[2 * i] = first[i], words[2 * i + 1] = second[i];
    for (int half = 0; half < 2; ++half) {
        Ints bits;
        std::memcpy(&bits, words + half * LANES, sizeof bits);
        const Ints high = (bits >> 9) & 0x7fffff;
        out[half] = (__builtin_convertvector(high, Floats) + 0.5f) * 0x1p-23f;
    }
}

// For numbers that are positive and normal, to 2.3e-7 of the result and the rounding. The
// polynomial is the minimax of log2(1 + f) / f on [sqrt(1/2) - 1, sqrt(2) - 1].
FASTRL_INLINE Floats log2(Floats x) {
    const Ints bits = as_ints(x), exponent = (bits - 0x3f3504f3) >> 23;
    const Floats f = as_floats(bits - (exponent << 23)) - 1.0f;
    Floats p = splat(-0.14581167697906494f);
    p = p * f + 0.2340424358844757f;
    p = p * f - 0.2488768994808197f;
    p = p * f + 0.2870987057685852f;
    p = p * f - 0.3602396249771118f;
    p = p * f + 0.48092323541641235f;
    p = p * f - 0.7213528156280518f;
    p = p * f + 1.442694902420044f;
    return f * p + __builtin_convertvector(exponent, Floats);
}

FASTRL_INLINE bool any(Ints flags) {
#if defined(FASTRL_AVX512)
    return _mm512_test_epi32_mask((__m512i)flags, (__m512i)flags) != 0;
#elif defined(FASTRL_AVX2)
    return _mm256_movemask_epi8((__m256i)flags) != 0;
#else
    int32_t seen = 0;
    for (int i = 0; i < WIDTH; ++i) seen |= flags[i];
    return seen != 0;
#endif
}

// False where a score is certainly below the best: t - log2(-log2 u) for a t that lies `lead` above
// that best. By -log2 u >= (1 - u) log2(e), and by the straight lines between the powers of 2,
// which lie above 2^lead; cheaper than two logarithms, and hardly ever true in vain.
FASTRL_INLINE Ints may_beat(Floats lead, Floats u) {
    const Floats low = splat(-126.0f), high = splat(100.0f);
    lead = lead > low ? lead : low;
    lead = lead < high ? lead : high;
    const Floats power = as_floats(__builtin_convertvector((lead + 127.0f) * 0x1p23f, Ints));
    return (1.0f - u) * 1.4426f <= power;
}

template <typename T>
Drawn draw_of(Type<T>, const Logits& logits, int64_t row, const RowStatistics& found,
              const Noise& noise, const Kept& kept) {
    const T* x = static_cast<const T*>(logits.data) + row * logits.stride;
    const Transform transform(logits, row);
    const Counter counter(noise, row);
    const Floats nothing = splat(-std::numeric_limits<float>::infinity());
    const int32_t last = static_cast<int32_t>(kept.last);
    float best = -1e30f;
    int64_t token = -1;
    Ints lanes;
    for (int i = 0; i < WIDTH; ++i) lanes[i] = i;
    for_chunks(x, logits.valid, transform, [&](const auto* z, int64_t begin, int64_t count) {
        for (int64_t j = 0; j < count; j += BLOCK) {
            Floats values[2], scores[2], u[2];
            Ints possible = {};
            for (int half = 0; half < 2; ++half) {
                values[half] = load(z + j + half * WIDTH);
                scores[half] = (values[half] - found.peak) * transform.factor;
                possible |= (scores[half] > best - MOST_NOISE) & (values[half] >= kept.least);
            }
            if (!any(possible)) continue;
            const int64_t column = begin + j;
            uniforms(counter, static_cast<uint32_t>(column), u);
            Ints better = {};
            for (int half = 0; half < 2; ++half) better |= may_beat(scores[half] - best, u[half]);
            if (!any(better)) continue;
            better = Ints{};
            for (int half = 0; half < 2; ++half) {
                const Ints columns = lanes + static_cast<int32_t>(column + half * WIDTH);
                const Ints keep = (values[half] > kept.least) |
                                  ((values[half] == kept.least) & (columns <= last));
                scores[half] = keep ? scores[half] - log2(-log2(u[half])) : nothing;
                better |= scores[half] > best;
            }
            if (!any(better)) continue;
            for (int i = 0; i < BLOCK; ++i)
                if (const float score = scores[i / WIDTH][i % WIDTH]; score > best)
                    best = score, token = column + i;
        }
    });
    if (token < 0) return {-1, std::numeric_limits<double>::quiet_NaN()};
    return {token, logprob_of(found, transform(load_one(x + token)))};
}

template <typename T>
void above_of(Type<T>, const Logits& logits, int64_t row, const RowStatistics& found,
              const float* thresholds, Above* out) {
    constexpr int N = Above::THRESHOLDS;
    const T* x = static_cast<const T*>(logits.data) + row * logits.stride;
    const Transform transform(logits, row);
    for (int n = 0; n < N; ++n) out[n] = {};
    for_chunks(x, logits.valid, transform, [&](const auto* z, int64_t, int64_t count) {
        Floats masses[N] = {};
        Ints counts[N] = {};
        bool some = false;
        for (int64_t j = 0; j < count; j += WIDTH) {
            const Floats values = load(z + j);
            if (!any(values >= thresholds[N - 1])) continue;
            some = true;
            const Floats e = exp2(exponent(values, found.peak, transform.factor));
            for (int n = 0; n < N; ++n) {
                const Ints keep = values >= thresholds[n];
                masses[n] += keep ? e : Floats{};
                counts[n] -= keep;
            }
        }
        if (!some) return;
        for (int n = 0; n < N; ++n) {
            out[n].mass += total(masses[n]);
            for (int i = 0; i < WIDTH; ++i) out[n].count += counts[n][i];
        }
    });
}

template <typename T>
int64_t collect_of(Type<T>, const Logits& logits, int64_t row, const RowStatistics& found,
                   float low, float high, Candidate* out) {
    const T* x = static_cast<const T*>(logits.data) + row * logits.stride;
    const Transform transform(logits, row);
    Candidate* next = out;
    for_chunks(x, logits.valid, transform, [&](const auto* z, int64_t begin, int64_t count) {
        for (int64_t j = 0; j < count; j += WIDTH) {
            const Floats values = load(z + j);
            const Ints inside = (values >= low) & (values < high);
            if (!any(inside)) continue;
            const Floats masses = exp2(exponent(values, found.peak, transform.factor));
            const int64_t column = begin + j, left = logits.valid - column;
            for (int i = 0; i < WIDTH && i < left; ++i)
                if (inside[i]) *next++ = Candidate(values[i], column + i, masses[i]);
        }
    });
    return next - out;
}

}  // namespace fastrl::FASTRL_ISA
