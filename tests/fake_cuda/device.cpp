// A CUDA device made of host memory, for a build of torch that has no CUDA.
//
// Every operation runs on the CPU, over the same bytes, but the device's addresses cannot be read
// by the host: a program that takes a tensor of the device for one of the CPU ends with an error,
// as on a GPU. So does one that mixes devices, waits while a graph is captured, replays a graph
// whose inputs are gone, reads what another stream writes without having waited for it, or reads a
// copy that is still on its way. It knows nothing of time and of what a compiler makes of a kernel.

#include "operations.h"

namespace {

// ---- operations that need more than their CPU version

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
Tensor empty_format(c10::SymIntArrayRef size, std::optional<c10::ScalarType> type,
                    std::optional<c10::Layout> layout, std::optional<c10::Device> device,
                    std::optional<bool> pin, std::optional<c10::MemoryFormat>) {
    TORCH_CHECK(!pin.value_or(false), "only CPU memory is pinned");
    std::vector<c10::SymInt> stride(size.size(), 1);
    for (int64_t i = static_cast<int64_t>(size.size()) - 2; i >= 0; --i)
        stride[i] = stride[i + 1] * size[i + 1].max(1);
    return empty_strides(size, stride, type, layout, device, pin);
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
    return as_strided(t, size, stride, std::nullopt);
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
    return set_storage(t, source.storage(), source.sym_storage_offset(), source.sym_sizes(),
                       source.sym_strides());
}

// A copy that the current stream does now.
void copy_here(const Tensor& to, const Tensor& from) {
    if (on_device(from)) reads(from.storage().data(), "copy_");
    if (on_device(to)) check_write(to.storage().data(), "copy_");
    (on_device(to) ? on_host(to) : to).copy_(on_device(from) ? on_host(from) : from);
    tick();
    if (on_device(to)) wrote(to.storage().data());
}
Tensor& copy_(Tensor& self, const Tensor& source, bool non_blocking) {
    Guard guard(lock);
    TORCH_CHECK(self.device().is_cuda() || self.device().is_cpu(), "copy to ", self.device());
    if (!self.numel()) return self;
    const bool across = !on_device(self) || !on_device(source);
    const Tensor& host = on_device(self) ? source : self;
    const bool plain = self.scalar_type() == source.scalar_type() && self.is_contiguous() &&
                       source.is_contiguous() && self.sizes() == source.sizes();
    const bool later = across && non_blocking && plain && is_pinned(host.data_ptr());
    if (across && !later) waits("a copy between host and device");
    if (Graph* graph = recorder()) {
        if (on_device(self)) graph->will_write(self);
        graph->work.push_back(
            [to = graph->hold(self), from = graph->hold(source)] { copy_here(to(), from()); });
    }
    if (later) settle_before(host);
    copy_here(self, source);
    if (later) {
        pending.push_back(
            {current, known[current][current], host.detach(), host.clone(), !on_device(self)});
        if (!on_device(self)) memset(self.data_ptr(), 0xff, self.nbytes());
    } else if (across) {
        host_waits_for_stream(current);
    }
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
            TORCH_CHECK(on_device(t), "fake CUDA: a kernel was given a tensor on ", t.device());
            if (t.numel()) reads(t.storage().data(), "a kernel");
            seen.push_back(on_host(t));
            const size_t bytes =
                at::detail::computeStorageNbytes(t.sizes(), t.strides(), t.itemsize());
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
    m.def("reset_peak", [] { memory().peak = memory().used; });
    m.def(
        "empty_cache",
        [] {
            Guard guard(lock);
            DeviceAllocator::release();
        },
        free);
}