#include "module.h"

#include <pybind11/numpy.h>

#include <algorithm>

#include "grade.h"

namespace py = pybind11;

namespace fastrl::grading {

namespace {

using Offsets = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

// The UTF-8 of a str or the content of bytes, which `kept` keeps alive. A lone surrogate, which a
// broken decoder can leave behind, must not stop a batch.
std::string_view view(PyObject* object, std::vector<py::object>& kept) {
    if (PyUnicode_Check(object)) {
        Py_ssize_t size;
        if (const char* data = PyUnicode_AsUTF8AndSize(object, &size))
            return {data, static_cast<size_t>(size)};
        PyErr_Clear();
        PyObject* bytes = PyUnicode_AsEncodedString(object, "utf-8", "surrogatepass");
        if (!bytes) throw py::error_already_set();
        kept.push_back(py::reinterpret_steal<py::object>(bytes));
        object = bytes;
    }
    if (!PyBytes_Check(object))
        throw py::type_error("completions and golds are str or bytes, not " +
                             std::string(Py_TYPE(object)->tp_name));
    return {PyBytes_AS_STRING(object), static_cast<size_t>(PyBytes_GET_SIZE(object))};
}

struct Texts {
    std::vector<std::string_view> views;
    std::vector<py::object> kept;
};

// The items of a sequence, which live as long as the result.
py::object items_of(py::handle sequence) {
    PyObject* items = PySequence_Tuple(sequence.ptr());
    if (!items) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(items);
}

void read_list(py::handle items, Texts& texts) {
    const Py_ssize_t count = PyTuple_GET_SIZE(items.ptr());
    texts.views.reserve(static_cast<size_t>(count));
    for (Py_ssize_t i = 0; i < count; ++i)
        texts.views.push_back(view(PyTuple_GET_ITEM(items.ptr(), i), texts.kept));
}

// Text i is buffer[offsets[i]:offsets[i + 1]].
void read_packed(const py::buffer_info& buffer, const Offsets& offsets, Texts& texts) {
    const auto cells = offsets.unchecked<1>();
    const auto* data = static_cast<const char*>(buffer.ptr);
    for (py::ssize_t i = 0; i + 1 < cells.shape(0); ++i) {
        if (cells(i) < 0 || cells(i) > cells(i + 1) || cells(i + 1) > buffer.size * buffer.itemsize)
            throw py::value_error("offsets must not fall and must lie in the buffer");
        texts.views.emplace_back(data + cells(i), static_cast<size_t>(cells(i + 1) - cells(i)));
    }
}

// A gold is text, a compiled one (of Python's Gold as well), or several of them.
void read_gold(py::handle gold, Golds& golds, std::vector<py::object>& kept) {
    if (PyUnicode_Check(gold.ptr()) || PyBytes_Check(gold.ptr())) {
        golds.sources.push_back({nullptr, view(gold.ptr(), kept)});
    } else if (py::isinstance<Gold>(gold)) {
        golds.sources.push_back({gold.cast<const Gold*>(), {}});
    } else if (py::hasattr(gold, "_compiled")) {
        read_gold(gold.attr("_compiled"), golds, kept);
    } else {
        const py::object items = items_of(gold);
        kept.push_back(items);
        for (const py::handle one : py::reinterpret_borrow<py::tuple>(items))
            read_gold(one, golds, kept);
    }
}

PyObject* owned(PyObject* object) {
    if (!object) throw py::error_already_set();
    return object;
}

PyObject* none() {
    Py_INCREF(Py_None);
    return Py_None;
}

// A named tuple (correct, answer, reason, span) of `type`.
PyObject* to_python(const Verdict& verdict, std::string_view completion, PyTypeObject* type,
                    const py::tuple& reasons) {
    PyObject* grade = owned(type->tp_alloc(type, 4));
    const bool found = verdict.begin >= 0;
    const auto answer = !verdict.joined.empty() ? std::string_view(verdict.joined)
                        : found
                            ? completion.substr(static_cast<size_t>(verdict.begin),
                                                static_cast<size_t>(verdict.end - verdict.begin))
                            : std::string_view();
    PyObject* correct = verdict.reason == Reason::gold_empty ? Py_None
                        : verdict.reason == Reason::correct  ? Py_True
                                                             : Py_False;
    Py_INCREF(correct);
    PyTuple_SET_ITEM(grade, 0, correct);
    PyTuple_SET_ITEM(grade, 1,
                     found ? owned(PyUnicode_DecodeUTF8(
                                 answer.data(), static_cast<Py_ssize_t>(answer.size()), "replace"))
                           : none());
    PyObject* reason = PyTuple_GET_ITEM(reasons.ptr(), static_cast<Py_ssize_t>(verdict.reason));
    Py_INCREF(reason);
    PyTuple_SET_ITEM(grade, 2, reason);
    PyTuple_SET_ITEM(grade, 3,
                     found ? owned(Py_BuildValue("(LL)", static_cast<long long>(verdict.begin),
                                                 static_cast<long long>(verdict.end)))
                           : none());
    return grade;
}

py::list grade(const py::object& completions, const py::object& offsets, const py::object& golds,
               int mode, bool is_answer, int64_t budget_ops, int threads, bool last_of_many,
               bool bare_percent, bool six_digits, const py::type& type, const py::tuple& reasons) {
    Options options;
    options.mode = static_cast<Mode>(mode);
    options.is_answer = is_answer;
    options.budget_ops = budget_ops;
    options.last_of_many = last_of_many;
    options.rules = {bare_percent, six_digits};
    Texts texts;
    py::buffer_info buffer;
    const py::object items = offsets.is_none() ? items_of(completions) : py::none();
    if (offsets.is_none()) {
        read_list(items, texts);
    } else {
        buffer = py::cast<py::buffer>(completions).request();
        read_packed(buffer, py::cast<Offsets>(offsets), texts);
    }
    const py::tuple gold_items = py::reinterpret_borrow<py::tuple>(items_of(golds));
    const size_t count = gold_items.size();
    if (count != texts.views.size())
        throw py::value_error(std::to_string(texts.views.size()) + " completions came with " +
                              std::to_string(count) + " golds; give one each");
    Golds wanted;
    wanted.sources.reserve(count);
    wanted.offsets.reserve(count + 1);
    for (const py::handle gold : gold_items) {
        read_gold(gold, wanted, texts.kept);
        wanted.offsets.push_back(wanted.sources.size());
    }
    std::vector<Verdict> verdicts(count);
    {
        py::gil_scoped_release released;
        grade_all(texts.views, wanted, options, threads, verdicts.data());
    }
    py::list result(count);
    auto* made = reinterpret_cast<PyTypeObject*>(type.ptr());
    for (size_t i = 0; i < count; ++i)
        PyList_SET_ITEM(result.ptr(), static_cast<Py_ssize_t>(i),
                        to_python(verdicts[i], texts.views[i], made, reasons));
    return result;
}

}  // namespace

void bind(py::module_& m) {
    py::class_<Gold>(m, "Gold")
        .def(py::init([](const py::object& text) {
            std::vector<py::object> kept;
            return std::make_unique<Gold>(view(text.ptr(), kept));
        }))
        .def_property_readonly("is_readable", &Gold::is_readable)
        .def_property_readonly("problem", &Gold::problem)
        .def_property_readonly("kind", &Gold::kind)
        .def_property_readonly("text", [](const Gold& gold) {
            return py::reinterpret_steal<py::str>(PyUnicode_DecodeUTF8(
                gold.source().data(), static_cast<Py_ssize_t>(gold.source().size()), "replace"));
        });
    m.def("grade", &grade);
}

}  // namespace fastrl::grading
