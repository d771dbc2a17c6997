// Completions and golds to verdicts, in batches.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "answer.h"
#include "extract.h"

namespace fastrl::grading {

struct Options {
    Mode mode = Mode::box;
    bool is_answer = false;  // a completion is the answer itself
    int64_t budget_ops = kDefaultBudget;
    bool last_of_many = false;  // the last value pays, however many there are
    Rules rules;
};

struct Verdict {
    Reason reason = Reason::no_answer;
    // byte span in the completion, white space left out; -1: none. Of several boxes side by side
    // from the first to the last, and `joined` is what was compared.
    int64_t begin = -1, end = -1;
    std::string joined;
};

// A gold as it was given: compiled, or its text.
struct GoldSource {
    const Gold* compiled = nullptr;
    std::string_view text;
};

// Those of completion i, of which any will do, are sources[offsets[i]] to sources[offsets[i + 1]].
struct Golds {
    std::vector<GoldSource> sources;
    std::vector<size_t> offsets{0};
};

// Verdicts of many; the same for any number of threads, of which at most 256 are started.
void grade_all(const std::vector<std::string_view>& completions, const Golds& golds,
               const Options& options, int threads, Verdict* verdicts);

}  // namespace fastrl::grading
