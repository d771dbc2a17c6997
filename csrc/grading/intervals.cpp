#include "intervals.h"

#include <algorithm>

namespace fastrl::grading {

namespace {

constexpr size_t kMostPieces = 128;

Order order_of(const Endpoint& a, const Endpoint& b, Budget& budget) {
    if (a.infinite || b.infinite)
        return a.infinite < b.infinite   ? Order::below
               : a.infinite > b.infinite ? Order::above
                                         : Order::equal;
    if (a.is_exact && b.is_exact) {
        int order;
        if (compare(a.exact, b.exact, order, budget) != Status::ok) return Order::unclear;
        return order < 0 ? Order::below : order > 0 ? Order::above : Order::equal;
    }
    return compare(a.value, b.value);
}

Endpoint infinite(int sign) {
    Endpoint end;
    end.infinite = sign;
    return end;
}

}  // namespace

bool RealSet::read(const Ref& ref, Budget& budget, RealSet& set) {
    set.budget_ = &budget;
    return set.read_node(ref);
}

bool RealSet::take_name(uint64_t name) {
    if (name_ != 0 && name != 0 && name_ != name) return false;
    if (name != 0) name_ = name;
    return true;
}

bool RealSet::endpoint(const Ref& ref, Endpoint& end) const {
    if (const int sign = infinite_sign(ref)) {
        end = infinite(sign);
        return true;
    }
    if (ref->kind >= Kind::list || (ref->flags & (kHasSymbol | kHasSign | kHasUnreadable)))
        return false;
    end.is_exact = exact(ref, {}, end.exact, *budget_) == Status::ok;
    if (end.is_exact) {
        end.value = ball(end.exact);
        return true;
    }
    const Place place{Place::Where::constants_only, 0, false};
    return approximate(ref, place, end.value, *budget_) == Status::ok;
}

bool RealSet::add(Piece piece) {
    const Order order = order_of(piece.low, piece.high, *budget_);
    if (order == Order::unclear || order == Order::above) return false;
    if (piece.low.infinite) piece.low_closed = false;
    if (piece.high.infinite) piece.high_closed = false;
    if (order == Order::equal && !(piece.low_closed && piece.high_closed)) return false;
    pieces_.push_back(std::move(piece));
    return pieces_.size() <= kMostPieces;
}

bool RealSet::read_node(const Ref& ref) {
    switch (ref->kind) {
        case Kind::number_set:
            if (ref->id != 'R') return false;
            return add({infinite(-1), infinite(1), false, false});
        case Kind::interval:
        case Kind::tuple: {
            if (ref->count != 2) return false;
            Piece piece;
            if (!endpoint(ref.child(0), piece.low) || !endpoint(ref.child(1), piece.high))
                return false;
            piece.low_closed = ref->kind == Kind::interval && (ref->id & kLeftClosed);
            piece.high_closed = ref->kind == Kind::interval && (ref->id & kRightClosed);
            return add(std::move(piece));
        }
        case Kind::set: {
            for (const Ref& member : members_of(ref)) {
                Piece point{{}, {}, true, true};
                if (!endpoint(member, point.low) || point.low.infinite) return false;
                point.high = point.low;
                if (!add(std::move(point))) return false;
            }
            return normalize();
        }
        case Kind::union_of:
        case Kind::list:
            for (const Ref& part : children_of(ref)) {
                RealSet other;
                if (!read(part, *budget_, other) || !take_name(other.name_)) return false;
                pieces_.insert(pieces_.end(), other.pieces_.begin(), other.pieces_.end());
                if (pieces_.size() > kMostPieces) return false;
            }
            {
                const bool apart = ref->kind == Kind::list || ref->id == kApart;
                const size_t parts = pieces_.size();
                return normalize() && !(apart && pieces_.size() != parts);
            }
        case Kind::intersection: {
            if (!read_node(ref.child(0))) return false;
            for (int32_t i = 1; i < ref->count; ++i) {
                RealSet other;
                if (!read(ref.child(i), *budget_, other) || !intersect(other)) return false;
            }
            return true;
        }
        case Kind::difference: {
            RealSet without;
            return read_node(ref.child(0)) && read(ref.child(1), *budget_, without) &&
                   without.complement() && intersect(without);
        }
        case Kind::member:
            if (ref.child(0)->kind != Kind::symbol) return false;
            return read_node(ref.child(1)) && take_name(ref.child(0)->name);
        case Kind::relation: return read_relation(ref);
        default: return false;
    }
}

bool RealSet::read_relation(const Ref& ref) {
    const Refs members = children_of(ref);
    for (size_t i = 0; i + 1 < members.size(); ++i) {
        RealSet part;
        part.budget_ = budget_;
        if (!part.read_pair(members[i], relation_after(ref, static_cast<int32_t>(i)),
                            members[i + 1]))
            return false;
        if (i == 0) {
            pieces_ = part.pieces_;
            name_ = part.name_;
        } else if (!intersect(part)) {
            return false;
        }
    }
    return true;
}

// left - right as a line in its one variable: where it is zero, and whether it falls.
bool RealSet::solve(const Ref& left, const Ref& right, Endpoint& root, bool& falling) const {
    if (left->kind == Kind::symbol && !(right->flags & kHasSymbol)) {
        falling = false;
        return endpoint(right, root);
    }
    if (right->kind == Kind::symbol && !(left->flags & kHasSymbol)) {
        falling = true;
        return endpoint(left, root);
    }
    if ((left->flags | right->flags) & (kIsIrrational | kHasFactorial | kHasUnreadable))
        return false;
    constexpr int kPoints = 4;
    Rational x[kPoints], y[kPoints];
    uint32_t set = 0;
    for (int i = 0; i < kPoints; ++set) {
        if (set == 16) return false;
        const Place place{Place::Where::integers, set, false};
        x[i] = {false, Integer{integer_place(name_, set)}, Integer{1}};
        bool known = false;
        for (int j = 0; j < i; ++j) known = known || x[j].numerator == x[i].numerator;
        if (known) continue;
        Rational a, b;
        if (exact(left, place, a, *budget_) != Status::ok ||
            exact(right, place, b, *budget_) != Status::ok ||
            grading::add(a, negated(b), y[i], *budget_) != Status::ok)
            return false;
        ++i;
    }
    const auto slope = [&](int i, Rational& value) {
        Rational rise, run;
        return grading::add(y[i], negated(y[0]), rise, *budget_) == Status::ok &&
               grading::add(x[i], negated(x[0]), run, *budget_) == Status::ok &&
               divide(rise, run, value, *budget_) == Status::ok;
    };
    Rational line, other, shift;
    if (!slope(1, line) || line.is_zero()) return false;
    for (int i = 2; i < kPoints; ++i) {
        int order;
        if (!slope(i, other) || compare(line, other, order, *budget_) != Status::ok || order != 0)
            return false;
    }
    if (divide(y[0], line, shift, *budget_) != Status::ok ||
        grading::add(x[0], negated(shift), root.exact, *budget_) != Status::ok)
        return false;
    root.is_exact = true;
    root.value = ball(root.exact);
    falling = line.negative;
    return true;
}

bool RealSet::read_pair(const Ref& left, Relation relation, const Ref& right) {
    if (left->kind >= Kind::list || right->kind >= Kind::list) return false;
    // one variable only
    for (const Ref& side : {left, right}) {
        std::vector<Ref> open{side};
        while (!open.empty()) {
            const Ref ref = open.back();
            open.pop_back();
            if (!budget_->spend(1)) return false;
            if (ref->kind == Kind::symbol && !take_name(ref->name)) return false;
            for (const Ref& child : children_of(ref)) open.push_back(child);
        }
    }
    if (name_ == 0) return false;
    Endpoint root;
    bool falling;
    if (!solve(left, right, root, falling)) return false;
    switch (relation) {
        case Relation::equal: return !root.infinite && add({root, root, true, true});
        case Relation::not_equal:
            return !root.infinite && add({root, root, true, true}) && complement();
        default: break;
    }
    const bool greater = relation == Relation::greater || relation == Relation::greater_equal;
    const bool closed = relation == Relation::less_equal || relation == Relation::greater_equal;
    if (greater != falling) return add({root, infinite(1), closed, false});
    return add({infinite(-1), root, false, closed});
}

// Sorted, and what touches joined.
bool RealSet::normalize() {
    bool clear = true;
    const auto before = [&](const Piece& a, const Piece& b) {
        const Order order = order_of(a.low, b.low, *budget_);
        clear = clear && order != Order::unclear;
        return order == Order::below || (order == Order::equal && a.low_closed && !b.low_closed);
    };
    // an insertion sort: an order that contradicts itself cannot send it astray
    for (size_t i = 1; i < pieces_.size(); ++i)
        for (size_t j = i; j > 0 && before(pieces_[j], pieces_[j - 1]); --j)
            std::swap(pieces_[j], pieces_[j - 1]);
    std::vector<Piece> joined;
    for (Piece& piece : pieces_) {
        if (!joined.empty()) {
            Piece& last = joined.back();
            const Order gap = order_of(last.high, piece.low, *budget_);
            clear = clear && gap != Order::unclear;
            if (gap == Order::above ||
                (gap == Order::equal && (last.high_closed || piece.low_closed))) {
                const Order end = order_of(last.high, piece.high, *budget_);
                clear = clear && end != Order::unclear;
                if (end == Order::below) {
                    last.high = piece.high;
                    last.high_closed = piece.high_closed;
                } else if (end == Order::equal) {
                    last.high_closed = last.high_closed || piece.high_closed;
                }
                continue;
            }
        }
        joined.push_back(std::move(piece));
    }
    pieces_ = std::move(joined);
    return clear && !budget_->over();
}

bool RealSet::complement() {
    if (!normalize()) return false;
    std::vector<Piece> gaps;
    Endpoint from = infinite(-1);
    bool from_closed = false;
    for (const Piece& piece : pieces_) {
        if (piece.low.infinite == 0)
            gaps.push_back({from, piece.low, from_closed, !piece.low_closed});
        from = piece.high;
        from_closed = !piece.high_closed;
    }
    if (from.infinite <= 0) gaps.push_back({from, infinite(1), from_closed, false});
    pieces_.clear();
    for (Piece& gap : gaps) {
        const Order order = order_of(gap.low, gap.high, *budget_);
        if (order == Order::unclear) return false;
        if (order == Order::below || (gap.low_closed && gap.high_closed))
            pieces_.push_back(std::move(gap));
    }
    return true;
}

bool RealSet::intersect(const RealSet& other) {
    if (!take_name(other.name_)) return false;
    std::vector<Piece> common;
    for (const Piece& a : pieces_)
        for (const Piece& b : other.pieces_) {
            const Order low = order_of(a.low, b.low, *budget_),
                        high = order_of(a.high, b.high, *budget_);
            if (low == Order::unclear || high == Order::unclear) return false;
            Piece piece;
            piece.low = low == Order::below ? b.low : a.low;
            piece.low_closed = low == Order::equal   ? a.low_closed && b.low_closed
                               : low == Order::below ? b.low_closed
                                                     : a.low_closed;
            piece.high = high == Order::above ? b.high : a.high;
            piece.high_closed = high == Order::equal   ? a.high_closed && b.high_closed
                                : high == Order::above ? b.high_closed
                                                       : a.high_closed;
            const Order order = order_of(piece.low, piece.high, *budget_);
            if (order == Order::unclear) return false;
            if (order == Order::below ||
                (order == Order::equal && piece.low_closed && piece.high_closed))
                common.push_back(std::move(piece));
            if (common.size() > kMostPieces) return false;
        }
    pieces_ = std::move(common);
    return normalize();
}

bool RealSet::equals(const RealSet& other) const {
    if (name_ != 0 && other.name_ != 0 && name_ != other.name_) return false;
    if (pieces_.size() != other.pieces_.size()) return false;
    for (size_t i = 0; i < pieces_.size(); ++i) {
        const Piece &a = pieces_[i], &b = other.pieces_[i];
        if (a.low_closed != b.low_closed || a.high_closed != b.high_closed ||
            order_of(a.low, b.low, *budget_) != Order::equal ||
            order_of(a.high, b.high, *budget_) != Order::equal)
            return false;
    }
    return true;
}

}  // namespace fastrl::grading
