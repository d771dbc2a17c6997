#include "dense.h"

#include <algorithm>
#include <memory>
#include <new>

#include "instruction_sets.h"

namespace fastrl {

namespace {

constexpr int64_t ROWS = 256;       // whose panels stay in a second-level cache of 1 or 2 MB
constexpr int64_t SMALL = 1 << 20;  // multiply-adds that are not worth a second thread

const DenseFunctions& functions_of(const Dense& d) {
    const InstructionSet& set = instruction_set();
    return *(d.dtype == DType::bf16 ? set.dense_bf16 : set.dense);
}

int64_t rows_at_once(const DenseFunctions& f) { return ROWS / f.panel * f.panel; }

}  // namespace

uint32_t* kept_words(int64_t words) {
    struct Free {
        void operator()(uint32_t* memory) const {
            ::operator delete[](memory, std::align_val_t(64));
        }
    };
    thread_local std::unique_ptr<uint32_t[], Free> memory;
    thread_local int64_t size = 0;
    if (size < words) {
        memory.reset();
        size = 0;
        memory.reset(static_cast<uint32_t*>(
            ::operator new[](words * sizeof(uint32_t), std::align_val_t(64))));
        size = words;
    }
    return memory.get();
}

int64_t panel_words(const Dense& d) {
    const DenseFunctions& f = functions_of(d);
    return (std::min(d.rows, rows_at_once(f)) + f.panel - 1) / f.panel * f.panel * f.words(d);
}

void add_dense(Phases& phases, const Dense& d, uint32_t* panels, int threads) {
    const DenseFunctions& f = functions_of(d);
    const int64_t words = f.words(d) * f.panel;
    const int64_t width = d.gated ? d.width_out / 2 : d.width_out;
    const int64_t tile = d.gated ? f.tile / 2 : f.tile;
    const int64_t tiles = (width + tile - 1) / tile;
    const int64_t step = std::max<int64_t>(1, tiles / (32 * threads));
    for (int64_t first = 0; first < d.rows; first += rows_at_once(f)) {
        const int64_t rows = std::min(rows_at_once(f), d.rows - first);
        phases.add((rows + f.panel - 1) / f.panel, 1, [=, &f, &d](int64_t panel, int64_t) {
            const int64_t begin = panel * f.panel;
            f.pack(d, first + begin, std::min(f.panel, rows - begin), panels + panel * words);
        });
        phases.add(tiles, step, [=, &f, &d](int64_t begin, int64_t end) {
            f.multiply(d, panels, first, rows, begin * tile, std::min(end * tile, width));
        });
    }
}

void dense(const Dense& d, int threads) {
    const int workers = d.rows * d.width_in * d.width_out > SMALL ? threads : 1;
    Phases phases;
    add_dense(phases, d, kept_words(panel_words(d)), workers);
    phases.run(workers);
}

}  // namespace fastrl
