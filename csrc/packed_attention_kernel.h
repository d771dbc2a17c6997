// The functions of `packed_attention.h` on the including file's instruction set.
//
// Rows of a tile are the queries of a segment, each with all heads of one key/value head, so that a
// load of keys serves them all. Every product is C[M, N] += A[M, K] B[K, N] of the same small
// kernel: A in rows of factors, B in words, which are numbers in fp32 or, where the processor
// multiplies them, pairs of rows in bf16. Keys, values and their gradients are kept turned where
// they are B or C with a key a column.
//
// Legend: R: padded rows of a family, H: head dimension, padded; TILE: rows of queries, COLUMNS:
// keys that they see at a time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "norm_kernel.h"
#include "packed_attention.h"
#include "products_kernel.h"

namespace fastrl::FASTRL_ISA {

constexpr int64_t COLUMNS = 64;

// Memory of a thread, cut into aligned pieces.
class Workspace {
public:
    // Numbers of T for each piece in turn; invalidates what was cut before.
    void start(int64_t bytes) {
        if (static_cast<int64_t>(memory_.size()) < bytes / 4 + 16) memory_.resize(bytes / 4 + 16);
        next_ = reinterpret_cast<uintptr_t>(memory_.data());
        next_ += (64 - next_ % 64) % 64;
    }
    template <typename T>
    T* cut(int64_t count) {
        T* piece = reinterpret_cast<T*>(next_);
        next_ += bytes<T>(count);
        return piece;
    }
    template <typename T>
    static int64_t bytes(int64_t count) {
        return (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    }

private:
    std::vector<float> memory_;
    uintptr_t next_ = 0;
};

// Some rows of a tensor [rows, heads, dim] in fp32, turned by their angles where they have some.
template <typename T>
FASTRL_INLINE void load_head(const PackedAttention& a, const void* x, int64_t stride, int64_t row,
                             int64_t head, bool turned, float* out) {
    const bool angles = turned && a.cos;
    const int64_t at = row * (a.dim / 2);
    prepare_head<T>(static_cast<const T*>(x) + row * stride + head * a.dim, nullptr, 0.0f,
                    angles ? a.cos + at : nullptr, angles ? a.sin + at : nullptr, a.dim, out);
}

// What the segments of a family attend with, for one key/value head.
template <typename T>
struct Attention {
    using F = Factor<T>;
    static constexpr int64_t PER = 4 / sizeof(F);  // factors a word

    static constexpr int64_t padded(int64_t count) {
        return (count + WHOLE<T> - 1) / WHOLE<T> * WHOLE<T>;
    }

    const PackedAttention& a;
    const Family& family;
    const int64_t kv_head, group, R, H, TILE;
    const bool gradient;
    float *rows, *block;           // [larger of TILE and H, H], [larger of TILE and H, TILE]
    float *scores, *peaks, *sums;  // [TILE, COLUMNS], [TILE], [TILE]
    uint32_t *keys, *values;       // turned [H / PER, R], in rows [R / PER, H]
    F *q, *p;                      // [TILE, H], [TILE, COLUMNS]
    float* out;                    // [TILE, H]
    // of the gradient
    uint32_t *values_turned, *key_rows;  // [H / PER, R], [R / PER, H]
    F *q_turned, *dout, *dout_turned;    // [H, TILE], [TILE, H], [H, TILE]
    float *slopes, *deltas;              // [TILE, COLUMNS], [TILE]
    uint32_t* words;                     // [TILE / PER, COLUMNS]
    float *dkeys, *dvalues;              // turned [H, R]

    Attention(const PackedAttention& a_, const Family& family_, int64_t kv_head_, bool gradient_)
        : a(a_),
          family(family_),
          kv_head(kv_head_),
          group(a_.heads / a_.kv_heads),
          R(family_.padded),
          H(padded(a_.dim)),
          TILE(std::max<int64_t>(64, padded(group))),
          gradient(gradient_) {
        thread_local Workspace workspace;
        const int64_t wide = std::max(TILE, H);
        int64_t bytes = 0;
        // twice: to know how much, then to cut
        for (int pass = 0; pass < 2; ++pass) {
            const auto take = [&](auto*& piece, int64_t count) {
                using N = std::remove_reference_t<decltype(*piece)>;
                if (pass == 0)
                    bytes += Workspace::bytes<N>(count);
                else
                    piece = workspace.cut<N>(count);
            };
            if (pass == 1) workspace.start(bytes);
            take(rows, wide * H);
            take(block, wide * TILE);
            take(scores, TILE * COLUMNS);
            take(peaks, TILE);
            take(sums, TILE);
            take(keys, H / PER * R);
            take(values, R / PER * H);
            take(q, TILE * H);
            take(p, TILE * COLUMNS);
            take(out, TILE * H);
            if (!gradient) continue;
            take(values_turned, H / PER * R);
            take(key_rows, R / PER * H);
            take(q_turned, H * TILE);
            take(dout, TILE * H);
            take(dout_turned, H * TILE);
            take(slopes, TILE * COLUMNS);
            take(deltas, TILE);
            take(words, TILE / PER * COLUMNS);
            take(dkeys, H * R);
            take(dvalues, H * R);
        }
    }

