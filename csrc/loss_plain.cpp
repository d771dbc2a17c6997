// Rows of logits on what every processor has; vectors of 4 floats suit SSE2 and NEON.
#define FASTRL_ISA plain
#define FASTRL_WIDTH 4
#include "loss_kernel.h"

namespace fastrl {
const RowFunctions plain_rows{"plain", plain::statistics, plain::gradient};
}
