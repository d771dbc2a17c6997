#include "evaluate.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace fastrl::grading {

namespace {

constexpr int64_t kLargestFactorial = 3000;
constexpr int32_t kLargestDeterminant = 6;
constexpr size_t kLargestRadicand = 15;  // limbs
// An irrational root of more digits than this lies too near to others for 106 bits.
constexpr size_t kClearDigits = 26;

uint64_t mixed(uint64_t x) {  // splitmix64, Steele, Lea and Flood 2014
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

// Real places: some where roots and inverse functions of small arguments are real, some beyond 1,
// some below 0, so that |x|, sqrt(x^2) and x differ.
double real_place(uint64_t name, uint32_t set) {
    static constexpr double kFrom[] = {0.2, 1.2, -0.9, 0.3, -3.0, 3.5, 0.1, -0.8};
    static constexpr double kTo[] = {0.9, 3.0, -0.2, 0.8, -1.2, 9.5, 0.95, 0.8};
    const double share = static_cast<double>(mixed(name + set * 0x632be59bd9b4e019ull) >> 11) * 0x1p-53;
    const uint32_t i = set % 8;
    return kFrom[i] + (kTo[i] - kFrom[i]) * share;
}

bool is(const Node& node, Constant constant) {
    return node.kind == Kind::constant && node.id == static_cast<uint8_t>(constant);
}

Rational small(uint64_t value) { return {false, Integer{value}, Integer{1}}; }

// Applies `step(child)` to each child until one fails.
template <typename Step>
Status each(const Ref& ref, const Step& step) {
    for (int32_t i = 0; i < ref->count; ++i)
        if (const Status s = step(i, ref.child(i)); s != Status::ok) return s;
    return Status::ok;
}

// ---- exactly -------------------------------------------------------------------------------

Status factorial(int64_t n, Rational& value, Budget& budget) {
    if (n < 0) return Status::undefined;
    if (n > kLargestFactorial) return Status::limit;
    value = small(1);
    for (int64_t i = 2; i <= n; ++i)
        if (const Status s = multiply(value, small(static_cast<uint64_t>(i)), value, budget);
            s != Status::ok)
            return s;
    return Status::ok;
}

Status binomial(int64_t n, int64_t k, Rational& value, Budget& budget) {
    if (n < 0) return Status::unsupported;
    value = small(0);
    if (k < 0 || k > n) return Status::ok;
    k = std::min(k, n - k);
    if (k > kLargestFactorial) return Status::limit;
    Rational top = small(1), bottom = small(1);
    for (int64_t i = 1; i <= k; ++i) {
        Status s = multiply(top, small(static_cast<uint64_t>(n - k + i)), top, budget);
        if (s == Status::ok) s = multiply(bottom, small(static_cast<uint64_t>(i)), bottom, budget);
        if (s != Status::ok) return s;
    }
    return divide(top, bottom, value, budget);
}

// The n-th root where it is an integer: between two bounds that doubles give, by halving.
Status integer_root(const Integer& integer, int64_t degree, Integer& root, Budget& budget) {
    if (integer.size() > kLargestRadicand) return Status::limit;
    const double size = ball(Rational{false, integer, Integer{1}}).real.high;
    const double guess = std::pow(size, 1.0 / static_cast<double>(degree));
    const auto from_double = [](double value) {
        char digits[512];
        std::snprintf(digits, sizeof digits, "%.0f", value);
        return Integer::from_digits(digits);
    };
    Integer low = from_double(std::floor(std::max(0.0, guess * (1 - 1e-13) - 1)));
    Integer high = from_double(std::ceil(guess * (1 + 1e-13) + 1));
    const Integer one{1};
    while (Integer::compare(low, high) <= 0) {
        Integer middle = Integer::half(Integer::sum(low, high));
        Rational raised;
        if (!middle.is_zero())
            if (const Status s = power({false, middle, one}, degree, raised, budget); s != Status::ok)
                return s;
        const int order = Integer::compare(raised.numerator, integer);
        if (order == 0) {
            root = std::move(middle);
            return Status::ok;
        }
        if (order < 0) low = Integer::sum(middle, one);
        else if (middle.is_zero()) break;
        else high = Integer::difference(middle, one);
    }
    return Status::unsupported;
}

Status exact_root(const Rational& radicand, int64_t degree, Rational& value, Budget& budget) {
    if (degree == 0) return Status::undefined;
    if (degree < 0 || degree > 1000) return Status::unsupported;
    if (radicand.negative && degree % 2 == 0) return Status::unsupported;
    // a / b need not be reduced: the root of a b^(n-1) / b^n
    if (Integer root; radicand.is_integer()) {
        if (const Status s = integer_root(radicand.numerator, degree, root, budget); s != Status::ok)
            return s;
        value = {radicand.negative, std::move(root), Integer{1}};
        return Status::ok;
    }
    Rational raised, whole;
    if (const Status s = power({false, radicand.denominator, Integer{1}}, degree - 1, raised, budget);
        s != Status::ok)
        return s;
    if (const Status s = multiply({radicand.negative, radicand.numerator, Integer{1}}, raised, whole,
                                  budget);
        s != Status::ok)
        return s;
    Integer root;
    if (const Status s = integer_root(whole.numerator, degree, root, budget); s != Status::ok) return s;
    value = {radicand.negative && !root.is_zero(), std::move(root), radicand.denominator};
    return Status::ok;
}

Status exact_power(const Rational& base, const Rational& exponent, Rational& value, Budget& budget) {
    int64_t n;
    if (as_small_integer(exponent, n, budget)) return power(base, n, value, budget);
    Rational top{exponent.negative, exponent.numerator, Integer{1}};
    const uint64_t degree = exponent.denominator.up_to(1001);
    if (degree > 1000 || !as_small_integer(top, n, budget)) return Status::unsupported;
    Rational root;
    if (const Status s = exact_root(base, static_cast<int64_t>(degree), root, budget);
        s != Status::ok)
        return s;
    return power(root, n, value, budget);
}

Status exact_floor(const Rational& a, bool up, Rational& value, Budget& budget) {
    const uint64_t bound = 1'000'000'000'000'000'000;
    (void)budget;
    const uint64_t top = a.numerator.up_to(bound), bottom = a.denominator.up_to(bound);
    if (bottom == bound) return Status::unsupported;
    if (a.is_integer()) {
        value = a;
        return Status::ok;
    }
    if (top == bound) return Status::unsupported;
    const uint64_t toward_zero = top / bottom;
    const bool rest = top % bottom != 0;
    const bool away = rest && (a.negative != up);
    value = {a.negative, Integer{toward_zero + away}, Integer{1}};
    if (value.is_zero()) value.negative = false;
    return Status::ok;
}

Status exact_function(Function function, const std::vector<Rational>& a, Rational& value,
                      Budget& budget) {
    switch (function) {
        case Function::abs:
            value = a[0];
            value.negative = false;
            return Status::ok;
        case Function::floor: return exact_floor(a[0], false, value, budget);
        case Function::ceil: return exact_floor(a[0], true, value, budget);
        case Function::max: case Function::min:
            value = a[0];
            for (const Rational& other : a) {
                int order;
                if (const Status s = compare(other, value, order, budget); s != Status::ok) return s;
                if (order == (function == Function::max ? 1 : -1)) value = other;
            }
            return Status::ok;
        case Function::gcd: case Function::lcm: {
            uint64_t found = 0;
            for (const Rational& other : a) {
                int64_t n;
                if (!as_small_integer(other, n, budget)) return Status::unsupported;
                uint64_t x = static_cast<uint64_t>(n < 0 ? -n : n), y = found;
                while (y) {
                    budget.spend(1);
                    x %= y;
                    std::swap(x, y);
                }
                if (function == Function::gcd || found == 0) {
                    found = function == Function::gcd ? x : static_cast<uint64_t>(n < 0 ? -n : n);
                } else {
                    const auto wide = static_cast<unsigned __int128>(found) / x *
                                      static_cast<uint64_t>(n < 0 ? -n : n);
                    if (wide > 1'000'000'000'000'000'000) return Status::unsupported;
                    found = static_cast<uint64_t>(wide);
                }
            }
            value = small(found);
            return Status::ok;
        }
        default: return Status::unsupported;
    }
}

Status scaled(const Ref& ref, Status status, Rational& value, Budget& budget) {
    if (status != Status::ok || !ref.hundredths) return status;
    return divide(value, small(100), value, budget);
}

// Laplace over the first row: 6! products at most.
template <typename Value, typename Add, typename Multiply>
Status determinant(const std::vector<Value>& cells, std::vector<int32_t> columns, int32_t row,
                   int32_t size, const Value& zero, const Value& one, Value& result,
                   const Add& add_signed, const Multiply& times) {
    if (row == size) {
        result = one;
        return Status::ok;
    }
    result = zero;
    for (size_t i = 0; i < columns.size(); ++i) {
        std::vector<int32_t> rest = columns;
        rest.erase(rest.begin() + static_cast<std::ptrdiff_t>(i));
        Value minor, part;
        Status s = determinant(cells, rest, row + 1, size, zero, one, minor, add_signed, times);
        if (s == Status::ok) s = times(cells[row * size + columns[i]], minor, part);
        if (s == Status::ok) s = add_signed(result, part, i % 2 == 1);
        if (s != Status::ok) return s;
    }
    return Status::ok;
}

std::vector<int32_t> first_columns(int32_t size) {
    std::vector<int32_t> columns(size);
    for (int32_t i = 0; i < size; ++i) columns[i] = i;
    return columns;
}

bool is_square(const Node& matrix) {
    return matrix.kind == Kind::matrix && matrix.value > 0 && matrix.value <= kLargestDeterminant &&
           matrix.count == matrix.value * matrix.value;
}

Status exact_node(const Ref& ref, const Place& place, Rational& value, Budget& budget) {
    if (!budget.spend(1)) return Status::limit;
    const Node& node = *ref;
    const auto child = [&](int32_t i, Rational& into) {
        return exact(ref.child(i), place, into, budget);
    };
    Rational a, b;
    switch (node.kind) {
        case Kind::number: value = ref.tree->numbers[node.value].value; return Status::ok;
        case Kind::symbol:
            if (place.where != Place::Where::integers) return Status::unsupported;
            value = small(integer_place(node.name, place.set));
            return Status::ok;
        case Kind::sum:
            value = small(0);
            return each(ref, [&](int32_t, const Ref& r) {
                const Status s = exact(r, place, a, budget);
                return s == Status::ok ? add(value, a, value, budget) : s;
            });
        case Kind::product:
            value = small(1);
            return each(ref, [&](int32_t, const Ref& r) {
                const Status s = exact(r, place, a, budget);
                return s == Status::ok ? multiply(value, a, value, budget) : s;
            });
        case Kind::negative: case Kind::plus_minus: case Kind::minus_plus: {
            if (node.kind != Kind::negative && ref.sign == 0) return Status::unsupported;
            const Status s = child(0, value);
            const bool flip = node.kind == Kind::negative ||
                              (node.kind == Kind::plus_minus) == (ref.sign < 0);
            if (s == Status::ok && flip) value = negated(std::move(value));
            return s;
        }
        case Kind::ratio:
            if (node.count != 2) return Status::unsupported;
            [[fallthrough]];
        case Kind::quotient: {
            Status s = child(0, a);
            if (s == Status::ok) s = child(1, b);
            return s == Status::ok ? divide(a, b, value, budget) : s;
        }
        case Kind::power: case Kind::root: {
            Status s = child(0, a);
            if (s == Status::ok) s = child(1, b);
            if (s != Status::ok) return s;
            if (node.kind == Kind::power) return exact_power(a, b, value, budget);
            int64_t degree;
            if (!as_small_integer(b, degree, budget)) return Status::unsupported;
            return exact_root(a, degree, value, budget);
        }
        case Kind::percent: {
            const Status s = child(0, a);
            return s == Status::ok ? divide(a, small(100), value, budget) : s;
        }
        case Kind::degrees: return child(0, value);
        case Kind::factorial: {
            Status s = child(0, a);
            int64_t n;
            if (s != Status::ok) return s;
            if (!as_small_integer(a, n, budget))
                return a.numerator.size() > 1 ? Status::limit : Status::unsupported;
            return factorial(n, value, budget);
        }
        case Kind::binomial: {
            Status s = child(0, a);
            if (s == Status::ok) s = child(1, b);
            int64_t n, k;
            if (s != Status::ok) return s;
            if (!as_small_integer(a, n, budget) || !as_small_integer(b, k, budget))
                return Status::unsupported;
            return binomial(n, k, value, budget);
        }
        case Kind::function: {
            const auto function = static_cast<Function>(node.id);
            if (function < Function::abs || function > Function::min) return Status::unsupported;
            std::vector<Rational> arguments(node.count);
            const Status s = each(ref, [&](int32_t i, const Ref& r) {
                return exact(r, place, arguments[i], budget);
            });
            return s == Status::ok ? exact_function(function, arguments, value, budget) : s;
        }
        case Kind::determinant: {
            const Ref matrix = ref.child(0);
            if (!is_square(*matrix)) return Status::unsupported;
            std::vector<Rational> cells(matrix->count);
            const Status s = each(matrix, [&](int32_t i, const Ref& r) {
                return exact(r, place, cells[i], budget);
            });
            if (s != Status::ok) return s;
            return determinant(
                cells, first_columns(matrix->value), 0, matrix->value, small(0), small(1), value,
                [&](Rational& sum, const Rational& part, bool minus) {
                    return add(sum, minus ? negated(part) : part, sum, budget);
                },
                [&](const Rational& x, const Rational& y, Rational& product) {
                    return multiply(x, y, product, budget);
                });
        }
        default: return Status::unsupported;
    }
}

}  // namespace

uint64_t integer_place(uint64_t name, uint32_t set) {
    return 2 + mixed(name + set * 0x632be59bd9b4e019ull) % (set < 4 ? 11 : 37);
}

Status exact(const Ref& ref, const Place& place, Rational& value, Budget& budget) {
    return scaled(ref, exact_node(ref, place, value, budget), value, budget);
}

// ---- in a finite field ---------------------------------------------------------------------

uint64_t multiply(uint64_t a, uint64_t b, uint64_t prime) {
    const auto product = static_cast<unsigned __int128>(a) * b;
    if (prime != kPrime) return static_cast<uint64_t>(product % prime);
    const uint64_t folded = static_cast<uint64_t>(product & kPrime) + static_cast<uint64_t>(product >> 61);
    return folded >= kPrime ? folded - kPrime : folded;
}

namespace {

uint64_t sum(uint64_t a, uint64_t b, uint64_t prime) {
    const uint64_t total = a + b;
    return total >= prime ? total - prime : total;
}

uint64_t negative(uint64_t a, uint64_t prime) { return a ? prime - a : 0; }

uint64_t raised(uint64_t base, uint64_t exponent, uint64_t prime) {
    uint64_t result = 1;
    for (; exponent; exponent /= 2) {
        if (exponent % 2) result = multiply(result, base, prime);
        base = multiply(base, base, prime);
    }
    return result;
}

uint64_t inverse(uint64_t a, uint64_t prime) { return raised(a, prime - 2, prime); }

Status reduced(const Rational& value, uint64_t prime, uint64_t& result, Budget& budget) {
    budget.spend(static_cast<int64_t>(value.numerator.size() + value.denominator.size()));
    result = value.numerator.modulo(prime);
    if (!value.is_integer()) {
        const uint64_t bottom = value.denominator.modulo(prime);
        if (bottom == 0) return Status::limit;
        result = multiply(result, inverse(bottom, prime), prime);
    }
    if (value.negative) result = negative(result, prime);
    return Status::ok;
}

Status modular_node(const Ref& ref, uint64_t prime, uint32_t set, uint64_t& value, Budget& budget) {
    if (!budget.spend(1)) return Status::limit;
    const Node& node = *ref;
    const auto child = [&](int32_t i, uint64_t& into) {
        return modular(ref.child(i), prime, set, into, budget);
    };
    uint64_t a, b;
    switch (node.kind) {
        case Kind::number: return reduced(ref.tree->numbers[node.value].value, prime, value, budget);
        case Kind::symbol: value = mixed(node.name + set) % prime; return Status::ok;
        case Kind::constant:
            if (!is(node, Constant::pi) && !is(node, Constant::e)) return Status::unsupported;
            value = mixed(hash_text(is(node, Constant::pi) ? "\\pi" : "\\e") + set) % prime;
            return Status::ok;
        case Kind::sum: case Kind::product: {
            const bool is_sum = node.kind == Kind::sum;
            value = is_sum ? 0 : 1;
            return each(ref, [&](int32_t, const Ref& r) {
                const Status s = modular(r, prime, set, a, budget);
                if (s == Status::ok) value = is_sum ? sum(value, a, prime) : multiply(value, a, prime);
                return s;
            });
        }
        case Kind::negative: case Kind::plus_minus: case Kind::minus_plus: {
            if (node.kind != Kind::negative && ref.sign == 0) return Status::unsupported;
            const Status s = child(0, a);
            const bool flip = node.kind == Kind::negative ||
                              (node.kind == Kind::plus_minus) == (ref.sign < 0);
            value = flip && s == Status::ok ? negative(a, prime) : a;
            return s;
        }
        case Kind::ratio:
            if (node.count != 2) return Status::unsupported;
            [[fallthrough]];
        case Kind::quotient: {
            Status s = child(0, a);
            if (s == Status::ok) s = child(1, b);
            if (s != Status::ok) return s;
            if (b == 0) return Status::undefined;
            value = multiply(a, inverse(b, prime), prime);
            budget.spend(8);
            return Status::ok;
        }
        case Kind::power: {
            Rational exponent;
            Status s = exact(ref.child(1), {}, exponent, budget);
            int64_t n;
            if (s != Status::ok) return s;
            if (!as_small_integer(exponent, n, budget)) return Status::unsupported;
            s = child(0, a);
            if (s != Status::ok) return s;
            if (a == 0 && n <= 0) return Status::undefined;
            value = raised(a, static_cast<uint64_t>(n < 0 ? -n : n), prime);
            if (n < 0) value = inverse(value, prime);
            budget.spend(8);
            return Status::ok;
        }
        case Kind::percent: {
            const Status s = child(0, a);
            if (s == Status::ok) value = multiply(a, inverse(100, prime), prime);
            return s;
        }
        case Kind::degrees: return child(0, value);
        case Kind::factorial: case Kind::binomial: case Kind::root: case Kind::function: {
            Rational constant;
            const Status s = exact(ref, {}, constant, budget);
            return s == Status::ok ? reduced(constant, prime, value, budget) : s;
        }
        case Kind::determinant: {
            const Ref matrix = ref.child(0);
            if (!is_square(*matrix)) return Status::unsupported;
            std::vector<uint64_t> cells(matrix->count);
            const Status s = each(matrix, [&](int32_t i, const Ref& r) {
                return modular(r, prime, set, cells[i], budget);
            });
            if (s != Status::ok) return s;
            return determinant(
                cells, first_columns(matrix->value), 0, matrix->value, uint64_t{0}, uint64_t{1},
                value,
                [&](uint64_t& total, uint64_t part, bool minus) {
                    total = sum(total, minus ? negative(part, prime) : part, prime);
                    return budget.spend(1) ? Status::ok : Status::limit;
                },
                [&](uint64_t x, uint64_t y, uint64_t& product) {
                    product = multiply(x, y, prime);
                    return budget.spend(1) ? Status::ok : Status::limit;
                });
        }
        default: return Status::unsupported;
    }
}

}  // namespace

Status modular(const Ref& ref, uint64_t prime, uint32_t set, uint64_t& value, Budget& budget) {
    const Status s = modular_node(ref, prime, set, value, budget);
    if (s == Status::ok && ref.hundredths) value = multiply(value, inverse(100, prime), prime);
    return s;
}

// ---- as a ball -----------------------------------------------------------------------------

namespace {

bool is_angle_function(uint8_t id) {
    return id <= static_cast<uint8_t>(Function::csc) || id == static_cast<uint8_t>(Function::cis);
}

struct Approximation {
    const Place& place;
    Budget& budget;
    bool in_angle = false;  // degrees count pi / 180

