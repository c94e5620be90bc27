// Cross-entropy a tile of positions at a time, SIMD along the positions: for few contiguous classes and for a strided
// class axis. The tile buffer stays in the first-level cache; classes that do not fit come in chunks, with an online
// maximum, and are read a second time for the gradient.
#pragma once

#include "cross_entropy_tile_memory.h"

namespace fused_losses::cpu {
namespace {

constexpr int64_t kChunkClasses = kMaxTransposedClasses;  // of a tile that are in the buffer at a time
constexpr int64_t kSummedClasses = 8;                     // that are summed before they are added to a larger sum
constexpr int64_t kTileElements = kChunkClasses * kPositions;

template <class T, class Mass, class Memory>
class TileKernel : private Positions<T, Mass> {
  using Base = Positions<T, Mass>;
  using typename Base::A;
  using U = typename Mass::ProbabilityType;
  using Base::end_;
  using Base::has_terms_;
  using Base::logit_scale_;
  using Base::mass_;
  using Base::params_;
  using Base::state_;
  using Base::tile_;

 public:
  explicit TileKernel(const CrossEntropyParams& params) : Base(params), memory_(params) {}

  // Returns the sum of the tile's losses.
  double run(Tile tile) {
    Base::start(tile);
    memory_.start(tile);
    double loss = 0;
    const bool single_chunk = params_.num_classes <= kChunkClasses;
    if (params_.mode == CrossEntropyMode::Backward) {
      // Of fewer classes no kernel is another one than this.
      if (!single_chunk && Base::lacks_statistics()) find_statistics_of_ignored();
      if (has_terms_) read_target_logits();
    } else {
      if (params_.mode == CrossEntropyMode::LossAndGradient) {
        find_statistics<true>();
      } else {
        find_statistics<false>();
      }
      loss = Base::finish_losses();
    }
    if (params_.mode == CrossEntropyMode::Loss) return loss;
    Base::add_row_terms();
    const bool holds_exponentials = single_chunk && params_.mode == CrossEntropyMode::LossAndGradient;
    for (int64_t first = 0; first < params_.num_classes; first += kChunkClasses) {
      if (holds_exponentials) {
        to_gradient<true>(first);
      } else {
        read(first);
        to_gradient<false>(first);
      }
      memory_.write(static_cast<T*>(params_.gradient), params_.gradient_layout, first, chunk(first), logits_);
    }
    return loss;
  }

 private:
  int64_t chunk(int64_t first) const {
    return params_.num_classes - first < kChunkClasses ? params_.num_classes - first : kChunkClasses;
  }

  template <bool kGradient>
  void find_statistics() {
    for (int64_t first = 0; first < params_.num_classes; first += kChunkClasses) {
      read(first);
      add_to_statistics<kGradient>(first);
    }
  }

  // Those that a forward did not leave, without which the gradient would not be NaN where the softmax is.
  void find_statistics_of_ignored() {
    const TileState<A> known = state_;
    find_statistics<false>();
    for (int i = 0; i < end_; ++i) {
      if (known.sum[i] == 0) {
        state_.sum[i] = state_.others[i];
      } else {
        state_.max[i] = known.max[i];
        state_.others[i] = known.others[i];
      }
      state_.mass[i] = known.mass[i];
    }
  }

  void read(int64_t first) {
    const int64_t count = chunk(first);
    if (tile_.count < end_) {  // the lanes without a position compute on zeros
      clear_last_register(logits_, count);
      if constexpr (Mass::kReadsProbability) clear_last_register(probability_, count);
    }
    memory_.read(static_cast<const T*>(params_.logits), params_.logits_layout, first, count, logits_);
    if constexpr (Mass::kReadsProbability) {
      memory_.read(static_cast<const U*>(params_.probability_target), params_.probability_layout, first, count,
                   probability_);
    }
  }

  // Before a backward has come to their classes.
  void read_target_logits() {
    for (int i = 0; i < end_; ++i) state_.target_logit[i] = 0;
    for (int i = 0; i < tile_.count; ++i) {
      const int64_t target_class = state_.target_class[i];
      if (target_class < 0) continue;
      const ClassLayout& layout = params_.logits_layout;
      const T* logits =
          static_cast<const T*>(params_.logits) + layout.offset(place_of(tile_.first + i, params_.inner_size));
      state_.target_logit[i] = load_scalar(logits + target_class * layout.class_stride);
    }
  }

  void clear_last_register(A* tile, int64_t num_classes) const {
    for (int64_t c = 0; c < num_classes; ++c) store(tile + c * kPositions + end_ - kLanes<A>, Vec<A>{});
  }

  template <bool kGradient>
  void add_to_statistics(int64_t first) {
    if (first == 0) {
      add_to_statistics<kGradient, true>(first);
    } else {
      add_to_statistics<kGradient, false>(first);
    }
  }

