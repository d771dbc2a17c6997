#include "sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "instruction_sets.h"

namespace fastrl {

namespace {

constexpr float INFINITE = std::numeric_limits<float>::infinity();

// Columns in their order up to a last one, and their sum of e^(z - m).
struct Prefix {
    uint64_t last;
    double mass;
};

bool comes_first(const Candidate& a, const Candidate& b) { return a.order > b.order; }

// How many of the first candidates it takes to weigh `wanted`, all of them if they do not, and at
// least one; those come to the front. Halves what is undecided, so that nothing is sorted.
template <typename Weight>
int64_t reach(Candidate* candidates, int64_t count, double wanted, const Weight& weight) {
    int64_t low = 0, high = count;  // the first `low` weigh less, the first `high` enough
    double before = 0;
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        std::nth_element(candidates + low, candidates + middle, candidates + high, comes_first);
        double half = 0;
        for (int64_t i = low; i < middle; ++i) half += weight(candidates[i]);
        if (before + half >= wanted)
            high = middle;
        else
            low = middle, before += half;
    }
    return high;
}

// A row, and the ways to look at it.
struct Row {
    const RowFunctions& functions;
    const Logits& logits;
    int64_t row;
    const RowStatistics& found;

    // The z with e^(z - m) = mass.
    float z_at(double mass) const {
        return static_cast<float>(found.peak + std::log2(mass) / found.factor);
    }

    // The smallest prefix whose sum of `weight`, 1 or e^(z - m), is `wanted`; e^(z - m) is at least
    // `least` in it. Reads the row for a few thresholds until little is undecided.
    template <typename Weight>
    Prefix smallest(double wanted, double least, const Weight& weight) const {
        constexpr int N = Above::THRESHOLDS;
        constexpr int64_t FEW = 256;
        constexpr double FAR =
            64;  // z - m = -FAR log2(e) T: where to look first for a column of any z
        float low = least > 0 ? std::min(z_at(least), found.peak) : -INFINITE, high = INFINITE;
        Above at_low{logits.valid, 0}, at_high{};
        for (int round = 0; round < 8 && at_low.count - at_high.count > FEW; ++round) {
            const double top = std::min(high, found.peak);
            const double bottom = std::max<double>(low, found.peak - FAR / found.factor);
            float thresholds[N];
            for (int n = 0; n < N; ++n) {
                const double share = (n + 1.0) / (N + 1);
                // first closer to the top, where most of the mass is
                thresholds[n] =
                    static_cast<float>(top + (bottom - top) * (round == 0 ? share * share : share));
            }
            Above above[N];
            functions.above(logits, row, found, thresholds, above);
            int n = 0;
            while (n < N && weight(above[n]) < wanted) ++n;
            if (n < N) low = thresholds[n], at_low = above[n];
            if (n > 0) high = thresholds[n - 1], at_high = above[n - 1];
        }
        static thread_local std::vector<Candidate> scratch;
        if (static_cast<int64_t>(scratch.size()) < logits.valid) scratch.resize(logits.valid);
        Candidate* const first = scratch.data();
        int64_t count = functions.collect(logits, row, found, low, high, first);
        // sums of another order than the total may not reach what is wanted: then all that counts
        if (count == 0) return {Candidate(low, logits.valid, 0).order, at_high.mass};
        count = reach(first, count, wanted - weight(at_high), weight);
        Prefix prefix{~uint64_t{0}, at_high.mass};
        for (int64_t i = 0; i < count; ++i) {
            prefix.last = std::min(prefix.last, first[i].order);
            prefix.mass += first[i].mass;
        }
        return prefix;
    }

    // Every column with e^(z - m) >= mass.
    Prefix at_least(double mass) const {
        float thresholds[Above::THRESHOLDS];
        for (float& threshold : thresholds) threshold = z_at(mass);
        Above above[Above::THRESHOLDS];
        functions.above(logits, row, found, thresholds, above);
        return {Candidate(thresholds[0], logits.valid, 0).order, above[0].mass};
    }
};

Kept keep(const Row& row, const Filters& filters) {
    const int64_t valid = row.logits.valid, top_k = filters.top_k[row.row];
    const double top_p = filters.top_p[row.row], min_p = filters.min_p[row.row];
    const double total = 1.0 / row.found.inverse_sum;
    const Prefix everything{Candidate(-INFINITE, valid, 0).order, total};
    Prefix kept = everything;
    if (top_k > 0 && top_k < valid)
        kept = row.smallest(static_cast<double>(top_k), top_k == 1,
                            [](const auto& x) { return x.count; });
    if (top_p < 1) {
        // a column with less than an equal share of what top-p leaves out is left out; so it is
        // after top-k, whose columns have more than the average mass
        const double least = (1 - top_p) * total / valid;
        const Prefix likely =
            row.smallest(top_p * kept.mass, least, [](const auto& x) { return x.mass; });
        if (likely.last > kept.last) kept = likely;
    }
    if (min_p > 0) {
        const Prefix likely = row.at_least(min_p);
        if (likely.last > kept.last) kept = likely;
    }
    if (kept.last == everything.last) return {-INFINITE, valid, 0.0};
    const Candidate last(kept.last);
    return {last.value(), last.column(), std::min(0.0, std::log(kept.mass / total))};
}

}  // namespace

void sample(const Logits& logits, const Filters& filters, const Noise& noise, int64_t* tokens,
            float* logprobs, float* log_kept_mass, int threads) {
    const RowFunctions& functions = *instruction_set().rows;
    for_rows(logits, threads, [&](int64_t row) {
        const RowStatistics found = functions.statistics(logits, row, {});
        tokens[row] = -1;
        logprobs[row] = log_kept_mass[row] = std::numeric_limits<float>::quiet_NaN();
        if (!std::isfinite(found.log_sum)) return;
        const Kept kept = keep({functions, logits, row, found}, filters);
        const Drawn drawn = functions.draw(logits, row, found, noise, kept);
        tokens[row] = drawn.token;
        logprobs[row] = static_cast<float>(drawn.logprob);
        log_kept_mass[row] = static_cast<float>(kept.log_mass);
    });
}

}  // namespace fastrl
