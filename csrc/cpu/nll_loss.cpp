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

// Calls visit(position, outer, inner) for the positions of the blocks, without a division for each.
template <class Visit>
void for_each_position(const NLLLossParams& params, int64_t first, int64_t last, const Visit& visit) {
  int64_t outer = first / params.inner_size;
  int64_t inner = first % params.inner_size;
  for (int64_t position = first; position < last; ++position) {
    visit(position, outer, inner);
    if (++inner == params.inner_size) {
      inner = 0;
      ++outer;
    }
  }
}

constexpr int64_t kChunkPositions = 256;
// The elements that a gather reads lie anywhere in the input: those of later positions are asked for early.
constexpr int64_t kPrefetchedPositions = 32;

template <class T>
void forward(const NLLLossParams& params, int64_t block_begin, int64_t block_end) {
  using A = Accumulation<T>;
  const T* input = static_cast<const T*>(params.input);
  int64_t index[kChunkPositions];
  int64_t offset[kChunkPositions];  // in the input
  A loss[kChunkPositions];
  for (int64_t block = block_begin; block < block_end; ++block) {
    const int64_t first = block * params.positions_per_block;
    const int64_t end = first + params.positions_per_block;
    const int64_t last = end < params.num_positions ? end : params.num_positions;
    CompensatedSum block_loss;
    for (int64_t chunk = first; chunk < last; chunk += kChunkPositions) {
      const int64_t count = last - chunk < kChunkPositions ? last - chunk : kChunkPositions;
      for_each_position(params, chunk, chunk + count, [&](int64_t position, int64_t outer, int64_t inner) {
        const int64_t i = position - chunk;
        index[i] = read_index(params.target, position);
        const int64_t read_class = index[i] == params.target.ignore_index ? 0 : index[i];
        offset[i] = params.input_layout.offset(outer, inner) + read_class * params.input_layout.class_stride;
      });
      for (int64_t i = 0; i < count; ++i) {
        __builtin_prefetch(input + offset[i + kPrefetchedPositions < count ? i + kPrefetchedPositions : i]);
        const bool ignored = index[i] == params.target.ignore_index;
        loss[i] = ignored ? A(0) : -load_scalar(input + offset[i]) * target_weight<A>(params.target, index[i]);
      }
      block_loss.add(sum_in_double(loss, static_cast<int>(count)));
      if (params.losses != nullptr) {
        std::memcpy(static_cast<A*>(params.losses) + chunk, loss, static_cast<size_t>(count) * sizeof(A));
      }
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
  for_each_position(params, first, last, [&](int64_t position, int64_t outer, int64_t inner) {
    const int64_t index = read_index(params.target, position);
    if (index == params.target.ignore_index) return;
    const A grad_output = static_cast<const A*>(params.grad_output)[position * params.grad_output_stride];
    store_scalar(static_cast<T*>(params.gradient) + (outer * params.num_classes + index) * params.inner_size + inner,
                 scale * target_weight<A>(params.target, index) * grad_output);
  });
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
