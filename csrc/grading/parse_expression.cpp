#include <algorithm>

#include "parse.h"

namespace fastrl::grading {

namespace {

bool is_structure(Kind kind) { return kind >= Kind::list; }

}  // namespace

int32_t Parser::add(Node node, const std::vector<int32_t>& children) {
    if (tree_.nodes.size() - element_start_ >= static_cast<size_t>(kMostNodes))
        return fail(Reading::limit);
    return tree_.add(node, children);
}

int32_t Parser::expression(Kind kind, const std::vector<int32_t>& children, uint8_t id,
                           uint16_t flags) {
    for (const int32_t child : children) {
        if (child < 0) return -1;
        if (is_structure(tree_.at(child).kind) &&
            !(kind == Kind::determinant || kind == Kind::negative || kind == Kind::plus_minus))
            flags |= kHasUnreadable;
    }
    Node node{kind};
    node.id = id;
    node.flags = flags;
    return add(node, children);
}

int32_t Parser::number(Number number) {
    Node node{Kind::number};
    node.value = static_cast<int32_t>(tree_.numbers.size());
    if (number.is_decimal) node.flags |= kHasDecimal;
    tree_.numbers.push_back(std::move(number));
    return add(node);
}

int32_t Parser::symbol(std::string_view name) {
    Node node{Kind::symbol};
    node.flags = kHasSymbol;
    node.name = hash_text(name);
    return add(node);
}

bool Parser::is_plain_integer(int32_t node) const {
    const Node& n = tree_.at(node);
    return n.kind == Kind::number && !(n.flags & (kInBrackets | kHasDecimal)) &&
           tree_.numbers[n.value].value.is_integer();
}

// -(5 %) is (-5) %: the mark stays outside.
int32_t Parser::with_sign(Kind sign, int32_t node) {
    if (node < 0) return -1;
    const Node outer = tree_.at(node);
    if (sign == Kind::negative && outer.kind == Kind::number) {
        Number opposite = tree_.numbers[outer.value];
        opposite.value = negated(std::move(opposite.value));
        return number(std::move(opposite));
    }
    if (sign == Kind::negative && outer.kind == Kind::matrix)
        return scaled({integer(1)}, node, true);
    const uint16_t flags = sign == Kind::negative ? 0 : kHasSign;
    if (outer.kind != Kind::percent && outer.kind != Kind::degrees && outer.kind != Kind::measured)
        return expression(sign, {node}, 0, flags);
    const int32_t inner = expression(sign, {tree_.child(outer, 0)}, 0, flags);
    if (inner < 0) return -1;
    Node again{outer.kind};
    again.flags = outer.flags;
    again.value = outer.value;
    return add(again, {inner});
}

// ---- sums and products ---------------------------------------------------------------------

int32_t Parser::additive() {
    std::vector<int32_t> terms;
    for (bool first = true;; first = false) {
        // \mathbb{R} - \{1\}
        if (terms.size() == 1 && is(Tok::minus) && ahead(1).kind == Tok::open &&
            tree_.at(terms[0]).kind == Kind::number_set)
            break;
        bool negative = false, any = false;
        Kind sign = Kind::sum;
        for (;; any = true) {
            if (eat(Tok::minus))
                negative = !negative;
            else if (eat(Tok::plus))
                continue;
            else if (sign == Kind::sum && eat(Tok::plus_minus))
                sign = Kind::plus_minus;
            else if (sign == Kind::sum && eat(Tok::minus_plus))
                sign = Kind::minus_plus;
            else
                break;
        }
        if (!first && !any) break;
        int32_t node = term();
        if (node < 0) return -1;
        if (negative) node = with_sign(Kind::negative, node);
        if (sign != Kind::sum) node = with_sign(sign, node);
        if (node < 0) return -1;
        terms.push_back(node);
    }
    int32_t node = terms.size() == 1 ? terms[0] : expression(Kind::sum, terms);
    if (node >= 0 && (is(Tok::over) || is(Tok::choose))) {
        Deeper deeper(*this);
        if (deeper.too_deep()) return -1;
        const bool over = is(Tok::over);
        ++at_;
        const int32_t below = additive();
        node = over ? expression(Kind::quotient, {node, below})
                    : expression(Kind::binomial, {node, below}, 0, kHasFactorial);
    }
    return node;
}

bool Parser::starts_factor() const {
    switch (now().kind) {
        case Tok::symbol:
        case Tok::constant:
        case Tok::function:
        case Tok::group_open:
        case Tok::frac:
        case Tok::binomial:
        case Tok::root:
        case Tok::overline:
        case Tok::begin: return true;
        case Tok::open:  // [2, 5[ is an interval
            return now().id == '[' ? brackets_ == 0 : now().id != '{' && now().id != '<';
        case Tok::bar: return bars_ == 0 && builders_ == 0;
        case Tok::number: {
            const Tok before = tokens_.tokens[at_ - 1].kind;
            // \frac{2}{3}3^n, but no {1}42
            const bool power = before == Tok::group_close && ahead(1).kind == Tok::caret;
            return before == Tok::symbol || before == Tok::close || before == Tok::constant ||
                   before == Tok::bang || power;
        }
        default: return false;
    }
}

int32_t Parser::term() {
    const size_t begin = at_;
    std::vector<int32_t> factors{factor()};
    if (factors[0] < 0) return -1;
    if (at_ == begin + 1 && is_plain_integer(factors[0]) && !mixed_number(factors)) return -1;
    const bool lone_number =
        begin == value_start_ && at_ == begin + 1 && tree_.at(factors[0]).kind == Kind::number;
    for (;;) {
        if (eat(Tok::times)) {
            factors.push_back(signed_factor());
        } else if (is(Tok::slash)) {
            ++at_;
            const int32_t whole =
                factors.size() == 1 ? factors[0] : expression(Kind::product, factors);
            factors = {expression(Kind::quotient, {whole, signed_factor()})};
        } else if (starts_factor()) {
            if (is(Tok::symbol) && text(now()) == "U" && brackets_ == 0 &&
                tokens_.tokens[at_ - 1].kind == Tok::close && ahead(1).kind == Tok::open)
                break;  // a union
            if (lone_number && at_ == begin + 1 && letter_unit_follows()) break;
            factors.push_back(factor());
        } else {
            break;
        }
        if (factors.back() < 0) return -1;
    }
    if (factors.size() == 1) return factors[0];
    const auto is_matrix = [&](int32_t factor) { return tree_.at(factor).kind == Kind::matrix; };
    const auto found = std::find_if(factors.begin(), factors.end(), is_matrix);
    if (found != factors.end() && std::count_if(factors.begin(), factors.end(), is_matrix) == 1) {
        const int32_t matrix = *found;
        factors.erase(found);
        return scaled(factors, matrix, false);
    }
    return expression(Kind::product, factors);
}

// A matrix times numbers: each cell times them.
int32_t Parser::scaled(const std::vector<int32_t>& factors, int32_t matrix, bool negative) {
    const Node node = tree_.at(matrix);
    std::vector<int32_t> cells;
    for (int32_t i = 0; i < node.count; ++i) {
        std::vector<int32_t> parts = factors;
        parts.push_back(tree_.child(node, i));
        int32_t cell =
            negative ? with_sign(Kind::negative, parts.back()) : expression(Kind::product, parts);
        if (cell < 0) return -1;
        cells.push_back(cell);
    }
    Node made{Kind::matrix};
    made.value = node.value;
    return add(made, cells);
}

// Whether 5 m or 5 m/s ends here, of a number alone: "2 m g h" is a product.
bool Parser::letter_unit_follows() {
    if (!letter_units_ || brackets_ > 0 || groups_ > 0 || !is(Tok::symbol) || !now().space ||
        !is_letter_unit(text(now())))
        return false;
    const size_t here = at_;
    Unit found;
    const bool whole = unit(found) && ends_element();
    bool lone = true;  // letters side by side are no unit
    for (size_t i = here; i + 1 < at_; ++i)
        lone = lone && !(tokens_.tokens[i].kind == Tok::symbol &&
                         tokens_.tokens[i + 1].kind == Tok::symbol);
    at_ = here;
    if (whole && lone) tree_.has_letter_unit = true;
    return whole && lone;
}

// 1\frac{1}{2} and 1 1/2, of a proper fraction, as one factor; another fraction becomes a second.
// False where the text does not fit.
bool Parser::mixed_number(std::vector<int32_t>& factors) {
    const int32_t whole = factors[0];
    const auto is_proper = [&](int32_t top, int32_t bottom) {
        if (!is_plain_integer(top) || !is_plain_integer(bottom)) return false;
        return Integer::compare(tree_.numbers[tree_.at(top).value].value.numerator,
                                tree_.numbers[tree_.at(bottom).value].value.numerator) < 0;
    };
    if (is(Tok::frac)) {
        const int32_t part = atom();
        if (part < 0) return false;
        const Node& node = tree_.at(part);
        if (node.kind == Kind::quotient && is_proper(tree_.child(node, 0), tree_.child(node, 1)) &&
            !is(Tok::caret))
            factors[0] = expression(Kind::sum, {whole, part});
        else
            factors.push_back(postfix(part));
        return factors[0] >= 0 && factors.back() >= 0;
    }
    if (is(Tok::number) && now().space && ahead(1).kind == Tok::slash &&
        ahead(2).kind == Tok::number && ahead(3).kind != Tok::caret) {
        const int32_t top = number_atom();
        ++at_;
        const int32_t bottom = top < 0 ? -1 : number_atom();
        if (bottom < 0) return false;
        if (!is_proper(top, bottom)) return fail() >= 0;
        factors[0] = expression(Kind::sum, {whole, expression(Kind::quotient, {top, bottom})});
    }
    return factors[0] >= 0;
}

// Reads any number of signs: true for minus.
bool Parser::signs() {
    bool negative = false;
    while (is(Tok::minus) || is(Tok::plus)) {
        negative = negative != is(Tok::minus);
        ++at_;
    }
    return negative;
}

int32_t Parser::signed_factor() {
    const bool negative = signs();
    const int32_t node = factor();
    return negative && node >= 0 ? expression(Kind::negative, {node}) : node;
}

int32_t Parser::factor() {
    const int32_t node = is(Tok::function) ? function() : atom();
    return node < 0 ? -1 : postfix(node);
}

int32_t Parser::postfix(int32_t node) {
    while (node >= 0) {
        if (eat(Tok::bang)) {
            node = expression(Kind::factorial, {node}, 0, kHasFactorial);
        } else if (eat(Tok::percent)) {
            node = expression(Kind::percent, {node});
        } else if (eat(Tok::degree)) {
            const auto scale = text(now());
            if ((is(Tok::symbol) || is(Tok::word)) && (scale == "C" || scale == "F") &&
                brackets_ == 0) {
                ++at_;
                node = with_unit(node, {{scale == "C" ? kCelsiusUnit : kFahrenheitUnit, 1}});
            } else {
                node = expression(Kind::degrees, {node});
            }
        } else if (is(Tok::caret) && tree_.at(node).kind == Kind::matrix && eat_transpose()) {
            node = transposed(node);
        } else if (is(Tok::caret)) {
            const int32_t power = exponent();
            if (power < 0) return -1;
            const uint16_t irrational =
                tree_.at(power).kind == Kind::number &&
                        tree_.numbers[tree_.at(power).value].value.is_integer()
                    ? 0
                    : kIsIrrational;
            node = expression(Kind::power, {node, power}, 0, irrational);
        } else {
            break;
        }
    }
    return node;
}

bool Parser::eat_transpose() {
    const bool braces = ahead(1).kind == Tok::group_open;
    const Token& mark = ahead(braces ? 2 : 1);
    const auto name = text(mark);
    if (name != "T" && name != "\\top" && name != "\\intercal") return false;
    if (braces && ahead(3).kind != Tok::group_close) return false;
    at_ += braces ? 4 : 2;
    return true;
}

int32_t Parser::transposed(int32_t matrix) {
    const Node node = tree_.at(matrix);
    const int32_t columns = node.value, rows = node.count / columns;
    std::vector<int32_t> cells;
    for (int32_t j = 0; j < columns; ++j)
        for (int32_t i = 0; i < rows; ++i) cells.push_back(tree_.child(node, i * columns + j));
    Node made{Kind::matrix};
    made.value = rows;
    return add(made, cells);
}

// ^2, ^{n+1}, ^-1; a power of a power is read from the right.
int32_t Parser::exponent() {
    ++at_;
    Deeper deeper(*this, !is(Tok::group_open));
    if (deeper.too_deep()) return -1;
    const bool negative = signs();
    int32_t node = is(Tok::function) ? function() : atom();
    if (node >= 0 && is(Tok::caret)) {
        const int32_t above = exponent();
        node = above < 0 ? -1 : expression(Kind::power, {node, above}, 0, kIsIrrational);
    }
    return negative ? with_sign(Kind::negative, node) : node;
}

}  // namespace fastrl::grading
