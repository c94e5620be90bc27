// The entry points of the CUDA kernels: each launches on a stream and returns. No torch, no CUDA header, so that the
// operators are compiled by the host compiler.
#pragma once

#include "../core/cross_entropy.h"
#include "../core/elementwise.h"
#include "../core/nll_loss.h"
#include "../core/token_statistics.h"

namespace fused_losses::cuda {

using Stream = void*;  // cudaStream_t

// The most partial sums that any kernel leaves in block_losses or needs as scratch.
constexpr int64_t kMaxBlockSums = 8192;

// Each writes params.block_losses and returns how many partial sums these are.
int64_t cross_entropy(const CrossEntropyParams& params, Stream stream);
int64_t nll_loss(const NLLLossParams& params, Stream stream);
int64_t binary_cross_entropy(const ElementwiseParams& params, Stream stream);
int64_t binary_cross_entropy_with_logits(const ElementwiseParams& params, Stream stream);
int64_t sigmoid_focal_loss(const ElementwiseParams& params, Stream stream);

// The statistics of rows of contiguous classes or, where params.gradient is not null, their gradient.
void token_statistics(const TokenStatisticsParams& params, Stream stream);

// What a mean over index targets divides by, the sum of their weights, and its inverse in the accumulation type. Both
// lie on the device, and nothing waits for the host to know them.
struct MeanOfTargets {
  double* denominator;
  void* inverse;
  bool is_smoothed = false;  // a mean of targets without weight is NaN, whatever label smoothing leaves to divide
  bool is_zero_if_ignored = false;  // the mean of a single target, where that is ignored: NaN otherwise
};
// `block_sums`: [kMaxBlockSums], scratch.
void weigh_targets(const IndexTarget& target, int64_t num_positions, DType dtype, const MeanOfTargets& mean,
                   double* block_sums, Stream stream);

// *sum = the sum of all class weights.
void sum_class_weights(const IndexTarget& target, double* sum, Stream stream);

// loss = sum of block_losses / divisor, or / *denominator where that is not null; rounded to the loss's type, by way of
// float to one of 16 bits.
struct LossReduction {
  const double* block_losses;
  int64_t count;
  double divisor;
  const double* denominator;
  void* loss;
  DType loss_dtype;
};
void reduce_losses(const LossReduction& reduction, Stream stream);

}  // namespace fused_losses::cuda
