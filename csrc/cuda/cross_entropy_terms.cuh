// The terms of a row as a template parameter of the cross-entropy kernels, made by the host: none, or those of Note
// [Terms of a row] in core/cross_entropy.h.
//
// Note [Units]
// x is a positive factor times the unit of a logit: the logit with the sign of logit_scale, or the tangent of the
// softcap. So the largest x has the largest unit, and differences are taken of units: the largest x is 0 below itself
// whatever the compiler contracts. Maxima, the saved one too, are of units. A key is a logit with the sign of
// logit_scale, in the order of units, but with the logit's type: packets are compared by keys.
//
// What a forward and its backward compute both, in two kernels, they must agree on to the bit: what a compiler could
// contract in two ways is said.
#pragma once

#include <cmath>

#include "../core/cross_entropy.h"
#include "packet.h"

namespace fused_losses::cuda {
namespace {

// What is known of a row where its terms are computed.
template <class A>
struct RowSums {
  A shift;  // the largest unit
  A sum;
  A others;
  A log_sum;
  A target_difference;  // the target's unit - shift
};

// The softmax of the logits themselves: no instruction.
struct NoTerms {
  static constexpr bool kAny = false;
  static constexpr bool kSoftcapped = false;

  template <class T>
  __device__ __forceinline__ Packet<T> keys(const Packet<T>& logits) const {
    return logits;
  }
  template <class A>
  __device__ __forceinline__ A unit_of_key(A key) const {
    return key;
  }
  template <class A>
  __device__ __forceinline__ A unit(A logit) const {
    return logit;
  }
  template <class A>
  __device__ __forceinline__ A unit_or_none(A logit, bool) const {
    return logit;
  }
  template <class A>
  __device__ __forceinline__ A to_x(A units) const {
    return units;
  }
  template <class A>
  __device__ __forceinline__ A scaled(A gradient_scale) const {
    return gradient_scale;
  }
  template <class A>
  __device__ __forceinline__ A of_logit(A derivative, A) const {
    return derivative;
  }
};

template <class A, bool kHasSoftcap>
class RowTerms {
 public:
  static constexpr bool kAny = true;
  static constexpr bool kSoftcapped = kHasSoftcap;

  explicit RowTerms(const CrossEntropyParams& params)
      : factor_(static_cast<A>(kSoftcapped ? params.softcap : std::fabs(params.logit_scale))),
        sign_(params.logit_scale < 0 ? A(-1) : A(1)),
        logit_scale_(static_cast<A>(params.logit_scale)),
        scale_in_cap_(kSoftcapped ? static_cast<A>(std::fabs(params.logit_scale) / params.softcap) : A(1)),
        lse_square_scale_(static_cast<A>(params.lse_square_scale)),
        focal_gamma_(static_cast<A>(params.focal_gamma)) {}

  template <class T>
  __device__ __forceinline__ Packet<T> keys(Packet<T> logits) const {
    const uint32_t flipped = sign_ < A(0) ? (sizeof(T) == 2 ? 0x80008000u : 0x80000000u) : 0u;
#pragma unroll
    for (int i = 0; i < Packet<T>::kWords; ++i) {
      if (sizeof(T) < 8 || i % 2 == 1) logits.words[i] ^= flipped;
    }
    return logits;
  }
  __device__ __forceinline__ A unit_of_key(A key) const {
    if constexpr (kSoftcapped) return tanh_of(key * scale_in_cap_);
    return key;
  }
  __device__ __forceinline__ A unit(A logit) const { return unit_of_key(logit * sign_); }
  // Below every unit, where there is no such logit.
  __device__ __forceinline__ A unit_or_none(A logit, bool exists) const { return exists ? unit(logit) : -kInfinity<A>; }

  // Of a difference, or of a sum of differences.
  __device__ __forceinline__ A to_x(A units) const { return units * factor_; }

  // dx/dl is logit_scale, which goes into a row's scale, and with a softcap the tangent's slope.
  __device__ __forceinline__ A scaled(A gradient_scale) const { return gradient_scale * logit_scale_; }
  __device__ __forceinline__ A of_logit(A derivative, A unit) const {
    if constexpr (kSoftcapped) return derivative * ((A(1) - unit) * (A(1) + unit));
    return derivative;
  }

  // Whether there are terms besides those of the logits.
  __device__ __forceinline__ bool has_any_of_row() const { return lse_square_scale_ != A(0) || focal_gamma_ != A(0); }

  // The whole loss of a row, of which this is all but the terms here.
  __device__ __forceinline__ A loss(A without_terms, const RowSums<A>& row) const {
    A loss = without_terms;
    if (focal_gamma_ != A(0)) loss *= power(row);
    if (lse_square_scale_ == A(0)) return loss;
    const A log_sum_exp = this->log_sum_exp(row);
    return fma_of(log_sum_exp * lse_square_scale_, log_sum_exp, loss);
  }

  // Q + e of the dense mass Q.
  __device__ __forceinline__ A mass(A dense_mass, const RowSums<A>& row) const {
    if (lse_square_scale_ == A(0)) return dense_mass;
    return fma_of(lse_square_scale_ + lse_square_scale_, log_sum_exp(row), dense_mass);
  }

  // y' of the point mass y. `exponential`: the target's.
  __device__ __forceinline__ A point_mass(A mass, A exponential, const RowSums<A>& row) const {
    if (focal_gamma_ == A(0)) return mass;
    const A left = complement(row);
    const A p = exponential / row.sum;
    const A surprise = fma_of(-row.target_difference, factor_, row.log_sum);
    const A ratio = left == A(0) ? A(1) : surprise / left;
    const A slope = p == A(0) ? A(0) : p * ratio;  // p log p is 0 where p is
    return mass * power(row) * fma_of(slope, focal_gamma_, A(1));
  }

 private:
  __device__ __forceinline__ A log_sum_exp(const RowSums<A>& row) const {
    return fma_of(row.shift, factor_, row.log_sum);
  }
  // 1 - p of the target.
  __device__ __forceinline__ A complement(const RowSums<A>& row) const { return row.others / row.sum; }
  __device__ __forceinline__ A power(const RowSums<A>& row) const {
    return exp_of_shifted<A>(log_of(complement(row)) * focal_gamma_);
  }

  A factor_;
  A sign_;  // of logit_scale
  A logit_scale_;
  A scale_in_cap_;  // of a key
  A lse_square_scale_;
  A focal_gamma_;
};

// A row's exponentials exp(x - max), of units; without terms see Note [Shifts in twos].
template <class T, class Terms>
class UnitExponential {
 public:
  using A = Accumulation<T>;

  UnitExponential() = default;
  __device__ __forceinline__ UnitExponential(A shift, const Terms& terms) : shift_(shift), factor_(terms.to_x(A(1))) {}

  __device__ __forceinline__ A operator()(A unit) const { return exp_of_shifted<T>((unit - shift_) * factor_); }
  __device__ __forceinline__ A correction(A) const { return A(1); }
  // That of one class by itself, which needs no correction.
  __device__ __forceinline__ A corrected(A unit, A) const { return (*this)(unit); }

 private:
  A shift_;
  A factor_;
};

template <class T>
class UnitExponential<T, NoTerms> : public RowExponential<T> {
 public:
  using A = Accumulation<T>;

  UnitExponential() = default;
  __device__ __forceinline__ UnitExponential(A shift, const NoTerms&) : RowExponential<T>(shift) {}

  __device__ __forceinline__ A corrected(A x, A shift) const { return exp_of_shifted<T>(x - shift); }
};

}  // namespace
}  // namespace fused_losses::cuda
