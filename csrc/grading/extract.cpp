#include "extract.h"

#include <algorithm>
#include <cstring>

#include "extract_parts.h"
#include "words.h"

namespace fastrl::grading {

namespace {

// The last c before `end`.
size_t last_of(std::string_view text, char c, size_t end) {
#ifdef __GLIBC__
    const void* found = memrchr(text.data(), c, end);
    return found ? static_cast<size_t>(static_cast<const char*>(found) - text.data()) : kNone;
#else
    while (end > 0)
        if (text[--end] == c) return end;
    return kNone;
#endif
}

// What follows the last </think>; `open` where a <think> follows it.
std::string_view after_thinking(std::string_view text, bool& open) {
    open = false;
    for (size_t at = last_of(text, '<', text.size()); at != kNone; at = last_of(text, '<', at)) {
        const auto tag = text.substr(at, 8);
        if (tag == "</think>") return text.substr(at + 8);
        if (starts(tag, "<think>")) {
            open = true;
            return text;
        }
    }
    return text;
}

// The text without the special tokens and the white space at its end: <|im_end|>, </s>.
std::string_view without_tail(std::string_view text) {
    for (;;) {
        text = trim(text);
        if (text.empty() || text.back() != '>') return text;
        const size_t begin = last_of(text, '<', text.size());
        if (begin == kNone || text.size() - begin > 32) return text;
        const auto token = text.substr(begin);
        const bool known = (starts(token, "<|") && token[token.size() - 2] == '|') ||
                           token == "</s>" || token == "<eos>" || token == "<end_of_turn>" ||
                           starts(token, "<｜");
        if (!known) return text;
        text = text.substr(0, begin);
    }
}

bool take_anchors(std::string_view region, Found& found) {
    auto values = anchored(region, false);
    if (values.empty()) return false;
    found.reason = Reason::wrong;
    found.answer = values.front();
    found.values = std::move(values);
    found.most_values = 2;
    return true;
}

// The last number of the text, with its sign, as a fraction where it is one.
bool take_last_number(std::string_view region, Found& found) {
    size_t end = region.size();
    while (end > 0 && !is_digit(region[end - 1])) --end;
    if (end == 0) return false;
    size_t begin = end - 1;
    while (begin > 0) {
        const char c = region[begin - 1];
        const bool joint =
            (c == '.' || c == ',' || c == '/') && begin > 1 && is_digit(region[begin - 2]);
        if (!is_digit(c) && !joint &&
            !(c == '.' && !(begin > 1 && is_alphanumeric(region[begin - 2]))))
            break;
        --begin;
    }
    // \frac{1}{2}
    if (end < region.size() && region[end] == '}') {
        const size_t from = end > 64 ? end - 64 : 0;
        size_t frac = region.substr(from, end - from).rfind("frac{");
        if (frac != kNone) {
            const size_t name = region.substr(from, frac).rfind('\\');
            frac = name != kNone && frac - name <= 2 ? name : kNone;  // \frac, \dfrac
        }
        if (frac != kNone) {
            const auto inside = region.substr(from + frac, end + 1 - from - frac);
            if (std::count(inside.begin(), inside.end(), '{') == 2 &&
                std::count(inside.begin(), inside.end(), '}') == 2) {
                begin = from + frac;
                ++end;
            }
        }
    }
    if (end < region.size() && region[end] == '%') ++end;
    const auto sign_before = [&](std::string_view sign) {
        if (begin < sign.size() || region.substr(begin - sign.size(), sign.size()) != sign) return;
        const size_t at = begin - sign.size();
        if (at == 0 || !(is_alphanumeric(region[at - 1]) || region[at - 1] == ')')) begin = at;
    };
    sign_before("-");
    sign_before("−");
    found.reason = Reason::wrong;
    found.answer = region.substr(begin, end - begin);
    return true;
}

bool take_hash(std::string_view region, Found& found) {
    std::vector<size_t> ends;
    find_all(region, {"####", ""}, ends);
    for (size_t i = ends.size(); i-- > 0;) {
        const auto rest = region.substr(ends[i]);
        auto line = rest.substr(0, std::min(rest.find('\n'), rest.size()));
        line = without_tail(line);
        while (!line.empty() && (is_mark(line.back()) || line.back() == '.')) line.remove_suffix(1);
        line = skip_marks(line);
        if (i + 1 == ends.size()) {
            found.answer = line;
            found.reason = line.empty() ? Reason::empty : Reason::wrong;
        }
        if (!line.empty()) found.values.push_back(line);
    }
    found.most_values = 2;
    return !ends.empty();
}

// False where there is no tag at all.
bool take_tag(std::string_view region, Found& found) {
    constexpr std::string_view kOpen = "<answer>", kClose = "</answer>";
    size_t opens = 0, closes = 0, open = kNone, close = kNone;
    for (size_t at = region.find('<'); at != kNone; at = region.find('<', at + 1)) {
        if (starts(region.substr(at), kOpen)) ++opens, open = at;
        if (starts(region.substr(at), kClose)) ++closes, close = at;
    }
    if (opens == 0 && closes == 0) return false;
    if (opens > 1 || closes > 1) {
        found.reason = Reason::shotgun;
        return true;
    }
    if (opens == 1 && closes == 0) {
        found.reason = Reason::truncated;
        return true;
    }
    if (opens == 0 || close < open) return true;
    const auto inside = region.substr(open + kOpen.size(), close - open - kOpen.size());
    if (take_boxes(inside, found)) return true;
    found.answer = trim(inside);
    found.reason = found.answer.empty() ? Reason::empty : Reason::wrong;
    return true;
}

void take_choice(std::string_view region, Found& found) {
    std::vector<std::string_view> candidates;
    if (take_boxes(region, found)) {
        if (found.reason != Reason::wrong) return;
        size_t size;
        if (option_letter(found.answer, size) && takes_back(found.answer.substr(size), true))
            found.reason = Reason::hedge;
        return;
    }
    if (take_tag(region, found)) return;
    for (const auto& value : anchored(region, true)) {
        size_t size;
        if (!option_letter(value, size)) continue;
        if (candidates.empty() && takes_back(value.substr(size), true)) {
            found.reason = Reason::hedge;
            return;
        }
        candidates.push_back(value.substr(size - 1, 1));
    }
    if (candidates.empty()) {
        // the last line is nothing but a letter
        const size_t line = region.find_last_of('\n');
        const auto last = trim(line == kNone ? region : region.substr(line + 1));
        size_t size;
        if (option_letter(last, size) && last.find_first_not_of(" )*_.}$]", size) == kNone)
            candidates.push_back(last.substr(size - 1, 1));
    }
    if (candidates.empty()) {
        // the only option that is named in brackets
        for (size_t at = region.find('('); at != kNone; at = region.find('(', at + 1)) {
            if (at + 2 >= region.size() || !is_upper(region[at + 1]) || region[at + 2] != ')')
                continue;
            const auto letter = region.substr(at + 1, 1);
            if (!candidates.empty() && candidates[0] != letter) return;
            candidates = {letter};
        }
    }
    if (candidates.empty()) return;
    found.reason = Reason::wrong;
    found.answer = candidates[0];
    found.values = std::move(candidates);
    found.most_values = 2;
}

}  // namespace

bool takes_back(std::string_view rest, bool letters) {
    for (size_t i = 0; i < rest.size();) {
        if (!is_letter(rest[i])) {
            if (letters && (rest[i] == '=' || rest[i] == '+')) return true;
            ++i;
            continue;
        }
        size_t end = i;
        while (end < rest.size() && (is_letter(rest[end]) || rest[end] == '\'')) ++end;
        const auto word = rest.substr(i, end - i);
        const bool command = i > 0 && rest[i - 1] == '\\';
        if (command) {
            for (const std::string_view joint : {"lor", "vee", "land", "wedge", "neg"})
                if (word == joint) return true;
        } else if (is_hedge(word) || (word.size() > 3 && word.substr(word.size() - 3) == "n't")) {
            return true;
        } else if (letters && word.size() == 1 && is_upper(word[0])) {
            return true;
        }
        i = end;
    }
    return false;
}

void Found::clear() {
    reason = Reason::no_answer;
    answer = {};
    joined.clear();
    values.clear();
    most_values = 3;
}

char option_letter(std::string_view text, size_t& size) {
    size_t at = 0;
    bool bracket = false;
    while (at < text.size() && at < 24) {
        const char c = text[at];
        if (c == '(' || c == '[') bracket = true;
        if (is_mark(c) || c == '(' || c == '[' || c == '$' || c == '{' || c == '"') {
            ++at;
            continue;
        }
        bool skipped = false;
        for (const std::string_view command :
             {"\\textbf", "\\text", "\\mathrm", "\\mathbf", "\\boxed", "\\(", "\\["})
            if (!skipped && starts(text.substr(at), command)) {
                at += command.size();
                skipped = true;
            }
        if (!skipped) break;
    }
    const bool alone = at < text.size() &&
                       text.find_first_not_of(" \t\r\n)]}$*_.", at + 1) == std::string_view::npos;
    if (at >= text.size() || !(is_upper(text[at]) || ((bracket || alone) && is_lower(text[at]))))
        return 0;
    if (at + 1 < text.size() &&
        (is_alphanumeric(text[at + 1]) || text[at + 1] == '\'' || text[at + 1] == '_'))
        return 0;
    size = at + 1;
    return text[at];
}

void extract(std::string_view completion, Mode mode, Found& found) {
    found.clear();
    bool open;
    auto region = after_thinking(completion, open);
    if (open) {
        found.reason = Reason::thinking;
        return;
    }
    switch (mode) {
        case Mode::box: take_boxes(region, found); break;
        case Mode::box_or_anchor: take_boxes(region, found) || take_anchors(region, found); break;
        case Mode::flexible:
            take_boxes(region, found) || take_anchors(region, found) ||
                take_last_number(without_tail(region), found);
            break;
        case Mode::hash4: take_hash(region, found); break;
        case Mode::choice: take_choice(without_tail(region), found); break;
        case Mode::tag: take_tag(region, found); break;
    }
}

}  // namespace fastrl::grading
