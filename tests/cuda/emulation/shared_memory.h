// The shared memory of a block: one array for each declaration, as with CUDA's __shared__, however often it is
// executed, and the dynamic one.
#pragma once

#include <algorithm>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "misuse.h"
#include "sanitizers.h"

namespace fused_losses::emulation {

// Compute capability 8.6 and 12.0 give a block 99 KiB in all; others give more.
constexpr size_t kMaxDynamicSharedBytes = 96 * 1024;

class SharedMemory {
 public:
  // Whether an address lies in an array of a block that this thread of the host runs. ThreadSanitizer would take the
  // list for memory of the kernel's.
  [[gnu::no_sanitize("thread")]] static bool holds(const void* address) {
    const auto* const byte = static_cast<const unsigned char*>(address);
    for (size_t i = 0; i < num_ranges_; ++i) {
      if (byte >= ranges_[i].begin && byte < ranges_[i].end) return true;
    }
    return false;
  }

  SharedMemory() = default;
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  ~SharedMemory() {
    for (const Array& array : arrays_) {
      Range* const last = ranges_ + num_ranges_;
      num_ranges_ = static_cast<size_t>(
          std::remove_if(ranges_, last, [&](const Range& range) { return range.begin == array.data(); }) - ranges_);
      unpoison(array.memory, array.allocated());
      ::operator delete(array.memory, std::align_val_t{kGuardBytes});
    }
  }

  void* array(const Thread& thread) {
    const Request& request = thread.request;
    for (const Array& array : arrays_) {
      if (!same_place(array.where, request.where)) continue;
      if (array.bytes == request.bytes) return array.data();
      throw Misuse(thread, emulation::describe(request) + ": " + std::to_string(request.bytes) + " bytes, but " +
                               std::to_string(array.bytes) + " for a thread before");
    }
    return add(thread).data();
  }

  // Throws if a guard has changed.
  void check(const Thread& thread) const {
    for (const Array& array : arrays_) {
      unpoison(array.memory, array.allocated());
      const auto intact = [](unsigned char byte) { return byte == kGuard; };
      if (!std::all_of(array.memory, array.data(), intact) ||
          !std::all_of(array.data() + array.bytes, array.memory + array.allocated(), intact)) {
        throw Misuse(thread, "a thread of the block wrote outside " + describe(array));
      }
    }
  }

 private:
  static constexpr size_t kMaxStaticBytes = 48 * 1024;
  static constexpr size_t kGuardBytes = 128;  // on each side; also the alignment
  static constexpr unsigned char kGuard = 0xa5;

  struct Array {
    Call call;
    std::source_location where;
    unsigned char* memory;
    size_t bytes;

    unsigned char* data() const { return memory + kGuardBytes; }
    size_t allocated() const { return bytes + 2 * kGuardBytes; }
  };

  struct Range {
    const unsigned char* begin;
    const unsigned char* end;
  };
  static constexpr size_t kMaxRanges = 64;  // those of more arrays are not looked for
  static inline thread_local Range ranges_[kMaxRanges];
  static inline thread_local size_t num_ranges_ = 0;

  static std::string describe(const Array& array) {
    if (array.call == Call::DynamicSharedArray) return kCallNames[static_cast<int>(array.call)];
    return "the shared array of " + emulation::describe(array.where);
  }

  Array& add(const Thread& thread) {
    const Request& request = thread.request;
    if (request.call == Call::SharedArray) {
      static_bytes_ += (request.bytes + request.alignment - 1) / request.alignment * request.alignment;
    }
    if (static_bytes_ > kMaxStaticBytes) {
      throw Misuse(thread, emulation::describe(request) + ": more than 48 KiB of shared memory");
    }
    Array array{request.call, request.where, nullptr, request.bytes};
    array.memory = static_cast<unsigned char*>(::operator new(array.allocated(), std::align_val_t{kGuardBytes}));
    std::memset(array.memory, kGuard, array.allocated());
    std::memset(array.data(), 0xff, array.bytes);  // NaN in every floating-point format
    poison(array.memory, kGuardBytes);
    poison(array.data() + array.bytes, kGuardBytes);
    if (num_ranges_ < kMaxRanges) ranges_[num_ranges_++] = {array.data(), array.data() + array.bytes};
    return arrays_.emplace_back(array);
  }

  size_t static_bytes_ = 0;
  std::vector<Array> arrays_;
};

}  // namespace fused_losses::emulation
