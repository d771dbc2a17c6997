// libFuzzer targets for attention: over the paged cache with -DPAGED, else over packed rows
// (-DPACKED). A definition in fp64 says what comes out of tame numbers.
#include <algorithm>
#include <numeric>

#include "../../csrc/packed_attention.h"
#include "../../csrc/paged_attention.h"
#include "cache.h"
#include "inputs.h"

using namespace fastrl;
using namespace fastrl::fuzz;

namespace {

using Doubles = std::vector<double>;
using Heads = std::vector<Doubles>;
using Pointers = std::vector<const Doubles*>;

constexpr float EPS = 1e-5f;

// What a product of numbers in a dtype may be off, by its size.
double unit(DType dtype) { return dtype == DType::f32 ? 0x1p-22 : 0x1p-8; }

struct Sizes {
    DType dtype;
    Numbers numbers;
    bool turns;
    int64_t kv_heads, heads, dim;

    explicit Sizes(Source& source)
        : dtype(source.one_of({DType::f32, DType::bf16})),
          numbers(source.numbers()),
          turns(source.once_in(2)),
          kv_heads(source.integer(1, 3)),
          heads(kv_heads * draw_group(source)),
          dim((turns ? 2 : 1) * source.integer(1, source.once_in(4) ? 35 : 10)) {}
    // Now and then more than a tile has rows.
    static int64_t draw_group(Source& source) {
        return source.integer(1, source.once_in(32) ? 80 : source.once_in(4) ? 5 : 2);
    }
    float scale() const { return 1.0f / std::sqrt(static_cast<float>(dim)); }
};

// Cosines and sines of the angles of some rows.
struct Angles {
    Tensor cos, sin;

    Angles(Source& source, int64_t rows, int64_t half)
        : cos(DType::f32, rows, half), sin(DType::f32, rows, half) {
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t i = 0; i < half; ++i) {
                const float angle = source.number(Numbers::tame);
                cos.set(row, i, std::cos(angle));
                sin.set(row, i, std::sin(angle));
            }
    }

    // `sign` -1: back.
    void turn(Doubles& head, int64_t row, double sign) const {
        const size_t half = head.size() / 2;
        for (size_t i = 0; i < half; ++i) {
            const double first = head[i], second = head[half + i];
            const double c = cos.at(row, i), s = sign * sin.at(row, i);
            head[i] = first * c - second * s, head[half + i] = second * c + first * s;
        }
    }
};

Doubles head_of(const Tensor& x, int64_t row, int64_t head, int64_t dim) {
    Doubles numbers(dim);
    for (int64_t i = 0; i < dim; ++i) numbers[i] = x.at(row, head * dim + i);
    return numbers;
}

