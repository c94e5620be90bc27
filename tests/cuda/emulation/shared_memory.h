// The shared memory of a block: one array for each declaration, as with CUDA's __shared__, however often it is
// executed.
#pragma once

#include <algorithm>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "misuse.h"
#include "sanitizers.h"

namespace fused_losses::emulation {

class SharedMemory {
 public:
  SharedMemory() = default;
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  ~SharedMemory() {
    for (const Array& array : arrays_) {
      unpoison(array.memory, array.allocated());
      ::operator delete(array.memory, std::align_val_t{kGuardBytes});
    }
  }

  void* array(const Thread& thread) {
    const Request& request = thread.request;
    for (const Array& array : arrays_) {
      if (!same_place(array.where, request.where)) continue;
      if (array.bytes == request.bytes) return array.data();
      throw Misuse(thread, describe(request) + ": " + std::to_string(request.bytes) + " bytes, but " +
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
        throw Misuse(thread, "a thread of the block wrote outside the shared array of " + describe(array.where));
      }
    }
  }

 private:
  static constexpr size_t kLimitBytes = 48 * 1024;  // without opting in to more
  static constexpr size_t kGuardBytes = 128;        // on each side; also the alignment
  static constexpr unsigned char kGuard = 0xa5;

  struct Array {
    std::source_location where;
    unsigned char* memory;
    size_t bytes;

    unsigned char* data() const { return memory + kGuardBytes; }
    size_t allocated() const { return bytes + 2 * kGuardBytes; }
  };

  Array& add(const Thread& thread) {
    const Request& request = thread.request;
    total_bytes_ += (request.bytes + request.alignment - 1) / request.alignment * request.alignment;
    if (total_bytes_ > kLimitBytes) {
      throw Misuse(thread, describe(request) + ": more than 48 KiB of shared memory");
    }
    Array array{request.where, nullptr, request.bytes};
    array.memory = static_cast<unsigned char*>(::operator new(array.allocated(), std::align_val_t{kGuardBytes}));
    std::memset(array.memory, kGuard, array.allocated());
    std::memset(array.data(), 0xff, array.bytes);  // NaN in every floating-point format
    poison(array.memory, kGuardBytes);
    poison(array.data() + array.bytes, kGuardBytes);
    return arrays_.emplace_back(array);
  }

  size_t total_bytes_ = 0;
  std::vector<Array> arrays_;
};

}  // namespace fused_losses::emulation
