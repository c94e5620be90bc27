// What is one number a position in cross-entropy: target, statistics, loss. SIMD along the positions, for every way
// through memory.
#pragma once

#include "../core/blocks.h"
#include "../core/compensated_sum.h"
#include "../core/dtype_dispatch.h"
#include "cross_entropy_row_terms.h"
#include "cross_entropy_target.h"
#include "kernels.h"
#include "vec_math.h"

namespace fused_losses::cpu {
namespace {

// Positions of a tile: runs of 512 bytes, and 64 classes of float fit the first-level cache with room for targets.
constexpr int kPositions = kTilePositions;

// A tile: positions [first, first + count) of the flattened (outer, inner) order.
struct Tile {
  int64_t first;
  int count;
};

// What is known of each position of a tile: see Note [Target mass] and Note [Confident rows]. Until finish_losses there
// is no `sum`.
template <class A>
struct TileState {
  alignas(64) A max[kPositions];
  alignas(64) A sum[kPositions];
  alignas(64) A others[kPositions];  // the sum itself where there is no target class
  alignas(64) A mass[kPositions];
  alignas(64) A mass_times_x[kPositions];
  alignas(64) A target_logit[kPositions];
  alignas(64) A target_exponential[kPositions];  // exp(x_t - max), 0 where there is no target class
  alignas(64) A point_mass[kPositions];
  alignas(64) A scale[kPositions];
  alignas(64) Integer<A> target_class[kPositions];  // -1: none
};

template <class A>
inline IntVec<A> load_integers(const Integer<A>* source) {
  IntVec<A> value;
  std::memcpy(&value, source, sizeof(value));
  return value;
}

template <class V, class I>
inline void store_integers(I* destination, V value) {
  std::memcpy(destination, &value, sizeof(value));
}

template <class T, class Mass>
class Positions {
 protected:
  using A = Accumulation<T>;

  explicit Positions(const CrossEntropyParams& params)
      : params_(params), logit_scale_(static_cast<A>(params.logit_scale)), mass_(params) {}

