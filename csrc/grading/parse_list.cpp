#include <algorithm>

#include "parse.h"

namespace fastrl::grading {

namespace {

bool is_inequality(const Tree& tree, int32_t node) {
    const Node& n = tree.at(node);
    return (n.kind == Kind::relation && tree.relations[n.value] != Relation::equal) ||
           n.kind == Kind::interval || n.kind == Kind::union_of;
}

}  // namespace

Reading parse(Tokens& tokens, bool letter_units, Tree& tree, int32_t& root) {
    tree.clear();
    if (tokens.too_deep) return Reading::limit;
    Parser parser(tokens, letter_units, tree);
    root = parser.answer();
    if (root < 0) return parser.reading() == Reading::limit ? Reading::limit : Reading::unreadable;
    std::vector<uint64_t> names;
    for (const Node& node : tree.nodes)
        if (node.kind == Kind::symbol) names.push_back(node.name);
    std::sort(names.begin(), names.end());
    const auto end = std::unique(names.begin(), names.end());
    return end - names.begin() > kMostVariables ? Reading::limit : Reading::ok;
}

int32_t Parser::answer() {
    if (is(Tok::stop)) return fail();
    const int32_t node = list();
    if (node >= 0 && !is(Tok::stop)) return fail();
    return node;
}

bool Parser::is_connective(const Token& token) const {
    if (token.kind != Tok::word) return false;
    const std::string word = lower_case(text(token));
    return word == "and" || word == "or" || (!word.empty() && word[0] == '\\');  // \lor
}

bool Parser::ends_element() const {
    switch (now().kind) {
        case Tok::stop:
        case Tok::comma:
        case Tok::semicolon:
        case Tok::close:
        case Tok::group_close:
        case Tok::ampersand:
        case Tok::row_end: return true;
        default: return is_connective(now());
    }
}

int32_t Parser::list() {
    std::vector<int32_t> elements;
    bool any_or = false, any_and = false, any_ellipsis = false;
    for (;;) {
        element_start_ = tree_.nodes.size();
        if (is(Tok::ellipsis) && !elements.empty()) {
            ++at_;
            any_ellipsis = true;
            elements.push_back(-2);
        } else {
            elements.push_back(element());
            if (elements.back() < 0) return -1;
        }
        if (elements.size() > kMostElements) return fail(Reading::limit);
        bool separated = false;
        while (is(Tok::comma) || is(Tok::semicolon) || is_connective(now())) {
            if (is(Tok::word)) {
                const auto word = text(now());
                const bool is_or = lower(word[0]) == 'o' || word == "\\lor" || word == "\\vee";
                any_or = any_or || is_or;
                any_and = any_and || !is_or;
            } else if (separated) {
                return fail();
            }
            separated = true;
            ++at_;
        }
        if (!separated) break;
    }
    if (any_ellipsis && !expand_ellipsis(elements)) return fail();
    if (elements.size() == 1) return elements[0];
    return listed(elements, any_or, any_and);
}

int32_t Parser::listed(std::vector<int32_t>& elements, bool any_or, bool any_and) {
    element_start_ = tree_.nodes.size();
    // k\pi, k \in \mathbb{Z}: what k is goes without saying
    const Node& last = tree_.at(elements.back());
    if (elements.size() == 2 && last.kind == Kind::member &&
        tree_.at(tree_.child(last, 1)).kind == Kind::number_set &&
        (tree_.at(elements[0]).flags & kHasSymbol) && !any_or)
        return elements[0];
    const bool sets = std::all_of(elements.begin(), elements.end(),
                                  [&](int32_t node) { return is_inequality(tree_, node); });
    if (sets && any_or && !any_and) {
        Node spoken{Kind::union_of};
        spoken.id = kApart;
        return add(spoken, elements);
    }
    if (sets && any_and && !any_or) return add(Node{Kind::intersection}, elements);
    return add(Node{Kind::list}, elements);
}

// 1, 2, ..., 10 with its terms written out, where two terms and the last give the step.
bool Parser::expand_ellipsis(std::vector<int32_t>& elements) {
    const size_t n = elements.size();
    if (n < 4 || elements[n - 2] != -2 || std::count(elements.begin(), elements.end(), -2) != 1)
        return false;
    Budget budget{kDefaultBudget};
    std::vector<int64_t> values;
    for (const int32_t node : elements) {
        if (node == -2) continue;
        bool negative = tree_.at(node).kind == Kind::negative;
        const Node& inner = negative ? tree_.at(tree_.child(tree_.at(node), 0)) : tree_.at(node);
        int64_t value;
        if (inner.kind != Kind::number ||
            !as_small_integer(tree_.numbers[inner.value].value, value, budget))
            return false;
        values.push_back(negative ? -value : value);
    }
    const int64_t step = values[1] - values[0], last = values.back();
    if (step == 0) return false;
    for (size_t i = 1; i + 1 < values.size(); ++i)
        if (values[i] - values[i - 1] != step) return false;
    const int64_t from = values[values.size() - 2];
    if ((last - from) % step || (last - from) / step < 1 ||
        (last - from) / step > static_cast<int64_t>(kMostElements) - static_cast<int64_t>(n))
        return false;
    elements.resize(n - 2);
    element_start_ = tree_.nodes.size();
    for (int64_t value = from + step;; value += step) {
        const bool negative = value < 0;
        const Integer size{static_cast<uint64_t>(negative ? -value : value)};
        elements.push_back(number({{negative, size, Integer{1}}}));
        if (elements.back() < 0) return false;
        if (value == last) return true;
    }
}

int32_t Parser::element() {
    if (is(Tok::relation, static_cast<char>(Relation::about))) ++at_;
    const size_t begin = at_;
    value_start_ = at_ + (is(Tok::minus) || is(Tok::plus));
    bool negative = false;
    if (is(Tok::minus) && ahead(1).kind == Tok::currency) {
        negative = true;
        ++at_;
    }
    if (is(Tok::currency)) {
        const int64_t unit = now().id;
        ++at_;
        int32_t node = additive();
        if (node < 0) return -1;
        if (negative) node = with_sign(Kind::negative, node);
        if (is(Tok::word) && multiplier(text(now()))) node = measured(node);
        Unit more;
        if (ends_element() || (labels(more) && (more.empty() || more[0].first >= kFirstWord)))
            return with_unit(node, {{unit, 1}});
        return fail();  // $5 cents
    }
    at_ = begin;
    const int32_t node = is_word() ? text_element() : relation();
    return node < 0 ? -1 : measured(node);
}

// Words up to the end of the element: an answer in plain text, or the name before an equals sign.
int32_t Parser::text_element() {
    std::string said;
    int count = 0;
    bool hedged = false;  // "43 not" names nothing
    const size_t begin = at_;
    for (; !ends_element() || (is_connective(now()) && at_ == begin); ++at_) {
        std::string part;
        switch (now().kind) {
            case Tok::word:
            case Tok::number:
                part = lower_case(text(now()));
                hedged = hedged || is_hedge(part) || is(Tok::number);
                break;
            case Tok::symbol:
            case Tok::constant: part = text(now()); break;
            case Tok::minus:
                if (ahead(1).kind == Tok::number) said += " -";
                continue;
            case Tok::slash: said += '/'; continue;
            case Tok::period:
            case Tok::bang:
            case Tok::colon:
            case Tok::prime: continue;
            case Tok::relation: {
                if (now().id != static_cast<uint8_t>(Relation::equal) || count == 0 || hedged)
                    return fail();
                const int32_t left = words(said);
                ++at_;
                const int32_t right = operand();
                if (left < 0 || right < 0) return -1;
                Node equation{Kind::relation};
                equation.value = static_cast<int32_t>(tree_.relations.size());
                tree_.relations.push_back(Relation::equal);
                return add(equation, {left, right});
            }
            default: return fail();
        }
        if (count > 0) said += ' ';
        said += part;
        ++count;
    }
    if (count == 1)
        if (const int value = number_word(said); value >= 0)
            return integer(static_cast<uint64_t>(value));
    const auto meaning = phrase(said);
    if (meaning == "no solution") return add(Node{Kind::set});
    if (meaning == "infinity" || meaning == "negative infinity") {
        const int32_t node = constant(static_cast<uint8_t>(Constant::infinity));
        return meaning == "infinity" ? node : expression(Kind::negative, {node});
    }
    if (meaning == "all real numbers") return number_set('R');
    return words(meaning);
}

int32_t Parser::words(std::string_view text) {
    Node node{Kind::texts};
    node.flags = kHasUnreadable;
    node.value = static_cast<int32_t>(tree_.texts.size());
    tree_.texts.emplace_back(text);
    return add(node);
}

// a = b = c, 0 <= x < 1, x \in S, or a value alone.
int32_t Parser::relation() {
    const int32_t first = set_operation();
    if (first < 0) return -1;
    if (eat(Tok::in)) {
        const int32_t set = operand();
        return set < 0 ? -1 : add(Node{Kind::member}, {first, set});
    }
    std::vector<int32_t> members{first};
    std::vector<Relation> between;
    while (is(Tok::relation)) {
        const auto id = static_cast<Relation>(now().id);
        between.push_back(id == Relation::about ? Relation::equal : id);
        ++at_;
        members.push_back(operand());
        if (members.back() < 0) return -1;
        if (members.size() > kMostElements) return fail(Reading::limit);
    }
    if (members.size() == 1) return first;
    Node node{Kind::relation};
    node.value = static_cast<int32_t>(tree_.relations.size());
    tree_.relations.insert(tree_.relations.end(), between.begin(), between.end());
    return add(node, members);
}

int32_t Parser::operand() {
    value_start_ = at_ + (is(Tok::minus) || is(Tok::plus));
    if (is(Tok::currency)) {
        const int64_t unit = now().id;
        ++at_;
        const int32_t node = set_operation();
        return node < 0 ? -1 : with_unit(node, {{unit, 1}});
    }
    if (is_word()) return text_element();
    return set_operation();
}

int32_t Parser::set_operation() {
    int32_t node = ratio();
    for (;;) {
        if (node < 0) return -1;
        Kind kind;
        if (is(Tok::cup) || (is(Tok::symbol) && text(now()) == "U" && ahead(1).kind == Tok::open))
            kind = Kind::union_of;
        else if (is(Tok::cap))
            kind = Kind::intersection;
        else if (is(Tok::set_minus) || (is(Tok::minus) && tree_.at(node).kind == Kind::number_set))
            kind = Kind::difference;
        else
            return node;
        ++at_;
        const int32_t right = ratio();
        if (right < 0) return -1;
        node = add(Node{kind}, {node, right});
    }
}

int32_t Parser::ratio() {
    const int32_t first = additive();
    if (first < 0 || builders_ > 0 || !is(Tok::colon)) return first;
    std::vector<int32_t> parts{first};
    while (eat(Tok::colon)) {
        parts.push_back(additive());
        if (parts.back() < 0) return -1;
    }
    return expression(Kind::ratio, parts);
}

}  // namespace fastrl::grading
