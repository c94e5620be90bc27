// What an operator chooses of the CPU kernels' ways, and a check tries both of.
#pragma once

namespace fused_losses::kernel_checks {

struct Ways {
  bool transposes = true;  // rows of few classes; else they are swept as rows of many are
  bool streams = false;    // the gradient of cross-entropy, where it is not written over the logits
};
inline Ways ways;

}  // namespace fused_losses::kernel_checks
