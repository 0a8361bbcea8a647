#include "pair_workspace.h"

#include <mutex>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace carzero::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

std::mutex kept_mutex;
void* kept_block = nullptr;
size_t kept_bytes = 0;

void release(void* block) { ::operator delete(block, std::align_val_t{kHugePage}); }

}  // namespace

Workspace::Workspace(size_t bytes, Reuse reuse) : reuse_(reuse) {
  if (bytes == 0) return;
  if (reuse == Reuse::yes) {
    const std::lock_guard<std::mutex> lock(kept_mutex);
    const bool fits = kept_bytes >= bytes;
    void* kept = std::exchange(kept_block, nullptr);
    const size_t size = std::exchange(kept_bytes, 0);
    if (fits) {
      block_ = kept;
      bytes_ = size;
      return;
    }
    if (kept != nullptr) release(kept);
  }
  bytes_ = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  block_ = ::operator new(bytes_, std::align_val_t{kHugePage});
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  // advice: where it is refused the pages are small
  (void)madvise(block_, bytes_, MADV_HUGEPAGE);
#endif
}

Workspace::~Workspace() {
  if (block_ == nullptr) return;
  if (reuse_ == Reuse::yes && bytes_ <= kKeptBytes) {
    const std::lock_guard<std::mutex> lock(kept_mutex);
    if (kept_bytes < bytes_) {
      std::swap(kept_block, block_);
      std::swap(kept_bytes, bytes_);
    }
  }
  if (block_ != nullptr) release(block_);
}

}  // namespace carzero::cpu
