// Binary cross-entropy of either kind and the focal loss: one sweep over input and target.
//
// Bytes an element: input and target for the loss, the gradient on top of them with the gradient; operands that are
// broadcast come from the caches.
#pragma once

#include "../core/binary_cross_entropy.h"
#include "../core/binary_cross_entropy_formulas.h"
#include "launch.h"
#include "launch_bounds.h"
#include "packet.h"
#include "reduce.h"

namespace fused_losses::cuda {
namespace {

constexpr int kElementwiseThreads = 256;

template <class A>
struct ScalarMath {
  using V = A;
  static __device__ __forceinline__ A constant(double value) { return static_cast<A>(value); }
  static __device__ __forceinline__ A select(bool condition, A yes, A no) { return condition ? yes : no; }
  static __device__ __forceinline__ bool all_zero_or_one(A y) { return y == A(0) || y == A(1); }
  // As the comparison a > b ? a : b: of NaN and a number the second one.
  static __device__ __forceinline__ A max_of(A a, A b) { return a > b ? a : b; }
  static __device__ __forceinline__ A log(A x) { return log_of(x); }
  static __device__ __forceinline__ A exp(A x) { return exp_of_shifted<A>(x); }
  static __device__ __forceinline__ A log1p(A x) { return log1p_of(x); }
  static __device__ __forceinline__ A log_of_complement(A x) { return log1p(-x); }
  // One logarithm for both. What 1 - x rounds away is exact, and 0 from x = 1/2 on; log(v + rest) is log v + rest / v,
  // and 1 + x is near enough to 1 / v.
  static __device__ __forceinline__ A log_of_either(bool is_log, A x) {
    const A v = is_log ? x : A(1) - x;
    const A rest = is_log ? A(0) : (A(1) - v) - x;
    return log(v) + fma_of(rest, x, rest);
  }
};

// kCount elements of a dense tensor; one access each where there is no packet of them.
template <int kCount, class A, class U>
__device__ __forceinline__ void load_elements(const U* address, int count, bool aligned, A (&values)[kCount]) {
  if (aligned && count == kCount) {
    constexpr int kElements = kPacketElements<U>;
    static_assert(kCount % kElements == 0);
#pragma unroll
    for (int first = 0; first < kCount; first += kElements) {
      const Packet<U> packet = load_packet(address + first, Reuse::Never);
#pragma unroll
      for (int k = 0; k < kElements; ++k) values[first + k] = static_cast<A>(packet.at(k));
    }
    return;
  }
#pragma unroll
  for (int k = 0; k < kCount; ++k) values[k] = k < count ? static_cast<A>(to_accumulation(address[k])) : A(0);
}
template <int kCount, class A, class U>
__device__ __forceinline__ void store_elements(U* address, int count, bool aligned, const A (&values)[kCount]) {
  if (aligned && count == kCount) {
    constexpr int kElements = kPacketElements<U>;
    static_assert(kCount % kElements == 0);
#pragma unroll
    for (int first = 0; first < kCount; first += kElements) {
      store_packet(address + first, Packet<U>::of(values + first));
    }
    return;
  }
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    if (k < count) address[k] = from_accumulation<U>(values[k]);
  }
}

template <class A>
__device__ __forceinline__ A read_broadcast(const BroadcastOperand& operand, int64_t offset) {
  switch (operand.dtype) {
    case DType::Float32:
      return static_cast<A>(static_cast<const float*>(operand.data)[offset]);
    case DType::Float64:
      return static_cast<A>(static_cast<const double*>(operand.data)[offset]);
    case DType::BFloat16:
      return static_cast<A>(to_accumulation(static_cast<const BFloat16*>(operand.data)[offset]));
    case DType::Float16:
      return static_cast<A>(to_accumulation(static_cast<const Float16*>(operand.data)[offset]));
  }
  __builtin_unreachable();
}

// value = value / size; the rest. Division by 32 bits is a fifth of that by 64.
__device__ __forceinline__ int64_t divide(int64_t& value, int64_t size) {
  const bool is_small = ((value | size) >> 32) == 0;
  const int64_t quotient =
      is_small ? int64_t(static_cast<uint32_t>(value) / static_cast<uint32_t>(size)) : value / size;
  const int64_t rest = value - quotient * size;
  value = quotient;
  return rest;
}

// kCount adjacent elements of a broadcast operand, from flat index `first` on.
template <int kCount, class A>
__device__ __forceinline__ void load_broadcast(const BroadcastOperand& operand, int64_t first, int count,
                                               A (&values)[kCount]) {
  int64_t coordinates[kMaxBroadcastDims];
  int64_t offset = 0;
  int64_t rest_of_last = 0;
  int64_t last_stride = 0;
#pragma unroll
  for (int dim = kMaxBroadcastDims - 1; dim >= 0; --dim) {
    if (dim >= operand.num_dims) continue;
    coordinates[dim] = divide(first, operand.sizes[dim]);
    offset += coordinates[dim] * operand.strides[dim];
    if (dim + 1 == operand.num_dims) {
      rest_of_last = operand.sizes[dim] - coordinates[dim];
      last_stride = operand.strides[dim];
    }
  }
  if (rest_of_last >= kCount && count == kCount) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) values[k] = read_broadcast<A>(operand, offset + k * last_stride);
    return;
  }
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    values[k] = A(1);
    if (k >= count) continue;
    values[k] = read_broadcast<A>(operand, offset);
    // The next element's coordinates, as an odometer counts.
    bool carries = true;
