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
    float* q;              // [queries][words], scaled to base 2
    float* sums;           // [queries][padded], of 2^(s-m) v
    float* totals;         // [queries][STEP], of 2^(s-m)
    float* peaks;          // [queries], m
    float* keys;           // of two heads, [words][STEP] each
    float* values;         // of two heads, [STEP][padded] each
    int64_t places[STEP];  // where a head's values of each position begin

    void reserve(int64_t queries, int64_t dim, int64_t number_bytes) {
        words = (dim * number_bytes + 3) / 4;
        padded = (dim + WIDTH - 1) / WIDTH * WIDTH;
        const int64_t sizes[] = {queries * words, queries * padded, queries * STEP,
                                 queries,         2 * words * STEP, 2 * STEP * padded};
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
        for (int t = 0; t < STEP; ++t) places[t] = t * padded;
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

// The keys of a head at some positions, turned [words, STEP]; zeros after them.
template <typename T>
void fetch_keys(const PagedAttention& a, const Places& places, int64_t kv_head, float* keys) {
    const T* k[STEP];
    const int64_t dim = a.dim, count = places.count;
    for (int64_t t = 0; t < count; ++t)
        k[t] = static_cast<const T*>(a.k_cache) + places.at[t] + kv_head * dim;
    constexpr int NUMBERS = 4 / sizeof(T);                  // of a word in the cache
    constexpr int WORDS = NUMBERS * sizeof(Factor<T>) / 4;  // that one becomes
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

// The values of a head at some positions, in fp32, zeros up to a whole vector.
template <typename T>
void fetch_values(const PagedAttention& a, const Places& places, int64_t kv_head, float* values,
                  int64_t padded) {
    const int64_t dim = a.dim;
    for (int64_t t = 0; t < places.count; ++t) {
        float* out = values + t * padded;
        const T* from = static_cast<const T*>(a.v_cache) + places.at[t] + kv_head * dim;
        int64_t d = 0;
        for (; d + WIDTH <= dim; d += WIDTH) store(out + d, load(from + d));
        if (d < dim) store(out + d, load_some(from + d, dim - d));
    }
}

// Where the values of a step are: those of position t and head h begin at heads[h] + at[t].
template <int HEADS, typename V>
struct Values {
    const V* heads[HEADS];
    const int64_t* at;
};

// The numbers of values from `k` on, LOADS vectors, by the weights of N queries of each head onto
// their sums; all of the queries see the first `common` positions, and query i counts[i] of them.
template <int N, int HEADS, int LOADS, typename V>
FASTRL_INLINE void add_values(float* const (&sums_of)[HEADS * N], const int64_t (&counts)[QUERIES],
                              int64_t common, const float (&weights)[HEADS * N][STEP],
                              const Values<HEADS, V>& values, int64_t k) {
    Floats sums[HEADS * N][LOADS];
#pragma GCC unroll 8
    for (int i = 0; i < HEADS * N; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < LOADS; ++v) sums[i][v] = load(sums_of[i] + k + v * WIDTH);
    for (int64_t t = 0; t < common; ++t)
#pragma GCC unroll 2
        for (int head = 0; head < HEADS; ++head) {
            const V* from = values.heads[head] + values.at[t] + k;
            Floats numbers[LOADS];
#pragma GCC unroll 2
            for (int v = 0; v < LOADS; ++v) numbers[v] = load(from + v * WIDTH);
#pragma GCC unroll 8
            for (int i = head * N; i < (head + 1) * N; ++i)
#pragma GCC unroll 2
                for (int v = 0; v < LOADS; ++v) sums[i][v] += splat(weights[i][t]) * numbers[v];
        }
    // not with a weight of 0: what another query alone sees may be infinite
#pragma GCC unroll 8
    for (int i = 0; i < HEADS * N; ++i)
        for (int64_t t = common; t < counts[i % N]; ++t)
#pragma GCC unroll 2
            for (int v = 0; v < LOADS; ++v)
                sums[i][v] +=
                    splat(weights[i][t]) * load(values.heads[i / N] + values.at[t] + k + v * WIDTH);
#pragma GCC unroll 8
    for (int i = 0; i < HEADS * N; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < LOADS; ++v) store(sums_of[i] + k + v * WIDTH, sums[i][v]);
}

// N queries of each of some heads over a step, of which query i sees counts[i] positions: those
// from `first` on, and `apart` further on those of the next head. Values have a multiple of WIDTH
// numbers. Heads side by side, for what one of them does waits for what it did before.
template <int N, int HEADS, typename T, typename V>
FASTRL_INLINE void see(Seen& seen, int64_t first, int64_t apart, const int64_t (&counts)[QUERIES],
                       const Floats (&lanes)[PARTS], const Values<HEADS, V>& values) {
    constexpr int ALL = HEADS * N;
    const int64_t words = seen.words;
    const float *q[HEADS], *keys[HEADS];
#pragma GCC unroll 2
    for (int head = 0; head < HEADS; ++head) {
        q[head] = seen.q + (first + head * apart) * words;
        keys[head] = seen.keys + head * words * STEP;
    }
    // even and odd words apart: a sum waits for its last addition
    Floats scores[2][ALL][PARTS] = {};
    const auto add = [&](int odd, int64_t d) {
#pragma GCC unroll 2
        for (int head = 0; head < HEADS; ++head)
#pragma GCC unroll 4
            for (int lane = 0; lane < PARTS; ++lane) {
                const Floats some = load(keys[head] + d * STEP + lane * WIDTH);
#pragma GCC unroll 8
                for (int i = 0; i < N; ++i) {
                    Floats& score = scores[odd][head * N + i][lane];
                    score = plus_product<T>(score, q[head] + i * words + d, some);
                }
            }
    };
    int64_t d = 0;
    for (; d + 2 <= words; d += 2) {
        add(0, d);
        add(1, d + 1);
    }
    if (d < words) add(0, d);

    alignas(64) float weights[ALL][STEP];
    float* sums[ALL];
    int64_t common = STEP;  // positions that all of them see
#pragma GCC unroll 8
    for (int i = 0; i < ALL; ++i) {
        const int64_t at = first + i / N * apart + i % N;
        const Floats limit = splat(static_cast<float>(counts[i % N]));
        Floats s[PARTS], top = splat(-std::numeric_limits<float>::infinity());
#pragma GCC unroll 4
        for (int lane = 0; lane < PARTS; ++lane) {
            s[lane] = scores[0][i][lane] + scores[1][i][lane];
            s[lane] = lanes[lane] < limit ? s[lane] : -std::numeric_limits<float>::infinity();
            top = larger(s[lane], top);
        }
        float& peak = seen.peaks[at];
        const float now = std::max(peak, largest(top));
        sums[i] = seen.sums + at * seen.padded;
        float* totals = seen.totals + at * STEP;
        if (now > peak) {
            // 2^(m - m'); 0 at first
            const Floats shrink = exp2(splat(std::max(peak - now, -127.0f)));
            for (int64_t k = 0; k < seen.padded; k += WIDTH)
                store(sums[i] + k, load(sums[i] + k) * shrink);
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
        common = std::min(common, counts[i % N]);
    }
    int64_t k = 0;
    for (; k + WIDTH < seen.padded; k += 2 * WIDTH)
        add_values<N, HEADS, 2>(sums, counts, common, weights, values, k);
    if (k < seen.padded) add_values<N, HEADS, 1>(sums, counts, common, weights, values, k);
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

// `see` of `count` queries of each head, N at most.
template <int N, int HEADS, typename T, typename V>
FASTRL_INLINE void see_some(Seen& seen, int64_t count, int64_t first, int64_t apart,
                            const int64_t (&counts)[QUERIES], const Floats (&lanes)[PARTS],
                            const Values<HEADS, V>& values) {
    if (count == N) return see<N, HEADS, T>(seen, first, apart, counts, lanes, values);
    if constexpr (N > 1)
        see_some<N - 1, HEADS, T>(seen, count, first, apart, counts, lanes, values);
}

// The queries [begin, end) of each head, of which query i sees visible(i) positions of a step.
template <int HEADS, typename T, typename V, typename Visible>
FASTRL_INLINE void see_all(Seen& seen, int64_t first, int64_t apart, int64_t begin, int64_t end,
                           const Visible& visible, const Floats (&lanes)[PARTS],
                           const Values<HEADS, V>& values) {
    constexpr int AT_ONCE = QUERIES / HEADS;
    for (int64_t query = begin; query < end; query += AT_ONCE) {
        const int64_t left = std::min<int64_t>(AT_ONCE, end - query);
        int64_t counts[QUERIES] = {};
        for (int64_t i = 0; i < left; ++i) counts[i] = visible(query + i);
        see_some<AT_ONCE, HEADS, T>(seen, left, first + query, apart, counts, lanes, values);
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
            const auto heads = [&](auto some, int64_t head) {
                constexpr int HEADS = decltype(some)::value;
                const auto see_these = [&](const auto& values) {
                    see_all<HEADS, T>(seen, head * queries, queries, begin, end, sees, lanes,
                                      values);
                };
                Values<HEADS, T> cached{{}, places.at};
                for (int i = 0; i < HEADS; ++i) {
                    const int64_t kv_head = first_head + head + i;
                    cached.heads[i] = static_cast<const T*>(a.v_cache) + kv_head * a.dim;
                    fetch_keys<T>(a, places, kv_head, seen.keys + i * seen.words * STEP);
                    prefetch<T>(a, after, kv_head);
                }
                if (as_they_are) return see_these(cached);
                Values<HEADS, float> fetched{{}, seen.places};
                for (int i = 0; i < HEADS; ++i) {
                    float* values = seen.values + i * STEP * seen.padded;
                    fetch_values<T>(a, places, first_head + head + i, values, seen.padded);
                    fetched.heads[i] = values;
                }
                see_these(fetched);
            };
            int64_t head = 0;
            if (end - begin <= QUERIES / 2)
                for (; head + 2 <= kv_heads; head += 2)
                    heads(std::integral_constant<int, 2>{}, head);
            for (; head < kv_heads; ++head) heads(std::integral_constant<int, 1>{}, head);
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
