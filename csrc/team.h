// Runs a loop on the threads of the OpenMP runtime that torch has loaded, where there is one.
//
// Its threads are awake between torch's own operations, and spin: a std::thread beside a spinning
// one gets half a core (log-probs of 512 x 49152 on 2 cores: 4.3 to 7 ms; on torch's threads 4.3).
// Not for a caller in a forked process, where that runtime's threads are gone; torch's number of
// threads is 1 there.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>

#include "parallel.h"

#if defined(__linux__)
#include <dlfcn.h>
#endif

namespace fastrl {

using OpenMpParallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

inline OpenMpParallel find_openmp() {
#if defined(__linux__)
    // the entry that GCC calls for a parallel region; Intel's and LLVM's runtimes have it too
    return reinterpret_cast<OpenMpParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
#else
    return nullptr;
#endif
}

// run(data) on every thread of a team, of `threads` at most; must not throw.
inline void on_team(int threads, void (*run)(void*), void* data) {
    static const OpenMpParallel openmp = find_openmp();
    if (threads <= 1)
        run(data);
    else if (openmp != nullptr)
        openmp(run, data, static_cast<unsigned>(threads), 0);
    else
        parallel_for(threads, threads, [&](int64_t, int64_t) { run(data); });
}

// body(begin, end) over [0, count) in pieces of `step`; must not throw. A thread that is free takes
// the next piece, so that the team may be smaller than asked for.
template <typename Body>
void team_for(int64_t count, int64_t step, int threads, const Body& body) {
    struct Work {
        const Body& body;
        const int64_t count, step;
        std::atomic<int64_t> next{0};

        static void run(void* data) {
            Work& work = *static_cast<Work*>(data);
            for (int64_t begin; (begin = work.next.fetch_add(work.step)) < work.count;)
                work.body(begin, std::min(begin + work.step, work.count));
        }
    } work{body, count, step};
    on_team(threads, &Work::run, &work);
}

// prepare(i) over [0, prepared), and when all of them are done body(begin, end) as in `team_for`,
// in one parallel region.
template <typename Prepare, typename Body>
void team_for_after(int64_t prepared, const Prepare& prepare, int64_t count, int64_t step,
                    int threads, const Body& body) {
    struct Work {
        const Prepare& prepare;
        const Body& body;
        const int64_t prepared, count, step;
        std::atomic<int64_t> next_prepared{0}, done{0}, next{0};

        static void run(void* data) {
            Work& work = *static_cast<Work*>(data);
            for (int64_t i; (i = work.next_prepared.fetch_add(1)) < work.prepared;) {
                work.prepare(i);
                work.done.fetch_add(1, std::memory_order_release);
            }
            for (int spins = 0; work.done.load(std::memory_order_acquire) < work.prepared; ++spins)
                if (spins > 1000) std::this_thread::yield();
            for (int64_t begin; (begin = work.next.fetch_add(work.step)) < work.count;)
                work.body(begin, std::min(begin + work.step, work.count));
        }
    } work{prepare, body, prepared, count, step};
    on_team(threads, &Work::run, &work);
}

}  // namespace fastrl