    // Keys and values of the family, as the products want them.
    void fetch() {
        for (const Segment& s : family.segments)
            for (int64_t begin = 0; begin < s.rows; begin += COLUMNS) {
                const int64_t count = std::min(COLUMNS, s.rows - begin), all = padded(count);
                const int64_t at = s.at + begin;
                std::fill(rows, rows + all * H, 0.0f);
                for (int64_t i = 0; i < count; ++i)
                    load_head<T>(a, a.k, a.k_stride, s.first + begin + i, kv_head, true,
                                 rows + i * H);
                to_words_turned(rows, all, keys + at);
                if (gradient) to_words<F>(rows, H, all, H, key_rows + at / PER * H, H);
                std::fill(rows, rows + all * H, 0.0f);
                for (int64_t i = 0; i < count; ++i)
                    load_head<T>(a, a.v, a.v_stride, s.first + begin + i, kv_head, false,
                                 rows + i * H);
                to_words<F>(rows, H, all, H, values + at / PER * H, H);
                if (gradient) to_words_turned(rows, all, values_turned + at);
            }
    }

    // Columns of words [H / PER, R] of rows [count, H].
    void to_words_turned(const float* from, int64_t count, uint32_t* to) {
        transpose_block(from, H, count, H, block, TILE);
        to_words<F>(block, TILE, H, count, to, R);
    }

    // Rows of a tile in fp32, zeros after them; [padded(count * group), H].
    void fetch_tile(const void* x, int64_t stride, int64_t first, int64_t count, bool turned) {
        std::fill(rows + count * group * H, rows + padded(count * group) * H, 0.0f);
        for (int64_t i = 0; i < count; ++i)
            for (int64_t head = 0; head < group; ++head) {
                float* to = rows + (i * group + head) * H;
                load_head<T>(a, x, stride, first + i, kv_head * group + head, turned, to);
                std::fill(to + a.dim, to + H, 0.0f);
            }
    }

    // see(at, last, from, limit, causal) over the keys that the queries [begin, begin + count) of a
    // segment see, in the family: the columns [at, last), of which all see those from `from` on and
    // below `limit`; of the segment's own keys (causal) query i sees those below limit + i.
    template <typename See>
    void over_keys(const Segment& s, int64_t begin, int64_t count, const See& see) {
        const int64_t end = s.prefix + s.prefix_rows;
        // products are of whole blocks
        for (int64_t at = s.prefix / WHOLE<T> * WHOLE<T>; at < end; at += COLUMNS)
            see(at, std::min(at + COLUMNS, padded(end)), std::max(at, s.prefix), end, false);
        const int64_t seen = s.at + begin + count;
        for (int64_t at = s.at; at < seen; at += COLUMNS)
            see(at, std::min(at + COLUMNS, padded(seen)), at, s.at + begin + 1, true);
    }

    void forward() {
        fetch();
        const float to_base_2 = a.scale * 1.4426950408889634f;
        for (const Segment& s : family.segments)
            for (int64_t begin = 0; begin < s.rows; begin += TILE / group) {
                const int64_t count = std::min(TILE / group, s.rows - begin), M = count * group;
                fetch_tile(a.q, a.q_stride, s.first + begin, count, true);
                to_rows(rows, H, padded(M), H, q, H);
                std::fill(peaks, peaks + M, -std::numeric_limits<float>::infinity());
                std::fill(sums, sums + M, 0.0f);
                std::fill(out, out + padded(M) * H, 0.0f);
                over_keys(s, begin, count,
                          [&](int64_t at, int64_t last, int64_t from, int64_t limit, bool causal) {
                              const int64_t N = last - at;
                              products<T, false>(q, H, keys + at, R, scores, COLUMNS, padded(M), N,
                                                 H);
                              for (int64_t r = 0; r < M; ++r)
                                  soften(r, N, from - at, limit - at + (causal ? r / group : 0),
                                         to_base_2);
                              products<T, true>(p, COLUMNS, values + at / PER * H, H, out, H,
                                                padded(M), H, N);
                          });
                for (int64_t r = 0; r < M; ++r) {
                    const int64_t row = s.first + begin + r / group;
                    const int64_t head = kv_head * group + r % group;
                    const float inverse = 1.0f / sums[r];
                    T* to = static_cast<T*>(a.out) + (row * a.heads + head) * a.dim;
                    by_vectors(a.dim, [&](int64_t i, const auto& get, const auto& put) {
                        put(to + i, get(static_cast<const float*>(out + r * H) + i) * inverse);
                    });
                    a.log_sums[row * a.heads + head] = peaks[r] + std::log2(sums[r]);
                }
            }
    }

