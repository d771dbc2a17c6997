// Runs a loop over [0, count) on several threads; every index is computed by exactly one of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace fastrl {

// body(begin, end) must not throw. The split never changes what an index computes.
template <typename Body>
void parallel_for(int64_t count, int threads, const Body& body) {
    const int64_t workers = std::max<int64_t>(1, std::min<int64_t>(threads, count));
    const int64_t share = (count + workers - 1) / workers;
    std::vector<std::thread> others;
    others.reserve(workers - 1);
    for (int64_t worker = 1; worker < workers; ++worker) {
        const int64_t begin = worker * share;
        const int64_t end = std::min(count, begin + share);
        if (begin < end) others.emplace_back([&body, begin, end] { body(begin, end); });
    }
    body(0, std::min(count, share));
    for (auto& other : others) other.join();
}

}  // namespace fastrl
