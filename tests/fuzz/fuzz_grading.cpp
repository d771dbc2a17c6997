// libFuzzer targets for the grader: extraction with -DEXTRACTION, else equivalence.
//
// The first byte chooses the mode and the options. The rest is a completion, or a gold up to the first
// line feed and a completion.
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

[[maybe_unused]] void check_equivalence(uint8_t choices, std::string_view gold_text,
                                        std::string_view completion) {
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

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
#ifdef EXTRACTION
    check_extraction(static_cast<Mode>(data[0] % 6), text);
#else
    const size_t end = text.find('\n');
    if (end == std::string_view::npos) return 0;
    check_equivalence(data[0], text.substr(0, end), text.substr(end + 1));
#endif
    return 0;
}
