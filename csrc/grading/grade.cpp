#include "grade.h"

#include <algorithm>
#include <memory>

#include "../parallel.h"

namespace fastrl::grading {

namespace {

constexpr int kMostThreads = 256;

using Wanted = std::vector<const Gold*>;

// What one thread uses again and again.
struct Scratch {
    Found found;
    Answer answer;
    std::vector<std::unique_ptr<Gold>> compiled;  // of the last completion that had so many golds
    Wanted wanted;

    // A gold that is that of the completion before, as in a group of responses, is compiled once.
    const Wanted& golds(const GoldSource* sources, size_t count) {
        wanted.clear();
        for (size_t i = 0; i < count; ++i) {
            if (sources[i].compiled) {
                wanted.push_back(sources[i].compiled);
                continue;
            }
            if (compiled.size() <= i) compiled.resize(i + 1);
            if (!compiled[i])
                compiled[i] = std::make_unique<Gold>(sources[i].text);
            else if (compiled[i]->source() != sources[i].text)
                compiled[i]->compile(sources[i].text);
            wanted.push_back(compiled[i].get());
        }
        return wanted;
    }
};

// Whether more than the allowed number of different values is given. Each is read once, and what
// all the comparisons cost comes out of one budget.
bool is_shotgun(const Found& found, const Options& options) {
    const auto& values = found.values;
    if (values.size() <= found.most_values) return false;
    Budget budget{options.budget_ops};
    std::vector<Gold> different;
    different.reserve(found.most_values);
    Answer scratch;
    std::string_view last;
    // the last ones first: what is compared with the gold is among them
    for (size_t i = values.size(); i-- > 0;) {
        if (values[i] == last) continue;
        last = values[i];
        const bool known = std::any_of(different.begin(), different.end(), [&](const Gold& other) {
            const auto cost = static_cast<int64_t>(64 + last.size());
            return budget.spend(cost) &&
                   other.equals(last, scratch, options.budget_ops, options.rules) == Match::yes;
        });
        if (known) continue;
        if (different.size() == found.most_values) return true;
        different.emplace_back(last);
    }
    return false;
}

// One answer against the golds, of which any will do.
Reason compare(std::string_view text, const Wanted& golds, const Options& options,
               Scratch& scratch) {
    Reason reason = Reason::wrong;
    for (const Gold* gold : golds) {
        if (!gold->is_readable()) continue;
        const Match match = gold->equals(text, scratch.answer, options.budget_ops, options.rules);
        if (match == Match::yes) return Reason::correct;
        if (match == Match::limit)
            reason = Reason::limit;
        else if (reason == Reason::wrong && gold->is_hedged(scratch.answer))
            reason = Reason::hedge;
    }
    return reason;
}

// From `first` to `last`, which lie in the completion.
void set_span(Verdict& verdict, std::string_view completion, std::string_view first,
              std::string_view last) {
    verdict.begin = first.data() - completion.data();
    verdict.end = last.data() + last.size() - completion.data();
}

Verdict grade_one(std::string_view completion, const Wanted& golds, const Options& options,
                  Scratch& scratch) {
    Verdict verdict;
    Found& found = scratch.found;
    if (options.is_answer) {
        found.clear();
        found.answer = trim(completion);
        found.reason = found.answer.empty() ? Reason::empty : Reason::wrong;
    } else {
        extract(completion, options.mode, found);
    }
    verdict.reason = found.reason;
    const bool has_answer = !found.answer.empty();
    if (has_answer) set_span(verdict, completion, found.answer, found.answer);
    if (std::none_of(golds.begin(), golds.end(), [](const Gold* g) { return g->is_readable(); })) {
        verdict.reason = Reason::gold_empty;
        return verdict;
    }
    if (options.last_of_many && found.reason == Reason::shotgun && has_answer)
        verdict.reason = Reason::wrong;
    if (verdict.reason != Reason::wrong) return verdict;
    if (options.mode == Mode::choice && !options.is_answer) {
        // letters without regard to case
        size_t size;
        const char letter = option_letter(found.answer, size);
        for (const Gold* gold : golds) {
            size_t gold_size;
            const char wanted = option_letter(gold->source(), gold_size);
            if (letter && wanted && lower(letter) == lower(wanted))
                verdict.reason = Reason::correct;
        }
        if (letter) {
            if (!options.last_of_many && is_shotgun(found, options))
                verdict.reason = Reason::shotgun;
            return verdict;
        }
    }
    const bool listed =
        found.joined.size() > 1 &&
        std::any_of(golds.begin(), golds.end(), [](const Gold* gold) { return gold->is_listed(); });
    if (listed) {
        for (const auto part : found.joined) {
            if (!verdict.joined.empty()) verdict.joined += ", ";
            verdict.joined += part;
        }
        set_span(verdict, completion, found.joined.front(), found.joined.back());
        // they are one value
        const size_t others =
            found.values.size() - std::min(found.values.size(), found.joined.size());
        found.values.resize(others);
        found.values.push_back(verdict.joined);
    }
    if (!options.last_of_many && is_shotgun(found, options)) {
        verdict.reason = Reason::shotgun;
        return verdict;
    }
    if (listed) {
        verdict.reason = compare(verdict.joined, golds, options, scratch);
        if (verdict.reason == Reason::correct) return verdict;
        // or the last box says it all again
        verdict.joined.clear();
        set_span(verdict, completion, found.answer, found.answer);
    }
    verdict.reason = compare(found.answer, golds, options, scratch);
    return verdict;
}

}  // namespace

void grade_all(const std::vector<std::string_view>& completions, const Golds& golds,
               const Options& options, int threads, Verdict* verdicts) {
    parallel_for(static_cast<int64_t>(completions.size()), std::min(threads, kMostThreads),
                 [&](int64_t begin, int64_t end) {
                     Scratch scratch;
                     for (int64_t i = begin; i < end; ++i) {
                         try {
                             const size_t first = golds.offsets[i];
                             const Wanted& wanted = scratch.golds(golds.sources.data() + first,
                                                                  golds.offsets[i + 1] - first);
                             verdicts[i] = grade_one(completions[i], wanted, options, scratch);
                         } catch (...) {  // no memory: nothing leaves the thread
                             verdicts[i] = Verdict{};
                             verdicts[i].reason = Reason::limit;
                         }
                     }
                 });
}

}  // namespace fastrl::grading
