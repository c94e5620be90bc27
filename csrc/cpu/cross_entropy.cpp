// Softmax cross-entropy on the CPU: picks the sweep for the layout, the target and the element type.
// Compiled once per instruction set.
#include "cross_entropy_rows.h"
#include "cross_entropy_tiles.h"
#include "kernels.h"

namespace fused_losses::cpu {
namespace {

// Tiles of 256 positions make runs of 1 KB, which memory likes; more classes leave room for 64.
constexpr int kLongTile = 256;
constexpr int kShortTile = 64;

template <class T, class Mass>
void by_layout(const CrossEntropyParams& params, int64_t block_begin, int64_t block_end) {
  switch (params.sweep) {
    case CrossEntropySweep::Rows:
      return cross_entropy_rows<T, Mass>(params, block_begin, block_end);
    case CrossEntropySweep::TransposedTiles:
      return cross_entropy_tiles<T, Mass, TransposedRows, kShortTile>(params, block_begin, block_end);
    case CrossEntropySweep::InnerTiles:
      if (params.num_classes <= kTileElements / kLongTile) {
        return cross_entropy_tiles<T, Mass, InnerRuns, kLongTile>(params, block_begin, block_end);
      }
      return cross_entropy_tiles<T, Mass, InnerRuns, kShortTile>(params, block_begin, block_end);
  }
}

template <class T, class U>
void by_probability(const CrossEntropyParams& params, int64_t block_begin, int64_t block_end) {
  if (params.target.class_weight != nullptr) {
    by_layout<T, ProbabilityMass<U, true>>(params, block_begin, block_end);
  } else {
    by_layout<T, ProbabilityMass<U, false>>(params, block_begin, block_end);
  }
}

template <class T>
void by_target(const CrossEntropyParams& params, int64_t block_begin, int64_t block_end) {
  using A = Accumulation<T>;
  switch (params.target_kind) {
    case TargetKind::Index:
      return by_layout<T, NoMass<A>>(params, block_begin, block_end);
    case TargetKind::SmoothedIndex:
      if (params.target.class_weight != nullptr) return by_layout<T, WeightedMass<A>>(params, block_begin, block_end);
      return by_layout<T, UniformMass<A>>(params, block_begin, block_end);
    case TargetKind::Probability:
      if (params.probability_dtype == params.dtype) return by_probability<T, T>(params, block_begin, block_end);
      // 16-bit logits with float32 probabilities, as mixed precision makes them.
      if constexpr (!kSameType<T, A>) by_probability<T, float>(params, block_begin, block_end);
  }
}

}  // namespace

namespace FUSED_LOSSES_CAPABILITY {

void cross_entropy(const CrossEntropyParams& params, int64_t block_begin, int64_t block_end) {
  switch (params.dtype) {
    case DType::Float32:
      return by_target<float>(params, block_begin, block_end);
    case DType::Float64:
      return by_target<double>(params, block_begin, block_end);
    case DType::BFloat16:
      return by_target<BFloat16>(params, block_begin, block_end);
    case DType::Float16:
      return by_target<Float16>(params, block_begin, block_end);
  }
}

}  // namespace FUSED_LOSSES_CAPABILITY
}  // namespace fused_losses::cpu
