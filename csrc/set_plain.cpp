// What every processor has; vectors of 4 floats suit SSE2 and NEON.
#include "instruction_sets.h"

#define FASTRL_ISA plain
#define FASTRL_WIDTH 4
#include "attention_kernel.h"
#include "dense_kernel.h"
#include "layer_rows_kernel.h"
#include "packed_attention_kernel.h"
#include "row_functions.h"

namespace fastrl {
const InstructionSet plain_set = {"plain",
                                  &plain::row_functions,
                                  &plain::dense_of<float>,
                                  &plain::dense_of<plain::BFloat16>,
                                  &plain::attention,
                                  &plain::packed,
                                  &plain::layer_rows,
                                  [] { return true; }};
}  // namespace fastrl
