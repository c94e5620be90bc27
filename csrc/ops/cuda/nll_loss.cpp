// fused_losses::nll_loss and its backward on CUDA.
#include "../nll_loss_problem.h"
#include "device.h"

namespace fused_losses::cuda {
namespace {

Tensor loss(const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight, int64_t reduction,
            int64_t ignore_index, bool promote) {
  const Reduction kind = to_reduction(reduction);
  NLLLossProblem problem(input, target, weight, {kind, ignore_index, promote});
  const DeviceScope scope(input);
  if (kind == Reduction::None) {
    const Tensor losses = problem.new_losses();
    nll_loss(problem.params, scope.stream());
    return cast(losses, problem.loss_type());
  }
  Scratch scratch(input);
  const double* denominator = nullptr;
  if (kind == Reduction::Mean) {
    MeanOfTargets mean = scratch.mean();
    mean.is_zero_if_ignored = is_zero_if_ignored(input);
    weigh_targets(problem.params.target, problem.params.num_positions, problem.params.dtype, mean, scratch.block_sums(),
                  scope.stream());
    denominator = mean.denominator;
  }
  problem.params.block_losses = scratch.block_sums();
  const int64_t count = nll_loss(problem.params, scope.stream());
  return reduced_loss(scratch, count, 1.0, denominator, problem.loss_type(), input, scope.stream());
}

Tensor backward(const Tensor& grad_output, const Tensor& target, const std::optional<Tensor>& weight,
                std::vector<int64_t> input_sizes, ScalarType input_type, int64_t reduction, int64_t ignore_index,
                bool promote) {
  const Reduction kind = to_reduction(reduction);
  NLLLossProblem problem(grad_output, target, weight, input_sizes, input_type, {kind, ignore_index, promote});
  const DeviceScope scope(target);
  Scratch scratch(target);
  if (kind == Reduction::Mean) {
    weigh_targets(problem.params.target, problem.params.num_positions, problem.params.dtype, scratch.mean(),
                  scratch.block_sums(), scope.stream());
    problem.params.device_gradient_scale = scratch.mean().inverse;
  }
  Tensor gradient = empty(input_sizes, input_type, target);
  problem.params.gradient = gradient.data_ptr();
  nll_loss(problem.params, scope.stream());
  return gradient;
}

}  // namespace
}  // namespace fused_losses::cuda

STABLE_TORCH_LIBRARY_IMPL(FUSED_LOSSES_LIBRARY, FUSED_LOSSES_DISPATCH_KEY, library) {
  using namespace fused_losses::cuda;
  library.impl("nll_loss", TORCH_BOX(&loss));
  library.impl("nll_loss_forward", TORCH_BOX(&loss));
  library.impl("nll_loss_backward", TORCH_BOX(&backward));
}