double dot(const Doubles& a, const Doubles& b) {
    return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

Pointers pointers(const Heads& heads) {
    Pointers all;
    for (const Doubles& head : heads) all.push_back(&head);
    return all;
}

double largest(const Doubles& numbers) {
    double most = 0;
    for (const double x : numbers) most = std::max(most, std::abs(x));
    return most;
}

// Weights of keys by definition, and how far off in proportion they may be.
struct Weights {
    Doubles p;
    double log_sum, off = 0;

    Weights(DType dtype, const Doubles& q, const Pointers& keys, double scale) {
        double peak = -INFINITE, sum = 0;
        for (const Doubles* key : keys) {
            double size = 0;
            for (size_t i = 0; i < q.size(); ++i) size += std::abs(q[i] * (*key)[i]) * scale;
            p.push_back(dot(q, *key) * scale);
            peak = std::max(peak, p.back());
            off = std::max(off, unit(dtype) * (2 + 2 * size));
        }
        for (double& weight : p) sum += weight = std::exp(weight - peak);
        for (double& weight : p) weight /= sum;
        log_sum = peak + std::log(sum);
    }

    Doubles of(const Pointers& values) const {
        Doubles sum(values.front()->size());
        for (size_t j = 0; j < p.size(); ++j)
            for (size_t i = 0; i < sum.size(); ++i) sum[i] += p[j] * (*values[j])[i];
        return sum;
    }
};

bool near_head(const Tensor& got, int64_t row, int64_t head, const Doubles& wanted, double off) {
    const int64_t dim = static_cast<int64_t>(wanted.size());
    for (int64_t i = 0; i < dim; ++i)
        if (!near(got.at(row, head * dim + i), wanted[i], off + rounding(got.dtype, wanted[i])))
            return false;
    return true;
}

// A head after its RMSNorm, where it has one.
Doubles normed(Doubles head, const Tensor* norm) {
    if (!norm) return head;
    const double scale =
        1 / std::sqrt(dot(head, head) / static_cast<double>(head.size()) + double{EPS});
    for (size_t i = 0; i < head.size(); ++i) head[i] *= scale * norm->at(0, i);
    return head;
}

void attend(const PagedAttention& a, bool as_a_region, int threads) {
    afresh([&] {
        if (!as_a_region) return paged_attention(a, threads);
        Phases phases;
        add_paged_attention(phases, a, threads);
        phases.run(threads);
    });
}

[[maybe_unused]] void check_paged(Source& source) {
    const Sizes s(source);
    const Cache cache(source);
    const int64_t rows = cache.rows, width = s.kv_heads * s.dim;
    const Tensor q = drawn_apart(source, s.dtype, rows, s.heads * s.dim, s.numbers),
                 k = drawn_apart(source, s.dtype, rows, width, s.numbers),
                 v = drawn_apart(source, s.dtype, rows, width, s.numbers);
    const Tensor q_norm = drawn(source, s.dtype, 1, s.dim, s.numbers),
                 k_norm = drawn(source, s.dtype, 1, s.dim, s.numbers);
    const bool norms = source.once_in(2);
    const Angles angles(source, rows, s.dim / 2);
    const Tensor old_k = cache.drawn(source, s.dtype, width, s.numbers),
                 old_v = cache.drawn(source, s.dtype, width, s.numbers);
    const bool as_a_region = source.once_in(2);
    const int threads = static_cast<int>(source.integer(1, 3));

    const Tensor k_cache = cache.guarded(old_k), v_cache = cache.guarded(old_v);
    const Tensor out(s.dtype, rows, s.heads * s.dim), alone(s.dtype, rows, s.heads * s.dim);
    PagedAttention a{};
    a.dtype = s.dtype, a.scale = s.scale(), a.eps = EPS;
    a.heads = s.heads, a.kv_heads = s.kv_heads, a.dim = s.dim;
    a.q = q.data(), a.k = k.data(), a.v = v.data(), a.out = out.data();
    a.q_stride = q.stride, a.k_stride = k.stride, a.v_stride = v.stride;
    a.k_cache = k_cache.data(), a.v_cache = v_cache.data();
    if (s.turns) a.cos = angles.cos.as(), a.sin = angles.sin.as();
    if (norms) a.q_norm = q_norm.data(), a.k_norm = k_norm.data();
    cache.give_rows(a);
    attend(a, as_a_region, threads);

    // one row after another gives the same bits, in the cache as well
    const Tensor k_alone = cache.guarded(old_k), v_alone = cache.guarded(old_v);
    a.k_cache = k_alone.data(), a.v_cache = v_alone.data(), a.rows = 1;
    for (int64_t row = 0; row < rows; ++row) {
        a.q = q.row(row), a.k = k.row(row), a.v = v.row(row), a.out = alone.row(row);
        if (s.turns) a.cos = angles.cos.as() + row * (s.dim / 2);
        if (s.turns) a.sin = angles.sin.as() + row * (s.dim / 2);
        a.row_table = &cache.row_table[row], a.context = &cache.context[row];
        attend(a, false, 1);
    }
    for (const Tensor* tensor : {&k_cache, &v_cache, &k_alone, &v_alone}) tensor->allow();
    assert(same(out, alone) && same(k_cache, k_alone) && same(v_cache, v_alone));

    if (s.numbers != Numbers::tame) return;
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t table = cache.row_table[row], position = cache.context[row] - 1;
        const int64_t mine = cache.slot(table, position);
        assert(same_row(v_cache, mine, v, row));
        for (int64_t head = 0; head < s.kv_heads; ++head) {
            Doubles key = normed(head_of(k, row, head, s.dim), norms ? &k_norm : nullptr);
            if (s.turns) angles.turn(key, row, 1);
            const double off = 4 * rounding(s.dtype, largest(key));
            assert(near_head(k_cache, mine, head, key, off));
        }
        for (int64_t head = 0; head < s.heads; ++head) {
            Doubles query = normed(head_of(q, row, head, s.dim), norms ? &q_norm : nullptr);
            if (s.turns) angles.turn(query, row, 1);
            Heads keys, values;
            for (int64_t i = 0; i <= position; ++i) {
                const int64_t kv_head = head / (s.heads / s.kv_heads);
                keys.push_back(head_of(k_cache, cache.slot(table, i), kv_head, s.dim));
                values.push_back(head_of(v_cache, cache.slot(table, i), kv_head, s.dim));
            }
            const Weights weights(s.dtype, query, pointers(keys), s.scale());
            const Doubles wanted = weights.of(pointers(values));
            assert(near_head(out, row, head, wanted, 8 * weights.off));
        }
    }
}

