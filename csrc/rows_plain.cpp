// Rows of logits on what every processor has; vectors of 4 floats suit SSE2 and NEON.
#define FASTRL_ISA plain
#define FASTRL_WIDTH 4
#include "row_functions.h"

namespace fastrl {
const RowFunctions plain_rows = plain::functions("plain");
}
