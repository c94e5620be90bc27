// One block: runs its threads, each until it waits, and decides who can go on.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "misuse.h"
#include "order.h"
#include "shared_memory.h"
#include "thread.h"
#include "warp.h"

namespace fused_losses::emulation {

// A kernel with its arguments, and what orders its threads before and after the host. See Note [Races].
struct Kernel {
  void (*call)(const void* arguments);
  const void* arguments;
  uint64_t start_clock = 0;
  uint64_t end_clock = 0;
  uint64_t fence_clock = 0;
  size_t dynamic_shared_bytes = 0;
};

class Block {
 public:
  Block(Kernel& kernel, int num_threads, OrderChoice order)
      : kernel_(kernel), threads_(num_threads), ready_(order, num_threads) {
    for (int i = 0; i < num_threads; ++i) {
      threads_[i].block = this;
      threads_[i].index = i;
      if (i % warpSize == 0) warps_.emplace_back(&threads_[i], num_threads - i);
    }
  }

  // The thread whose index is i runs on fiber first_fiber + i.
  void run(FiberPool& fibers, size_t first_fiber) {
    for (int i = ready_.take(); i >= 0; i = ready_.take()) {
      Thread& thread = threads_[i];
      if (thread.fiber == nullptr) thread.fiber = &fibers.at(first_fiber + i, &Block::fiber_entry);
      current_thread = &thread;
      threadIdx.x = static_cast<unsigned>(i);
      do {
        thread.fiber->resume();
      } while (serve(thread));
    }
    if (num_exited_ != static_cast<int>(threads_.size())) throw_deadlock();
    shared_.check(threads_[0]);
  }

  int64_t num_barriers() const { return num_barriers_; }

  // See Note [Races]. Two clocks take turns: a thread that is already at the next barrier adds nothing to the one that
  // slower threads have still to acquire.
  uint64_t* barrier_clock() { return &barrier_clocks_[num_barriers_ % 2]; }
  uint64_t* block_fence_clock() { return &block_fence_clock_; }
  uint64_t* grid_fence_clock() { return &kernel_.fence_clock; }

 private:
  // The body of every fiber: one thread of one block after another.
  static void fiber_entry() {
    current_thread->fiber->entered();
    for (;;) {
      Thread& thread = *current_thread;
      Kernel& kernel = thread.block->kernel_;
      acquire(&kernel.start_clock);
      kernel.call(kernel.arguments);
      release(&kernel.end_clock);
      thread.request = {};
      thread.fiber->suspend();
    }
  }

  // True if the thread itself goes on at once.
  bool serve(Thread& thread) {
    const Request& request = thread.request;
    switch (request.call) {
      case Call::Exit:
        thread.exited = true;
        ++num_exited_;
        warps_[thread.warp()].exit(thread);
        complete_barrier();
        return false;
      case Call::SyncThreads:
        arrive_at_barrier(thread);
        return false;
      case Call::WarpClock:
        thread.memory = warps_[thread.warp()].clock(request.mask);
        return true;
      case Call::SharedArray:
        thread.memory = shared_.array(thread);
        return true;
      case Call::DynamicSharedArray:
        thread.request.bytes = kernel_.dynamic_shared_bytes;
        thread.memory = shared_.array(thread);
        return true;
      case Call::Misuse:
        throw Misuse(thread, std::string(request.message) + " at " + describe(request.where));
      case Call::DeviceAssert:
        throw std::runtime_error(std::string("CUDA error: device-side assert triggered: ") + request.message);
      default:
        arrive_in_warp(thread);
        return false;
    }
  }

  void arrive_at_barrier(const Thread& thread) {
    const Thread& first = at_barrier_.empty() ? thread : threads_[at_barrier_.front()];
    if (!same_place(thread.request.where, first.request.where)) {
      throw Misuse(thread, "divergent barrier: " + describe(thread.request) + ", but thread " +
                               std::to_string(first.index) + " waits in " + describe(first.request));
    }
    at_barrier_.push_back(thread.index);
    complete_barrier();
  }

  // Threads that have exited count as arrived, as on every GPU since Volta.
  void complete_barrier() {
    if (at_barrier_.empty() || at_barrier_.size() + num_exited_ != threads_.size()) return;
    ++num_barriers_;
    for (const int i : at_barrier_) ready_.add(i);
    at_barrier_.clear();
    ready_.shuffle_warps();
  }

  void arrive_in_warp(const Thread& thread) {
    const unsigned released = warps_[thread.warp()].arrive(thread);
    if (released != 0) ready_.add_lanes(thread.warp(), released);
  }

  // Names one thread for each of the first few places where threads wait.
  [[noreturn]] void throw_deadlock() {
    const Thread* first = nullptr;
    std::string what = "deadlock: waits forever in ";
    std::set<std::string> waits;
    for (const Thread& thread : threads_) {
      if (thread.exited) continue;
      std::string wait = describe(thread.request);
      if (thread.request.call != Call::SyncThreads) {
        wait += " (lanes " + hexadecimal(warps_[thread.warp()].missing(thread)) + " are missing)";
      }
      if (waits.size() == 4 || !waits.insert(wait).second) continue;
      if (first == nullptr) {
        first = &thread;
      } else {
        what += "; thread " + std::to_string(thread.index) + " waits in ";
      }
      what += wait;
    }
    throw Misuse(*first, what);
  }

  Kernel& kernel_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  ReadyThreads ready_;
  SharedMemory shared_;
  std::vector<int> at_barrier_;  // the threads that wait
  int num_exited_ = 0;
  int64_t num_barriers_ = 0;
  uint64_t barrier_clocks_[2] = {};
  uint64_t block_fence_clock_ = 0;
};

}  // namespace fused_losses::emulation
