// A CUDA device made of host memory, for a build of torch that has no CUDA.
//
// Every operation runs on the CPU, over the same bytes, but the device's addresses cannot be read
// by the host: a program that takes a tensor of the device for one of the CPU ends with an error,
// as on a GPU. So does one that mixes devices, waits while a graph is captured, replays a graph
// whose inputs are gone, reads what another stream writes without having waited for it, or reads a
// copy that is still on its way. It knows nothing of time and of what a compiler makes of a kernel.
#include <sys/mman.h>
#include <unistd.h>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/InferSize.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/Resize.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/extension.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>

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
    bool has(const void* p) const { return p >= device && p < device + SPAN; }
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

void check_write(const void* address, const char* what) {
    if (recording()) return;
    Block& b = memory().block(address);
    Clock& clock = known[current];
    join(clock, waited);
    TORCH_CHECK(b.written.second <= clock[b.written.first], "fake CUDA: ", what, " on stream ",
                current, " writes what stream ", b.written.first,
                " writes, and has not waited for it");
    for (const auto& [stream, at] : b.read)
        TORCH_CHECK(stream == current || at <= clock[stream], "fake CUDA: ", what, " on stream ",
                    current, " writes what stream ", stream, " reads, and has not waited for it");
}

void wrote(const void* address) {
    if (recording()) return;
    Block& b = memory().block(address);
    b.written = {current, known[current][current]};
    b.read.clear();
}

void reads(const void* address, const char* what) {
    if (recording()) return;
    Block& b = memory().block(address);
    Clock& clock = known[current];
    join(clock, waited);
    TORCH_CHECK(b.written.second <= clock[b.written.first], "fake CUDA: ", what, " on stream ",
                current, " reads what stream ", b.written.first,
                " writes, and has not waited for it");
    b.read[current] = clock[current] + 1;  // the piece of work that begins now
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

// ---- what torch asks of a device

struct GuardImpl final : c10::impl::DeviceGuardImplInterface {
    c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
    c10::DeviceType type() const override { return c10::kCUDA; }
    c10::Device getDevice() const override { return DEVICE; }
    void setDevice(c10::Device) const override {}
    void uncheckedSetDevice(c10::Device) const noexcept override {}
    static c10::Stream stream(int64_t id) { return c10::Stream(c10::Stream::UNSAFE, DEVICE, id); }
    c10::Stream getStream(c10::Device) const override { return stream(current); }
    c10::Stream getDefaultStream(c10::Device) const override { return stream(0); }
    c10::Stream getNewStream(c10::Device, int) const override { return stream(streams++); }
    c10::Stream exchangeStream(c10::Stream s) const override {
        return stream(std::exchange(current, s.id()));
    }
    void record(void** event, const c10::Stream& s, c10::DeviceIndex,
                c10::EventFlag) const override {
        Guard guard(lock);
        if (!*event) *event = new Clock;
        *static_cast<Clock*>(*event) = known[s.id()];
    }
    void block(void* event, const c10::Stream& s) const override {
        Guard guard(lock);
        if (event) join(known[s.id()], *static_cast<Clock*>(event));
    }
    bool queryEvent(void*) const override { return true; }
    void destroyEvent(void* event, c10::DeviceIndex) const noexcept override {
        delete static_cast<Clock*>(event);
    }
    c10::DeviceIndex deviceCount() const noexcept override { return 1; }
    void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, GuardImpl)

// Numbers of a CPU's generator: not those of a GPU's.
struct GeneratorImpl final : c10::GeneratorImpl {
    at::Generator inner;
    explicit GeneratorImpl(at::Generator g)
        : c10::GeneratorImpl(DEVICE, c10::DispatchKeySet(c10::DispatchKey::CUDA)),
          inner(std::move(g)) {}
    void set_current_seed(uint64_t s) override { inner.set_current_seed(s); }
    void set_offset(uint64_t) override {}
    uint64_t get_offset() const override { return 0; }
    uint64_t current_seed() const override { return inner.current_seed(); }
    uint64_t seed() override { return inner.seed(); }
    void set_state(const c10::TensorImpl& state) override {
        inner.set_state(Tensor(c10::intrusive_ptr<c10::TensorImpl>::reclaim_copy(
            const_cast<c10::TensorImpl*>(&state))));
    }
    c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
        return inner.get_state().getIntrusivePtr();
    }
    c10::GeneratorImpl* clone_impl() const override { return new GeneratorImpl(inner.clone()); }
};
at::Generator new_generator() {
    return at::make_generator<GeneratorImpl>(
        at::make_generator<at::CPUGeneratorImpl>(c10::default_rng_seed_val));
}
const at::Generator& default_generator() {
    static const at::Generator one = new_generator();
    return one;
}