    Status finished(Status status, const Ball& value) const {
        if (status != Status::ok) return status;
        if (!(value.magnitude() < 1e290)) return Status::limit;
        // off the real line at a real place: there the expression has no value
        return place.complex || value.is_real() ? Status::ok : Status::undefined;
    }

    Status of(const Ref& ref, Ball& value) {
        if (!budget.spend(1)) return Status::limit;
        Status s = node_of(ref, value);
        if (s == Status::ok && ref.hundredths) s = divide(value, ball(100), value);
        return finished(s, value);
    }

    Status power_of(const Ball& base, const Ref& exponent, Ball& value) {
        Rational constant;
        int64_t n;
        Budget aside{1000};
        const bool rational = exact(exponent, place, constant, aside) == Status::ok;
        if (rational && as_small_integer(constant, n, aside) && std::abs(n) < 1'000'000'000)
            return power(base, n, value);
        budget.spend(kFunctionCost);
        if (rational && base.is_real() && base.real.high < 0) {
            // a real root of odd degree
            const uint64_t degree = constant.denominator.up_to(1001);
            if (degree <= 1000 && degree % 2 == 1) {
                const Status s = power(-base, ball(constant), value);
                if (constant.numerator.is_odd()) value = -value;
                return s;
            }
        }
        Ball above;
        const Status s = of(exponent, above);
        return s == Status::ok ? power(base, above, value) : s;
    }

    Status root_of(const Ball& a, const Ref& radicand, const Ref& degree, Ball& value) {
        Rational constant;
        int64_t n;
        Budget aside{1000};
        Status s = exact(degree, place, constant, aside);
        budget.spend(kFunctionCost);
        if (s != Status::ok || !as_small_integer(constant, n, aside)) return Status::unsupported;
        if (n == 0) return Status::undefined;
        if (Rational under; exact(radicand, place, under, aside) == Status::ok &&
                            (under.numerator.digits() > kClearDigits ||
                             under.denominator.digits() > kClearDigits)) {
            // too near to a neighbour for these bits; a perfect power has an exact value
            Rational perfect;
            if (exact_root(under, n, perfect, budget) != Status::ok) return Status::limit;
            value = ball(perfect);
            return Status::ok;
        }
        if (n == 2) return apply(Function::sqrt, a, value);
        const bool flip = n % 2 != 0 && a.is_real() && a.real.high < 0;
        Ball inverse;
        s = divide(ball(1), ball(static_cast<double>(n)), inverse);
        if (s == Status::ok) s = power(flip ? -a : a, inverse, value);
        if (flip) value = -value;
        return s;
    }

    Status logarithm_of(const Ref& ref, Ball& value) {
        Ball top, bottom;
        budget.spend(2 * kFunctionCost);
        Status s = of(ref.child(0), top);
        if (s == Status::ok) s = apply(Function::log, top, top);
        if (s != Status::ok) return s;
        if (ref->count == 1) {
            // of any base: the logarithm of the base is a number like no other
            value = top * ball(real_place(hash_text("base"), 0));
            return Status::ok;
        }
        s = of(ref.child(1), bottom);
        if (s == Status::ok) s = apply(Function::log, bottom, bottom);
        return s == Status::ok ? divide(top, bottom, value) : s;
    }

    Status node_of(const Ref& ref, Ball& value) {
        const Node& node = *ref;
        Ball a, b;
        switch (node.kind) {
            case Kind::number: value = ball(ref.tree->numbers[node.value].value); return Status::ok;
            case Kind::symbol:
                if (place.where == Place::Where::constants_only) return Status::unsupported;
                value = ball(place.where == Place::Where::integers
                                 ? static_cast<double>(integer_place(node.name, place.set))
                                 : real_place(node.name, place.set));
                return Status::ok;
            case Kind::constant:
                if (is(node, Constant::pi)) value = ball(kPi);
                else if (is(node, Constant::e)) value = ball(kE);
                else if (is(node, Constant::i)) value = {{}, {1, 0}, 0};
                else return Status::unsupported;
                return Status::ok;
            case Kind::sum: case Kind::product: {
                const bool is_sum = node.kind == Kind::sum;
                value = ball(is_sum ? 0.0 : 1.0);
                return each(ref, [&](int32_t, const Ref& r) {
                    const Status s = of(r, a);
                    if (s == Status::ok) value = is_sum ? value + a : value * a;
                    return s;
                });
            }
            case Kind::negative: case Kind::plus_minus: case Kind::minus_plus: {
                if (node.kind != Kind::negative && ref.sign == 0) return Status::unsupported;
                const Status s = of(ref.child(0), a);
                const bool flip = node.kind == Kind::negative ||
                                  (node.kind == Kind::plus_minus) == (ref.sign < 0);
                value = flip ? -a : a;
                return s;
            }
            case Kind::ratio:
                if (node.count != 2) return Status::unsupported;
                [[fallthrough]];
            case Kind::quotient: {
                Status s = of(ref.child(0), a);
                if (s == Status::ok) s = of(ref.child(1), b);
                return s == Status::ok ? divide(a, b, value) : s;
            }
            case Kind::power: {
                const Ref base = ref.child(0);
                const bool is_e = is(*base, Constant::e);
                if (is_e) {
                    budget.spend(kFunctionCost);
                    const Status s = of(ref.child(1), a);
                    return s == Status::ok ? apply(Function::exp, a, value) : s;
                }
                const Status s = of(base, a);
                return s == Status::ok ? power_of(a, ref.child(1), value) : s;
            }
            case Kind::root: {
                const Status s = of(ref.child(0), a);
                return s == Status::ok ? root_of(a, ref.child(0), ref.child(1), value) : s;
            }
            case Kind::logarithm: return logarithm_of(ref, value);
            case Kind::percent: {
                const Status s = of(ref.child(0), a);
                return s == Status::ok ? divide(a, ball(100), value) : s;
            }
            case Kind::degrees: {
                const Status s = of(ref.child(0), a);
                if (s != Status::ok || !in_angle) {
                    value = a;
                    return s;
                }
                return divide(a * ball(kPi), ball(180), value);
            }
            case Kind::factorial: case Kind::binomial: {
                Rational constant;
                const Status s = exact(ref, place, constant, budget);
                if (s == Status::ok) value = ball(constant);
                return s;
            }
            case Kind::function: return function_of(ref, value);
            case Kind::determinant: {
                const Ref matrix = ref.child(0);
                if (!is_square(*matrix)) return Status::unsupported;
                std::vector<Ball> cells(matrix->count);
                const Status s =
                    each(matrix, [&](int32_t i, const Ref& r) { return of(r, cells[i]); });
                if (s != Status::ok) return s;
                return determinant(
                    cells, first_columns(matrix->value), 0, matrix->value, ball(0.0), ball(1), value,
                    [&](Ball& total, const Ball& part, bool minus) {
                        total = total + (minus ? -part : part);
                        return budget.spend(1) ? Status::ok : Status::limit;
                    },
                    [&](const Ball& x, const Ball& y, Ball& product) {
                        product = x * y;
                        return budget.spend(1) ? Status::ok : Status::limit;
                    });
            }
            default: return Status::unsupported;
        }
    }

    Status function_of(const Ref& ref, Ball& value) {
        const auto function = static_cast<Function>(ref->id);
        if (function == Function::max || function == Function::min) {
            return each(ref, [&](int32_t i, const Ref& r) {
                Ball other;
                const Status s = of(r, other);
                if (s != Status::ok) return s;
                const Order wanted = function == Function::max ? Order::above : Order::below;
                if (i == 0 || compare(other, value) == wanted) value = other;
                return Status::ok;
            });
        }
        if (ref->count != 1) return Status::unsupported;
        if (!budget.spend(kFunctionCost)) return Status::limit;
        const bool before = in_angle;
        in_angle = is_angle_function(ref->id);
        Ball a;
        const Status s = of(ref.child(0), a);
        in_angle = before;
        return s == Status::ok ? apply(function, a, value) : s;
    }
};

}  // namespace

Status approximate(const Ref& ref, const Place& place, Ball& value, Budget& budget) {
    Approximation approximation{place, budget};
    return approximation.of(ref, value);
}

}  // namespace fastrl::grading
