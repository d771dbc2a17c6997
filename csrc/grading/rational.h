// Exact rational numbers of any size up to a cap, in decimal limbs: reading digits costs no
// conversion, and a number of four thousand digits is compared in microseconds.
#pragma once

#include <string_view>
#include <utility>

#include "budget.h"
#include "limbs.h"

namespace fastrl::grading {

constexpr uint64_t kLimb = 1'000'000'000'000'000'000;

// A magnitude: limbs of 18 decimal digits, the least first, none of them zero at the end.
class Integer {
public:
    Integer() = default;
    explicit Integer(uint64_t value);
    // Digits only.
    static Integer from_digits(std::string_view digits);
    static Integer power_of_ten(size_t exponent);

    bool is_zero() const { return limbs_.empty(); }
    bool is_one() const { return limbs_.size() == 1 && limbs_[0] == 1; }
    bool is_odd() const { return !limbs_.empty() && limbs_[0] % 2 == 1; }
    size_t size() const { return limbs_.size(); }
    size_t digits() const;
    // The value where it is below `bound` (at most 10^18), else `bound`.
    uint64_t up_to(uint64_t bound) const;
    uint64_t modulo(uint64_t prime) const;
    const Limbs& limbs() const { return limbs_; }

    static int compare(const Integer& a, const Integer& b);
    static Integer sum(const Integer& a, const Integer& b);
    static Integer half(const Integer& a);                          // rounded down
    static Integer difference(const Integer& a, const Integer& b);  // a >= b
    // Zero where the budget does not suffice, which it then says.
    static Integer product(const Integer& a, const Integer& b, Budget& budget);

    bool operator==(const Integer& other) const { return limbs_ == other.limbs_; }

private:
    Limbs limbs_;

    void trim();
};

// numerator / denominator, not reduced; the denominator is not zero, and zero is not negative.
struct Rational {
    bool negative = false;
    Integer numerator, denominator{1};

    bool is_zero() const { return numerator.is_zero(); }
    bool is_integer() const { return denominator.is_one(); }
};

// Each of these leaves a value without meaning where it returns anything but `ok`.
Status add(const Rational& a, const Rational& b, Rational& sum, Budget& budget);
Status multiply(const Rational& a, const Rational& b, Rational& product, Budget& budget);
Status divide(const Rational& a, const Rational& b, Rational& quotient, Budget& budget);
Status power(Rational base, int64_t exponent, Rational& result, Budget& budget);
// -1, 0, 1 in `order`.
Status compare(const Rational& a, const Rational& b, int& order, Budget& budget);
Rational negated(Rational value);
// The integer it is, if it is one below 10^18 in magnitude.
bool as_small_integer(const Rational& value, int64_t& integer, Budget& budget);

}  // namespace fastrl::grading