struct Hooks final : at::CUDAHooksInterface {
    explicit Hooks(at::CUDAHooksArgs) {}
    void init() const override {}
    bool hasCUDA() const override { return true; }
    bool isBuilt() const override { return true; }
    bool isAvailable() const override { return true; }
    bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
    c10::DeviceIndex deviceCount() const override { return 1; }
    c10::DeviceIndex getCurrentDevice() const override { return 0; }
    c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
    c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
    void setCurrentDevice(c10::DeviceIndex) const override {}
    c10::DeviceIndex current_device() const override { return 0; }
    int getNumGPUs() const override { return 1; }
    bool isPinnedPtr(const void* p) const override { return is_pinned(p); }
    c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
    c10::Allocator* getCUDADeviceAllocator() const override { return &allocator; }
    c10::Device getDeviceFromPtr(void*) const override { return DEVICE; }
    const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
        return default_generator();
    }
    at::Generator getNewGenerator(c10::DeviceIndex) const override { return new_generator(); }
    void deviceSynchronize(c10::DeviceIndex) const override { host_waits_for_all(); }
};
}  // namespace
namespace at {
C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", Hooks);
}
namespace {

// ---- tensors of the device, and tensors of the CPU over the same bytes

bool on_device(const Tensor& t) { return t.defined() && t.is_cuda(); }

Tensor make(at::IntArrayRef size, at::IntArrayRef stride, c10::ScalarType type,
            c10::Storage storage, int64_t offset, c10::Device device) {
    const auto key = device.is_cuda() ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU;
    Tensor t = at::detail::make_tensor<c10::TensorImpl>(
        std::move(storage), c10::DispatchKeySet(key), c10::scalarTypeToTypeMeta(type));
    t.unsafeGetTensorImpl()->set_storage_offset(offset);
    t.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride);
    return t;
}

Tensor on_host(const Tensor& t) {
    void* data = t.storage().mutable_data();
    c10::DataPtr p(data ? memory().seen(data) : nullptr, c10::Device(c10::kCPU));
    c10::Storage s(c10::Storage::use_byte_size_t(), t.storage().nbytes(), std::move(p),
                   c10::GetAllocator(c10::kCPU), true);
    return make(t.sizes(), t.strides(), t.scalar_type(), s, t.storage_offset(), c10::kCPU);
}

Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, c10::ScalarType type) {
    const size_t bytes = at::detail::computeStorageNbytes(size, stride, c10::elementSize(type));
    c10::Storage s(c10::Storage::use_byte_size_t(), bytes, allocator.allocate(bytes), &allocator,
                   true);
    return make(size, stride, type, s, 0, DEVICE);
}

Tensor to_device(const Tensor& cpu) {
    const auto bytes = cpu.storage().nbytes();
    c10::Storage s(c10::Storage::use_byte_size_t(), bytes, allocator.allocate(bytes), &allocator,
                   true);
    if (bytes) memcpy(memory().seen(s.data()), cpu.storage().data(), bytes);
    return make(cpu.sizes(), cpu.strides(), cpu.scalar_type(), s, cpu.storage_offset(), DEVICE);
}

// ---- graphs: what is done between begin and end is kept, undone, and done again by replay

