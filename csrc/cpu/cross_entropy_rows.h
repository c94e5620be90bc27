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
// Note [Same bits without a stash]
// A gradient must not depend on whether a stash was kept for it. Where there is none (a backward, a row too long) the
// exponentials are computed again, each block's relative to the same largest logit so far and multiplied by the same
// factor. The statistics hold the row's maximum: once a block has it, the blocks behind are not searched for theirs.
#pragma once

#include <cstdlib>

#include "../core/compensated_sum.h"
#include "cross_entropy_row_batches.h"
#include "cross_entropy_row_terms.h"
#include "kernels.h"

namespace fused_losses::cpu {
namespace {

constexpr int kMaxRowBlocks = 128;
static_assert(kMaxTransformedClasses <= kMaxRowBlocks * kMaxBlockUnits);
constexpr int64_t kMinBlockClasses = kPageClasses;
// A row whose logits and stash exceed the second-level cache is cheaper to read again than to stash.
constexpr int64_t kMaxStashedBytes = int64_t(1) << 20;

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

// One row in blocks; keeps the blocks' maxima, by which the stash must be rescaled.
template <class T, class Mass, bool kTransformed>
class Row {
 public:
  using A = Accumulation<T>;
  using Units = LogitUnits<T, kTransformed>;

  Row(const CrossEntropyParams& params, const Mass& mass)
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

// Blocks [block_begin, block_end) of positions.
template <class T, class Mass, bool kTransformed>
void sweep_rows(const CrossEntropyParams& params, int64_t block_begin, int64_t block_end) {
  using A = Accumulation<T>;
  const bool wants_gradient = params.mode == CrossEntropyMode::LossAndGradient;
  const int64_t num_classes = params.num_classes;
  A* scratch = nullptr;
  bool stashes = wants_gradient && num_classes * static_cast<int64_t>(sizeof(A)) <= kMaxStashedBytes;
  const bool streams = params.stream_gradient;
  const bool has_terms = has_row_terms(params);
  const GradientScale<A> gradient_scale(params);
  // Where the stash is not the gradient row itself.
  if ((!kSameType<T, A> || streams) && stashes) {
    scratch = static_cast<A*>(std::malloc(static_cast<size_t>(num_classes) * sizeof(A)));
    stashes = scratch != nullptr;
  }
  const T* logits = static_cast<const T*>(params.logits);
  T* gradients = static_cast<T*>(params.gradient);
  Row<T, Mass, kTransformed> row(params, Mass(params));
  const auto offset_of = [&](const ClassLayout& layout, int64_t position) {
    return layout.offset(place_of(position, params.inner_size));
  };

  for (int64_t block = block_begin; block < block_end; ++block) {
    const int64_t first = block * params.positions_per_block;
    const int64_t last = first + params.positions_per_block < params.num_positions ? first + params.positions_per_block
                                                                                   : params.num_positions;
    CompensatedSum block_loss;
    for (int64_t position = first; position < last; ++position) {
      const T* x = logits + offset_of(params.logits_layout, position);
      T* gradient = gradients + offset_of(params.gradient_layout, position);
      PointMass<A> point = point_mass<A>(params, position);
      const bool ignored = params.target_kind != TargetKind::Probability && point.target_class < 0;
      if (ignored) {
        if (params.mode != CrossEntropyMode::Loss)
          ignored_gradient(x, gradient, num_classes, {params.logit_scale, params.softcap});
        if (params.losses != nullptr) static_cast<A*>(params.losses)[position] = 0;
        continue;
      }
      row.start(params, position);
      // Read before the gradient is written: it may be written over the logits.
      const UnitAndSlope<A> target =
          row.units().of(point.target_class >= 0 ? load_scalar(x + point.target_class) : A(0));
      const A target_logit = target.unit[0];
      const A* stash = nullptr;
      Statistics<A> statistics{};
      const auto shifted_target = [&] {
        return shifted_logit(target_logit, finite_shift(statistics.max), row.units().factor);
      };
      const auto exponential_of_target = [&] {
        return point.target_class >= 0 ? exp<A>(broadcast(shifted_target()))[0] : A(0);
      };
      A target_exponential = 0;
      A sum;
      const auto terms_of_row = [&] {
        const A others = point.target_class >= 0 ? statistics.others : sum;
        return RowTerms<A>(params, {broadcast(finite_shift(statistics.max)), broadcast(sum), broadcast(others),
                                    broadcast(target_exponential), broadcast(shifted_target())});
      };
      A scale = gradient_scale.of_row();
      if (params.mode == CrossEntropyMode::Backward) {
        statistics.max = static_cast<const A*>(params.row_max)[position];
        sum = static_cast<const A*>(params.row_sum)[position];
        if (params.row_others) statistics.others = static_cast<const A*>(params.row_others)[position];
        if (params.row_mass) statistics.mass = static_cast<const A*>(params.row_mass)[position];
        target_exponential = exponential_of_target();
        scale = gradient_scale.of_row(static_cast<const A*>(params.grad_output)[position * params.grad_output_stride]);
      } else {
        if (stashes) {
          A* row_stash = scratch;
          if constexpr (kSameType<T, A>) row_stash = scratch != nullptr ? scratch : gradient;
          statistics = row.template statistics<true>(x, row_stash, point.target_class, target_logit);
          stash = row_stash;
        } else {
          statistics = row.template statistics<false>(x, nullptr, point.target_class, target_logit);
        }
        target_exponential = exponential_of_target();
        sum = statistics.others + target_exponential;
        const A log_sum = log_of_sum<A>(broadcast(sum), broadcast(target_exponential), broadcast(statistics.others))[0];
        A loss = 0;
        if (point.target_class >= 0) loss = point_loss(point.mass, log_sum, shifted_target());
        if constexpr (Mass::kDense)
          loss += dense_loss(row.mass_total(statistics.mass), log_sum, statistics.mass_times_x);
        if (has_terms) loss = terms_of_row().loss(broadcast(loss))[0];
        block_loss.add(static_cast<double>(loss));
        if (params.losses != nullptr) static_cast<A*>(params.losses)[position] = loss;
        if (params.row_max != nullptr) {
          static_cast<A*>(params.row_max)[position] = statistics.max;
          static_cast<A*>(params.row_sum)[position] = sum;
          if (params.row_others != nullptr) static_cast<A*>(params.row_others)[position] = statistics.others;
          if (params.row_mass != nullptr) static_cast<A*>(params.row_mass)[position] = statistics.mass;
        }
        if (!wants_gradient) continue;
      }
      A mass = row.mass_total(statistics.mass);
      if (has_terms) {
        const RowTerms<A> terms = terms_of_row();
        point.mass = terms.point_mass(broadcast(point.mass))[0];
        mass += terms.mass()[0];
      }
      const A inverse_sum = A(1) / sum;
      const A factor = (mass + point.mass) * scale * inverse_sum;
      if (stash != nullptr && streams) {
        row.template gradient_from_stash<true>(stash, gradient, factor, scale);
      } else if (stash != nullptr) {
        row.template gradient_from_stash<false>(stash, gradient, factor, scale);
      } else if (wants_gradient) {
        row.template gradient_from_logits<true>(x, gradient, statistics.max, factor, scale);
      } else {
        row.template gradient_from_logits<false>(x, gradient, statistics.max, factor, scale);
      }
      if (point.target_class >= 0) {
        const A p = target_exponential * inverse_sum;
        const A value = row.gradient_at_target(mass, point, p, statistics.others * inverse_sum);
        store_scalar(gradient + point.target_class, value * (target.slope[0] * scale));
      }
    }
    if (params.block_losses != nullptr) params.block_losses[block] = block_loss.value();
  }
  if (streams) end_streaming();
  std::free(scratch);
}

}  // namespace
}  // namespace fused_losses::cpu
