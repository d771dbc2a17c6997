#include <algorithm>

#include "parse.h"

namespace fastrl::grading {

namespace {

uint8_t id(Function f) { return static_cast<uint8_t>(f); }
uint8_t id(Constant c) { return static_cast<uint8_t>(c); }

bool is_structure(Kind kind) { return kind >= Kind::list; }

bool is_trigonometric(uint8_t function) { return function <= id(Function::csc); }
bool is_hyperbolic(uint8_t function) {
    return function >= id(Function::sinh) && function <= id(Function::tanh);
}

// The function whose -1st power \sin^{-1} means.
uint8_t inverse_of(uint8_t function) {
    if (is_trigonometric(function)) return static_cast<uint8_t>(function + id(Function::arcsin));
    return static_cast<uint8_t>(function - id(Function::sinh) + id(Function::arcsinh));
}

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
    if (sign == Kind::negative && outer.kind == Kind::matrix) return scaled({integer(1)}, node, true);
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
        bool negative = false, any = false;
        Kind sign = Kind::sum;
        for (;; any = true) {
            if (eat(Tok::minus)) negative = !negative;
            else if (eat(Tok::plus)) continue;
            else if (sign == Kind::sum && eat(Tok::plus_minus)) sign = Kind::plus_minus;
            else if (sign == Kind::sum && eat(Tok::minus_plus)) sign = Kind::minus_plus;
            else break;
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
        case Tok::symbol: case Tok::constant: case Tok::function: case Tok::group_open:
        case Tok::frac: case Tok::binomial: case Tok::root: case Tok::overline: case Tok::begin:
            return true;
        case Tok::open:  // [2, 5[ is an interval
            return now().id == '[' ? brackets_ == 0 : now().id != '{' && now().id != '<';
        case Tok::bar: return bars_ == 0 && builders_ == 0;
        case Tok::number: {
            const Tok before = tokens_.tokens[at_ - 1].kind;
            return before == Tok::symbol || before == Tok::close || before == Tok::constant ||
                   before == Tok::bang;
        }
        default: return false;
    }
}

int32_t Parser::term() {
    const size_t begin = at_;
    int32_t node = factor();
    if (node < 0) return -1;
    if (at_ == begin + 1 && is_plain_integer(node)) {
        node = mixed_number(node);
        if (node < 0) return -1;
    }
    std::vector<int32_t> factors{node};
    for (;;) {
        if (eat(Tok::times)) {
            factors.push_back(signed_factor());
        } else if (is(Tok::slash)) {
            // m/s after a number is a unit
            ++at_;
            const int32_t whole =
                factors.size() == 1 ? factors[0] : expression(Kind::product, factors);
            factors = {expression(Kind::quotient, {whole, signed_factor()})};
        } else if (starts_factor()) {
            if (is(Tok::symbol) && brackets_ == 0) {
                const auto letter = text(now());
                if (letter == "U" && tokens_.tokens[at_ - 1].kind == Tok::close &&
                    ahead(1).kind == Tok::open)
                    break;  // a union
                if (now().space && tokens_.tokens[at_ - 1].kind == Tok::number &&
                    is_letter_unit(letter)) {
                    const size_t here = at_;
                    Unit found;
                    const bool whole = unit(found) && ends_element();
                    at_ = here;
                    if (whole) break;
                }
            }
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
        int32_t cell = negative ? with_sign(Kind::negative, parts.back())
                                : expression(Kind::product, parts);
        if (cell < 0) return -1;
        cells.push_back(cell);
    }
    Node made{Kind::matrix};
    made.value = node.value;
    return add(made, cells);
}

// 1\frac{1}{2} and 1 1/2, of a proper fraction; else `whole` itself.
int32_t Parser::mixed_number(int32_t whole) {
    const size_t here = at_;
    const auto is_proper = [&](int32_t top, int32_t bottom) {
        if (!is_plain_integer(top) || !is_plain_integer(bottom)) return false;
        return Integer::compare(tree_.numbers[tree_.at(top).value].value.numerator,
                                tree_.numbers[tree_.at(bottom).value].value.numerator) < 0;
    };
    if (is(Tok::frac)) {
        const int32_t part = atom();
        if (part < 0) return -1;
        const Node& node = tree_.at(part);
        if (node.kind == Kind::quotient &&
            is_proper(tree_.child(node, 0), tree_.child(node, 1)) &&
            !is(Tok::caret))
            return expression(Kind::sum, {whole, part});
        at_ = here;
        return whole;
    }
    if (is(Tok::number) && now().space && ahead(1).kind == Tok::slash &&
        ahead(2).kind == Tok::number && ahead(3).kind != Tok::caret) {
        const int32_t top = number_atom();
        ++at_;
        const int32_t bottom = top < 0 ? -1 : number_atom();
        if (bottom < 0) return -1;
        if (is_proper(top, bottom))
            return expression(Kind::sum, {whole, expression(Kind::quotient, {top, bottom})});
        at_ = here;
    }
    return whole;
}

int32_t Parser::signed_factor() {
    bool negative = false;
    for (;;) {
        if (eat(Tok::minus)) negative = !negative;
        else if (!eat(Tok::plus)) break;
    }
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
                node = expression(Kind::degrees, {node}, 0, kHasDegrees);
            }
        } else if (is(Tok::caret)) {
            const int32_t power = exponent();
            if (power < 0) return -1;
            const uint16_t irrational = tree_.at(power).kind == Kind::number &&
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

// ^2, ^{n+1}, ^-1; a power of a power is read from the right.
int32_t Parser::exponent() {
    ++at_;
    Deeper deeper(*this, !is(Tok::group_open));
    if (deeper.too_deep()) return -1;
    bool negative = false;
    for (;;) {
        if (eat(Tok::minus)) negative = !negative;
        else if (!eat(Tok::plus)) break;
    }
    int32_t node = is(Tok::function) ? function() : atom();
    if (node >= 0 && is(Tok::caret)) {
        const int32_t above = exponent();
        node = above < 0 ? -1 : expression(Kind::power, {node, above}, 0, kIsIrrational);
    }
    if (node < 0 || !negative) return node;
    if (tree_.at(node).kind == Kind::number) {
        Number opposite = tree_.numbers[tree_.at(node).value];
        opposite.value = negated(std::move(opposite.value));
        return number(std::move(opposite));
    }
    return expression(Kind::negative, {node});
}

// ---- atoms -----------------------------------------------------------------------------------

int32_t Parser::atom() {
    switch (now().kind) {
        case Tok::number: return number_atom();
        case Tok::symbol: return name_atom();
        case Tok::word: return is_word() ? fail() : name_atom();
        case Tok::constant: {
            if (ahead(1).kind == Tok::underscore || ahead(1).kind == Tok::prime) return name_atom();
            Node node{Kind::constant};
            node.id = now().id;
            if (node.id == id(Constant::i)) node.flags = kHasImaginary | kIsIrrational;
            if (node.id == id(Constant::infinity)) node.flags = kHasInfinity | kIsIrrational;
            ++at_;
            return add(node);
        }
        case Tok::set: {
            Node node{Kind::number_set};
            node.id = now().id;
            ++at_;
            return add(node);
        }
        case Tok::empty_set: ++at_; return add(Node{Kind::set});
        case Tok::open: return is(Tok::open, '{') ? braces() : bracketed();
        case Tok::close: return is(Tok::close, ']') ? french_interval() : fail();
        case Tok::group_open: return group();
        case Tok::bar: return absolute_value();
        case Tok::frac: {
            ++at_;
            const int32_t top = argument();
            const int32_t bottom = top < 0 ? -1 : argument();
            return expression(Kind::quotient, {top, bottom});
        }
        case Tok::binomial: {
            ++at_;
            const int32_t top = argument();
            const int32_t bottom = top < 0 ? -1 : argument();
            return expression(Kind::binomial, {top, bottom}, 0, kHasFactorial);
        }
        case Tok::root: return root();
        case Tok::function: return function();
        case Tok::overline: return decorated();
        case Tok::begin: return matrix();
        default: return fail();
    }
}

int32_t Parser::number_atom() {
    const Token token = now();
    const NumberText text = tokens_.numbers[token.number];
    ++at_;
    if (is(Tok::underscore)) return based_number(text);
    Budget budget{20'000};
    Rational value{false, Integer::from_digits(text.digits), Integer{1}};
    const int64_t places = text.decimals - text.exponent;
    if (places > static_cast<int64_t>(18 * kMostLimbs) ||
        places < -static_cast<int64_t>(18 * kMostLimbs))
        return fail(Reading::limit);
    if (text.repeating > 0) {
        // d.ddd(rrr) = (all digits - those before the period) / (10^decimals - 10^before)
        const size_t before = text.digits.size() - text.repeating;
        const Integer head = Integer::from_digits(std::string_view(text.digits).substr(0, before));
        value.numerator = Integer::difference(value.numerator, head);
        value.denominator = Integer::difference(
            Integer::power_of_ten(text.decimals), Integer::power_of_ten(text.decimals - text.repeating));
        return number({std::move(value)});
    }
    if (places > 0) value.denominator = Integer::power_of_ten(static_cast<size_t>(places));
    if (places < 0)
        value.numerator = Integer::product(
            value.numerator, Integer::power_of_ten(static_cast<size_t>(-places)), budget);
    if (budget.over() || value.numerator.size() > kMostLimbs) return fail(Reading::limit);
    // 1e2 is exact; 1.50e3 has a last digit worth 10
    const int32_t node = number({std::move(value), static_cast<int32_t>(places), text.has_point});
    if (node >= 0 && text.grouped) tree_.nodes[node].flags |= kWasGrouped;
    return node;
}

// 204_5: the value of the numeral; its base is a number or its name.
int32_t Parser::based_number(const NumberText& numeral) {
    ++at_;
    const bool braces = eat(Tok::group_open);
    const bool parens = eat(Tok::open, '(');
    int base = -1;
    if (is(Tok::number)) {
        const NumberText& digits = tokens_.numbers[now().number];
        if (!digits.has_point && !digits.has_exponent && digits.digits.size() <= 2)
            base = std::atoi(digits.digits.c_str());
    } else if (is(Tok::word)) {
        base = number_word(text(now()));
    }
    ++at_;
    if (parens && !eat(Tok::close, ')')) return fail();
    if (braces && !eat(Tok::group_close)) return fail();
    if (base < 2 || base > 36 || numeral.has_point || numeral.has_exponent) return fail();
    Budget budget{20'000};
    const Integer radix{static_cast<uint64_t>(base)};
    Integer value;
    for (const char c : numeral.digits) {
        const int digit = is_digit(c) ? c - '0' : c - 'A' + 10;
        if (digit >= base) return fail();
        value = Integer::sum(Integer::product(value, radix, budget),
                             Integer{static_cast<uint64_t>(digit)});
        if (budget.over()) return fail(Reading::limit);
    }
    return number({{false, std::move(value), Integer{1}}});
}

int32_t Parser::name_atom() {
    std::string name(text(now()));
    ++at_;
    for (;;) {
        if (is(Tok::underscore)) {
            const std::string below = subscript();
            if (below.empty()) return fail();
            name += '_' + below;
        } else if (eat(Tok::prime)) {
            name += '\'';
        } else {
            return symbol(name);
        }
    }
}

// The text of a subscript, one for a_1 and a_{1}; empty where there is none.
std::string Parser::subscript() {
    ++at_;
    const size_t begin = at_;
    if (!is(Tok::group_open)) {
        if (is(Tok::stop)) return {};
        ++at_;
        return canonical_text(tokens_, begin, at_);
    }
    int open = 0;
    do {
        if (is(Tok::group_open)) ++open;
        if (is(Tok::group_close)) --open;
        if (is(Tok::stop)) return {};
        ++at_;
    } while (open > 0);
    return canonical_text(tokens_, begin + 1, at_ - 1);
}

// Braces that are not shown; {1,2} without backslashes is a set all the same.
int32_t Parser::group() {
    Deeper deeper(*this);
    if (deeper.too_deep()) return -1;
    ++at_;
    if (is(Tok::degree) && ahead(1).kind == Tok::group_close) return fail();
    std::vector<int32_t> items;
    do {
        items.push_back(item());
        if (items.back() < 0) return -1;
    } while (eat(Tok::comma));
    if (!eat(Tok::group_close)) return fail();
    if (items.size() > kMostElements) return fail(Reading::limit);
    if (items.size() > 1) return add(Node{Kind::set}, items);
    // a sum in braces is one factor: {1+2}x. What it is otherwise stays visible.
    return items[0];
}

int32_t Parser::absolute_value() {
    Deeper deeper(*this);
    if (deeper.too_deep()) return -1;
    ++at_;
    ++bars_;
    const int32_t inside = additive();
    --bars_;
    if (inside < 0) return -1;
    if (!eat(Tok::bar)) return fail();
    if (tree_.at(inside).kind == Kind::matrix) return expression(Kind::determinant, {inside});
    return expression(Kind::function, {inside}, id(Function::abs), kIsIrrational);
}

// An argument of \frac or \sqrt: a group, or the next digit or letter alone.
int32_t Parser::argument() {
    if (is(Tok::number)) {
        NumberText& text = tokens_.numbers[now().number];
        if (text.digits.size() > 1 && !text.has_point && !text.has_exponent && !text.grouped) {
            const char digit = text.digits[0];
            text.digits.erase(0, 1);
            tokens_.tokens[at_].begin += 1;
            tokens_.tokens[at_].space = false;
            return integer(static_cast<uint64_t>(digit - '0'));
        }
        // no base: \frac{1}2_3 is none
        const int32_t node = number_atom();
        return node;
    }
    Deeper deeper(*this, !is(Tok::group_open));
    return deeper.too_deep() ? -1 : atom();
}

int32_t Parser::root() {
    const bool plain = now().id == 1;
    ++at_;
    int32_t degree = -1;
    if (!plain && is(Tok::open, '[')) {
        ++at_;
        Deeper deeper(*this);
        degree = deeper.too_deep() ? -1 : additive();
        if (degree < 0) return -1;
        if (!eat(Tok::close, ']')) return fail();
    }
    const int32_t inside = plain ? atom() : argument();
    if (inside < 0) return -1;
    if (degree < 0) degree = integer(2);
    return expression(Kind::root, {inside, degree}, 0, kIsIrrational);
}

int32_t Parser::function() {
    Deeper deeper(*this);
    if (deeper.too_deep()) return -1;
    const uint8_t name = now().id;
    ++at_;
    int32_t power = -1, base = -1;
    for (;;) {
        if (is(Tok::caret) && power < 0) {
            power = exponent();
            if (power < 0) return -1;
        } else if (is(Tok::underscore) && base < 0 && name == kLogFunction) {
            ++at_;
            base = is(Tok::number) ? argument() : atom();
            if (base < 0) return -1;
        } else {
            break;
        }
    }
    std::vector<int32_t> arguments;
    const bool many = name == id(Function::gcd) || name == id(Function::lcm) ||
                      name == id(Function::max) || name == id(Function::min);
    const int32_t inside = is(Tok::open) || is(Tok::group_open) ? atom() : function_argument();
    if (inside < 0) return -1;
    const Node& node = tree_.at(inside);
    if (many && (node.kind == Kind::tuple || node.kind == Kind::set))
        for (int32_t i = 0; i < node.count; ++i) arguments.push_back(tree_.child(node, i));
    else
        arguments.push_back(inside);
    int32_t result;
    if (name == kLogFunction) {
        if (base >= 0) arguments.push_back(base);
        result = expression(Kind::logarithm, arguments, 0, kIsIrrational);
    } else if (name == id(Function::sqrt)) {
        result = expression(Kind::root, {inside, integer(2)}, 0, kIsIrrational);
    } else {
        uint8_t chosen = name;
        if (power >= 0 && (is_trigonometric(name) || is_hyperbolic(name)) &&
            tree_.at(power).kind == Kind::number) {
            const Rational& value = tree_.numbers[tree_.at(power).value].value;
            if (value.negative && value.numerator.is_one() && value.is_integer()) {
                chosen = inverse_of(name);
                power = -1;
            }
        }
        result = expression(Kind::function, arguments, chosen, kIsIrrational);
    }
    if (result < 0 || power < 0) return result;
    return expression(Kind::power, {result, power}, 0,
                      tree_.at(power).kind == Kind::number ? 0 : kIsIrrational);
}

// \sin 2x, \ln x, \cos\pi/6: the product that follows, up to a sign, a product sign, a function or a
// bracket; a slash belongs to it only between numbers and pi.
int32_t Parser::function_argument() {
    bool negative = false;
    while (is(Tok::minus) || is(Tok::plus)) {
        negative = negative != is(Tok::minus);
        ++at_;
    }
    std::vector<int32_t> factors;
    bool constant = true;
    do {
        const int32_t node = factor();
        if (node < 0) return -1;
        constant = constant && !(tree_.at(node).flags & kHasSymbol);
        factors.push_back(node);
    } while (starts_factor() && !is(Tok::function) && !is(Tok::open) && !is(Tok::bar));
    int32_t node = factors.size() == 1 ? factors[0] : expression(Kind::product, factors);
    if (constant && is(Tok::slash) && ahead(1).kind == Tok::number) {
        ++at_;
        node = expression(Kind::quotient, {node, factor()});
    }
    return negative && node >= 0 ? expression(Kind::negative, {node}) : node;
}

// \overline{z}: a name of its own.
int32_t Parser::decorated() {
    const std::string name(text(now()));
    const std::string under = subscript();
    if (under.empty()) return fail();
    return symbol(name + '{' + under + '}');
}

}  // namespace fastrl::grading
