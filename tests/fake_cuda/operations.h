// Every operation of the device: checked, run on the CPU over the same bytes, kept by a graph.
#pragma once

#include <ATen/InferSize.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/Resize.h>

#include "graphs.h"
#include "hooks.h"

namespace {

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

// The same value with other tensors, in a list too.
template <class F>
IValue with_tensors(const IValue& v, F f) {
    if (v.isTensor()) return f(v.toTensor());
    if (!v.isTensorList() && !v.isOptionalTensorList()) return v;
    c10::impl::GenericList out(v.toList().elementType());
    for (const IValue& t : v.toListRef()) out.push_back(t.isTensor() ? IValue(f(t.toTensor())) : t);
    return out;
}

template <class F>
void for_tensors(const IValue& v, F f) {
    with_tensors(v, [&](const Tensor& t) {
        if (on_device(t)) f(t);
        return t;
    });
}

struct Call {
    const c10::OperatorHandle& op;
    const std::string& name = op.schema().name();
    std::vector<Tensor> originals, aliases;

    Tensor tensor(const Tensor& t, bool index) {
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
        if (v.isDevice() && v.toDevice().is_cuda()) return c10::Device(c10::kCPU);
        if (v.isGenerator() && v.toGenerator().device().is_cuda())
            return static_cast<GeneratorImpl*>(v.toGenerator().unsafeGetGeneratorImpl())->inner;
        return with_tensors(v,
                            [&](const Tensor& t) { return tensor(t, v.isOptionalTensorList()); });
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
        return with_tensors(v, [&](const Tensor& t) { return result(t); });
    }
    bool given(const Tensor& t) const {
        return std::any_of(originals.begin(), originals.end(),
                           [&](const Tensor& o) { return one_storage(o, t); });
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
            if (!call.given(t) && t.storage().nbytes()) wrote(t.storage().data());
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
    // a graph knows addresses: what it is to find there again is asked for when it is replayed
    std::vector<std::function<Tensor()>> held;
    Stack shape;
    for (size_t i = 0; i < n; ++i) {
        if (written[i]) for_tensors(inputs[i], [&](const Tensor& t) { graph->will_write(t); });
        shape.push_back(with_tensors(inputs[i], [&](const Tensor& t) {
            held.push_back(graph->hold(t));
            return Tensor();
        }));
    }
    run(op, *stack);
    const size_t returns = op.schema().returns().size();
    std::vector<Tensor> fresh;
    for (size_t i = stack->size() - returns; i < stack->size(); ++i)
        for_tensors((*stack)[i], [&](const Tensor& t) {
            bool given = false;
            for (const IValue& v : inputs)
                for_tensors(v, [&](const Tensor& o) { given |= one_storage(o, t); });
            if (!given) graph->adopt(t);
            fresh.push_back(given ? Tensor() : t);
        });
    graph->work.push_back([op, shape, held, fresh] {
        Stack again;
        auto next = held.begin();
        for (const IValue& v : shape)
            again.push_back(with_tensors(v, [&](const Tensor&) { return (*next++)(); }));
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

}  // namespace
