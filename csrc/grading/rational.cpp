#include "rational.h"

#include <algorithm>

namespace fastrl::grading {

namespace {

constexpr size_t kLimbDigits = 18;

using Wide = unsigned __int128;

// The value's integer where its denominator divides it, both below a limb.
bool small_quotient(const Rational& value, uint64_t& quotient) {
    const uint64_t top = value.numerator.up_to(kLimb), bottom = value.denominator.up_to(kLimb);
    if (top == kLimb || bottom == kLimb || top % bottom) return false;
    quotient = top / bottom;
    return true;
}

}  // namespace

Integer::Integer(uint64_t value) {
    for (; value > 0; value /= kLimb) limbs_.push_back(value % kLimb);
}

Integer Integer::from_digits(std::string_view digits) {
    Integer integer;
    integer.limbs_.reserve(digits.size() / kLimbDigits + 1);
    for (size_t end = digits.size(); end > 0; end -= std::min(end, kLimbDigits)) {
        uint64_t limb = 0;
        for (size_t i = end - std::min(end, kLimbDigits); i < end; ++i)
            limb = limb * 10 + static_cast<uint64_t>(digits[i] - '0');
        integer.limbs_.push_back(limb);
    }
    integer.trim();
    return integer;
}

Integer Integer::power_of_ten(size_t exponent) {
    Integer integer;
    integer.limbs_.assign(exponent / kLimbDigits, 0);
    uint64_t limb = 1;
    for (size_t i = 0; i < exponent % kLimbDigits; ++i) limb *= 10;
    integer.limbs_.push_back(limb);
    return integer;
}

void Integer::trim() {
    while (!limbs_.empty() && limbs_.back() == 0) limbs_.pop_back();
}

uint64_t Integer::up_to(uint64_t bound) const {
    if (limbs_.empty()) return 0;
    return limbs_.size() > 1 ? bound : std::min(bound, limbs_[0]);
}

size_t Integer::digits() const {
    if (limbs_.empty()) return 0;
    size_t count = (limbs_.size() - 1) * kLimbDigits;
    for (uint64_t top = limbs_.back(); top > 0; top /= 10) ++count;
    return count;
}

uint64_t Integer::modulo(uint64_t prime) const {
    uint64_t rest = 0;
    for (size_t i = limbs_.size(); i-- > 0;)
        rest = static_cast<uint64_t>((static_cast<Wide>(rest) * kLimb + limbs_[i]) % prime);
    return rest;
}

int Integer::compare(const Integer& a, const Integer& b) {
    if (a.size() != b.size()) return a.size() < b.size() ? -1 : 1;
    for (size_t i = a.size(); i-- > 0;)
        if (a.limbs_[i] != b.limbs_[i]) return a.limbs_[i] < b.limbs_[i] ? -1 : 1;
    return 0;
}

Integer Integer::sum(const Integer& a, const Integer& b) {
    const Integer& large = a.size() < b.size() ? b : a;
    const Integer& small = a.size() < b.size() ? a : b;
    Integer total;
    total.limbs_.reserve(large.size() + 1);
    uint64_t carry = 0;
    for (size_t i = 0; i < large.size(); ++i) {
        carry += large.limbs_[i] + (i < small.size() ? small.limbs_[i] : 0);
        total.limbs_.push_back(carry % kLimb);
        carry /= kLimb;
    }
    if (carry) total.limbs_.push_back(carry);
    return total;
}

Integer Integer::difference(const Integer& a, const Integer& b) {
    Integer rest;
    rest.limbs_.reserve(a.size());
    uint64_t borrow = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        const uint64_t taken = borrow + (i < b.size() ? b.limbs_[i] : 0);
        borrow = a.limbs_[i] < taken;
        rest.limbs_.push_back(a.limbs_[i] + (borrow ? kLimb : 0) - taken);
    }
    rest.trim();
    return rest;
}

Integer Integer::half(const Integer& a) {
    Integer result = a;
    uint64_t carry = 0;
    for (size_t i = result.size(); i-- > 0;) {
        const uint64_t limb = result.limbs_[i] + carry * kLimb;
        result.limbs_[i] = limb / 2;
        carry = limb % 2;
    }
    result.trim();
    return result;
}

