// The functions of `paged_attention.h` on the including file's instruction set.
//
// An online softmax over steps of positions (Milakov and Gimelshein 2018; Dao et al. 2022), in base
// 2: with s = q k scale log2(e), m = max s, l = sum 2^(s-m), out = sum 2^(s-m) v / l. Keys of a
// step are turned, so that a register holds one of their numbers for many positions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "norm_kernel.h"
#include "paged_attention.h"
#include "products_kernel.h"

namespace fastrl::FASTRL_ISA {

constexpr int STEP = 16;                      // positions at a time
constexpr int PARTS = STEP / WIDTH;           // vectors of them
constexpr int QUERIES = WIDTH == 16 ? 8 : 4;  // that share a load of keys or values

template <typename T>
void write_row(const PagedAttention& a, int64_t row) {
    const int64_t position = a.context[row] - 1;
    const int64_t block = a.tables[a.row_table[row] * a.table_stride + position / a.block_size];
    const int64_t slot = (block * a.block_size + position % a.block_size) * a.kv_heads * a.dim;
    const T* k = static_cast<const T*>(a.k) + row * a.k_stride;
    const T* v = static_cast<const T*>(a.v) + row * a.v_stride;
    std::memcpy(static_cast<T*>(a.v_cache) + slot, v, a.kv_heads * a.dim * sizeof(T));
    const float* cos = a.cos ? a.cos + row * (a.dim / 2) : nullptr;
    const float* sin = a.cos ? a.sin + row * (a.dim / 2) : nullptr;
    const T* norm = static_cast<const T*>(a.k_norm);
    thread_local std::vector<float> memory;
    memory.resize(a.dim);
    float* head = memory.data();
    for (int64_t i = 0; i < a.kv_heads; ++i) {
        prepare_head(k + i * a.dim, norm, a.eps, cos, sin, a.dim, head);
        store_numbers(static_cast<T*>(a.k_cache) + slot + i * a.dim, head, a.dim);
    }
}

// What some queries have seen so far, and the keys and values of the step they see next.
struct Seen {
    int64_t words, padded;  // of a head's factors, and its numbers rounded up to whole vectors
    std::vector<float> memory;
    float* q;       // [queries][words], scaled to base 2
    float* sums;    // [queries][padded], of 2^(s-m) v
    float* totals;  // [queries][STEP], of 2^(s-m)
    float* peaks;   // [queries], m
    float* keys;    // [words][STEP]
    float* values;  // [STEP][padded]

    void reserve(int64_t queries, int64_t dim, int64_t number_bytes) {
        words = (dim * number_bytes + 3) / 4;
        padded = (dim + WIDTH - 1) / WIDTH * WIDTH;
        const int64_t sizes[] = {queries * words, queries * padded, queries * STEP,
                                 queries,         words * STEP,     STEP * padded};
        float** parts[] = {&q, &sums, &totals, &peaks, &keys, &values};
        int64_t needed = 0;
        for (int64_t size : sizes) needed += size + 15;
        memory.assign(needed, 0.0f);
        float* next = memory.data();
        for (int i = 0; i < 6; ++i) {
            next += (64 - reinterpret_cast<uintptr_t>(next) % 64) % 64 / 4;  // a line of the cache
            *parts[i] = next;
            next += sizes[i];
        }
        std::fill(peaks, peaks + queries, -std::numeric_limits<float>::infinity());
    }
};

// Where the numbers of some positions of a table begin, for the first key/value head.
struct Places {
    int64_t count = 0, at[STEP];

