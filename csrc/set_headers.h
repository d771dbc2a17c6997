// What the kernels' headers need of the standard library and the compiler.
#pragma once

// gcc 12 takes the undefined operand of its own AVX-512 intrinsics for a mistake (bug 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>
