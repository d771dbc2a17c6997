#include "ball.h"

#include <algorithm>
#include <cmath>

namespace fastrl::grading {

namespace {

// Errors below this, absolute or relative to the larger number, tell two numbers apart.
constexpr double kClear = 0x1p-66;
constexpr double kLargestExponent = 700, kLargestAngle = 1e6;
constexpr double kLargestRoot = 1e140;
constexpr double kLargest = 1e280, kSmallest = 1e-280;  // their products still have low halves

double size(const DoubleDouble& a) { return std::abs(a.high); }

Status real_function(const Ball& a, DoubleDouble value, double slope, Ball& result) {
    result = {value, {}, slope * a.error + kFunctionRound * std::max(1.0, size(value))};
    return Status::ok;
}

bool in_range(const Ball& a) {
    const double magnitude = a.magnitude();
    return magnitude < kLargest && (magnitude > kSmallest || magnitude == 0);
}

// Whether the square of its magnitude is a number as well.
bool has_square(const Ball& a) {
    const double magnitude = a.magnitude();
    return magnitude < kLargestRoot && (magnitude > 1 / kLargestRoot || magnitude == 0);
}

Status ranged(const Ball& a) { return in_range(a) ? Status::ok : Status::limit; }

Status exponential_of(const Ball& a, Ball& result) {
    if (!(size(a.real) <= kLargestExponent && size(a.imaginary) <= kLargestAngle &&
          a.error <= 1e-3))
        return Status::limit;
    const DoubleDouble scale = exponential(a.real);
    result = {scale, {}, 0};
    if (!a.is_real()) {
        DoubleDouble sine, cosine;
        sine_and_cosine(a.imaginary, sine, cosine);
        result = {scale * cosine, scale * sine, 0};
    }
    result.error = scale.high * (3 * a.error + 2 * kFunctionRound);
    return ranged(result);
}

Status logarithm_of(const Ball& a, Ball& result) {
    if (!in_range(a)) return Status::limit;
    const double magnitude = a.magnitude();
    if (!(magnitude > a.error)) return Status::undefined;
    const double spread = a.error / (magnitude - a.error) + kFunctionRound;
    if (a.is_real() && a.real.high > 0) {
        const DoubleDouble value = logarithm(a.real);
        result = {value, {}, spread + kFunctionRound * std::max(1.0, size(value))};
        return Status::ok;
    }
    if (!has_square(a)) return Status::limit;
    const DoubleDouble square = a.real * a.real + a.imaginary * a.imaginary;
    const DoubleDouble length = logarithm(square) * DoubleDouble{0.5, 0};
    const DoubleDouble turn = a.is_real() ? kPi : angle(a.imaginary, a.real);
    result = {length, turn, 2 * spread + kFunctionRound * (4 + size(length))};
    return Status::ok;
}

Status root_of(const Ball& a, Ball& result) {
    if (a.is_real()) {
        const double magnitude = size(a.real);
        const DoubleDouble root = square_root(a.real.high < 0 ? -a.real : a.real);
        const double error = magnitude > 2 * a.error ? a.error / root.high : std::sqrt(3 * a.error);
        result = {root, {}, error + kRound * root.high};
        if (a.real.high < 0) std::swap(result.real, result.imaginary);
        return Status::ok;
    }
    Ball half;
    if (const Status s = logarithm_of(a, half); s != Status::ok) return s;
    return exponential_of(half * ball(0.5), result);
}

Status trigonometric(Function function, const Ball& a, Ball& result) {
    if (!a.is_real()) return Status::unsupported;
    if (!(size(a.real) <= kLargestAngle && a.error <= 1e-3)) return Status::limit;
    DoubleDouble sine, cosine;
    sine_and_cosine(a.real, sine, cosine);
    const double error = 2 * a.error + kFunctionRound;
    const Ball s{sine, {}, error}, c{cosine, {}, error};
    switch (function) {
        case Function::sin: result = s; return Status::ok;
        case Function::cos: result = c; return Status::ok;
        case Function::cis: result = {cosine, sine, error}; return Status::ok;
        case Function::tan: return divide(s, c, result);
        case Function::cot: return divide(c, s, result);
        case Function::sec: return divide(ball(1), c, result);
        default: return divide(ball(1), s, result);
    }
}

// The angles of arcsin, arccos and arctan, from sides of a triangle.
Status inverse_trigonometric(Function function, const Ball& a, Ball& result) {
    if (!a.is_real()) return Status::unsupported;
    if (!has_square(a)) return Status::limit;
    const DoubleDouble one{1, 0}, x = a.real;
    if (function == Function::arctan) return real_function(a, angle(x, one), 1, result);
    if (size(x) > 1 + a.error) return Status::undefined;
    DoubleDouble rest = (one - x) * (one + x);
    if (rest.high < 0) rest = {};
    const DoubleDouble side = square_root(rest);
    // the slope is 1 / side; at the ends an error turns into its root
    const double slope_error =
        side.high > 1e-12 ? a.error / side.high : 2 * std::sqrt(a.error + kRound);
    const DoubleDouble value = function == Function::arcsin ? angle(x, side) : angle(side, x);
    result = {value, {}, slope_error + kFunctionRound * 4};
    return Status::ok;
}

Status hyperbolic(Function function, const Ball& a, Ball& result) {
    Ball up, down;
    if (Status s = exponential_of(a, up); s != Status::ok) return s;
    if (Status s = exponential_of(-a, down); s != Status::ok) return s;
    const Ball sinh = (up + -down) * ball(0.5), cosh = (up + down) * ball(0.5);
    if (function == Function::sinh) result = sinh;
    if (function == Function::cosh) result = cosh;
    if (function == Function::tanh) return divide(sinh, cosh, result);
    if (function == Function::coth) return divide(cosh, sinh, result);
    return Status::ok;
}

Status inverse_hyperbolic(Function function, const Ball& a, Ball& result) {
    Ball inside;
    if (function == Function::arctanh) {
        if (Status s = divide(ball(1) + a, ball(1) + -a, inside); s != Status::ok) return s;
        const Status s = logarithm_of(inside, result);
        result = result * ball(0.5);
        return s;
    }
    const Ball shift = ball(function == Function::arcsinh ? 1 : -1);
    if (Status s = root_of(a * a + shift, inside); s != Status::ok) return s;
    return logarithm_of(a + inside, result);
}

Status rounded(Function function, const Ball& a, Ball& result) {
    if (!a.is_real()) return Status::unsupported;
    if (!(size(a.real) <= 1e15)) return Status::limit;
    // a value within its error of an integer is that integer
    const double nearest = std::nearbyint(a.real.high);
    if (size(a.real - DoubleDouble{nearest, 0}) <= a.error) {
        result = ball(nearest);
        return a.error < kClear ? Status::ok : Status::limit;
    }
    double low = std::floor(a.real.high);
    if (low == a.real.high && a.real.low < 0) low -= 1;
    result = ball(function == Function::floor ? low : low + 1);
    return Status::ok;
}

}  // namespace

double Ball::magnitude() const { return std::max(std::abs(real.high), std::abs(imaginary.high)); }

Ball ball(double value) { return {{value, 0}, {}, 0}; }
Ball ball(DoubleDouble value) { return {value, {}, kRound * std::abs(value.high)}; }

Ball ball(const Rational& value) {
    const auto approximate = [](const Integer& integer) {
        Ball sum;
        for (size_t i = integer.size(); i-- > 0;) {
            const uint64_t limb = integer.limbs()[i];
            const DoubleDouble part =
                DoubleDouble{static_cast<double>(limb >> 32), 0} * DoubleDouble{0x1p32, 0} +
                DoubleDouble{static_cast<double>(limb & 0xffffffff), 0};
            sum = sum * ball(1e18) + Ball{part, {}, 0};
        }
        return sum;
    };
    // beyond the range of a double nothing is known
    Ball quotient;
    if (value.numerator.size() > 15 || value.denominator.size() > 15) {
        quotient.error = HUGE_VAL;
        return quotient;
    }
    const Ball top = approximate(value.numerator), bottom = approximate(value.denominator);
    if (value.is_integer())
        quotient = top;
    else
        divide(top, bottom, quotient);
    return value.negative ? -quotient : quotient;
}

Ball operator+(const Ball& a, const Ball& b) {
    Ball sum{a.real + b.real, a.imaginary + b.imaginary, a.error + b.error};
    sum.error += kRound * sum.magnitude();
    return sum;
}

Ball operator-(const Ball& a) { return {-a.real, -a.imaginary, a.error}; }

Ball operator*(const Ball& a, const Ball& b) {
    Ball product;
    if (a.is_real() && b.is_real()) {
        product.real = a.real * b.real;
    } else {
        product.real = a.real * b.real - a.imaginary * b.imaginary;
        product.imaginary = a.real * b.imaginary + a.imaginary * b.real;
    }
    const double x = a.magnitude(), y = b.magnitude();
    product.error = 2 * (x * b.error + y * a.error + a.error * b.error) + 4 * kRound * x * y;
    return product;
}

Status divide(const Ball& a, const Ball& b, Ball& quotient) {
    const double bottom = b.magnitude();
    if (!(bottom > b.error)) return Status::undefined;
    if (!in_range(a) || !in_range(b)) return Status::limit;
    Ball result;
    if (b.is_real()) {
        result.real = a.real / b.real;
        if (!a.is_real()) result.imaginary = a.imaginary / b.real;
    } else {
        if (!has_square(a) || !has_square(b)) return Status::limit;
        const DoubleDouble square = b.real * b.real + b.imaginary * b.imaginary;
        result.real = (a.real * b.real + a.imaginary * b.imaginary) / square;
        result.imaginary = (a.imaginary * b.real - a.real * b.imaginary) / square;
    }
    const double size = result.magnitude();
    result.error = 2 * (a.error + 2 * size * b.error) / (bottom - b.error) + 8 * kRound * size;
    quotient = result;
    return Status::ok;
}

Status apply(Function function, const Ball& a, Ball& result) {
    if (!in_range(a)) return Status::limit;
    switch (function) {
        case Function::sin:
        case Function::cos:
        case Function::tan:
        case Function::cot:
        case Function::sec:
        case Function::csc:
        case Function::cis: return trigonometric(function, a, result);
        case Function::arcsin:
        case Function::arccos:
        case Function::arctan: return inverse_trigonometric(function, a, result);
        case Function::arccot: {
            if (!a.is_real()) return Status::unsupported;
            if (!has_square(a)) return Status::limit;
            return real_function(a, angle({1, 0}, a.real), 1, result);  // in (0, pi)
        }
        case Function::arcsec:
        case Function::arccsc: {
            Ball inverse;
            if (const Status s = divide(ball(1), a, inverse); s != Status::ok) return s;
            return inverse_trigonometric(
                function == Function::arcsec ? Function::arccos : Function::arcsin, inverse,
                result);
        }
        case Function::sinh:
        case Function::cosh:
        case Function::tanh:
        case Function::coth: return hyperbolic(function, a, result);
        case Function::arcsinh:
        case Function::arccosh:
        case Function::arctanh: return inverse_hyperbolic(function, a, result);
        case Function::exp: return exponential_of(a, result);
        case Function::log: return logarithm_of(a, result);
        case Function::sqrt: return root_of(a, result);
        case Function::abs: {
            if (a.is_real()) {
                result = a.real.high < 0 ? -a : a;
                return Status::ok;
            }
            if (!has_square(a)) return Status::limit;
            const DoubleDouble square = a.real * a.real + a.imaginary * a.imaginary;
            result = {square_root(square), {}, 2 * a.error + 4 * kRound * a.magnitude()};
            return Status::ok;
        }
        case Function::floor:
        case Function::ceil: return rounded(function, a, result);
        case Function::real_part: result = {a.real, {}, a.error}; return Status::ok;
        case Function::imaginary_part: result = {a.imaginary, {}, a.error}; return Status::ok;
        default: return Status::unsupported;
    }
}

Status power(Ball base, int64_t exponent, Ball& result) {
    bool inverse = exponent < 0;
    uint64_t left = inverse ? -static_cast<uint64_t>(exponent) : static_cast<uint64_t>(exponent);
    result = ball(1);
    if (left == 0) return base.magnitude() > base.error ? Status::ok : Status::undefined;
    for (;;) {
        if (left % 2) result = result * base;
        left /= 2;
        if (!in_range(result) || !in_range(base)) return Status::limit;
        if (left == 0) break;
        base = base * base;
    }
    return inverse ? divide(ball(1), result, result) : Status::ok;
}

Status power(const Ball& base, const Ball& exponent, Ball& result) {
    if (base.magnitude() <= base.error) {
        // zero to a positive power
        if (!exponent.is_real() || exponent.real.high <= exponent.error) return Status::undefined;
        if (base.error > 0) return Status::limit;
        result = Ball{};
        return Status::ok;
    }
    Ball logarithm;
    if (const Status s = logarithm_of(base, logarithm); s != Status::ok) return s;
    return exponential_of(logarithm * exponent, result);
}

bool is_lost(const Ball& small, const Ball& large, double share) {
    return small.magnitude() > small.error && small.magnitude() < share * large.magnitude();
}

Order compare_equal(const Ball& a, const Ball& b) {
    const double distance =
        std::max(std::abs((a.real - b.real).high), std::abs((a.imaginary - b.imaginary).high));
    const double error = 2 * (a.error + b.error);
    if (distance > error) return Order::above;
    const double scale = std::max(1.0, std::max(a.magnitude(), b.magnitude()));
    return error <= kClear * scale ? Order::equal : Order::unclear;
}

Order compare(const Ball& a, const Ball& b) {
    const Order order = compare_equal(a, b);
    if (order != Order::above) return order;
    return (a.real - b.real).high < 0 ? Order::below : Order::above;
}

}  // namespace fastrl::grading