    Places(const PagedAttention& a, const int32_t* table, int64_t first, int64_t count_)
        : count(count_) {
        int64_t block = first / a.block_size, slot = first % a.block_size;
        for (int64_t t = 0; t < count; ++t) {
            at[t] = (table[block] * a.block_size + slot) * a.kv_heads * a.dim;
            if (++slot == a.block_size) slot = 0, ++block;
        }
    }
};

// The keys of a head at some positions into `seen`, turned; zeros after them.
template <typename T>
void fetch_keys(const PagedAttention& a, const Places& places, int64_t kv_head, Seen& seen) {
    const T* k[STEP];
    const int64_t dim = a.dim, count = places.count;
    for (int64_t t = 0; t < count; ++t)
        k[t] = static_cast<const T*>(a.k_cache) + places.at[t] + kv_head * dim;
    constexpr int NUMBERS = 4 / sizeof(T);                  // of a word in the cache
    constexpr int WORDS = NUMBERS * sizeof(Factor<T>) / 4;  // that one becomes
    float* keys = seen.keys;
    for (int group = 0; group < STEP; group += WIDTH) {
        int64_t d = 0;
        for (; d + NUMBERS * WIDTH <= dim; d += NUMBERS * WIDTH) {
            Ints block[WIDTH] = {};
#pragma GCC unroll 16
            for (int i = 0; i < WIDTH; ++i)
                if (group + i < count) std::memcpy(&block[i], k[group + i] + d, sizeof(Ints));
            transpose(block);
#pragma GCC unroll 16
            for (int i = 0; i < WIDTH; ++i) {
                float* to = keys + (d / NUMBERS + i) * WORDS * STEP + group;
                if constexpr (WORDS == 1) {
                    store(to, as_floats(block[i]));
                } else {
                    store(to, first_of(block[i]));
                    store(to + STEP, second_of(block[i]));
                }
            }
        }
        for (; d < dim; ++d)
            for (int i = 0; i < WIDTH; ++i) {
                T number[WIDTH] = {};
                if (group + i < count) number[0] = k[group + i][d];
                Factor<T> factor[WIDTH];
                copy_normed<T>(number, nullptr, 0.0f, WIDTH, factor);
                constexpr int64_t PER = 4 / sizeof(Factor<T>);  // of a word
                const int64_t at = (d / PER * STEP + group + i) * PER + d % PER;
                std::memcpy(reinterpret_cast<Factor<T>*>(keys) + at, factor, sizeof(Factor<T>));
            }
    }
}

// The values of a head at some positions into `seen`, in fp32, zeros up to a whole vector.
template <typename T>
void fetch_values(const PagedAttention& a, const Places& places, int64_t kv_head, Seen& seen) {
    const int64_t dim = a.dim;
    for (int64_t t = 0; t < places.count; ++t) {
        float* out = seen.values + t * seen.padded;
        const T* from = static_cast<const T*>(a.v_cache) + places.at[t] + kv_head * dim;
        int64_t d = 0;
        for (; d + WIDTH <= dim; d += WIDTH) store(out + d, load(from + d));
        if (d < dim) {
            T numbers[WIDTH] = {};
            std::memcpy(numbers, from + d, (dim - d) * sizeof(T));
            store(out + d, load(numbers));
        }
    }
}

// N queries from `first` on over a step, of which query i sees counts[i] positions. The values of
// position t begin at values[t], and have a multiple of WIDTH numbers.
template <int N, typename T, typename V>
FASTRL_INLINE void see(Seen& seen, int64_t first, const int64_t (&counts)[QUERIES],
                       const Floats (&lanes)[PARTS], const V* const (&values)[STEP]) {
    const float* q = seen.q + first * seen.words;
    // even and odd words apart: a sum waits for its last addition
    Floats scores[2][N][PARTS] = {};
    int64_t d = 0;
    for (; d + 2 <= seen.words; d += 2) {
#pragma GCC unroll 2
        for (int odd = 0; odd < 2; ++odd)
#pragma GCC unroll 4
            for (int lane = 0; lane < PARTS; ++lane) {
                const Floats keys = load(seen.keys + (d + odd) * STEP + lane * WIDTH);
#pragma GCC unroll 8
                for (int i = 0; i < N; ++i)
                    scores[odd][i][lane] =
                        plus_product<T>(scores[odd][i][lane], q + i * seen.words + d + odd, keys);
            }
    }
    if (d < seen.words)
        for (int lane = 0; lane < PARTS; ++lane) {
            const Floats keys = load(seen.keys + d * STEP + lane * WIDTH);
            for (int i = 0; i < N; ++i)
                scores[0][i][lane] =
                    plus_product<T>(scores[0][i][lane], q + i * seen.words + d, keys);
        }

    alignas(64) float weights[N][STEP];
    int64_t common = STEP;  // positions that all of them see
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
        const Floats limit = splat(static_cast<float>(counts[i]));
        Floats s[PARTS], top = splat(-std::numeric_limits<float>::infinity());
#pragma GCC unroll 4
        for (int lane = 0; lane < PARTS; ++lane) {
            s[lane] = scores[0][i][lane] + scores[1][i][lane];
            s[lane] = lanes[lane] < limit ? s[lane] : -std::numeric_limits<float>::infinity();
            top = larger(s[lane], top);
        }
        float& peak = seen.peaks[first + i];
        const float now = std::max(peak, largest(top));
        float* sums = seen.sums + (first + i) * seen.padded;
        float* totals = seen.totals + (first + i) * STEP;
        if (now > peak) {
            // 2^(m - m'); 0 at first
            const Floats shrink = exp2(splat(std::max(peak - now, -127.0f)));
            for (int64_t k = 0; k < seen.padded; k += WIDTH)
                store(sums + k, load(sums + k) * shrink);
            for (int lane = 0; lane < PARTS; ++lane)
                store(totals + lane * WIDTH, load(totals + lane * WIDTH) * shrink);
            peak = now;
        }
#pragma GCC unroll 4
        for (int lane = 0; lane < PARTS; ++lane) {
            const Floats t = s[lane] - now;
            const Floats weight = exp2_of_negative(t);
            store(weights[i] + lane * WIDTH, weight);
            store(totals + lane * WIDTH, load(totals + lane * WIDTH) + weight);
        }
        common = std::min(common, counts[i]);
    }
    for (int64_t k = 0; k < seen.padded; k += 2 * WIDTH) {
        const bool two = k + WIDTH < seen.padded;
        const int64_t other = two ? WIDTH : 0;
        Floats sums[N][2];
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i) {
            const float* from = seen.sums + (first + i) * seen.padded + k;
            sums[i][0] = load(from);
            sums[i][1] = load(from + other);
        }
        for (int64_t t = 0; t < common; ++t) {
            const Floats low = load(values[t] + k), high = load(values[t] + k + other);
#pragma GCC unroll 8
            for (int i = 0; i < N; ++i) {
                const Floats weight = splat(weights[i][t]);
                sums[i][0] += weight * low;
                sums[i][1] += weight * high;
            }
        }
        // not with a weight of 0: what another query alone sees may be infinite
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i)
            for (int64_t t = common; t < counts[i]; ++t) {
                const Floats weight = splat(weights[i][t]);
                sums[i][0] += weight * load(values[t] + k);
                sums[i][1] += weight * load(values[t] + k + other);
            }
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i) {
            float* to = seen.sums + (first + i) * seen.padded + k;
            store(to, sums[i][0]);
            if (two) store(to + WIDTH, sums[i][1]);
        }
    }
}

