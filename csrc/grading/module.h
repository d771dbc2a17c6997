// The grader in Python.
#pragma once

#include <pybind11/pybind11.h>

namespace fastrl::grading {

void bind(pybind11::module_& m);

}  // namespace fastrl::grading