    // The scores of a row as weights in `p`, relative to the largest so far, to which what was
    // summed before is brought; those outside of the columns [first, last) are 0.
    FASTRL_INLINE void soften(int64_t r, int64_t N, int64_t first, int64_t last, float to_base_2) {
        float* s = scores + r * COLUMNS;
        Floats top = splat(-std::numeric_limits<float>::infinity());
        for (int64_t i = 0; i < N; i += WIDTH) {
            const Floats score = masked(load(s + i) * to_base_2, i, first, last);
            store(s + i, score);
            top = larger(score, top);
        }
        const float now = std::max(peaks[r], largest(top));
        if (now > peaks[r]) {
            const Floats shrink = exp2(splat(std::max(peaks[r] - now, -127.0f)));
            for (int64_t i = 0; i < H; i += WIDTH)
                store(out + r * H + i, load(out + r * H + i) * shrink);
            sums[r] *= shrink[0];
            peaks[r] = now;
        }
        Floats sum = {};
        for (int64_t i = 0; i < N; i += WIDTH) {
            const Floats weight = exp2_of_negative(load(s + i) - now);
            sum += weight;
            store(p + r * COLUMNS + i, weight);
        }
        sums[r] += static_cast<float>(total(sum));
    }

    static FASTRL_INLINE Floats masked(Floats score, int64_t i, int64_t first, int64_t last) {
        if (i >= first && i + WIDTH <= last) return score;
        static constexpr struct Count {
            float lanes[WIDTH] = {};
            constexpr Count() {
                for (int k = 0; k < WIDTH; ++k) lanes[k] = static_cast<float>(k);
            }
        } count;
        const Floats lane = load(count.lanes) + static_cast<float>(i);
        const Floats from = splat(static_cast<float>(first)), to = splat(static_cast<float>(last));
        const Floats none = splat(-std::numeric_limits<float>::infinity());
        return lane < from ? none : lane < to ? score : none;
    }

    // With weights p, dp = dout v and delta = dout out: ds = p (dp - delta), dv = p dout,
    // dq = ds k scale, dk = ds q scale (Dao et al. 2022).
    void backward(const PackedGradient& g) {
        fetch();
        std::fill(dkeys, dkeys + H * R, 0.0f);
        std::fill(dvalues, dvalues + H * R, 0.0f);
        const float to_base_2 = a.scale * 1.4426950408889634f;
        const int64_t width = a.heads * a.dim;
        for (const Segment& s : family.segments)
            for (int64_t begin = 0; begin < s.rows; begin += TILE / group) {
                const int64_t count = std::min(TILE / group, s.rows - begin), M = count * group;
                const int64_t first = s.first + begin;
                fetch_tile(a.q, a.q_stride, first, count, true);
                to_rows(rows, H, padded(M), H, q, H);
                transpose_block(rows, H, padded(M), H, block, TILE);
                to_rows(block, TILE, H, padded(M), q_turned, TILE);
                fetch_tile(g.dout, width, first, count, false);
                to_rows(rows, H, padded(M), H, dout, H);
                transpose_block(rows, H, padded(M), H, block, TILE);
                to_rows(block, TILE, H, padded(M), dout_turned, TILE);
                for (int64_t r = 0; r < padded(M); ++r) peaks[r] = deltas[r] = 0.0f;
                for (int64_t r = 0; r < M; ++r) {
                    const int64_t row = first + r / group, head = kv_head * group + r % group;
                    peaks[r] = a.log_sums[row * a.heads + head];
                    const T* made = static_cast<const T*>(a.out) + (row * a.heads + head) * a.dim;
                    Floats sum = {};
                    by_vectors(a.dim, [&](int64_t i, const auto& get, const auto&) {
                        sum += get(made + i) * get(static_cast<const float*>(rows + r * H) + i);
                    });
                    deltas[r] = static_cast<float>(total(sum));
                }
                std::fill(out, out + padded(M) * H, 0.0f);
                over_keys(s, begin, count,
                          [&](int64_t at, int64_t last, int64_t from, int64_t limit, bool causal) {
                              see_back(padded(M), at, last - at, from - at, limit - at, causal,
                                       to_base_2);
                          });
                for (int64_t r = 0; r < M; ++r)
                    give(out + r * H, first + r / group, kv_head * group + r % group, a.heads,
                         a.scale, true, g.dq);
            }
        for (const Segment& s : family.segments)
            for (int64_t begin = 0; begin < s.rows; begin += COLUMNS) {
                const int64_t count = std::min(COLUMNS, s.rows - begin);
                const int64_t at = s.at + begin;
                for (const bool of_keys : {true, false}) {
                    transpose_block((of_keys ? dkeys : dvalues) + at, R, H, padded(count), rows, H);
                    for (int64_t i = 0; i < count; ++i)
                        give(rows + i * H, s.first + begin + i, kv_head, a.kv_heads,
                             of_keys ? a.scale : 1.0f, of_keys, of_keys ? g.dk : g.dv);
                }
            }
    }

