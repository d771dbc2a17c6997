// Whether two answers are the same: structures by their parts, numbers and expressions by value.
#pragma once

#include "evaluate.h"

namespace fastrl::grading {

enum class Match : uint8_t { no, yes, limit };

struct Rules {
    bool bare_percent = true;  // 50 for a gold of 50 %, and the reverse
    bool six_digits = false;   // a decimal right to six significant digits for an exact gold
};

using Refs = std::vector<Ref>;

class Comparer {
public:
    Comparer(Budget& budget, const Rules& rules) : budget_(budget), rules_(rules) {}

    // `gold` decides what is asked for: its decimals, its unit, its structure.
    Match equal(const Ref& gold, const Ref& answer);
    // Whether something compared had no value: 0/0 and the like.
    bool saw_undefined() const { return saw_undefined_; }
    // Whether a value was over a limit, even if what is written alike was called equal.
    bool saw_limit() const { return saw_limit_; }

private:
    Budget& budget_;
    const Rules& rules_;
    bool saw_undefined_ = false;
    bool saw_limit_ = false;
    int depth_ = 0;

    // equal.cpp: structures
    Match parts(const Ref& gold, const Ref& answer);
    Match regions(const Ref& gold, const Ref& answer);
    Match in_order(const Refs& golds, const Refs& answers);
    Match in_any_order(Refs golds, Refs answers, bool as_sets);
    void drop_twins(Refs& refs);
    Match ratios(const Ref& gold, const Ref& answer);

    // relations.cpp
    Match relations(const Ref& gold, const Ref& answer);
    Match inequalities(const Ref& gold, const Ref& answer);
    Match value_of_relation(const Ref& relation, const Ref& other, bool relation_is_gold);
    bool has_names(const Refs& refs);
    bool names_differ(const Refs& refs);
    bool names_ascend(const Refs& refs);
    Match tuple_of_names(const Ref& relation, const Ref& list, bool relation_is_gold);
    bool named_value(const Ref& relation, Ref& name, Ref& value);
    bool all_equal(const Refs& members, size_t from);
    bool same_name(const Ref& a, const Ref& b);
    // Whether gold_left - gold_right is a constant times answer_left - answer_right.
    Match proportional(const Ref (&gold)[2], const Ref (&answer)[2], bool positive);

    // expressions.cpp
    Match expressions(const Ref& gold, const Ref& answer);
    Match constants(const Ref& gold, const Ref& answer);
    Match rational_functions(const Ref& gold, const Ref& answer);
    Match at_integers(const Ref& gold, const Ref& answer);
    Match at_reals(const Ref& gold, const Ref& answer);
    Match undefined() {
        saw_undefined_ = true;
        return Match::no;
    }
};

// The elements of a list or set; both values of something with a \pm.
Refs members_of(const Ref& ref);
bool is_equation(const Ref& relation);
// 1 and -1 of the two infinities, 0 of anything else.
int infinite_sign(const Ref& ref);
Refs children_of(const Ref& ref);
Relation relation_after(const Ref& relation, int32_t member);

}  // namespace fastrl::grading