struct Held {  // a tensor that was there before: a graph knows its address alone
    c10::weak_intrusive_ptr<c10::StorageImpl> storage;
    std::vector<int64_t> size, stride;
    c10::ScalarType type;
    int64_t offset;
    Tensor get() const {
        auto found = storage.lock();
        TORCH_CHECK(
            found,
            "fake CUDA: a graph is replayed that reads or writes memory which was given back");
        return make(size, stride, type, c10::Storage(found), offset, DEVICE);
    }
};

struct Graph {
    int64_t stream = 0;
    std::vector<std::function<void()>> work;
    std::vector<Tensor> own;  // made by it
    std::map<size_t, std::vector<char>> before;
    std::set<c10::StorageImpl*> storages;

    bool owns(const Tensor& t) const {
        return storages.count(t.storage().unsafeGetStorageImpl()) > 0;
    }
    void adopt(const Tensor& t) {
        own.push_back(t);
        storages.insert(t.storage().unsafeGetStorageImpl());
    }
    std::function<Tensor()> hold(const Tensor& t) {
        if (owns(t)) return [t] { return t; };
        Held held{t.storage().getWeakStorageImpl(), t.sizes().vec(), t.strides().vec(),
                  t.scalar_type(), t.storage_offset()};
        return [held] { return held.get(); };
    }
    void will_write(const Tensor& t) {
        if (owns(t) || !t.storage().nbytes()) return;
        const Block& b = memory().block(t.storage().data());
        auto& kept = before[b.offset];
        if (kept.empty()) kept.assign(memory().host + b.offset, memory().host + b.offset + b.size);
    }
    void end() {
        for (const auto& [offset, bytes] : before)
            memcpy(memory().host + offset, bytes.data(), bytes.size());
        before.clear();
        for (const Tensor& t : own)
            if (t.storage().nbytes())
                memset(memory().seen(t.storage().data()), 0xff, t.storage().nbytes());
    }
};
std::shared_ptr<Graph> capturing;
int sync_debug = 0;

Graph* recorder() { return capturing && capturing->stream == current ? capturing.get() : nullptr; }

bool recording() { return recorder() != nullptr; }

void waits(const char* what) {
    TORCH_CHECK(!recorder(), "fake CUDA: operation not permitted when stream is capturing: ", what);
    TORCH_CHECK(sync_debug < 2, "fake CUDA: called a synchronizing operation: ", what);
    host_waits_for_stream(current);
}

// ---- every operation

bool takes_cpu_index(const std::string& name) {
    return name == "aten::index" || name == "aten::index_put_" ||
           name == "aten::_index_put_impl_" || name == "aten::_unsafe_index" ||
           name == "aten::index_put";
}

bool must_wait(const std::string& name, const Stack& stack) {
    static const std::set<std::string> always = {"aten::_local_scalar_dense",
                                                 "aten::nonzero",
                                                 "aten::masked_select",
                                                 "aten::equal",
                                                 "aten::_unique2",
                                                 "aten::bincount",
                                                 "aten::unique_dim",
                                                 "aten::unique_consecutive"};
    if (always.count(name)) return true;
    if (name == "aten::repeat_interleave") return stack.size() < 2 || stack.back().isNone();
    if (name != "aten::index" && name != "aten::index_put_" && name != "aten::_index_put_impl_")
        return false;
    for (const IValue& v : stack[1].toListRef())
        if (v.isTensor() && v.toTensor().defined()) {
            const Tensor t = v.toTensor();
            // one mask alone with a number put at its places is a masked_fill
            if (t.is_cpu() && t.dim() > 0) return true;
            if (t.scalar_type() == at::kBool || t.scalar_type() == at::kByte)
                return !(name != "aten::index" && stack[2].toTensor().numel() == 1);
        }
    return false;
}

struct Call {
    const c10::OperatorHandle& op;
    const std::string& name = op.schema().name();
    std::vector<Tensor> originals, aliases;