  void start(Tile tile) {
    tile_ = tile;
    end_ = (tile.count + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
    load_targets();
    if (params_.mode == CrossEntropyMode::Backward) load_statistics();
  }

  FUSED_LOSSES_FLATTEN double finish_losses() {
    alignas(64) A losses[kPositions];
    const bool by_index = params_.target_kind != TargetKind::Probability;
    for (int v = 0; v < end_; v += kLanes<A>) {
      if constexpr (!Mass::kReadsProbability) store(state_.mass + v, dense_mass(v));
      const Vec<A> others = load(state_.others + v);
      const Vec<A> target_exponential = load(state_.target_exponential + v);
      const Vec<A> sum = others + target_exponential;
      store(state_.sum + v, sum);
      const Vec<A> log_sum = log_of_sum<A>(sum, target_exponential, others);
      Vec<A> loss{};
      if (by_index) loss = point_loss(load(state_.point_mass + v), log_sum, shifted_targets(v));
      if constexpr (Mass::kDense) loss += dense_loss(load(state_.mass + v), log_sum, load(state_.mass_times_x + v));
      if (has_terms_) loss = row_terms(v).loss(loss);
      if (by_index) loss = select(load_integers<A>(state_.target_class + v) < 0, Vec<A>{}, loss);
      store(losses + v, loss);
    }
    const double total = sum_in_double(losses, tile_.count);
    write_positions(params_.losses, losses);
    write_positions(params_.row_max, state_.max);
    write_positions(params_.row_sum, state_.sum);
    if constexpr (Mass::kReadsProbability) {
      write_positions(params_.row_mass, state_.mass);
    } else {
      write_positions(params_.row_others, state_.others);
    }
    return total;
  }

  // In a backward: see CrossEntropyParams.
  bool lacks_statistics() const {
    for (int i = 0; i < tile_.count; ++i) {
      if (state_.sum[i] == 0 && is_ignored(i)) return true;
    }
    return false;
  }

  void write_positions(void* memory, const A* values) const {
    if (memory == nullptr) return;
    std::memcpy(static_cast<A*>(memory) + tile_.first, values, static_cast<size_t>(tile_.count) * sizeof(A));
  }

  IntVec<A> has_target(int v) const { return load_integers<A>(state_.target_class + v) >= 0; }

  Vec<A> target_exponentials(int v) const { return select(has_target(v), exp<A>(shifted_targets(v)), Vec<A>{}); }

  // Turns the masses into those that the gradient has: y becomes y', Q becomes Q + e. The target logits must be known,
  // in a backward too.
  void add_row_terms() {
    if (!has_terms_) return;
    for (int v = 0; v < end_; v += kLanes<A>) {
      store(state_.target_exponential + v, target_exponentials(v));
      const RowTerms<A> terms = row_terms(v);
      const IntVec<A> used = params_.target_kind == TargetKind::Probability ? IntVec<A>{} - 1 : has_target(v);
      store(state_.point_mass + v, select(used, terms.point_mass(load(state_.point_mass + v)), Vec<A>{}));
      store(state_.mass + v, select(used, load(state_.mass + v) + terms.mass(), Vec<A>{}));
    }
  }

  const CrossEntropyParams& params_;
  const bool has_terms_ = has_row_terms(params_);
  const A logit_scale_;
  Mass mass_;
  Tile tile_{};
  int end_ = 0;  // of the registers that hold positions
  TileState<A> state_;

 private:
  Vec<A> shifted_targets(int v) const {
    return shifted_logit(load(state_.target_logit + v), finite_shifts<A>(load(state_.max + v)), logit_scale_);
  }

  RowTerms<A> row_terms(int v) const {
    const Vec<A> sum = load(state_.sum + v);
    const Vec<A> others = Mass::kReadsProbability ? sum : load(state_.others + v);
    const Vec<A> target_exponential = Mass::kReadsProbability ? Vec<A>{} : load(state_.target_exponential + v);
    return RowTerms<A>(params_,
                       {finite_shifts<A>(load(state_.max + v)), sum, others, target_exponential, shifted_targets(v)});
  }

  void load_targets() {
    const GradientScale<A> gradient_scale(params_);
    const A scale = gradient_scale.of_row();
    if (params_.target_kind == TargetKind::Probability) {
      for (int v = 0; v < end_; v += kLanes<A>) {
        store_integers(state_.target_class + v, IntVec<A>{} - 1);
        store(state_.point_mass + v, Vec<A>{});
        store(state_.scale + v, broadcast(scale));
      }
    } else {
      by_index_type(params_.target.type, [&](auto index) { load_indices<decltype(index)>(scale); });
    }
    if (params_.mode != CrossEntropyMode::Backward) return;
    const A* grad_output = static_cast<const A*>(params_.grad_output);
    for (int i = 0; i < tile_.count; ++i) {
      if (is_ignored(i)) continue;  // whatever grad_output is there, an infinity too
      state_.scale[i] = gradient_scale.of_row(grad_output[(tile_.first + i) * params_.grad_output_stride]);
    }
  }

  bool is_ignored(int i) const { return params_.target_kind != TargetKind::Probability && state_.target_class[i] < 0; }

  // Where every target is ignored the scale of a mean is infinite: an ignored position takes no part in it.
  template <class I>
  FUSED_LOSSES_FLATTEN void load_indices(A scale) {
    using Raw = typename VectorOf<I, kLanes<A>>::type;
    using Wide = typename VectorOf<int64_t, kLanes<A>>::type;
    const I* target = static_cast<const I*>(params_.target.data) + tile_.first;
    const A* weight = static_cast<const A*>(params_.target.class_weight);
    const A keep = static_cast<A>(1 - params_.label_smoothing);
    I padded[kPositions];
    if (tile_.count < end_) {  // what lies behind the tile is not ours to read
      std::memset(padded, 0, sizeof(padded));
      std::memcpy(padded, target, static_cast<size_t>(tile_.count) * sizeof(I));
      target = padded;
    }
    for (int v = 0; v < end_; v += kLanes<A>) {
      Raw raw;
      std::memcpy(&raw, target + v, sizeof(raw));
      const Wide index = __builtin_convertvector(raw, Wide);
      const IntVec<A> used = __builtin_convertvector(index != params_.target.ignore_index, IntVec<A>);
      store_integers(state_.target_class + v, __builtin_convertvector(index, IntVec<A>) | ~used);
      store(state_.point_mass + v, select(used, broadcast(keep), Vec<A>{}));
      store(state_.scale + v, select(used, broadcast(scale), Vec<A>{}));
    }
    if (weight == nullptr) return;
    for (int i = 0; i < tile_.count; ++i) {
      if (state_.target_class[i] >= 0) state_.point_mass[i] *= weight[state_.target_class[i]];
    }
  }

  void load_statistics() {
    for (int i = 0; i < end_; ++i) {
      const bool used = i < tile_.count;
      state_.max[i] = used ? static_cast<const A*>(params_.row_max)[tile_.first + i] : A(0);
      state_.sum[i] = used ? static_cast<const A*>(params_.row_sum)[tile_.first + i] : A(1);
      if constexpr (Mass::kReadsProbability) {
        state_.mass[i] = used ? static_cast<const A*>(params_.row_mass)[tile_.first + i] : A(0);
      } else {
        state_.others[i] = used ? static_cast<const A*>(params_.row_others)[tile_.first + i] : A(0);
      }
    }
    if constexpr (!Mass::kReadsProbability) {
      for (int v = 0; v < end_; v += kLanes<A>) store(state_.mass + v, dense_mass(v));
    }
  }

  // Without a dense mass that depends on the row, Q is one number, known without the rounding of a sum, and 0 where the
  // target is ignored.
  Vec<A> dense_mass(int v) const {
    return select(load_integers<A>(state_.target_class + v) < 0, Vec<A>{}, broadcast(mass_.total()));
  }
};

// run(tile) gives the sum of the losses of a tile of at most kCount positions. Blocks [block_begin, block_end) of
// positions, positions_per_block being a multiple of kCount.
template <int kCount, class Run>
inline void sum_blocks(const CrossEntropyParams& params, int64_t block_begin, int64_t block_end, const Run& run) {
  for (int64_t block = block_begin; block < block_end; ++block) {
    const auto [first, last] = range_of_block(block, params.positions_per_block, params.num_positions);
    CompensatedSum block_loss;
    for (int64_t position = first; position < last; position += kCount) {
      const int count = last - position < kCount ? static_cast<int>(last - position) : kCount;
      block_loss.add(run(Tile{position, count}));
    }
    if (params.block_losses != nullptr) params.block_losses[block] = block_loss.value();
  }
}

}  // namespace
}  // namespace fused_losses::cpu
