// Cross-entropy a tile of positions at a time, SIMD along the positions: for few contiguous classes and for a strided
// class axis. The tile buffer stays in the first-level cache; classes that do not fit come in chunks, with an online
// maximum, and are read a second time for the gradient.
#pragma once

#include "../core/compensated_sum.h"
#include "cross_entropy_tile_memory.h"
#include "vec_math.h"

namespace fused_losses::cpu {
namespace {

constexpr int64_t kChunkClasses = 64;  // of a tile that are in the buffer at a time
constexpr int64_t kTileElements = kChunkClasses * kPositions;

// What is known of each position of a tile: see Note [Target mass].
template <class A>
struct TileState {
  alignas(64) A max[kPositions];
  alignas(64) A sum[kPositions];
  alignas(64) A mass[kPositions];
  alignas(64) A mass_times_x[kPositions];
  alignas(64) A target_logit[kPositions];
  alignas(64) A point_mass[kPositions];
  alignas(64) A scale[kPositions];
  alignas(64) Integer<A> target_class[kPositions];  // -1: none
};

template <class A>
inline Vec<A> finite_shifts(Vec<A> max) {
  return select(max == broadcast(-kInfinity<A>), Vec<A>{}, max);
}

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

template <class T, class Mass, class Memory>
class TileKernel {
  using A = Accumulation<T>;
  using U = typename Mass::ProbabilityType;

 public:
  explicit TileKernel(const CrossEntropyParams& params) : params_(params), mass_(params), memory_(params) {}

