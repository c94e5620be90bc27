// Which cross-entropy kernel a problem with terms takes: rows are swept, whatever their length, and anything else goes
// by its inner axis. Each element type is a translation unit of its own, cross_entropy_with_terms_*.cu.
#pragma once

#include "cross_entropy_inner.cuh"
#include "cross_entropy_swept_rows.cuh"

namespace fused_losses::cuda {
namespace {

template <class T, bool kDense, class Terms>
int64_t rows_with_terms(const CrossEntropyParams& params, Stream stream, const Terms& terms) {
  return params.mode == CrossEntropyMode::Backward ? cross_entropy_rows_backward<T, kDense>(params, stream, terms)
                                                   : cross_entropy_swept_rows<T, kDense>(params, stream, terms);
}

template <class T, class Terms>
int64_t cross_entropy_with(const CrossEntropyParams& params, Stream stream, const Terms& terms) {
  if (params.logits_layout.class_stride != 1 || params.gradient_layout.class_stride != 1) {
    return cross_entropy_inner<T>(params, stream, terms);
  }
  return has_mass_by_class(params) ? rows_with_terms<T, true>(params, stream, terms)
                                   : rows_with_terms<T, false>(params, stream, terms);
}

}  // namespace

// The number of partial sums in params.block_losses.
template <class T>
int64_t cross_entropy_with_terms_of(const CrossEntropyParams& params, Stream stream) {
  using A = Accumulation<T>;
  return params.softcap != 0 ? cross_entropy_with<T>(params, stream, RowTerms<A, true>(params))
                             : cross_entropy_with<T>(params, stream, RowTerms<A, false>(params));
}

}  // namespace fused_losses::cuda
