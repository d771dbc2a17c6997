// How numbers are written: separators of thousands, periods that repeat, powers of ten.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace fastrl::grading {

inline bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
inline bool is_digit(char c) { return c >= '0' && c <= '9'; }
inline bool is_upper(char c) { return c >= 'A' && c <= 'Z'; }
inline bool is_lower(char c) { return c >= 'a' && c <= 'z'; }
inline bool is_letter(char c) { return is_upper(c) || is_lower(c); }
inline char lower(char c) { return is_upper(c) ? static_cast<char>(c - 'A' + 'a') : c; }

// digits / 10^decimals * 10^exponent, the last `repeating` decimals over and over.
struct NumberText {
    std::string digits;  // with capital letters in a numeral of a base above ten
    int32_t decimals = 0;
    int32_t repeating = 0;
    int64_t exponent = 0;
    bool has_point = false;
    bool has_exponent = false;
    bool grouped = false;  // 1,234: may also be a list
};

// Reads the number at `at`, where a digit or a point stands; returns its end. `commas` and `blanks`
// may separate thousands.
size_t read_number(std::string_view text, size_t at, bool commas, bool blanks, NumberText& number);

// The size of a numeral with letters for digits at this place, which its base tells: FF_{16}; or 0.
size_t numeral_size(std::string_view text, size_t at);

}  // namespace fastrl::grading
