// The device's memory, its streams, and who may read and write it when.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include <torch/extension.h>

namespace {

using at::Tensor;
using c10::IValue;
using torch::jit::Stack;
using Clock = std::map<int64_t, int64_t>;  // by stream: the last piece of its work that is known

constexpr size_t SPAN = size_t{1} << 38, ALIGN = 512, LARGE = size_t{1} << 26;
const c10::Device DEVICE(c10::kCUDA, 0);

// `lock` is taken before Python's own; memory is given back by who may hold that already
std::recursive_mutex lock, memory_lock;
using Guard = std::lock_guard<std::recursive_mutex>;

// ---- memory

struct Block {
    size_t offset, size;
    int64_t stream;  // of its allocation: it is given out again there only
    std::pair<int64_t, int64_t> written{0, 0};  // stream and clock of the last write
    Clock read;                                 // clocks of reads since then
};

struct Memory {
    char *device, *host;
    size_t top = ALIGN, total = size_t{80} << 30, used = 0, peak = 0, cached = 0;
    std::map<size_t, Block> blocks;                                  // by offset
    std::map<std::pair<int64_t, size_t>, std::vector<size_t>> free;  // by stream and size

    Memory() {
        const int file = memfd_create("fake_cuda", 0);
        TORCH_CHECK(file >= 0 && ftruncate(file, SPAN) == 0, "no memory for the device");
        const auto map = [&](int access) {
            return static_cast<char*>(
                mmap(nullptr, SPAN, access, MAP_SHARED | MAP_NORESERVE, file, 0));
        };
        device = map(PROT_NONE);
        host = map(PROT_READ | PROT_WRITE);
        TORCH_CHECK(device != MAP_FAILED && host != MAP_FAILED, "no addresses for the device");
        close(file);
    }
    char* seen(const void* p) const { return host + (static_cast<const char*>(p) - device); }
    Block& block(const void* p) {
        auto found = blocks.upper_bound(static_cast<const char*>(p) - device);
        TORCH_CHECK(found != blocks.begin(), "an address that was never given out");
        return std::prev(found)->second;
    }
};
Memory& memory() {
    static auto* one = new Memory;  // outlives every tensor
    return *one;
}

// ---- streams, and what each of them may know of the others

thread_local int64_t current = 0;
int64_t streams = 1;
std::map<int64_t, Clock> known;  // by stream
Clock waited;                    // what the host has waited for

void join(Clock& into, const Clock& other) {
    for (const auto& [stream, clock] : other) into[stream] = std::max(into[stream], clock);
}

// The number of a new piece of work on the current stream.
int64_t tick() {
    Clock& clock = known[current];
    join(clock, waited);
    return ++clock[current];
}

struct Pending {  // a copy between host and device that need not have happened yet
    int64_t stream, clock;
    Tensor host, bytes;
    bool to_host;
};
std::vector<Pending> pending;

// A copy of the list has happened.
void settle(size_t i) {
    const Pending p = std::move(pending[i]);
    pending.erase(pending.begin() + i);
    if (p.to_host) {
        memcpy(p.host.data_ptr(), p.bytes.data_ptr(), p.bytes.nbytes());
    } else {
        TORCH_CHECK(memcmp(p.host.data_ptr(), p.bytes.data_ptr(), p.bytes.nbytes()) == 0,
                    "fake CUDA: host memory was changed while a copy of it was on its way");
    }
}

void host_waits_for(const Clock& clock) {
    join(waited, clock);
    for (size_t i = 0; i < pending.size();) {
        if (pending[i].clock <= waited[pending[i].stream])
            settle(i);
        else
            ++i;
    }
}

// Copies from or to host memory that the current stream is about to copy come before it.
void settle_before(const Tensor& host) {
    Clock& clock = known[current];
    join(clock, waited);
    const auto* first = static_cast<const char*>(host.data_ptr());
    for (size_t i = 0; i < pending.size();) {
        const Pending& p = pending[i];
        const auto* other = static_cast<const char*>(p.host.data_ptr());
        if (first + host.nbytes() <= other || other + p.host.nbytes() <= first) {
            ++i;
            continue;
        }
        TORCH_CHECK(p.clock <= clock[p.stream], "fake CUDA: stream ", current,
                    " copies host memory that a copy of stream ", p.stream,
                    " is at, and has not waited for it");
        settle(i);
    }
}

void host_waits_for_stream(int64_t stream) { host_waits_for(known[stream]); }
void host_waits_for_all() {
    for (const auto& [stream, clock] : known) host_waits_for(clock);
}

bool recording();  // what is captured is not done: it is checked when it is

// The block of an address whose last write the current stream has waited for.
Block& written_before(const void* address, const char* what, const char* does) {
    Block& b = memory().block(address);
    Clock& clock = known[current];
    join(clock, waited);
    TORCH_CHECK(b.written.second <= clock[b.written.first], "fake CUDA: ", what, " on stream ",
                current, does, "what stream ", b.written.first,
                " writes, and has not waited for it");
    return b;
}

void check_write(const void* address, const char* what) {
    if (recording()) return;
    const Block& b = written_before(address, what, " writes ");
    for (const auto& [stream, at] : b.read)
        TORCH_CHECK(stream == current || at <= known[current][stream], "fake CUDA: ", what,
                    " on stream ", current, " writes what stream ", stream,
                    " reads, and has not waited for it");
}

void wrote(const void* address) {
    if (recording()) return;
    Block& b = memory().block(address);
    b.written = {current, known[current][current]};
    b.read.clear();
}

void reads(const void* address, const char* what) {
    if (recording()) return;
    // the piece of work that begins now
    written_before(address, what, " reads ").read[current] = known[current][current] + 1;
}

void give_back(void* address) {
    Guard guard(memory_lock);
    if (!address) return;
    Memory& m = memory();
    Block& b = m.blocks.at(static_cast<char*>(address) - m.device);
    m.used -= b.size;
    m.cached += b.size;
    m.free[{b.stream, b.size}].push_back(b.offset);
}

struct DeviceAllocator final : c10::Allocator {
    c10::DataPtr allocate(size_t bytes) override {
        Guard guard(memory_lock);
        Memory& m = memory();
        if (bytes == 0) return {nullptr, nullptr, &give_back, DEVICE};
        const size_t size = (bytes + ALIGN - 1) / ALIGN * ALIGN;
        auto& free = m.free[{current, size}];
        size_t offset = m.top;
        if (free.empty()) {
            if (m.used + m.cached + size > m.total) release();
            TORCH_CHECK_WITH(OutOfMemoryError, m.used + size <= m.total,
                             "CUDA out of memory. Tried to allocate ", bytes, " bytes of ", m.total,
                             ", of which ", m.used, " are taken");
            m.top += size;
            TORCH_CHECK(m.top < SPAN, "fake CUDA: no address is left");
            m.blocks[offset] = Block{offset, size, current, {0, 0}, {}};
        } else {
            offset = free.back();
            free.pop_back();
            m.cached -= size;
        }
        m.used += size;
        m.peak = std::max(m.peak, m.used);
        memset(m.host + offset, 0xff, std::min(size, LARGE));  // NaN, and no index
        return {m.device + offset, m.device + offset, &give_back, DEVICE};
    }
    static void release() {
        Guard guard(memory_lock);
        Memory& m = memory();
        for (auto& [key, offsets] : m.free)
            for (const size_t offset : offsets) {
                madvise(m.host + offset / 4096 * 4096 + 4096,
                        std::max<size_t>(key.second, 8192) - 8192, MADV_REMOVE);
                m.blocks.erase(offset);
            }
        m.free.clear();
        m.cached = 0;
    }
    c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
    void copy_data(void*, const void*, size_t) const override { TORCH_CHECK(false, "not needed"); }
};
DeviceAllocator allocator;

std::map<const void*, size_t> pinned;
struct PinnedAllocator final : c10::Allocator {
    c10::DataPtr allocate(size_t bytes) override {
        Guard guard(memory_lock);
        void* p = std::malloc(std::max<size_t>(bytes, 1));
        pinned[p] = std::max<size_t>(bytes, 1);
        return {p, p, &drop, c10::Device(c10::kCPU)};
    }
    static void drop(void* p) {
        Guard guard(memory_lock);
        pinned.erase(p);
        std::free(p);
    }
    c10::DeleterFnPtr raw_deleter() const override { return &drop; }
    void copy_data(void* to, const void* from, size_t n) const override { memcpy(to, from, n); }
} pinned_allocator;

bool is_pinned(const void* p) {
    Guard guard(memory_lock);
    auto found = pinned.upper_bound(p);
    if (found == pinned.begin()) return false;
    --found;
    return p < static_cast<const char*>(found->first) + found->second;
}

}  // namespace
