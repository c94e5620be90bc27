// Cross-entropy where the classes of a position are contiguous and many: a row at a time, SIMD along the classes.
//
// Note [One read of a row]
// A row is swept in blocks that stay in the first-level cache. Every block's exponentials are taken relative to the
// largest logit so far: one sweep replaces x by exp(x - max) in a stash, sums it, and finds the block's own maximum.
// Where that is larger the block is swept again with it, which happens to the first block, and to the k-th of a row in
// random order once in k times. When the row ends, every block's exponentials differ from the row's by one factor, so
// the gradient is one multiplication per class: memory is read once and hardly an exponential is computed twice. The
// stash is a row of the accumulation type that stays in the second-level cache; where the gradient is small enough to
// stay there too and has that type, it is the gradient row itself.
//
// Note [Prefetching]
// The hardware's prefetcher stops at the end of a page, and a block is a page of float: left to it, every block begins
// with a wait for memory while the arithmetic idles, and then the reverse. So the exponentials of one block ask for the
// lines of the next block but one: the next itself would be wanted before its last lines arrive. Past the end of the
// row lies the next row; past the end of memory a prefetch does nothing.
#pragma once

#include <cstdlib>

#include "../core/compensated_sum.h"
#include "cross_entropy_target.h"
#include "vec_math.h"

