// What the cross-entropy kernels share: a row's target, statistics, loss and gradient. The formulas are those of
// Note [Target mass] in core/cross_entropy.h.
#pragma once

#include "../core/cross_entropy.h"
#include "../core/cross_entropy_formulas.h"
#include "cross_entropy_terms.cuh"
#include "packet.h"
#include "reduce.h"
#include "rows.h"

namespace fused_losses::cuda {
namespace {

// The softmax's shift: any number where no logit is above -inf, so that the result becomes NaN and not an exception to
// the formulas.
template <class A>
__device__ __forceinline__ A finite_shift(A max) {
  return max == -kInfinity<A> ? A(0) : max;
}

// A row's max m, sum of exp(x - m), and with a dense mass q: sum of q and of q (x - m). m is finite_shift(max). The sum
// is first that of the classes beside the target: see Note [Confident rows]. With terms max is the largest unit, and
// the sum of q (x - m) is in units until the row ends: see Note [Units].
template <class A>
struct RowStatistics {
  A max = -kInfinity<A>;
  A sum = 0;
  A mass = 0;
  A mass_times_x = 0;
  A others = 0;

  // What was summed becomes `others`, and with the target the sum.
  template <class T, class Terms = NoTerms>
  __device__ __forceinline__ void add_target(int64_t target_class, A target_unit, const Terms& terms = {}) {
    others = sum;
    if (target_class >= 0) sum += exp_of_shifted<T>(terms.to_x(target_unit - finite_shift(max)));
  }

  // The same sums relative to a larger maximum. What the sum was multiplied by.
  template <class Terms = NoTerms>
  __device__ __forceinline__ A raise(A new_max, const Terms& terms = {}) {
    if (max == new_max) return A(1);
    const A factor = max == -kInfinity<A> ? A(0) : exp_of_shifted<A>(terms.to_x(max - new_max));
    sum *= factor;
    mass_times_x += mass * (finite_shift(max) - finite_shift(new_max));
    max = new_max;
    return factor;
  }
};

// What one row's target says.
template <class A>
struct RowTarget {
  int64_t target_class = -1;  // -1: no point mass
  A point_mass = 0;
  bool ignored = false;
};

template <class A>
__device__ __forceinline__ RowTarget<A> read_target(const CrossEntropyParams& params, int64_t position) {
  RowTarget<A> result;
  if (params.target_kind == TargetKind::Probability) return result;
  const int64_t index = read_index(params.target, position);
  result.ignored = index == params.target.ignore_index;
  if (result.ignored) return result;
  FUSED_LOSSES_DEVICE_ASSERT(index >= 0 && index < params.num_classes);
  const A* weight = static_cast<const A*>(params.target.class_weight);
  result.target_class = index;
  result.point_mass = static_cast<A>(1 - params.label_smoothing) * (weight != nullptr ? weight[index] : A(1));
  return result;
}

// The dense mass q_c of a row's classes where it depends on the class. See `UniformMass` for the other one.
template <class T>
class DenseMass {
 public:
  using A = Accumulation<T>;

  __device__ __forceinline__ DenseMass(const CrossEntropyParams& params, const Place& place)
      : class_stride_(params.probability_layout.class_stride),
        keep_(static_cast<A>(1 - params.label_smoothing)),
        spread_(static_cast<A>(params.label_smoothing / static_cast<double>(params.num_classes))),
        weight_(static_cast<const A*>(params.target.class_weight)) {
    if (params.target_kind != TargetKind::Probability) return;
    const int64_t offset = params.probability_layout.offset(place);
    if (params.probability_dtype == params.dtype) {
      probability_ = static_cast<const T*>(params.probability_target) + offset;
    } else {
      accumulated_probability_ = static_cast<const A*>(params.probability_target) + offset;
    }
  }

  __device__ __forceinline__ A at(int64_t c) const {
    A probability = 0;
    if (probability_ != nullptr) {
      probability = to_accumulation(probability_[c * class_stride_]);
    } else if (accumulated_probability_ != nullptr) {
      probability = accumulated_probability_[c * class_stride_];
    }
    return weight_ != nullptr ? of(probability) * weight_[c] : of(probability);
  }

  // That of the classes from `first` on, as many as a packet has elements.
  __device__ __forceinline__ void packet(int64_t first, A (&masses)[kPacketElements<T>]) const {
    constexpr int kElements = kPacketElements<T>;
    A probabilities[kElements] = {};
    if (probability_ != nullptr) {
      read(probability_ + first * class_stride_, class_stride_, probabilities);
    } else if (accumulated_probability_ != nullptr) {
      read(accumulated_probability_ + first * class_stride_, class_stride_, probabilities);
    }
    A weights[kElements];
    if (weight_ != nullptr) read(weight_ + first, 1, weights);
#pragma unroll
    for (int k = 0; k < kElements; ++k) {
      const A mass = of(probabilities[k]);
      masses[k] = weight_ != nullptr ? mass * weights[k] : mass;
    }
  }

