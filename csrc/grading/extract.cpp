#include "extract.h"

#include <algorithm>
#include <cstring>

#include "tokens.h"

namespace fastrl::grading {

namespace {

constexpr size_t kNone = std::string_view::npos;
constexpr size_t kMostBoxes = 1024;   // complete ones; more are a shotgun
constexpr size_t kMostOpen = 64;      // boxes in boxes that are remembered
constexpr size_t kMostAnchors = 64;   // the last ones are looked at
constexpr size_t kLongestGap = 48;    // between boxes side by side
constexpr size_t kLongestLead = 64;   // between "answer" and "is"

bool starts(std::string_view text, std::string_view word) {
    return text.substr(0, word.size()) == word;
}

bool is_alphanumeric(char c) { return is_letter(c) || is_digit(c); }

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

// ---- boxes -------------------------------------------------------------------------------------

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
    while (digit_at(size) || (size < text.size() && digit_at(size + 1) &&
                              joints.find(text[size]) != kNone))
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
             {" ", "\n", "\t", "\r", ",", ";", "$", "\\(", "\\)", "\\[", "\\]", "\\,", "\\quad",
              "\\qquad", "\\ ", "\\;", "\\text{", "}", "and", "or", "&", "*"})
            if (starts(gap, part)) size = std::max(size, part.size());
        if (size == 0) return false;
        gap.remove_prefix(size);
    }
    return true;
}

// True where there is any box, complete or not: then nothing else is looked at.
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

// ---- anchors -----------------------------------------------------------------------------------

struct Anchor {
    std::string_view word;      // without the first letter, whose case varies
    std::string_view before;    // what that letter may be; empty: the word is whole
};

constexpr Anchor kAnchors[] = {
    {"nswer", "aA"},  {"NSWER", "A"},    {"####", ""},      {"答案", ""},     {"答え", ""},
    {"答：", ""},     {"정답", ""},      {"ntwort", "aA"},  {"espuesta", "rR"}, {"éponse", "rR"},
    {"eponse", "rR"}, {"твет", ""},      {"isposta", "rR"}, {"esposta", "rR"}, {"esultado", "rR"},
};
constexpr Anchor kChoiceAnchors[] = {{"ption", "oO"}, {"hoice", "cC"}, {"PTION", "O"}};

// What may stand between "the answer" and its value.
constexpr std::string_view kVerbs[] = {" is", " are", " be", " was", " equals", " ist", " lautet", " es",
                                       " est", " è", " é", "是", "为", "為", "は", "은", "는", "=", ":",
                                       "：", " Is", " IS"};
constexpr std::string_view kFillers[] = {
    "therefore", "thus", "simply", "just", "indeed", "clearly", "actually", "equal to", "given by",
    "exactly", "then", "option", "choice", "Option", "Choice", "hence", "the", "also", "again", "now"};

void find_all(std::string_view text, const Anchor& anchor, std::vector<size_t>& ends) {
    const size_t before = ends.size();
    for (size_t at = 0; at < text.size();) {
        const void* hit = memmem(text.data() + at, text.size() - at, anchor.word.data(),
                                 anchor.word.size());
        if (!hit) break;
        const auto begin = static_cast<size_t>(static_cast<const char*>(hit) - text.data());
        at = begin + anchor.word.size();
        const bool whole = anchor.before.empty() ||
                           (begin > 0 && anchor.before.find(text[begin - 1]) != kNone);
        if (!whole) continue;
        ends.push_back(at);
        if (ends.size() - before > 2 * kMostAnchors)
            ends.erase(ends.begin() + static_cast<std::ptrdiff_t>(before),
                       ends.begin() + static_cast<std::ptrdiff_t>(before + kMostAnchors));
    }
}

bool is_mark(char c) { return is_space(c) || c == '*' || c == '_' || c == '`'; }

std::string_view skip_marks(std::string_view text) {
    while (!text.empty() && is_mark(text.front())) text.remove_prefix(1);
    return text;
}