// Some positions on their way into a cache of the processor: without it a step waits for memory
// (128 rows of 90 positions, 9 heads of 64: twice the time). A head's at a time, between the
// others' work: all at once is slower.
template <typename T>
FASTRL_INLINE void prefetch(const PagedAttention& a, const Places& places, int64_t kv_head) {
    constexpr int64_t LINE = 64 / sizeof(T);
    for (int64_t t = 0; t < places.count; ++t) {
        const int64_t at = places.at[t] + kv_head * a.dim;
        for (int64_t d = 0; d < a.dim; d += LINE) {
            __builtin_prefetch(static_cast<const T*>(a.k_cache) + at + d, 0, 2);
            __builtin_prefetch(static_cast<const T*>(a.v_cache) + at + d, 0, 2);
        }
    }
}

// `see` of `count` queries, N at most.
template <int N, typename T, typename V>
FASTRL_INLINE void see_some(Seen& seen, int64_t count, int64_t first,
                            const int64_t (&counts)[QUERIES], const Floats (&lanes)[PARTS],
                            const V* const (&values)[STEP]) {
    if (count == N) return see<N, T>(seen, first, counts, lanes, values);
    if constexpr (N > 1) see_some<N - 1, T>(seen, count, first, counts, lanes, values);
}

// The queries [first, last) of a head, of which query i sees visible(i) positions of a step.
template <typename T, typename V, typename Visible>
FASTRL_INLINE void see_all(Seen& seen, int64_t head, int64_t first, int64_t last,
                           const Visible& visible, const Floats (&lanes)[PARTS],
                           const V* const (&values)[STEP]) {
    for (int64_t query = first; query < last; query += QUERIES) {
        const int64_t left = std::min<int64_t>(QUERIES, last - query), at = head + query;
        int64_t counts[QUERIES] = {};
        for (int64_t i = 0; i < left; ++i) counts[i] = visible(query + i);
        see_some<QUERIES, T>(seen, left, at, counts, lanes, values);
    }
}