    // A tile of queries and the keys [at, at + N) of the family.
    void see_back(int64_t M, int64_t at, int64_t N, int64_t first, int64_t last, bool causal,
                  float to_base_2) {
        products<T, false>(q, H, keys + at, R, scores, COLUMNS, M, N, H);
        products<T, false>(dout, H, values_turned + at, R, slopes, COLUMNS, M, N, H);
        for (int64_t r = 0; r < M; ++r) {
            float *weights = scores + r * COLUMNS, *slope = slopes + r * COLUMNS;
            const int64_t end = last + (causal ? r / group : 0);
            const Floats peak = splat(peaks[r]), delta = splat(deltas[r]);
            for (int64_t i = 0; i < N; i += WIDTH) {
                const Floats weight =
                    exp2_of_negative(masked(load(weights + i) * to_base_2, i, first, end) - peak);
                store(weights + i, weight);
                store(slope + i, weight * (load(slope + i) - delta));
            }
        }
        to_words<F>(scores, COLUMNS, M, N, words, COLUMNS);
        products<T, true>(dout_turned, TILE, words, COLUMNS, dvalues + at, R, H, N, M);
        to_words<F>(slopes, COLUMNS, M, N, words, COLUMNS);
        products<T, true>(q_turned, TILE, words, COLUMNS, dkeys + at, R, H, N, M);
        to_rows(slopes, COLUMNS, M, N, p, COLUMNS);
        products<T, true>(p, COLUMNS, key_rows + at / PER * H, H, out, H, M, H, N);
    }

    // A head's gradient scaled, turned back and rounded to its place in [rows, heads, dim].
    void give(float* x, int64_t row, int64_t head, int64_t heads, float scale, bool turned,
              void* target) {
        for (int64_t i = 0; i < H; i += WIDTH) store(x + i, load(x + i) * scale);
        if (turned && a.cos)
            turn(x, a.cos + row * (a.dim / 2), a.sin + row * (a.dim / 2), -1.0f, a.dim, x);
        store_numbers(static_cast<T*>(target) + (row * heads + head) * a.dim, x, a.dim);
    }
};

template <typename T>
void attend_packed(const PackedAttention& a, const Family& family, int64_t kv_head) {
    const Products products;
    Attention<T>(a, family, kv_head, false).forward();
}

template <typename T>
void attend_packed_back(const PackedAttention& a, const PackedGradient& g, const Family& family,
                        int64_t kv_head) {
    const Products products;
    Attention<T>(a, family, kv_head, true).backward(g);
}

inline void packed_forward(const PackedAttention& a, const Family& family, int64_t kv_head) {
    if (a.dtype == DType::bf16)
        attend_packed<BFloat16>(a, family, kv_head);
    else
        attend_packed<float>(a, family, kv_head);
}

inline void packed_backward(const PackedAttention& a, const PackedGradient& g, const Family& family,
                            int64_t kv_head) {
    if (a.dtype == DType::bf16)
        attend_packed_back<BFloat16>(a, g, family, kv_head);
    else
        attend_packed_back<float>(a, g, family, kv_head);
}

constexpr PackedAttentionFunctions packed = {packed_forward, packed_backward};

}  // namespace fastrl::FASTRL_ISA
