#include "grading.h"

#include <algorithm>
#include <optional>

#include "parallel.h"

namespace fastrl {

namespace {

constexpr size_t kLongestAnswer = 4096;
constexpr size_t kMostValues = 3;
constexpr int kDeepest = 64;
constexpr int kMostThreads = 256;

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

std::string_view trim(std::string_view text) {
    while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
    while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
    return text;
}

// The text without dollar signs around it, and without the white space inside and outside of them.
std::string_view bare(std::string_view text) {
    text = trim(text);
    while (text.size() >= 2 && text.front() == '$' && text.back() == '$')
        text = trim(text.substr(1, text.size() - 2));
    return text;
}

// The text with runs of white space folded to one blank.
std::string fold(std::string_view text) {
    std::string folded;
    for (char c : trim(text)) {
        if (!is_space(c))
            folded += c;
        else if (folded.back() != ' ')
            folded += ' ';
    }
    return folded;
}

// ---- extraction --------------------------------------------------------------------------------

struct Box {
    size_t start;       // of the command
    size_t begin, end;  // of the content
    size_t stop;        // after the closing brace
};

// Length of the box command at the front of `text`, 0 for none. A longer command such as \boxedly
// passes: the letter that follows is neither a brace nor a number, so that no box comes of it.
size_t box_command(std::string_view text) {
    for (const std::string_view command : {"\\boxed", "\\fbox"})
        if (text.substr(0, command.size()) == command) return command.size();
    return 0;
}

// Length of the number at the front of `text`, which stands in a box without braces: \boxed -3/4
size_t bare_number(std::string_view text) {
    const auto digit_at = [&](size_t i) { return i < text.size() && is_digit(text[i]); };
    size_t size = !text.empty() && text[0] == '-' ? 1 : 0;
    if (!digit_at(size)) return 0;
    const std::string_view joints = "./,";
    while (digit_at(size) || (size < text.size() && digit_at(size + 1) &&
                              joints.find(text[size]) != std::string_view::npos))
        ++size;
    return size;
}

// The boxes that are complete and lie in no other box, in order; a box that holds nothing but a box
// stands for the inner one. One pass: a stack remembers which open brace belongs to a box; an
// escaped brace is none.
std::vector<Box> boxes(std::string_view text) {
    constexpr size_t kNone = std::string_view::npos;
    struct Open {
        size_t command, begin;
    };
    const auto is_blank = [&](size_t from, size_t to) {
        return trim(text.substr(from, to - from)).empty();
    };
    std::vector<Box> found;
    std::vector<Open> open;
    size_t pending = kNone;  // a box command that waits for its brace
    for (size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (c == '\\') {
            const size_t size = box_command(text.substr(i));
            pending = size ? i : kNone;
            i += size ? size - 1 : 1;  // the escaped character is no brace
        } else if (c == '{') {
            open.push_back({pending, i + 1});
            pending = kNone;
        } else if (c == '}') {
            pending = kNone;
            if (open.empty()) continue;
            const Open top = open.back();
            open.pop_back();
            if (top.command == kNone) continue;
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
    }
    return found;
}

// ---- numbers -----------------------------------------------------------------------------------

// Decimal digits without leading zeros; "" is zero.
using Digits = std::string;

struct Rational {
    bool negative = false;
    Digits numerator, denominator = "1";  // a denominator of zero: undefined, and equal to nothing

    bool defined() const { return !denominator.empty(); }
};

// Limb products that may still be spent; the same on any machine under any load.
struct Budget {
    int64_t left;

    bool over() const { return left < 0; }
    bool spend(size_t products) {
        left = over() ? left : left - static_cast<int64_t>(products);
        return !over();
    }
};

Digits normal(Digits digits) {
    digits.erase(0, std::min(digits.find_first_not_of('0'), digits.size()));
    return digits;
}

constexpr size_t kLimbDigits = 9;
constexpr uint64_t kLimb = 1'000'000'000;

size_t limb_count(const Digits& digits) { return (digits.size() + kLimbDigits - 1) / kLimbDigits; }

// Limbs, the least first.
std::vector<uint32_t> limbs(const Digits& digits) {
    std::vector<uint32_t> cells;
    for (size_t end = digits.size(); end > 0; end -= std::min(end, kLimbDigits)) {
        uint32_t cell = 0;
        for (size_t i = end - std::min(end, kLimbDigits); i < end; ++i)
            cell = cell * 10 + static_cast<uint32_t>(digits[i] - '0');
        cells.push_back(cell);
    }
    return cells;
}

Digits digits_of(const std::vector<uint32_t>& cells) {
    Digits digits(cells.size() * kLimbDigits, '0');
    size_t place = digits.size();
    for (uint32_t cell : cells) {
        const size_t least = place - kLimbDigits;
        for (; place > least; cell /= 10) digits[--place] = static_cast<char>('0' + cell % 10);
    }
    return normal(digits);
}

// Schoolbook product; zero where the budget does not suffice.
Digits multiply(const Digits& a, const Digits& b, Budget& budget) {
    if (!budget.spend(limb_count(a) * limb_count(b))) return "";
    if (a == "1") return b;
    if (b == "1") return a;
    const auto x = limbs(a), y = limbs(b);
    std::vector<uint32_t> cells(x.size() + y.size(), 0);
    for (size_t i = 0; i < x.size(); ++i) {
        uint64_t carry = 0;
        for (size_t j = 0; j < y.size(); ++j) {
            carry += cells[i + j] + static_cast<uint64_t>(x[i]) * y[j];
            cells[i + j] = static_cast<uint32_t>(carry % kLimb);
            carry /= kLimb;
        }
        cells[i + y.size()] = static_cast<uint32_t>(carry);
    }
    return digits_of(cells);
}

Digits add(const Digits& a, const Digits& b) {
    auto x = limbs(a);
    const auto y = limbs(b);
    x.resize(std::max(x.size(), y.size()) + 1, 0);
    uint64_t carry = 0;
    for (size_t i = 0; i < x.size(); ++i) {
        carry += x[i] + (i < y.size() ? y[i] : 0);
        x[i] = static_cast<uint32_t>(carry % kLimb);
        carry /= kLimb;
    }
    return digits_of(x);
}

// Whether two defined numbers are equal; means nothing where the budget is over afterwards.
bool equal(const Rational& a, const Rational& b, Budget& budget) {
    if (a.numerator.empty() || b.numerator.empty())
        return a.numerator.empty() && b.numerator.empty();
    if (a.negative != b.negative) return false;
    if (a.denominator == b.denominator) return a.numerator == b.numerator;
    return multiply(a.numerator, b.denominator, budget) ==
           multiply(b.numerator, a.denominator, budget);
}

Rational quotient(const Rational& a, const Rational& b, Budget& budget) {
    if (!a.defined() || !b.defined()) return {false, "", ""};
    return {a.negative != b.negative, multiply(a.numerator, b.denominator, budget),
            multiply(a.denominator, b.numerator, budget)};
}

bool eat(std::string_view& text, std::string_view word) {
    if (text.substr(0, word.size()) != word) return false;
    text.remove_prefix(word.size());
    return true;
}

void skip_space(std::string_view& text) {
    while (!text.empty()) {
        if (is_space(text.front()))
            text.remove_prefix(1);
        else if (!eat(text, "\\,") && !eat(text, "\\!") && !eat(text, "\\;") && !eat(text, "\\ "))
            return;
    }
}

// A sign, ASCII or U+2212; true for minus.
bool eat_sign(std::string_view& text) {
    bool negative = false;
    for (;;) {
        skip_space(text);
        if (eat(text, "-") || eat(text, "\xE2\x88\x92"))
            negative = !negative;
        else if (!eat(text, "+"))
            return negative;
    }
}

// Digits, with separators between groups of exactly three: 1,000  1{,}000  1\,000  1,\!000.
std::optional<Digits> eat_digits(std::string_view& text) {
    size_t count = 0;
    while (count < text.size() && is_digit(text[count])) ++count;
    if (count == 0) return std::nullopt;
    Digits digits(text.substr(0, count));
    text.remove_prefix(count);
    if (count > 3 || digits[0] == '0') return digits;  // 0,123 has a decimal comma or is a list
    for (;;) {
        auto rest = text;
        if (!eat(rest, "{,}") && !eat(rest, ",\\!") && !eat(rest, ",") && !eat(rest, "\\,"))
            return digits;
        while (!rest.empty() && is_space(rest.front()) && text.front() == ',' && text[1] == '\\')
            rest.remove_prefix(1);
        size_t group = 0;
        while (group < rest.size() && is_digit(rest[group])) ++group;
        if (group != 3) return digits;
        digits += rest.substr(0, 3);
        text = rest.substr(3);
    }
}

// A decimal number without a sign: 12, 1.50, .5.
std::optional<Rational> eat_decimal(std::string_view& text) {
    Rational value;
    const bool bare_point = text.size() > 1 && text[0] == '.' && is_digit(text[1]);
    if (!bare_point) {
        auto whole = eat_digits(text);
        if (!whole) return std::nullopt;
        value.numerator = *whole;
    }
    if (text.size() > 1 && text[0] == '.' && is_digit(text[1])) {
        text.remove_prefix(1);
        while (!text.empty() && is_digit(text[0])) {
            value.numerator += text[0];
            value.denominator += '0';
            text.remove_prefix(1);
        }
    }
    value.numerator = normal(value.numerator);
    return value;
}

std::optional<Rational> eat_number(std::string_view& text, int depth, Budget& budget);

// The argument of \frac: {number} or a single digit.
std::optional<Rational> eat_argument(std::string_view& text, int depth, Budget& budget) {
    skip_space(text);
    if (eat(text, "{")) {
        auto value = eat_number(text, depth, budget);
        return value && eat(text, "}") ? value : std::nullopt;
    }
    if (text.empty() || !is_digit(text[0])) return std::nullopt;
    auto digit = text.substr(0, 1);
    text.remove_prefix(1);
    return eat_decimal(digit);
}

// \frac{a}{b}, \frac12, {a \over b}.
std::optional<Rational> eat_fraction(std::string_view& text, int depth, Budget& budget) {
    const auto whole = text;
    std::optional<Rational> numerator, denominator;
    if (eat(text, "\\frac") || eat(text, "\\dfrac") || eat(text, "\\tfrac") ||
        eat(text, "\\cfrac")) {
        numerator = eat_argument(text, depth, budget);
        if (numerator) denominator = eat_argument(text, depth, budget);
    } else if (eat(text, "{")) {
        numerator = eat_number(text, depth, budget);
        if (numerator && eat(text, "\\over")) denominator = eat_number(text, depth, budget);
        if (!eat(text, "}")) denominator.reset();
    }
    if (!denominator) {
        text = whole;  // what was read before the failure must not be lost: {5}7 is not 7
        return std::nullopt;
    }
    return quotient(*numerator, *denominator, budget);
}

// A signed integer, decimal, fraction, mixed number or quotient of two, with the space around it.
std::optional<Rational> eat_number(std::string_view& text, int depth, Budget& budget) {
    if (depth > kDeepest) return std::nullopt;
    const bool negative = eat_sign(text);
    auto value = eat_fraction(text, depth + 1, budget);
    if (!value) {
        value = eat_decimal(text);
        if (!value) return std::nullopt;
        skip_space(text);
        auto rest = text;
        const auto part = rest.substr(0, 1) == "\\" ? eat_fraction(rest, depth + 1, budget)
                                                    : std::nullopt;
        if (part && value->denominator == "1" && !part->negative) {  // 1\frac{1}{2}
            if (part->defined())
                value->numerator = add(multiply(value->numerator, part->denominator, budget),
                                       part->numerator);
            value->denominator = part->denominator;
            text = rest;
        }
    }
    value->negative = value->negative != negative;
    skip_space(text);
    if (eat(text, "/") || eat(text, "\\div")) {
        const bool opposite = eat_sign(text);
        auto divisor = eat_fraction(text, depth + 1, budget);
        if (!divisor) divisor = eat_decimal(text);
        if (!divisor) return std::nullopt;
        divisor->negative = divisor->negative != opposite;
        value = quotient(*value, *divisor, budget);
        skip_space(text);
    }
    return value;
}

// An answer as it is compared: as a number where it is one, else as text.
struct Value {
    std::string text;
    std::optional<Rational> number;
    bool long_text;

    bool is_undefined() const { return number && !number->defined(); }
};

// Reads what is in a box, or a gold; a long one only as text.
Value read(std::string_view text, Budget& budget) {
    text = bare(text);
    Value value{fold(text), std::nullopt, text.size() > kLongestAnswer};
    if (value.long_text) return value;
    auto number = eat_number(text, 0, budget);
    if ((text.empty() || text == ".") && !budget.over()) value.number = std::move(number);
    return value;
}

enum class Match { no, yes, limit };

Match match(const Value& a, const Value& b, Budget& budget) {
    if (a.is_undefined() || b.is_undefined()) return Match::no;  // 1/0 equals nothing, itself too
    if (a.text == b.text) return Match::yes;
    if (a.long_text || b.long_text || budget.over()) return Match::limit;
    const bool same = a.number && b.number && equal(*a.number, *b.number, budget);
    if (budget.over()) return Match::limit;
    return same ? Match::yes : Match::no;
}

// Whether more than kMostValues different values are boxed. Each box is read once, and what all the
// comparisons cost comes out of one budget: many small boxes after a few huge ones cost no more.
bool is_shotgun(std::string_view text, const std::vector<Box>& found, int64_t budget_ops) {
    Budget budget{budget_ops};
    std::vector<Value> values;
    for (const Box& box : found) {
        Value value = read(text.substr(box.begin, box.end - box.begin), budget);
        if (value.text.empty()) continue;
        const bool known = std::any_of(values.begin(), values.end(), [&](const Value& other) {
            return match(value, other, budget) == Match::yes;
        });
        if (!known) values.push_back(std::move(value));
        if (values.size() > kMostValues) return true;
    }
    return false;
}

// `part` of `whole` as the answer, the white space around it left out.
Verdict answer_at(std::string_view whole, std::string_view part) {
    part = trim(part);
    if (part.empty()) return {Reason::empty};
    const int64_t begin = part.data() - whole.data();
    return {Reason::wrong, begin, begin + static_cast<int64_t>(part.size())};
}

// The answer's span, or the reason for which there is none.
Verdict extract(std::string_view completion, int64_t budget_ops) {
    static constexpr std::string_view kOpen = "<think>", kClose = "</think>";
    const size_t close = completion.rfind(kClose);
    const auto region =
        completion.substr(close == std::string_view::npos ? 0 : close + kClose.size());
    if (region.find(kOpen) != std::string_view::npos) return {Reason::thinking};
    const auto found = boxes(region);
    if (found.empty()) return {Reason::no_answer};
    const Box& last = found.back();
    Verdict verdict = answer_at(completion, region.substr(last.begin, last.end - last.begin));
    if (verdict.reason == Reason::wrong && is_shotgun(region, found, budget_ops))
        verdict.reason = Reason::shotgun;
    return verdict;
}

}  // namespace

Verdict grade(std::string_view completion, std::string_view gold, bool is_answer,
              int64_t budget_ops) {
    Verdict verdict =
        is_answer ? answer_at(completion, completion) : extract(completion, budget_ops);
    Budget budget{budget_ops};
    const Value right = read(gold, budget);
    if (right.text.empty() || right.is_undefined()) verdict.reason = Reason::gold_unreadable;
    if (verdict.reason != Reason::wrong) return verdict;
    const auto text = completion.substr(verdict.begin, verdict.end - verdict.begin);
    const Match found = match(read(text, budget), right, budget);
    if (found != Match::no) verdict.reason = found == Match::yes ? Reason::correct : Reason::limit;
    return verdict;
}

void grade_all(const std::vector<std::string_view>& completions,
               const std::vector<std::string_view>& golds, bool is_answer, int64_t budget_ops,
               int threads, Verdict* verdicts) {
    parallel_for(static_cast<int64_t>(completions.size()), std::min(threads, kMostThreads),
                 [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i)
                         verdicts[i] = grade(completions[i], golds[i], is_answer, budget_ops);
                 });
}

}  // namespace fastrl
