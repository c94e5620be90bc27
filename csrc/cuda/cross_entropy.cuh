// Which cross-entropy kernel a problem takes. Each element type is a translation unit of its own, cross_entropy_*.cu.
#pragma once

#include "cross_entropy_inner.cuh"
#include "cross_entropy_register_rows.cuh"
#include "cross_entropy_swept_rows.cuh"

namespace fused_losses::cuda {

// The number of partial sums in params.block_losses.
template <class T>
int64_t cross_entropy_of(const CrossEntropyParams& params, Stream stream) {
  const bool contiguous_classes = params.logits_layout.class_stride == 1 && params.gradient_layout.class_stride == 1;
  if (!contiguous_classes) return cross_entropy_inner<T>(params, stream);
  if (params.target_kind != TargetKind::Index) return cross_entropy_swept_rows<T, true>(params, stream);
  if (params.mode == CrossEntropyMode::Backward || !fits_registers<T>(params.num_classes)) {
    return cross_entropy_swept_rows<T, false>(params, stream);
  }
  return cross_entropy_register_rows<T>(params, stream);
}

}  // namespace fused_losses::cuda
