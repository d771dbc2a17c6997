// What torch asks of a device: streams, events, generators, allocators.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "memory.h"

namespace {

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
