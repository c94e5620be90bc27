// One CUDA thread, and what it asks of its block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <source_location>

#include "builtins.h"
#include "fiber.h"

namespace fused_losses::emulation {

enum class Call : uint8_t {
  SyncThreads,
  SyncWarp,
  Shuffle,
  ShuffleUp,
  ShuffleDown,
  ShuffleXor,
  Ballot,
  Any,
  All,
  SharedArray,
  DynamicSharedArray,
  WarpClock,  // and below, what has no name for users
  Exit,
  Misuse,
  DeviceAssert,
};

inline const char* const kCallNames[] = {
    "__syncthreads", "__syncwarp", "__shfl_sync", "__shfl_up_sync", "__shfl_down_sync",        "__shfl_xor_sync",
    "__ballot_sync", "__any_sync", "__all_sync",  "a shared array", "the dynamic shared array"};
static_assert(std::size(kCallNames) == static_cast<size_t>(Call::WarpClock));

struct Request {
  Call call = Call::Exit;
  std::source_location where;
  unsigned mask = 0;              // warp operations: the lanes that take part
  int lane = 0;                   // shuffles: source lane, delta or lane mask
  int width = warpSize;           // shuffles
  uint64_t value = 0;             // shuffles and votes
  size_t bytes = 0;               // of a shuffle's value or a static shared array
  size_t alignment = 0;           // of a shared array
  const char* message = nullptr;  // misuse and assertions
};

// The function tells instances of a template apart.
inline bool same_place(const std::source_location& a, const std::source_location& b) {
  const auto same_text = [](const char* x, const char* y) { return x == y || std::strcmp(x, y) == 0; };
  return a.line() == b.line() && a.column() == b.column() && same_text(a.function_name(), b.function_name()) &&
         same_text(a.file_name(), b.file_name());
}

class Block;

struct Thread {
  Block* block = nullptr;
  Fiber* fiber = nullptr;
  int index = 0;  // in the block
  bool exited = false;
  Request request;
  uint64_t value = 0;      // what a shuffle or vote answers
  void* memory = nullptr;  // what a shared array or WarpClock answers

  int warp() const { return index / warpSize; }
  int lane() const { return index % warpSize; }
};

// The thread that runs on this host thread; null outside of a launch.
inline constinit thread_local Thread* current_thread = nullptr;

}  // namespace fused_losses::emulation
