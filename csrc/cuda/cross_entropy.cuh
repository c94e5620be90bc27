// Which cross-entropy kernel a problem takes. Each element type is a translation unit of its own, cross_entropy_*.cu.
#pragma once

#include "cross_entropy_few_classes.cuh"
#include "cross_entropy_inner.cuh"
#include "cross_entropy_register_rows.cuh"
#include "cross_entropy_swept_rows.cuh"

namespace fused_losses::cuda {

// The number of partial sums in params.block_losses.
template <class T>
int64_t cross_entropy_of(const CrossEntropyParams& params, Stream stream) {
  const bool contiguous_classes = params.logits_layout.class_stride == 1 && params.gradient_layout.class_stride == 1;
  const bool dense = has_mass_by_class(params);
  const bool is_backward = params.mode == CrossEntropyMode::Backward;
  if (!contiguous_classes) {
    return dense || is_backward || params.num_classes > kMostFewClasses
               ? cross_entropy_inner<T>(params, stream, NoTerms{})
               : cross_entropy_few_classes<T>(params, stream);
  }
  if (is_backward) {
    return dense ? cross_entropy_rows_backward<T, true>(params, stream, NoTerms{})
                 : cross_entropy_rows_backward<T, false>(params, stream, NoTerms{});
  }
  if (dense) return cross_entropy_swept_rows<T, true>(params, stream, NoTerms{});
  if (are_few_classes<T>(params.num_classes)) return cross_entropy_few_classes<T>(params, stream);
  return fits_registers<T>(params.num_classes) ? cross_entropy_register_rows<T>(params, stream)
                                               : cross_entropy_long_rows<T>(params, stream);
}

}  // namespace fused_losses::cuda
