// The sweep of an elementwise loss: input and target are read once, losses are summed or written, the gradient is
// written once. Broadcast weights are laid out chunk by chunk in the first-level cache.
#pragma once

#include "../core/binary_cross_entropy_formulas.h"
#include "../core/blocks.h"
#include "../core/compensated_sum.h"
#include "../core/dtype_dispatch.h"
#include "../core/elementwise.h"
#include "vec_math.h"

namespace fused_losses::cpu {
namespace {

constexpr int kChunkElements = 1024;
constexpr int kPrefetchBytes = 4096;

// The formulas' arithmetic on registers.
template <class A>
struct VecMath {
  using V = Vec<A>;
  static V constant(double value) { return broadcast(static_cast<A>(value)); }
  static V select(IntVec<A> condition, V yes, V no) { return cpu::select(condition, yes, no); }
  // y y = y for no other number, rounded or not.
  static bool all_zero_or_one(V y) { return !any_bit(bit_cast<IntVec<A>>(y * y - y)); }
  static V max_of(V a, V b) { return cpu::max_of(a, b); }
  static V exp(V x) { return cpu::exp<A>(x); }
  static V log(V x) { return cpu::log<A>(x); }
  static V log1p(V x) { return cpu::log1p(x); }
  static V log_of_complement(V x) { return cpu::log_of_complement<A>(x); }
  static V log_of_either(IntVec<A> is_log, V x) { return cpu::log_of_either<A>(is_log, x); }
};

template <class A, class W>
inline void copy_run(const W* source, int64_t stride, int64_t count, A* destination) {
  if (stride == 0) {
    const A value = static_cast<A>(load_scalar(source));
    for (int64_t i = 0; i < count; ++i) destination[i] = value;
  } else if (stride == 1 && kSameType<A, W>) {
    std::memcpy(destination, source, static_cast<size_t>(count) * sizeof(W));
  } else if (stride == 1 && kSameType<A, Accumulation<W>>) {
    int64_t i = 0;
    if constexpr (kSameType<A, Accumulation<W>>) {
      for (; i + kLanes<A> <= count; i += kLanes<A>) store(destination + i, load(source + i));
    }
    for (; i < count; ++i) destination[i] = static_cast<A>(load_scalar(source + i));
  } else {
    for (int64_t i = 0; i < count; ++i) destination[i] = static_cast<A>(load_scalar(source + i * stride));
  }
}

template <class A>
inline void copy_run(const BroadcastOperand& operand, int64_t offset, int64_t stride, int64_t count, A* destination) {
  by_dtype(operand.dtype, [&](auto element) {
    copy_run(static_cast<const decltype(element)*>(operand.data) + offset, stride, count, destination);
  });
}

// Elements [first, first + count) of the broadcast operand.
template <class A>
inline void fill_broadcast(const BroadcastOperand& operand, int64_t first, int64_t count, A* destination) {
  const int last_dim = operand.num_dims - 1;
  int64_t index[kMaxBroadcastDims];
  int64_t rest = first;
  for (int dim = last_dim; dim >= 0; --dim) {
    index[dim] = rest % operand.sizes[dim];
    rest /= operand.sizes[dim];
  }
  while (count > 0) {
    int64_t offset = 0;
    for (int dim = 0; dim <= last_dim; ++dim) offset += index[dim] * operand.strides[dim];
    const int64_t available = operand.sizes[last_dim] - index[last_dim];
    const int64_t run = available < count ? available : count;
    copy_run(operand, offset, operand.strides[last_dim], run, destination);
    destination += run;
    count -= run;
    index[last_dim] = 0;
    for (int dim = last_dim - 1; dim >= 0; --dim) {
      if (++index[dim] < operand.sizes[dim]) break;
      index[dim] = 0;
    }
  }
}

// A broadcast operand in the accumulation type, chunk by chunk.
//
// Note [Repeated operands]
// A weight of the last axis alone, the usual case, repeats itself: it is laid out once, one period longer than a chunk,
// and every chunk finds its own part there.
template <class A>
class BroadcastChunks {
 public:
  explicit BroadcastChunks(const BroadcastOperand& operand) : operand_(operand) {
    if (operand.data == nullptr) {
      for (A& value : values_) value = 1;
      return;
    }
    const int last_dim = operand.num_dims - 1;
    const bool repeats = last_dim == 0 ? operand.strides[0] == 0 : last_dim == 1 && operand.strides[0] == 0;
    const int64_t period = last_dim == 0 ? 1 : operand.sizes[last_dim];
    if (!repeats || period > kChunkElements) return;
    period_ = period;
    fill_broadcast(operand, 0, kChunkElements + period, values_);
  }