    IValue tensor(const Tensor& t, bool index) {
        if (!on_device(t)) {
            TORCH_CHECK(!t.defined() || t.dim() == 0 || (index && takes_cpu_index(name)),
                        "fake CUDA: Expected all tensors to be on the same device, but ", name,
                        " was given a tensor of ", t.dim(), " dimensions on ", t.device(),
                        " beside one on cuda:0");
            return t;
        }
        originals.push_back(t);
        aliases.push_back(on_host(t));
        return aliases.back();
    }
    IValue value(const IValue& v) {
        if (v.isTensor()) return tensor(v.toTensor(), false);
        if (v.isTensorList()) {
            c10::List<Tensor> out;
            for (const Tensor& t : v.toTensorVector()) out.push_back(tensor(t, false).toTensor());
            return out;
        }
        if (v.isOptionalTensorList()) {
            c10::List<std::optional<Tensor>> out;
            for (const IValue& t : v.toListRef())
                out.push_back(t.isNone()
                                  ? std::nullopt
                                  : std::optional<Tensor>(tensor(t.toTensor(), true).toTensor()));
            return out;
        }
        if (v.isDevice() && v.toDevice().is_cuda()) return c10::Device(c10::kCPU);
        if (v.isGenerator() && v.toGenerator().device().is_cuda())
            return static_cast<GeneratorImpl*>(v.toGenerator().unsafeGetGeneratorImpl())->inner;
        return v;
    }
    Tensor result(const Tensor& t) {
        if (!t.defined()) return t;
        for (size_t i = 0; i < aliases.size(); ++i)
            if (t.unsafeGetTensorImpl() == aliases[i].unsafeGetTensorImpl()) return originals[i];
        for (size_t i = 0; i < aliases.size(); ++i)
            if (t.storage().data() && t.storage().data() == aliases[i].storage().data())
                return make(t.sizes(), t.strides(), t.scalar_type(), originals[i].storage(),
                            t.storage_offset(), DEVICE);
        return to_device(t);
    }
    IValue back(const IValue& v) {
        if (v.isTensor()) return result(v.toTensor());
        if (!v.isTensorList()) return v;
        c10::List<Tensor> out;
        for (const Tensor& t : v.toTensorVector()) out.push_back(result(t));
        return out;
    }
};

// An out= tensor that the operation gave another size.
void take_size(const Tensor& original, const Tensor& alias) {
    if (alias.sizes() == original.sizes()) return;
    original.resize_(alias.sizes());
    if (alias.numel()) on_host(original).copy_(alias);
}

std::vector<bool> written_arguments(const c10::FunctionSchema& schema) {
    std::vector<bool> out;
    for (const auto& a : schema.arguments())
        out.push_back(a.alias_info() && a.alias_info()->isWrite());
    return out;
}

template <class F>
void for_tensors(const IValue& v, F f) {
    if (v.isTensor() && on_device(v.toTensor())) f(v.toTensor());
    if (v.isTensorList() || v.isOptionalTensorList())
        for (const IValue& t : v.toListRef())
            if (t.isTensor() && on_device(t.toTensor())) f(t.toTensor());
}

void run(const c10::OperatorHandle& op, Stack& stack) {
    const auto& schema = op.schema();
    const size_t n = schema.arguments().size();
    const char* name = schema.name().c_str();
    const auto written = written_arguments(schema);
    Stack inputs(stack.end() - n, stack.end());
    stack.erase(stack.end() - n, stack.end());
    if (must_wait(schema.name(), inputs)) waits(name);
    for (size_t i = 0; i < n; ++i)
        for_tensors(inputs[i], [&](const Tensor& t) {
            if (t.numel() == 0) return;
            written[i] ? check_write(t.storage().data(), name) : reads(t.storage().data(), name);
        });
    Call call{op};
    Stack inner;
    for (const IValue& v : inputs) inner.push_back(call.value(v));
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &inner);
    tick();
    for (size_t i = 0; i < n; ++i)
        if (written[i])
            for_tensors(inputs[i], [&](const Tensor& t) {
                if (t.storage().nbytes()) wrote(t.storage().data());
            });
    for (size_t i = 0; i < call.originals.size(); ++i)
        take_size(call.originals[i], call.aliases[i]);
    for (const IValue& v : inner) {
        const IValue mapped = call.back(v);
        for_tensors(mapped, [&](const Tensor& t) {
            bool given = false;
            for (const Tensor& o : call.originals)
                given |= o.storage().unsafeGetStorageImpl() == t.storage().unsafeGetStorageImpl();
            if (!given && t.storage().nbytes()) wrote(t.storage().data());
        });
        stack.push_back(mapped);
    }
}

