// The text of an answer, LaTeX or plain, as tokens: notation that means the same becomes the same
// token, layout commands and math delimiters go.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "budget.h"

namespace fastrl::grading {

enum class Tok : uint8_t {
    number,
    symbol,    // one letter, latin or greek
    word,      // several letters, or one in text mode
    function,  // id: Function
    constant,  // id: Constant
    set,       // id: the letter of \mathbb
    plus, minus, plus_minus, minus_plus, times, slash, caret, underscore, bang, prime,
    percent, degree, currency,
    group_open, group_close,  // braces that LaTeX does not show
    open, close,              // id: ( [ { < f (floor) c (ceiling)
    bar, colon, comma, semicolon, ampersand, row_end, period, ellipsis,
    relation,  // id: Relation
    in, cup, cap, set_minus, such_that,
    frac, binomial, root, over, choose, overline, begin, end, empty_set,
    unevaluated,  // integrals, sums, products, limits
    other,        // what no expression holds
    stop,
};

enum class Constant : uint8_t { pi, e, i, infinity };
enum class Relation : uint8_t { equal, less, greater, less_equal, greater_equal, not_equal, about };

struct Token {
    Tok kind = Tok::stop;
    uint8_t id = 0;
    bool space = false;  // white space stands before it
    bool text = false;   // inside of \text{} or the like
    uint32_t begin = 0, end = 0;  // in Tokens::source
    int32_t number = -1;          // in Tokens::numbers
};

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

struct Tokens {
    std::string source;  // with unicode notation written as LaTeX
    std::vector<Token> tokens;  // the last is `stop`
    std::vector<NumberText> numbers;
    bool too_deep = false;  // text in text in text

    std::string_view text(const Token& token) const {
        return std::string_view(source).substr(token.begin, token.end - token.begin);
    }
    void clear();
};

// Reads at most kLongestAnswer bytes, which the caller checks. `lists_only`: a comma is never inside
// of a number.
void tokenize(std::string_view text, bool lists_only, Tokens& out);

// The text without white space and layout, for comparing what cannot be read.
std::string canonical_text(const Tokens& tokens, size_t begin, size_t end);

inline bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
inline bool is_digit(char c) { return c >= '0' && c <= '9'; }
inline bool is_upper(char c) { return c >= 'A' && c <= 'Z'; }
inline bool is_lower(char c) { return c >= 'a' && c <= 'z'; }
inline bool is_letter(char c) { return is_upper(c) || is_lower(c); }
inline char lower(char c) { return is_upper(c) ? static_cast<char>(c - 'A' + 'a') : c; }
std::string_view trim(std::string_view text);

}  // namespace fastrl::grading
