// Cross-entropy of transformed logits on the CPU: a segment of positions at a time is turned into units, on which the
// kernels of plain cross-entropy run, and the gradient for these into that for the logits. The segments stay in the
// cache: nothing of the logits' size is made.
#pragma once

#include "../core/cross_entropy.h"
#include "kernels.h"

namespace fused_losses::cpu {

// Blocks [block_begin, block_end) of positions; params.logit_scale is not looked at. `contiguous_classes`: the kernel
// wants every tensor's classes contiguous, else every tensor's inner axis; the logits alone do not show it, since in
// windows that overlap both are. False where there was no memory.
bool transformed_cross_entropy(const CrossEntropyParams& params, const UnitTransform& transform,
                               CrossEntropyKernel* kernel, bool contiguous_classes, int64_t block_begin,
                               int64_t block_end);

}  // namespace fused_losses::cpu
