#include "equal.h"

#include <algorithm>

#include "intervals.h"
#include "words.h"

namespace fastrl::grading {

namespace {

constexpr size_t kLargestMatching = 64;
constexpr size_t kSortedFrom = 8;

// A number that equal things share, but for rounded ones; a guess at who belongs to whom.
uint64_t key_of(const Ref& ref, Budget& budget) {
    uint64_t key = 0;
    if (ref->kind < Kind::list) return modular(ref, kPrime, 0, key, budget) == Status::ok ? key : 0;
    if (ref->kind == Kind::texts) return hash_text(ref.tree->texts[ref->value]);
    for (const Ref& child : children_of(ref)) key = 31 * key + key_of(child, budget);
    return key;
}

void sort_by_key(Refs& refs, Budget& budget) {
    std::vector<std::pair<uint64_t, Ref>> keyed;
    for (const Ref& ref : refs) keyed.emplace_back(key_of(ref, budget), ref);
    std::stable_sort(keyed.begin(), keyed.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    for (size_t i = 0; i < refs.size(); ++i) refs[i] = keyed[i].second;
}

// What a value is measured in, taken off it.
struct Stripped {
    Ref value;
    Unit unit;
    bool percent = false;
};

Stripped strip(Ref ref) {
    Stripped found;
    for (;;) {
        const Node& node = *ref;
        if (node.kind == Kind::measured)
            found.unit = ref.tree->units[node.value];
        else if (node.kind == Kind::degrees)
            found.unit = {{kDegreeUnit, 1}};
        else if (node.kind == Kind::percent)
            found.percent = true;
        else
            break;
        ref = ref.child(0);
    }
    found.value = ref;
    return found;
}

bool has_open_sign(const Ref& ref) { return (ref->flags & kHasSign) && ref.sign == 0; }

bool is_listed(const Ref& ref) {
    return ref->kind == Kind::list || ref->kind == Kind::set || has_open_sign(ref);
}

bool is_region(const Ref& ref) {
    switch (ref->kind) {
        case Kind::interval:
        case Kind::union_of:
        case Kind::intersection:
        case Kind::difference:
        case Kind::number_set:
        case Kind::member: return true;
        case Kind::relation: return !is_equation(ref);
        default: return false;
    }
}

// 4:30 may be a time of day: minutes have two digits.
bool is_time(const Refs& parts) {
    if (parts.size() != 2 || parts[0]->kind != Kind::number || parts[1]->kind != Kind::number)
        return false;
    const Number& hours = parts[0].tree->numbers[parts[0]->value];
    const Number& minutes = parts[1].tree->numbers[parts[1]->value];
    return hours.width <= 2 && minutes.width == 2 && hours.value.numerator.up_to(25) < 25 &&
           minutes.value.numerator.up_to(60) < 60;
}

}  // namespace

Refs children_of(const Ref& ref) {
    Refs children;
    children.reserve(static_cast<size_t>(ref->count));
    for (int32_t i = 0; i < ref->count; ++i) children.push_back(ref.child(i));
    return children;
}

Refs members_of(const Ref& ref) {
    const bool listed = ref->kind == Kind::list || ref->kind == Kind::set;
    Refs members;
    for (const Ref& member : listed ? children_of(ref) : Refs{ref}) {
        if (!has_open_sign(member)) {
            members.push_back(member);
            continue;
        }
        for (const int8_t sign : {int8_t{1}, int8_t{-1}}) {
            members.push_back(member);
            members.back().sign = sign;
        }
    }
    return members;
}

Relation relation_after(const Ref& relation, int32_t member) {
    return relation.tree->relations[relation->value + member];
}

bool is_equation(const Ref& relation) {
    if (relation->kind != Kind::relation) return false;
    for (int32_t i = 0; i + 1 < relation->count; ++i)
        if (relation_after(relation, i) != Relation::equal) return false;
    return true;
}

int infinite_sign(const Ref& ref) {
    if (ref->kind == Kind::constant && ref->id == static_cast<uint8_t>(Constant::infinity))
        return 1;
    return ref->kind == Kind::negative ? -infinite_sign(ref.child(0)) : 0;
}

Match Comparer::equal(const Ref& gold, const Ref& answer) {
    if (!budget_.spend(1) || depth_ > 4 * kDeepest) return Match::limit;
    ++depth_;
    const Stripped asked = strip(gold), given = strip(answer);
    Match match = Match::no;
    if (asked.unit.empty() || given.unit.empty() || asked.unit == given.unit) {
        if (asked.percent == given.percent) {
            match = parts(asked.value, given.value);
        } else {
            Ref a = asked.value, b = given.value;
            (asked.percent ? a : b).hundredths = true;
            match = parts(a, b);
            if (match == Match::no && rules_.bare_percent) match = parts(asked.value, given.value);
        }
    }
    --depth_;
    return match;
}

Match Comparer::parts(const Ref& gold, const Ref& answer) {
    const Kind g = gold->kind, a = answer->kind;
    if (g == Kind::member && answer->kind == Kind::member &&
        !same_name(gold.child(0), answer.child(0)))
        return Match::no;
    if (g == Kind::member && is_listed(gold.child(1))) return equal(gold.child(1), answer);
    if (a == Kind::member && is_listed(answer.child(1))) return equal(gold, answer.child(1));
    if (is_region(gold) || is_region(answer)) return regions(gold, answer);
    if (g == Kind::relation && a == Kind::list) return tuple_of_names(gold, answer, true);
    if (a == Kind::relation && g == Kind::list) return tuple_of_names(answer, gold, false);
    if (is_listed(gold) || is_listed(answer)) {
        const Refs golds = members_of(gold), answers = members_of(answer);
        const bool both = is_listed(gold) && is_listed(answer);
        if (!both && (g == Kind::tuple || a == Kind::tuple) &&
            (g == Kind::list || a == Kind::list)) {
            const Refs& listed = g == Kind::tuple ? answers : golds;
            if (has_names(listed) && !names_ascend(listed)) return Match::no;
            return g == Kind::tuple ? in_order(children_of(gold), answers)
                                    : in_order(golds, children_of(answer));
        }
        // x = 5, y = 6 beside 5, 6: each value has its place
        if (both && has_names(golds) != has_names(answers)) {
            const Refs& named = has_names(golds) ? golds : answers;
            if (names_differ(named)) return in_order(golds, answers);
        }
        // \{3\} beside 3, but no set beside an element
        if (!both && depth_ == 1 && golds.size() == 1 && answers.size() == 1)
            return equal(golds[0], answers[0]);
        const bool as_sets =
            g == Kind::set || a == Kind::set || has_open_sign(gold) || has_open_sign(answer);
        if (both || has_open_sign(gold) || has_open_sign(answer))
            return in_any_order(golds, answers, as_sets);
        return Match::no;
    }
    if (g == Kind::relation && a == Kind::relation) return relations(gold, answer);
    if (g == Kind::relation) return value_of_relation(gold, answer, true);
    if (a == Kind::relation) return value_of_relation(answer, gold, false);
    if (g == Kind::ratio && a == Kind::ratio) return ratios(gold, answer);
    if (g < Kind::list && a < Kind::list) return expressions(gold, answer);
    // a column and a tuple
    if ((g == Kind::matrix && gold->value == 1 && a == Kind::tuple) ||
        (a == Kind::matrix && answer->value == 1 && g == Kind::tuple))
        return in_order(children_of(gold), children_of(answer));
    if (g != a) return Match::no;
    switch (g) {
        case Kind::texts:
            return gold.tree->texts[gold->value] == answer.tree->texts[answer->value] ? Match::yes
                                                                                      : Match::no;
        case Kind::matrix:
            if (gold->value != answer->value) return Match::no;
            [[fallthrough]];
        case Kind::tuple: return in_order(children_of(gold), children_of(answer));
        default: return Match::no;
    }
}

// Sets of real numbers by their intervals; what cannot be put on the line, part by part.
Match Comparer::regions(const Ref& gold, const Ref& answer) {
    const Kind kind = gold->kind;
    const bool same_kind = kind == answer->kind;
    if (same_kind && kind == Kind::interval && gold->id == answer->id) {
        const Match match = in_order(children_of(gold), children_of(answer));
        if (match == Match::yes) return match;
    }
    RealSet a, b;
    if (RealSet::read(gold, budget_, a) && RealSet::read(answer, budget_, b))
        return a.equals(b) ? Match::yes : Match::no;
    if (budget_.over()) return Match::limit;
    if (kind == Kind::relation || answer->kind == Kind::relation) {
        if (same_kind) return relations(gold, answer);
        return Match::no;
    }
    if (!same_kind) return Match::no;
    switch (kind) {
        case Kind::number_set: return gold->id == answer->id ? Match::yes : Match::no;
        case Kind::union_of:
        case Kind::intersection: return in_any_order(children_of(gold), children_of(answer), false);
        case Kind::difference: return in_order(children_of(gold), children_of(answer));
        case Kind::member: return equal(gold.child(1), answer.child(1));
        default: return Match::no;
    }
}

Match Comparer::in_order(const Refs& golds, const Refs& answers) {
    if (golds.size() != answers.size()) return Match::no;
    for (size_t i = 0; i < golds.size(); ++i)
        if (const Match match = equal(golds[i], answers[i]); match != Match::yes) return match;
    return Match::yes;
}

// Each gold with an answer of its own. Equality is not transitive (0.3 and 0.34 both match a gold
// of 0.3 and 0.34 matches another), so that a greedy choice is mended along augmenting paths.
Match Comparer::in_any_order(Refs golds, Refs answers, bool as_sets) {
    if (as_sets) {
        drop_twins(golds);
        drop_twins(answers);
    }
    const size_t n = golds.size();
    if (n != answers.size()) return Match::no;
    if (n > kSortedFrom) {
        sort_by_key(golds, budget_);
        sort_by_key(answers, budget_);
    }
    std::vector<int> owner(n, -1);  // the gold that an answer is given to
    bool limit = false;
    std::vector<size_t> left;
    for (size_t i = 0; i < n; ++i) {
        bool found = false;
        for (size_t k = 0; k < n && !found; ++k) {
            const size_t j = (i + k) % n;
            if (owner[j] >= 0) continue;
            const Match match = equal(golds[i], answers[j]);
            limit = limit || match == Match::limit;
            found = match == Match::yes;
            if (found) owner[j] = static_cast<int>(i);
            if (budget_.over()) return Match::limit;
        }
        if (!found) left.push_back(i);
    }
    if (left.empty()) return Match::yes;
    if (limit) return Match::limit;
    if (n > kLargestMatching) return Match::no;
    for (const size_t start : left) {
        // breadth first over golds; `from[j]` is the gold that first reached answer j
        std::vector<int> from(n, -1);
        std::vector<size_t> queue{start};
        int end = -1;
        for (size_t at = 0; at < queue.size() && end < 0; ++at)
            for (size_t j = 0; j < n && end < 0; ++j) {
                if (from[j] >= 0) continue;
                const Match match = equal(golds[queue[at]], answers[j]);
                if (budget_.over()) return Match::limit;
                if (match != Match::yes) continue;
                from[j] = static_cast<int>(queue[at]);
                if (owner[j] < 0)
                    end = static_cast<int>(j);
                else
                    queue.push_back(static_cast<size_t>(owner[j]));
            }
        if (end < 0) return Match::no;
        for (int j = end; j >= 0;) {
            const int gold = from[j];
            const auto before = std::find(owner.begin(), owner.end(), gold);
            const int next = before == owner.end() ? -1 : static_cast<int>(before - owner.begin());
            owner[j] = gold;
            if (next >= 0 && next != j) owner[next] = -1;
            j = gold == static_cast<int>(start) ? -1 : next;
        }
    }
    return Match::yes;
}

void Comparer::drop_twins(Refs& refs) {
    Refs kept;
    std::vector<uint64_t> keys;  // numbers with two keys are two numbers; 0: no key
    for (const Ref& ref : refs) {
        const uint64_t key = key_of(ref, budget_);
        bool known = false;
        for (size_t i = 0; i < kept.size() && !known && !budget_.over(); ++i)
            if (key == 0 || keys[i] == 0 || keys[i] == key)
                known = equal(kept[i], ref) == Match::yes;
        if (known) continue;
        kept.push_back(ref);
        keys.push_back(key);
    }
    refs = std::move(kept);
}

// a : b : c up to a factor; what may be a time, or has a part of zero, as it stands.
Match Comparer::ratios(const Ref& gold, const Ref& answer) {
    const Refs a = children_of(gold), b = children_of(answer);
    if (a.size() != b.size()) return Match::no;
    const Match same = in_order(a, b);
    if (same != Match::no || is_time(a)) return same;
    const auto is_zero = [&](const Ref& ref) {
        Rational value;
        return exact(ref, {}, value, budget_) == Status::ok && value.is_zero();
    };
    if (std::any_of(a.begin(), a.end(), is_zero) || std::any_of(b.begin(), b.end(), is_zero))
        return Match::no;
    for (size_t i = 1; i < a.size(); ++i) {
        const Ref cells[4] = {a[0], a[i], b[0], b[i]};
        Rational values[4], left, right;
        Status known = Status::ok;
        for (int j = 0; j < 4 && known == Status::ok; ++j)
            known = exact(cells[j], {}, values[j], budget_);
        if (known == Status::ok) known = multiply(values[0], values[3], left, budget_);
        if (known == Status::ok) known = multiply(values[1], values[2], right, budget_);
        if (known == Status::limit) return Match::limit;
        if (known == Status::ok) {
            int order;
            if (compare(left, right, order, budget_) != Status::ok) return Match::limit;
            if (order != 0) return Match::no;
            continue;
        }
        for (const uint64_t prime : {kPrime, kSecondPrime}) {
            uint64_t residues[4];
            Status s = Status::ok;
            for (int j = 0; j < 4 && s == Status::ok; ++j)
                s = modular(cells[j], prime, 0, residues[j], budget_);
            if (s == Status::limit) return Match::limit;
            if (s != Status::ok || multiply(residues[0], residues[3], prime) !=
                                       multiply(residues[1], residues[2], prime))
                return Match::no;
        }
    }
    return Match::yes;
}

}  // namespace fastrl::grading
