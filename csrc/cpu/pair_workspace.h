// Working memory of a call: one block, cut into aligned pieces, handed back at the end and reused by the next call.
#pragma once
#include <cstddef>
#include <cstdint>

namespace carzero::cpu {

// Cuts pieces off a block. On a null block it only counts: the same code that cuts the pieces measures them first.
class Arena {
 public:
  Arena() = default;
  Arena(void* block, size_t bytes) : block_(static_cast<std::byte*>(block)), bytes_(bytes) {}
  template <class T = std::byte>
  T* take(int64_t count) {
    std::byte* piece = block_ == nullptr ? nullptr : block_ + used_;
    used_ += (static_cast<size_t>(count) * sizeof(T) + 127) / 64 * 64;
    return reinterpret_cast<T*>(piece);
  }
  size_t used() const { return used_; }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* block_ = nullptr;
  size_t bytes_ = 0, used_ = 0;
};

// A block aligned to 64 bytes. One of up to kKeptBytes stays with the process for the next call, since fresh pages cost
// their first touch; it is given up where the next call needs a larger one.
class Workspace {
 public:
  static constexpr size_t kKeptBytes = size_t{64} << 20;
  enum class Reuse { no, yes };
  explicit Workspace(size_t bytes, Reuse reuse = Reuse::yes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  void* data() const { return block_; }
  Arena arena() const { return {block_, bytes_}; }

 private:
  void* block_ = nullptr;
  size_t bytes_ = 0;
  Reuse reuse_;
};

}  // namespace carzero::cpu