  // Elements [first, first + count), and a register more that may be read.
  const A* chunk(int64_t first, int64_t count) {
    if (operand_.data == nullptr) return values_;
    if (period_ > 0) return values_ + first % period_;
    fill_broadcast(operand_, first, count, values_);
    return values_;
  }

 private:
  const BroadcastOperand& operand_;
  int64_t period_ = 0;  // 0: it does not repeat within a chunk
  alignas(64) A values_[2 * kChunkElements + kLanes<A>] = {};
};

template <class A, bool kWeighted>
struct ChunksIf {
  using type = BroadcastChunks<A>;
};
template <class A>
struct ChunksIf<A, false> {
  struct type {
    explicit type(const BroadcastOperand&) {}
  };
};

template <class Formula, class T, class U, bool kWeighted>
class ElementwiseKernel {
  using A = Accumulation<T>;
  using Chunks = typename ChunksIf<A, kWeighted>::type;

 public:
  explicit ElementwiseKernel(const ElementwiseParams& params)
      : params_(params),
        formula_(formula_of<Formula>(params)),
        scale_(static_cast<A>(params.gradient_scale)),
        weights_(params.weight),
        pos_weights_(params.pos_weight) {}

  template <bool kLoss, bool kGradient>
  void run(int64_t block_begin, int64_t block_end) {
    for (int64_t block = block_begin; block < block_end; ++block) {
      const auto [first, last] = range_of_block(block, params_.elements_per_block, params_.num_elements);
      CompensatedSum block_loss;
      largest_bits_ = UnsignedVec<A>{};
      for (int64_t i = first; i < last; i += kChunkElements) {
        block_loss.add(chunk<kLoss, kGradient>(i, last - i < kChunkElements ? last - i : kChunkElements));
      }
      if (kGradient && params_.stream_gradient) end_streaming();
      if constexpr (kLoss) {
        if (params_.block_losses != nullptr) params_.block_losses[block] = block_loss.value();
        if (params_.block_faults != nullptr) params_.block_faults[block] = faults(first, last);
      }
    }
  }

 private:
  template <bool kLoss, bool kGradient>
  double chunk(int64_t first, int64_t count) {
    if constexpr (kWeighted) {
      weight_ = weights_.chunk(first, count);
      pos_weight_ = pos_weights_.chunk(first, count);
    }
    return sweep<kLoss, kGradient>(first, count);
  }

  template <bool kLoss, bool kGradient>
  FUSED_LOSSES_FLATTEN double sweep(int64_t first, int64_t count) {
    const T* input = static_cast<const T*>(params_.input) + first;
    const U* target = static_cast<const U*>(params_.target) + first;
    U* losses = params_.losses != nullptr ? static_cast<U*>(params_.losses) + first : nullptr;
    T* gradient = static_cast<T*>(params_.gradient) + (kGradient ? first : 0);
    const U* grad_output =
        params_.grad_output != nullptr ? static_cast<const U*>(params_.grad_output) + first : nullptr;
    const bool streams = params_.stream_gradient;
    Vec<A> sum[2] = {};
    // Two registers at a time: the second hides the latencies of the first.
    const auto whole_register = [&](int64_t i, int slot) {
      // The hardware's prefetcher stops at the end of every page.
      __builtin_prefetch(input + i + kPrefetchBytes / sizeof(T));
      __builtin_prefetch(target + i + kPrefetchBytes / sizeof(U));
      const Vec<A> x = load(input + i);
      const Vec<A> y = load(target + i);
      const ValueAndDerivative<Vec<A>> result = formula_.template at<VecMath<A>>(x, y, pos_weight(i));
      if constexpr (kLoss) {
        const Vec<A> loss = weighted(result.value, i);
        sum[slot] += loss;
        if (losses != nullptr) store(losses + i, loss);
        note_range(x, y);
      }
      if constexpr (kGradient) {
        Vec<A> value = weighted(result.derivative, i) * scale_;
        if (grad_output != nullptr) value *= load(grad_output + i);
        if (streams) {
          stream(gradient + i, value);
        } else {
          store(gradient + i, value);
        }
      }
    };
    int64_t i = 0;
    for (; i + 2 * kLanes<A> <= count; i += 2 * kLanes<A>) {
      whole_register(i, 0);
      whole_register(i + kLanes<A>, 1);
    }
    if (i + kLanes<A> <= count) {
      whole_register(i, 0);
      i += kLanes<A>;
    }
    if (i < count) {
      const int64_t rest = count - i;
      const Vec<A> x = load_partial(input + i, rest, A(0));  // 0 is in the range of every formula
      const Vec<A> y = load_partial(target + i, rest, A(0));
      const ValueAndDerivative<Vec<A>> result = formula_.template at<VecMath<A>>(x, y, pos_weight(i));
      if constexpr (kLoss) {
        const Vec<A> loss = weighted(result.value, i);
        A lanes[kLanes<A>] = {};
        store_partial(lanes, loss, rest);
        sum[0] += load(lanes);
        if (losses != nullptr) store_partial(losses + i, loss, rest);
        note_range(x, y);
      }
      if constexpr (kGradient) {
        Vec<A> value = weighted(result.derivative, i) * scale_;
        if (grad_output != nullptr) value *= load_partial(grad_output + i, rest, A(0));
        store_partial(gradient + i, value, rest);
      }
    }
    return static_cast<double>(sum_lanes<A>(sum[0] + sum[1]));
  }

