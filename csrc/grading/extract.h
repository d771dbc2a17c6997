// The final answer in a completion: one pass, linear in its length, no pattern that backtracks.
#pragma once

#include <string_view>
#include <vector>

#include "budget.h"

namespace fastrl::grading {

enum class Mode : uint8_t { box, box_or_anchor, flexible, hash4, choice, tag };

enum class Reason : uint8_t {
    correct,
    wrong,
    no_answer,   // nothing of what the mode looks for
    empty,       // the last box is empty, whatever stands before it
    truncated,   // a box or tag that is opened after the last complete one and never closed
    shotgun,     // more different values than one may give
    hedge,       // a value with words that take it back: or, not, maybe
    thinking,    // a thinking section that is never closed
    limit,       // longer than an answer may be, or over the budget
    gold_empty,  // the gold cannot be read
};

struct Found {
    Reason reason = Reason::no_answer;     // `wrong` where there is an answer to compare
    std::string_view answer;               // without the white space around it
    std::vector<std::string_view> joined;  // boxes side by side that end with the answer
    std::vector<std::string_view> values;  // every value given, the answer included
    size_t most_values = 3;                // different ones that may be given

    void clear();
};

void extract(std::string_view completion, Mode mode, Found& found);

// The letter of an option that stands at the front of `text`, and nothing but its marks and white
// space before it: (B), **B**, \text{B}; 0 for none. `size`: up to the letter's end.
char option_letter(std::string_view text, size_t& size);

}  // namespace fastrl::grading