void fallback(const c10::OperatorHandle& op, Stack* stack) {
    Guard guard(lock);
    Graph* graph = recorder();
    if (!graph) return run(op, *stack);
    const size_t n = op.schema().arguments().size();
    const auto written = written_arguments(op.schema());
    Stack inputs(stack->end() - n, stack->end());
    std::vector<std::function<IValue()>> held;
    for (size_t i = 0; i < n; ++i) {
        const IValue v = inputs[i];
        if (written[i]) for_tensors(v, [&](const Tensor& t) { graph->will_write(t); });
        if (v.isTensor() && on_device(v.toTensor())) {
            held.push_back([get = graph->hold(v.toTensor())] { return IValue(get()); });
        } else if (v.isTensorList()) {
            std::vector<std::function<Tensor()>> list;
            for (const Tensor& t : v.toTensorVector())
                list.push_back(on_device(t) ? graph->hold(t) : [t] { return t; });
            held.push_back([list] {
                c10::List<Tensor> out;
                for (const auto& get : list) out.push_back(get());
                return IValue(out);
            });
        } else if (v.isOptionalTensorList()) {
            std::vector<std::function<std::optional<Tensor>()>> list;
            for (const IValue& t : v.toListRef()) {
                if (t.isNone())
                    list.push_back([] { return std::nullopt; });
                else if (on_device(t.toTensor()))
                    list.push_back([get = graph->hold(t.toTensor())] { return get(); });
                else
                    list.push_back([c = t.toTensor()] { return c; });
            }
            held.push_back([list] {
                c10::List<std::optional<Tensor>> out;
                for (const auto& get : list) out.push_back(get());
                return IValue(out);
            });
        } else {
            held.push_back([v] { return v; });
        }
    }
    run(op, *stack);
    const size_t returns = op.schema().returns().size();
    std::vector<Tensor> fresh;
    for (size_t i = stack->size() - returns; i < stack->size(); ++i)
        for_tensors((*stack)[i], [&](const Tensor& t) {
            bool given = false;
            for (const IValue& v : inputs)
                for_tensors(v, [&](const Tensor& o) {
                    given |=
                        o.storage().unsafeGetStorageImpl() == t.storage().unsafeGetStorageImpl();
                });
            if (!given) graph->adopt(t);
            fresh.push_back(given ? Tensor() : t);
        });
    graph->work.push_back([op, held, fresh] {
        Stack again;
        for (const auto& get : held) again.push_back(get());
        run(op, again);
        size_t at = 0;
        for (const IValue& v : again)
            for_tensors(v, [&](const Tensor& t) {
                const Tensor& kept = fresh.at(at++);
                if (!kept.defined()) return;
                TORCH_CHECK(kept.sizes() == t.sizes(),
                            "fake CUDA: a graph's result has another size than when captured");
                memcpy(memory().seen(kept.storage().mutable_data()),
                       memory().seen(t.storage().data()), t.storage().nbytes());
                wrote(kept.storage().data());
            });
    });
}
TORCH_LIBRARY_IMPL(_, CUDA, m) {
    m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

// ---- operations that need more than their CPU version

Tensor empty_format(c10::SymIntArrayRef size, std::optional<c10::ScalarType> type,
                    std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool> pin,
                    std::optional<c10::MemoryFormat>) {
    TORCH_CHECK(!pin.value_or(false), "only CPU memory is pinned");
    Guard guard(lock);
    std::vector<int64_t> sizes = C10_AS_INTARRAYREF_SLOW(size).vec(), strides(sizes.size(), 1);
    for (int64_t i = static_cast<int64_t>(sizes.size()) - 2; i >= 0; --i)
        strides[i] = strides[i + 1] * std::max<int64_t>(sizes[i + 1], 1);
    const Tensor t = empty_strided(
        sizes, strides, type.value_or(c10::typeMetaToScalarType(c10::get_default_dtype())));
    if (Graph* graph = recorder()) graph->adopt(t);
    return t;
}
Tensor empty_strides(c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                     std::optional<c10::ScalarType> type, std::optional<c10::Layout>,
                     std::optional<c10::Device>, std::optional<bool>) {
    Guard guard(lock);
    const Tensor t =
        empty_strided(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
                      type.value_or(c10::typeMetaToScalarType(c10::get_default_dtype())));
    if (Graph* graph = recorder()) graph->adopt(t);
    return t;
}
Tensor view_of(const Tensor& t, at::IntArrayRef size, at::IntArrayRef stride, int64_t offset) {
    return make(size, stride, t.scalar_type(), t.storage(), offset, DEVICE);
}
Tensor as_strided(const Tensor& t, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                  std::optional<c10::SymInt> offset) {
    const int64_t at = offset ? offset->expect_int() : t.storage_offset();
    return view_of(t, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), at);
}
Tensor view(const Tensor& t, c10::SymIntArrayRef size) {
    const auto shape = at::infer_size(C10_AS_INTARRAYREF_SLOW(size), t.numel());
    const auto stride = at::detail::computeStride(t.sizes(), t.strides(), shape);
    TORCH_CHECK(stride,
                "view size is not compatible with input tensor's size and stride; use "
                ".reshape(...) instead.");
    return view_of(t, shape, *stride, t.storage_offset());
}
Tensor reshape_alias(const Tensor& t, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
    return view_of(t, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
                   t.storage_offset());
}
const Tensor& resize(const Tensor& t, c10::SymIntArrayRef size, std::optional<c10::MemoryFormat>) {
    Guard guard(lock);
    const auto sizes = C10_AS_INTARRAYREF_SLOW(size);
    const size_t bytes = t.itemsize() * (t.storage_offset() + c10::multiply_integers(sizes));
    if (bytes > t.storage().nbytes()) {
        c10::DataPtr more = allocator.allocate(bytes);
        if (t.storage().nbytes())
            memcpy(memory().seen(more.get()), memory().seen(t.storage().data()),
                   t.storage().nbytes());
        t.storage().set_data_ptr_noswap(std::move(more));
        t.storage().set_nbytes(bytes);
    }
    t.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
    return t;
}
Tensor& set_storage(Tensor& t, c10::Storage source, c10::SymInt offset, c10::SymIntArrayRef size,
                    c10::SymIntArrayRef stride) {
    t.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
    t.unsafeGetTensorImpl()->set_storage_offset(offset.expect_int());
    t.unsafeGetTensorImpl()->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size),
                                                   C10_AS_INTARRAYREF_SLOW(stride));
    return t;
}
Tensor& set_tensor(Tensor& t, const Tensor& source) {
    t.unsafeGetTensorImpl()->set_storage_keep_dtype(source.storage());
    t.unsafeGetTensorImpl()->set_storage_offset(source.storage_offset());
    t.unsafeGetTensorImpl()->set_sizes_and_strides(source.sizes(), source.strides());
    return t;
}

