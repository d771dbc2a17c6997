// Notation: LaTeX commands, the names of functions, and the characters of unicode.
#pragma once

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

// nullptr for a command that is not known.
const Command* find_command(std::string_view name);
// What a run of letters in math mode is, without a backslash: a function or constant; else nullptr.
const Command* find_plain_name(std::string_view word);
// What stands for the UTF-8 character at the front of `text`; its bytes in `size` (0: not known).
std::string_view notation_of(std::string_view text, size_t& size);

}  // namespace fastrl::grading