 private:
  // Without the weight of the class.
  __device__ __forceinline__ A of(A probability) const { return fma_of(keep_, probability, spread_); }

  template <class U>
  static __device__ __forceinline__ void read(const U* address, int64_t stride, A (&values)[kPacketElements<T>]) {
    constexpr int kElements = kPacketElements<T>;
    if (stride == 1 && elements_past_alignment(address) == 0) {
#pragma unroll
      for (int first = 0; first < kElements; first += kPacketElements<U>) {
        const Packet<U> packet = load_packet(address + first, Reuse::Soon);
#pragma unroll
        for (int k = 0; k < kPacketElements<U>; ++k) values[first + k] = packet.at(k);
      }
      return;
    }
#pragma unroll
    for (int k = 0; k < kElements; ++k) values[k] = to_accumulation(address[k * stride]);
  }

  int64_t class_stride_;
  A keep_;
  A spread_;
  const A* weight_;
  const T* probability_ = nullptr;              // of the logits' type
  const A* accumulated_probability_ = nullptr;  // of the accumulation type
};

// Smoothing without class weights gives every class the same mass.
inline bool has_mass_by_class(const CrossEntropyParams& params) {
  return params.target_kind == TargetKind::Probability ||
         (params.target_kind == TargetKind::SmoothedIndex && params.target.class_weight != nullptr);
}

// The dense mass of label smoothing without class weights, the same for every class; none, 0, with index targets. Made
// by the host, which divides once.
template <class A>
struct UniformMass {
  bool exists;
  A spread;

  explicit UniformMass(const CrossEntropyParams& params)
      : exists(params.target_kind == TargetKind::SmoothedIndex),
        spread(exists ? static_cast<A>(params.label_smoothing / static_cast<double>(params.num_classes)) : A(0)) {}
};

// The sum of q_c where it does not depend on the row; a row of probabilities adds up its own.
template <class A>
__device__ __forceinline__ void set_common_mass(const CrossEntropyParams& params, RowStatistics<A>& statistics) {
  if (params.target_kind == TargetKind::Probability) return;
  if (params.target_kind == TargetKind::Index) {
    statistics.mass = A(0);
    return;
  }
  const double* sum = params.device_class_weight_sum;
  const double mean_weight = sum != nullptr ? *sum / static_cast<double>(params.num_classes) : 1.0;
  statistics.mass = static_cast<A>(params.label_smoothing * mean_weight);
}

// What every gradient is multiplied by besides its row's own factor, and in the backward its grad_output.
template <class A>
__device__ __forceinline__ A common_scale(const CrossEntropyParams& params) {
  return params.device_gradient_scale != nullptr ? *static_cast<const A*>(params.device_gradient_scale)
                                                 : static_cast<A>(params.gradient_scale);
}
// In the forward, whose gradient is that of the reduced loss.
template <class A>
__device__ __forceinline__ A forward_scale(const CrossEntropyParams& params) {
  const A* grad_output = static_cast<const A*>(params.grad_output);
  return common_scale<A>(params) *
         (grad_output != nullptr ? *grad_output : static_cast<A>(params.expected_grad_output));
}
template <class A>
__device__ __forceinline__ A backward_scale(const CrossEntropyParams& params, int64_t position) {
  return common_scale<A>(params) * static_cast<const A*>(params.grad_output)[position * params.grad_output_stride];
}

// log S: where the target is the largest, S' says it more exactly, see Note [Confident rows].
template <class A>
__device__ __forceinline__ A log_of_sum(const RowStatistics<A>& statistics, const RowTarget<A>& target,
                                        A shifted_logit) {
  const bool is_largest = target.target_class >= 0 && shifted_logit == A(0);
  return log1p_of(is_largest ? statistics.others : statistics.sum - A(1));  // one function: registers
}

// The gradient of one row: d/dx_c = exp(x_c - shift) * factor - q_c * scale, and at the target class all of it in one
// piece, so that y (p - 1) is kept together before it is rounded. With terms y is y' and Q is Q + e, and it is the
// gradient of units, from which Terms::of_logit makes that of logits.
template <class T, class Terms = NoTerms>
struct RowGradient {
  using A = Accumulation<T>;
  A shift;
  UnitExponential<T, Terms> exponential;
  A scale;
  A inverse_sum;
  A mass;
  A factor;
  A point_mass_of_others;

