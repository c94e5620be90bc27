// Negative log-likelihood: a gather forward, zeros and a scatter backward.
//
// Bytes a position: a target and one sector of 32 bytes forward; backward the gradient once, a target and a sector.
#include "../core/nll_loss.h"
#include "element.h"
#include "launch.h"
#include "launch_bounds.h"
#include "reduce.h"

namespace fused_losses::cuda {
namespace {

constexpr int kBlockThreads = 256;
constexpr int kThreadRegisters = kBlackwell ? 64 : 32;  // see Note [Launch bounds]

// A position's class, or -1 where it is ignored.
__device__ __forceinline__ int64_t target_class(const NLLLossParams& params, int64_t position) {
  const int64_t index = read_index(params.target, position);
  if (index == params.target.ignore_index) return -1;
  FUSED_LOSSES_DEVICE_ASSERT(index >= 0 && index < params.num_classes);
  return index;
}

template <class A>
__device__ __forceinline__ A weight_of(const NLLLossParams& params, int64_t index) {
  const A* weight = static_cast<const A*>(params.target.class_weight);
  return weight != nullptr ? weight[index] : A(1);
}

template <class T>
__global__ void __launch_bounds__(kBlockThreads, min_blocks(kBlockThreads, kThreadRegisters))
    nll_loss_kernel(const __grid_constant__ NLLLossParams params) {
  using A = Accumulation<T>;
  double block_loss = 0;
  for (int64_t position = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x; position < params.num_positions;
       position += int64_t(gridDim.x) * kBlockThreads) {
    const Place place = place_of(position, params.inner_size);
    const int64_t index = target_class(params, position);
    A loss = 0;
    if (index >= 0) {
      const T* input = static_cast<const T*>(params.input) + params.input_layout.offset(place);
      loss = -to_accumulation(input[index * params.input_layout.class_stride]) * weight_of<A>(params, index);
    }
    if (params.losses != nullptr) static_cast<A*>(params.losses)[position] = loss;
    block_loss += static_cast<double>(loss);
  }
  write_block_sum<kBlockThreads>(block_loss, params.block_losses);
}

template <class T>
__global__ void __launch_bounds__(kBlockThreads, min_blocks(kBlockThreads, kThreadRegisters))
    nll_loss_backward_kernel(const __grid_constant__ NLLLossParams params) {
  using A = Accumulation<T>;
  A scale = static_cast<A>(params.gradient_scale);
  if (params.device_gradient_scale != nullptr) scale = *static_cast<const A*>(params.device_gradient_scale);
  for (int64_t position = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x; position < params.num_positions;
       position += int64_t(gridDim.x) * kBlockThreads) {
    const Place place = place_of(position, params.inner_size);
    const int64_t index = target_class(params, position);
    if (index < 0) continue;
    const A grad_output = static_cast<const A*>(params.grad_output)[position * params.grad_output_stride];
    T* gradient = static_cast<T*>(params.gradient) + place.outer * params.num_classes * params.inner_size + place.inner;
    gradient[index * params.inner_size] = from_accumulation<T>(-scale * weight_of<A>(params, index) * grad_output);
  }
}

template <class T>
int64_t nll_loss_of(const NLLLossParams& params, Stream stream) {
  const int64_t blocks = blocks_for(params.num_positions, kBlockThreads);
  if (params.gradient == nullptr) {
    launch(nll_loss_kernel<T>, {blocks, kBlockThreads}, stream, params);
    return blocks;
  }
  fill_with_zeros(params.gradient, static_cast<size_t>(params.num_positions * params.num_classes) * sizeof(T), stream);
  launch(nll_loss_backward_kernel<T>, {blocks, kBlockThreads}, stream, params);
  return 0;
}

}  // namespace

int64_t nll_loss(const NLLLossParams& params, Stream stream) {
  switch (params.dtype) {
    case DType::Float32:
      return nll_loss_of<float>(params, stream);
    case DType::Float64:
      return nll_loss_of<double>(params, stream);
    case DType::BFloat16:
      return nll_loss_of<BFloat16>(params, stream);
    case DType::Float16:
      return nll_loss_of<Float16>(params, stream);
  }
  __builtin_unreachable();
}

}  // namespace fused_losses::cuda