  // Returns the sum of the tile's losses.
  double run(Tile tile) {
    tile_ = tile;
    end_ = (tile.count + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
    memory_.start(tile);
    load_targets();
    double loss = 0;
    const bool single_chunk = params_.num_classes <= kChunkClasses;
    if (params_.mode == CrossEntropyMode::Backward) {
      load_statistics();
    } else {
      for (int64_t first = 0; first < params_.num_classes; first += kChunkClasses) {
        read(first);
        if (first == 0) {
          add_to_statistics<true>(first);
        } else {
          add_to_statistics<false>(first);
        }
      }
      loss = finish_losses();
    }
    if (params_.mode == CrossEntropyMode::Loss) return loss;
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

  void clear_last_register(A* tile, int64_t num_classes) const {
    for (int64_t c = 0; c < num_classes; ++c) store(tile + c * kPositions + end_ - kLanes<A>, Vec<A>{});
  }

  void load_targets() {
    const A scale = static_cast<A>(params_.gradient_scale);
    if (params_.target_kind == TargetKind::Probability) {
      for (int v = 0; v < end_; v += kLanes<A>) {
        store_integers(state_.target_class + v, IntVec<A>{} - 1);
        store(state_.point_mass + v, Vec<A>{});
        store(state_.scale + v, broadcast(scale));
      }
    } else {
      switch (params_.target.type) {
        case IndexType::Int64:
          load_indices<int64_t>(scale);
          break;
        case IndexType::Int32:
          load_indices<int32_t>(scale);
          break;
        case IndexType::UInt8:
          load_indices<uint8_t>(scale);
          break;
      }
    }
    if (params_.mode == CrossEntropyMode::Backward) {
      const A* grad_output = static_cast<const A*>(params_.grad_output);
      for (int i = 0; i < tile_.count; ++i) {
        state_.scale[i] *= grad_output[(tile_.first + i) * params_.grad_output_stride];
      }
    }
  }

  // Where every target is ignored the scale of a mean is infinite: an ignored position takes no part in it.
  template <class I>
  FUSED_LOSSES_FLATTEN void load_indices(A scale) {
    using Raw = typename VectorOf<I, kLanes<A>>::type;
    using Wide = typename VectorOf<int64_t, kLanes<A>>::type;
    const I* target = static_cast<const I*>(params_.target.data) + tile_.first;
    const A* weight = static_cast<const A*>(params_.target.class_weight);
    const A keep = static_cast<A>(1 - params_.label_smoothing);
    I padded[kPositions];
    if (tile_.count < kPositions) {  // what lies behind the tile is not ours to read
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

  // Adds a chunk of classes and leaves exp(x - running maximum) in the tile buffer.
  template <bool kFirst>
  FUSED_LOSSES_FLATTEN void add_to_statistics(int64_t first) {
    const int64_t count = chunk(first);
    const auto next = memory_.next_tile(static_cast<const T*>(params_.logits), params_.logits_layout, first);
    const bool writes_gradient = params_.mode == CrossEntropyMode::LossAndGradient;
    const auto gradient = memory_.this_tile(static_cast<T*>(params_.gradient), params_.gradient_layout, first);
    for (int v = 0; v < end_; v += kLanes<A>) {
      const Vec<A> old_max = kFirst ? broadcast(-kInfinity<A>) : load(state_.max + v);
      Vec<A> max = old_max;
      for (int64_t c = 0; c < count; ++c) max = max_of(load(logits_ + c * kPositions + v), max);
      const Vec<A> shift = finite_shifts<A>(max);
      // A chunk is summed by itself first: thousands of classes in one float would lose the small ones.
      Vec<A> sum{};
      Vec<A> mass{};
      Vec<A> mass_times_x{};
      Vec<A> target_logit = kFirst ? Vec<A>{} : load(state_.target_logit + v);
      const IntVec<A> target_class = load_integers<A>(state_.target_class + v);
      for (int64_t c = 0; c < count; ++c) {
        A* cell = logits_ + c * kPositions + v;
        next.prefetch(c, v);
        if (writes_gradient) gradient.prefetch(c, v);
        const Vec<A> x = load(cell);
        const Vec<A> shifted = x - shift;
        const Vec<A> exponential = exp<A>(shifted);
        sum += exponential;
        store(cell, exponential);
        target_logit = select(target_class == static_cast<Integer<A>>(first + c), x, target_logit);
        if constexpr (Mass::kDense) {
          const Vec<A> q = mass_.of_class(first + c, probability(c, v));
          mass += q;
          mass_times_x += q * shifted;
        }
      }
      if constexpr (!kFirst) {
        sum += load(state_.sum + v) * exp<A>(old_max - shift);
        const Vec<A> old_mass = load(state_.mass + v);
        mass += old_mass;
        mass_times_x += load(state_.mass_times_x + v) + old_mass * (finite_shifts<A>(old_max) - shift);
      }
      store(state_.max + v, max);
      store(state_.sum + v, sum);
      store(state_.target_logit + v, target_logit);
      if constexpr (Mass::kDense) {
        store(state_.mass + v, mass);
        store(state_.mass_times_x + v, mass_times_x);
      }
    }
  }

  FUSED_LOSSES_FLATTEN double finish_losses() {
    alignas(64) A losses[kPositions];
    const bool by_index = params_.target_kind != TargetKind::Probability;
    for (int v = 0; v < end_; v += kLanes<A>) {
      if constexpr (!Mass::kReadsProbability) store(state_.mass + v, dense_mass(v));
      const Vec<A> log_sum = log<A>(load(state_.sum + v));
      const Vec<A> shift = finite_shifts<A>(load(state_.max + v));
      Vec<A> loss{};
      if (by_index) loss = load(state_.point_mass + v) * (log_sum - (load(state_.target_logit + v) - shift));
      if constexpr (Mass::kDense) loss += load(state_.mass + v) * log_sum - load(state_.mass_times_x + v);
      if (by_index) loss = select(load_integers<A>(state_.target_class + v) < 0, Vec<A>{}, loss);
      store(losses + v, loss);
    }
    const double total = sum_in_double(losses, tile_.count);
    write_positions(params_.losses, losses);
    write_positions(params_.row_max, state_.max);
    write_positions(params_.row_sum, state_.sum);
    if constexpr (Mass::kReadsProbability) write_positions(params_.row_mass, state_.mass);
    return total;
  }

  void write_positions(void* memory, const A* values) const {
    if (memory == nullptr) return;
    std::memcpy(static_cast<A*>(memory) + tile_.first, values, static_cast<size_t>(tile_.count) * sizeof(A));
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
      const Vec<A> point = load(state_.point_mass + v) * scale;
      const Vec<A> point_factor = load(state_.point_mass + v) * per_sum;
      const Vec<A> mass_factor = load(state_.mass + v) * per_sum;
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
          exponential = exp<A>(exponential - shift);
        }
        // y (p - [c = t]) and Q p - q are differences of like terms: each is formed before they are added.
        const IntVec<A> is_target = target_class == static_cast<Integer<A>>(first + c);
        Vec<A> gradient = exponential * point_factor - select(is_target, point, Vec<A>{});
        if constexpr (Mass::kDense) {
          gradient += exponential * mass_factor - mass_.of_class(first + c, probability(c, v)) * mass_scale;
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

  const CrossEntropyParams& params_;
  Mass mass_;
  Memory memory_;
  Tile tile_{};
  int end_ = 0;  // of the registers that hold positions
  TileState<A> state_;
  alignas(64) A logits_[kTileElements];
  alignas(64) A probability_[Mass::kReadsProbability ? kTileElements : 1];
};

// Blocks [block_begin, block_end) of positions; positions_per_block is a multiple of kPositions.
template <class T, class Mass, class Memory>
void sweep_tiles(const CrossEntropyParams& params, int64_t block_begin, int64_t block_end) {
  TileKernel<T, Mass, Memory> kernel(params);
  for (int64_t block = block_begin; block < block_end; ++block) {
    const int64_t first = block * params.positions_per_block;
    const int64_t last = first + params.positions_per_block < params.num_positions ? first + params.positions_per_block
                                                                                   : params.num_positions;
    CompensatedSum block_loss;
    for (int64_t position = first; position < last; position += kPositions) {
      const int count = last - position < kPositions ? static_cast<int>(last - position) : kPositions;
      block_loss.add(kernel.run({position, count}));
    }
    if (params.block_losses != nullptr) params.block_losses[block] = block_loss.value();
  }
}

}  // namespace
}  // namespace fused_losses::cpu
