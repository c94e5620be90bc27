// Cross-entropy where the classes of a position are contiguous and neither few nor many: a register of rows at a time.
//
// Note [Batches of rows]
// Sums and maxima over the lanes of a register, a logarithm, a division: some hundred cycles a row, each step waiting
// for the one before, and so more than the exponentials of a row of a hundred classes. So as many rows as a register
// has lanes are swept together, once for the maxima, once for the exponentials and once for the gradient, and between
// the sweeps what is one number a row is computed for all of them at once, a row a lane. A backward has the sums, and
// sweeps once, to the same bits.
#pragma once

#include "cross_entropy_positions.h"
#include "cross_entropy_row_sweeps.h"
#include "transpose.h"

namespace fused_losses::cpu {
namespace {

static_assert(kBatchPositions * kMaxBatchClasses * sizeof(float) == 64 << 10, "what the cache has room for");
// Streaming stores are for whole lines, and a short row begins and ends inside one: it is not streamed. Above this many
// classes it is, and swept alone, to the same bits.
constexpr int64_t kStreamedClasses = 512;
// A backward has no sums over lanes. Where its one sweep of a row is longer than this, the processor does what is one
// number a row beside it, and batches gain nothing.
constexpr int64_t kBackwardBatchClasses = 256;

inline bool takes_batches(const CrossEntropyParams& params) {
  if (params.mode == CrossEntropyMode::Backward) return params.num_classes <= kBackwardBatchClasses;
  return params.num_classes <= (params.stream_gradient ? kStreamedClasses : kMaxBatchClasses);
}

template <class T, class Mass>
class RowBatch : private Positions<T, Mass> {
  using Base = Positions<T, Mass>;
  using Base::logit_scale_;
  using Base::mass_;
  using Base::params_;
  using Base::state_;
  using Base::tile_;
  using typename Base::A;

 public:
  static constexpr int kRows = kLanes<A>;
  static_assert(kBatchPositions % kRows == 0);

  explicit RowBatch(const CrossEntropyParams& params) : Base(params) {}

  // Returns the sum of the batch's losses.
  double run(Tile tile) {
    Base::start(tile);
    start_rows();
    if (params_.mode == CrossEntropyMode::Backward) {
      store(state_.target_exponential, Base::target_exponentials(0));
      Base::add_row_terms();
      write_gradients<false>();
      return 0;
    }
    store(state_.max, maxima());
    const bool wants_gradient = params_.mode == CrossEntropyMode::LossAndGradient;
    if (wants_gradient) {
      sum_rows<true>();
    } else {
      sum_rows<false>();
    }
    const double loss = Base::finish_losses();
    if (!wants_gradient) return loss;
    Base::add_row_terms();
    write_gradients<true>();
    return loss;
  }

 private:
  void start_rows() {
    int64_t outer = tile_.first / params_.inner_size;
    int64_t inner = tile_.first % params_.inner_size;
    for (int r = 0; r < kRows; ++r) {
      used_[r] = r < tile_.count && (state_.target_class[r] >= 0 || params_.target_kind == TargetKind::Probability);
      state_.target_logit[r] = 0;
      if (r >= tile_.count) continue;
      logits_[r] = static_cast<const T*>(params_.logits) + params_.logits_layout.offset(outer, inner);
      gradients_[r] = static_cast<T*>(params_.gradient) + params_.gradient_layout.offset(outer, inner);
      if (state_.target_class[r] >= 0) state_.target_logit[r] = load_scalar(logits_[r] + state_.target_class[r]);
      if (++inner == params_.inner_size) {
        inner = 0;
        ++outer;
      }
    }
  }

  // Where the exponentials of a row wait for its gradient: in the gradient itself, if it has their type.
  A* stash(int r) {
    if constexpr (kSameType<T, A>) {
      return gradients_[r];
    } else {
      return stash_ + r * params_.num_classes;
    }
  }