#pragma unroll
    for (int dim = kMaxBroadcastDims - 1; dim >= 0; --dim) {
      if (dim >= operand.num_dims || !carries) continue;
      offset += operand.strides[dim];
      carries = ++coordinates[dim] == operand.sizes[dim];
      if (carries) {
        offset -= coordinates[dim] * operand.strides[dim];
        coordinates[dim] = 0;
      }
    }
  }
}

// See Note [Launch bounds].
template <class T, class Formula, bool kWeighted>
constexpr int elementwise_registers() {
  if (kWeighted) return kBlackwell ? 128 : sizeof(T) == 4 ? 64 : 80;
  // A double's power takes more.
  return kBlackwell || sizeof(T) == 2 || (sizeof(T) == 8 && kSameType<Formula, FocalFormula>) ? 64 : 48;
}

// T: input and gradient; U: target, losses and grad_output. Without a weight and a pos_weight a thread takes half the
// registers, so that twice as many threads are resident.
template <class T, class U, class Formula, bool kWeighted>
__global__ void __launch_bounds__(kElementwiseThreads,
                                  min_blocks(kElementwiseThreads, elementwise_registers<T, Formula, kWeighted>()))
    elementwise_loss_kernel(const __grid_constant__ BinaryCrossEntropyParams params) {
  using A = Accumulation<T>;
  constexpr int kCount = kPacketElements<T>;
  A scale = static_cast<A>(params.gradient_scale);
  if (params.device_grad_output != nullptr) {
    const A grad_output = static_cast<A>(to_accumulation(*static_cast<const U*>(params.device_grad_output)));
    if (params.mode == ElementwiseMode::LossAndGradient && grad_output == A(1)) return;  // it is scaled already
    scale = static_cast<A>(params.gradient_scale * static_cast<double>(grad_output));    // rounded once, as on the host
  }
  const T* inputs = static_cast<const T*>(params.input);
  const U* targets = static_cast<const U*>(params.target);
  const U* grad_outputs = static_cast<const U*>(params.grad_output);
  T* gradients = static_cast<T*>(params.gradient);
  U* losses = static_cast<U*>(params.losses);
  const Formula formula = formula_of<Formula>(params);
  const auto is_aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % kPacketBytes == 0; };
  double block_loss = 0;

  for (int64_t first = (int64_t(blockIdx.x) * kElementwiseThreads + threadIdx.x) * kCount; first < params.num_elements;
       first += int64_t(gridDim.x) * kElementwiseThreads * kCount) {
    const int64_t rest = params.num_elements - first;
    const int count = rest < kCount ? static_cast<int>(rest) : kCount;
    A x[kCount];
    A y[kCount];
    A weight[kCount];
    A pos_weight[kCount];
    load_elements(inputs + first, count, is_aligned(inputs), x);
    load_elements(targets + first, count, is_aligned(targets), y);
#pragma unroll
    for (int k = 0; k < kCount; ++k) weight[k] = pos_weight[k] = A(1);
    if constexpr (kWeighted) {
      if (params.weight.data != nullptr) load_broadcast(params.weight, first, count, weight);
      if (params.pos_weight.data != nullptr) load_broadcast(params.pos_weight, first, count, pos_weight);
    }

    A values[kCount];
    A derivatives[kCount];
    A sum = 0;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      if (Formula::kChecksRange && params.mode != ElementwiseMode::Backward) {
        FUSED_LOSSES_DEVICE_ASSERT(x[k] >= A(0) && x[k] <= A(1));
        FUSED_LOSSES_DEVICE_ASSERT(y[k] >= A(0) && y[k] <= A(1));
      }
      const ValueAndDerivative<A> at = formula.template at<ScalarMath<A>>(x[k], y[k], pos_weight[k]);
      values[k] = at.value * weight[k];
      derivatives[k] = at.derivative * weight[k] * scale;
      if (k < count) sum += values[k];
    }
    block_loss += static_cast<double>(sum);
    if (losses != nullptr) store_elements(losses + first, count, is_aligned(losses), values);
    if (params.mode == ElementwiseMode::Loss) continue;
    if (grad_outputs != nullptr) {
      A grad_output[kCount];
      load_elements(grad_outputs + first, count, is_aligned(grad_outputs), grad_output);
#pragma unroll
      for (int k = 0; k < kCount; ++k) derivatives[k] *= grad_output[k];
    }
    store_elements(gradients + first, count, is_aligned(gradients), derivatives);
  }
  write_block_sum<kElementwiseThreads>(block_loss, params.block_losses);
}

