// libFuzzer targets for rows of logits: log-probs, gradients and losses with -DLOGITS, else
// sampling
// (-DSAMPLING).
#include <algorithm>

#include "../../csrc/loss.h"
#include "../../csrc/sample.h"
#include "inputs.h"

using namespace fastrl;
using namespace fastrl::fuzz;

namespace {

constexpr int THREADS = 2;

// Rows of logits as Python passes them, with what they point to.
struct Rows {
    Numbers numbers;
    Tensor x;
    Array<int64_t> targets;
    Array<bool> mask;
    Array<float> temperatures;
    Logits logits;

    // Mostly short ones; long ones have whole chunks of 1,024 columns, and more.
    static int64_t draw_vocab(Source& source) {
        return source.once_in(16) ? source.integer(1000, 3000) : source.integer(1, 70);
    }

    explicit Rows(Source& source) : Rows(source, draw_vocab(source)) {}
    Rows(Source& source, int64_t vocab)
        : numbers(source.numbers()),
          x(drawn_apart(source, source.one_of({DType::f32, DType::bf16, DType::f16}),
                        source.integer(0, vocab > 70 ? 2 : 9), vocab, numbers)),
          targets(x.rows),
          mask(x.rows),
          temperatures(x.rows) {
        const int64_t valid = source.integer(std::max<int64_t>(1, vocab - 70), vocab);
        logits = {x.data(),       x.dtype, x.stride, x.rows, valid, vocab,
                  targets.data(), nullptr, nullptr,  1.0f,   0.0f,  1.0f};
        for (int64_t row = 0; row < x.rows; ++row) {
            targets[row] = source.integer(0, valid - 1);
            mask[row] = true;
            // a few equal to the largest, and some that are ruled out
            for (int i = source.once_in(2) ? 4 : 0; i > 0; --i)
                x.set(row, source.integer(0, vocab - 1), source.one_of({4.0f, -INFINITE}));
        }
    }

    float z(int64_t row, int64_t column) const {
        const double scaled = double{logits.logit_scale} * x.at(row, column), cap = logits.softcap;
        return static_cast<float>(cap > 0 ? cap * std::tanh(scaled / cap) : scaled);
    }
    bool counts(int64_t row) const { return fastrl::counts(logits, row); }
    bool holds_nan(int64_t row) const {
        for (int64_t i = 0; i < logits.valid; ++i)
            if (std::isnan(x.at(row, i))) return true;
        return false;
    }
    // Whether some column has a mass and none an infinite one.
    bool is_sound(int64_t row) const {
        bool some = false;
        for (int64_t i = 0; i < logits.valid; ++i) {
            if (!(z(row, i) < INFINITE)) return false;
            some |= z(row, i) > -INFINITE;
        }
        return some;
    }
};

// A row by definition, in fp64.
struct Softmax {
    std::vector<double> logprobs, p;
    double entropy = 0, squares = 0;

