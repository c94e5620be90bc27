// Binary cross-entropy of either kind and the focal loss: one sweep over input and target.
//
// Bytes an element: input and target for the loss, the gradient on top of them with the gradient; operands that are
// broadcast come from the caches.
#pragma once

#include "../core/binary_cross_entropy_formulas.h"
#include "../core/elementwise.h"
#include "launch.h"
#include "launch_bounds.h"
#include "packet.h"
#include "reduce.h"

namespace fused_losses::cuda {
namespace {

constexpr int kElementwiseThreads = 256;

// A float that is divided by the hardware's reciprocal: of 16-bit operands as it is, within two ULP; of float32 mended
// once. What divides is not below 2^-126, whose reciprocal is finite.
template <class T>
struct Quick {
  float value;

  __device__ __forceinline__ friend Quick operator-(Quick a) { return {-a.value}; }
  __device__ __forceinline__ friend Quick operator+(Quick a, Quick b) { return {a.value + b.value}; }
  __device__ __forceinline__ friend Quick operator-(Quick a, Quick b) { return {a.value - b.value}; }
  __device__ __forceinline__ friend Quick operator*(Quick a, Quick b) { return {a.value * b.value}; }
  __device__ __forceinline__ friend Quick operator/(Quick a, Quick b) {
    const float reciprocal = fast_reciprocal(b.value);
    const float quotient = a.value * reciprocal;
    if constexpr (sizeof(T) == 2) return {quotient};
    return {fma_of(fma_of(-b.value, quotient, a.value), reciprocal, quotient)};
  }
  __device__ __forceinline__ Quick& operator+=(Quick other) { return *this = *this + other; }
  __device__ __forceinline__ Quick& operator-=(Quick other) { return *this = *this - other; }
  __device__ __forceinline__ friend bool operator==(Quick a, Quick b) { return a.value == b.value; }
  __device__ __forceinline__ friend bool operator>(Quick a, Quick b) { return a.value > b.value; }
  __device__ __forceinline__ friend bool operator>=(Quick a, Quick b) { return a.value >= b.value; }
};

template <class T>
__device__ __forceinline__ float number_of(Quick<T> x) {
  return x.value;
}
__device__ __forceinline__ double number_of(double x) { return x; }

template <int kCount>
__device__ __forceinline__ float polynomial(const float (&coefficients)[kCount], float x) {
  float result = coefficients[kCount - 1];
#pragma unroll
  for (int k = kCount - 2; k >= 0; --k) result = fma_of(result, x, coefficients[k]);
  return result;
}

// Note [Logarithms of binary losses]
// log(1 + x) / x by the polynomials of the least relative error (Remez). In [0, 1], of the exponentials of logits:
// 1.3e-6 for 16-bit operands, 3.1e-8 for float32. In [-1/3, 1/3], of a probability's mantissa: 1.1e-6 and 2.6e-8.
template <class T>
__device__ __forceinline__ float log1p_of_exponential(float x) {
  constexpr float kShort[] = {0.99999875f, -0.49986964f, 0.3310945f,  -0.23503861f,
                              0.14922386f, -0.0664018f,  0.014141022f};
  constexpr float kLong[] = {0.99999994f,  -0.49999493f, 0.33319098f,  -0.24842982f, 0.19106005f,
                             -0.13663243f, 0.07822592f,  -0.02950522f, 0.0052326899f};
  return x * (sizeof(T) == 2 ? polynomial(kShort, x) : polynomial(kLong, x));
}
// Of x + rest, x in [0, 1] and the rest what was rounded away of it; below -104 of 0.
template <class T>
__device__ __forceinline__ float log_of_probability(float x, float rest) {
  constexpr float kShort[] = {0.9999999f, -0.5000224f, 0.3333767f, -0.24841659f, 0.19802703f, -0.19407682f, 0.1706519f};
  constexpr float kLong[] = {1.0f,        -0.4999993f, 0.33333167f,  -0.2500803f, 0.20011944f,
                             -0.1641279f, 0.13987651f, -0.15403204f, 0.14056109f};
  const uint32_t bits = bits_of_float(x * 0x1p24f);  // nothing is subnormal
  const uint32_t exponent = (bits - 0x3f2aaaabu) & 0xff800000u;
  const float past_one = (float_of_bits(bits - exponent) - 1.0f) + rest;  // of a mantissa in [2/3, 4/3)
  const float twos = static_cast<float>(static_cast<int32_t>(exponent - (24u << 23)));
  const float ratio = sizeof(T) == 2 ? polynomial(kShort, past_one) : polynomial(kLong, past_one);
  return fma_of(twos, kLogOf2 * 0x1p-23f, past_one * ratio);
}

// T: the input's type.
template <class T>
struct ScalarMath {
  using A = Accumulation<T>;
  using V = Quick<T>;
  static __device__ __forceinline__ V constant(double value) { return {static_cast<A>(value)}; }
  static __device__ __forceinline__ V select(bool condition, V yes, V no) { return condition ? yes : no; }
  static __device__ __forceinline__ bool all_zero_or_one(V y) { return y.value == A(0) || y.value == A(1); }
  // As the comparison a > b ? a : b: of NaN and a number the second one.
  static __device__ __forceinline__ V max_of(V a, V b) { return a > b ? a : b; }
  static __device__ __forceinline__ V log(V x) { return {log_of(x.value)}; }
  static __device__ __forceinline__ V exp(V x) { return {exp_of_shifted<T>(x.value)}; }
  // Of what `exp` gives: 0 to 1.
  static __device__ __forceinline__ V log1p(V x) { return {log1p_of_exponential<T>(x.value)}; }
  static __device__ __forceinline__ V log_of_complement(V x) { return {log1p_of(-x.value)}; }
  // One logarithm for both. What 1 - x rounds away is exact, and 0 from x = 1/2 on.
  static __device__ __forceinline__ V log_of_either(bool is_log, V x) {
    const A v = is_log ? x.value : A(1) - x.value;
    return {log_of_probability<T>(v, is_log ? A(0) : (A(1) - v) - x.value)};
  }
};

template <>
struct ScalarMath<double> {
  using V = double;
  static __device__ __forceinline__ V constant(double value) { return value; }
  static __device__ __forceinline__ V select(bool condition, V yes, V no) { return condition ? yes : no; }
  static __device__ __forceinline__ bool all_zero_or_one(V y) { return y == 0 || y == 1; }
  static __device__ __forceinline__ V max_of(V a, V b) { return a > b ? a : b; }
  static __device__ __forceinline__ V log(V x) { return log_of(x); }
  static __device__ __forceinline__ V exp(V x) { return exp_of_shifted<double>(x); }
  static __device__ __forceinline__ V log1p(V x) { return log1p_of(x); }
  static __device__ __forceinline__ V log_of_complement(V x) { return log1p_of(-x); }
  static __device__ __forceinline__ V log_of_either(bool is_log, V x) { return is_log ? log_of(x) : log1p_of(-x); }
};

// kCount elements that are whole packets.
template <int kCount, class A, class U>
__device__ __forceinline__ void load_packets(const U* address, Reuse reuse, A (&values)[kCount]) {
  constexpr int kElements = kPacketElements<U>;
  static_assert(kCount % kElements == 0);
#pragma unroll
  for (int first = 0; first < kCount; first += kElements) {
    const Packet<U> packet = load_packet(address + first, reuse);
#pragma unroll
    for (int k = 0; k < kElements; ++k) values[first + k] = static_cast<A>(packet.at(k));
  }
}

// kCount elements of a dense tensor; one access each where there is no packet of them.
template <int kCount, class A, class U>
__device__ __forceinline__ void load_elements(const U* address, int count, bool aligned, A (&values)[kCount]) {
  if (aligned && count == kCount) return load_packets(address, Reuse::Never, values);
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

// kCount elements of a broadcast operand with a stride: whole packets where they lie in such.
template <int kCount, class A, class U>
__device__ __forceinline__ void read_strided(const U* address, int64_t stride, A (&values)[kCount]) {
  if constexpr (kCount % kPacketElements<U> == 0) {
    const bool are_packets = stride == 1 && elements_past_alignment(address) == 0;
    if (are_packets) return load_packets(address, Reuse::Soon, values);
  }
#pragma unroll
  for (int k = 0; k < kCount; ++k) values[k] = static_cast<A>(to_accumulation(address[k * stride]));
}
template <int kCount, class A>
__device__ __forceinline__ void read_broadcast(const BroadcastOperand& operand, int64_t offset, int64_t stride,
                                               A (&values)[kCount]) {
  switch (operand.dtype) {
    case DType::Float32:
      return read_strided(static_cast<const float*>(operand.data) + offset, stride, values);
    case DType::Float64:
      return read_strided(static_cast<const double*>(operand.data) + offset, stride, values);
    case DType::BFloat16:
      return read_strided(static_cast<const BFloat16*>(operand.data) + offset, stride, values);
    case DType::Float16:
      return read_strided(static_cast<const Float16*>(operand.data) + offset, stride, values);
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
    coordinates[dim] = dim == 0 ? first : divide(first, operand.sizes[dim]);
    offset += coordinates[dim] * operand.strides[dim];
    if (dim + 1 == operand.num_dims) {
      rest_of_last = operand.sizes[dim] - coordinates[dim];
      last_stride = operand.strides[dim];
    }
  }
  if (rest_of_last >= kCount && count == kCount) {
    read_broadcast(operand, offset, last_stride, values);
    return;
  }
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    values[k] = A(1);
    if (k >= count) continue;
    A value[1];
    read_broadcast(operand, offset, 0, value);
    values[k] = value[0];
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
  if (sizeof(T) == 8 && kSameType<Formula, FocalFormula>) return 80;  // a double's power
  return kBlackwell || sizeof(T) != 4 ? 64 : 48;
}

// T: input and gradient; U: target, losses and grad_output. Without a weight and a pos_weight a thread takes half the
// registers, so that twice as many threads are resident.
template <class T, class U, class Formula, bool kWeighted>
__global__ void __launch_bounds__(kElementwiseThreads,
                                  min_blocks(kElementwiseThreads, elementwise_registers<T, Formula, kWeighted>()))
    elementwise_loss_kernel(const __grid_constant__ ElementwiseParams params) {
  using A = Accumulation<T>;
  constexpr int kCount = kPacketElements<T>;
  A scale = static_cast<A>(params.gradient_scale);
  if (params.device_grad_output != nullptr) {
    const A grad_output = static_cast<A>(to_accumulation(*static_cast<const U*>(params.device_grad_output)));
    const bool is_there = params.mode == ElementwiseMode::LossAndGradient;
    if (is_there && grad_output == static_cast<A>(params.prepared_for)) return;
    scale = static_cast<A>(params.gradient_scale * static_cast<double>(grad_output));  // rounded once, as on the host
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

    // Twice the same formula, of which the compiler takes out what is not asked for and computes once what is shared.
    const auto formula_at = [&](int k) {
      using V = typename ScalarMath<T>::V;
      return formula.template at<ScalarMath<T>>(V{x[k]}, V{y[k]}, V{pos_weight[k]});
    };
    if (Formula::kChecksRange && params.mode != ElementwiseMode::Backward) {
      bool in_range = true;
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        in_range &= (x[k] >= A(0)) & (x[k] <= A(1)) & (y[k] >= A(0)) & (y[k] <= A(1));  // no branch for each
      }
      FUSED_LOSSES_DEVICE_ASSERT(in_range && "input and target between 0 and 1");
    }
    // What a weight or a power takes would stay in registers from one to the other.
    constexpr bool kAtOnce = kWeighted || kSameType<Formula, FocalFormula>;
    A values[kCount];
    A derivatives[kCount];
    A sum = 0;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      values[k] = number_of(formula_at(k).value) * weight[k];
      if constexpr (kAtOnce) derivatives[k] = number_of(formula_at(k).derivative) * weight[k] * scale;
      sum += values[k];
    }
    if (count < kCount) {
      sum = 0;
#pragma unroll
      for (int k = 0; k < kCount; ++k) sum += k < count ? values[k] : A(0);
    }
    block_loss += static_cast<double>(sum);
    if (losses != nullptr) store_elements(losses + first, count, is_aligned(losses), values);
    if (params.mode == ElementwiseMode::Loss) continue;
    if constexpr (!kAtOnce) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) derivatives[k] = number_of(formula_at(k).derivative) * scale;
    }
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
int64_t launch_elementwise(const ElementwiseParams& params, Stream stream) {
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
int64_t elementwise_loss(const ElementwiseParams& params, Stream stream) {
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
