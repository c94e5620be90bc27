// A fiber: an execution with its own stack, which runs when the host resumes it and until it suspends itself.
#pragma once

#include <sys/mman.h>

#include <memory>
#include <new>
#include <vector>

#include "sanitizers.h"
#include "stack_switch.h"

namespace fused_losses::emulation {

class Fiber {
 public:
  // `entry` begins with entered(), and never returns.
  Fiber(void (*entry)(), size_t number) : identity_(create_identity()) {
    void* const memory =
        mmap(nullptr, kMappedBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mapped_ = static_cast<char*>(memory);
    mprotect(mapped_, kGuardBytes, PROT_NONE);
    // Stacks that all began at the same place of a page would compete for a few lines of the first-level cache.
    const size_t color = number % 16 * 256;
    prepare_context(fiber_, stack(), kStackBytes - color, entry);
  }

  // What the fiber was doing is dropped, destructors included. The host knows all that it did.
  ~Fiber() {
    void* const host = current_identity();
    assume_identity(identity_);
    release(this);
    assume_identity(host);
    acquire(this);
    unpoison(stack(), kStackBytes);
    munmap(mapped_, kMappedBytes);
    destroy_identity(identity_);
  }

  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  [[gnu::always_inline]] void resume() {
    host_identity_ = current_identity();
    leave_stack(&host_shadow_, stack(), kStackBytes);
    assume_identity(identity_);
    switch_context(host_, fiber_);
    enter_stack(host_shadow_, nullptr, nullptr);
  }

  void entered() { enter_stack(nullptr, &host_stack_, &host_stack_bytes_); }

  [[gnu::always_inline]] void suspend() {
    leave_stack(&fiber_shadow_, host_stack_, host_stack_bytes_);
    assume_identity(host_identity_);
    switch_context(fiber_, host_);
    enter_stack(fiber_shadow_, &host_stack_, &host_stack_bytes_);
  }

 private:
  static constexpr size_t kGuardBytes = 64 * 1024;  // at least a page, on every system
  static constexpr size_t kStackBytes = (kAddressSanitizer || kThreadSanitizer ? 256 : 64) * 1024;
  static constexpr size_t kMappedBytes = kGuardBytes + kStackBytes;

  char* stack() const { return mapped_ + kGuardBytes; }

  char* mapped_;
  void* identity_;
  void* host_identity_ = nullptr;
  Context fiber_;
  Context host_;
  void* fiber_shadow_ = nullptr;
  void* host_shadow_ = nullptr;
  const void* host_stack_ = nullptr;
  size_t host_stack_bytes_ = 0;
};

// Fibers that outlive the blocks they serve.
class FiberPool {
 public:
  Fiber& at(size_t number, void (*entry)()) {
    for (size_t next = fibers_.size(); next <= number; ++next) {
      fibers_.push_back(std::make_unique<Fiber>(entry, next));
    }
    return *fibers_[number];
  }
  void clear() { fibers_.clear(); }

 private:
  std::vector<std::unique_ptr<Fiber>> fibers_;
};

}  // namespace fused_losses::emulation