    Softmax(const Rows& rows, int64_t row) {
        const Logits& l = rows.logits;
        const double temperature = l.temperatures ? l.temperatures[row] : l.temperature;
        double peak = -INFINITE, sum = 0;
        for (int64_t i = 0; i < l.valid; ++i) {
            const double x = double{l.logit_scale} * rows.x.at(row, i), cap = l.softcap;
            logprobs.push_back((cap > 0 ? cap * std::tanh(x / cap) : x) / temperature);
            peak = std::max(peak, logprobs.back());
        }
        for (const double z : logprobs) sum += std::exp(z - peak);
        for (double& z : logprobs) {
            z = z - peak - std::log(sum);
            p.push_back(std::exp(z));
            squares += p.back() * p.back();
            if (p.back() > 0) entropy -= p.back() * z;
        }
    }
};

// The settings of what is differentiated: any temperature, softcap and scale, masked rows.
void draw_settings(Source& source, Rows& rows) {
    Logits& l = rows.logits;
    const bool tame = rows.numbers == Numbers::tame;
    const auto temperature = [&] {
        return tame || source.once_in(2) ? source.positive()
                                         : source.one_of({1e-40f, 1e-30f, 1e30f, INFINITE});
    };
    l.temperature = temperature();
    if (source.once_in(3)) l.softcap = source.positive() * 8;
    if (source.once_in(3)) l.logit_scale = source.one_of({0.5f, 2.0f, -1.0f, 0.0f});
    if (source.once_in(2)) l.temperatures = rows.temperatures.data();
    if (source.once_in(2)) l.mask = rows.mask.data();
    for (int64_t row = 0; row < l.rows; ++row) {
        rows.temperatures[row] = temperature();
        if (l.mask && source.once_in(3)) {
            rows.mask[row] = false;
            rows.targets[row] = -100;
            rows.temperatures[row] = source.one_of({0.0f, -1.0f, NOT_A_NUMBER});
            rows.x.forbid(row, 0, rows.x.width);
        }
    }
}

// Not known by definition: what fp32 cannot hold on the way.
bool is_known(const Rows& rows, int64_t row) {
    if (rows.numbers != Numbers::tame || !rows.counts(row) || !rows.is_sound(row)) return false;
    return rows.z(row, rows.targets[row]) > -INFINITE;
}

void check_statistics(const Rows& rows, const float* thresholds) {
    const Logits& l = rows.logits;
    const Tensor logprobs = floats(l.rows), entropy = floats(l.rows), squares = floats(l.rows),
                 largest = floats(l.rows), kept = floats(l.rows);
    const Array<int64_t> argmax(l.rows);
    const Extras extras{squares.as(), largest.as(), argmax.data(), thresholds,
                        thresholds ? kept.as() : nullptr};
    row_statistics(l, logprobs.as(), entropy.as(), extras, THREADS);
    const Tensor again = floats(l.rows), entropy_again = floats(l.rows);
    row_statistics(l, again.as(), entropy_again.as(), {}, THREADS);
    assert(same(logprobs, again) && same(entropy, entropy_again));

    for (int64_t row = 0; row < l.rows; ++row) {
        const float logprob = logprobs.at(0, row), h = entropy.at(0, row);
        if (!rows.counts(row)) {
            assert(logprob == 0 && h == 0 && squares.at(0, row) == 0 && largest.at(0, row) == 0);
            assert(argmax[row] == -1 && (!thresholds || kept.at(0, row) == 0));
            continue;
        }
        assert(argmax[row] >= -1 && argmax[row] < l.valid);
        if (rows.holds_nan(row)) assert(std::isnan(logprob) && std::isnan(h) && argmax[row] == -1);
        if (!is_known(rows, row)) continue;
        const Softmax truth(rows, row);
        const double wanted = truth.logprobs[rows.targets[row]];
        assert(near(logprob, wanted, 1e-5 * (1 + std::abs(wanted))));
        assert(near(h, truth.entropy, 1e-4));
        assert(near(squares.at(0, row), truth.squares, 1e-4));
        const double most = *std::max_element(truth.p.begin(), truth.p.end());
        assert(near(largest.at(0, row), most, 1e-4));
        assert(near(static_cast<float>(truth.p[argmax[row]]), most, 1e-4));
        if (thresholds) assert(kept.at(0, row) <= 1e-4f);
    }
}

// Rows without a gradient are 0, and what it should be where that is known.
void check_rows_of_gradient(const Rows& rows, const Tensor& out, const float* a, const float* g) {
    const Logits& l = rows.logits;
    assert(out.is_whole());
    for (int64_t row = 0; row < l.rows; ++row) {
        assert(out.is_zero(row, l.valid));
        if (!rows.counts(row) || (a[row] == 0 && g[row] == 0)) assert(out.is_zero(row));
        if (!is_known(rows, row)) continue;
        const Softmax truth(rows, row);
        const double temperature = l.temperatures ? l.temperatures[row] : l.temperature;
        for (int64_t i = 0; i < l.valid; ++i) {
            const double p = truth.p[i], bit = i == rows.targets[row] ? 1 : 0;
            double wanted = a[row] * (bit - p), outer = l.logit_scale / temperature;
            if (p > 0) wanted -= g[row] * p * (truth.logprobs[i] + truth.entropy);
            if (l.softcap > 0) {
                const double capped = std::tanh(l.logit_scale * rows.x.at(row, i) / l.softcap);
                outer *= 1 - capped * capped;
            }
            const double size = std::abs(a[row]) + 8 * std::abs(g[row]);
            // 1 - tanh^2 in fp32 is as exact as 1, however little is left of it
            const double left = l.softcap > 0 ? 0x1p-22 * std::abs(l.logit_scale / temperature) : 0;
            const double tolerance =
                rounding(out.dtype, wanted * outer) + (2e-5 * std::abs(outer) + left) * size;
            assert(near(out.at(row, i), wanted * outer, tolerance));
        }
    }
}

void check_gradient(Source& source, const Rows& rows) {
    const Logits& l = rows.logits;
    const Tensor a = drawn(source, DType::f32, 1, l.rows, rows.numbers),
                 g = drawn(source, DType::f32, 1, l.rows, rows.numbers);
    const int64_t stride = l.vocab + source.integer(0, 3);
    const Tensor out(l.dtype, l.rows, l.vocab, stride);
    row_gradient(l, a.as(), g.as(), out.data(), stride, THREADS);
    check_rows_of_gradient(rows, out, a.as(), g.as());
    rows.x.allow();
    const Tensor in_place = rows.x.copy();
    Logits mine = l;
    mine.data = in_place.data();
    row_gradient(mine, a.as(), g.as(), in_place.data(), l.stride, THREADS);
    assert(same(out, in_place));
}

void check_loss(Source& source, const Rows& rows) {
    const Logits& l = rows.logits;
    const auto maybe = [&](const Tensor& numbers, bool always) {
        return always || source.once_in(2) ? numbers.as() : nullptr;
    };
    const Tensor advantages = drawn(source, DType::f32, 1, l.rows, rows.numbers),
                 old = drawn(source, DType::f32, 1, l.rows, rows.numbers),
                 sampler = drawn(source, DType::f32, 1, l.rows, rows.numbers),
                 weights = drawn(source, DType::f32, 1, l.rows, rows.numbers);
    LossSettings settings{};
    settings.loss = source.one_of({Loss::reinforce, Loss::clip, Loss::cispo});
    settings.correction = source.one_of({Correction::none, Correction::truncate, Correction::mask});
    settings.low = std::log1p(-source.integer(0, 16) / 16.0);
    settings.high = std::log1p(source.integer(0, 32) / 16.0);
    settings.dual = source.once_in(2) ? INFINITE : std::log(1 + source.positive());
    settings.cap = source.positive();
    settings.entropy_coef = source.one_of({0.0, 0.5, -0.5});
    settings.scale = source.one_of({1.0, 0.25, 0.0});
    const PolicyRows policy{advantages.as(), maybe(old, false),
                            maybe(sampler, settings.correction != Correction::none),
                            maybe(weights, false)};
    const Tensor losses = floats(l.rows), logprobs = floats(l.rows), entropy = floats(l.rows),
                 other = floats(l.rows), found = floats(l.rows), spread = floats(l.rows);
    const Tensor out(l.dtype, l.rows, l.vocab);
    policy_loss(l, policy, settings, losses.as(), logprobs.as(), entropy.as(), out.data(), l.vocab,
                THREADS);
    policy_loss(l, policy, settings, other.as(), logprobs.as(), entropy.as(), nullptr, 0, THREADS);
    row_statistics(l, found.as(), spread.as(), {}, THREADS);
    assert(same(losses, other) && same(logprobs, found) && same(entropy, spread));
    for (int64_t row = 0; row < l.rows; ++row) {
        assert(out.is_zero(row, l.valid));
        if (!rows.counts(row)) assert(losses.at(0, row) == 0 && out.is_zero(row));
        if (!is_known(rows, row)) continue;
        assert(std::isfinite(losses.at(0, row)));
        if (settings.loss != Loss::reinforce || settings.correction != Correction::none) continue;
        const double weight = policy.weights ? policy.weights[row] : 1;
        const double loss = -advantages.at(0, row) * double{logprobs.at(0, row)} -
                            settings.entropy_coef * entropy.at(0, row);
        assert(near(losses.at(0, row), loss * weight, rounding(DType::f32, loss * weight)));
    }
    if (rows.numbers != Numbers::tame) return;
    if (settings.loss != Loss::reinforce || settings.correction != Correction::none) return;
    const Tensor a = floats(l.rows), g = floats(l.rows);
    for (int64_t row = 0; row < l.rows; ++row) {
        const double weight = (policy.weights ? policy.weights[row] : 1) * settings.scale;
        a.as()[row] = static_cast<float>(-advantages.at(0, row) * weight);
        g.as()[row] = static_cast<float>(-settings.entropy_coef * weight);
    }
    check_rows_of_gradient(rows, out, a.as(), g.as());
}

[[maybe_unused]] void check_logits(Source& source) {
    Rows rows(source);
    draw_settings(source, rows);
    switch (source.integer(0, 2)) {
        case 0: {
            const Tensor thresholds = drawn(source, DType::f32, 1, rows.x.rows, rows.numbers);
            const float* given = source.once_in(2) ? thresholds.as() : nullptr;
            return check_statistics(rows, given);
        }
        case 1: return check_gradient(source, rows);
        default: check_loss(source, rows);
    }
}

// How many columns come before this one in the order of the filters, and their mass.
struct Before {
    int64_t count = 0;
    double mass = 0;

