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

template <class T, class Mass, class Memory>
class TileKernel {
  using A = Accumulation<T>;
  using U = typename Mass::ProbabilityType;

 public:
  explicit TileKernel(const CrossEntropyParams& params) : params_(params), mass_(params) {}

  // Returns the sum of the tile's losses.
  double run(Tile tile) {
    tile_ = tile;
    const Memory memory(params_, tile);
    load_targets();
    double loss = 0;
    const bool single_chunk = params_.num_classes <= kChunkClasses;
    if (params_.mode == CrossEntropyMode::Backward) {
      load_statistics();
    } else {
      start_statistics();
      for (int64_t first = 0; first < params_.num_classes; first += kChunkClasses) {
        read(memory, first);
        add_to_statistics(memory, first);
      }
      loss = finish_losses();
    }
    if (params_.mode == CrossEntropyMode::Loss) return loss;
    const bool holds_exponentials = single_chunk && params_.mode == CrossEntropyMode::LossAndGradient;
    for (int64_t first = 0; first < params_.num_classes; first += kChunkClasses) {
      if (holds_exponentials) {
        to_gradient<true>(first);
      } else {
        read(memory, first);
        to_gradient<false>(first);
      }
      memory.write(static_cast<T*>(params_.gradient), params_.gradient_layout, first, chunk(first), logits_);
    }
    return loss;
  }

 private:
  int64_t chunk(int64_t first) const {
    return params_.num_classes - first < kChunkClasses ? params_.num_classes - first : kChunkClasses;
  }

  void read(const Memory& memory, int64_t first) {
    const int64_t count = chunk(first);
    if (tile_.count < kPositions) {  // the lanes without a position compute on zeros
      std::memset(logits_, 0, sizeof(logits_));
      if constexpr (Mass::kReadsProbability) std::memset(probability_, 0, sizeof(probability_));
    }
    memory.read(static_cast<const T*>(params_.logits), params_.logits_layout, first, count, logits_);
    if constexpr (Mass::kReadsProbability) {
      memory.read(static_cast<const U*>(params_.probability_target), params_.probability_layout, first, count,
                  probability_);
    }
  }

  void load_targets() {
    const A scale = static_cast<A>(params_.gradient_scale);
    for (int i = 0; i < kPositions; ++i) {
      state_.target_class[i] = -1;
      state_.point_mass[i] = 0;
      state_.scale[i] = params_.target_kind == TargetKind::Probability ? scale : A(0);
    }
    if (params_.target_kind != TargetKind::Probability) {
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
  void load_indices(A scale) {
    const I* target = static_cast<const I*>(params_.target.data) + tile_.first;
    const A* weight = static_cast<const A*>(params_.target.class_weight);
    const A keep = static_cast<A>(1 - params_.label_smoothing);
    for (int i = 0; i < tile_.count; ++i) {
      const bool used = target[i] != params_.target.ignore_index;
      state_.target_class[i] = used ? static_cast<Integer<A>>(target[i]) : Integer<A>(-1);
      state_.point_mass[i] = used ? keep : A(0);
      state_.scale[i] = used ? scale : A(0);
    }
    if (weight == nullptr) return;
    for (int i = 0; i < tile_.count; ++i) {
      if (state_.target_class[i] >= 0) state_.point_mass[i] *= weight[state_.target_class[i]];
    }
  }

  void load_statistics() {
    for (int i = 0; i < kPositions; ++i) {
      const bool used = i < tile_.count;
      state_.max[i] = used ? static_cast<const A*>(params_.row_max)[tile_.first + i] : A(0);
      state_.sum[i] = used ? static_cast<const A*>(params_.row_sum)[tile_.first + i] : A(1);
      if constexpr (Mass::kReadsProbability) {
        state_.mass[i] = used ? static_cast<const A*>(params_.row_mass)[tile_.first + i] : A(0);
      } else {
        state_.mass[i] = dense_mass(i);
      }
    }
  }

  // Without a dense mass that depends on the row, Q is one number, and 0 where the target is ignored.
  A dense_mass(int i) const { return state_.target_class[i] < 0 ? A(0) : mass_.total(); }

  void start_statistics() {
    for (int i = 0; i < kPositions; ++i) {
      state_.max[i] = -kInfinity<A>;
      state_.sum[i] = 0;
      state_.mass[i] = 0;
      state_.mass_times_x[i] = 0;
      state_.target_logit[i] = 0;
    }
  }

  // Adds a chunk of classes and leaves exp(x - running maximum) in the tile buffer.
  void add_to_statistics(const Memory& memory, int64_t first) {
    const int64_t count = chunk(first);
    const T* logits = static_cast<const T*>(params_.logits);
    for (int v = 0; v < kPositions; v += kLanes<A>) {
      const Vec<A> old_max = load(state_.max + v);
      Vec<A> max = old_max;
      for (int64_t c = 0; c < count; ++c) max = max_of(load(logits_ + c * kPositions + v), max);
      const Vec<A> shift = finite_shifts<A>(max);
      // A chunk is summed by itself first: thousands of classes in one float would lose the small ones.
      Vec<A> sum{};
      Vec<A> mass{};
      Vec<A> mass_times_x{};
      Vec<A> target_logit = load(state_.target_logit + v);
      const IntVec<A> target_class = load_integers<A>(state_.target_class + v);
      for (int64_t c = 0; c < count; ++c) {
        A* cell = logits_ + c * kPositions + v;
        memory.prefetch_next(logits, params_.logits_layout, first + c, v);
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
      const Vec<A> old_mass = load(state_.mass + v);
      const Vec<A> old_mass_times_x = load(state_.mass_times_x + v);
      store(state_.max + v, max);
      store(state_.sum + v, first == 0 ? sum : load(state_.sum + v) * exp<A>(old_max - shift) + sum);
      store(state_.mass + v, old_mass + mass);
      store(state_.mass_times_x + v, old_mass_times_x + old_mass * (finite_shifts<A>(old_max) - shift) + mass_times_x);
      store(state_.target_logit + v, target_logit);
    }
  }

  double finish_losses() {
    alignas(64) A losses[kPositions];
    const bool by_index = params_.target_kind != TargetKind::Probability;
    if constexpr (!Mass::kReadsProbability) {  // known without the rounding of a sum
      for (int i = 0; i < kPositions; ++i) state_.mass[i] = dense_mass(i);
    }
    for (int v = 0; v < kPositions; v += kLanes<A>) {
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
  void to_gradient(int64_t first) {
    const int64_t count = chunk(first);
    for (int v = 0; v < kPositions; v += kLanes<A>) {
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
        if constexpr (!kHoldsExponentials) exponential = exp<A>(exponential - shift);
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
  Tile tile_{};
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
