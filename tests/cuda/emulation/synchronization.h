// Barriers, shuffles, votes and fences.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "block.h"

namespace fused_losses::emulation {

// Gives the host the floor until it has an answer.
inline Thread& ask(const Request& request) {
  Thread& thread = *current_thread;
  thread.request = request;
  thread.fiber->suspend();
  return thread;
}

// Ends the launch.
[[noreturn]] inline void fail(Call call, const char* message, std::source_location where) {
  ask({.call = call, .where = where, .message = message});
  __builtin_unreachable();
}

template <class T>
T shuffle(Call call, unsigned mask, T value, int lane, int width, std::source_location where) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "CUDA shuffles 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits =
      ask({.call = call, .where = where, .mask = mask, .lane = lane, .width = width, .value = bits, .bytes = sizeof(T)})
          .value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline unsigned vote(Call call, unsigned mask, int predicate, std::source_location where) {
  return static_cast<unsigned>(ask({.call = call, .where = where, .mask = mask, .value = predicate != 0}).value);
}

}  // namespace fused_losses::emulation

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  using namespace fused_losses::emulation;
  uint64_t* const clock = current_thread->block->barrier_clock();
  release(clock);
  ask({.call = Call::SyncThreads, .where = where});
  acquire(clock);
}

inline void __syncwarp(unsigned mask = 0xffffffff, std::source_location where = std::source_location::current()) {
  using namespace fused_losses::emulation;
  void* const clock = kThreadSanitizer ? ask({.call = Call::WarpClock, .where = where, .mask = mask}).memory : nullptr;
  release(clock);
  ask({.call = Call::SyncWarp, .where = where, .mask = mask});
  acquire(clock);
}

// Shuffles and votes order no memory accesses: CUDA promises that of __syncwarp only.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              std::source_location where = std::source_location::current()) {
  using namespace fused_losses::emulation;
  return shuffle(Call::Shuffle, mask, value, source, width, where);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, int delta, int width = 32,
                 std::source_location where = std::source_location::current()) {
  using namespace fused_losses::emulation;
  return shuffle(Call::ShuffleUp, mask, value, delta, width, where);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, int delta, int width = 32,
                   std::source_location where = std::source_location::current()) {
  using namespace fused_losses::emulation;
  return shuffle(Call::ShuffleDown, mask, value, delta, width, where);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  std::source_location where = std::source_location::current()) {
  using namespace fused_losses::emulation;
  return shuffle(Call::ShuffleXor, mask, value, lane_mask, width, where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              std::source_location where = std::source_location::current()) {
  using namespace fused_losses::emulation;
  return vote(Call::Ballot, mask, predicate, where);
}

inline int __any_sync(unsigned mask, int predicate, std::source_location where = std::source_location::current()) {
  using namespace fused_losses::emulation;
  return static_cast<int>(vote(Call::Any, mask, predicate, where));
}

inline int __all_sync(unsigned mask, int predicate, std::source_location where = std::source_location::current()) {
  using namespace fused_losses::emulation;
  return static_cast<int>(vote(Call::All, mask, predicate, where));
}

// A fence is ordered after every fence that ran before it. That is more than CUDA gives, where an atomic access has to
// carry the order from one thread to the other.
inline void __threadfence_block() {
  using namespace fused_losses::emulation;
  uint64_t* const clock = current_thread->block->block_fence_clock();
  release(clock);
  acquire(clock);
}

inline void __threadfence() {
  using namespace fused_losses::emulation;
  uint64_t* const clock = current_thread->block->grid_fence_clock();
  release(clock);
  acquire(clock);
}
