#include <algorithm>

#include "equal.h"

namespace fastrl::grading {

namespace {

bool is_symbol(const Ref& ref) { return ref->kind == Kind::symbol; }

// The letter that a symbol is; 0 for one of another kind.
char letter_of(uint64_t name) {
    static const std::vector<std::pair<uint64_t, char>> letters = [] {
        std::vector<std::pair<uint64_t, char>> made;
        for (const char first : {'A', 'a'})
            for (char i = 0; i < 26; ++i) {
                const char letter = static_cast<char>(first + i);
                made.emplace_back(hash_text(std::string_view(&letter, 1)), letter);
            }
        return made;
    }();
    for (const auto& [hash, letter] : letters)
        if (hash == name) return letter;
    return 0;
}

bool is_capital(uint64_t name) { return is_upper(letter_of(name)); }

// a, b, c or x, y: the order in which a tuple has them.
bool ascends(const Refs& names) {
    for (size_t i = 0; i < names.size(); ++i) {
        if (!is_symbol(names[i])) return false;
        if (i > 0 && letter_of(names[i - 1]->name) >= letter_of(names[i]->name)) return false;
    }
    return true;
}

// x, f(x), f^{-1}(x), AB (two points), (x, y): what an answer may be called.
bool is_name(const Ref& ref) {
    const Refs children = children_of(ref);
    switch (ref->kind) {
        case Kind::symbol:
        case Kind::texts: return true;
        case Kind::tuple: return ascends(children);
        case Kind::product: {
            if (std::all_of(children.begin(), children.end(), [](const Ref& child) {
                    return is_symbol(child) && is_capital(child->name);
                }))
                return true;
            if (children.size() != 2) return false;
            const Ref& head = children[0];
            const bool named =
                is_symbol(head) || (head->kind == Kind::power && is_symbol(head.child(0)));
            const Ref& argument = children[1];
            return named && ((argument->flags & kInBrackets) || argument->kind == Kind::tuple) &&
                   (is_symbol(argument) || argument->kind == Kind::tuple ||
                    argument->kind == Kind::number);
        }
        default: return false;
    }
}

Relation mirrored(Relation relation) {
    switch (relation) {
        case Relation::less: return Relation::greater;
        case Relation::greater: return Relation::less;
        case Relation::less_equal: return Relation::greater_equal;
        case Relation::greater_equal: return Relation::less_equal;
        default: return relation;
    }
}

bool points_down(Relation relation) {
    return relation == Relation::greater || relation == Relation::greater_equal;
}

}  // namespace

// Whether every one is an equation with a name.
bool Comparer::has_names(const Refs& refs) {
    Ref name, value;
    return std::all_of(refs.begin(), refs.end(), [&](const Ref& ref) {
        return ref->kind == Kind::relation && named_value(ref, name, value) && is_symbol(name);
    });
}

bool Comparer::names_differ(const Refs& refs) {
    std::vector<uint64_t> names;
    Ref name, value;
    for (const Ref& ref : refs)
        if (named_value(ref, name, value)) names.push_back(name->name);
    std::sort(names.begin(), names.end());
    return std::adjacent_find(names.begin(), names.end()) == names.end();
}

bool Comparer::names_ascend(const Refs& refs) {
    Refs names(refs.size());
    Ref value;
    for (size_t i = 0; i < refs.size(); ++i)
        if (!named_value(refs[i], names[i], value)) return false;
    return ascends(names);
}

bool Comparer::same_name(const Ref& a, const Ref& b) {
    if (a->kind != b->kind) return false;
    if (a->kind == Kind::texts) return a.tree->texts[a->value] == b.tree->texts[b->value];
    if (is_symbol(a)) return a->name == b->name;
    return equal(a, b) == Match::yes;
}

// In x = 2 + 3 = 5 the name is x and the value 5, provided that the chain is true.
bool Comparer::named_value(const Ref& relation, Ref& name, Ref& value) {
    if (!is_equation(relation)) return false;
    const Refs members = children_of(relation);
    if (is_name(members.front())) {
        name = members.front();
        value = members.back();
        return all_equal(members, 1);
    }
    if (members.size() == 2 && is_symbol(members[1]) && !(members[0]->flags & kHasSymbol)) {
        name = members[1];
        value = members[0];
        return true;
    }
    return false;
}

// (x, y) = (1, 2) beside x = 1, y = 2.
Match Comparer::tuple_of_names(const Ref& relation, const Ref& list, bool relation_is_gold) {
    Ref name, value;
    if ((relation->flags & kHasSign) && relation.sign == 0) {
        const Refs both = members_of(relation), others = members_of(list);
        return relation_is_gold ? in_any_order(both, others, true)
                                : in_any_order(others, both, true);
    }
    const Refs equations = children_of(list);
    if (!named_value(relation, name, value) || name->kind != Kind::tuple ||
        value->kind != Kind::tuple || name->count != value->count ||
        equations.size() != static_cast<size_t>(name->count))
        return Match::no;
    for (int32_t i = 0; i < name->count; ++i) {
        Match match = Match::no;
        for (const Ref& equation : equations) {
            Ref own_name, own_value;
            if (equation->kind != Kind::relation || !named_value(equation, own_name, own_value) ||
                !same_name(name.child(i), own_name))
                continue;
            match = relation_is_gold ? equal(value.child(i), own_value)
                                     : equal(own_value, value.child(i));
            break;
        }
        if (match != Match::yes) return match;
    }
    return Match::yes;
}

bool Comparer::all_equal(const Refs& members, size_t from) {
    for (size_t i = from; i + 1 < members.size(); ++i)
        if (equal(members[i + 1], members[i]) != Match::yes &&
            equal(members[i], members[i + 1]) != Match::yes)
            return false;
    return true;
}

Match Comparer::value_of_relation(const Ref& relation, const Ref& other, bool relation_is_gold) {
    Ref name, value;
    if (!named_value(relation, name, value)) {
        // 2 + 3 = 5
        const Refs members = children_of(relation);
        const bool constant =
            is_equation(relation) && !(relation->flags & (kHasSymbol | kHasUnreadable));
        if (!constant || !all_equal(members, 0)) return Match::no;
        value = members.back();
    }
    return relation_is_gold ? equal(value, other) : equal(other, value);
}

Match Comparer::relations(const Ref& gold, const Ref& answer) {
    if (!is_equation(gold) || !is_equation(answer)) return inequalities(gold, answer);
    Ref asked, given, gold_value, value;
    if (named_value(gold, asked, gold_value) && named_value(answer, given, value)) {
        // words name anything; y and f(x) are two names of one function
        const bool spoken = asked->kind == Kind::texts || given->kind == Kind::texts ||
                            (is_symbol(asked) && given->kind == Kind::product) ||
                            (asked->kind == Kind::product && is_symbol(given)) ||
                            (is_symbol(asked) && is_symbol(given) && asked->id != given->id);
        if (spoken || same_name(asked, given)) {
            const Match match = equal(gold_value, value);
            if (match != Match::no) return match;
        }
    }
    if (gold->count != answer->count) return Match::no;
    for (int32_t i = 0; i + 1 < gold->count; ++i) {
        const Ref sides[2] = {gold.child(i), gold.child(i + 1)};
        const Ref others[2] = {answer.child(i), answer.child(i + 1)};
        const Match match = proportional(sides, others, false);
        if (match != Match::yes) return match;
    }
    return Match::yes;
}

// Chains of the same relations, each up to a positive factor of its difference.
Match Comparer::inequalities(const Ref& gold, const Ref& answer) {
    if (gold->count != answer->count) return Match::no;
    const int32_t last = gold->count - 1;
    const bool turned =
        points_down(relation_after(gold, 0)) != points_down(relation_after(answer, 0));
    for (int32_t i = 0; i < last; ++i) {
        const int32_t j = turned ? last - 1 - i : i;
        const Relation given = relation_after(answer, j);
        if (relation_after(gold, i) != (turned ? mirrored(given) : given)) return Match::no;
        const Ref sides[2] = {gold.child(i), gold.child(i + 1)};
        const Ref others[2] = {answer.child(turned ? j + 1 : j), answer.child(turned ? j : j + 1)};
        const bool positive = given != Relation::not_equal && given != Relation::equal;
        if (const Match match = proportional(sides, others, positive); match != Match::yes)
            return match;
    }
    return Match::yes;
}

Match Comparer::proportional(const Ref (&gold)[2], const Ref (&answer)[2], bool positive) {
    uint16_t flags = 0;
    for (const Ref& ref : {gold[0], gold[1], answer[0], answer[1]}) {
        if (ref->kind >= Kind::list) return Match::no;
        flags |= ref->flags;
    }
    if (flags & (kHasUnreadable | kHasInfinity)) return Match::no;
    // in a field: f(p) g(q) = f(q) g(p)
    const auto difference = [&](const Ref(&sides)[2], uint64_t prime, uint32_t set,
                                uint64_t& value) {
        uint64_t left, right;
        Status s = modular(sides[0], prime, set, left, budget_);
        if (s == Status::ok) s = modular(sides[1], prime, set, right, budget_);
        if (s == Status::ok) value = left >= right ? left - right : left + (prime - right);
        return s;
    };
    Status s = Status::ok;
    if (!(flags & (kIsIrrational | kHasFactorial))) {
        for (const uint64_t prime : {kPrime, kSecondPrime}) {
            uint64_t f[3], g[3];
            for (uint32_t set = 0; set < 3 && s == Status::ok; ++set) {
                s = difference(gold, prime, set, f[set]);
                if (s == Status::ok) s = difference(answer, prime, set, g[set]);
            }
            if (s == Status::limit) return Match::limit;
            if (s == Status::undefined) return undefined();
            if (s != Status::ok) break;
            if (f[0] == 0 || g[0] == 0) return Match::no;
            for (int i = 1; i < 3; ++i)
                if (multiply(f[0], g[i], prime) != multiply(f[i], g[0], prime)) return Match::no;
        }
    }
    const bool proved = s == Status::ok && !(flags & (kIsIrrational | kHasFactorial));
    const bool decided = proved && !positive;
    // at real places: the same quotient everywhere. Of z = a and z = b it varies by (a - b) / a
    // times z / a: where z is far below a it is the same for all b
    constexpr double kShare = 0x1p-33;
    bool lost = false;
    uint32_t valid = 0;
    Ball first;
    for (uint32_t set = 0; set < 8 && valid < 4; ++set) {
        const Place place{Place::Where::real, set, (flags & kHasImaginary) != 0};
        Ball values[4];
        const Ref refs[4] = {gold[0], gold[1], answer[0], answer[1]};
        s = Status::ok;
        for (int i = 0; i < 4 && s == Status::ok; ++i)
            s = approximate(refs[i], place, values[i], budget_);
        if (budget_.over()) return Match::limit;
        if (s == Status::unsupported) return Match::no;
        if (s != Status::ok) continue;
        if (is_lost(values[0], values[1], kShare) || is_lost(values[1], values[0], kShare) ||
            is_lost(values[2], values[3], kShare) || is_lost(values[3], values[2], kShare)) {
            lost = true;
            continue;
        }
        Ball quotient;
        if (divide(values[0] + -values[1], values[2] + -values[3], quotient) != Status::ok)
            continue;
        if (positive && !(quotient.real.high > quotient.error)) return Match::no;
        if (!proved && quotient.magnitude() <= quotient.error) return Match::no;
        if (valid == 0)
            first = quotient;
        else if (const Order order = compare_equal(first, quotient);
                 order == Order::above || (!proved && order != Order::equal))
            return Match::no;
        ++valid;
    }
    if (valid >= 2 || decided) return Match::yes;
    return lost ? Match::limit : Match::no;
}

}  // namespace fastrl::grading
