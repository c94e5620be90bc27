// The small kernels beside the losses: the weights of targets, the sum of partial sums. Every sum has a fixed order.
#include "kernels.h"
#include "launch.h"
#include "reduce.h"

namespace fused_losses::cuda {
namespace {

constexpr int kBlockThreads = 1024;
constexpr int kTargetsPerThread = 8;

static_assert(kMaxBlockSums == kMaxBlocks);

// The weight of this thread's share of the targets.
template <class A>
__device__ __forceinline__ double weigh(const IndexTarget& target, int64_t num_positions) {
  const A* weight = static_cast<const A*>(target.class_weight);
  double sum = 0;
  for (int64_t position = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x; position < num_positions;
       position += int64_t(gridDim.x) * kBlockThreads) {
    const int64_t index = read_index(target, position);
    if (index == target.ignore_index) continue;
    FUSED_LOSSES_DEVICE_ASSERT(index >= 0 && index < target.num_classes);
    sum += weight != nullptr ? static_cast<double>(weight[index]) : 1.0;
  }
  return sum;
}

template <class A>
__device__ __forceinline__ void write_mean(const MeanOfTargets& mean, double weight) {
  const double denominator = mean.is_smoothed && weight == 0 ? static_cast<double>(NAN) : weight;
  *mean.denominator = denominator;
  *static_cast<A*>(mean.inverse) = static_cast<A>(1.0 / denominator);
}

template <class A>
__global__ void __launch_bounds__(kBlockThreads)
    weigh_targets_kernel(IndexTarget target, int64_t num_positions, MeanOfTargets mean, double* block_sums) {
  double total = sum_of_block<kBlockThreads>(weigh<A>(target, num_positions));
  if (threadIdx.x != 0) return;
  if (mean.is_zero_if_ignored && read_index(target, 0) == target.ignore_index) total = 1;
  if (gridDim.x == 1) {
    write_mean<A>(mean, total);
  } else {
    block_sums[blockIdx.x] = total;
  }
}

// Of one block: the sum of so many values, in thread 0.
template <class A>
__device__ __forceinline__ double sum_of_values(const A* values, int64_t count) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kBlockThreads) sum += static_cast<double>(values[i]);
  return sum_of_block<kBlockThreads>(sum);
}

template <class A>
__global__ void __launch_bounds__(kBlockThreads)
    finish_mean_kernel(const double* block_sums, int64_t count, MeanOfTargets mean) {
  const double total = sum_of_values(block_sums, count);
  if (threadIdx.x == 0) write_mean<A>(mean, total);
}

template <class A>
__global__ void __launch_bounds__(kBlockThreads) sum_class_weights_kernel(IndexTarget target, double* result) {
  const double total = sum_of_values(static_cast<const A*>(target.class_weight), target.num_classes);
  if (threadIdx.x == 0) *result = total;
}

__global__ void __launch_bounds__(kBlockThreads) reduce_losses_kernel(const __grid_constant__ LossReduction reduction) {
  const double sum = sum_of_values(reduction.block_losses, reduction.count);
  if (threadIdx.x != 0) return;
  const double loss = sum / (reduction.denominator != nullptr ? *reduction.denominator : reduction.divisor);
  switch (reduction.loss_dtype) {
    case DType::Float32:
      *static_cast<float*>(reduction.loss) = static_cast<float>(loss);
      break;
    case DType::Float64:
      *static_cast<double*>(reduction.loss) = loss;
      break;
    case DType::BFloat16:
      *static_cast<BFloat16*>(reduction.loss) = from_accumulation<BFloat16>(static_cast<float>(loss));
      break;
    case DType::Float16:
      *static_cast<Float16*>(reduction.loss) = from_accumulation<Float16>(static_cast<float>(loss));
      break;
  }
}

template <class A>
void weigh_targets_of(const IndexTarget& target, int64_t num_positions, const MeanOfTargets& mean, double* block_sums,
                      Stream stream) {
  const int64_t blocks = blocks_for(num_positions, kBlockThreads * kTargetsPerThread);
  launch(weigh_targets_kernel<A>, {blocks, kBlockThreads}, stream, target, num_positions, mean, block_sums);
  if (blocks > 1) launch(finish_mean_kernel<A>, {1, kBlockThreads}, stream, block_sums, blocks, mean);
}

}  // namespace

void weigh_targets(const IndexTarget& target, int64_t num_positions, DType dtype, const MeanOfTargets& mean,
                   double* block_sums, Stream stream) {
  if (dtype == DType::Float64) return weigh_targets_of<double>(target, num_positions, mean, block_sums, stream);
  weigh_targets_of<float>(target, num_positions, mean, block_sums, stream);
}

void sum_class_weights(const IndexTarget& target, double* sum, Stream stream) {
  launch(target.double_weight ? sum_class_weights_kernel<double> : sum_class_weights_kernel<float>, {1, kBlockThreads},
         stream, target, sum);
}

void reduce_losses(const LossReduction& reduction, Stream stream) {
  launch(reduce_losses_kernel, {1, kBlockThreads}, stream, reduction);
}

}  // namespace fused_losses::cuda