template <class T, class U, class Formula>
int64_t launch_elementwise(const BinaryCrossEntropyParams& params, Stream stream) {
  const int64_t blocks = blocks_for(params.num_elements, int64_t(kElementwiseThreads) * kPacketElements<T>);
  auto kernel = elementwise_loss_kernel<T, U, Formula, false>;
  if constexpr (Formula::kTakesWeights) {
    const bool weighted = params.weight.data != nullptr || params.pos_weight.data != nullptr;
    if (weighted) kernel = elementwise_loss_kernel<T, U, Formula, true>;
  }
  launch(kernel, {blocks, kElementwiseThreads}, stream, params);
  return blocks;
}

// Targets have the input's type, or float32 beside a 16-bit input.
template <class Formula>
int64_t elementwise_loss(const BinaryCrossEntropyParams& params, Stream stream) {
  switch (params.dtype) {
    case DType::Float32:
      return launch_elementwise<float, float, Formula>(params, stream);
    case DType::Float64:
      return launch_elementwise<double, double, Formula>(params, stream);
    case DType::BFloat16:
      return params.target_dtype == DType::Float32 ? launch_elementwise<BFloat16, float, Formula>(params, stream)
                                                   : launch_elementwise<BFloat16, BFloat16, Formula>(params, stream);
    case DType::Float16:
      return params.target_dtype == DType::Float32 ? launch_elementwise<Float16, float, Formula>(params, stream)
                                                   : launch_elementwise<Float16, Float16, Formula>(params, stream);
  }
  __builtin_unreachable();
}

}  // namespace
}  // namespace fused_losses::cuda