Integer Integer::product(const Integer& a, const Integer& b, Budget& budget) {
    if (a.is_one()) return b;
    if (b.is_one()) return a;
    Integer result;
    if (!budget.spend(static_cast<int64_t>(a.size() * b.size()))) return result;
    result.limbs_.assign(a.size() + b.size(), 0);
    for (size_t i = 0; i < a.size(); ++i) {
        uint64_t carry = 0;
        for (size_t j = 0; j < b.size(); ++j) {
            const Wide cell =
                static_cast<Wide>(a.limbs_[i]) * b.limbs_[j] + result.limbs_[i + j] + carry;
            result.limbs_[i + j] = static_cast<uint64_t>(cell % kLimb);
            carry = static_cast<uint64_t>(cell / kLimb);
        }
        result.limbs_[i + b.size()] = carry;
    }
    result.trim();
    return result;
}

Rational negated(Rational value) {
    value.negative = !value.negative && !value.is_zero();
    return value;
}

namespace {

Status checked(Rational& value, const Budget& budget) {
    if (budget.over() || value.numerator.size() > kMostLimbs ||
        value.denominator.size() > kMostLimbs)
        return Status::limit;
    if (value.is_zero()) value.negative = false;
    return Status::ok;
}

}  // namespace

Status add(const Rational& a, const Rational& b, Rational& sum, Budget& budget) {
    budget.spend(1);
    const bool same = a.denominator == b.denominator;
    Integer left = same ? a.numerator : Integer::product(a.numerator, b.denominator, budget);
    Integer right = same ? b.numerator : Integer::product(b.numerator, a.denominator, budget);
    Rational total;
    total.denominator =
        same ? a.denominator : Integer::product(a.denominator, b.denominator, budget);
    if (a.negative == b.negative) {
        total.negative = a.negative;
        total.numerator = Integer::sum(left, right);
    } else if (Integer::compare(left, right) >= 0) {
        total.negative = a.negative;
        total.numerator = Integer::difference(left, right);
    } else {
        total.negative = b.negative;
        total.numerator = Integer::difference(right, left);
    }
    sum = std::move(total);
    return checked(sum, budget);
}

Status multiply(const Rational& a, const Rational& b, Rational& product, Budget& budget) {
    budget.spend(1);
    Rational result;
    result.negative = a.negative != b.negative;
    result.numerator = Integer::product(a.numerator, b.numerator, budget);
    result.denominator = Integer::product(a.denominator, b.denominator, budget);
    product = std::move(result);
    return checked(product, budget);
}

Status divide(const Rational& a, const Rational& b, Rational& quotient, Budget& budget) {
    if (b.is_zero()) return Status::undefined;
    Rational inverse;
    inverse.negative = b.negative;
    inverse.numerator = b.denominator;
    inverse.denominator = b.numerator;
    return multiply(a, inverse, quotient, budget);
}

Status power(Rational base, int64_t exponent, Rational& result, Budget& budget) {
    if (exponent < 0) {
        if (base.is_zero()) return Status::undefined;
        std::swap(base.numerator, base.denominator);
        exponent = -exponent;
    }
    result = Rational{false, Integer{1}, Integer{1}};
    if (exponent == 0) return base.is_zero() ? Status::undefined : Status::ok;
    for (;;) {
        if (exponent % 2) {
            if (const Status s = multiply(result, base, result, budget); s != Status::ok) return s;
        }
        exponent /= 2;
        if (exponent == 0) return Status::ok;
        if (const Status s = multiply(base, base, base, budget); s != Status::ok) return s;
    }
}

Status compare(const Rational& a, const Rational& b, int& order, Budget& budget) {
    budget.spend(1);
    const int sign = a.negative ? -1 : 1;
    if (a.negative != b.negative) {
        order = a.negative ? -1 : 1;
    } else if (a.denominator == b.denominator) {
        order = sign * Integer::compare(a.numerator, b.numerator);
    } else {
        order = sign * Integer::compare(Integer::product(a.numerator, b.denominator, budget),
                                        Integer::product(b.numerator, a.denominator, budget));
    }
    return budget.over() ? Status::limit : Status::ok;
}

bool as_small_integer(const Rational& value, int64_t& integer, Budget& budget) {
    budget.spend(1);
    uint64_t magnitude;
    if (!small_quotient(value, magnitude)) return false;
    integer = value.negative ? -static_cast<int64_t>(magnitude) : static_cast<int64_t>(magnitude);
    return true;
}

}  // namespace fastrl::grading
