// The vocabulary: LaTeX commands, unicode notation, function names, units, and the words that
// count.
#pragma once

#include <string>
#include <string_view>

#include "ball.h"
#include "tokens.h"

namespace fastrl::grading {

// What a LaTeX command does to the token stream.
enum class Action : uint8_t {
    skip,
    skip_argument,  // with the group that follows
    space,
    token,        // becomes `kind` with `id`
    text,         // its argument is text
    roman,        // its argument is an upright name: a function, a unit, e
    blackboard,   // its argument names a set
    bracket_size  // skipped with the "." that may follow
};

struct Command {
    std::string_view name;
    Action action;
    Tok kind = Tok::other;
    uint8_t id = 0;
};

// `log` without a base: 10 or e, nobody says; an id beyond those of Function.
constexpr uint8_t kLogFunction = 255;

std::string lower_case(std::string_view word);

// nullptr for a command that is not known.
const Command* find_command(std::string_view name);
// What a run of letters in math mode is, without a backslash: a function or constant; else nullptr.
const Command* find_plain_name(std::string_view word);
// What stands for the UTF-8 character at the front of `text`; its bytes in `size` (0: not known).
std::string_view notation_of(std::string_view text, size_t& size);

// The unit a word names, 0 for none: synonyms have one number.
int find_unit(std::string_view word);
constexpr int kPercentUnit = 1, kDegreeUnit = 2, kRadianUnit = 3, kCelsiusUnit = 4,
              kFahrenheitUnit = 5, kDollarUnit = 6, kEuroUnit = 7, kPoundUnit = 8, kYenUnit = 9;
// Letters that are a unit only in text or after a space: m, s, g.
bool is_letter_unit(std::string_view word);

// dozen, halves, millions, squared: after a value they make another one of it.
bool changes_value(std::string_view word);
// or, and, not, is, either, maybe ...: text with one of them is no plain label of a value.
bool is_hedge(std::string_view word);
// Two lower-case letters that are a word and no product.
bool is_short_word(std::string_view word);
// zero ... twenty, thirty ... hundred; -1 for none.
int number_word(std::string_view word);
// 3 for thousand, and so on: the power of ten; 0 for another word.
int multiplier(std::string_view word);
// The one text for phrases that say the same ("no solutions", "dne"), else the text itself.
std::string_view phrase(std::string_view text);
// The exponent that a word puts on the unit beside it: squared, cubic; 0 for none.
int unit_power(std::string_view word);

}  // namespace fastrl::grading
