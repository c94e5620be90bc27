// Which instruction set the CPU kernels use.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace fused_losses::cpu {

struct Kernels {
  const char* name;
  CrossEntropyKernel* cross_entropy_rows;
  CrossEntropyKernel* cross_entropy_transposed_tiles;
  CrossEntropyKernel* cross_entropy_inner_tiles;
  NLLLossKernel* nll_loss;
  BinaryCrossEntropyKernel* binary_cross_entropy;
  BinaryCrossEntropyKernel* binary_cross_entropy_with_logits;
  BinaryCrossEntropyKernel* sigmoid_focal_loss;
  TokenStatisticsKernel* token_statistics;
  LogitUnitsKernel* logit_units;
  LogitGradientKernel* logit_gradient;
  ScanTargetsKernel* scan_targets;
  ElementaryFunctionKernel* elementary_function;
};

// The kernels in use: the best set that the processor has, or the one that the environment variable
// FUSED_LOSSES_CPU_CAPABILITY or set_capability names.
const Kernels& kernels();

// Names, from the least to the best set that both this build and this processor have.
std::vector<std::string> available_capabilities();

// Throws std::invalid_argument for a name that is not available.
void set_capability(const std::string& name);

}  // namespace fused_losses::cpu
