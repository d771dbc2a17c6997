// Sets of real numbers as sorted intervals: unions, differences and solved inequalities.
#pragma once

#include "equal.h"

namespace fastrl::grading {

struct Endpoint {
    int infinite = 0;  // -1, 0, 1
    bool is_exact = false;
    Rational exact;
    Ball value;
};

struct Piece {
    Endpoint low, high;
    bool low_closed = false, high_closed = false;
};

class RealSet {
public:
    // False where `ref` is no set of real numbers whose ends have known values.
    static bool read(const Ref& ref, Budget& budget, RealSet& set);
    // Nothing but the same numbers, of the same variable where both name one.
    bool equals(const RealSet& other) const;

private:
    std::vector<Piece> pieces_;  // in order, with gaps between them
    uint64_t name_ = 0;          // of the variable; 0: none
    Budget* budget_ = nullptr;

    bool read_node(const Ref& ref);
    bool read_relation(const Ref& ref);
    bool read_pair(const Ref& left, Relation relation, const Ref& right);
    bool endpoint(const Ref& ref, Endpoint& end) const;
    bool solve(const Ref& left, const Ref& right, Endpoint& root, bool& falling) const;
    bool add(Piece piece);
    bool normalize();
    bool intersect(const RealSet& other);
    bool complement();
    bool take_name(uint64_t name);
};

}  // namespace fastrl::grading
