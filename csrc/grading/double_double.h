// Real numbers of 106 bits as the sum of two doubles, and the elementary functions on them.
//
// Addition, product and quotient follow Dekker (1971) and Knuth's two-sum as in Hida, Li and
// Bailey's "Quad-double arithmetic" (2001). No fused multiply-add is used, so that the bits are the
// same on any machine. `kRound` bounds the relative error of an arithmetic operation and of a
// square root, `kFunctionRound` that of a function whose argument is exact, relative to the result
// or absolute where the result lies below 1.
#pragma once

namespace fastrl::grading {

struct DoubleDouble {
    double high = 0, low = 0;
};

constexpr double kRound = 0x1p-102;
constexpr double kFunctionRound = 0x1p-92;

DoubleDouble operator+(DoubleDouble a, DoubleDouble b);
DoubleDouble operator-(DoubleDouble a);
DoubleDouble operator-(DoubleDouble a, DoubleDouble b);
DoubleDouble operator*(DoubleDouble a, DoubleDouble b);
DoubleDouble operator/(DoubleDouble a, DoubleDouble b);

DoubleDouble square_root(DoubleDouble a);  // a >= 0
DoubleDouble exponential(DoubleDouble a);  // |a| <= 700
DoubleDouble logarithm(DoubleDouble a);    // a > 0
// |a| <= 10^6
void sine_and_cosine(DoubleDouble a, DoubleDouble& sine, DoubleDouble& cosine);
// The angle of the point (x, y), in (-pi, pi]; not for the origin.
DoubleDouble angle(DoubleDouble y, DoubleDouble x);

extern const DoubleDouble kPi, kLog2, kE;

}  // namespace fastrl::grading
