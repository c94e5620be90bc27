// fused_losses::cross_entropy and its variants on CUDA. See core/cross_entropy.h for the mathematics and
// fused_losses/autograd/cross_entropy.py for how the variants make a differentiable function.
#include "../cross_entropy_operators.h"
#include "device.h"

namespace fused_losses::cuda {
namespace {

// One call: the problem, its stream and its denominators, which stay on the device.
class Call : public CrossEntropyProblem {
 public:
  static constexpr bool kPreparesGradients = false;
  static constexpr bool kRescalesGradients = true;

  Call(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& class_weight,
       const CrossEntropyOptions& options, bool wants_gradient)
      : CrossEntropyProblem(logits, target, class_weight, options, wants_gradient), scope_(logits), scratch_(logits) {
    params.softcap = options.softcap;
    if (class_weight.has_value() && params.target_kind == TargetKind::SmoothedIndex) {
      sum_class_weights(params.target, scratch_.class_weight_sum(), stream());
      params.device_class_weight_sum = scratch_.class_weight_sum();
    }
    if (options.reduction != Reduction::Mean) return;
    if (is_probability()) {
      divisor_ = static_cast<double>(params.num_positions);
      params.gradient_scale = 1.0 / divisor_;
    } else {
      MeanOfTargets mean = scratch_.mean();
      mean.is_smoothed = params.target_kind == TargetKind::SmoothedIndex;
      mean.is_zero_if_ignored = !mean.is_smoothed && is_zero_if_ignored(logits);
      weigh_targets(params.target, params.num_positions, params.dtype, mean, scratch_.block_sums(), stream());
      denominator_ = mean.denominator;
      params.device_gradient_scale = mean.inverse;
    }
  }

  Tensor new_gradient() {
    Tensor gradient = empty_strided(sizes(), gradient_strides(), logits().scalar_type(), logits());
    params.gradient = gradient.data_ptr();
    return gradient;
  }

  void run() const { cross_entropy(params, stream()); }

  // In the place of a gradient that this call's forward made.
  void run_over(Tensor gradient) {
    check_gradient(gradient, sizes(), returned_strides(), logits());
    const Tensor of_kernels = at_strides(gradient, gradient_strides());
    params.gradient = of_kernels.data_ptr();
    run();
    if (of_kernels.data_ptr() != gradient.data_ptr()) torch::stable::copy_(gradient, of_kernels);
  }

  // Runs the forward and reduces the losses.
  Tensor run_to_loss() {
    if (options().reduction == Reduction::None) {
      const Tensor losses = new_losses();
      run();
      return cast(losses, loss_type());
    }
    params.block_losses = scratch_.block_sums();
    const int64_t count = cuda::cross_entropy(params, stream());
    return reduced_loss(scratch_, count, divisor_, denominator_, loss_type(), logits(), stream());
  }

 private:
  Stream stream() const { return scope_.stream(); }

  DeviceScope scope_;
  Scratch scratch_;
  double divisor_ = 1;
  const double* denominator_ = nullptr;
};

}  // namespace
}  // namespace fused_losses::cuda

STABLE_TORCH_LIBRARY_IMPL(FUSED_LOSSES_LIBRARY, FUSED_LOSSES_DISPATCH_KEY, library) {
  fused_losses::CrossEntropyOperators<fused_losses::cuda::Call>::implement(library);
}
