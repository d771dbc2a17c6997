// Words: units, and those that count, take back or change what stands before them.
#pragma once

#include <string>
#include <string_view>

namespace fastrl::grading {

std::string lower_case(std::string_view word);

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
