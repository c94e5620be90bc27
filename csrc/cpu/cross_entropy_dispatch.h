// From the run-time description of a cross-entropy to the template that computes it.
#pragma once

#include "../core/dtype_dispatch.h"
#include "cross_entropy_target.h"

namespace fused_losses::cpu {
namespace {

// Sweep::run<T, Mass>(params, block_begin, block_end) is one way through memory.
template <class Sweep, class T>
void by_target(const CrossEntropyParams& params, int64_t block_begin, int64_t block_end) {
  using A = Accumulation<T>;
  switch (params.target_kind) {
    case TargetKind::Index:
      return Sweep::template run<T, NoMass<A>>(params, block_begin, block_end);
    case TargetKind::SmoothedIndex:
      return Sweep::template run<T, SmoothedMass<A>>(params, block_begin, block_end);
    case TargetKind::Probability:
      if (params.probability_dtype == params.dtype) {
        return Sweep::template run<T, ProbabilityMass<T>>(params, block_begin, block_end);
      }
      // 16-bit logits with float32 probabilities, as mixed precision makes them.
      if constexpr (!kSameType<T, A>) Sweep::template run<T, ProbabilityMass<float>>(params, block_begin, block_end);
  }
}

template <class Sweep>
void by_type(const CrossEntropyParams& params, int64_t block_begin, int64_t block_end) {
  by_dtype(params.dtype, [&](auto element) { by_target<Sweep, decltype(element)>(params, block_begin, block_end); });
}

}  // namespace
}  // namespace fused_losses::cpu
