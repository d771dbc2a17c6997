// What the modes of extraction share.
#pragma once

#include <string_view>
#include <vector>

#include "extract.h"
#include "tokens.h"

namespace fastrl::grading {

constexpr size_t kNone = std::string_view::npos;

inline bool starts(std::string_view text, std::string_view word) {
    return text.substr(0, word.size()) == word;
}

inline bool is_alphanumeric(char c) { return is_letter(c) || is_digit(c); }

// White space and the marks of Markdown.
inline bool is_mark(char c) { return is_space(c) || c == '*' || c == '_' || c == '`'; }

inline std::string_view skip_marks(std::string_view text) {
    while (!text.empty() && is_mark(text.front())) text.remove_prefix(1);
    return text;
}

// Whether words after a letter or a value take it back or name another: or, not, (C), \lor.
bool takes_back(std::string_view rest, bool letters);

// The boxes of the region: false where none was opened.
bool take_boxes(std::string_view region, Found& found);

// A word that an answer follows.
struct Anchor {
    std::string_view word;    // without the first letter, whose case varies
    std::string_view before;  // what that letter may be; empty: the word is whole
};
// Appends where the word ends: of many the last ones.
void find_all(std::string_view text, const Anchor& anchor, std::vector<size_t>& ends);
// The values after each of the anchors, the last first.
std::vector<std::string_view> anchored(std::string_view region, bool choice);

}  // namespace fastrl::grading
