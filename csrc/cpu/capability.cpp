// Run-time choice of the instruction set: one table of kernels per set, one atomic pointer to the table in use.
#include "capability.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace fused_losses::cpu {
namespace {

#define FUSED_LOSSES_KERNELS(capability)                                                                    \
  Kernels {                                                                                                 \
    .name = #capability, .cross_entropy_rows = capability::cross_entropy_rows,                              \
    .cross_entropy_transposed_tiles = capability::cross_entropy_transposed_tiles,                           \
    .cross_entropy_inner_tiles = capability::cross_entropy_inner_tiles, .nll_loss = capability::nll_loss,   \
    .binary_cross_entropy = capability::binary_cross_entropy,                                               \
    .binary_cross_entropy_with_logits = capability::binary_cross_entropy_with_logits,                       \
    .sigmoid_focal_loss = capability::sigmoid_focal_loss, .token_statistics = capability::token_statistics, \
    .logit_units = capability::logit_units, .logit_gradient = capability::logit_gradient,                   \
    .scan_targets = capability::scan_targets, .elementary_function = capability::elementary_function        \
  }

// From the least to the best.
const Kernels kBuilt[] = {
    FUSED_LOSSES_KERNELS(baseline),
#if defined(__x86_64__)
    FUSED_LOSSES_KERNELS(avx2),
    FUSED_LOSSES_KERNELS(avx512),
#endif
};

bool processor_has(const std::string& name) {
#if defined(__x86_64__)
  // The features of x86-64-v3 and v4 that the compiler may use for these sets.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("lzcnt");
  if (name == "avx2") return avx2;
  if (name == "avx512") {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
  }
#endif
  return name == "baseline";
}

const Kernels* find(const std::string& name) {
  for (const Kernels& candidate : kBuilt) {
    if (name == candidate.name && processor_has(name)) return &candidate;
  }
  std::string message = "fused_losses: CPU capability '" + name + "' is not available here; available are:";
  for (const std::string& available : available_capabilities()) message += " " + available;
  throw std::invalid_argument(message);
}

const Kernels* choose() {
  if (const char* forced = std::getenv("FUSED_LOSSES_CPU_CAPABILITY"); forced != nullptr && *forced != '\0') {
    return find(forced);
  }
  return find(available_capabilities().back());
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> chosen{choose()};
  return chosen;
}

}  // namespace

const Kernels& kernels() { return *current().load(std::memory_order_relaxed); }

std::vector<std::string> available_capabilities() {
  std::vector<std::string> names;
  for (const Kernels& candidate : kBuilt) {
    if (processor_has(candidate.name)) names.emplace_back(candidate.name);
  }
  return names;
}

void set_capability(const std::string& name) { current().store(find(name), std::memory_order_relaxed); }

}  // namespace fused_losses::cpu
