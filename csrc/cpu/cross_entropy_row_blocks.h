// One row of cross-entropy in blocks: its statistics, and its gradient from a stash or from the logits.
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
// Note [Same bits without a stash]
// A gradient must not depend on whether a stash was kept for it. Where there is none (a backward, a row too long) the
// exponentials are computed again, each block's relative to the same largest logit so far and multiplied by the same
// factor. The statistics hold the row's maximum: once a block has it, the blocks behind are not searched for theirs.
#pragma once

#include "cross_entropy_row_sweeps.h"
#include "kernels.h"

namespace fused_losses::cpu {
namespace {

constexpr int kMaxRowBlocks = 128;
static_assert(kMaxTransformedClasses <= kMaxRowBlocks * kMaxBlockUnits);
constexpr int64_t kMinBlockClasses = kPageClasses;

// Of a block, or of a row.
template <class A>
struct Statistics {
  A max;
  A others;        // of exp(x - max), without the target class
  A mass;          // Q
  A mass_times_x;  // sum of q (x - max)
};

// A block's sums relative to `max`, which is at least the largest logit of the block and of those before it. See Note
// [One read of a row]. `target` is the target's number in the block, or -1.
template <bool kStash, class T, class Mass, class Slopes>
inline Statistics<Accumulation<T>> block_statistics(const T* x, int64_t first_class, int64_t count, const Mass& mass,
                                                    const Slopes& slopes, Accumulation<T>* stash,
                                                    Accumulation<T> max_before, Accumulation<T> logit_scale,
                                                    int64_t target, Accumulation<T> target_logit) {
  using A = Accumulation<T>;
  const int64_t ahead = 2 * count;
  A max = first_class == 0 ? max_lanes<A>(lane_maxima(x, count)) : max_before;
  LaneStatistics<A> lanes = lane_sums_beside<kStash>(target, target_logit, x, first_class, count, mass, slopes, stash,
                                                     max, logit_scale, ahead);
  if (const A block_max = max_lanes<A>(lanes.max); block_max > max) {
    max = block_max;
    lanes = lane_sums_beside<kStash>(target, target_logit, x, first_class, count, mass, slopes, stash, max, logit_scale,
                                     ahead);
  }
  Statistics<A> result{max, sum_lanes<A>(lanes.sum), 0, 0};
  if (target >= 0 && target_logit != max) {
    result.others -= exp<A>(broadcast(shifted_logit(target_logit, finite_shift(max), logit_scale)))[0];
  }
  if constexpr (Mass::kReadsProbability) result.mass = sum_lanes<A>(lanes.mass);
  if constexpr (Mass::kDense) result.mass_times_x = sum_lanes<A>(lanes.mass_times_x);
  return result;
}

// Keeps the maxima of a row's blocks, by which the stash must be rescaled.
template <class T, class Mass, bool kTransformed>
class RowBlocks {
 public:
  using A = Accumulation<T>;
  using Units = LogitUnits<T, kTransformed>;

  RowBlocks(const CrossEntropyParams& params, const Mass& mass)
      : num_classes_(params.num_classes), units_({params.logit_scale, params.softcap}), mass_(mass) {
    // Enough classes a block that the maxima fit, in whole registers.
    const int64_t needed = (num_classes_ + kMaxRowBlocks - 1) / kMaxRowBlocks;
    block_classes_ = needed <= kMinBlockClasses ? kMinBlockClasses : (needed + 63) / 64 * 64;
    if constexpr (Mass::kDense && !Mass::kReadsProbability) sum_block_masses();
  }

  void start(const CrossEntropyParams& params, int64_t position) { mass_.start_row(params, position); }

  const Units& units() const { return units_; }