  Vec<A> weighted(Vec<A> value, int64_t i) const {
    if constexpr (kWeighted) value *= load(weight_ + i);
    return value;
  }

  Vec<A> pos_weight(int64_t i) const {
    if constexpr (kWeighted) {
      return load(pos_weight_ + i);
    } else {
      return broadcast(A(1));
    }
  }

  // The bits of 0 to 1 are those from 0 to the bits of 1. -0 has larger ones, and so has all that is outside, NaN too.
  void note_range(Vec<A> x, Vec<A> y) {
    if constexpr (Formula::kChecksRange) {
      largest_bits_ = max_of<A>(largest_bits_, bit_cast<UnsignedVec<A>>(x));
      largest_bits_ = max_of<A>(largest_bits_, bit_cast<UnsignedVec<A>>(y));
    }
  }

  // Elements [first, last) are looked at again where note_range saw one that may be outside.
  int32_t faults(int64_t first, int64_t last) const {
    if (!any_lane(bit_cast<IntVec<A>>(largest_bits_ > bit_cast<UnsignedVec<A>>(broadcast(A(1)))))) return 0;
    int32_t result = 0;
    for (int64_t i = first; i < last; ++i) {
      const A x = load_scalar(static_cast<const T*>(params_.input) + i);
      const A y = load_scalar(static_cast<const U*>(params_.target) + i);
      if (!(x >= 0 && x <= 1)) result |= kInputOutOfRange;
      if (!(y >= 0 && y <= 1)) result |= kTargetOutOfRange;
    }
    return result;
  }

  const ElementwiseParams& params_;
  Formula formula_;
  A scale_;
  UnsignedVec<A> largest_bits_{};
  Chunks weights_;
  Chunks pos_weights_;
  const A* weight_ = nullptr;  // of the chunk
  const A* pos_weight_ = nullptr;
};

template <class Formula, class T, class U, bool kWeighted>
void by_mode(const ElementwiseParams& params, int64_t block_begin, int64_t block_end) {
  ElementwiseKernel<Formula, T, U, kWeighted> kernel(params);
  switch (params.mode) {
    case ElementwiseMode::Loss:
      return kernel.template run<true, false>(block_begin, block_end);
    case ElementwiseMode::LossAndGradient:
      return kernel.template run<true, true>(block_begin, block_end);
    case ElementwiseMode::Backward:
      return kernel.template run<false, true>(block_begin, block_end);
  }
}

template <class Formula, class T, class U>
void by_weight(const ElementwiseParams& params, int64_t block_begin, int64_t block_end) {
  if constexpr (Formula::kTakesWeights) {
    if (params.weight.data != nullptr || params.pos_weight.data != nullptr) {
      return by_mode<Formula, T, U, true>(params, block_begin, block_end);
    }
  }
  by_mode<Formula, T, U, false>(params, block_begin, block_end);
}

// 16-bit inputs come with targets of their own type or, from mixed precision, with float32 targets.
template <class Formula, class T>
void by_target_type(const ElementwiseParams& params, int64_t block_begin, int64_t block_end) {
  if (params.target_dtype == params.dtype) return by_weight<Formula, T, T>(params, block_begin, block_end);
  if constexpr (sizeof(T) == 2) by_weight<Formula, T, float>(params, block_begin, block_end);
}

template <class Formula>
void elementwise_loss(const ElementwiseParams& params, int64_t block_begin, int64_t block_end) {
  by_dtype(params.dtype,
           [&](auto element) { by_target_type<Formula, decltype(element)>(params, block_begin, block_end); });
}

}  // namespace
}  // namespace fused_losses::cpu