  Vec<A> maxima() const {
    Vec<A> lanes[kRows];
    for (int r = 0; r < kRows; ++r) {
      lanes[r] = used_[r] ? lane_maxima(logits_[r], params_.num_classes) : Vec<A>{};
    }
    return fold<A>(lanes, [](Vec<A> a, Vec<A> b) { return max_of(a, b); });
  }

  template <bool kStash>
  void sum_rows() {
    const auto add = [](Vec<A> a, Vec<A> b) { return a + b; };
    Vec<A> sum[kRows] = {};
    Vec<A> mass[kRows] = {};
    Vec<A> mass_times_x[kRows] = {};
    for (int r = 0; r < kRows; ++r) {
      if (!used_[r]) continue;
      mass_.start_row(params_, tile_.first + r);
      const LaneStatistics<A> lanes = lane_sums_beside<kStash>(
          state_.target_class[r], state_.target_logit[r], logits_[r], 0, params_.num_classes, mass_, NoSlopes{},
          kStash ? stash(r) : nullptr, state_.max[r], logit_scale_, kRows * params_.num_classes);
      sum[r] = lanes.sum;
      if constexpr (Mass::kReadsProbability) mass[r] = lanes.mass;
      if constexpr (Mass::kDense) mass_times_x[r] = lanes.mass_times_x;
    }
    const Vec<A> target_exponential = Base::target_exponentials(0);
    const IntVec<A> is_hole = Base::has_target(0) & (load(state_.target_logit) == load(state_.max));
    const Vec<A> summed = fold<A>(sum, add);
    store(state_.target_exponential, target_exponential);
    store(state_.others, select(is_hole, summed, summed - target_exponential));
    if constexpr (Mass::kReadsProbability) store(state_.mass, fold<A>(mass, add));
    if constexpr (Mass::kDense) store(state_.mass_times_x, fold<A>(mass_times_x, add));
  }

  template <bool kStash>
  void write_gradients() {
    const Vec<A> mass = load(state_.mass);
    const Vec<A> point = load(state_.point_mass);
    const Vec<A> inverse_sum = A(1) / load(state_.sum);
    alignas(64) A factor[kRows];
    alignas(64) A target_probability[kRows];
    store(factor, (mass + point) * load(state_.scale) * inverse_sum);
    alignas(64) A others[kRows];
    store(target_probability, load(state_.target_exponential) * inverse_sum);
    store(others, load(state_.others) * inverse_sum);
    for (int r = 0; r < tile_.count; ++r) {
      if (!used_[r]) {
        ignored_gradient(logits_[r], gradients_[r], params_.num_classes, {});
        continue;
      }
      mass_.start_row(params_, tile_.first + r);
      const A scale = state_.scale[r];
      if constexpr (kStash) {
        gradient_from_stash<false>(stash(r), gradients_[r], 0, params_.num_classes, mass_, factor[r], scale);
      } else {
        gradient_from_logits(logits_[r], gradients_[r], 0, params_.num_classes, mass_, NoSlopes{},
                             finite_shift(state_.max[r]), logit_scale_, factor[r], scale);
      }
      const int64_t target_class = state_.target_class[r];
      if (target_class < 0) continue;
      const A value = gradient_at_target(state_.mass[r], mass_, target_class, state_.point_mass[r],
                                         target_probability[r], others[r]);
      store_scalar(gradients_[r] + target_class, value * scale);
    }
  }

  bool used_[kRows];  // neither ignored nor beyond the tile
  const T* logits_[kRows];
  T* gradients_[kRows];
  alignas(64) A stash_[kSameType<T, A> ? 1 : kRows * kMaxBatchClasses];
};

template <class T, class Mass>
void sweep_row_batches(const CrossEntropyParams& params, int64_t block_begin, int64_t block_end) {
  using Batch = RowBatch<T, Mass>;
  Batch batch(params);
  sum_blocks<Batch::kRows>(params, block_begin, block_end, [&](Tile tile) { return batch.run(tile); });
}

}  // namespace
}  // namespace fused_losses::cpu
