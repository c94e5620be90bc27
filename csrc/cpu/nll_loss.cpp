// Negative log-likelihood on the CPU: a gather forward, a scatter backward. Compiled once per instruction set.
#include "../core/compensated_sum.h"
#include "index_target.h"
#include "kernels.h"
#include "vec.h"

namespace fused_losses::cpu {
namespace {

template <class A>
A target_weight(const IndexTarget& target, int64_t index) {
  return target.class_weight != nullptr ? static_cast<const A*>(target.class_weight)[index] : A(1);
}

template <class T>
void forward(const NLLLossParams& params, int64_t block_begin, int64_t block_end) {
  using A = Accumulation<T>;
  for (int64_t block = block_begin; block < block_end; ++block) {
    const int64_t first = block * params.positions_per_block;
    const int64_t end = first + params.positions_per_block;
    const int64_t last = end < params.num_positions ? end : params.num_positions;
    CompensatedSum block_loss;
    for (int64_t position = first; position < last; ++position) {
      const int64_t index = read_index(params.target, position);
      A loss = 0;
      if (index != params.target.ignore_index) {
        const int64_t offset = params.input_layout.offset(position / params.inner_size, position % params.inner_size) +
                               index * params.input_layout.class_stride;
        loss = -load_scalar(static_cast<const T*>(params.input) + offset) * target_weight<A>(params.target, index);
      }
      block_loss.add(static_cast<double>(loss));
      if (params.losses != nullptr) static_cast<A*>(params.losses)[position] = loss;
    }
    if (params.block_losses != nullptr) params.block_losses[block] = block_loss.value();
  }
}

template <class T>
void backward(const NLLLossParams& params, int64_t block_begin, int64_t block_end) {
  using A = Accumulation<T>;
  const A scale = static_cast<A>(-params.gradient_scale);
  const int64_t first = block_begin * params.positions_per_block;
  const int64_t end = block_end * params.positions_per_block;
  const int64_t last = end < params.num_positions ? end : params.num_positions;
  for (int64_t position = first; position < last; ++position) {
    const int64_t index = read_index(params.target, position);
    if (index == params.target.ignore_index) continue;
    const int64_t outer = position / params.inner_size;
    const int64_t inner = position % params.inner_size;
    const A grad_output = static_cast<const A*>(params.grad_output)[position * params.grad_output_stride];
    store_scalar(static_cast<T*>(params.gradient) + (outer * params.num_classes + index) * params.inner_size + inner,
                 scale * target_weight<A>(params.target, index) * grad_output);
  }
}

template <class T>
void by_direction(const NLLLossParams& params, int64_t block_begin, int64_t block_end) {
  if (params.gradient != nullptr) {
    backward<T>(params, block_begin, block_end);
  } else {
    forward<T>(params, block_begin, block_end);
  }
}

}  // namespace

namespace FUSED_LOSSES_CAPABILITY {

void nll_loss(const NLLLossParams& params, int64_t block_begin, int64_t block_end) {
  switch (params.dtype) {
    case DType::Float32:
      return by_direction<float>(params, block_begin, block_end);
    case DType::Float64:
      return by_direction<double>(params, block_begin, block_end);
    case DType::BFloat16:
      return by_direction<BFloat16>(params, block_begin, block_end);
    case DType::Float16:
      return by_direction<Float16>(params, block_begin, block_end);
  }
}

}  // namespace FUSED_LOSSES_CAPABILITY
}  // namespace fused_losses::cpu