void copy_now(const Tensor& to, const Tensor& from) {
    const Tensor target = on_device(to) ? on_host(to) : to,
                 source = on_device(from) ? on_host(from) : from;
    target.copy_(source);
}
Tensor& copy_(Tensor& self, const Tensor& source, bool non_blocking) {
    Guard guard(lock);
    TORCH_CHECK(self.device().is_cuda() || self.device().is_cpu(), "copy to ", self.device());
    if (!self.numel()) return self;
    if (on_device(source)) reads(source.storage().data(), "copy_");
    if (on_device(self)) check_write(self.storage().data(), "copy_");
    const bool across = !on_device(self) || !on_device(source);
    const Tensor& host = on_device(self) ? source : self;
    const bool plain = self.scalar_type() == source.scalar_type() && self.is_contiguous() &&
                       source.is_contiguous() && self.sizes() == source.sizes();
    const bool later = across && non_blocking && plain && is_pinned(host.data_ptr());
    if (Graph* graph = recorder()) {
        TORCH_CHECK(
            !across || later,
            "fake CUDA: operation not permitted when stream is capturing: a copy that waits");
        if (on_device(self)) graph->will_write(self);
        const auto to = on_device(self) ? graph->hold(self) : [self] { return self; };
        const auto from = on_device(source) ? graph->hold(source) : [source] { return source; };
        graph->work.push_back([to, from] {
            const Tensor target = to(), origin = from();
            if (on_device(origin)) reads(origin.storage().data(), "copy_");
            if (on_device(target)) check_write(target.storage().data(), "copy_");
            copy_now(target, origin);
            tick();
            if (on_device(target)) wrote(target.storage().data());
        });
    }
    if (across && !later) waits("a copy between host and device");
    if (later) settle_before(host);
    const int64_t clock = tick();
    if (later) {
        const Tensor bytes = (on_device(source) ? on_host(source) : source).clone();
        pending.push_back({current, clock, host.detach(), bytes, !on_device(self)});
        if (!on_device(self)) memset(self.data_ptr(), 0xff, self.nbytes());
    }
    if (!later || on_device(self)) copy_now(self, source);
    if (on_device(self)) wrote(self.storage().data());
    if (across && !later) host_waits_for_stream(current);
    return self;
}

