// The text of an answer, LaTeX or plain, as tokens: notation that means the same becomes the same
// token, layout commands and math delimiters go.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "budget.h"
#include "number_text.h"

namespace fastrl::grading {

enum class Tok : uint8_t {
    number,
    symbol,    // one letter, latin or greek
    word,      // several letters, or one in text mode
    function,  // id: Function
    constant,  // id: Constant
    set,       // id: the letter of \mathbb
    plus,
    minus,
    plus_minus,
    minus_plus,
    times,
    slash,
    caret,
    underscore,
    bang,
    prime,
    percent,
    degree,
    currency,
    group_open,
    group_close,  // braces that LaTeX does not show
    open,
    close,  // id: ( [ { < f (floor) c (ceiling)
    bar,
    colon,
    comma,
    semicolon,
    ampersand,
    row_end,
    period,
    ellipsis,
    relation,  // id: Relation
    in,
    cup,
    cap,
    set_minus,
    such_that,
    frac,
    binomial,
    root,
    over,
    choose,
    overline,
    begin,
    end,
    empty_set,
    unevaluated,  // integrals, sums, products, limits
    other,        // what no expression holds
    stop,
};

enum class Constant : uint8_t { pi, e, i, infinity };
enum class Relation : uint8_t { equal, less, greater, less_equal, greater_equal, not_equal, about };

struct Token {
    Tok kind = Tok::stop;
    uint8_t id = 0;
    bool space = false;           // white space stands before it
    uint32_t begin = 0, end = 0;  // in Tokens::source
    int32_t number = -1;          // in Tokens::numbers
};

struct Tokens {
    std::string source;         // with unicode notation written as LaTeX
    std::vector<Token> tokens;  // the last is `stop`
    std::vector<NumberText> numbers;
    bool too_deep = false;  // text in text in text

    std::string_view text(const Token& token) const {
        return std::string_view(source).substr(token.begin, token.end - token.begin);
    }
    void clear();
};

// Reads at most kLongestAnswer bytes, which the caller checks. `lists_only`: a comma is never
// inside of a number.
void tokenize(std::string_view text, bool lists_only, Tokens& out);

// The text without white space and layout, for comparing what cannot be read.
std::string canonical_text(const Tokens& tokens, size_t begin, size_t end);

// Whether a run of letters reads as a product of variables: abc, xyz, kmn, ABCD.
bool is_product(std::string_view run);
std::string_view trim(std::string_view text);

}  // namespace fastrl::grading