// What comes of one key/value head of packed rows, and how far off it may be.
struct Truth {
    struct Gradient {
        Doubles wanted;
        double off = 0;
    };
    Heads out;                     // [rows * group]
    Doubles log_sums, off;         // [rows * group]
    std::vector<Gradient> dq;      // [rows * group]
    std::vector<Gradient> dk, dv;  // [rows]
};

// Segments of packed rows; what some of them continue lies in one other.
struct Segments {
    int64_t count, rows = 0;
    Array<int32_t> offsets;
    Array<int64_t> prefixes;

    explicit Segments(Source& source)
        : count(source.integer(1, 5)), offsets(count + 1), prefixes(2 * count) {
        for (int64_t i = 0; i < count; ++i) {
            offsets[i] = static_cast<int32_t>(rows);
            rows += source.integer(i ? 0 : 1, source.once_in(8) ? 100 : 12);
        }
        offsets[count] = static_cast<int32_t>(rows);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t other = source.integer(0, count - 1), first = offsets[other];
            const int64_t rows_there = offsets[other + 1] - first;
            prefixes[2 * i] = prefixes[2 * i + 1] = 0;
            if (other == i || rows_there == 0 || source.once_in(3)) continue;
            const int64_t many = prefixes[2 * i + 1] = source.integer(1, rows_there);
            prefixes[2 * i] = first + source.integer(0, rows_there - many);
        }
    }

    std::vector<int64_t> seen(int64_t segment, int64_t row) const {
        std::vector<int64_t> rows_seen(prefixes[2 * segment + 1] + row - offsets[segment] + 1);
        const auto own = rows_seen.begin() + prefixes[2 * segment + 1];
        std::iota(rows_seen.begin(), own, prefixes[2 * segment]);
        std::iota(own, rows_seen.end(), offsets[segment]);
        return rows_seen;
    }
};

// With weights p and dp = dout v: ds = p (dp - p dp), dv = p dout, dq = ds k scale, dk = ds q
// scale.
Truth truth_of(const Sizes& s, const Segments& segments, const Angles& angles, const Tensor& q,
               const Tensor& k, const Tensor& v, const Tensor& dout, int64_t kv_head) {
    const int64_t group = s.heads / s.kv_heads;
    const double scale = s.scale(), one = unit(s.dtype);
    Truth truth;
    Heads keys, values;
    for (int64_t row = 0; row < segments.rows; ++row) {
        keys.push_back(head_of(k, row, kv_head, s.dim));
        if (s.turns) angles.turn(keys.back(), row, 1);
        values.push_back(head_of(v, row, kv_head, s.dim));
        truth.dk.push_back({Doubles(s.dim)});
        truth.dv.push_back({Doubles(s.dim)});
    }
    const auto add = [](Truth::Gradient& to, double factor, const Doubles& from, double off) {
        for (size_t i = 0; i < from.size(); ++i) to.wanted[i] += factor * from[i];
        to.off += off * largest(from);
    };
    for (int64_t segment = 0; segment < segments.count; ++segment)
        for (int64_t row = segments.offsets[segment]; row < segments.offsets[segment + 1]; ++row)
            for (int64_t i = 0; i < group; ++i) {
                Doubles query = head_of(q, row, kv_head * group + i, s.dim);
                if (s.turns) angles.turn(query, row, 1);
                const Doubles upstream = head_of(dout, row, kv_head * group + i, s.dim);
                const std::vector<int64_t> seen = segments.seen(segment, row);
                Pointers seen_keys, seen_values;
                for (const int64_t j : seen) {
                    seen_keys.push_back(&keys[j]);
                    seen_values.push_back(&values[j]);
                }
                const Weights weights(s.dtype, query, seen_keys, scale);
                truth.out.push_back(weights.of(seen_values));
                truth.log_sums.push_back(weights.log_sum / std::log(2.0));
                truth.off.push_back(weights.off);
                const double delta = dot(upstream, truth.out.back());
                const double size = s.dim * largest(upstream) * 4;  // of dout v
                const double off = scale * size * (2 * weights.off + 8 * one);
                Truth::Gradient dq{Doubles(s.dim)};
                for (size_t j = 0; j < seen.size(); ++j) {
                    const double p = weights.p[j];
                    const double ds = p * (dot(upstream, *seen_values[j]) - delta) * scale;
                    add(dq, ds, *seen_keys[j], p * off);
                    add(truth.dk[seen[j]], ds, query, p * off);
                    add(truth.dv[seen[j]], p, upstream, p * (2 * weights.off + 2 * one));
                }
                if (s.turns) angles.turn(dq.wanted, row, -1);
                truth.dq.push_back(dq);
            }
    for (int64_t row = 0; s.turns && row < segments.rows; ++row)
        angles.turn(truth.dk[row].wanted, row, -1);
    return truth;
}

