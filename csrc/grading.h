// Reads the final answer out of a completion and decides whether it equals the gold answer.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fastrl {

enum class Reason : uint8_t {
    correct,
    wrong,
    no_answer,    // no complete box in the answer region
    empty,        // the last box is empty, whatever stands before it
    shotgun,      // more than three different boxed values
    thinking,     // a thinking section that is never closed
    limit,        // longer than the answer's limit, or over the budget
    gold_unreadable,
};

struct Verdict {
    Reason reason = Reason::no_answer;
    // byte span of the answer in the completion, white space left out; -1: none
    int64_t begin = -1;
    int64_t end = -1;
};

// The answer is the last complete box of `completion`, or all of it where `is_answer`.
// `budget_ops` bounds the products of nine-digit limbs of one comparison.
Verdict grade(std::string_view completion, std::string_view gold, bool is_answer,
              int64_t budget_ops);

// Verdicts of many; the same for any number of threads, of which at most 256 are started.
void grade_all(const std::vector<std::string_view>& completions,
               const std::vector<std::string_view>& golds, bool is_answer, int64_t budget_ops,
               int threads, Verdict* verdicts);

}  // namespace fastrl
