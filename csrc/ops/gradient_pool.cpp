#include "gradient_pool.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <vector>

namespace fused_losses::gradient_pool {

#if defined(__linux__) && defined(MADV_FREE) && defined(MADV_HUGEPAGE)
namespace {

constexpr size_t kHugePage = size_t(2) << 20;
// Smaller gradients are recycled by the C library's own heap.
constexpr size_t kSmallestBytes = size_t(1) << 20;

struct Pool {
  std::mutex mutex;
  std::vector<Memory> idle;  // the longest idle first
  size_t limit_bytes = kDefaultLimitBytes;

  size_t idle_bytes() const {
    size_t total = 0;
    for (const Memory& memory : idle) total += memory.bytes;
    return total;
  }
};

// Never destroyed: tensors may outlive every static object.
Pool& pool() {
  static Pool* const instance = new Pool;
  return *instance;
}

// A process forked while another thread held the mutex would wait for it for ever: everything here can do without it.
using Lock = std::unique_lock<std::mutex>;
Lock try_to_lock() { return Lock(pool().mutex, std::try_to_lock); }

void unmap(Memory memory) { munmap(memory.data, memory.bytes); }

// The smallest idle memory that holds the bytes and wastes no more than a quarter.
Memory take_idle(size_t bytes) {
  const Lock lock = try_to_lock();
  if (!lock) return {};
  std::vector<Memory>& idle = pool().idle;
  size_t best = idle.size();
  for (size_t i = 0; i < idle.size(); ++i) {
    const bool fits = idle[i].bytes >= bytes && idle[i].bytes - bytes <= bytes / 4;
    if (fits && (best == idle.size() || idle[i].bytes < idle[best].bytes)) best = i;
  }
  if (best == idle.size()) return {};
  const Memory memory = idle[best];
  idle.erase(idle.begin() + static_cast<std::ptrdiff_t>(best));
  return memory;
}

// At a huge page's boundary: what is mapped around it is unmapped again.
Memory map(size_t bytes) {
  void* mapped = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return {};
  char* const begin = static_cast<char*>(mapped);
  const size_t skipped = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
  if (skipped > 0) munmap(begin, skipped);
  if (skipped < kHugePage) munmap(begin + skipped + bytes, kHugePage - skipped);
  madvise(begin + skipped, bytes, MADV_HUGEPAGE);  // advice: where the system does not take it nothing is lost
  return {begin + skipped, bytes};
}

}  // namespace

Memory take(size_t bytes) {
  if (bytes < kSmallestBytes || bytes > limit()) return {};
  // Whole huge pages: of a smaller page that was given back the processor marks the first use anew, at 0.4 us a page.
  bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  const Memory memory = take_idle(bytes);
  return memory.data != nullptr ? memory : map(bytes);
}

void give_back(Memory memory) {
  const Lock lock = try_to_lock();
  if (!lock || memory.bytes > pool().limit_bytes || madvise(memory.data, memory.bytes, MADV_FREE) != 0) {
    unmap(memory);
    return;
  }
  std::vector<Memory>& idle = pool().idle;
  while (pool().idle_bytes() + memory.bytes > pool().limit_bytes) {
    unmap(idle.front());
    idle.erase(idle.begin());
  }
  idle.push_back(memory);
}

void set_limit(size_t bytes) {
  const Lock lock(pool().mutex);
  pool().limit_bytes = bytes;
  std::vector<Memory>& idle = pool().idle;
  while (pool().idle_bytes() > bytes) {
    unmap(idle.front());
    idle.erase(idle.begin());
  }
}

size_t limit() {
  const Lock lock = try_to_lock();
  return lock ? pool().limit_bytes : 0;
}

size_t idle_bytes() {
  const Lock lock = try_to_lock();
  return lock ? pool().idle_bytes() : 0;
}

#else

Memory take(size_t) { return {}; }
void give_back(Memory) {}
void set_limit(size_t) {}
size_t limit() { return 0; }
size_t idle_bytes() { return 0; }

#endif

}  // namespace fused_losses::gradient_pool