    Before(const Rows& rows, const Softmax& truth, int64_t row, int64_t token) {
        const float mine = rows.z(row, token);
        for (int64_t i = 0; i < rows.logits.valid; ++i)
            if (rows.z(row, i) > mine || (rows.z(row, i) == mine && i < token))
                ++count, mass += truth.p[i];
    }
};

[[maybe_unused]] void check_sampling(Source& source) {
    Rows rows(source);
    Logits& l = rows.logits;
    l.temperatures = rows.temperatures.data();
    if (source.once_in(3)) l.softcap = source.positive() * 8;
    const Array<int32_t> top_k(l.rows);
    const Array<float> top_p(l.rows), min_p(l.rows);
    const Array<int64_t> counters(4 * l.rows);
    for (int64_t row = 0; row < l.rows; ++row) {
        rows.targets[row] = 0;
        rows.temperatures[row] =
            source.once_in(4) ? source.one_of({1e-30f, 1e30f}) : source.positive();
        top_k[row] = source.once_in(2) ? 0 : static_cast<int32_t>(source.integer(0, l.valid));
        top_p[row] = source.once_in(2) ? 1 : source.one_of({1e-30f, 1e-9f, 0.3f, 0.9f, 0.9999999f});
        min_p[row] = source.once_in(2) ? 0 : source.one_of({1e-45f, 1e-9f, 0.1f, 0.7f, 1.0f});
        for (int word = 0; word < 4; ++word)
            counters[4 * row + word] = source.word() & (word == 1 ? 0x3fff : 0xffffffff);
    }
    const uint32_t key0 = source.word(), key1 = source.word();
    const Array<int64_t> tokens(l.rows), alone(1);
    const Tensor logprobs = floats(l.rows), kept = floats(l.rows), others = floats(2);
    afresh([&] {
        sample(l, {top_k.data(), top_p.data(), min_p.data()}, {counters.data(), key0, key1},
               tokens.data(), logprobs.as(), kept.as(), THREADS);
    });
    for (int64_t row = 0; row < l.rows; ++row) {
        const int64_t token = tokens[row];
        const float logprob = logprobs.at(0, row), kept_mass = kept.at(0, row);
        Logits one = l;
        one.data = static_cast<char*>(rows.x.data()) + row * l.stride * rows.x.bytes();
        one.rows = 1;
        one.temperatures += row;
        sample(one, {&top_k[row], &top_p[row], &min_p[row]}, {&counters[4 * row], key0, key1},
               alone.data(), others.as(), others.as() + 1, 1);
        assert(alone[0] == token && same(others.at(0, 0), logprob));
        assert(same(others.at(0, 1), kept_mass));
        if (!rows.is_sound(row)) {
            assert(token == -1 && std::isnan(logprob) && std::isnan(kept_mass));
            continue;
        }
        assert(token >= 0 && token < l.valid && rows.z(row, token) > -INFINITE);
        assert(logprob <= 1e-5f && kept_mass <= 0);
        if (rows.numbers != Numbers::tame) continue;
        const Softmax truth(rows, row);
        const Before before(rows, truth, row, token);
        const double wanted = truth.logprobs[token];
        // a cap's hyperbolic tangent may tie what differs by a bit
        if (l.softcap > 0) continue;
        assert(near(logprob, wanted, 1e-5 * (1 + std::abs(wanted))));
        assert(top_k[row] == 0 || before.count < top_k[row]);
        assert(top_p[row] == 1 || before.count == 0 || before.mass < top_p[row] + 1e-5);
        const double most = *std::max_element(truth.p.begin(), truth.p.end());
        assert(truth.p[token] >= most * min_p[row] * (1 - 1e-4));
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Source source(data, size);
    draw_set(source);
#ifdef LOGITS
    check_logits(source);
#else
    check_sampling(source);
#endif
    return 0;
}
