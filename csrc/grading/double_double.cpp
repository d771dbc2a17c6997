#include "double_double.h"

#include <cmath>

#ifdef __FAST_MATH__
#error "the low halves of the sums are lost under -ffast-math"
#endif

namespace fastrl::grading {

// 107 bits each
const DoubleDouble kPi{0x1.921fb54442d18p+1, 0x1.1a62633145c07p-53};
const DoubleDouble kLog2{0x1.62e42fefa39efp-1, 0x1.abc9e3b39803fp-56};
const DoubleDouble kE{0x1.5bf0a8b145769p+1, 0x1.4d57ee2b1013ap-53};

namespace {

// The third part of pi: arguments are reduced with 160 bits.
constexpr double kPiRest = -0x1.f1976b7ed8fbcp-109;

DoubleDouble quick_two_sum(double a, double b) {
    const double sum = a + b;
    return {sum, b - (sum - a)};
}

DoubleDouble two_sum(double a, double b) {
    const double sum = a + b, part = sum - a;
    return {sum, (a - (sum - part)) + (b - part)};
}

void split(double a, double& high, double& low) {
    const double scaled = 134217729.0 * a;  // 2^27 + 1
    high = scaled - (scaled - a);
    low = a - high;
}

DoubleDouble two_product(double a, double b) {
    double a_high, a_low, b_high, b_low;
    split(a, a_high, a_low);
    split(b, b_high, b_low);
    const double product = a * b;
    return {product,
            ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low};
}

DoubleDouble times(DoubleDouble a, double power_of_two) {
    return {a.high * power_of_two, a.low * power_of_two};
}

}  // namespace

DoubleDouble operator+(DoubleDouble a, DoubleDouble b) {
    DoubleDouble sum = two_sum(a.high, b.high);
    const DoubleDouble rest = two_sum(a.low, b.low);
    sum = quick_two_sum(sum.high, sum.low + rest.high);
    return quick_two_sum(sum.high, sum.low + rest.low);
}

DoubleDouble operator-(DoubleDouble a) { return {-a.high, -a.low}; }
DoubleDouble operator-(DoubleDouble a, DoubleDouble b) { return a + -b; }

DoubleDouble operator*(DoubleDouble a, DoubleDouble b) {
    const DoubleDouble product = two_product(a.high, b.high);
    return quick_two_sum(product.high, product.low + (a.high * b.low + a.low * b.high));
}

DoubleDouble operator/(DoubleDouble a, DoubleDouble b) {
    const double first = a.high / b.high;
    DoubleDouble rest = a - b * DoubleDouble{first, 0};
    const double second = rest.high / b.high;
    rest = rest - b * DoubleDouble{second, 0};
    const double third = rest.high / b.high;
    return quick_two_sum(first, second) + DoubleDouble{third, 0};
}

DoubleDouble square_root(DoubleDouble a) {
    if (a.high <= 0) return {};
    const double root = std::sqrt(a.high);
    const DoubleDouble near{root, 0};
    return near + (a - near * near) / times(near, 2);  // one step of Newton
}

DoubleDouble exponential(DoubleDouble a) {
    // exp(a) = 2^k exp(r / 512)^512, |r| <= log(2) / 2
    const double k = std::nearbyint(a.high / kLog2.high);
    const DoubleDouble r = times(a - kLog2 * DoubleDouble{k, 0}, 1.0 / 512);
    // expm1 of r by its series; nine squarings of 1 + s as s <- 2 s + s^2 keep its low bits
    DoubleDouble term = r, sum = r;
    for (int n = 2; n <= 9; ++n) {
        term = term * r / DoubleDouble{static_cast<double>(n), 0};
        sum = sum + term;
    }
    for (int i = 0; i < 9; ++i) sum = times(sum, 2) + sum * sum;
    const DoubleDouble result = sum + DoubleDouble{1, 0};
    return {std::ldexp(result.high, static_cast<int>(k)),
            std::ldexp(result.low, static_cast<int>(k))};
}

DoubleDouble logarithm(DoubleDouble a) {
    int exponent;
    const double mantissa = std::frexp(a.high, &exponent);  // the argument of exp stays small
    const DoubleDouble m{mantissa, std::ldexp(a.low, -exponent)};
    DoubleDouble x{std::log(mantissa), 0};
    x = x + m * exponential(-x) - DoubleDouble{1, 0};  // Newton: the error is squared
    x = x + m * exponential(-x) - DoubleDouble{1, 0};
    return x + kLog2 * DoubleDouble{static_cast<double>(exponent), 0};
}

void sine_and_cosine(DoubleDouble a, DoubleDouble& sine, DoubleDouble& cosine) {
    // a = k pi / 2 + r, |r| <= pi / 4
    const double k = std::nearbyint(a.high / (kPi.high / 2));
    const DoubleDouble multiple{k / 2, 0};
    DoubleDouble r = a - DoubleDouble{kPi.high, 0} * multiple;
    r = r - DoubleDouble{kPi.low, 0} * multiple - DoubleDouble{kPiRest * (k / 2), 0};
    const DoubleDouble square = -(r * r);
    DoubleDouble s = r, c{1, 0}, s_term = r, c_term{1, 0};
    for (int n = 1; n <= 14; ++n) {
        c_term = c_term * square / DoubleDouble{static_cast<double>((2 * n - 1) * (2 * n)), 0};
        s_term = s_term * square / DoubleDouble{static_cast<double>((2 * n) * (2 * n + 1)), 0};
        c = c + c_term;
        s = s + s_term;
        if (std::abs(c_term.high) < 0x1p-112) break;
    }
    const int quadrant = static_cast<int>(std::fmod(k, 4.0) + 4) % 4;
    sine = quadrant == 0 ? s : quadrant == 1 ? c : quadrant == 2 ? -s : -c;
    cosine = quadrant == 0 ? c : quadrant == 1 ? -s : quadrant == 2 ? -c : s;
}

DoubleDouble angle(DoubleDouble y, DoubleDouble x) {
    const DoubleDouble length = square_root(x * x + y * y);
    const DoubleDouble near{std::atan2(y.high, x.high), 0};
    DoubleDouble sine, cosine;
    sine_and_cosine(near, sine, cosine);
    // sin(angle - near), which is the angle's rest to 2^-150
    return near + (y / length * cosine - x / length * sine);
}

}  // namespace fastrl::grading
