// A vector of limbs that holds two of them in place: most integers of answers are one limb, and the
// product of two such is two before the zero at its end goes, so that they cost no allocation.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

namespace fastrl::grading {

class Limbs {
public:
    Limbs() = default;
    Limbs(const Limbs& other) { *this = other; }
    Limbs(Limbs&& other) noexcept { *this = std::move(other); }
    ~Limbs() = default;
    Limbs& operator=(const Limbs& other) {
        if (this == &other) return *this;
        reserve(other.size_);
        size_ = other.size_;
        std::copy_n(other.data(), size_, data());
        return *this;
    }
    Limbs& operator=(Limbs&& other) noexcept {
        std::swap(size_, other.size_);
        std::swap(room_, other.room_);
        std::swap(here_, other.here_);
        std::swap(elsewhere_, other.elsewhere_);
        return *this;
    }

    size_t size() const { return size_; }
    bool empty() const { return size_ == 0; }
    uint64_t& operator[](size_t i) { return data()[i]; }
    const uint64_t& operator[](size_t i) const { return data()[i]; }
    const uint64_t& back() const { return data()[size_ - 1]; }
    bool operator==(const Limbs& other) const {
        return size_ == other.size_ && std::equal(data(), data() + size_, other.data());
    }

    void reserve(size_t room) {
        if (room <= room_) return;
        auto moved = std::make_unique<uint64_t[]>(room);
        std::copy_n(data(), size_, moved.get());
        elsewhere_ = std::move(moved);
        room_ = room;
    }
    void assign(size_t size, uint64_t limb) {
        size_ = 0;
        reserve(size);
        size_ = size;
        std::fill_n(data(), size, limb);
    }
    void push_back(uint64_t limb) {
        if (size_ == room_) reserve(2 * room_);
        data()[size_++] = limb;
    }
    void pop_back() { --size_; }

private:
    static constexpr size_t kInPlace = 2;

    size_t size_ = 0, room_ = kInPlace;
    uint64_t here_[kInPlace] = {};
    std::unique_ptr<uint64_t[]> elsewhere_;  // none: they are here

    uint64_t* data() { return elsewhere_ ? elsewhere_.get() : here_; }
    const uint64_t* data() const { return elsewhere_ ? elsewhere_.get() : here_; }
};

}  // namespace fastrl::grading
