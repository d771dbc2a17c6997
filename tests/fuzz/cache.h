// A paged cache for the fuzz targets of what reads one.
#pragma once

#include <algorithm>
#include <numeric>

#include "../../csrc/paged_attention.h"
#include "inputs.h"

namespace fastrl::fuzz {

// Sequences in a cache, some of which share their first blocks, and rows that come next in them.
struct Cache {
    const int64_t size;  // of a block
    int32_t blocks = 1;
    int64_t rows, table_width;
    Array<int32_t> tables{0}, row_table{0}, context{0};

    explicit Cache(Source& source) : size(source.integer(1, 20)) {
        std::vector<int32_t> row_tables, contexts;
        for (int64_t left = source.integer(0, 3); left >= 0; --left) {
            const int64_t seen = source.integer(0, source.once_in(8) ? 200 : 40);
            const int64_t more = source.integer(0, 4), number = blocks_of_.size();
            std::vector<int32_t> mine;
            if (number && source.once_in(2)) {
                const int64_t whole = std::min(old_[0], seen) / size;
                const auto first = blocks_of_[0].begin();
                mine.assign(first, first + source.integer(0, whole));
            }
            while (static_cast<int64_t>(mine.size()) * size < seen + more) mine.push_back(blocks++);
            for (int64_t i = 1; i <= more; ++i) {
                row_tables.push_back(static_cast<int32_t>(number));
                contexts.push_back(static_cast<int32_t>(seen + i));
            }
            old_.push_back(seen);
            blocks_of_.push_back(mine);
        }
        // blocks lie anywhere, and the last ones are nobody's
        std::vector<int32_t> places(blocks);
        std::iota(places.begin(), places.end(), 0);
        for (int32_t i = blocks - 1; i > 0; --i) std::swap(places[i], places[source.integer(0, i)]);
        size_t longest = 0;
        for (auto& mine : blocks_of_) {
            for (int32_t& block : mine) block = places[block];
            longest = std::max(longest, mine.size());
        }
        table_width = static_cast<int64_t>(longest) + source.integer(0, 2);
        // a block that is not there where a table has ended
        tables = filled(blocks_of_.size() * table_width, std::numeric_limits<int32_t>::max());
        for (size_t t = 0; t < blocks_of_.size(); ++t)
            std::copy(blocks_of_[t].begin(), blocks_of_[t].end(), tables.data() + t * table_width);
        rows = static_cast<int64_t>(contexts.size());
        row_table = filled(rows, 0), context = filled(rows, 0);
        std::copy(row_tables.begin(), row_tables.end(), row_table.data());
        std::copy(contexts.begin(), contexts.end(), context.data());
    }

    int64_t slot(int64_t table, int64_t position) const {
        return blocks_of_[table][position / size] * size + position % size;
    }
    // The numbers of all tokens that are there already.
    Tensor drawn(Source& source, DType dtype, int64_t width, Numbers numbers) const {
        Tensor cache(dtype, blocks * size, width);
        for (size_t t = 0; t < old_.size(); ++t)
            for (int64_t i = 0; i < old_[t]; ++i) cache.fill(slot(t, i), source, numbers);
        return cache;
    }
    // A copy in which nothing may be touched but what the rows see.
    Tensor guarded(const Tensor& cache) const {
        Tensor copy = cache.copy();
        std::vector<bool> seen(cache.rows);
        for (size_t t = 0; t < old_.size(); ++t)
            for (int64_t i = 0; i < old_[t]; ++i) seen[slot(t, i)] = true;
        for (int64_t row = 0; row < rows; ++row)
            seen[slot(row_table[row], context[row] - 1)] = true;
        for (int64_t i = 0; i < cache.rows; ++i)
            if (!seen[i]) copy.forbid(i, 0, cache.width);
        return copy;
    }
    void give_rows(PagedAttention& a) const {
        a.tables = tables.data(), a.row_table = row_table.data(), a.context = context.data();
        a.table_stride = table_width, a.rows = rows, a.block_size = size;
    }

private:
    std::vector<std::vector<int32_t>> blocks_of_;
    std::vector<int64_t> old_;

    static Array<int32_t> filled(int64_t count, int32_t value) {
        Array<int32_t> array(count);
        std::fill(array.data(), array.data() + count, value);
        return array;
    }
};

}  // namespace fastrl::fuzz
