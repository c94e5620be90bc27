// The numbers that kernels are run on: the same in every run.
#pragma once

#include "../order.h"
#include "array.h"

namespace fused_losses::kernel_checks {

class Random {
 public:
  explicit Random(uint64_t seed) : bits_(seed) {}
  double uniform(double low, double high) { return low + (high - low) * static_cast<double>(bits_() >> 11) * 0x1p-53; }
  int64_t below(int64_t limit) { return static_cast<int64_t>(bits_.below(static_cast<uint64_t>(limit))); }

  void fill(Array& array, double low, double high) {
    for (int64_t i = 0; i < array.count(); ++i) array.set(i, uniform(low, high));
  }

 private:
  emulation::SplitMix64 bits_;
};

}  // namespace fused_losses::kernel_checks
