// An answer or a gold as it is compared: as text, as an option, as a tree.
#pragma once

#include <memory>
#include <string>

#include "equal.h"

namespace fastrl::grading {

// (B) or (B) 12: the letter of an option, and the text after it.
struct Option {
    char letter = 0;
    std::string rest;  // empty: the letter alone
};

// What is read is kept and used again: one answer after another costs no allocation.
struct Answer {
    std::string text;  // white space folded, dollar signs around it gone
    Tokens tokens;
    Tree tree;
    int32_t root = -1;
    Reading reading = Reading::unreadable;
    Option option;
    bool is_integer = false;  // nothing but a sign and digits

    Ref ref() const { return {&tree, root, 0, false}; }
    void read(std::string_view answer);
    // What read 1,234 as a number with every comma between elements, and what read 2 m as a length
    // with every letter a variable. False where that cannot be read.
    bool read_again(std::string_view answer);
    // Whether it may mean something else as well.
    bool is_ambiguous() const;
};

// The text with white space folded to single blanks, without the dollar signs around it.
void fold(std::string_view text, std::string& folded);

class Gold {
public:
    Gold() = default;
    explicit Gold(std::string_view text) { compile(text); }

    // Never fails: a gold that cannot be read says so. The memory of the gold before is used again.
    void compile(std::string_view text);

    bool is_readable() const { return readable_; }
    // Why it is not readable: "empty", "undefined", "limit"; or "".
    const char* problem() const { return problem_; }
    const std::string& source() const { return source_; }
    // One of several values: boxes side by side are joined for it.
    bool is_listed() const;
    // number, expression, list, set, tuple, interval, matrix, relation, option, text.
    const char* kind() const;

    Match equals(std::string_view text, Answer& scratch, int64_t budget_ops,
                 const Rules& rules) const;
    // Whether the answer takes back what it says.
    bool is_hedged(const Answer& answer) const;

private:
    std::string source_;
    Answer answer_;
    std::unique_ptr<Answer> again_;  // of 1,234 as a list, of 2 m as a product
    bool readable_ = true;
    bool hedges_ = false;
    const char* problem_ = "";

    Match compare(const Answer& answer, Budget& budget, const Rules& rules) const;
    Match compare_options(const Answer& answer, Budget& budget, const Rules& rules,
                          bool& decided) const;
};

}  // namespace fastrl::grading