namespace fused_losses::cpu {
namespace {

constexpr int kMaxRowBlocks = 128;
constexpr int64_t kMinBlockClasses = 1024;
// A row whose logits and stash exceed the second-level cache is cheaper to read again than to stash.
constexpr int64_t kMaxStashedBytes = int64_t(1) << 20;

// Calls full(i, accumulator) for every whole register of [0, count) and partial(i, remaining) for the rest. Four
// accumulators: the exponential's chain is long, and an addition takes four cycles on two ports.
template <class A, class Full, class Partial>
inline void sweep(int64_t count, const Full& full, const Partial& partial) {
  constexpr int64_t kStep = kLanes<A>;
  int64_t i = 0;
  for (; i + 4 * kStep <= count; i += 4 * kStep) {
    full(i, 0);
    full(i + kStep, 1);
    full(i + 2 * kStep, 2);
    full(i + 3 * kStep, 3);
  }
  for (; i + kStep <= count; i += kStep) full(i, 0);
  if (i < count) partial(i, count - i);
}

// Whether the register that `sweep` numbers so is the first of a cache line.
template <class T>
constexpr bool begins_line(int slot) {
  return kStoredBytes<T> >= 64 || slot % static_cast<int>(64 / kStoredBytes<T>) == 0;
}

template <class A>
inline Vec<A> lane_numbers() {
  Vec<A> lanes;
  for (int lane = 0; lane < kLanes<A>; ++lane) lanes[lane] = static_cast<A>(lane);
  return lanes;
}

template <class A>
inline IntVec<A> first_lanes(int64_t count) {
  return lane_numbers<A>() < broadcast(static_cast<A>(count));
}

template <class A>
inline Vec<A> sum_of(const Vec<A> (&parts)[4]) {
  return (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

template <class A>
inline A max_of_lanes(const Vec<A> (&parts)[4]) {
  return max_lanes<A>(max_of(max_of(parts[0], parts[1]), max_of(parts[2], parts[3])));
}

// Exponentials are taken relative to this: a block (or row) that is all -inf must give 0, not NaN.
template <class A>
inline A finite_shift(A max) {
  return max == -kInfinity<A> ? A(0) : max;
}

// Of a block, or of a row.
template <class A>
struct Statistics {
  A max;
  A sum;           // of exp(x - max)
  A mass;          // Q
  A mass_times_x;  // sum of q (x - max)
};

template <class T>
FUSED_LOSSES_FLATTEN inline Accumulation<T> block_max(const T* x, int64_t count) {
  using A = Accumulation<T>;
  Vec<A> max[4];
  for (Vec<A>& part : max) part = broadcast(-kInfinity<A>);
  sweep<A>(
      count, [&](int64_t i, int slot) { max[slot] = max_of(load(x + i), max[slot]); },
      [&](int64_t i, int64_t rest) { max[0] = max_of(load_partial(x + i, rest, -kInfinity<A>), max[0]); });
  return max_of_lanes<A>(max);
}

template <bool kStash, class T, class Mass>
FUSED_LOSSES_FLATTEN inline Statistics<Accumulation<T>> block_sums(const T* x, int64_t first_class, int64_t count,
                                                                   const Mass& mass, Accumulation<T>* stash,
                                                                   Accumulation<T> shift) {
  using A = Accumulation<T>;
  Vec<A> max[4];
  for (Vec<A>& part : max) part = broadcast(-kInfinity<A>);
  Vec<A> sum[4] = {};
  Vec<A> mass_sum[4] = {};
  Vec<A> mass_times_x[4] = {};
  sweep<A>(
      count,
      [&](int64_t i, int slot) {
        if (begins_line<T>(slot)) __builtin_prefetch(x + i + 2 * count);  // Note [Prefetching]
        const Vec<A> value = load(x + i);
        max[slot] = max_of(value, max[slot]);
        const Vec<A> shifted = value - shift;
        const Vec<A> exponential = exp<A>(shifted);
        sum[slot] += exponential;
        if constexpr (kStash) store(stash + i, exponential);
        if constexpr (Mass::kDense) {
          const Vec<A> q = mass.at(first_class + i);
          if constexpr (Mass::kReadsProbability) mass_sum[slot] += q;
          mass_times_x[slot] += q * shifted;
        }
      },
      [&](int64_t i, int64_t rest) {
        const Vec<A> value = load_partial(x + i, rest, -kInfinity<A>);
        max[0] = max_of(value, max[0]);
        const Vec<A> shifted = value - shift;
        const Vec<A> exponential = exp<A>(shifted);
        sum[0] += exponential;
        if constexpr (kStash) store_partial(stash + i, exponential, rest);
        if constexpr (Mass::kDense) {
          const IntVec<A> valid = first_lanes<A>(rest);
          const Vec<A> q = mass.at(first_class + i, rest);
          if constexpr (Mass::kReadsProbability) mass_sum[0] += select(valid, q, Vec<A>{});
          mass_times_x[0] += select(valid, q * shifted, Vec<A>{});
        }
      });
  Statistics<A> result{max_of_lanes<A>(max), sum_lanes<A>(sum_of<A>(sum)), 0, 0};
  if constexpr (Mass::kReadsProbability) result.mass = sum_lanes<A>(sum_of<A>(mass_sum));
  if constexpr (Mass::kDense) result.mass_times_x = sum_lanes<A>(sum_of<A>(mass_times_x));
  return result;
}

// A block's sums relative to `max`, which is at least the largest logit of the block and of those before it. See Note
// [One read of a row].
template <bool kStash, class T, class Mass>
inline Statistics<Accumulation<T>> block_statistics(const T* x, int64_t first_class, int64_t count, const Mass& mass,
                                                    Accumulation<T>* stash, Accumulation<T> max_before) {
  using A = Accumulation<T>;
  A max = max_before == -kInfinity<A> ? block_max(x, count) : max_before;
  Statistics<A> result = block_sums<kStash>(x, first_class, count, mass, stash, finite_shift(max));
  if (result.max > max) {
    max = result.max;
    result = block_sums<kStash>(x, first_class, count, mass, stash, finite_shift(max));
  }
  result.max = max;
  return result;
}

// One row in blocks; keeps the blocks' maxima, by which the stash must be rescaled.
template <class T, class Mass>
class Row {
 public:
  using A = Accumulation<T>;

  Row(const CrossEntropyParams& params, const Mass& mass) : num_classes_(params.num_classes), mass_(mass) {
    // Enough classes a block that the maxima fit, in whole registers.
    const int64_t needed = (num_classes_ + kMaxRowBlocks - 1) / kMaxRowBlocks;
    block_classes_ = needed <= kMinBlockClasses ? kMinBlockClasses : (needed + 63) / 64 * 64;
    if constexpr (Mass::kDense && !Mass::kReadsProbability) sum_block_masses();
  }

  void start(const CrossEntropyParams& params, int64_t position) { mass_.start_row(params, position); }

  template <bool kStash>
  Statistics<A> statistics(const T* x, A* stash) {
    Statistics<A> blocks[kMaxRowBlocks];
    int num_blocks = 0;
    A max = -kInfinity<A>;
    for (int64_t first = 0; first < num_classes_; first += block_classes_, ++num_blocks) {
      const int64_t count = num_classes_ - first < block_classes_ ? num_classes_ - first : block_classes_;
      blocks[num_blocks] =
          block_statistics<kStash>(x + first, first, count, mass_, kStash ? stash + first : nullptr, max);
      max = blocks[num_blocks].max;
    }
    const A shift = finite_shift(max);
    double sum = 0;
    double mass_sum = 0;
    double mass_times_x = 0;
    for (int block = 0; block < num_blocks; ++block) {
      factors_[block] = exp<A>(broadcast(blocks[block].max - shift))[0];
      sum += static_cast<double>(blocks[block].sum) * factors_[block];
      if constexpr (Mass::kDense) {
        const A block_mass = Mass::kReadsProbability ? blocks[block].mass : block_masses_[block];
        mass_sum += block_mass;
        mass_times_x +=
            blocks[block].mass_times_x + static_cast<double>(block_mass) * (finite_shift(blocks[block].max) - shift);
      }
    }
    return {max, static_cast<A>(sum), static_cast<A>(mass_sum), static_cast<A>(mass_times_x)};
  }

  // gradient = stash * factor - q * scale, the factor being the block's.
  template <bool kStream>
  FUSED_LOSSES_FLATTEN void gradient_from_stash(const A* stash, T* gradient, A factor, A scale) const {
    int block = 0;
    for (int64_t first = 0; first < num_classes_; first += block_classes_, ++block) {
      const int64_t count = num_classes_ - first < block_classes_ ? num_classes_ - first : block_classes_;
      const A block_factor = factors_[block] * factor;
      const auto whole = [&](int64_t c) { return with_mass(load(stash + c) * block_factor, c, scale); };
      const auto partial = [&](int64_t c, int64_t rest) {
        const Vec<A> value = load_partial(stash + c, rest, A(0)) * block_factor;
        store_partial(gradient + c, with_mass(value, c, rest, scale), rest);
      };
      int64_t begin = first;
      if constexpr (kStream) {
        const int64_t head = elements_to_alignment(gradient + first);
        if (head > 0 && head < count) {
          partial(first, head);
          begin += head;
        }
      }
      sweep<A>(
          first + count - begin,
          [&](int64_t i, int) {
            if constexpr (kStream) {
              stream(gradient + begin + i, whole(begin + i));
            } else {
              store(gradient + begin + i, whole(begin + i));
            }
          },
          [&](int64_t i, int64_t rest) { partial(begin + i, rest); });
    }
  }

  // gradient = exp(x - max) * factor - q * scale.
  FUSED_LOSSES_FLATTEN void gradient_from_logits(const T* x, T* gradient, A max, A factor, A scale) const {
    const A shift = finite_shift(max);
    sweep<A>(
        num_classes_,
        [&](int64_t i, int slot) {
          if (begins_line<T>(slot)) __builtin_prefetch(x + i + kMinBlockClasses);  // Note [Prefetching]
          store(gradient + i, with_mass(exp<A>(load(x + i) - shift) * factor, i, scale));
        },
        [&](int64_t i, int64_t rest) {
          const Vec<A> value = exp<A>(load_partial(x + i, rest, A(0)) - shift) * factor;
          store_partial(gradient + i, with_mass(value, i, rest, scale), rest);
        });
  }

  A mass_at(int64_t c) const { return Mass::kDense ? mass_.at(c, 1)[0] : A(0); }
  A mass_total(A row_mass) const {
    if constexpr (Mass::kReadsProbability) {
      return row_mass;
    } else {
      return mass_.total();
    }
  }

 private:
  Vec<A> with_mass(Vec<A> value, int64_t c, A scale) const {
    if constexpr (Mass::kDense) value -= mass_.at(c) * scale;
    return value;
  }
  Vec<A> with_mass(Vec<A> value, int64_t c, int64_t rest, A scale) const {
    if constexpr (Mass::kDense) value -= mass_.at(c, rest) * scale;
    return value;
  }
  // Label smoothing: a block's mass is the same in every row.
  FUSED_LOSSES_FLATTEN void sum_block_masses() {
    int block = 0;
    for (int64_t first = 0; first < num_classes_; first += block_classes_, ++block) {
      const int64_t count = num_classes_ - first < block_classes_ ? num_classes_ - first : block_classes_;
      Vec<A> total{};
      sweep<A>(
          count, [&](int64_t i, int) { total += mass_.at(first + i); },
          [&](int64_t i, int64_t rest) { total += select(first_lanes<A>(rest), mass_.at(first + i, rest), Vec<A>{}); });
      block_masses_[block] = sum_lanes<A>(total);
    }
  }

  int64_t num_classes_;
  int64_t block_classes_;
  Mass mass_;
  A factors_[kMaxRowBlocks];
  A block_masses_[kMaxRowBlocks];
};

// The gradient of an ignored row is 0 * softmax: zeros, or NaN throughout where the softmax is NaN (as in torch).
template <class T>
FUSED_LOSSES_FLATTEN inline void ignored_gradient(const T* x, T* gradient, int64_t num_classes) {
  using A = Accumulation<T>;
  IntVec<A> is_nan[4] = {};
  Vec<A> max[4];
  for (Vec<A>& part : max) part = broadcast(-kInfinity<A>);
  const auto inspect = [&](Vec<A> value, int slot) {
    max[slot] = max_of(value, max[slot]);
    is_nan[slot] |= value != value;
  };
  sweep<A>(
      num_classes, [&](int64_t i, int slot) { inspect(load(x + i), slot); },
      [&](int64_t i, int64_t rest) { inspect(load_partial(x + i, rest, -kInfinity<A>), 0); });
  const A row_max = max_of_lanes<A>(max);
  const bool undefined =
      any_lane(is_nan[0] | is_nan[1] | is_nan[2] | is_nan[3]) || row_max == kInfinity<A> || row_max == -kInfinity<A>;
  const Vec<A> value = broadcast(undefined ? static_cast<A>(__builtin_nan("")) : A(0));
  sweep<A>(
      num_classes, [&](int64_t i, int) { store(gradient + i, value); },
      [&](int64_t i, int64_t rest) { store_partial(gradient + i, value, rest); });
}

// Blocks [block_begin, block_end) of positions.
template <class T, class Mass>
void sweep_rows(const CrossEntropyParams& params, int64_t block_begin, int64_t block_end) {
  using A = Accumulation<T>;
  const bool wants_gradient = params.mode == CrossEntropyMode::LossAndGradient;
  const int64_t num_classes = params.num_classes;
  A* scratch = nullptr;
  bool stashes = wants_gradient && num_classes * static_cast<int64_t>(sizeof(A)) <= kMaxStashedBytes;
  const bool streams = params.stream_gradient;
  // Where the stash is not the gradient row itself.
  if ((!kSameType<T, A> || streams) && stashes) {
    scratch = static_cast<A*>(std::malloc(static_cast<size_t>(num_classes) * sizeof(A)));
    stashes = scratch != nullptr;
  }
  const T* logits = static_cast<const T*>(params.logits);
  T* gradients = static_cast<T*>(params.gradient);
  Row<T, Mass> row(params, Mass(params));
  const auto offset_of = [&](const ClassLayout& layout, int64_t position) {
    return layout.offset(position / params.inner_size, position % params.inner_size);
  };

  for (int64_t block = block_begin; block < block_end; ++block) {
    const int64_t first = block * params.positions_per_block;
    const int64_t last = first + params.positions_per_block < params.num_positions ? first + params.positions_per_block
                                                                                   : params.num_positions;
    CompensatedSum block_loss;
    for (int64_t position = first; position < last; ++position) {
      const T* x = logits + offset_of(params.logits_layout, position);
      T* gradient = gradients + offset_of(params.gradient_layout, position);
      const PointMass<A> point = point_mass<A>(params, position);
      const bool ignored = params.target_kind != TargetKind::Probability && point.target_class < 0;
      if (ignored) {
        if (params.mode != CrossEntropyMode::Loss) ignored_gradient(x, gradient, num_classes);
        if (params.losses != nullptr) static_cast<A*>(params.losses)[position] = 0;
        continue;
      }
      row.start(params, position);
      // Read before the gradient is written: it may be written over the logits.
      const A target_logit = point.target_class >= 0 ? load_scalar(x + point.target_class) : A(0);
      const A* stash = nullptr;
      Statistics<A> statistics;
      A scale = static_cast<A>(params.gradient_scale);
      if (params.mode == CrossEntropyMode::Backward) {
        statistics.max = static_cast<const A*>(params.row_max)[position];
        statistics.sum = static_cast<const A*>(params.row_sum)[position];
        statistics.mass = params.row_mass ? static_cast<const A*>(params.row_mass)[position] : A(0);
        scale *= static_cast<const A*>(params.grad_output)[position * params.grad_output_stride];
      } else {
        if (stashes) {
          A* row_stash = scratch;
          if constexpr (kSameType<T, A>) row_stash = scratch != nullptr ? scratch : gradient;
          statistics = row.template statistics<true>(x, row_stash);
          stash = row_stash;
        } else {
          statistics = row.template statistics<false>(x, nullptr);
        }
        const A log_sum = log<A>(broadcast(statistics.sum))[0];
        A loss = 0;
        if (point.target_class >= 0) loss = point.mass * (log_sum - (target_logit - finite_shift(statistics.max)));
        if constexpr (Mass::kDense) loss += row.mass_total(statistics.mass) * log_sum - statistics.mass_times_x;
        block_loss.add(static_cast<double>(loss));
        if (params.losses != nullptr) static_cast<A*>(params.losses)[position] = loss;
        if (params.row_max != nullptr) {
          static_cast<A*>(params.row_max)[position] = statistics.max;
          static_cast<A*>(params.row_sum)[position] = statistics.sum;
          if (params.row_mass != nullptr) static_cast<A*>(params.row_mass)[position] = statistics.mass;
        }
        if (!wants_gradient) continue;
      }
      const A mass = row.mass_total(statistics.mass) + point.mass;
      const A inverse_sum = A(1) / statistics.sum;
      const A factor = mass * scale * inverse_sum;
      if (stash != nullptr && streams) {
        row.template gradient_from_stash<true>(stash, gradient, factor, scale);
      } else if (stash != nullptr) {
        row.template gradient_from_stash<false>(stash, gradient, factor, scale);
      } else {
        row.gradient_from_logits(x, gradient, statistics.max, factor, scale);
      }
      if (point.target_class >= 0) {
        // Formed in one piece before it is rounded: (Q + y) p - q - y with y (p - 1) kept together.
        const A p = exp<A>(broadcast(target_logit - finite_shift(statistics.max)))[0] * inverse_sum;
        const A q = row.mass_at(point.target_class);
        const A value = row.mass_total(statistics.mass) * p - q + point.mass * (p - A(1));
        store_scalar(gradient + point.target_class, value * scale);
      }
    }
    if (params.block_losses != nullptr) params.block_losses[block] = block_loss.value();
  }
  if (streams) end_streaming();
  std::free(scratch);
}

}  // namespace
}  // namespace fused_losses::cpu
