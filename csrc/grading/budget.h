// What one comparison may cost: counted operations, never a clock, so that a verdict is the same
// under any load.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastrl::grading {

// The limits of the policy. An answer beyond one of them is right only as the gold's own text.
constexpr size_t kLongestAnswer = 4096;  // bytes
constexpr int kDeepest = 64;
constexpr int kMostNodes = 512;  // of one element of a list
constexpr int kMostVariables = 64;
constexpr size_t kMostElements = 512;
constexpr size_t kMostLimbs = 274;  // of 18 digits: integers of 16,384 bits

constexpr int64_t kDefaultBudget = 20'000;  // operations of a comparison

// An operation is a product of two limbs of 18 digits, a node evaluated, or a comparison; a
// transcendental function costs kFunctionCost of them.
constexpr int64_t kFunctionCost = 20;

struct Budget {
    int64_t left;

    bool over() const { return left < 0; }
    // False, from then on, once more was spent than there was.
    bool spend(int64_t operations) {
        if (!over()) left -= operations;
        return !over();
    }
};

enum class Status : uint8_t {
    ok,
    undefined,    // 0/0, 1/0, log 0: equal to nothing
    unsupported,  // not a value of this kind of arithmetic
    limit,        // over the budget or too large
};

}  // namespace fastrl::grading