[[maybe_unused]] void check_packed(Source& source) {
    const Sizes s(source);
    const Segments segments(source);
    const int64_t rows = segments.rows, group = s.heads / s.kv_heads;
    const Tensor q = drawn_apart(source, s.dtype, rows, s.heads * s.dim, s.numbers),
                 k = drawn_apart(source, s.dtype, rows, s.kv_heads * s.dim, s.numbers),
                 v = drawn_apart(source, s.dtype, rows, s.kv_heads * s.dim, s.numbers),
                 dout = drawn(source, s.dtype, rows, s.heads * s.dim, s.numbers);
    const Angles angles(source, rows, s.dim / 2);
    const Families families(segments.offsets.data(), segments.prefixes.data(), segments.count);
    const int64_t kv_head = source.integer(0, s.kv_heads - 1);
    const int threads = static_cast<int>(source.integer(1, 3));
    const bool is_known = s.numbers == Numbers::tame;
    Truth truth;
    if (is_known) truth = truth_of(s, segments, angles, q, k, v, dout, kv_head);

    const Tensor out(s.dtype, rows, s.heads * s.dim), log_sums(DType::f32, rows, s.heads),
        dq(s.dtype, rows, q.width), dk(s.dtype, rows, k.width), dv(s.dtype, rows, k.width);
    const PackedAttention a{s.dtype,
                            q.data(),
                            k.data(),
                            v.data(),
                            q.stride,
                            k.stride,
                            v.stride,
                            s.turns ? angles.cos.as() : nullptr,
                            s.turns ? angles.sin.as() : nullptr,
                            out.data(),
                            log_sums.as(),
                            s.heads,
                            s.kv_heads,
                            s.dim,
                            s.scale()};
    const PackedGradient g{dout.data(), dq.data(), dk.data(), dv.data()};
    afresh([&] { packed_attention(a, families, threads); });
    afresh([&] { packed_attention_gradient(a, g, families, threads); });
    if (!is_known) return;
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t i = 0; i < group; ++i) {
            const int64_t head = kv_head * group + i, at = row * group + i;
            const double off = truth.off[at];
            assert(near_head(out, row, head, truth.out[at], 8 * off));
            assert(near(log_sums.at(row, head), truth.log_sums[at], 4 * off));
            assert(near_head(dq, row, head, truth.dq[at].wanted, 2 * truth.dq[at].off));
        }
        assert(near_head(dk, row, kv_head, truth.dk[row].wanted, 2 * truth.dk[row].off));
        assert(near_head(dv, row, kv_head, truth.dv[row].wanted, truth.dv[row].off));
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Source source(data, size);
    draw_set(source);
#ifdef PAGED
    check_paged(source);
#else
    check_packed(source);
#endif
    return 0;
}
