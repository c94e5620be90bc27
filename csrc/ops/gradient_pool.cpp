#include "gradient_pool.h"

#if defined(__linux__)
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <mutex>
#include <new>
#include <vector>

namespace fused_losses::gradient_pool {

#if defined(__linux__) && defined(MADV_FREE) && defined(MADV_HUGEPAGE)
namespace {

constexpr size_t kHugePage = size_t(2) << 20;
// Smaller gradients are recycled by the C library's own heap.
constexpr size_t kSmallestBytes = size_t(1) << 20;
// So much idle memory in small pages is kept from the system, for speed.
constexpr size_t kUnmarkedLimit = size_t(16) << 20;

struct Idle {
  Memory memory;
  size_t unmarked_bytes;  // not MADV_FREE, at the end
};

struct Block {
  uint64_t id;
  pthread_t thread;
  size_t limit_bytes;
};

// The system then counts what is mapped, not what is used.
bool read_overcommit_is_strict() {
  std::FILE* const file = std::fopen("/proc/sys/vm/overcommit_memory", "re");
  if (file == nullptr) return false;
  const int policy = std::fgetc(file);
  std::fclose(file);
  return policy == '2';
}

struct Pool {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const bool overcommit_is_strict = read_overcommit_is_strict();  // of the machine, so once
  std::mutex mutex;                                               // of everything but the limit that holds
  std::vector<Idle> idle;                                         // the longest idle first
  size_t idle_bytes = 0;
  size_t unmarked_bytes = 0;
  size_t limit_without_blocks = kDefaultLimitBytes;
  std::vector<Block> blocks;
  uint64_t last_block = 0;
  std::atomic<size_t> limit_bytes = kDefaultLimitBytes;
};

using Lock = std::lock_guard<std::mutex>;

Pool* make_pool();

// Made when the library is loaded, since a process that is forked while another thread makes it would wait for ever.
// Never destroyed: tensors may outlive every static object.
Pool& pool = *make_pool();

// The functions below, up to before_fork, are called with the mutex held.

// Of the longest idle so many that no more than the bytes stay.
void release_beyond(size_t bytes) {
  auto end = pool.idle.begin();
  for (; pool.idle_bytes > bytes; ++end) {
    munmap(end->memory.data, end->memory.bytes);
    pool.idle_bytes -= end->memory.bytes;
    pool.unmarked_bytes -= end->unmarked_bytes;
  }
  pool.idle.erase(pool.idle.begin(), end);
}

void update_limit() {
  size_t limit = pool.limit_without_blocks;
  if (!pool.blocks.empty()) {
    const auto less = [](const Block& a, const Block& b) { return a.limit_bytes < b.limit_bytes; };
    limit = std::min_element(pool.blocks.begin(), pool.blocks.end(), less)->limit_bytes;
  }
  pool.limit_bytes = limit;
  release_beyond(limit);
}

// The smallest idle memory that holds the bytes and wastes no more than an eighth.
Memory take_idle(size_t bytes) {
  auto best = pool.idle.end();
  for (auto it = pool.idle.begin(); it != pool.idle.end(); ++it) {
    const size_t size = it->memory.bytes;
    const bool fits = size >= bytes && size - bytes <= bytes / 8;
    if (fits && (best == pool.idle.end() || size < best->memory.bytes)) best = it;
  }
  if (best == pool.idle.end()) return {};
  const Memory memory = best->memory;
  pool.idle_bytes -= memory.bytes;
  pool.unmarked_bytes -= best->unmarked_bytes;
  pool.idle.erase(best);
  return memory;
}

// Nothing where the system does not take the advice, or there is no memory to note it in.
bool keep(Memory memory) noexcept {
  size_t unmarked = memory.bytes % kHugePage;
  if (pool.unmarked_bytes + unmarked > kUnmarkedLimit) unmarked = 0;
  if (memory.bytes > unmarked && madvise(memory.data, memory.bytes - unmarked, MADV_FREE) != 0) return false;
  try {
    pool.idle.push_back({memory, unmarked});
  } catch (const std::bad_alloc&) {
    return false;
  }
  pool.idle_bytes += memory.bytes;
  pool.unmarked_bytes += unmarked;
  return true;
}

// A fork takes the mutex along, so that no other thread of this process can hold it in the new one for ever.
void before_fork() { pool.mutex.lock(); }

void after_fork_in_parent() { pool.mutex.unlock(); }

void after_fork_in_child() {
  release_beyond(0);  // the parent's too: a first write to it would copy it
  // The threads of the others do not live here, and will not end their blocks.
  const pthread_t self = pthread_self();
  const auto foreign = [self](const Block& block) { return !pthread_equal(block.thread, self); };
  pool.blocks.erase(std::remove_if(pool.blocks.begin(), pool.blocks.end(), foreign), pool.blocks.end());
  update_limit();
  pool.mutex.unlock();
}

Pool* make_pool() {
  pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
  return new Pool;
}

bool is_limited(decltype(RLIMIT_AS) resource) {
  rlimit limit;
  return getrlimit(resource, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY;
}

bool address_space_is_limited() {
  return pool.overcommit_is_strict || is_limited(RLIMIT_AS) || is_limited(RLIMIT_DATA);
}

void release_all() {
  const Lock lock(pool.mutex);
  release_beyond(0);
}

// At a huge page's boundary: what is mapped around it is unmapped again.
Memory map(size_t bytes) {
  void* mapped = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return {};
  char* const begin = static_cast<char*>(mapped);
  const size_t skipped = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
  if (skipped > 0) munmap(begin, skipped);
  munmap(begin + skipped + bytes, kHugePage - skipped);
  madvise(begin + skipped, bytes, MADV_HUGEPAGE);  // advice: where the system does not take it nothing is lost
  return {begin + skipped, bytes};
}

}  // namespace

Memory take(size_t bytes) {
  if (bytes < kSmallestBytes) return {};
  if (address_space_is_limited()) {
    release_all();
    return {};
  }
  if (bytes > limit()) return {};
  bytes = (bytes + pool.page - 1) / pool.page * pool.page;
  {
    const Lock lock(pool.mutex);
    const Memory memory = take_idle(bytes);
    if (memory.data != nullptr) return memory;
  }
  const Memory memory = map(bytes);
  if (memory.data != nullptr) return memory;
  release_all();
  return map(bytes);
}

void give_back(Memory memory) noexcept {
  const bool is_limited = address_space_is_limited();
  const Lock lock(pool.mutex);
  const size_t limit = is_limited ? 0 : pool.limit_bytes.load();
  const bool fits = memory.bytes <= limit;
  release_beyond(fits ? limit - memory.bytes : limit);
  if (!fits || !keep(memory)) munmap(memory.data, memory.bytes);
}

void set_limit(size_t bytes) {
  const Lock lock(pool.mutex);
  pool.limit_without_blocks = bytes;
  update_limit();
}

uint64_t open_block(size_t bytes) {
  const Lock lock(pool.mutex);
  const uint64_t id = ++pool.last_block;
  pool.blocks.push_back({id, pthread_self(), bytes});
  update_limit();
  return id;
}

void close_block(uint64_t block) {
  const Lock lock(pool.mutex);
  const auto is_it = [block](const Block& open) { return open.id == block; };
  pool.blocks.erase(std::remove_if(pool.blocks.begin(), pool.blocks.end(), is_it), pool.blocks.end());
  update_limit();
}

size_t limit() { return pool.limit_bytes; }

size_t idle_bytes() {
  const Lock lock(pool.mutex);
  return pool.idle_bytes;
}

#else

Memory take(size_t) { return {}; }
void give_back(Memory) noexcept {}
void set_limit(size_t) {}
uint64_t open_block(size_t) { return 0; }
void close_block(uint64_t) {}
size_t limit() { return 0; }
size_t idle_bytes() { return 0; }

#endif

}  // namespace fused_losses::gradient_pool
