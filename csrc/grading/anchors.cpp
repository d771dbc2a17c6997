#include <algorithm>
#include <cstring>

#include "extract_parts.h"

namespace fastrl::grading {

namespace {

constexpr size_t kMostAnchors = 64;   // the last ones are looked at
constexpr size_t kLongestOwner = 40;  // of the words before "answer"
constexpr size_t kLongestLead = 64;   // between "answer" and "is"

constexpr Anchor kAnchors[] = {
    {"nswer", "aA"},  {"NSWER", "A"}, {"####", ""},      {"答案", ""},       {"答え", ""},
    {"答：", ""},     {"정답", ""},   {"ntwort", "aA"},  {"espuesta", "rR"}, {"éponse", "rR"},
    {"eponse", "rR"}, {"твет", ""},   {"isposta", "rR"}, {"esposta", "rR"},  {"esultado", "rR"},
};
constexpr Anchor kChoiceAnchors[] = {{"ption", "oO"}, {"hoice", "cC"}, {"PTION", "O"}};

// What may stand between "the answer" and its value.
constexpr std::string_view kVerbs[] = {
    " is", " are", " be", " was", " equals", " ist", " lautet", " es", " est", " è",  " é",
    "是",  "为",   "為",  "は",   "은",      "는",   "=",       ":",   "：",   " Is", " IS"};
constexpr std::string_view kFillers[] = {"therefore", "thus",     "simply",   "just",     "indeed",
                                         "clearly",   "actually", "equal to", "given by", "exactly",
                                         "then",      "option",   "choice",   "Option",   "Choice",
                                         "hence",     "the",      "also",     "again",    "now"};

}  // namespace

void find_all(std::string_view text, const Anchor& anchor, std::vector<size_t>& ends) {
    const size_t before = ends.size();
    for (size_t at = 0; at < text.size();) {
        const void* hit =
            memmem(text.data() + at, text.size() - at, anchor.word.data(), anchor.word.size());
        if (!hit) break;
        const auto begin = static_cast<size_t>(static_cast<const char*>(hit) - text.data());
        at = begin + anchor.word.size();
        const bool whole =
            anchor.before.empty() || (begin > 0 && anchor.before.find(text[begin - 1]) != kNone);
        if (!whole) continue;
        ends.push_back(at);
        if (ends.size() - before > 2 * kMostAnchors)
            ends.erase(ends.begin() + static_cast<std::ptrdiff_t>(before),
                       ends.begin() + static_cast<std::ptrdiff_t>(before + kMostAnchors));
    }
}

namespace {

// What follows the verb after an anchor; false where there is none.
bool after_verb(std::string_view text, std::string_view& value) {
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
    // "the answer cannot be", "could be": nothing is said
    if (best != kNone && takes_back(line.substr(0, best), false)) return false;
    // a sentence that ends before the verb is another one
    if (best != kNone) {
        const size_t end = line.find(". ");
        if (end < best) best = kNone;
    }
    if (best == kNone) {
        const auto bare = trim(line);
        if (bare.find_first_not_of("*_:#") != kNone || line.size() == rest.size()) return false;
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

// Words before an anchor that make it another's: "the wrong answer is".
bool is_disowned(std::string_view before) {
    before = before.substr(before.size() - std::min(before.size(), kLongestOwner));
    const size_t stop = before.find_last_of(".,;\n");
    if (stop != kNone) before = before.substr(stop + 1);
    for (const std::string_view word : {"wrong", "incorrect", "false", "not", "cannot", "never",
                                        "nobody", "Nobody", "Wrong", "Incorrect", "False"})
        if (const size_t at = before.rfind(word);
            at != kNone && (at == 0 || !is_letter(before[at - 1])) &&
            (at + word.size() == before.size() || !is_letter(before[at + word.size()])))
            return true;
    return false;
}

// Whether the sentence after a value takes it back: "5. Or 6.", "5? No, 6".
bool is_taken_back(std::string_view after) {
    while (!after.empty() && !is_letter(after[0]) && !is_digit(after[0])) after.remove_prefix(1);
    for (const std::string_view word :
         {"Or", "or", "No", "no", "Actually", "actually", "Wait", "wait", "Maybe", "maybe", "Not",
          "not", "Alternatively", "Perhaps", "perhaps"})
        if (starts(after, word) && (after.size() == word.size() || !is_letter(after[word.size()])))
            return true;
    return false;
}

// The value at the front of `text`: up to the end of its sentence or line, or of its delimiters.
std::string_view value_at_front(std::string_view text, bool choice) {
    text = text.substr(0, 2 * kLongestAnswer);  // a longer one is over the limit anyhow
    struct Delimiter {
        std::string_view open, close;
    };
    constexpr Delimiter kDelimiters[] = {{"$$", "$$"}, {"\\(", "\\)"}, {"\\[", "\\]"}};
    for (const auto& [open, close] : kDelimiters)
        if (starts(text, open)) {
            const size_t end = text.find(close, open.size());
            if (end != kNone) {
                // what follows the formula in its sentence belongs to the value: units, hedges
                const auto tail = value_at_front(text.substr(end + close.size()), choice);
                return trim(text.substr(
                    0, end + close.size() +
                           (tail.empty()
                                ? 0
                                : static_cast<size_t>(tail.data() + tail.size() - text.data()) -
                                      end - close.size())));
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
    if (end < text.size() && text[end] == '?') return {};  // "Is the answer 5?"
    // a value that is taken back takes the words with it, so that it is none
    const size_t next = std::min(end + 40, text.size());
    if (is_taken_back(text.substr(end, next - end))) return trim(text.substr(0, next));
    auto value = text.substr(0, end);
    for (const std::string_view reason : {" because", ", because", " since ", ", since"}) {
        const size_t at = value.find(reason);
        if (at == kNone) continue;
        const auto tail = value.substr(at + reason.size());
        const bool clean = choice || tail.find_first_of("0123456789") == kNone;
        if (clean && !takes_back(tail, false)) value = value.substr(0, at);
        if (clean && choice) value = value.substr(0, at);
    }
    while (!value.empty() && (is_mark(value.back()) || value.back() == ',' || value.back() == ';'))
        value.remove_suffix(1);
    return skip_marks(value);
}

}  // namespace

// An anchor whose value another one begins in counts once.
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
        if (hash ? (value = skip_marks(text), value.empty()) : !after_verb(text, value)) continue;
        if (hash &&
            text.substr(0, std::min(text.find('\n'), text.size())).find_first_not_of(" \t#*") ==
                kNone)
            continue;
        if (!hash && is_disowned(region.substr(0, ends[i]))) continue;
        value = value_at_front(value, choice);
        if (value.empty()) continue;
        if (!values.empty() &&
            value.data() + value.size() == values.back().data() + values.back().size())
            continue;
        values.push_back(value);
    }
    return values;
}

}  // namespace fastrl::grading