// What follows the verb after an anchor; false where there is none.
bool after_verb(std::string_view text, bool needs_verb, std::string_view& value) {
    auto rest = text;
    const auto line = rest.substr(0, std::min(rest.find('\n'), rest.size()));
    size_t best = kNone, size = 0;
    for (const std::string_view verb : kVerbs) {
        const size_t at = line.substr(0, kLongestLead).find(verb);
        if (at == kNone || at > best) continue;
        const size_t stop = at + verb.size();
        if (verb[0] == ' ' && stop < line.size() && is_letter(line[stop])) continue;  // " island"
        if (at < best || verb.size() > size) {
            best = at;
            size = verb.size();
        }
    }
    // a sentence that ends before the verb is another one
    if (best != kNone) {
        const size_t end = line.find(". ");
        if (end < best) best = kNone;
    }
    if (best == kNone) {
        const auto bare = trim(line);
        if (needs_verb && bare.find_first_not_of("*_:#") != kNone) return false;
        if (needs_verb && line.size() == rest.size()) return false;
    } else {
        rest.remove_prefix(best + size);
    }
    for (bool again = true; again;) {
        again = false;
        rest = skip_marks(rest);
        while (!rest.empty() && (rest.front() == ':' || rest.front() == ',')) {
            rest = skip_marks(rest.substr(1));
            again = true;
        }
        if (starts(rest, "：")) rest.remove_prefix(3), again = true;
        for (const std::string_view filler : kFillers)
            if (starts(rest, filler) &&
                (rest.size() == filler.size() || !is_alphanumeric(rest[filler.size()]))) {
                rest.remove_prefix(filler.size());
                again = true;
            }
    }
    value = rest;
    return !rest.empty();
}

// The value at the front of `text`: up to the end of its sentence or line, or of its delimiters.
std::string_view value_at_front(std::string_view text) {
    text = text.substr(0, 2 * kLongestAnswer);  // a longer one is over the limit anyhow
    struct Delimiter {
        std::string_view open, close;
    };
    constexpr Delimiter kDelimiters[] = {
        {"$$", "$$"}, {"\\(", "\\)"}, {"\\[", "\\]"}};
    for (const auto& [open, close] : kDelimiters)
        if (starts(text, open)) {
            const size_t end = text.find(close, open.size());
            if (end != kNone) {
                // what follows the formula in its sentence belongs to the value: units, hedges
                const auto tail = value_at_front(text.substr(end + close.size()));
                return trim(text.substr(0, end + close.size() + (tail.empty() ? 0 : static_cast<size_t>(
                           tail.data() + tail.size() - text.data()) - end - close.size())));
            }
        }
    if (starts(text, "```")) {
        size_t begin = text.find('\n');
        if (begin == kNone) return {};
        const size_t end = text.find("```", begin);
        return trim(text.substr(begin, end == kNone ? kNone : end - begin));
    }
    size_t end = 0;
    bool math = false;
    for (; end < text.size(); ++end) {
        const char c = text[end];
        if (c == '\n') break;
        if (c == '$') math = !math;
        if (c == '<' && (starts(text.substr(end), "<|") || starts(text.substr(end), "</"))) break;
        if (starts(text.substr(end), "。") || starts(text.substr(end), "！")) break;
        if ((c == '.' || c == '!' || c == '?') && !(c == '!' && math)) {
            const char next = end + 1 < text.size() ? text[end + 1] : '\n';
            if (c == '.' && is_digit(next)) continue;
            if (c == '!' && !is_space(next)) continue;
            if (is_space(next) || next == '*' || next == '"' || next == '<' || next == ')') break;
        }
    }
    auto value = text.substr(0, end);
    for (const std::string_view reason : {" because", ", because", " since ", ", since", ", as ", ", which", " which "})
        value = value.substr(0, value.find(reason));
    while (!value.empty() && (is_mark(value.back()) || value.back() == ',' || value.back() == ';'))
        value.remove_suffix(1);
    return skip_marks(value);
}

