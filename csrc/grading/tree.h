// What an answer says, as a tree in an arena.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "rational.h"
#include "tokens.h"

namespace fastrl::grading {

enum class Kind : uint8_t {
    // expressions
    number,       // value: in Tree::numbers
    symbol,       // name
    constant,     // id: Constant
    sum,          // children
    product,      // children
    negative,     // child
    quotient,     // two children
    power,        // base, exponent
    root,         // radicand, degree
    function,     // id: Function; children: arguments
    logarithm,    // argument, base (none: a logarithm of any base)
    factorial,    // child
    binomial,     // two children
    plus_minus,   // child: the sign of the whole answer times it
    minus_plus,   // child: the other sign
    determinant,  // a matrix
    percent,      // child, in hundredths
    degrees,      // child
    ratio,        // children: a : b : c
    // structures
    list,      // children, in no order
    set,       // children, in no order
    tuple,     // children
    interval,  // two children; id: kLeftClosed | kRightClosed
    union_of,
    intersection,
    difference,
    number_set,  // id: the letter of \mathbb; R is the real line
    matrix,      // children by rows; value: columns
    relation,    // children; the relations between them in Tree::relations from `value`
    member,      // x \in set: two children
    texts,       // value: in Tree::texts
    measured,    // child with a unit: value in Tree::units
};

constexpr uint8_t kLeftClosed = 1, kRightClosed = 2;
// of a union in words, whose parts must not overlap: "[0, 1] or (0, 1)" is a hedge
constexpr uint8_t kApart = 1;
// of a symbol that is f(x)
constexpr uint8_t kApplied = 1;

enum Flag : uint16_t {
    kHasSymbol = 1,
    kHasSign = 2,  // a plus_minus
    kHasImaginary = 4,
    kHasDecimal = 8,
    kIsIrrational = 32,  // no rational function: a root, a function, a power that is no integer's
    kHasFactorial = 64,
    kHasUnreadable = 128,  // text, or a structure inside of an expression
    kInBrackets = 256,     // of this node itself
    kWasGrouped = 512,     // of this node itself: 1,234 may be a list
    kHasInfinity = 1024,
    kIsPiecewise = 2048,  // |x|, max, floor, roots, arcsin: not one formula on the whole line
};
constexpr uint16_t kInherited = kHasSymbol | kHasSign | kHasImaginary | kHasDecimal |
                                kIsIrrational | kHasFactorial | kHasUnreadable | kHasInfinity |
                                kIsPiecewise;

struct Node {
    Kind kind;
    uint8_t id = 0;
    uint16_t flags = 0;
    int32_t first = 0, count = 0;  // children, in Tree::links
    int32_t value = -1;
    uint64_t name = 0;  // of a symbol: a hash of its letters and subscripts
};

struct Number {
    Rational value;
    int32_t decimals = 0;  // digits after the point, less the exponent
    bool is_decimal = false;
    uint32_t width = 0;  // digits written
};

constexpr int64_t kFirstWord = int64_t{1} << 62;  // unit numbers from here on are hashes of words
using Unit =
    std::vector<std::pair<int64_t, int32_t>>;  // (unit or hash of a word, exponent), sorted

struct Tree {
    std::vector<Node> nodes;
    std::vector<int32_t> links;
    std::vector<Number> numbers;
    std::vector<std::string> texts;
    std::vector<Unit> units;
    std::vector<Relation> relations;
    bool has_letter_unit = false;  // 2 m, which may be a product as well

    void clear();
    int32_t add(Node node, std::initializer_list<int32_t> children = {});
    int32_t add(Node node, const std::vector<int32_t>& children);
    const Node& at(int32_t node) const { return nodes[node]; }
    int32_t child(const Node& node, int32_t i) const { return links[node.first + i]; }
};

inline uint64_t hash_text(std::string_view text, uint64_t seed = 14695981039346656037ull) {
    for (const char c : text) seed = (seed ^ static_cast<unsigned char>(c)) * 1099511628211ull;
    return seed;
}

enum class Reading : uint8_t { ok, unreadable, limit };

// Reads the tokens of an answer (and splits some) into `tree`, which is cleared; `root` is its top.
// `letter_units`: 2 m is two metres.
Reading parse(Tokens& tokens, bool letter_units, Tree& tree, int32_t& root);

}  // namespace fastrl::grading
