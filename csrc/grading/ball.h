// Complex numbers of 106 bits that carry a bound of their own error: two are different where they
// are further apart than their errors, and equal where they are not and the errors are small.
#pragma once

#include "budget.h"
#include "double_double.h"
#include "rational.h"

namespace fastrl::grading {

struct Ball {
    DoubleDouble real, imaginary;
    double error = 0;  // absolute, of both parts

    bool is_real() const { return imaginary.high == 0; }
    double magnitude() const;
};

// clang-format off
enum class Function : uint8_t {
    sin, cos, tan, cot, sec, csc,
    arcsin, arccos, arctan, arccot, arcsec, arccsc,
    sinh, cosh, tanh, coth, arcsinh, arccosh, arctanh,
    exp, log, cis, sqrt, abs, floor, ceil, gcd, lcm, max, min, real_part, imaginary_part,
};
// clang-format on

Ball ball(double value);
Ball ball(DoubleDouble value);
Ball ball(const Rational& value);

Ball operator+(const Ball& a, const Ball& b);
Ball operator-(const Ball& a);
Ball operator*(const Ball& a, const Ball& b);
// `undefined` where b may be zero.
Status divide(const Ball& a, const Ball& b, Ball& quotient);
Status apply(Function function, const Ball& a, Ball& result);
Status power(const Ball& base, const Ball& exponent, Ball& result);
Status power(Ball base, int64_t exponent, Ball& result);

// Whether `small`, which is not zero, would leave hardly a trace in a sum with `large`: is below
// `share` of it.
bool is_lost(const Ball& small, const Ball& large, double share = 0x1p-60);

enum class Order : uint8_t { below, equal, above, unclear };

// Whether the two are one number; `unclear` where the errors are too large to say.
Order compare_equal(const Ball& a, const Ball& b);
// The order of two real numbers.
Order compare(const Ball& a, const Ball& b);

}  // namespace fastrl::grading