// The values after each of the anchors, the last first; an anchor whose value another one begins in
// counts once.
std::vector<std::string_view> anchored(std::string_view region, bool choice) {
    std::vector<size_t> ends;
    for (const Anchor& anchor : kAnchors) find_all(region, anchor, ends);
    if (choice)
        for (const Anchor& anchor : kChoiceAnchors) find_all(region, anchor, ends);
    std::sort(ends.rbegin(), ends.rend());
    std::vector<std::string_view> values;
    for (size_t i = 0; i < std::min(ends.size(), kMostAnchors); ++i) {
        auto text = region.substr(ends[i]);
        const bool hash = ends[i] >= 4 && region.substr(ends[i] - 4, 4) == "####";
        if (!hash && starts(text, "s")) text.remove_prefix(1);
        if (!hash && !text.empty() && is_letter(text[0])) continue;  // "answered"
        std::string_view value;
        if (hash ? (value = skip_marks(text), value.empty()) : !after_verb(text, true, value)) continue;
        if (hash && text.substr(0, std::min(text.find('\n'), text.size())).find_first_not_of(" \t#*") == kNone)
            continue;
        value = value_at_front(value);
        if (value.empty()) continue;
        if (!values.empty() && value.data() + value.size() == values.back().data() + values.back().size())
            continue;
        values.push_back(value);
    }
    return values;
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

// ---- other modes -------------------------------------------------------------------------------

// The last number of the text, with its sign, as a fraction where it is one.
bool take_last_number(std::string_view region, Found& found) {
    size_t end = region.size();
    while (end > 0 && !is_digit(region[end - 1])) --end;
    if (end == 0) return false;
    size_t begin = end - 1;
    while (begin > 0) {
        const char c = region[begin - 1];
        const bool joint = (c == '.' || c == ',' || c == '/') && begin > 1 && is_digit(region[begin - 2]);
        if (!is_digit(c) && !joint && !(c == '.' && !(begin > 1 && is_alphanumeric(region[begin - 2])))) break;
        --begin;
    }
    // \frac{1}{2}
    if (end < region.size() && region[end] == '}') {
        const size_t from = end > 64 ? end - 64 : 0;
        const size_t frac = region.substr(from, end - from).rfind("\\frac{");
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

void take_tag(std::string_view region, Found& found) {
    constexpr std::string_view kOpen = "<answer>", kClose = "</answer>";
    size_t opens = 0, closes = 0, open = kNone, close = kNone;
    for (size_t at = region.find('<'); at != kNone; at = region.find('<', at + 1)) {
        if (starts(region.substr(at), kOpen)) ++opens, open = at;
        if (starts(region.substr(at), kClose)) ++closes, close = at;
    }
    if (opens == 0 && closes == 0) return;
    if (opens > 1 || closes > 1) {
        found.reason = Reason::shotgun;
        return;
    }
    if (opens == 1 && closes == 0) {
        found.reason = Reason::truncated;
        return;
    }
    if (opens == 0 || close < open) return;
    const auto inside = region.substr(open + kOpen.size(), close - open - kOpen.size());
    if (take_boxes(inside, found)) return;
    found.answer = trim(inside);
    found.reason = found.answer.empty() ? Reason::empty : Reason::wrong;
}

// Whether another option follows the letter: "A or B", "A, C", "A/B".
bool offers_another(std::string_view rest) {
    rest = skip_marks(rest);
    while (!rest.empty() && (rest.front() == ')' || rest.front() == '}' || rest.front() == '$' ||
                             rest.front() == ']'))
        rest = skip_marks(rest.substr(1));
    bool joined = false;
    for (const std::string_view joint : {"or ", "and ", "/", ",", "&"})
        if (starts(rest, joint)) {
            rest = skip_marks(rest.substr(joint.size()));
            joined = true;
        }
    if (starts(rest, "or ") || starts(rest, "and ")) rest = skip_marks(rest.substr(rest.find(' ')));
    size_t size;
    return joined && option_letter(rest, size) != 0;
}

void take_choice(std::string_view region, Found& found) {
    std::vector<std::string_view> candidates;
    if (take_boxes(region, found)) {
        if (found.reason != Reason::wrong) return;
        size_t size;
        if (option_letter(found.answer, size) && offers_another(found.answer.substr(size)))
            found.reason = Reason::hedge;
        return;
    }
    for (const auto& value : anchored(region, true)) {
        size_t size;
        if (!option_letter(value, size)) continue;
        if (candidates.empty() && offers_another(value.substr(size))) {
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
        if (option_letter(last, size) &&
            last.find_first_not_of(" )*_.}$]", size) == kNone)
            candidates.push_back(last.substr(size - 1, 1));
    }
    if (candidates.empty()) {
        // the only option that is named in brackets
        for (size_t at = region.find('('); at != kNone; at = region.find('(', at + 1)) {
            if (at + 2 >= region.size() || !is_upper(region[at + 1]) || region[at + 2] != ')') continue;
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
    if (at >= text.size() || !(is_upper(text[at]) || (bracket && is_lower(text[at])))) return 0;
    if (at + 1 < text.size() && (is_alphanumeric(text[at + 1]) || text[at + 1] == '\'' || text[at + 1] == '_'))
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
