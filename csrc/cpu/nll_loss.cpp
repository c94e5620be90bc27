// Negative log-likelihood on the CPU: a gather forward, a scatter backward. Compiled once per instruction set.
#include "../core/blocks.h"
#include "../core/compensated_sum.h"
#include "../core/dtype_dispatch.h"
#include "kernels.h"
#include "vec.h"

namespace fused_losses::cpu {
namespace {

// Positions that lie in memory at one distance from each other.
struct Run {
  int64_t position;
  int64_t count;
  int64_t offset;  // of the first position's class 0, in elements
  int64_t stride;
};

// Splits [first, last) into runs: all positions are one where there is no inner axis.
template <class Visit>
void for_each_run(const ClassLayout& layout, int64_t inner_size, int64_t first, int64_t last, const Visit& visit) {
  if (inner_size == 1) {
    visit(Run{first, last - first, layout.offset(first, 0), layout.outer_stride});
    return;
  }
  for (int64_t position = first; position < last;) {
    const Place place = place_of(position, inner_size);
    const int64_t rest = inner_size - place.inner;
    const int64_t count = rest < last - position ? rest : last - position;
    visit(Run{position, count, layout.offset(place), layout.inner_stride});
    position += count;
  }
}

constexpr int64_t kChunkPositions = 256;

// The losses of a run: written unless `losses` is null, and their sum. Nothing else is stored: a store that waits for
// an element from memory holds back the loads behind it whose addresses have the same last 12 bits.
template <class T, class I, bool kWeighted>
double gather(const NLLLossParams& params, const Run& run, Accumulation<T>* losses) {
  using A = Accumulation<T>;
  const I* targets = static_cast<const I*>(params.target.data) + run.position;
  const T* source = static_cast<const T*>(params.input) + run.offset;
  const A* class_weight = static_cast<const A*>(params.target.class_weight);
  const int64_t class_stride = params.input_layout.class_stride;
  const int64_t ignore_index = params.target.ignore_index;
  const auto loss_at = [&](int64_t i) -> double {
    const int64_t index = targets[i];
    A loss = 0;
    if (index != ignore_index) {
      loss = -load_scalar(source + i * run.stride + index * class_stride);
      if constexpr (kWeighted) loss *= class_weight[index];
    }
    if (losses != nullptr) losses[i] = loss;
    return static_cast<double>(loss);
  };
  // Four sums side by side: none waits for the addition of another.
  double sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
  int64_t i = 0;
  for (; i + 4 <= run.count; i += 4) {
    sum0 += loss_at(i);
    sum1 += loss_at(i + 1);
    sum2 += loss_at(i + 2);
    sum3 += loss_at(i + 3);
  }
  for (; i < run.count; ++i) sum0 += loss_at(i);
  return (sum0 + sum1) + (sum2 + sum3);
}

template <class T, class I>
void forward(const NLLLossParams& params, int64_t block_begin, int64_t block_end) {
  using A = Accumulation<T>;
  const auto gather_run = params.target.class_weight != nullptr ? gather<T, I, true> : gather<T, I, false>;
  for (int64_t block = block_begin; block < block_end; ++block) {
    const auto [first, last] = range_of_block(block, params.positions_per_block, params.num_positions);
    // The block's targets are checked, into the first-level cache, before one of them is followed.
    params.block_targets[block] = FUSED_LOSSES_CAPABILITY::scan_targets(params.target, first, last);
    if (params.block_targets[block].first_invalid >= 0) continue;
    CompensatedSum block_loss;
    for (int64_t begin = first; begin < last; begin += kChunkPositions) {
      const int64_t count = last - begin < kChunkPositions ? last - begin : kChunkPositions;
      for_each_run(params.input_layout, params.inner_size, begin, begin + count, [&](const Run& run) {
        A* losses = params.losses != nullptr ? static_cast<A*>(params.losses) + run.position : nullptr;
        block_loss.add(gather_run(params, run, losses));
      });
    }
    if (params.block_losses != nullptr) params.block_losses[block] = block_loss.value();
  }
}

template <class T, class I>
void backward(const NLLLossParams& params, int64_t block_begin, int64_t block_end) {
  using A = Accumulation<T>;
  const A scale = static_cast<A>(-params.gradient_scale);
  const A* class_weight = static_cast<const A*>(params.target.class_weight);
  const ClassLayout layout{params.num_classes * params.inner_size, params.inner_size, 1};
  const auto [first, last] = range_of_blocks(block_begin, block_end, params.positions_per_block, params.num_positions);
  for_each_run(layout, params.inner_size, first, last, [&](const Run& run) {
    const I* targets = static_cast<const I*>(params.target.data) + run.position;
    const A* grad_output = static_cast<const A*>(params.grad_output) + run.position * params.grad_output_stride;
    T* gradient = static_cast<T*>(params.gradient) + run.offset;
    for (int64_t i = 0; i < run.count; ++i) {
      const int64_t index = targets[i];
      if (index == params.target.ignore_index) continue;
      const A weight = class_weight != nullptr ? class_weight[index] : A(1);
      store_scalar(gradient + i * run.stride + index * layout.class_stride,
                   scale * weight * grad_output[i * params.grad_output_stride]);
    }
  });
}

}  // namespace

namespace FUSED_LOSSES_CAPABILITY {

void nll_loss(const NLLLossParams& params, int64_t block_begin, int64_t block_end) {
  const bool is_backward = params.gradient != nullptr;
  by_dtype(params.dtype, [&](auto element) {
    by_index_type(params.target.type, [&](auto index) {
      using T = decltype(element);
      using I = decltype(index);
      (is_backward ? backward<T, I> : forward<T, I>)(params, block_begin, block_end);
    });
  });
}

}  // namespace FUSED_LOSSES_CAPABILITY
}  // namespace fused_losses::cpu
