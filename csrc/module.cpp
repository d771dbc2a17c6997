// Python bindings of fastrl._C, and nothing else.
#include <pybind11/pybind11.h>

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
    m.doc() = "fastrl's C++: grading, random numbers, attention over the paged cache";
}
