#include "dense.h"

#include <algorithm>
#include <memory>
#include <new>

#include "instruction_sets.h"
#include "team.h"

namespace fastrl {

namespace {

constexpr int64_t ROWS = 256;       // whose panels stay in a second-level cache of 1 or 2 MB
constexpr int64_t SMALL = 1 << 20;  // multiply-adds that are not worth a second thread

// Memory for panels, kept by the calling thread from call to call.
uint32_t* panels_of(int64_t words) {
    struct Free {
        void operator()(uint32_t* memory) const {
            ::operator delete[](memory, std::align_val_t(64));
        }
    };
    thread_local std::unique_ptr<uint32_t[], Free> memory;
    thread_local int64_t size = 0;
    if (size < words) {
        memory.reset();
        memory.reset(static_cast<uint32_t*>(
            ::operator new[](words * sizeof(uint32_t), std::align_val_t(64))));
        size = words;
    }
    return memory.get();
}

}  // namespace

void dense(const Dense& d, int threads) {
    const InstructionSet& set = instruction_set();
    const DenseFunctions& f = *(d.dtype == DType::bf16 ? set.dense_bf16 : set.dense);
    const int64_t words = f.words(d) * f.panel;
    const int64_t width = d.gated ? d.width_out / 2 : d.width_out;
    const int64_t tile = d.gated ? f.tile / 2 : f.tile;
    const int64_t tiles = (width + tile - 1) / tile;
    const int64_t chunk = ROWS / f.panel * f.panel;
    uint32_t* panels = panels_of((std::min(d.rows, chunk) + f.panel - 1) / f.panel * words);
    for (int64_t first = 0; first < d.rows; first += chunk) {
        const int64_t rows = std::min(chunk, d.rows - first);
        const int workers = rows * d.width_in * d.width_out > SMALL ? threads : 1;
        const int64_t step = std::max<int64_t>(1, tiles / (8 * workers));
        team_for_after(
            (rows + f.panel - 1) / f.panel,
            [&](int64_t panel) {
                const int64_t begin = panel * f.panel;
                f.pack(d, first + begin, std::min(f.panel, rows - begin), panels + panel * words);
            },
            tiles, step, workers,
            [&](int64_t begin, int64_t end) {
                f.multiply(d, panels, first, rows, begin * tile, std::min(end * tile, width));
            });
    }
}

}  // namespace fastrl
