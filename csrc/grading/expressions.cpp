#include <algorithm>

#include "equal.h"

namespace fastrl::grading {

namespace {

constexpr uint32_t kPlaces = 16;
// Digits of a rational number from which a surd equals it for the bits alone.
constexpr size_t kLongExact = 16;
constexpr uint32_t kEnough = 4, kAtLeast = 2;  // places at which both sides had a value

// The power of ten of the last digit of a decimal number, as its negative: 2 for 0.25.
bool last_place(const Ref& ref, int64_t& places) {
    const Node& node = *ref;
    if (node.kind == Kind::number) {
        const Number& number = ref.tree->numbers[node.value];
        places = number.decimals + (ref.hundredths ? 2 : 0);
        return number.is_decimal;
    }
    if (node.kind == Kind::negative || node.kind == Kind::plus_minus ||
        node.kind == Kind::minus_plus) {
        const bool found = last_place(ref.child(0), places);
        if (ref.hundredths) places += 2;
        return found;
    }
    // 6.02 \times 10^{23}
    if (node.kind != Kind::product || node.count != 2 || !last_place(ref.child(0), places))
        return false;
    const Ref scale = ref.child(1);
    if (scale->kind != Kind::power) return false;
    Budget budget{1000};
    Rational base, exponent;
    int64_t ten, shift;
    if (exact(scale.child(0), {}, base, budget) != Status::ok ||
        exact(scale.child(1), {}, exponent, budget) != Status::ok ||
        !as_small_integer(base, ten, budget) || ten != 10 ||
        !as_small_integer(exponent, shift, budget) || std::abs(shift) > 4000)
        return false;
    places += (ref.hundredths ? 2 : 0) - shift;
    return true;
}

// Half a unit of the last place.
Rational half_unit(int64_t places) {
    const int64_t size = places + 1;
    Rational half{false, Integer{5}, Integer{1}};
    if (size >= 0) {
        half.denominator = Integer::power_of_ten(static_cast<size_t>(size));
    } else {
        Budget budget{1000};
        half.numerator = Integer::product(
            half.numerator, Integer::power_of_ten(static_cast<size_t>(-size)), budget);
    }
    return half;
}

// Half a unit of the sixth significant digit of a value.
double sixth_digit(double size) {
    double unit = 0.5e-5;
    for (; size >= 10; size /= 10) unit *= 10;
    for (; size > 0 && size < 1; size *= 10) unit /= 10;
    return unit;
}

// Node by node: \frac{1}{2004!} and 1/2004!.
bool is_same_tree(const Ref& a, const Ref& b) {
    const Node &x = *a, &y = *b;
    if (x.kind != y.kind || x.id != y.id || x.name != y.name || x.count != y.count ||
        a.hundredths != b.hundredths)
        return false;
    if (x.kind == Kind::number) {
        const Rational &u = a.tree->numbers[x.value].value, &v = b.tree->numbers[y.value].value;
        return u.negative == v.negative && u.numerator == v.numerator &&
               u.denominator == v.denominator;
    }
    for (int32_t i = 0; i < x.count; ++i)
        if (!is_same_tree(a.child(i), b.child(i))) return false;
    return true;
}

// Whether a number in it could be a multiple of the primes.
bool has_large_constant(const Ref& ref, Budget& budget) {
    if (!(ref->flags & kHasSymbol)) {
        Rational value;
        return exact(ref, {}, value, budget) != Status::ok || value.numerator.digits() > 18 ||
               value.denominator.digits() > 18;
    }
    for (int32_t i = 0; i < ref->count; ++i)
        if (has_large_constant(ref.child(i), budget)) return true;
    return false;
}

}  // namespace

Match Comparer::expressions(const Ref& gold, const Ref& answer) {
    const uint16_t flags = gold->flags | answer->flags;
    if (flags & kHasInfinity) {
        const int a = infinite_sign(gold), b = infinite_sign(answer);
        return a && a == b ? Match::yes : Match::no;
    }
    if (flags & kHasUnreadable) return Match::no;
    const Match match = !(flags & kHasSymbol)   ? constants(gold, answer)
                        : flags & kHasFactorial ? at_integers(gold, answer)
                        : flags & kIsIrrational ? at_reals(gold, answer)
                                                : rational_functions(gold, answer);
    saw_limit_ = saw_limit_ || match == Match::limit;
    // too large to evaluate, but written alike
    return match == Match::limit && is_same_tree(gold, answer) ? Match::yes : match;
}

Match Comparer::constants(const Ref& gold, const Ref& answer) {
    Rational a, b;
    const Status asked = exact(gold, {}, a, budget_), given = exact(answer, {}, b, budget_);
    if (asked == Status::undefined || given == Status::undefined) return undefined();
    if (asked == Status::limit || given == Status::limit) return Match::limit;
    int64_t places = 0, own_places = 0;
    const bool rounded = last_place(gold, places);
    const bool is_decimal = last_place(answer, own_places);
    const bool tolerant = rounded && (!is_decimal || own_places >= places);
    if (asked == Status::ok && given == Status::ok) {
        int order;
        if (compare(a, b, order, budget_) != Status::ok) return Match::limit;
        if (order == 0) return Match::yes;
        const bool six = rules_.six_digits && !rounded && is_decimal;
        if (!tolerant && !six) return Match::no;
        Rational distance;
        if (add(a, negated(b), distance, budget_) != Status::ok) return Match::limit;
        distance.negative = false;
        if (tolerant) {
            if (compare(distance, half_unit(places), order, budget_) != Status::ok)
                return Match::limit;
            return order <= 0 ? Match::yes : Match::no;
        }
        const double size = std::abs(ball(a).real.high);
        return ball(distance).magnitude() <= sixth_digit(size) ? Match::yes : Match::no;
    }
    const Place place{Place::Where::constants_only, 0, true};
    Ball x, y;
    Status s = approximate(gold, place, x, budget_);
    if (s == Status::ok) s = approximate(answer, place, y, budget_);
    if (s == Status::undefined) return undefined();
    if (s == Status::limit) return Match::limit;
    if (s != Status::ok) return Match::no;
    const Order order = compare_equal(x, y);
    if (order == Order::equal) {
        // 30 decimals of pi are not pi, whatever the bits can tell
        const Rational& known = asked == Status::ok ? a : b;
        const bool one_exact = asked == Status::ok || given == Status::ok;
        const bool long_digits =
            known.numerator.digits() > kLongExact || known.denominator.digits() > kLongExact;
        return one_exact && long_digits ? Match::limit : Match::yes;
    }
    if (order == Order::unclear) return Match::limit;
    if (!x.is_real() || !y.is_real()) return Match::no;
    Ball distance;
    apply(Function::abs, x + -y, distance);
    if (tolerant) {
        const Order side = compare(distance, ball(half_unit(places)));
        return side == Order::below || side == Order::equal ? Match::yes : Match::no;
    }
    if (rules_.six_digits && !rounded && is_decimal)
        return distance.magnitude() <= sixth_digit(x.magnitude()) ? Match::yes : Match::no;
    return Match::no;
}

// Polynomials and their quotients: an identity that holds at a random place of a large field holds
// everywhere, but for a chance of its degree over 2^61.
Match Comparer::rational_functions(const Ref& gold, const Ref& answer) {
    struct Trial {
        uint64_t prime;
        uint32_t set;
    };
    for (const Trial trial : {Trial{kPrime, 0}, Trial{kPrime, 1}, Trial{kSecondPrime, 2}}) {
        uint64_t a, b;
        Status s = modular(gold, trial.prime, trial.set, a, budget_);
        if (s == Status::ok) s = modular(answer, trial.prime, trial.set, b, budget_);
        if (s == Status::undefined) return undefined();
        if (s == Status::limit) return Match::limit;
        if (s == Status::unsupported) return at_reals(gold, answer);
        if (a != b) return Match::no;
    }
    // a multiple of both primes, which a reader of this file could write, is no zero on the real
    // line
    const Place place{Place::Where::real, 0, false};
    Ball x, y;
    Status s = approximate(gold, place, x, budget_);
    if (s == Status::ok) s = approximate(answer, place, y, budget_);
    if (budget_.over()) return Match::limit;
    if (s == Status::ok) return compare_equal(x, y) == Order::above ? Match::no : Match::yes;
    return has_large_constant(gold, budget_) || has_large_constant(answer, budget_) ? Match::limit
                                                                                    : Match::yes;
}

// With factorials and binomials: at positive integers.
Match Comparer::at_integers(const Ref& gold, const Ref& answer) {
    uint32_t valid = 0;
    for (uint32_t set = 0; set < kPlaces && valid < kPlaces / 2; ++set) {
        const Place place{Place::Where::integers, set, true};
        Rational a, b;
        const Status asked = exact(gold, place, a, budget_);
        const Status given = exact(answer, place, b, budget_);
        if (budget_.over()) return Match::limit;
        if (asked == Status::ok && given == Status::ok) {
            int order;
            if (compare(a, b, order, budget_) != Status::ok) return Match::limit;
            if (order != 0) return Match::no;
            valid += !a.is_zero();  // two zeros say little
        } else if (asked == Status::unsupported || given == Status::unsupported) {
            Ball x, y;
            Status s = approximate(gold, place, x, budget_);
            if (s == Status::ok) s = approximate(answer, place, y, budget_);
            if (s != Status::ok) continue;
            const Order order = compare_equal(x, y);
            if (order == Order::above) return Match::no;
            valid += order == Order::equal;
        }
    }
    return valid >= kAtLeast ? Match::yes : Match::limit;
}

Match Comparer::at_reals(const Ref& gold, const Ref& answer) {
    const uint16_t flags = gold->flags | answer->flags;
    const bool complex = flags & kHasImaginary;
    const uint32_t enough = flags & kIsPiecewise ? kPlaces : kEnough;
    // on the real line; at integers, where (-1)^n has a value; off the line
    const Place kinds[] = {{Place::Where::real, 0, complex},
                           {Place::Where::integers, 0, complex},
                           {Place::Where::real, 0, true}};
    for (Place place : kinds) {
        uint32_t valid = 0;
        for (; place.set < kPlaces && valid < enough; ++place.set) {
            Ball a, b;
            Status s = approximate(gold, place, a, budget_);
            if (s == Status::ok) s = approximate(answer, place, b, budget_);
            if (budget_.over()) return Match::limit;
            if (s == Status::unsupported) return Match::no;
            if (s != Status::ok) continue;
            const Order order = compare_equal(a, b);
            if (order == Order::above) return Match::no;
            valid += order == Order::equal;
        }
        if (valid < kAtLeast) continue;
        // floor and ceiling differ at integers only
        const bool steps =
            (flags & kIsPiecewise) && place.where == Place::Where::real && !place.complex;
        return steps && at_integers(gold, answer) == Match::no ? Match::no : Match::yes;
    }
    return Match::limit;  // no place in the domain of both
}

}  // namespace fastrl::grading