template <typename T>
void attend_rows(const PagedAttention& a, int64_t first_row, int64_t rows, int64_t first_head,
                 int64_t kv_heads) {
    thread_local Seen memory;
    Seen& seen = memory;
    const int64_t group = a.heads / a.kv_heads, queries = rows * group;  // of a key/value head
    seen.reserve(queries * kv_heads, a.dim, sizeof(Factor<T>));
    thread_local std::vector<float> prepared;
    prepared.resize(a.dim);
    float* head = prepared.data();
    const float to_base_2 = a.scale * 1.4426950408889634f;
    const int32_t* context = a.context + first_row;
    int64_t longest = 0;
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t at = first_row + row;
        const T* q = static_cast<const T*>(a.q) + at * a.q_stride + first_head * group * a.dim;
        const float* cos = a.cos ? a.cos + at * (a.dim / 2) : nullptr;
        const float* sin = a.cos ? a.sin + at * (a.dim / 2) : nullptr;
        for (int64_t i = 0; i < group * kv_heads; ++i) {
            prepare_head(q + i * a.dim, static_cast<const T*>(a.q_norm), a.eps, cos, sin, a.dim,
                         head);
            for (int64_t d = 0; d < a.dim; ++d) head[d] *= to_base_2;
            float* out = seen.q + (i / group * queries + row * group + i % group) * seen.words;
            store_numbers(reinterpret_cast<Factor<T>*>(out), head, a.dim);
        }
        longest = std::max<int64_t>(longest, context[row]);
    }
    Floats lanes[PARTS];
    for (int i = 0; i < STEP; ++i) lanes[i / WIDTH][i % WIDTH] = static_cast<float>(i);

    const auto table_of = [&](int64_t row) {
        return a.tables + a.row_table[first_row + row] * a.table_stride;
    };
    for (int64_t start = 0; start < longest; start += STEP) {
        const auto visible = [&](int64_t row) {
            return std::clamp<int64_t>(context[row] - start, 0, STEP);
        };
        // whether both rows read the same blocks, as far as both see
        const auto alike = [&](const int32_t* one, const int32_t* other, int64_t count) {
            if (one == other) return true;
            const int64_t begin = start / a.block_size;
            const int64_t end = (start + count - 1) / a.block_size + 1;
            return std::equal(one + begin, one + end, other + begin);
        };
        for (int64_t row = 0; row < rows;) {
            int64_t count = visible(row), next = row + 1, most = context[row];
            if (count == 0) {
                row = next;
                continue;
            }
            const int32_t* table = table_of(row);
            for (int64_t more; next < rows && (more = visible(next)) > 0; ++next) {
                if (!alike(table, table_of(next), std::min(count, more))) break;
                if (more > count || context[next] > most) {  // the longer table from here on
                    count = more;
                    most = context[next];
                    table = table_of(next);
                }
            }
            const Places places(a, table, start, count);
            const Places after(a, table, start + STEP,
                               std::clamp<int64_t>(most - start - STEP, 0, STEP));
            const auto sees = [&](int64_t query) { return visible(query / group); };
            const int64_t begin = row * group, end = next * group;
            // many queries find the values as they need them; few take them as they are
            const bool as_they_are = a.dim % WIDTH == 0 && (sizeof(T) == 4 || end - begin <= 8);
            for (int64_t head = 0; head < kv_heads; ++head) {
                const int64_t kv_head = first_head + head;
                fetch_keys<T>(a, places, kv_head, seen);
                prefetch<T>(a, after, kv_head);
                if (as_they_are) {
                    const T* values[STEP] = {};
                    for (int64_t t = 0; t < count; ++t)
                        values[t] =
                            static_cast<const T*>(a.v_cache) + places.at[t] + kv_head * a.dim;
                    see_all<T>(seen, head * queries, begin, end, sees, lanes, values);
                } else {
                    fetch_values<T>(a, places, kv_head, seen);
                    const float* values[STEP] = {};
                    for (int64_t t = 0; t < count; ++t) values[t] = seen.values + t * seen.padded;
                    see_all<T>(seen, head * queries, begin, end, sees, lanes, values);
                }
            }
            row = next;
        }
    }

    for (int64_t head = 0; head < kv_heads; ++head)
        for (int64_t query = 0; query < queries; ++query) {
            const int64_t from = head * queries + query;
            double sum = 0;
            for (int part = 0; part < PARTS; ++part)
                sum += total(load(seen.totals + from * STEP + part * WIDTH));
            float* sums = seen.sums + from * seen.padded;
            const float inverse = static_cast<float>(1.0 / sum);
            for (int64_t d = 0; d < seen.padded; d += WIDTH)
                store(sums + d, load(sums + d) * inverse);
            const int64_t at =
                (first_row + query / group) * a.heads + (first_head + head) * group + query % group;
            store_numbers(static_cast<T*>(a.out) + at * a.dim, sums, a.dim);
        }
}

void write(const PagedAttention& a, int64_t row) {
    a.dtype == DType::bf16 ? write_row<BFloat16>(a, row) : write_row<float>(a, row);
}

void attend(const PagedAttention& a, int64_t first_row, int64_t rows, int64_t first_head,
            int64_t kv_heads) {
    if (a.dtype == DType::bf16)
        attend_rows<BFloat16>(a, first_row, rows, first_head, kv_heads);
    else
        attend_rows<float>(a, first_row, rows, first_head, kv_heads);
}

constexpr AttentionFunctions attention = {write, attend};

}  // namespace fastrl::FASTRL_ISA
