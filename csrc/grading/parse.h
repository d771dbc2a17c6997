// The grammar of an answer, from the list down to a single letter.
#pragma once

#include <cstdlib>
#include <vector>

#include "commands.h"
#include "tree.h"
#include "words.h"

namespace fastrl::grading {

// Recursive descent with a depth limit. A function returns a node, or -1 where the text does not
// fit, and then `reading()` says why.
class Parser {
public:
    Parser(Tokens& tokens, bool letter_units, Tree& tree)
        : tokens_(tokens), tree_(tree), letter_units_(letter_units) {}

    int32_t answer();
    Reading reading() const { return reading_; }

private:
    Tokens& tokens_;
    Tree& tree_;
    size_t at_ = 0;
    bool letter_units_;
    int depth_ = 0;
    int bars_ = 0;      // open |
    int builders_ = 0;  // open \{, in which | and : are "such that"
    int brackets_ = 0;
    int groups_ = 0;            // open braces
    size_t value_start_ = 0;    // the token after an element's sign or equals sign
    size_t element_start_ = 0;  // nodes before the element
    Reading reading_ = Reading::ok;

    struct Deeper {
        explicit Deeper(Parser& parser, bool deeper = true) : parser_(parser), by_(deeper) {
            parser_.depth_ += by_;
        }
        ~Deeper() { parser_.depth_ -= by_; }
        Deeper(const Deeper&) = delete;
        Deeper& operator=(const Deeper&) = delete;
        bool too_deep() {
            if (parser_.depth_ > kDeepest) parser_.fail(Reading::limit);
            return parser_.depth_ > kDeepest;
        }
        Parser& parser_;
        int by_;
    };

    // ---- tokens ----
    const Token& now() const { return tokens_.tokens[at_]; }
    const Token& ahead(size_t n) const {
        return tokens_.tokens[std::min(at_ + n, tokens_.tokens.size() - 1)];
    }
    bool is(Tok kind) const { return now().kind == kind; }
    bool is(Tok kind, char id) const { return is(kind) && now().id == static_cast<uint8_t>(id); }
    bool eat(Tok kind) { return is(kind) && (++at_, true); }
    bool eat(Tok kind, char id) { return is(kind, id) && (++at_, true); }
    std::string_view text(const Token& token) const { return tokens_.text(token); }
    bool is_word() const { return is(Tok::word) && now().end - now().begin > 1; }
    bool is_connective(const Token& token) const;
    bool ends_element() const;

    int32_t fail(Reading reading = Reading::unreadable) {
        if (reading_ != Reading::limit) reading_ = reading;
        return -1;
    }

    // ---- nodes ----
    int32_t add(Node node, const std::vector<int32_t>& children = {});
    int32_t expression(Kind kind, const std::vector<int32_t>& children, uint8_t id = 0,
                       uint16_t flags = 0);
    int32_t number(Number number);
    int32_t integer(uint64_t value) { return number({{false, Integer{value}, Integer{1}}}); }
    int32_t symbol(std::string_view name);
    int32_t constant(uint8_t id);
    int32_t number_set(uint8_t letter);
    int32_t words(std::string_view text);
    int32_t with_sign(Kind sign, int32_t node);
    int32_t scaled(const std::vector<int32_t>& factors, int32_t matrix, bool negative);
    bool is_plain_integer(int32_t node) const;

    // ---- lists and relations (parse_list.cpp) ----
    int32_t list();
    int32_t listed(std::vector<int32_t>& elements, bool any_or, bool any_and);
    bool expand_ellipsis(std::vector<int32_t>& elements);
    int32_t element();
    int32_t text_element();
    int32_t relation();
    int32_t operand();
    int32_t set_operation();
    int32_t ratio();

    // ---- brackets (parse_structure.cpp) ----
    bool items(std::vector<int32_t>& items, bool semicolons);
    bool skip_group();
    int32_t bracketed();
    int32_t braces();
    int32_t french_interval();
    int32_t item();
    int32_t matrix();

    // ---- units (parse_unit.cpp) ----
    int32_t measured(int32_t node);
    bool unit(Unit& unit);
    bool labels(Unit& unit);
    int32_t with_unit(int32_t node, Unit unit);

    // ---- expressions (parse_expression.cpp) ----
    int32_t additive();
    int32_t term();
    bool mixed_number(std::vector<int32_t>& factors);
    bool letter_unit_follows();
    bool starts_factor() const;
    bool signs();
    int32_t signed_factor();
    int32_t factor();
    int32_t postfix(int32_t node);
    int32_t exponent();
    bool eat_transpose();
    int32_t transposed(int32_t matrix);

    // ---- atoms (parse_atom.cpp) ----
    int32_t atom();
    int32_t number_atom();
    int32_t based_number(const NumberText& text);
    int32_t name_atom();
    int32_t application(std::string name);
    std::string subscript();
    int32_t group();
    int32_t absolute_value();
    int32_t argument();
    int32_t root();
    int32_t function();
    int32_t function_argument();
    int32_t decorated();
};

}  // namespace fastrl::grading