void check_halves(const Tensor& a, c10::ScalarType out) {
    TORCH_CHECK(
        out == at::kFloat && (a.scalar_type() == at::kBFloat16 || a.scalar_type() == at::kHalf),
        "out_dtype is for halves with a result in fp32");
}
Tensor& mm_out(const Tensor& a, const Tensor& b, c10::ScalarType type, Tensor& out) {
    check_halves(a, type);
    return at::mm_out(out, a.to(type), b.to(type));
}
Tensor mm_dtype(const Tensor& a, const Tensor& b, c10::ScalarType type) {
    check_halves(a, type);
    return at::mm(a.to(type), b.to(type));
}
Tensor& addmm_out(const Tensor& c, const Tensor& a, const Tensor& b, c10::ScalarType type,
                  const at::Scalar& beta, const at::Scalar& alpha, Tensor& out) {
    check_halves(a, type);
    return at::addmm_out(out, c.to(type), a.to(type), b.to(type), beta, alpha);
}
void record_stream(Tensor&, c10::Stream) {}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
    m.impl("empty.memory_format", empty_format);
    m.impl("empty_strided", empty_strides);
    m.impl("as_strided", as_strided);
    m.impl("view", view);
    m.impl("_reshape_alias", reshape_alias);
    m.impl("resize_", resize);
    m.impl("set_.source_Storage_storage_offset", set_storage);
    m.impl("set_.source_Tensor", set_tensor);
    m.impl("copy_", copy_);
    m.impl("mm.dtype", mm_dtype);
    m.impl("mm.dtype_out", mm_out);
    m.impl("addmm.dtype_out", addmm_out);
    m.impl("record_stream", record_stream);
}

