#include <algorithm>
#include <cstring>

#include "extract_parts.h"

namespace fastrl::grading {

namespace {

constexpr size_t kMostBoxes = 1024;  // complete ones; more are a shotgun
constexpr size_t kMostOpen = 64;     // boxes in boxes that are remembered
constexpr size_t kLongestGap = 48;   // between boxes side by side

struct Box {
    size_t start;       // of the command
    size_t begin, end;  // of the content
    size_t stop;        // after the closing brace
};

// Length of the box command at the front of `text`, 0 for none. A longer command such as \boxedly
// passes: the letter that follows is neither a brace nor a number, so that no box comes of it.
size_t box_command(std::string_view text) {
    for (const std::string_view command : {"\\boxed", "\\fbox"})
        if (starts(text, command)) return command.size();
    return 0;
}

// Length of the number at the front of `text`, which stands in a box without braces: \boxed -3/4.
// None where more than a number stands there: \boxed 7x.
size_t bare_number(std::string_view text) {
    const auto digit_at = [&](size_t i) { return i < text.size() && is_digit(text[i]); };
    size_t size = !text.empty() && text[0] == '-' ? 1 : 0;
    if (!digit_at(size)) return 0;
    const std::string_view joints = "./,";
    while (digit_at(size) ||
           (size < text.size() && digit_at(size + 1) && joints.find(text[size]) != kNone))
        ++size;
    if (size == text.size()) return size;
    const std::string_view ends = " \t\r\n$.,;:)]}*<\"'";
    const auto rest = text.substr(size);
    return ends.find(rest[0]) != kNone || starts(rest, "\\)") || starts(rest, "\\]") ? size : 0;
}

// The boxes that are complete and lie in no other box, in order; a box that holds nothing but a box
// stands for the inner one. An escaped brace is none. Up to the first command one search for
// backslashes, from there one pass. `dangling`: a box opens after the last complete one.
std::vector<Box> find_boxes(std::string_view text, bool& dangling, bool& too_many) {
    struct Open {
        size_t command, begin;
        int64_t depth;
    };
    const auto is_blank = [&](size_t from, size_t to) {
        return trim(text.substr(from, to - from)).empty();
    };
    std::vector<Box> found;
    std::vector<Open> open;
    int64_t depth = 0;
    size_t pending = kNone;  // a box command that waits for its brace
    bool any = false;
    too_many = false;
    for (size_t i = 0; i < text.size(); ++i) {
        if (!any) {
            const void* next = std::memchr(text.data() + i, '\\', text.size() - i);
            if (!next) break;
            i = static_cast<size_t>(static_cast<const char*>(next) - text.data());
        }
        const char c = text[i];
        if (c == '\\') {
            const size_t size = box_command(text.substr(i));
            any = any || size;
            pending = size ? i : kNone;
            i += size ? size - 1 : 1;  // the escaped character is no brace
        } else if (c == '{') {
            ++depth;
            if (pending != kNone) {
                if (open.size() == kMostOpen) open.erase(open.begin());
                open.push_back({pending, i + 1, depth});
            }
            pending = kNone;
        } else if (c == '}') {
            pending = kNone;
            if (depth == 0) continue;
            --depth;
            if (open.empty() || open.back().depth != depth + 1) continue;
            const Open top = open.back();
            open.pop_back();
            Box box{top.command, top.begin, i, i + 1};
            size_t inside = 0;
            for (; !found.empty() && found.back().start >= top.begin; ++inside) {
                const Box inner = found.back();
                found.pop_back();
                if (inside == 0 && is_blank(top.begin, inner.start) && is_blank(inner.stop, i)) {
                    box.begin = inner.begin;
                    box.end = inner.end;
                }
            }
            found.push_back(box);
        } else if (pending != kNone && !is_space(c)) {
            if (const size_t size = bare_number(text.substr(i))) {
                found.push_back({pending, i, i + size, i + size});
                i += size - 1;
            }
            pending = kNone;
        }
        if (found.size() > kMostBoxes) {
            found.erase(found.begin(), found.begin() + kMostBoxes / 2);
            too_many = true;
        }
    }
    dangling = !open.empty() && (found.empty() || open.back().command > found.back().stop);
    return found;
}

// Whether boxes with this text between them stand side by side.
bool joins(std::string_view gap) {
    if (gap.size() > kLongestGap) return false;
    while (!gap.empty()) {
        size_t size = 0;
        for (const std::string_view part :
             {" ",   "\n",     "\t",      "\r",  ",",   ";",       "$", "\\(", "\\)", "\\[", "\\]",
              "\\,", "\\quad", "\\qquad", "\\ ", "\\;", "\\text{", "}", "and", "or",  "&",   "*"})
            if (starts(gap, part)) size = std::max(size, part.size());
        if (size == 0) return false;
        gap.remove_prefix(size);
    }
    return true;
}

}  // namespace

bool take_boxes(std::string_view region, Found& found) {
    bool dangling, too_many;
    const auto boxes = find_boxes(region, dangling, too_many);
    if (dangling) {
        found.reason = Reason::truncated;
        return true;
    }
    if (boxes.empty()) return false;
    const auto content = [&](const Box& box) {
        return trim(region.substr(box.begin, box.end - box.begin));
    };
    found.answer = content(boxes.back());
    found.reason = found.answer.empty() ? Reason::empty : Reason::wrong;
    if (too_many && found.reason == Reason::wrong) found.reason = Reason::shotgun;
    for (const Box& box : boxes)
        if (const auto value = content(box); !value.empty()) found.values.push_back(value);
    size_t first = boxes.size() - 1;
    while (first > 0 && !content(boxes[first - 1]).empty() &&
           joins(region.substr(boxes[first - 1].stop, boxes[first].start - boxes[first - 1].stop)))
        --first;
    for (size_t i = first; i < boxes.size(); ++i) found.joined.push_back(content(boxes[i]));
    return true;
}

}  // namespace fastrl::grading
