#include <algorithm>
#include <cmath>
#include <cstdio>

#include "walk.h"

namespace fastrl::grading {

namespace {

constexpr int64_t kLargestFactorial = 3000;
constexpr size_t kLargestRadicand = 15;  // limbs

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

// Of one limb: doubles give a root of at most 10^9 to the nearest integer.
Status limb_root(uint64_t integer, int64_t degree, Integer& root, Budget& budget) {
    const double guess = std::pow(static_cast<double>(integer), 1.0 / static_cast<double>(degree));
    const auto nearest = static_cast<uint64_t>(std::llround(guess));
    Rational raised;
    if (const Status s = power(small(nearest), degree, raised, budget); s != Status::ok) return s;
    if (raised.numerator.size() > 1 || raised.numerator.up_to(kLimb) != integer)
        return Status::unsupported;
    root = Integer{nearest};
    return Status::ok;
}

// The n-th root where it is an integer: between two bounds that doubles give, by halving.
Status integer_root(const Integer& integer, int64_t degree, Integer& root, Budget& budget) {
    if (integer.size() > kLargestRadicand) return Status::limit;
    if (integer.size() == 1 && degree > 1)
        return limb_root(integer.up_to(kLimb), degree, root, budget);
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
            if (const Status s = power({false, middle, one}, degree, raised, budget);
                s != Status::ok)
                return s;
        const int order = Integer::compare(raised.numerator, integer);
        if (order == 0) {
            root = std::move(middle);
            return Status::ok;
        }
        if (order < 0)
            low = Integer::sum(middle, one);
        else if (middle.is_zero())
            break;
        else
            high = Integer::difference(middle, one);
    }
    return Status::unsupported;
}

}  // namespace

Status exact_root(const Rational& radicand, int64_t degree, Rational& value, Budget& budget) {
    if (degree == 0) return Status::undefined;
    if (degree < 0 || degree > 1000) return Status::unsupported;
    if (radicand.negative && degree % 2 == 0) return Status::unsupported;
    // a / b need not be reduced: the root of a b^(n-1) / b^n
    if (Integer root; radicand.is_integer()) {
        if (const Status s = integer_root(radicand.numerator, degree, root, budget);
            s != Status::ok)
            return s;
        value = {radicand.negative, std::move(root), Integer{1}};
        return Status::ok;
    }
    Rational raised, whole;
    if (const Status s =
            power({false, radicand.denominator, Integer{1}}, degree - 1, raised, budget);
        s != Status::ok)
        return s;
    if (const Status s =
            multiply({radicand.negative, radicand.numerator, Integer{1}}, raised, whole, budget);
        s != Status::ok)
        return s;
    Integer root;
    if (const Status s = integer_root(whole.numerator, degree, root, budget); s != Status::ok)
        return s;
    value = {radicand.negative && !root.is_zero(), std::move(root), radicand.denominator};
    return Status::ok;
}

namespace {

Status exact_power(const Rational& base, const Rational& exponent, Rational& value,
                   Budget& budget) {
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

Status exact_floor(const Rational& a, bool up, Rational& value) {
    const uint64_t bound = 1'000'000'000'000'000'000;
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
        case Function::floor: return exact_floor(a[0], false, value);
        case Function::ceil: return exact_floor(a[0], true, value);
        case Function::max:
        case Function::min:
            value = a[0];
            for (const Rational& other : a) {
                int order;
                if (const Status s = compare(other, value, order, budget); s != Status::ok)
                    return s;
                if (order == (function == Function::max ? 1 : -1)) value = other;
            }
            return Status::ok;
        case Function::gcd:
        case Function::lcm: {
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
        case Kind::negative:
        case Kind::plus_minus:
        case Kind::minus_plus: {
            if (is_open(ref)) return Status::unsupported;
            const Status s = child(0, value);
            const bool flip = is_flipped(ref);
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
        case Kind::power:
        case Kind::root: {
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
            const Status s = each(
                matrix, [&](int32_t i, const Ref& r) { return exact(r, place, cells[i], budget); });
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

Status exact(const Ref& ref, const Place& place, Rational& value, Budget& budget) {
    return scaled(ref, exact_node(ref, place, value, budget), value, budget);
}

uint64_t integer_place(uint64_t name, uint32_t set) {
    // of one size and of others, so that a binomial of two symbols is not 0 everywhere
    static constexpr uint64_t kRange[] = {11, 40, 6, 60, 24, 90, 14, 50};
    return 2 + mixed(name + set * 0x632be59bd9b4e019ull) % kRange[(set + name) % 8];
}

}  // namespace fastrl::grading
