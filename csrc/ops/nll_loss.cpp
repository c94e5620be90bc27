// fused_losses::nll_loss and its backward on the CPU.
#include <algorithm>
#include <cstring>

#include "../cpu/capability.h"
#include "cpu_target_check.h"
#include "cpu_tensors.h"
#include "nll_loss_problem.h"
#include "parallel.h"

namespace fused_losses {
namespace {

constexpr int64_t kPositionsPerBlock = 2048;
// Waking a thread costs as much as gathering some thousands of elements.
constexpr int64_t kBlocksPerThread = 2;
constexpr int64_t kBytesPerBlock = int64_t(1) << 20;

int64_t num_blocks(const NLLLossParams& params) { return blocks_of(params.num_positions, params.positions_per_block); }

void run(const NLLLossParams& params) {
  const auto kernel = cpu::kernels().nll_loss;
  for_each_block(
      num_blocks(params), [&](int64_t block_begin, int64_t block_end) { kernel(params, block_begin, block_end); },
      kBlocksPerThread);
}

Tensor nll_loss(const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight, int64_t reduction,
                int64_t ignore_index, bool promote) {
  const Reduction kind = to_reduction(reduction);
  NLLLossProblem problem(input, target, weight, {kind, ignore_index, promote});
  NLLLossParams& params = problem.params;
  params.positions_per_block = kPositionsPerBlock;
  std::vector<TargetScan> block_targets(static_cast<size_t>(num_blocks(params)));
  params.block_targets = block_targets.data();
  if (kind == Reduction::None) {
    const Tensor losses = problem.new_losses();
    run(params);
    total_weight(params.target, block_targets);
    return cast(losses, problem.loss_type());
  }
  std::vector<double> block_losses(block_targets.size());
  params.block_losses = block_losses.data();
  run(params);
  const double weight_of_targets = total_weight(params.target, block_targets);
  const double denominator = kind == Reduction::Mean ? weight_of_targets : 1.0;
  return scalar_tensor(ordered_sum(block_losses) / denominator, problem.loss_type(), input);
}

void fill_with_zeros(const Tensor& tensor) {
  char* data = static_cast<char*>(tensor.data_ptr());
  const int64_t bytes = tensor.numel() * static_cast<int64_t>(tensor.element_size());
  for_each_block(blocks_of(bytes, kBytesPerBlock), [&](int64_t block_begin, int64_t block_end) {
    const int64_t begin = block_begin * kBytesPerBlock;
    std::memset(data + begin, 0, static_cast<size_t>(std::min(block_end * kBytesPerBlock, bytes) - begin));
  });
}

Tensor nll_loss_backward(const Tensor& grad_output, const Tensor& target, const std::optional<Tensor>& weight,
                         std::vector<int64_t> input_sizes, ScalarType input_type, int64_t reduction,
                         int64_t ignore_index, bool promote) {
  const Reduction kind = to_reduction(reduction);
  NLLLossProblem problem(grad_output, target, weight, input_sizes, input_type, {kind, ignore_index, promote});
  NLLLossParams& params = problem.params;
  params.positions_per_block = kPositionsPerBlock;
  const double total_weight = check_targets(params.target, params.num_positions);
  if (kind == Reduction::Mean) params.gradient_scale = 1.0 / total_weight;
  const Tensor gradient = empty_gradient(input_sizes, contiguous_strides(input_sizes), input_type, target);
  fill_with_zeros(gradient);
  params.gradient = gradient.data_ptr();
  run(params);
  return gradient;
}

}  // namespace
}  // namespace fused_losses

STABLE_TORCH_LIBRARY_IMPL(fused_losses, CPU, library) {
  using namespace fused_losses;
  library.impl("nll_loss", TORCH_BOX(&nll_loss));
  library.impl("nll_loss_forward", TORCH_BOX(&nll_loss));
  library.impl("nll_loss_backward", TORCH_BOX(&nll_loss_backward));
}