// A kernel, called with CPU tensors over the bytes of `tensors`; it writes those that it changes.
void launch(const py::object& function, const std::vector<Tensor>& tensors) {
    Guard guard(lock);
    // Python's count of it changes under Python's lock alone
    const auto drop = [](py::object* o) {
        py::gil_scoped_acquire with_python;
        delete o;
    };
    std::shared_ptr<py::object> kernel;
    {
        py::gil_scoped_acquire with_python;
        kernel = std::shared_ptr<py::object>(new py::object(function), drop);
    }
    const auto work = [kernel](const std::vector<Tensor>& given) {
        std::vector<Tensor> seen;
        std::vector<std::string> before;
        for (const Tensor& t : given) {
            if (t.numel()) reads(t.storage().data(), "a kernel");
            seen.push_back(on_host(t));
            const size_t bytes = t.numel() ? t.itemsize() * at::detail::computeStorageNbytes(
                                                                t.sizes(), t.strides(), 1)
                                           : 0;
            before.emplace_back(static_cast<const char*>(seen.back().data_ptr()),
                                std::min(bytes, LARGE));
        }
        {
            py::gil_scoped_acquire with_python;
            (*kernel)(seen);
        }
        tick();
        for (size_t i = 0; i < given.size(); ++i)
            if (memcmp(seen[i].data_ptr(), before[i].data(), before[i].size()) != 0) {
                check_write(given[i].storage().data(), "a kernel");
                wrote(given[i].storage().data());
            }
    };
    if (Graph* graph = recorder()) {
        std::vector<std::function<Tensor()>> held;
        for (const Tensor& t : tensors) {
            graph->will_write(t);
            held.push_back(graph->hold(t));
        }
        graph->work.push_back([work, held] {
            std::vector<Tensor> given;
            for (const auto& get : held) given.push_back(get());
            work(given);
        });
    }
    work(tensors);
}

std::shared_ptr<Graph> begin_capture() {
    Guard guard(lock);
    TORCH_CHECK(!capturing, "a graph is being captured");
    capturing = std::make_shared<Graph>();
    capturing->stream = current;
    return capturing;
}
void end_capture() {
    Guard guard(lock);
    capturing->end();
    capturing.reset();
}
void replay(Graph& graph) {
    Guard guard(lock);
    TORCH_CHECK(!recorder(), "a graph is replayed while one is captured");
    for (const auto& work : graph.work) work();
}
}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
    c10::SetAllocator(c10::kCUDA, &allocator, 1);
    const auto free = py::call_guard<py::gil_scoped_release>();
    const auto refuse = [] {
        TORCH_CHECK(!recorder(),
                    "fake CUDA: operation not permitted when stream is capturing: a wait");
    };
    py::class_<Graph, std::shared_ptr<Graph>>(m, "Graph").def("replay", &replay, free);
    m.def("begin_capture", &begin_capture, free);
    m.def("end_capture", &end_capture, free);
    m.def("is_capturing", [] { return recorder() != nullptr; });
    m.def("launch", &launch, free);
    m.def("new_stream", [] { return streams++; });
    m.def("current_stream", [] { return current; });
    m.def("set_stream", [](int64_t id) { current = id; });
    m.def(
        "clock_of",
        [](int64_t id) {
            Guard guard(lock);
            return known[id];
        },
        free);
    m.def(
        "stream_waits",
        [](int64_t id, const Clock& c) {
            Guard guard(lock);
            join(known[id], c);
        },
        free);
    m.def(
        "host_waits",
        [=](const Clock& c) {
            Guard guard(lock);
            refuse();
            host_waits_for(c);
        },
        free);
    m.def(
        "synchronize",
        [=] {
            Guard guard(lock);
            refuse();
            host_waits_for_all();
        },
        free);
    m.def("set_sync_debug_mode", [](int mode) { sync_debug = mode; });
    m.def("default_generator", [] { return default_generator(); });
    m.def("used", [] { return memory().used; });
    m.def("peak", [] { return memory().peak; });
    m.def("cached", [] { return memory().cached; });
    m.def("total", [] { return memory().total; });
    m.def("set_total", [](size_t bytes) { memory().total = bytes; });
    m.def("reset_peak", [] { memory().peak = memory().used; });
    m.def(
        "empty_cache",
        [] {
            Guard guard(lock);
            DeviceAllocator::release();
        },
        free);
}