  // Adds a chunk of classes and, for the gradient, leaves exp(x - running maximum) in the tile buffer.
  template <bool kGradient, bool kFirst>
  FUSED_LOSSES_FLATTEN void add_to_statistics(int64_t first) {
    const int64_t count = chunk(first);
    const auto next = memory_.next_tile(static_cast<const T*>(params_.logits), params_.logits_layout, first);
    const auto gradient = memory_.this_tile(static_cast<T*>(params_.gradient), params_.gradient_layout, first);
    for (int v = 0; v < end_; v += kLanes<A>) {
      const Vec<A> old_max = kFirst ? broadcast(-kInfinity<A>) : load(state_.max + v);
      Vec<A> max = old_max;
      for (int64_t c = 0; c < count; ++c) max = max_of(load(logits_ + c * kPositions + v), max);
      const Vec<A> shift = finite_shifts<A>(max);
      // Sums of a few classes, then of a chunk, then of all: each addition to a large sum would round away half an ULP.
      Vec<A> others{};
      Vec<A> mass{};
      Vec<A> mass_times_x{};
      const Vec<A> rescale = kFirst ? Vec<A>{} : exp<A>(shifted_logit(old_max, shift, logit_scale_));
      Vec<A> target_logit = kFirst ? Vec<A>{} : load(state_.target_logit + v);
      Vec<A> target_exponential = kFirst ? Vec<A>{} : load(state_.target_exponential + v) * rescale;
      const IntVec<A> target_class = load_integers<A>(state_.target_class + v);
      for (int64_t begin = 0; begin < count; begin += kSummedClasses) {
        const int64_t end = count - begin < kSummedClasses ? count : begin + kSummedClasses;
        Vec<A> few_others{};
        Vec<A> few_mass{};
        Vec<A> few_mass_times_x{};
        for (int64_t c = begin; c < end; ++c) {
          A* cell = logits_ + c * kPositions + v;
          next.prefetch(c, v);
          if constexpr (kGradient) gradient.prefetch(c, v);
          const Vec<A> x = load(cell);
          const Vec<A> shifted = shifted_logit(x, shift, logit_scale_);
          const Vec<A> exponential = exp<A>(shifted);
          if constexpr (kGradient) store(cell, exponential);
          if constexpr (Mass::kReadsProbability) {
            few_others += exponential;
          } else {
            const IntVec<A> is_target = target_class == static_cast<Integer<A>>(first + c);
            few_others += select(is_target, Vec<A>{}, exponential);
            target_logit = select(is_target, x, target_logit);
            target_exponential = select(is_target, exponential, target_exponential);
          }
          if constexpr (Mass::kDense) {
            const Vec<A> q = mass_.of_class(first + c, probability(c, v));
            few_mass += q;
            few_mass_times_x += q * shifted;
          }
        }
        others += few_others;
        if constexpr (Mass::kDense) {
          mass += few_mass;
          mass_times_x += few_mass_times_x;
        }
      }
      if constexpr (!kFirst) {
        others += load(state_.others + v) * rescale;
        const Vec<A> old_mass = load(state_.mass + v);
        mass += old_mass;
        const Vec<A> change = shifted_logit(finite_shifts<A>(old_max), shift, logit_scale_);
        mass_times_x += load(state_.mass_times_x + v) + old_mass * change;
      }
      store(state_.max + v, max);
      store(state_.others + v, others);
      store(state_.target_logit + v, target_logit);
      store(state_.target_exponential + v, target_exponential);
      if constexpr (Mass::kDense) {
        store(state_.mass + v, mass);
        store(state_.mass_times_x + v, mass_times_x);
      }
    }
  }

  template <bool kHoldsExponentials>
  FUSED_LOSSES_FLATTEN void to_gradient(int64_t first) {
    const int64_t count = chunk(first);
    const auto next = memory_.next_tile(static_cast<const T*>(params_.logits), params_.logits_layout, first);
    const auto destination = memory_.this_tile(static_cast<T*>(params_.gradient), params_.gradient_layout, first);
    for (int v = 0; v < end_; v += kLanes<A>) {
      const Vec<A> shift = finite_shifts<A>(load(state_.max + v));
      const Vec<A> scale = load(state_.scale + v);
      const Vec<A> per_sum = scale / load(state_.sum + v);
      const Vec<A> mass_factor = load(state_.mass + v) * per_sum;
      Vec<A> point_factor = load(state_.point_mass + v) * per_sum;
      Vec<A> at_target = Mass::kReadsProbability ? Vec<A>{} : -load(state_.others + v) * point_factor;
      if (!Mass::kDense && has_terms_) {
        at_target += mass_factor * load(state_.target_exponential + v);
        point_factor += mass_factor;
      }
      const IntVec<A> target_class = load_integers<A>(state_.target_class + v);
      // An ignored position has no mass at all.
      const Vec<A> mass_scale =
          params_.target_kind == TargetKind::Probability ? scale : select(target_class < 0, Vec<A>{}, scale);
      for (int64_t c = 0; c < count; ++c) {
        A* cell = logits_ + c * kPositions + v;
        Vec<A> exponential = load(cell);
        if constexpr (!kHoldsExponentials) {
          next.prefetch(c, v);
          destination.prefetch(c, v);
          exponential = exp<A>(shifted_logit(exponential, shift, logit_scale_));
        }
        // y (p - [c = t]), which probability targets have not, and Q p - q are differences of like terms: each is
        // formed before they are added.
        Vec<A> gradient{};
        if constexpr (!Mass::kReadsProbability) {
          const IntVec<A> is_target = target_class == static_cast<Integer<A>>(first + c);
          gradient = select(is_target, at_target, exponential * point_factor);
        }
        if constexpr (Mass::kDense) {
          gradient +=
              multiply_subtract(exponential, mass_factor, mass_.of_class(first + c, probability(c, v)) * mass_scale);
        }
        store(cell, gradient);
      }
    }
  }

  Vec<A> probability(int64_t c, int v) const {
    if constexpr (Mass::kReadsProbability) {
      return load(probability_ + c * kPositions + v);
    } else {
      return Vec<A>{};
    }
  }

  Memory memory_;
  alignas(64) A logits_[kTileElements];
  alignas(64) A probability_[Mass::kReadsProbability ? kTileElements : 1];
};

template <class T, class Mass, class Memory>
void sweep_tiles(const CrossEntropyParams& params, int64_t block_begin, int64_t block_end) {
  TileKernel<T, Mass, Memory> kernel(params);
  sum_blocks<kPositions>(params, block_begin, block_end, [&](Tile tile) { return kernel.run(tile); });
}

}  // namespace
}  // namespace fused_losses::cpu
