// Tensors of the device, and graphs of what is done with them.
#pragma once

#include <functional>
#include <set>

#include "memory.h"

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

c10::Storage device_storage(size_t bytes) {
    return {c10::Storage::use_byte_size_t(), bytes, allocator.allocate(bytes), &allocator, true};
}

Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, c10::ScalarType type) {
    const size_t bytes = at::detail::computeStorageNbytes(size, stride, c10::elementSize(type));
    return make(size, stride, type, device_storage(bytes), 0, DEVICE);
}

Tensor to_device(const Tensor& cpu) {
    const auto bytes = cpu.storage().nbytes();
    const c10::Storage s = device_storage(bytes);
    if (bytes) memcpy(memory().seen(s.data()), cpu.storage().data(), bytes);
    return make(cpu.sizes(), cpu.strides(), cpu.scalar_type(), s, cpu.storage_offset(), DEVICE);
}

bool one_storage(const Tensor& a, const Tensor& b) {
    return a.storage().unsafeGetStorageImpl() == b.storage().unsafeGetStorageImpl();
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
        if (!on_device(t) || owns(t)) return [t] { return t; };
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

}  // namespace
