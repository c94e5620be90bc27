// Cross-entropy where the classes of a position are contiguous and many: a row at a time, SIMD along the classes.
#pragma once

#include <cstdlib>

#include "../core/blocks.h"
#include "../core/compensated_sum.h"
#include "cross_entropy_row_blocks.h"
#include "cross_entropy_row_terms.h"
#include "kernels.h"

namespace fused_losses::cpu {
namespace {

// A row whose logits and stash exceed the second-level cache is cheaper to read again than to stash.
constexpr int64_t kMaxStashedBytes = int64_t(1) << 20;

// Blocks [block_begin, block_end) of positions. In one piece: with a row's state in an object, or handed from function
// to function, rows of 1100 classes take 3 to 8 % more.
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
  RowBlocks<T, Mass, kTransformed> row(params, Mass(params));
  const auto offset_of = [&](const ClassLayout& layout, int64_t position) {
    return layout.offset(place_of(position, params.inner_size));
  };

  for (int64_t block = block_begin; block < block_end; ++block) {
    const auto [first, last] = range_of_block(block, params.positions_per_block, params.num_positions);
    CompensatedSum block_loss;
    for (int64_t position = first; position < last; ++position) {
      const T* x = logits + offset_of(params.logits_layout, position);
      T* gradient = gradients + offset_of(params.gradient_layout, position);
      PointMass<A> point = point_mass<A>(params, position);
      const bool ignored = params.target_kind != TargetKind::Probability && point.target_class < 0;
      if (ignored) {
        if (params.mode != CrossEntropyMode::Loss) {
          ignored_gradient(x, gradient, num_classes, {params.logit_scale, params.softcap});
        }
        if (params.mode != CrossEntropyMode::Backward) {
          void* const of_positions[] = {params.losses, params.row_max, params.row_sum, params.row_others};
          for (void* values : of_positions) {
            if (values != nullptr) static_cast<A*>(values)[position] = 0;
          }
        }
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
