// What the three ways of evaluating a tree share.
#pragma once

#include <vector>

#include "evaluate.h"

namespace fastrl::grading {

constexpr int32_t kLargestDeterminant = 6;

inline uint64_t mixed(uint64_t x) {  // splitmix64, Steele, Lea and Flood 2014
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

inline bool is(const Node& node, Constant constant) {
    return node.kind == Kind::constant && node.id == static_cast<uint8_t>(constant);
}

inline Rational small(uint64_t value) { return {false, Integer{value}, Integer{1}}; }

// Of a minus or a \pm: whether its sign is not chosen, and whether it is a minus.
inline bool is_open(const Ref& ref) { return ref->kind != Kind::negative && ref.sign == 0; }
inline bool is_flipped(const Ref& ref) {
    return ref->kind == Kind::negative || (ref->kind == Kind::plus_minus) == (ref.sign < 0);
}

// Applies `step(child)` to each child until one fails.
template <typename Step>
Status each(const Ref& ref, const Step& step) {
    for (int32_t i = 0; i < ref->count; ++i)
        if (const Status s = step(i, ref.child(i)); s != Status::ok) return s;
    return Status::ok;
}

// Laplace over the first row: 6! products at most.
template <typename Value, typename Add, typename Multiply>
Status determinant(const std::vector<Value>& cells, std::vector<int32_t> columns, int32_t row,
                   int32_t size, const Value& zero, const Value& one, Value& result,
                   const Add& add_signed, const Multiply& times) {
    if (row == size) {
        result = one;
        return Status::ok;
    }
    result = zero;
    for (size_t i = 0; i < columns.size(); ++i) {
        std::vector<int32_t> rest = columns;
        rest.erase(rest.begin() + static_cast<std::ptrdiff_t>(i));
        Value minor, part;
        Status s = determinant(cells, rest, row + 1, size, zero, one, minor, add_signed, times);
        if (s == Status::ok) s = times(cells[row * size + columns[i]], minor, part);
        if (s == Status::ok) s = add_signed(result, part, i % 2 == 1);
        if (s != Status::ok) return s;
    }
    return Status::ok;
}

inline std::vector<int32_t> first_columns(int32_t size) {
    std::vector<int32_t> columns(size);
    for (int32_t i = 0; i < size; ++i) columns[i] = i;
    return columns;
}

inline bool is_square(const Node& matrix) {
    return matrix.kind == Kind::matrix && matrix.value > 0 && matrix.value <= kLargestDeterminant &&
           matrix.count == matrix.value * matrix.value;
}

// The root of an exact radicand; `unsupported` where it is irrational.
Status exact_root(const Rational& radicand, int64_t degree, Rational& value, Budget& budget);

}  // namespace fastrl::grading
