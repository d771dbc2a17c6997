// The value of an expression: exactly, in a finite field, or as a ball of complex numbers.
#pragma once

#include "ball.h"
#include "tree.h"

namespace fastrl::grading {

// An expression as it is compared.
struct Ref {
    const Tree* tree = nullptr;
    int32_t node = -1;
    int8_t sign = 0;          // of a \pm in it; 0: not chosen
    bool hundredths = false;  // 50 % as 0.5

    const Node& operator*() const { return tree->at(node); }
    const Node* operator->() const { return &tree->at(node); }
    Ref child(int32_t i) const { return {tree, tree->child(**this, i), sign, false}; }
};

// Where the symbols are put: the same symbol at the same place on both sides.
struct Place {
    enum class Where : uint8_t { constants_only, integers, real } where = Where::constants_only;
    uint32_t set = 0;      // which of the fixed places
    bool complex = false;  // values off the real line are welcome
};

// `unsupported` where the value is no rational number, or none that is found exactly.
Status exact(const Ref& ref, const Place& place, Rational& value, Budget& budget);
// Modulo a prime, at the place of this number; pi and e are symbols as well, which is right as long
// as no algebraic relation holds between them.
Status modular(const Ref& ref, uint64_t prime, uint32_t set, uint64_t& value, Budget& budget);
Status approximate(const Ref& ref, const Place& place, Ball& value, Budget& budget);

// The integer at which a symbol is put.
uint64_t integer_place(uint64_t name, uint32_t set);

constexpr uint64_t kPrime = (uint64_t{1} << 61) - 1;
constexpr uint64_t kSecondPrime = (uint64_t{1} << 61) - 31;  // a prime as well

uint64_t multiply(uint64_t a, uint64_t b, uint64_t prime);

}  // namespace fastrl::grading