  // `target_logit` is a unit, as the maximum of the result.
  template <bool kStash>
  Statistics<A> statistics(const T* x, A* stash, int64_t target_class, A target_logit) {
    Statistics<A> blocks[kMaxRowBlocks];
    int num_blocks = 0;
    A max = -kInfinity<A>;
    for (int64_t first = 0; first < num_classes_; first += block_classes_, ++num_blocks) {
      const int64_t count = num_classes_ - first < block_classes_ ? num_classes_ - first : block_classes_;
      const int64_t target = target_class >= first && target_class < first + count ? target_class - first : -1;
      const auto* units = units_.template of_block<kStash>(x + first, count);
      blocks[num_blocks] =
          block_statistics<kStash>(units, first, count, mass_, units_.slopes(), kStash ? stash + first : nullptr, max,
                                   units_.factor, target, target_logit);
      max = maxima_[num_blocks] = blocks[num_blocks].max;
    }
    const A shift = finite_shift(max);
    double others = 0;
    double mass_sum = 0;
    double mass_times_x = 0;
    for (int block = 0; block < num_blocks; ++block) {
      factors_[block] = block_factor(blocks[block].max, shift);
      others += static_cast<double>(blocks[block].others) * factors_[block];
      if constexpr (Mass::kDense) {
        const A block_mass = Mass::kReadsProbability ? blocks[block].mass : block_masses_[block];
        mass_sum += block_mass;
        const A change = shifted_logit(finite_shift(blocks[block].max), shift, units_.factor);
        mass_times_x += blocks[block].mass_times_x + static_cast<double>(block_mass) * change;
      }
    }
    return {max, static_cast<A>(others), static_cast<A>(mass_sum), static_cast<A>(mass_times_x)};
  }

  // gradient = stash * factor - q * scale, the factor being the block's.
  template <bool kStream>
  void gradient_from_stash(const A* stash, T* gradient, A factor, A scale) const {
    int block = 0;
    for (int64_t first = 0; first < num_classes_; first += block_classes_, ++block) {
      const int64_t count = num_classes_ - first < block_classes_ ? num_classes_ - first : block_classes_;
      fused_losses::cpu::gradient_from_stash<kStream>(stash + first, gradient + first, first, count, mass_,
                                                      factors_[block] * factor, scale);
    }
  }

  // The same from the logits. `max` is the row's; kHasMaxima says that statistics() has just found the blocks'. See
  // Note [Same bits without a stash].
  template <bool kHasMaxima>
  void gradient_from_logits(const T* x, T* gradient, A max, A factor, A scale) {
    A max_so_far = -kInfinity<A>;
    int block = 0;
    for (int64_t first = 0; first < num_classes_; first += block_classes_, ++block) {
      const int64_t rest = num_classes_ - first;
      const int64_t count = rest < block_classes_ ? rest : block_classes_;
      const auto* units = units_.template of_block<true>(x + first, count);
      if constexpr (kHasMaxima) {
        max_so_far = maxima_[block];
      } else if (count == rest) {
        max_so_far = max;
      } else if (max_so_far != max) {
        const A block_max = max_lanes<A>(lane_maxima(units, count));
        max_so_far = block_max > max_so_far ? block_max : max_so_far;
      }
      fused_losses::cpu::gradient_from_logits(units, gradient + first, first, count, mass_, units_.slopes(),
                                              finite_shift(max_so_far), units_.factor,
                                              block_factor(max_so_far, finite_shift(max)) * factor, scale);
    }
  }

  // `mass` is the total of the dense mass, with what else p is multiplied by.
  A gradient_at_target(A mass, const PointMass<A>& point, A p, A others) const {
    return fused_losses::cpu::gradient_at_target(mass, mass_, point.target_class, point.mass, p, others);
  }
  A mass_total(A row_mass) const {
    if constexpr (Mass::kReadsProbability) {
      return row_mass;
    } else {
      return mass_.total();
    }
  }

 private:
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

  // From exponentials relative to a block's maximum to those relative to the row's.
  A block_factor(A block_max, A shift) const {
    return exp<A>(broadcast(shifted_logit(block_max, shift, units_.factor)))[0];
  }

  int64_t num_classes_;
  int64_t block_classes_;
  Units units_;
  Mass mass_;
  A maxima_[kMaxRowBlocks];  // the largest logit so far
  A factors_[kMaxRowBlocks];
  A block_masses_[kMaxRowBlocks];
};

}  // namespace
}  // namespace fused_losses::cpu
