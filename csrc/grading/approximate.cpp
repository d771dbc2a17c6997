#include <cmath>

#include "walk.h"

namespace fastrl::grading {

namespace {

// An irrational root of more digits than this lies too near to others for 106 bits.
constexpr size_t kClearDigits = 26;

// Real places, small and large, on both sides of 0: where roots and inverse functions are real, and
// where |x - 4| and 4 - x differ. The first four serve where one formula holds everywhere; from the
// ninth on each symbol has a side of its own, since |xy| is xy where both are negative.
double real_place(uint64_t name, uint32_t set) {
    static constexpr double kFrom[] = {0.2, 20, -0.9, 1.2, -60, -900, -3.0, 200};
    static constexpr double kTo[] = {0.9, 60, -0.2, 3.0, -20, -200, -1.2, 900};
    const uint64_t bits = mixed(name + set * 0x632be59bd9b4e019ull);
    const double share = static_cast<double>(bits >> 11) * 0x1p-53;
    const uint64_t i = set < 8 ? set : bits % 8;
    return kFrom[i] + (kTo[i] - kFrom[i]) * share;
}

constexpr double kLargest = 1e290;
constexpr int64_t kAside = 1000;  // operations, of an exponent that may be a rational number

bool is_angle_function(uint8_t id) {
    return id <= static_cast<uint8_t>(Function::csc) || id == static_cast<uint8_t>(Function::cis);
}

struct Approximation {
    const Place& place;
    Budget& budget;
    bool in_angle = false;  // degrees count pi / 180

    Status finished(Status status, const Ball& value) const {
        if (status != Status::ok) return status;
        if (!(value.magnitude() < kLargest && value.error < kLargest)) return Status::limit;
        // off the real line at a real place: there the expression has no value
        return place.complex || value.is_real() ? Status::ok : Status::undefined;
    }

    Status of(const Ref& ref, Ball& value) {
        if (!budget.spend(1)) return Status::limit;
        Status s = node_of(ref, value);
        if (s == Status::ok && ref.hundredths) s = divide(value, ball(100), value);
        return finished(s, value);
    }

    // Whether the radicand is `under`, of so many digits that its root may lie too near to another.
    bool is_unclear(const Ref& radicand, Rational& under) {
        Budget aside{kAside};
        return exact(radicand, place, under, aside) == Status::ok &&
               (under.numerator.digits() > kClearDigits ||
                under.denominator.digits() > kClearDigits);
    }

    Status power_of(const Ball& base, const Ref& under, const Ref& exponent, Ball& value) {
        Rational constant;
        int64_t n;
        Budget aside{kAside};
        const bool rational = exact(exponent, place, constant, aside) == Status::ok;
        if (!budget.spend(kAside - aside.left)) return Status::limit;
        if (rational && as_small_integer(constant, n, aside) && std::abs(n) < 1'000'000'000)
            return power(base, n, value);
        budget.spend(kFunctionCost);
        Rational exact_base;
        if (rational && is_unclear(under, exact_base)) return Status::limit;
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
        Budget aside{kAside};
        Status s = exact(degree, place, constant, aside);
        budget.spend(kFunctionCost);
        if (s != Status::ok || !as_small_integer(constant, n, aside)) {
            Ball index;  // of any degree
            if (s = of(degree, index); s == Status::ok) s = divide(ball(1), index, index);
            return s == Status::ok ? power(a, index, value) : s;
        }
        if (n == 0) return Status::undefined;
        if (Rational under; is_unclear(radicand, under)) {
            Rational perfect;  // a perfect power has an exact value
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
                if (is(node, Constant::pi))
                    value = ball(kPi);
                else if (is(node, Constant::e))
                    value = ball(kE);
                else if (is(node, Constant::i))
                    value = {{}, {1, 0}, 0};
                else
                    return Status::unsupported;
                return Status::ok;
            case Kind::sum:
            case Kind::product: {
                const bool is_sum = node.kind == Kind::sum;
                value = ball(is_sum ? 0.0 : 1.0);
                return each(ref, [&](int32_t, const Ref& r) {
                    const Status s = of(r, a);
                    if (s != Status::ok) return s;
                    if (is_sum && (is_lost(a, value) || is_lost(value, a))) return Status::limit;
                    value = is_sum ? value + a : value * a;
                    return Status::ok;
                });
            }
            case Kind::negative:
            case Kind::plus_minus:
            case Kind::minus_plus: {
                if (is_open(ref)) return Status::unsupported;
                const Status s = of(ref.child(0), a);
                const bool flip = is_flipped(ref);
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
                return s == Status::ok ? power_of(a, base, ref.child(1), value) : s;
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
            case Kind::factorial:
            case Kind::binomial: {
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
                    cells, first_columns(matrix->value), 0, matrix->value, ball(0.0), ball(1),
                    value,
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
