#include "parse.h"

namespace fastrl::grading {

namespace {

uint8_t id(Function f) { return static_cast<uint8_t>(f); }
uint8_t id(Constant c) { return static_cast<uint8_t>(c); }

bool is_trigonometric(uint8_t function) { return function <= id(Function::csc); }
bool is_hyperbolic(uint8_t function) {
    return function >= id(Function::sinh) && function <= id(Function::tanh);
}

// Whether one formula does not hold on the whole line.
bool is_piecewise(uint8_t function) {
    return (function >= id(Function::arcsin) && function <= id(Function::arccsc)) ||
           (function >= id(Function::abs) && function <= id(Function::min));
}

// The function whose -1st power \sin^{-1} means.
uint8_t inverse_of(uint8_t function) {
    if (is_trigonometric(function)) return static_cast<uint8_t>(function + id(Function::arcsin));
    return static_cast<uint8_t>(function - id(Function::sinh) + id(Function::arcsinh));
}

}  // namespace

int32_t Parser::constant(uint8_t which) {
    Node node{Kind::constant};
    node.id = which;
    if (which == id(Constant::i)) node.flags = kHasImaginary | kIsIrrational;
    if (which == id(Constant::infinity)) node.flags = kHasInfinity | kIsIrrational;
    return add(node);
}

int32_t Parser::number_set(uint8_t letter) {
    Node node{Kind::number_set};
    node.id = letter;
    return add(node);
}

int32_t Parser::atom() {
    switch (now().kind) {
        case Tok::number: return number_atom();
        case Tok::symbol: return name_atom();
        case Tok::word: return is_word() ? fail() : name_atom();
        case Tok::constant: {
            if (ahead(1).kind == Tok::underscore || ahead(1).kind == Tok::prime) return name_atom();
            return constant(tokens_.tokens[at_++].id);
        }
        case Tok::set: return number_set(tokens_.tokens[at_++].id);
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
    Budget budget{kDefaultBudget};
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
        value.denominator =
            Integer::difference(Integer::power_of_ten(text.decimals),
                                Integer::power_of_ten(text.decimals - text.repeating));
        return number({std::move(value)});
    }
    if (places > 0) value.denominator = Integer::power_of_ten(static_cast<size_t>(places));
    if (places < 0)
        value.numerator = Integer::product(
            value.numerator, Integer::power_of_ten(static_cast<size_t>(-places)), budget);
    if (budget.over() || value.numerator.size() > kMostLimbs) return fail(Reading::limit);
    // 1e2 is exact; 1.50e3 has a last digit worth 10
    const int32_t node = number({std::move(value), static_cast<int32_t>(places), text.has_point,
                                 static_cast<uint32_t>(text.digits.size())});
    if (node >= 0 && text.grouped) tree_.nodes[node].flags |= kWasGrouped;
    return node;
}

// 204_5: the value of the numeral; its base is a number or its name.
int32_t Parser::based_number(const NumberText& numeral) {
    ++at_;
    const bool braces = eat(Tok::group_open);
    const bool parens = eat(Tok::open, '(');
    int base = -1;
    if (is(Tok::stop)) return fail();
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
    Budget budget{kDefaultBudget};
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
    const bool may_apply = name == "f" || name == "g";
    ++at_;
    for (;;) {
        if (is(Tok::underscore)) {
            const std::string below = subscript();
            if (below.empty()) return fail();
            name += '_' + below;
        } else if (eat(Tok::prime)) {
            name += '\'';
        } else if (may_apply && is(Tok::open, '(')) {
            return application(name);
        } else {
            return symbol(name);
        }
    }
}

// f(x): a symbol of its own for each argument, since f(2x) is not 2f(x).
int32_t Parser::application(std::string name) {
    const size_t begin = at_;
    int open = 0;
    do {
        if (is(Tok::open, '(')) ++open;
        if (is(Tok::close, ')')) --open;
        if (is(Tok::stop)) return fail();
        ++at_;
    } while (open > 0);
    const int32_t node = symbol(name + canonical_text(tokens_, begin, at_));
    if (node >= 0) tree_.nodes[node].id = kApplied;
    return node;
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
    ++groups_;
    std::vector<int32_t> found;
    if (!items(found, false)) return -1;
    --groups_;
    if (!eat(Tok::group_close)) return fail();
    if (found.size() > kMostElements) return fail(Reading::limit);
    if (found.size() > 1) return add(Node{Kind::set}, found);
    // a sum in braces is one factor: {1+2}x. What it is otherwise stays visible.
    return found[0];
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
    return expression(Kind::function, {inside}, id(Function::abs), kIsIrrational | kIsPiecewise);
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
        return number_atom();
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
    return expression(Kind::root, {inside, degree}, 0, kIsIrrational | kIsPiecewise);
}

int32_t Parser::function() {
    Deeper deeper(*this);
    if (deeper.too_deep()) return -1;
    const uint8_t name = now().id;
    const bool common = text(now()) == "\\lg" || text(now()) == "lg";
    ++at_;
    int32_t power = -1, base = common ? integer(10) : -1;
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
    if (arguments.empty()) return fail();  // \max\{\}
    int32_t result;
    if (name == kLogFunction) {
        if (base >= 0) arguments.push_back(base);
        result = expression(Kind::logarithm, arguments, 0, kIsIrrational);
    } else if (name == id(Function::sqrt)) {
        result = expression(Kind::root, {inside, integer(2)}, 0, kIsIrrational | kIsPiecewise);
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
        result = expression(Kind::function, arguments, chosen,
                            is_piecewise(chosen) ? kIsIrrational | kIsPiecewise : kIsIrrational);
    }
    if (result < 0 || power < 0) return result;
    return expression(Kind::power, {result, power}, 0,
                      tree_.at(power).kind == Kind::number ? 0 : kIsIrrational);
}

// \sin 2x, \ln x, \cos\pi/6: the product that follows, up to a sign, a product sign, a function or
// a bracket; a slash belongs to it only between numbers and pi.
int32_t Parser::function_argument() {
    const bool negative = signs();
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
