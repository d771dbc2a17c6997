#include "answer.h"

#include <algorithm>

#include "words.h"

namespace fastrl::grading {

namespace {

bool is_plain_integer(std::string_view text) {
    if (!text.empty() && text[0] == '-') text.remove_prefix(1);
    return !text.empty() && std::all_of(text.begin(), text.end(), is_digit);
}

// Whether two plain integers are the same: by their digits.
bool same_integer(std::string_view a, std::string_view b) {
    const auto normal = [](std::string_view text, bool& negative) {
        negative = text[0] == '-';
        if (negative) text.remove_prefix(1);
        text.remove_prefix(std::min(text.find_first_not_of('0'), text.size()));
        negative = negative && !text.empty();
        return text;
    };
    bool a_negative, b_negative;
    const auto x = normal(a, a_negative), y = normal(b, b_negative);
    return a_negative == b_negative && x == y;
}

// -\frac{A}{A} of one long integer over itself: 1 or -1 without a limit, "" for anything else.
std::string_view quotient_of_same(std::string_view text) {
    const bool negative = !text.empty() && text[0] == '-';
    if (negative) text = trim(text.substr(1));
    std::string_view top, bottom;
    const auto take = [&](std::string_view word) {
        if (text.substr(0, word.size()) != word) return false;
        text.remove_prefix(word.size());
        return true;
    };
    const auto digits = [&](std::string_view& into) {
        const size_t size = std::min(text.find_first_not_of("0123456789"), text.size());
        into = text.substr(0, size);
        text.remove_prefix(size);
        return size > 0;
    };
    const bool fraction = take("\\frac{") || take("\\dfrac{") || take("\\tfrac{");
    const bool read = fraction ? digits(top) && take("}{") && digits(bottom) && take("}")
                               : digits(top) && take("/") && digits(bottom);
    if (!read || !text.empty() || top != bottom ||
        top.find_first_not_of('0') == std::string_view::npos)
        return {};
    return negative ? "-1" : "1";
}

Option find_option(const Tokens& tokens) {
    const auto& all = tokens.tokens;
    size_t at = 0;
    const bool bracket = all[0].kind == Tok::open && all[0].id == '(';
    at += bracket;
    const auto letter = tokens.text(all[at]);
    if ((all[at].kind != Tok::symbol && all[at].kind != Tok::word) || letter.size() != 1 ||
        !is_upper(letter[0]))
        return {};
    ++at;
    const bool marked = bracket ? all[at].kind == Tok::close && all[at].id == ')'
                                : (all[at].kind == Tok::close && all[at].id == ')') ||
                                      all[at].kind == Tok::period || all[at].kind == Tok::colon;
    if (bracket && !marked) return {};
    at += marked;
    if (all[at].kind == Tok::period || all[at].kind == Tok::colon) ++at;
    if (all[at].kind == Tok::stop) return {letter[0], {}};
    if (!marked) return {};
    // after (B) no other option, no word that takes it back, nothing that cannot be read
    for (size_t i = at; all[i].kind != Tok::stop; ++i) {
        const auto text = tokens.text(all[i]);
        const bool lone = all[i].kind == Tok::symbol || all[i].kind == Tok::word;
        if ((all[i].kind == Tok::word && (is_hedge(text) || text[0] == '\\')) ||
            (lone && text.size() == 1 && text[0] >= 'A' && text[0] <= 'E') ||
            all[i].kind == Tok::other)
            return {};
    }
    switch (all[at].kind) {  // (A)^2, (A)+1, (A), 2 are expressions
        case Tok::caret:
        case Tok::plus:
        case Tok::times:
        case Tok::slash:
        case Tok::underscore:
        case Tok::bang:
        case Tok::prime:
        case Tok::relation:
        case Tok::cup:
        case Tok::cap:
        case Tok::set_minus:
        case Tok::comma:
        case Tok::semicolon:
        case Tok::in: return {};
        default: return {letter[0], tokens.source.substr(all[at].begin)};
    }
}

// What the one box around the whole holds: \boxed{5}.
std::string_view without_box(std::string_view text) {
    for (const std::string_view box : {"\\boxed{", "\\fbox{"}) {
        if (text.substr(0, box.size()) != box || text.back() != '}') continue;
        int64_t depth = 1;
        for (size_t i = box.size(); i + 1 < text.size(); ++i) {
            if (text[i] == '\\')
                ++i;
            else if (text[i] == '{')
                ++depth;
            else if (text[i] == '}' && --depth == 0)
                return text;
        }
        if (depth == 1) return trim(text.substr(box.size(), text.size() - box.size() - 1));
    }
    return text;
}

// {{{42}}}: all but one of the braces around the whole, in one pass.
std::string_view without_braces(std::string_view text) {
    const size_t lead = std::min(text.find_first_not_of('{'), text.size());
    if (lead < 2) return text;
    const size_t last = text.find_last_not_of('}');
    if (last == std::string_view::npos || last < lead) return text;
    size_t depth = lead, least = lead;
    for (size_t i = lead; i <= last; ++i) {
        if (text[i] == '\\')
            ++i;
        else if (text[i] == '{')
            ++depth;
        else if (text[i] == '}')
            least = std::min(least, --depth);
        if (depth == 0) return text;
    }
    const size_t trail = text.size() - 1 - last;
    if (depth != trail) return text;
    const size_t strip = std::min(std::min(lead, trail), least) - 1;
    return text.substr(strip, text.size() - 2 * strip);
}

bool has_hedge(const Tokens& tokens) {
    return std::any_of(tokens.tokens.begin(), tokens.tokens.end(), [&](const Token& token) {
        return token.kind == Tok::word && is_hedge(tokens.text(token));
    });
}

}  // namespace

void fold(std::string_view text, std::string& folded) {
    text = trim(text);
    while (text.size() >= 2 && text.front() == '$' && text.back() == '$' &&
           text[text.size() - 2] != '\\')
        text = trim(text.substr(1, text.size() - 2));
    text = without_box(without_braces(text));
    folded.clear();
    for (const char c : text) {
        if (!is_space(c))
            folded += c;
        else if (folded.back() != ' ')
            folded += ' ';
    }
}

void Answer::read(std::string_view answer) {
    fold(answer, text);
    option = {};
    root = -1;
    reading = Reading::unreadable;
    tokens.clear();
    tree.clear();
    is_integer = is_plain_integer(text) && text.size() <= kLongestAnswer;
    if (text.empty()) return;
    if (text.size() > kLongestAnswer) {
        const auto short_text = quotient_of_same(text);
        reading = Reading::limit;
        if (short_text.empty()) return;
        tokenize(short_text, false, tokens);
        reading = parse(tokens, true, tree, root);
        return;
    }
    tokenize(text, false, tokens);
    option = find_option(tokens);
    reading = parse(tokens, true, tree, root);
}

bool Answer::read_again(std::string_view answer) {
    fold(answer, text);
    tokenize(text, true, tokens);
    reading = parse(tokens, false, tree, root);
    return reading == Reading::ok;
}

bool Answer::is_ambiguous() const {
    return reading == Reading::ok && ((tree.at(root).flags & kWasGrouped) || tree.has_letter_unit);
}

void Gold::compile(std::string_view text) {
    source_ = text;
    readable_ = true;
    problem_ = "";
    again_.reset();
    answer_.read(text);
    hedges_ = has_hedge(answer_.tokens);
    if (answer_.text.empty()) {
        readable_ = false;
        problem_ = "empty";
        return;
    }
    if (answer_.is_integer) return;
    if (answer_.reading == Reading::limit) problem_ = "limit";
    if (answer_.reading != Reading::ok) return;
    Budget budget{kDefaultBudget};
    const Rules rules;
    Comparer comparer(budget, rules);
    const Match match = comparer.equal(answer_.ref(), answer_.ref());
    if (match == Match::limit || comparer.saw_limit()) problem_ = "limit";
    if (match != Match::yes && comparer.saw_undefined()) {
        readable_ = false;
        problem_ = "undefined";
    }
    if (answer_.is_ambiguous()) {
        again_ = std::make_unique<Answer>();
        if (!again_->read_again(text)) again_.reset();
    }
}

bool Gold::is_listed() const {
    if (answer_.reading != Reading::ok) return false;
    const Node& node = answer_.tree.at(answer_.root);
    return node.kind == Kind::list || node.kind == Kind::set || (node.flags & kHasSign) ||
           (node.flags & kWasGrouped);
}

const char* Gold::kind() const {
    if (answer_.option.letter) return "option";
    if (answer_.reading != Reading::ok) return "text";
    const Node& node = answer_.tree.at(answer_.root);
    switch (node.kind) {
        case Kind::number: return "number";
        case Kind::texts: return "text";
        case Kind::list: return "list";
        case Kind::set: return "set";
        case Kind::tuple: return "tuple";
        case Kind::interval:
        case Kind::union_of:
        case Kind::intersection:
        case Kind::difference:
        case Kind::number_set: return "interval";
        case Kind::matrix: return "matrix";
        case Kind::relation:
        case Kind::member: return "relation";
        default: return node.flags & kHasSymbol ? "expression" : "number";
    }
}

bool Gold::is_hedged(const Answer& answer) const { return !hedges_ && has_hedge(answer.tokens); }

Match Gold::equals(std::string_view text, Answer& scratch, int64_t budget_ops,
                   const Rules& rules) const {
    if (answer_.is_integer) {
        // the commonest pair needs no tree
        const auto bare = trim(text);
        if (is_plain_integer(bare) && bare.size() <= kLongestAnswer) {
            scratch.tokens.clear();
            return same_integer(answer_.text, bare) ? Match::yes : Match::no;
        }
    }
    scratch.read(text);
    if (scratch.text == answer_.text) return Match::yes;
    Budget budget{budget_ops};
    if (!budget.spend(1)) return Match::limit;
    if (answer_.reading == Reading::limit || scratch.reading == Reading::limit) return Match::limit;
    Match match = compare(scratch, budget, rules);
    if (match != Match::no || answer_.reading != Reading::ok || scratch.reading != Reading::ok)
        return match;
    // the second reading of either beside the first of the other, and beside its second
    Comparer comparer(budget, rules);
    if (again_) match = comparer.equal(again_->ref(), scratch.ref());
    if (match != Match::no || !scratch.is_ambiguous() || !scratch.read_again(text)) return match;
    match = comparer.equal(answer_.ref(), scratch.ref());
    if (match == Match::no && again_) match = comparer.equal(again_->ref(), scratch.ref());
    return match;
}

Match Gold::compare(const Answer& answer, Budget& budget, const Rules& rules) const {
    bool decided = false;
    const Match option = compare_options(answer, budget, rules, decided);
    if (decided) return option;
    if (answer_.reading == Reading::ok && answer.reading == Reading::ok)
        return Comparer(budget, rules).equal(answer_.ref(), answer.ref());
    if (answer_.reading != answer.reading) return Match::no;
    // neither can be read: as text without its layout
    const auto bare = [](const Tokens& tokens) {
        return canonical_text(tokens, 0, tokens.tokens.size());
    };
    return bare(answer_.tokens) == bare(answer.tokens) ? Match::yes : Match::no;
}

// Option letters with or without their text.
Match Gold::compare_options(const Answer& answer, Budget& budget, const Rules& rules,
                            bool& decided) const {
    const Option &asked = answer_.option, &given = answer.option;
    if (!asked.letter && !given.letter) return Match::no;
    const auto same = [&](const Answer& gold, const Answer& other) {
        if (gold.text == other.text) return Match::yes;
        if (gold.reading != Reading::ok || other.reading != Reading::ok) return Match::no;
        return Comparer(budget, rules).equal(gold.ref(), other.ref());
    };
    Answer gold_rest, rest;
    if (!asked.rest.empty()) gold_rest.read(asked.rest);
    if (!given.rest.empty()) rest.read(given.rest);
    decided = true;
    if (asked.letter && given.letter) {
        if (asked.letter != given.letter) return Match::no;
        return asked.rest.empty() || given.rest.empty() ? Match::yes : same(gold_rest, rest);
    }
    if (!asked.rest.empty()) return same(gold_rest, answer);
    if (!given.rest.empty()) return same(answer_, rest);
    decided = false;
    return Match::no;
}

}  // namespace fastrl::grading
