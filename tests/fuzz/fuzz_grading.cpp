// libFuzzer targets for the grader: extraction with -DEXTRACTION, batches with -DBATCH, else
// equivalence.
//
// The first byte chooses the mode and the options. The rest is a completion, or a gold up to the
// first line feed and a completion; of a batch every line is both.
#undef NDEBUG
#include <cassert>
#include <string>

#include "../../csrc/grading/grade.h"

using namespace fastrl::grading;

namespace {

bool lies_in(std::string_view part, std::string_view whole) {
    return part.empty() || (part.data() >= whole.data() &&
                            part.data() + part.size() <= whole.data() + whole.size());
}

bool same(const Found& a, const Found& b) {
    return a.reason == b.reason && a.answer == b.answer && a.joined == b.joined &&
           a.values == b.values && a.most_values == b.most_values;
}

[[maybe_unused]] void check_extraction(Mode mode, std::string_view text) {
    Found found;
    extract(text, mode, found);
    assert(found.reason <= Reason::gold_empty && found.reason != Reason::correct);
    assert(found.reason != Reason::wrong || !found.answer.empty());
    assert(trim(found.answer) == found.answer);
    assert(lies_in(found.answer, text));
    for (const auto part : found.joined) assert(lies_in(part, text));
    for (const auto value : found.values) assert(lies_in(value, text));
    // plain words before it change nothing
    const std::string longer = "So we are done.\n" + std::string(text);
    Found again;
    extract(longer, mode, again);
    assert(same(found, again));
    extract(text, mode, again);
    assert(same(found, again));
}

bool same(const Verdict& a, const Verdict& b) {
    return a.reason == b.reason && a.begin == b.begin && a.end == b.end && a.joined == b.joined;
}

Options options_of(uint8_t choices) {
    const auto choose = [&](int count) {
        const int chosen = choices % count;
        choices = static_cast<uint8_t>(choices / count);
        return chosen;
    };
    Options options;
    options.is_answer = choose(2) == 0;
    options.mode = static_cast<Mode>(choose(6));
    options.rules = {choose(2) == 0, choose(2) == 1};
    options.last_of_many = choose(2) == 1;
    if (choose(4) == 1) options.budget_ops = 50;
    return options;
}

[[maybe_unused]] void check_equivalence(const Options& options, std::string_view gold_text,
                                        std::string_view completion) {
    const Gold gold(gold_text);
    assert(gold.kind() && gold.problem());
    assert(gold.is_readable() || *gold.problem());

    const GoldSource wanted{&gold, {}}, text{nullptr, gold_text};  // compiled, and not
    const std::vector<std::string_view> texts{completion, gold_text, completion};
    Verdict verdicts[3];
    grade_all(texts, {{wanted, wanted, text}, {0, 1, 2, 3}}, options, 1, verdicts);
    assert(same(verdicts[0], verdicts[2]));
    for (int i = 0; i < 2; ++i) {
        const Verdict& verdict = verdicts[i];
        assert(verdict.reason <= Reason::gold_empty);
        assert((verdict.reason == Reason::gold_empty) == !gold.is_readable());
        assert((verdict.begin < 0) == (verdict.end < 0));
        if (verdict.begin >= 0) {
            assert(verdict.begin < verdict.end);
            assert(static_cast<size_t>(verdict.end) <= texts[i].size());
            const auto answer = texts[i].substr(verdict.begin, verdict.end - verdict.begin);
            assert(trim(answer) == answer);
        }
        if (verdict.reason == Reason::correct) assert(verdict.begin >= 0);
    }
    if (options.is_answer && gold.is_readable()) assert(verdicts[1].reason == Reason::correct);

    if (verdicts[0].reason != Reason::correct) return;
    // a second gold takes nothing away
    const Gold other("7");
    Verdict either;
    grade_all({completion}, {{{&other, {}}, wanted}, {0, 2}}, options, 1, &either);
    assert(either.reason == Reason::correct);
}

// Completions with none to three golds each, compiled or not, get together what they get alone.
[[maybe_unused]] void check_batch(const Options& options, std::string_view text) {
    constexpr size_t MOST = 12;
    std::vector<std::string_view> texts;
    for (size_t end = 0; end != std::string_view::npos && texts.size() < MOST;) {
        end = text.find('\n');
        texts.push_back(text.substr(0, end));
        text = end == std::string_view::npos ? "" : text.substr(end + 1);
    }
    const size_t count = texts.size();
    std::vector<Gold> compiled;
    for (const auto gold : texts) compiled.emplace_back(gold);
    Golds golds;
    for (size_t i = 0; i < count; ++i) {
        for (size_t j = 0; j < i % 4; ++j) {
            const size_t at = i * j % count;
            golds.sources.push_back((i + j) % 3 ? GoldSource{nullptr, texts[at]}
                                                : GoldSource{&compiled[at], {}});
        }
        golds.offsets.push_back(golds.sources.size());
    }
    std::vector<Verdict> together(count), in_threads(count);
    grade_all(texts, golds, options, 1, together.data());
    grade_all(texts, golds, options, 3, in_threads.data());
    Gold again;  // whose memory is used again
    for (size_t i = 0; i < count; ++i) {
        const auto first = golds.sources.begin();
        Golds mine{{first + golds.offsets[i], first + golds.offsets[i + 1]}, {0, i % 4}};
        Verdict alone;
        grade_all({texts[i]}, mine, options, 1, &alone);
        assert(same(alone, together[i]) && same(alone, in_threads[i]));
        again.compile(texts[i]);
        assert(again.kind() == std::string(compiled[i].kind()));
        assert(again.problem() == std::string(compiled[i].problem()));
        assert(again.is_readable() == compiled[i].is_readable());
        assert(again.is_listed() == compiled[i].is_listed());
        Answer scratch, other;
        const std::string_view answer = texts[i / 2];
        const Match match = again.equals(answer, scratch, options.budget_ops, options.rules);
        assert(match == compiled[i].equals(answer, other, options.budget_ops, options.rules));
        assert(again.is_hedged(scratch) == compiled[i].is_hedged(other));
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
#ifdef EXTRACTION
    check_extraction(static_cast<Mode>(data[0] % 6), text);
#elif defined(BATCH)
    check_batch(options_of(data[0]), text);
#else
    const size_t end = text.find('\n');
    if (end == std::string_view::npos) return 0;
    check_equivalence(options_of(data[0]), text.substr(0, end), text.substr(end + 1));
#endif
    return 0;
}