  RowGradient() = default;
  __device__ __forceinline__ RowGradient(const RowStatistics<A>& statistics, const RowTarget<A>& target, A scale_of_row,
                                         bool dense)
      : RowGradient(statistics, target, A(0), scale_of_row, dense, NoTerms{}) {}
  // `statistics.mass` counts where there is a dense mass.
  __device__ __forceinline__ RowGradient(const RowStatistics<A>& statistics, const RowTarget<A>& target, A target_unit,
                                         A scale_of_row, bool dense, const Terms& terms)
      : shift(finite_shift(statistics.max)),
        exponential(shift, terms),
        scale(target.ignored ? A(0) : terms.scaled(scale_of_row)),
        inverse_sum(A(1) / statistics.sum),
        mass(dense && !target.ignored ? statistics.mass : A(0)) {
    A point_mass = target.point_mass;
    if constexpr (Terms::kAny) {
      if (!target.ignored && terms.has_any_of_row()) {
        const A difference = target_unit - shift;
        const A z = terms.to_x(difference);
        const A log_sum = log_of_sum(statistics, target, z);
        const RowSums<A> row{shift, statistics.sum, statistics.others, log_sum, difference};
        point_mass = terms.point_mass(point_mass, exp_of_shifted<T>(z), row);
        mass = terms.mass(mass, row);
      }
    }
    factor = (mass + point_mass) * scale * inverse_sum * exponential.correction(shift);
    point_mass_of_others = point_mass * (statistics.others * inverse_sum);
  }

  // `scaled_mass` is q_c * scale.
  __device__ __forceinline__ A at(A x, A scaled_mass) const { return of_exponential(exponential(x), scaled_mass); }
  // Of what `exponential` gave.
  __device__ __forceinline__ A of_exponential(A value, A scaled_mass) const {
    return fma_of(value, factor, -scaled_mass);
  }
  // `dense_mass` is q_c. Without any, and without terms, the logit does not count.
  __device__ __forceinline__ A at_target(A x, A dense_mass) const {
    const A p = exponential.corrected(x, shift) * inverse_sum;
    return derivative_at_target(p, mass, dense_mass, point_mass_of_others) * scale;
  }
};

// The loss of one row; `target_unit` counts where there is a point mass.
template <class A, class Terms>
__device__ __forceinline__ A row_loss(const RowStatistics<A>& statistics, const RowTarget<A>& target, A target_unit,
                                      bool dense, const Terms& terms) {
  if (target.ignored) return A(0);
  const A difference = target_unit - finite_shift(statistics.max);
  const A shifted_logit = terms.to_x(difference);
  const A log_sum = log_of_sum(statistics, target, shifted_logit);
  A loss = 0;
  if (target.target_class >= 0) loss = point_loss(target.point_mass, log_sum, shifted_logit);
  if (dense) loss += dense_loss(statistics.mass, log_sum, statistics.mass_times_x);
  if constexpr (Terms::kAny) {
    return terms.loss(loss, {finite_shift(statistics.max), statistics.sum, statistics.others, log_sum, difference});
  }
  return loss;
}

// Writes what is asked for of a row. Its loss.
template <class A, class Terms = NoTerms>
__device__ __forceinline__ double write_row(const CrossEntropyParams& params, int64_t position,
                                            const RowStatistics<A>& statistics, const RowTarget<A>& target,
                                            A target_unit, bool dense, const Terms& terms = {}) {
  const A loss = row_loss(statistics, target, target_unit, dense, terms);
  if (params.losses != nullptr) static_cast<A*>(params.losses)[position] = loss;
  if (params.row_max == nullptr) return static_cast<double>(loss);
  static_cast<A*>(params.row_max)[position] = statistics.max;
  static_cast<A*>(params.row_sum)[position] = statistics.sum;
  if (params.row_others != nullptr) static_cast<A*>(params.row_others)[position] = statistics.others;
  if (params.row_mass != nullptr) static_cast<A*>(params.row_mass)[position] = statistics.mass;
  return static_cast<double>(loss);
}

// The statistics that a forward left.
template <class A>
__device__ __forceinline__ RowStatistics<A> read_row(const CrossEntropyParams& params, int64_t position) {
  RowStatistics<A> statistics;
  statistics.max = static_cast<const A*>(params.row_max)[position];
  statistics.sum = static_cast<const A*>(params.row_sum)[position];
  if (params.row_others != nullptr) statistics.others = static_cast<const A*>(params.row_others)[position];
  if (params.row_mass != nullptr) statistics.mass = static_cast<const A*>(params.row_mass)[position];
  set_common_mass(params, statistics);
  return statistics;
}

// Whether a gradient that is there already was prepared for this grad_output.
template <class A>
__device__ __forceinline__ bool is_prepared(const CrossEntropyParams& params) {
  return params.mode == CrossEntropyMode::LossAndGradient && params.grad_output != nullptr &&
         *static_cast<const A*>(params.grad_output) == static_cast<A>(params.expected_grad_output);
}

}  // namespace
}  // namespace fused_losses::cuda
