// Targets of cross-entropy as the kernels see them: see Note [Target mass] in core/cross_entropy.h.
#pragma once

#include "../core/cross_entropy.h"
#include "../core/cross_entropy_formulas.h"
#include "../core/index_target.h"
#include "vec.h"

namespace fused_losses::cpu {
namespace {

// x - m of Note [Terms of a row] from the logits: their difference first, so that the largest has 0.
template <class V, class M, class A>
inline V shifted_logit(V logit, M max, A logit_scale) {
  return (logit - max) * logit_scale;
}

// Exponentials are taken relative to this: a block (or row) that is all -inf must give 0, not NaN.
template <class A>
inline A finite_shift(A max) {
  return max == -kInfinity<A> ? A(0) : max;
}

template <class A>
inline Vec<A> finite_shifts(Vec<A> max) {
  return select(max == broadcast(-kInfinity<A>), Vec<A>{}, max);
}

// The point mass of one position; ignored positions and probability targets have none.
template <class A>
struct PointMass {
  int64_t target_class = -1;
  A mass = 0;
};

template <class A>
inline PointMass<A> point_mass(const CrossEntropyParams& params, int64_t position) {
  if (params.target_kind == TargetKind::Probability) return {};
  const int64_t index = read_index(params.target, position);
  if (index == params.target.ignore_index) return {};
  const A weight = params.target.class_weight ? static_cast<const A*>(params.target.class_weight)[index] : A(1);
  return {index, static_cast<A>(1 - params.label_smoothing) * weight};
}

// The dense mass q_c. `at` gives kLanes classes of one row (0 beyond `count`), `of_class` one class of a tile, where
// `probability` holds the target's values at that class.
template <class A>
struct NoMass {
  static constexpr bool kDense = false;
  static constexpr bool kReadsProbability = false;
  using ProbabilityType = A;
  void start_row(const CrossEntropyParams&, int64_t) {}
  explicit NoMass(const CrossEntropyParams&) {}
  A total() const { return 0; }
  Vec<A> at(int64_t) const { return Vec<A>{}; }
  Vec<A> at(int64_t, int64_t) const { return Vec<A>{}; }
  Vec<A> of_class(int64_t, Vec<A>) const { return Vec<A>{}; }
};

// Of label smoothing: the same for every class, times its weight where there are any. The question for the weights,
// always answered alike, costs less than kernels of its own would take to compile.
template <class A>
struct SmoothedMass {
  static constexpr bool kDense = true;
  static constexpr bool kReadsProbability = false;
  using ProbabilityType = A;
  const A* weight;
  A mass;
  A sum;
  explicit SmoothedMass(const CrossEntropyParams& params)
      : weight(static_cast<const A*>(params.target.class_weight)),
        mass(static_cast<A>(params.label_smoothing / static_cast<double>(params.num_classes))),
        sum(static_cast<A>(weight == nullptr ? params.label_smoothing
                                             : params.label_smoothing * params.class_weight_sum /
                                                   static_cast<double>(params.num_classes))) {}
  void start_row(const CrossEntropyParams&, int64_t) {}
  A total() const { return sum; }
  Vec<A> at(int64_t c) const { return weight != nullptr ? load(weight + c) * mass : broadcast(mass); }
  Vec<A> at(int64_t c, int64_t count) const {
    return weight != nullptr ? load_partial(weight + c, count, A(0)) * mass : broadcast(mass);
  }
  Vec<A> of_class(int64_t c, Vec<A>) const { return broadcast(weight != nullptr ? weight[c] * mass : mass); }
};

// Smoothed probabilities, likewise times the class weights; its total is a sum over the row.
template <class U>
struct ProbabilityMass {
  using A = Accumulation<U>;
  static constexpr bool kDense = true;
  static constexpr bool kReadsProbability = true;
  using ProbabilityType = U;
  const U* target;
  const A* weight;
  A keep;
  A spread;
  explicit ProbabilityMass(const CrossEntropyParams& params)
      : target(nullptr),
        weight(static_cast<const A*>(params.target.class_weight)),
        keep(static_cast<A>(1 - params.label_smoothing)),
        spread(static_cast<A>(params.label_smoothing / static_cast<double>(params.num_classes))) {}
  void start_row(const CrossEntropyParams& params, int64_t position) {
    target = static_cast<const U*>(params.probability_target) +
             params.probability_layout.offset(place_of(position, params.inner_size));
  }
  Vec<A> at(int64_t c) const {
    const Vec<A> smoothed = load(target + c) * keep + spread;
    return weight != nullptr ? smoothed * load(weight + c) : smoothed;
  }
  Vec<A> at(int64_t c, int64_t count) const {
    const Vec<A> smoothed = load_partial(target + c, count, A(0)) * keep + spread;
    return weight != nullptr ? smoothed * load_partial(weight + c, count, A(0)) : smoothed;
  }
  Vec<A> of_class(int64_t c, Vec<A> probability) const {
    const Vec<A> smoothed = probability * keep + spread;
    return weight != nullptr ? smoothed * weight[c] : smoothed;
  }
};

}  // namespace
}  // namespace fused_losses::cpu
