#include <algorithm>

#include "parse.h"

namespace fastrl::grading {

namespace {

std::string folded(std::string_view text) {
    std::string made(text);
    for (char& c : made) c = lower(c);
    return made;
}

void insert(Unit& unit, int64_t name, int32_t exponent) {
    for (auto& [known, power] : unit)
        if (known == name) {
            power += exponent;
            return;
        }
    unit.emplace_back(name, exponent);
}

int64_t word_name(std::string_view word) {
    std::string text = folded(word);
    if (text.size() > 3 && text.back() == 's') text.pop_back();
    return static_cast<int64_t>(hash_text(text) | uint64_t{1} << 62) & INT64_MAX;
}

// 10^3 for thousand, and so on; 0 for another word.
int multiplier(std::string_view word) {
    const std::string text = folded(word);
    if (text == "hundred") return 2;
    if (text == "thousand") return 3;
    if (text == "million") return 6;
    if (text == "billion") return 9;
    if (text == "trillion") return 12;
    return 0;
}

bool is_inequality(const Tree& tree, int32_t node) {
    const Node& n = tree.at(node);
    return (n.kind == Kind::relation && tree.relations[n.value] != Relation::equal) ||
           n.kind == Kind::interval || n.kind == Kind::union_of;
}

}  // namespace

Reading parse(Tokens& tokens, Tree& tree, int32_t& root) {
    tree.clear();
    if (tokens.too_deep) return Reading::limit;
    Parser parser(tokens, tree);
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
    const std::string word = folded(text(token));
    return word == "and" || word == "or";
}

bool Parser::ends_element() const {
    switch (now().kind) {
        case Tok::stop: case Tok::comma: case Tok::semicolon: case Tok::close:
        case Tok::group_close: case Tok::ampersand: case Tok::row_end:
            return true;
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
                const bool is_or = lower(text(now())[0]) == 'o';
                if (is_or ? any_or : any_and && !separated) {}
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
    Budget budget{20'000};
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
        if (ends_element()) return with_unit(node, {{unit, 1}});
        Unit more;
        if (labels(more)) return with_unit(node, {{unit, 1}});
        return fail();
    }
    at_ = begin;
    const int32_t node = is_word() ? text_element() : relation();
    return node < 0 ? -1 : measured(node);
}

// Words up to the end of the element: an answer in plain text, or the name before an equals sign.
int32_t Parser::text_element() {
    std::string words;
    int count = 0;
    const size_t begin = at_;
    for (; !ends_element() || (is_connective(now()) && at_ == begin); ++at_) {
        std::string part;
        switch (now().kind) {
            case Tok::word: case Tok::number: part = folded(text(now())); break;
            case Tok::symbol: case Tok::constant: part = text(now()); break;
            case Tok::period: case Tok::bang: case Tok::colon: case Tok::minus: case Tok::group_open:
            case Tok::prime: case Tok::slash:
                continue;
            case Tok::relation: {
                if (now().id != static_cast<uint8_t>(Relation::equal) || count == 0) return fail();
                Node name{Kind::texts};
                name.flags = kHasUnreadable;
                name.value = static_cast<int32_t>(tree_.texts.size());
                tree_.texts.push_back(words);
                const int32_t left = add(name);
                ++at_;
                const int32_t right = operand();
                if (left < 0 || right < 0) return -1;
                Node equation{Kind::relation};
                equation.value = static_cast<int32_t>(tree_.relations.size());
                tree_.relations.push_back(Relation::equal);
                return add(equation, {left, right});
            }
            case Tok::open:
            default: return fail();
        }
        if (count > 0) words += ' ';
        words += part;
        ++count;
    }
    if (count == 1)
        if (const int value = number_word(words); value >= 0)
            return integer(static_cast<uint64_t>(value));
    const auto said = phrase(words);
    if (said == "no solution") return add(Node{Kind::set});
    if (said == "infinity" || said == "negative infinity") {
        Node infinity{Kind::constant};
        infinity.id = static_cast<uint8_t>(Constant::infinity);
        infinity.flags = kHasInfinity | kIsIrrational;
        const int32_t node = add(infinity);
        return said == "infinity" ? node : expression(Kind::negative, {node});
    }
    if (said == "all real numbers") {
        Node reals{Kind::number_set};
        reals.id = 'R';
        return add(reals);
    }
    Node node{Kind::texts};
    node.flags = kHasUnreadable;
    node.value = static_cast<int32_t>(tree_.texts.size());
    tree_.texts.emplace_back(said);
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
        else if (is(Tok::cap)) kind = Kind::intersection;
        else if (is(Tok::set_minus)) kind = Kind::difference;
        else return node;
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

// An element inside of brackets.
int32_t Parser::item() {
    if (is_word()) return text_element();
    const int32_t node = relation();
    return node < 0 ? -1 : measured(node);
}

// (a), (a, b), [a, b), <a, b>, floor and ceiling.
int32_t Parser::bracketed() {
    Deeper deeper(*this);
    if (deeper.too_deep()) return -1;
    const char open = static_cast<char>(now().id);
    ++at_;
    ++brackets_;
    const int builders = builders_, bars = bars_;
    builders_ = bars_ = 0;
    std::vector<int32_t> items;
    do {
        items.push_back(item());
        if (items.back() < 0) return -1;
    } while (eat(Tok::comma) || eat(Tok::semicolon));
    --brackets_;
    builders_ = builders;
    bars_ = bars;
    if (is(Tok::open, '[') && items.size() == 2 && (open == '[' || open == '(')) {
        ++at_;  // [2, 5[
        Node interval{Kind::interval};
        interval.id = open == '[' ? kLeftClosed : 0;
        return add(interval, items);
    }
    if (!is(Tok::close)) return fail();
    const char close = static_cast<char>(now().id);
    ++at_;
    if (items.size() > kMostElements) return fail(Reading::limit);
    if (open == 'f' || open == 'c') {
        if (close != open || items.size() != 1) return fail();
        const Function function = open == 'f' ? Function::floor : Function::ceil;
        return expression(Kind::function, items, static_cast<uint8_t>(function), kIsIrrational);
    }
    if (close == '}' || (open == '<') != (close == '>')) return fail();
    const bool left = open == '[', right = close == ']';
    if (items.size() == 1) {
        if (left != right) return fail();
        tree_.nodes[items[0]].flags |= kInBrackets;
        return items[0];
    }
    if (items.size() == 2 && (left || right)) {
        Node interval{Kind::interval};
        interval.id = static_cast<uint8_t>(left * kLeftClosed | right * kRightClosed);
        return add(interval, items);
    }
    if (left != right) return fail();
    return add(Node{Kind::tuple}, items);
}

// ]a, b[
int32_t Parser::french_interval() {
    Deeper deeper(*this);
    if (deeper.too_deep()) return -1;
    ++at_;
    ++brackets_;
    const int32_t low = additive();
    if (low < 0 || !(eat(Tok::comma) || eat(Tok::semicolon))) return fail();
    const int32_t high = additive();
    --brackets_;
    if (high < 0) return -1;
    Node interval{Kind::interval};
    if (is(Tok::close, ']')) interval.id = kRightClosed;
    else if (!is(Tok::open, '[')) return fail();
    ++at_;
    return add(interval, {low, high});
}

// \{a, b\}, \{x : x > 3\}
int32_t Parser::braces() {
    Deeper deeper(*this);
    if (deeper.too_deep()) return -1;
    ++at_;
    if (eat(Tok::close, '}')) return add(Node{Kind::set});
    ++brackets_;
    ++builders_;
    std::vector<int32_t> items;
    do {
        items.push_back(item());
        if (items.back() < 0) return -1;
    } while (eat(Tok::comma) || eat(Tok::semicolon));
    if (items.size() == 1 && (is(Tok::such_that) || is(Tok::bar) || is(Tok::colon))) {
        ++at_;
        const Kind kind = tree_.at(items[0]).kind;
        if (kind != Kind::symbol && kind != Kind::member) return fail();
        items[0] = list();
        if (items[0] < 0) return -1;
        --brackets_;
        --builders_;
        return eat(Tok::close, '}') ? items[0] : fail();
    }
    --brackets_;
    --builders_;
    if (!eat(Tok::close, '}')) return fail();
    if (items.size() > kMostElements) return fail(Reading::limit);
    return add(Node{Kind::set}, items);
}

int32_t Parser::matrix() {
    Deeper deeper(*this);
    if (deeper.too_deep()) return -1;
    ++at_;
    if (!eat(Tok::group_open) || !is(Tok::word)) return fail();
    const std::string name(text(now()));
    ++at_;
    if (!eat(Tok::group_close)) return fail();
    if (name == "array") {
        if (!eat(Tok::group_open)) return fail();
        while (!is(Tok::group_close) && !is(Tok::stop)) ++at_;
        if (!eat(Tok::group_close)) return fail();
    } else if (name.find("matrix") == std::string::npos) {
        return fail();
    }
    ++brackets_;
    std::vector<int32_t> cells;
    int32_t columns = -1, in_row = 0;
    for (;;) {
        if (!(is(Tok::end) && in_row == 0)) {
            cells.push_back(additive());
            if (cells.back() < 0) return -1;
            if (cells.size() > kMostElements) return fail(Reading::limit);
            ++in_row;
        }
        if (eat(Tok::ampersand)) continue;
        if (!is(Tok::row_end) && !is(Tok::end)) return fail();
        if (in_row > 0 && columns >= 0 && in_row != columns) return fail();
        if (in_row > 0) columns = in_row;
        in_row = 0;
        if (eat(Tok::end)) break;
        ++at_;
    }
    --brackets_;
    if (columns < 0 || !eat(Tok::group_open)) return fail();
    while (!is(Tok::group_close) && !is(Tok::stop)) ++at_;
    if (!eat(Tok::group_close)) return fail();
    Node node{Kind::matrix};
    node.value = columns;
    const int32_t made = add(node, cells);
    if (made < 0 || (name != "vmatrix" && name != "Vmatrix")) return made;
    return expression(Kind::determinant, {made});
}

// ---- units -----------------------------------------------------------------------------------

int32_t Parser::with_unit(int32_t node, Unit unit) {
    if (node < 0) return -1;
    if (unit.size() == 1 && unit[0].second == 1) {
        if (unit[0].first == kPercentUnit) return expression(Kind::percent, {node});
        if (unit[0].first == kDegreeUnit) return expression(Kind::degrees, {node}, 0, kHasDegrees);
    }
    if (unit.size() > 1)
        unit.erase(std::remove_if(unit.begin(), unit.end(),
                                  [](const auto& part) { return part.first == kDegreeUnit; }),
                   unit.end());
    std::sort(unit.begin(), unit.end());
    Node made{Kind::measured};
    made.value = static_cast<int32_t>(tree_.units.size());
    tree_.units.push_back(std::move(unit));
    return add(made, {node});
}

// `node` with the unit or the plain words after it, up to the end of the element.
int32_t Parser::measured(int32_t node) {
    if (is(Tok::word) && !is_connective(now()))
        if (const int power = multiplier(text(now()))) {
            ++at_;
            const int32_t scale = number({{false, Integer::power_of_ten(power), Integer{1}}});
            node = expression(Kind::product, {node, scale});
            if (node < 0) return -1;
        }
    if (ends_element()) return node;
    const Kind kind = tree_.at(node).kind;
    const bool bare = kind == Kind::texts || kind == Kind::symbol;
    const size_t here = at_;
    Unit found;
    if (!bare && unit(found) && ends_element()) return with_unit(node, std::move(found));
    at_ = here;
    found.clear();
    if (!bare && labels(found)) return with_unit(node, std::move(found));
    at_ = here;
    return node;
}

bool Parser::unit(Unit& found) {
    int32_t sign = 1, prefix = 0;
    bool any = false;
    for (;;) {
        int64_t name = 0;
        const auto word = text(now());
        if (is(Tok::word) && unit_power(word) && any && prefix == 0 && !found.empty() &&
            !find_unit(text(ahead(1)))) {
            found.back().second *= unit_power(word);  // inches squared
            ++at_;
            continue;
        }
        if (is(Tok::word) && unit_power(word)) {
            prefix = unit_power(word);
            ++at_;
            continue;
        }
        if (is(Tok::word) && folded(word) == "per") {
            sign = -1;
            ++at_;
            continue;
        }
        if (is(Tok::slash) && any) {
            sign = -1;
            ++at_;
            continue;
        }
        if ((is(Tok::times) || is(Tok::minus)) && any) {
            ++at_;
            continue;
        }
        if (is(Tok::word) || (is(Tok::symbol) && is_letter_unit(word))) name = find_unit(word);
        if (is(Tok::currency)) name = now().id;
        if (is(Tok::percent) && !any) name = kPercentUnit;
        if (name == 0) break;
        const bool per_hour = is(Tok::word) && (folded(word) == "mph" || folded(word) == "kph" ||
                                                folded(word) == "kmh" || folded(word) == "kmph");
        if (per_hour) {
            name = find_unit(lower(word[0]) == 'm' ? "mi" : "km");
            insert(found, find_unit("h"), -sign);
        }
        ++at_;
        int32_t power = prefix ? prefix : 1;
        prefix = 0;
        if (is(Tok::caret)) {
            ++at_;
            const bool braces = eat(Tok::group_open);
            const bool negative = eat(Tok::minus);
            if (!is(Tok::number)) return false;
            const auto& digits = tokens_.numbers[now().number].digits;
            if (digits.size() != 1) return false;
            power = (negative ? -1 : 1) * (digits[0] - '0');
            ++at_;
            if (braces && !eat(Tok::group_close)) return false;
        }
        insert(found, name, sign * power);
        any = true;
    }
    return any && prefix == 0;
}

// At most three plain words. Those that are units count as the unit; without one the words are it.
bool Parser::labels(Unit& found) {
    Unit words;
    int count = 0;
    for (; !ends_element(); ++at_) {
        if (is(Tok::period) && ahead(1).kind == Tok::stop) continue;
        if (!is(Tok::word) || is_hedge(text(now())) || number_word(text(now())) >= 0) return false;
        if (text(now()).size() == 1 && !find_unit(text(now()))) return false;
        if (++count > 3) return false;
        const int power = unit_power(text(now()));
        if (power) continue;
        if (const int unit = find_unit(text(now()))) insert(found, unit, 1);
        else insert(words, word_name(text(now())), 1);
    }
    if (found.empty()) found = words;
    return count > 0;
}

}  // namespace fastrl::grading
