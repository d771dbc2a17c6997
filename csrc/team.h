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
#include <deque>
#include <functional>
#include <thread>
#include <utility>

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

// Loops one after another in one parallel region: a barrier inside of it costs a microsecond, the
// threads of a region that sleep between two of them 50.
class Phases {
public:
    // body(begin, end) over [0, count) in pieces of `step`, after all loops added before; must not
    // throw.
    template <typename Body>
    void add(int64_t count, int64_t step, Body body) {
        phases_.emplace_back(count, step, std::move(body));
    }

    void run(int threads) { on_team(threads, &Phases::run_all, this); }

private:
    struct Phase {
        const int64_t count, step;
        const std::function<void(int64_t, int64_t)> body;
        std::atomic<int64_t> next{0}, done{0};

        template <typename Body>
        Phase(int64_t count_, int64_t step_, Body body_)
            : count(count_), step(step_), body(std::move(body_)) {}
    };

    static void run_all(void* data) {
        constexpr int SPINS = 2000;  // then the thread that is waited for may lack a core
        for (Phase& phase : static_cast<Phases*>(data)->phases_) {
            for (int64_t begin; (begin = phase.next.fetch_add(phase.step)) < phase.count;) {
                const int64_t end = std::min(begin + phase.step, phase.count);
                phase.body(begin, end);
                phase.done.fetch_add(end - begin, std::memory_order_release);
            }
            for (int spins = 0; phase.done.load(std::memory_order_acquire) < phase.count; ++spins)
                if (spins > SPINS) std::this_thread::yield();
        }
    }

    std::deque<Phase> phases_;
};

}  // namespace fastrl
